//! Exploration: every named defect is found, the sound model survives the same search, schedules replay.

use std::collections::BTreeSet;
use std::path::Path;

use backsim::explore::search::{Seeded, Tally, search};
use backsim::explore::{Invariant, Kind, Plan, Setup};
use backsim::quirks::{Compat, DEFECTS};
use backsim::scenario::{self, Case};

#[path = "common/places.rs"]
mod places;

use places::PLACES;

/// Enough for every defect at the seeds used here, and the issue's own limit.
const SCHEDULES: u64 = 1000;

fn case(file: &str, name: &str) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/explore/{file}.yaml"));
    let scenario = scenario::load(&path).unwrap_or_else(|problems| panic!("{problems:?}"));
    let cases = scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}"));
    cases.into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{file} has no case {name}"))
}

fn explore(file: &str, name: &str, defects: Vec<String>, kind: Kind, schedules: u64) -> Tally {
    let setup = Setup::new(case(file, name), defects);
    search(&setup, &Plan::new(kind, 0, schedules), |_| true)
}

#[test]
fn every_defect_has_a_place_where_it_shows() {
    let named: Vec<&str> = PLACES.iter().map(|place| place.0).collect();
    let listed: Vec<&str> = DEFECTS.iter().map(|defect| defect.name).collect();
    assert_eq!(named, listed);
}

#[test]
fn auto_finds_every_defect() {
    let mut missed = Vec::new();
    for (defect, file, name) in PLACES {
        let tally = explore(file, name, vec![(*defect).to_owned()], Kind::Auto, SCHEDULES);
        match tally.failure {
            Some(failure) => println!("{defect}: run {}: {}", failure.index, failure.violation),
            None => missed.push(format!("{defect} in {} runs of {file} ({name})", tally.runs)),
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}

#[test]
fn the_sound_model_survives_the_same_searches() {
    // Some ten times as long as the search for any of the defects takes at this seed.
    let places: BTreeSet<(&str, &str)> = PLACES.iter().map(|(_, file, name)| (*file, *name)).collect();
    for (file, name) in places {
        let tally = explore(file, name, Vec::new(), Kind::Auto, 150);
        if let Some(failure) = tally.failure {
            let steps: Vec<String> = failure.departures.iter().map(ToString::to_string).collect();
            panic!("{file} ({name}), run {}: {}\n{}", failure.index, failure.violation, steps.join("\n"));
        }
    }
}

#[test]
fn runs_side_by_side_are_the_same_as_one_by_one() {
    for (file, name) in [
        ("small", "explore-small"),
        ("sixty-four", "explore-sixty-four"),
        ("persistent", "new and old bitmaps, clusters of 4096"),
    ] {
        let setup = Setup::new(case(file, name), Vec::new());
        let plan = Plan::new(Kind::Random, 5, 30);
        let seeded = Seeded::new(&setup, &plan);
        let together = seeded.stretch(0..30, |_| true);
        let mut alone = Tally::default();
        for index in 0..30 {
            let one = seeded.stretch(index..index + 1, |_| true);
            assert_eq!((one.runs, one.next, one.complete), (1, index + 1, true), "{file}");
            alone.append(one);
        }
        assert_eq!((together.runs, together.next), (30, 30), "{file}");
        assert_eq!((together.states, together.coverage), (alone.states, alone.coverage), "{file}");
        // Whoever says stop is heard before the next run, not after the next eight.
        let mut left = 11;
        let stopped = seeded.stretch(0..30, |_| {
            left -= 1;
            left > 0
        });
        assert_eq!((stopped.runs, stopped.next, stopped.complete), (10, 10, false), "{file}");
    }
}

/// Ranges that begin and end within clusters; 7.2 aborts there, so that no scenario may have them.
#[test]
fn parts_of_clusters_of_a_snapshot_are_kept_as_10_0() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/explore/boundaries.yaml");
    let text = std::fs::read_to_string(path).expect("the scenario");
    let odd = text.replace("discard 65536 131072", "discard 65535 131074");
    let odd = odd.replace("discard 131072 65536", "discard 131073 65535");
    assert_ne!(odd, text);
    for case in scenario::parse("odd.yaml", &odd).and_then(|scenario| scenario.cases()).expect("no mistakes") {
        let setup = Setup { compat: Some(Compat::Qemu100), ..Setup::new(case, Vec::new()) };
        let tally = search(&setup, &Plan::new(Kind::Auto, 11, 300), |_| true);
        assert!(tally.failure.is_none(), "{:?}", tally.failure);
    }
}

/// A zero write to the target of a fleecing backup waits for who reads there, as a write of data does: the model once
/// had that wrong.
#[test]
fn readers_of_an_empty_disk_get_no_new_data() {
    let tally = explore("fleecing-sparse", "explore-fleecing-sparse", Vec::new(), Kind::Auto, 300);
    assert!(tally.failure.is_none(), "{:?}", tally.failure);
}

/// While one job's filter leaves, the job of the filter below may end, and QEMU aborts (a finding); the model once died there.
#[test]
fn two_backups_of_a_disk_end_at_any_time_as_10_0() {
    let case = case("two-backups", "by bitmap, both end");
    let setup = Setup { compat: Some(Compat::Qemu100), ..Setup::new(case, Vec::new()) };
    let known = vec![("aborted".to_owned(), "filter has gone".to_owned())];
    let plan = Plan { known, ..Plan::new(Kind::Auto, 40_000_000, 150) };
    let tally = search(&setup, &plan, |_| true);
    assert!(tally.failure.is_none(), "{:?}", tally.failure);
}

/// A second failure in the wake of the first is nobody's: the model once lost a cluster by it.
#[test]
fn two_failures_below_a_disk_lose_no_cluster() {
    let tally = explore("metadata-failures", "write below disk, 2", Vec::new(), Kind::Auto, 150);
    assert!(tally.failure.is_none(), "{:?}", tally.failure);
}

/// QEMU's own defects that runs of `scenarios/findings/` show, and the signature that passes over each.
const FINDINGS: &[(&str, Invariant, &str)] = &[
    ("qcow2-discard-under-write", Invariant::Guest, "holds"),
    ("snapshot-shows-new-data", Invariant::Fleecing, "by a read that ends behind what was kept"),
    ("broken-snapshot-shows-new-data", Invariant::Fleecing, "written while it read"),
    ("compressed-cluster-given-up", Invariant::Guest, "failed with errno 5, which no device gave"),
    ("failed-backup-forgets-copy", Invariant::ModePromise, "under way when the job gave the bitmap back, and failed"),
    ("unnoticed-failure", Invariant::Image, "and a write had failed unnoticed"),
    ("zeros-undone-by-write", Invariant::Guest, "zeroed while a piece of that was written"),
    ("failed-transaction-switches-off", Invariant::ModePromise, "records or not, other than before"),
    ("failed-snapshot-ruins-backup", Invariant::PointInTime, "of target target holds 0x00 instead of 0x01"),
    ("failed-snapshot-loses-writes", Invariant::Guest, "when a snapshot was being taken back"),
    ("two-backups-end-together", Invariant::Progress, "filter has gone while it was drained"),
    ("command-at-a-leaving-filter", Invariant::Progress, "the filter that a command names has gone"),
    ("two-backups-end-under-a-write", Invariant::Progress, "filter has gone while it was drained"),
];

#[test]
fn findings_are_found_and_passed_over_once_known() {
    for (file, invariant, part) in FINDINGS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/findings/{file}.yaml"));
        let scenario = scenario::load(&path).unwrap_or_else(|problems| panic!("{problems:?}"));
        let cases = scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}"));
        let setup = Setup::new(cases[0].clone(), Vec::new());
        let mut plan = Plan::new(Kind::Auto, 0, 300);
        let found = search(&setup, &plan, |_| true).failure.unwrap_or_else(|| panic!("{file}: nothing found"));
        assert_eq!(found.violation.invariant(), *invariant, "{file}: {}", found.violation);
        plan.known = vec![(invariant.name().to_owned(), (*part).to_owned()), ("expectation".to_owned(), String::new())];
        let passed = search(&setup, &plan, |_| true);
        assert!(passed.failure.is_none() && !passed.known.is_empty(), "{file}: {:?}", passed.failure);
    }
}

/// A search of somebody's own scenario must not cry wolf: what was written for other purposes breaks no promise either,
/// but for what a scenario itself expects of its own order.
#[test]
fn scenarios_for_other_purposes_break_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut broken = Vec::new();
    let mut searched = 0;
    for directory in ["", "graph", "iotests", "rules"] {
        let entries = std::fs::read_dir(root.join(directory)).expect("the directory is there");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        for path in files {
            let scenario = scenario::load(&path).unwrap_or_else(|problems| panic!("{problems:?}"));
            for case in scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}")) {
                let name = format!("{}: {}", path.display(), case.name);
                // What QEMU itself does wrong there is a finding.
                let known = vec![("bitmap-changed".to_owned(), "records or not".to_owned())];
                let plan = Plan { known, ..Plan::new(Kind::Random, 3, 2) };
                let tally = search(&Setup::new(case, Vec::new()), &plan, |_| true);
                searched += 1;
                let failure = tally.failure.filter(|failure| failure.violation.invariant() != Invariant::Expectation);
                broken.extend(failure.map(|failure| format!("{name}: {}", failure.violation)));
            }
        }
    }
    assert!(searched > 250, "{searched} cases");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
