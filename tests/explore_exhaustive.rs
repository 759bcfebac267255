//! The exhaustive search runs one schedule of each class, and what it takes for independent is.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use backsim::explore::auto::search_auto;
use backsim::explore::exhaustive::{run_next, search_exhaustively};
use backsim::explore::run::run;
use backsim::explore::strategy::{Event, Reduction, Script, Tree};
use backsim::explore::{Kind, Plan, Setup};
use backsim::quirks::Compat;
use backsim::scenario;
use backsim::sim::rng::{Rng, Stream};

/// A disk of so many clusters, and what happens to it.
struct Tiny {
    clusters: u64,
    /// Workers of a full backup that is under way; 0: there is no backup.
    workers: u32,
    /// Whether a client begins the backup while the guests are at work.
    late: bool,
    /// Whether a client cancels the backup.
    cancel: bool,
    /// Whether a bitmap records.
    bitmap: bool,
    /// The commands of each guest.
    guests: &'static [&'static [&'static str]],
}

impl Tiny {
    fn text(&self) -> String {
        let mut text = format!(
            "name: tiny\ncompat: qemu-7.2\nsteps:\n  - {{image: disk, format: raw, size: {0}}}\n  - {{image: target, \
             format: raw, size: {0}}}\n  - vm: launch\n",
            self.clusters * 65536
        );
        for node in ["disk", "target"] {
            text += &format!(
                "  - execute: blockdev-add\n    arguments: {{driver: file, node-name: {node}, filename: \
                 TEST_DIR/PID-{node}}}\n"
            );
        }
        if self.bitmap {
            text +=
                "  - execute: block-dirty-bitmap-add\n    arguments: {node: disk, name: bitmap0, granularity: 65536}\n";
        }
        if self.workers > 0 {
            // What the disk holds must be known for a verdict on the target.
            text += &format!("  - qemu-io: disk\n    command: write -P 9 0 {}\n", self.clusters * 65536);
        }
        if self.workers > 0 && !self.late {
            text += &format!("  - {}\n", self.backup());
        }
        text += "  - concurrently:\n";
        if self.late {
            text += &format!("      client:\n        - {}\n", self.backup());
        }
        for (number, commands) in self.guests.iter().enumerate() {
            text += &format!(
                "      guest{number}:\n        - qemu-io: disk\n          commands: [{}]\n",
                commands.join(", ")
            );
        }
        if self.cancel {
            text += "      client:\n        - execute: job-cancel\n          arguments: {id: job0}\n";
        }
        if self.workers > 0 {
            text += "  - wait-event: JOB_STATUS_CHANGE\n    match: {id: job0, status: \"null\"}\n";
        }
        text
    }

    /// The command that begins the backup.
    fn backup(&self) -> String {
        format!(
            "{{execute: blockdev-backup, arguments: {{job-id: job0, device: disk, target: target, sync: full, x-perf: \
             {{max-workers: {}, max-chunk: 65536}}}}}}",
            self.workers
        )
    }

    fn setup_as(&self, compat: Compat) -> Setup {
        Setup { compat: Some(compat), ..self.setup() }
    }

    fn setup(&self) -> Setup {
        let text = self.text();
        let scenario = scenario::parse("tiny.yaml", &text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        let cases = scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        Setup::new(cases[0].clone(), Vec::new())
    }
}

const fn guests(guests: &'static [&'static [&'static str]]) -> Tiny {
    Tiny { clusters: 2, workers: 0, late: false, cancel: false, bitmap: false, guests }
}

const fn backup(clusters: u64, workers: u32, guests: &'static [&'static [&'static str]]) -> Tiny {
    Tiny { clusters, workers, late: false, cancel: false, bitmap: false, guests }
}

/// Small enough to run each of their schedules.
const TINY: &[Tiny] = &[
    guests(&[&["write -P 1 0 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["write -P 2 64k 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["write -P 2 0 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["write -P 2 32k 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["read 0 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["read 64k 64k"]]),
    guests(&[&["read 0 64k"], &["read 0 64k"]]),
    guests(&[&["write -P 1 0 64k"], &["flush"]]),
    guests(&[&["flush"], &["flush"]]),
    guests(&[&["write -P 1 0 64k", "write -P 2 0 64k"], &["write -P 3 0 64k"]]),
    guests(&[&["write -P 1 0 64k", "write -P 2 64k 64k"], &["write -P 3 64k 64k"]]),
    guests(&[&["write -P 1 0 64k", "read 0 64k"], &["write -P 3 64k 64k"]]),
    guests(&[&["write -z 0 64k"], &["write -P 3 0 128k"]]),
    Tiny { bitmap: true, ..guests(&[&["write -P 1 0 64k"], &["write -P 2 64k 64k"]]) },
    Tiny { bitmap: true, ..guests(&[&["write -P 1 0 64k"], &["write -P 2 32k 64k"]]) },
    Tiny { bitmap: true, ..guests(&[&["write -P 1 0 64k", "flush"], &["write -P 2 0 64k"]]) },
    backup(1, 1, &[&["read 0 64k"]]),
    backup(1, 1, &[&["write -P 1 0 64k"]]),
    backup(2, 1, &[&["write -P 1 64k 64k"]]),
    Tiny { cancel: true, ..backup(1, 1, &[]) },
    Tiny { late: true, ..backup(1, 1, &[&["read 0 64k"]]) },
    Tiny { late: true, ..backup(1, 1, &[&["write -P 1 0 64k"]]) },
];

/// Two guests that share nothing: whoever ends first, it makes no difference. Only which of them opens the disk is left.
#[test]
fn ends_of_actors_commute() {
    let tiny = guests(&[&["write -P 1 0 64k"], &["write -P 2 64k 64k"]]);
    assert_eq!(all_of(&tiny.setup(), Reduction::SourceSets).classes.len(), 2);
    let three = guests(&[&["write -P 1 0 64k"], &["write -P 2 64k 64k"], &["read 0 0"]]);
    assert_eq!(all_of(&three.setup(), Reduction::SourceSets).classes.len(), 6);
}

#[test]
fn a_backup_with_a_cancel_and_a_guest_takes_few_runs() {
    let tiny = Tiny { cancel: true, ..backup(2, 2, &[&["write -P 1 64k 64k"]]) };
    let found = all_of(&tiny.setup(), Reduction::SourceSets);
    assert!(found.runs < 200, "{} runs", found.runs);
    assert!(found.states.len() > 1, "a cancel that comes early leaves something else than one that comes late");
}

/// What a search has found.
#[derive(Default)]
struct Found {
    runs: u64,
    complete: u64,
    classes: BTreeSet<u64>,
    states: BTreeSet<u64>,
}

fn all_of(setup: &Setup, reduction: Reduction) -> Found {
    const LIMIT: u64 = 20_000;
    let tree = Rc::new(RefCell::new(Tree::new(reduction)));
    let mut found = Found::default();
    loop {
        let report = run_next(setup, &tree);
        found.runs += 1;
        // A run that was given up ends where it was, which is no verdict.
        if !tree.borrow().is_blocked() {
            assert!(report.violations.is_empty(), "{:?}", report.violations);
            found.complete += 1;
            found.classes.insert(tree.borrow().class());
            found.states.insert(report.state);
        }
        assert!(found.runs < LIMIT, "not a tiny scenario");
        if !tree.borrow_mut().advance() {
            return found;
        }
    }
}

#[test]
fn each_class_is_run() {
    let most = Compat::ALL.map(each_class_is_run_as).into_iter().max();
    assert!(most >= Some(10), "at best, one run stands for {most:?} schedules");
}

/// For how many schedules a run stands at best.
fn each_class_is_run_as(compat: Compat) -> u64 {
    let mut most = 0;
    for (number, tiny) in TINY.iter().enumerate() {
        let setup = tiny.setup_as(compat);
        let name = compat.name();
        let all = all_of(&setup, Reduction::None);
        let (sleep, source) = (all_of(&setup, Reduction::SleepSets), all_of(&setup, Reduction::SourceSets));
        println!(
            "{number} as {name}: {} schedules, {} classes; {} runs with sleep sets, {} with source sets",
            all.runs,
            all.classes.len(),
            sleep.runs,
            source.runs
        );
        assert_eq!(all.runs, all.complete, "{number} as {name}: nothing is run in vain without a reduction");
        for found in [&sleep, &source] {
            assert!(found.classes == all.classes, "{number} as {name}: other classes\n{}", tiny.text());
            assert!(found.states == all.states, "{number} as {name}: other final states\n{}", tiny.text());
        }
        let classes = all.classes.len() as u64;
        assert!(source.complete - classes <= 1, "{number} as {name}: {} runs for {classes} classes", source.complete);
        most = most.max(all.runs / source.runs);
    }
    most
}

fn explored(file: &str, name: &str) -> Setup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/explore/{file}.yaml"));
    let scenario = scenario::load(&path).unwrap_or_else(|problems| panic!("{problems:?}"));
    let cases = scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}"));
    let case = cases.into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{file} has no case {name}"));
    Setup::new(case, Vec::new())
}

/// Runs events by name; the state that is left, or none if one of them was not possible.
fn replayed(setup: &Setup, names: &[u64]) -> Option<u64> {
    let script = Script::new(names.to_vec());
    let fits = script.fits();
    let report = run(setup, Box::new(script));
    fits.get().then_some(report.state)
}

#[test]
fn swapping_independent_neighbours_changes_nothing() {
    const WALKS: u64 = 3;
    const SWAPS: usize = 5;
    let places = [
        ("writers", "4 workers"),
        ("cancel", "bitmap/always"),
        ("failures", "write target fails, report"),
        ("fleecing", "explore-fleecing"),
        ("group", "explore-group"),
        ("small", "explore-small"),
    ];
    for (file, name) in places {
        let setup = explored(file, name);
        let mut swapped = 0;
        for seed in 0..WALKS {
            let mut rng = Rng::new(seed, Stream::Schedule);
            let tree = Rc::new(RefCell::new(Tree::walk(Rng::new(seed + 100, Stream::Schedule))));
            let report = run_next(&setup, &tree);
            let events = tree.borrow().events();
            let names: Vec<u64> = events.iter().map(|event| event.name).collect();
            // A script can't follow every look of the loop at its conditions; what it can't follow is not swapped.
            let Some(state) = replayed(&setup, &names) else { continue };
            assert_eq!(state, report.state, "{file}, walk {seed}: a replay differs");
            let may_swap = |at: &usize| independent(&events[*at], &events[*at + 1]);
            let mut places: Vec<usize> = (0..events.len() - 1).filter(may_swap).collect();
            while places.len() > SWAPS {
                places.remove(rng.below(places.len() as u64) as usize);
            }
            for at in places {
                let mut other = names.clone();
                other.swap(at, at + 1);
                // Where a look of the loop falls between the two, the script does not fit, and nothing was swapped.
                let Some(state) = replayed(&setup, &other) else { continue };
                assert_eq!(state, report.state, "{file}, walk {seed}: events {at} and {} do not commute", at + 1);
                swapped += 1;
            }
        }
        assert!(swapped > 0, "{file}: nothing was independent");
    }
}

fn independent(first: &Event, second: &Event) -> bool {
    let touched = |event: &Event| event.touched.clone();
    first.enabled.contains(&second.name) && !touched(first).conflict(&touched(second))
}

#[test]
fn a_search_that_is_stopped_says_what_is_left() {
    let setup = explored("small", "explore-small");
    let tally = search_exhaustively(&setup, &Plan::new(Kind::Auto, 0, 20), Reduction::SourceSets, |_| true);
    let classes = tally.classes.expect("an exhaustive search counts classes");
    assert!(!tally.complete && tally.runs == 20);
    assert!(classes.about.is_some_and(|about| about >= classes.complete as f64), "{classes:?}");
}

#[test]
fn the_search_finds_a_defect_and_says_how() {
    let mut setup = backup(2, 1, &[&["write -P 1 64k 64k"]]).setup();
    setup.defects = vec!["cbw-ignores-in-flight".to_owned()];
    let plan = Plan::new(Kind::Auto, 0, 10_000);
    let tally = search_exhaustively(&setup, &plan, Reduction::SourceSets, |_| true);
    let failure = tally.failure.expect("a guest overtakes the copy that is under way");
    let (report, ..) = backsim::explore::search::replay(&setup, &failure.departures);
    assert!(report.violations.iter().any(|violation| violation.is_like(&failure.violation)), "{:?}", report.violations);
}

#[test]
fn auto_ends_when_no_class_is_left() {
    let setup = backup(2, 1, &[&["write -P 1 64k 64k"]]).setup();
    let tally = search_auto(&setup, &Plan::new(Kind::Auto, 0, 400), |_| true);
    let classes = tally.classes.expect("auto counts classes");
    assert!(tally.complete && classes.about.is_none(), "{classes:?}");
    assert!((200..300).contains(&tally.runs), "half of the budget is for seeded runs: {} runs", tally.runs);
    let large = explored("small", "explore-small");
    let tally = search_auto(&large, &Plan::new(Kind::Auto, 0, 200), |_| true);
    assert_eq!(tally.runs, 200);
    assert!(tally.classes.is_some_and(|classes| classes.about.is_some()), "far from its end");
}
