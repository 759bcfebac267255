//! Making a failing run small: fewer departures from QEMU's own order, fewer parts of the scenario, smaller disks.
//!
//! Only runs that break the same invariant in the same way about the same subject are kept, and nothing in a way that the
//! found run does not: a scenario without its images fails too, but for reasons of its own. What the scenario expects is the
//! easiest to break by a cut: there the same must be said instead, and what QEMU's own order fulfils it goes on to fulfil.
//! What is cut out of the
//! scenario is cut out of its text, so that what is left is a scenario that a person can read and run. A cut may move
//! the place of the failure: where the old schedule no longer breaks anything, a few runs near QEMU's order are tried.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::scenario;
use crate::scenario::ast::{Step, Verb};
use crate::scenario::parts::{groups, without};
use crate::sim::Strategy;
use crate::sim::rng::{Rng, Stream};
use crate::units::parse_size;

use super::known::is_known;
use super::model::{Breach, Invariant, Violation};
use super::run::{Setup, run};
use super::schedule::Departure;
use super::search::{Failure, learn, replay, transcribe};
use super::strategy::SampledDelays;

/// Runs that are tried after a cut which the old schedule does not survive.
const RETRIES: u64 = 8;

/// How large a failing run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Departures from QEMU's own order.
    pub departures: usize,
    /// Steps of the scenario, each command of a guest counted.
    pub steps: usize,
    /// Bytes of the largest disk.
    pub disk: u64,
}

/// A small failing run, and how it came to be.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is run.
    pub setup: Setup,
    /// The text of the scenario, with what the failure does not need taken out.
    pub scenario: String,
    /// The schedule.
    pub departures: Vec<Departure>,
    /// What it breaks.
    pub violation: Violation,
    /// Before.
    pub before: Size,
    /// Runs that it took.
    pub runs: u64,
    /// Whether nothing more could be taken out; else the runs were spent.
    pub ended: bool,
}

impl Shrunk {
    /// How large it is now.
    pub fn size(&self) -> Size {
        Size { departures: self.departures.len(), ..size_of(&self.setup) }
    }
}

fn size_of(setup: &Setup) -> Size {
    let images = setup.case.steps.iter().filter_map(|step| match &*step.verb {
        Verb::Image(image) => image.size.map(|size| size.0),
        _ => None,
    });
    Size { departures: 0, steps: count(&setup.case.steps), disk: images.max().unwrap_or(0) }
}

fn count(steps: &[Step]) -> usize {
    let parts = |step: &Step| match &*step.verb {
        Verb::Concurrently(all) => all.actors.iter().map(|(_, steps)| count(&steps.0)).sum(),
        Verb::QemuIo(io) => io.commands.as_ref().map_or(1, Vec::len).max(1),
        _ => 1,
    };
    steps.iter().map(parts).sum()
}

/// Makes a failure small within so many runs; `text` is the scenario's, `name` what messages call it, `known` what the
/// search has passed over.
pub fn shrink(
    (name, text): (&str, &str),
    setup: &Setup,
    failure: &Failure,
    known: &[(String, String)],
    budget: u64,
) -> Shrunk {
    let best = Shrunk {
        setup: setup.clone(),
        scenario: text.to_owned(),
        departures: failure.departures.clone(),
        violation: failure.violation.clone(),
        before: Size { departures: failure.departures.len(), ..size_of(setup) },
        runs: 0,
        ended: false,
    };
    let own = replay(setup, &failure.departures).0.violations;
    let breaches = own.iter().chain([&failure.violation]).map(|violation| violation.breach).collect();
    let mut shrinker = Shrinker { name, best, budget, breaches, known, is_only_case: false, order_decides: false };
    shrinker.order_decides =
        failure.violation.invariant() == Invariant::Expectation && shrinker.meets_expectations(setup);
    shrinker.is_only_case = shrinker.parse(text).is_some_and(|(_, is_only_case)| is_only_case);
    let measure = |best: &Shrunk| (best.scenario.len(), best.departures.len());
    while shrinker.best.runs < budget {
        let before = measure(&shrinker.best);
        shrinker.fewer_departures();
        shrinker.less_text();
        shrinker.smaller_disks();
        shrinker.fewer_departures();
        if measure(&shrinker.best) == before {
            shrinker.best.ended = shrinker.best.runs < budget;
            break;
        }
    }
    shrinker.best
}

/// Tries candidates and remembers the best.
struct Shrinker<'a> {
    name: &'a str,
    best: Shrunk,
    budget: u64,
    /// In which ways the run that was found breaks anything.
    breaches: BTreeSet<Breach>,
    known: &'a [(String, String)],
    /// The best text has no case but the one that is shrunk, which may be called otherwise then.
    is_only_case: bool,
    /// It is what the scenario expects that is broken, and QEMU's own order does not break it.
    order_decides: bool,
}

impl Shrinker<'_> {
    fn spent(&self) -> bool {
        self.best.runs >= self.budget
    }

    /// The violation that is shrunk, if a run shows it and nothing of another kind.
    fn same(&self, violations: Vec<Violation>) -> Option<Violation> {
        let is_own = violations.iter().all(|violation| self.breaches.contains(&violation.breach));
        let is_same = |found: &Violation| found.is_like(&self.best.violation) && !is_known(self.known, found);
        violations.into_iter().find(|violation| is_own && is_same(violation))
    }

    /// Whether QEMU's own order breaks nothing that the scenario expects.
    fn meets_expectations(&mut self, setup: &Setup) -> bool {
        self.best.runs += 1;
        let (_, own_order) = learn(setup);
        own_order.violations.iter().all(|violation| violation.invariant() != Invariant::Expectation)
    }

    /// Runs a schedule; if it shows the same violation, it is the best from now on.
    fn keeps(&mut self, setup: &Setup, departures: &[Departure]) -> bool {
        if self.spent() {
            return false;
        }
        self.best.runs += 1;
        let (report, record, _) = replay(setup, departures);
        let Some(violation) = self.same(report.violations) else { return false };
        if self.order_decides && !self.meets_expectations(setup) {
            return false;
        }
        // What did not fit is gone; what is left is what the run really did.
        (self.best.setup, self.best.violation, self.best.departures) = (setup.clone(), violation, record.departures);
        true
    }

    /// Takes departures out: halves, quarters, … then one by one (ddmin, Zeller and Hildebrandt 2002).
    fn fewer_departures(&mut self) {
        let mut piece = self.best.departures.len();
        while piece > 0 && !self.spent() {
            let mut at = 0;
            let mut shrank = false;
            while at < self.best.departures.len() && !self.spent() {
                let mut fewer = self.best.departures.clone();
                fewer.drain(at..(at + piece).min(fewer.len()));
                let (setup, before) = (self.best.setup.clone(), self.best.clone());
                if self.keeps(&setup, &fewer) && self.best.departures.len() < before.departures.len() {
                    shrank = true;
                } else {
                    let runs = self.best.runs;
                    self.best = Shrunk { runs, ..before };
                    at += piece;
                }
            }
            piece = if shrank { piece.min(self.best.departures.len()) } else { piece / 2 };
        }
    }

    /// Takes parts out of the scenario's text: in each group half of it at a time, at last one by one, the last
    /// first, since later steps hang on earlier ones.
    fn less_text(&mut self) {
        let text = self.best.scenario.clone();
        let mut removed: Vec<Range<usize>> = Vec::new();
        for group in groups(&text) {
            let mut left: Vec<Range<usize>> = group.parts;
            left.retain(|part| may_go(&text[part.clone()]));
            let mut size = left.len().div_ceil(2);
            while size > 0 && !self.spent() {
                let mut end = left.len();
                while end > 0 {
                    let start = end.saturating_sub(size);
                    let mut candidate = removed.clone();
                    candidate.extend_from_slice(&left[start..end]);
                    if self.keeps_text(without(&text, &candidate)) {
                        removed = candidate;
                        left.drain(start..end);
                    }
                    end = start;
                }
                size /= 2;
            }
        }
        let quiet = without_lines(&self.best.scenario, "log: none");
        self.keeps_text(quiet);
    }

    /// Makes all disks of one size smaller at once.
    fn smaller_disks(&mut self) {
        for (text, bytes) in sizes(&self.best.scenario) {
            let smaller = (0..).map(|power| 65536_u64 << power).take_while(|smaller| *smaller < bytes);
            for smaller in smaller {
                let with_smaller = with_size(&self.best.scenario, &text, smaller);
                if self.spent() || self.keeps_text(with_smaller) {
                    break;
                }
            }
        }
    }

    /// Runs a smaller text with the schedule as it is, then with a few others.
    fn keeps_text(&mut self, text: String) -> bool {
        if text.len() >= self.best.scenario.len() && sizes(&text) == sizes(&self.best.scenario) {
            return false;
        }
        if lacks_image(&self.best.scenario, &text) {
            return false;
        }
        let Some((setup, is_only_case)) = self.parse(&text) else { return false };
        let fewer_steps = count(&setup.case.steps) < count(&self.best.setup.case.steps);
        let departures = self.best.departures.clone();
        if self.keeps(&setup, &departures) || fewer_steps && self.is_near(&setup) {
            (self.best.scenario, self.is_only_case) = (text, is_only_case);
            return true;
        }
        false
    }

    /// Looks for the same violation in runs with few departures.
    fn is_near(&mut self, setup: &Setup) -> bool {
        let most = self.best.departures.len().clamp(1, 3) as u32;
        let (learned, _) = learn(setup);
        self.best.runs += 1;
        let strategy = |index: u64| -> Box<dyn Strategy> {
            Box::new(SampledDelays::new(Rng::new(index, Stream::Schedule), most, learned.points))
        };
        for index in 0..RETRIES {
            if self.spent() {
                return false;
            }
            self.best.runs += 1;
            if self.same(run(setup, strategy(index)).violations).is_some() {
                let (_, record) = transcribe(setup, strategy(index));
                // A shorter scenario is not worth a longer schedule.
                let fits = record.departures.len() <= self.best.departures.len();
                if fits && self.keeps(setup, &record.departures) {
                    return true;
                }
            }
        }
        false
    }

    /// What is run of a text, if it is a scenario with the case, and whether it has no other.
    fn parse(&self, text: &str) -> Option<(Setup, bool)> {
        let old = &self.best.setup;
        let cases = scenario::parse(self.name, text).ok()?.cases().ok()?;
        let is_only_case = cases.len() == 1;
        let place = cases.iter().position(|case| case.name == old.case.name);
        let place = place.or((is_only_case && self.is_only_case).then_some(0))?;
        let case = cases.into_iter().nth(place).filter(|case| !case.steps.is_empty())?;
        Some((Setup { case, ..old.clone() }, is_only_case))
    }
}

/// What belongs to the scenario whatever the failure needs: whose behaviour it has, and what its nodes are called, by
/// which a schedule is read, and forced on a real QEMU.
fn may_go(part: &str) -> bool {
    let kept = ["compat:", "name:", "node-name:", "steps:", "log:"];
    !kept.iter().any(|key| part.trim_start().starts_with(key))
}

/// Whether a smaller text no longer makes an image that it uses, so that files of any content would take its place.
fn lacks_image(text: &str, smaller: &str) -> bool {
    let names = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.trim_start().strip_prefix("- image: ")).map(str::to_owned).collect()
    };
    let left = names(smaller);
    names(text).iter().any(|name| !left.contains(name) && smaller.contains(&format!("PID-{name}")))
}

fn without_lines(text: &str, line: &str) -> String {
    text.lines().filter(|own| own.trim() != line).map(|own| format!("{own}\n")).collect()
}

/// Where sizes are written, and which.
fn size_places(text: &str) -> Vec<(Range<usize>, u64)> {
    let found = text.match_indices("size: ").filter_map(|(at, key)| {
        let is_key = !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '-');
        let start = at + key.len();
        let length = text[start..].find([',', '}', '\n', ' ']).unwrap_or(text.len() - start);
        let bytes = parse_size(&text[start..start + length]).ok()?;
        is_key.then_some((start..start + length, bytes))
    });
    found.collect()
}

/// The distinct sizes in a text, as written and in bytes, the largest first.
fn sizes(text: &str) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> =
        size_places(text).into_iter().map(|(place, bytes)| (text[place].to_owned(), bytes)).collect();
    found.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    found.dedup();
    found
}

/// The text with another size wherever `old` is written.
fn with_size(text: &str, old: &str, bytes: u64) -> String {
    let mut out = text.to_owned();
    let places: Vec<Range<usize>> = size_places(text).into_iter().map(|(place, _)| place).collect();
    for place in places.into_iter().rev().filter(|place| &text[place.clone()] == old) {
        out.replace_range(place, &super::schedule::short(bytes));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::search::{Plan, search};
    use super::super::strategy::Kind;
    use super::*;

    const TWO_CASES: &str = "name: two\ncompat: qemu-7.2\ncase-name: \"{{ size }}\"\n\
                             cases:\n  - {size: 64k}\n  - {size: 128k}\n\
                             steps:\n  - image: disk\n    format: raw\n    size: \"{{ size }}\"\n";

    fn violation(breach: Breach, subject: &str) -> Violation {
        Violation::new(breach, subject, format!("{subject} is wrong"))
    }

    /// One that shrinks a lost bit of `a` in a run that breaks the disk, too.
    fn shrinker(known: &[(String, String)]) -> Shrinker<'_> {
        let cases = scenario::parse("two", TWO_CASES).expect("a scenario").cases().expect("cases");
        let best = Shrunk {
            setup: Setup::new(cases[1].clone(), Vec::new()),
            scenario: TWO_CASES.to_owned(),
            departures: Vec::new(),
            violation: violation(Breach::BitLost, "a"),
            before: Size { departures: 0, steps: 0, disk: 0 },
            runs: 0,
            ended: false,
        };
        let breaches = BTreeSet::from([Breach::BitLost, Breach::DataDiffers]);
        Shrinker { name: "two", best, budget: 0, breaches, known, is_only_case: false, order_decides: false }
    }

    #[test]
    fn only_the_same_violation_is_shrunk() {
        let own = violation(Breach::BitLost, "a");
        let keeps = |found: &[&Violation], known: &[(String, String)]| {
            shrinker(known).same(found.iter().map(|&violation| violation.clone()).collect()).is_some()
        };
        let disk = violation(Breach::DataDiffers, "disk");
        assert!(keeps(&[&own], &[]) && keeps(&[&disk, &own], &[]));
        assert!(!keeps(&[&disk], &[]), "another invariant");
        assert!(!keeps(&[&violation(Breach::BitLost, "b")], &[]), "another bitmap");
        assert!(!keeps(&[&violation(Breach::BitLostByJob, "a")], &[]), "the same invariant, in another way");
        assert!(!keeps(&[&own, &violation(Breach::Corrupt, "disk")], &[]), "something else has gone wrong before");
        assert!(!keeps(&[&own], &[("no-lost-write".to_owned(), "a is".to_owned())]), "it is known");
    }

    /// A bitmap is looked at and removed: who takes `add` out makes it fail always, and with the same words.
    const LOOK: &str = "name: look\nsteps:\n  - image: disk\n    format: raw\n    size: 256k\n  - vm: launch\n  \
        - execute: blockdev-add\n    arguments: {driver: file, node-name: disk, filename: TEST_DIR/PID-disk}\n  \
        - execute: block-dirty-bitmap-add\n    arguments: {node: disk, name: b}\n  \
        - concurrently:\n      looks:\n        - expect-bitmap: disk\n          name: b\n          clusters: 0\n      \
        removes:\n        - execute: block-dirty-bitmap-remove\n          arguments: {node: disk, name: b}\n      \
        guest:\n        - qemu-io: disk\n          commands: [read 64k 64k]\n";

    #[test]
    fn what_the_order_decides_is_not_shrunk_to_what_fails_always() {
        let cases = scenario::parse("look", LOOK).expect("a scenario").cases().expect("cases");
        let setup = Setup::new(cases[0].clone(), Vec::new());
        let failure = search(&setup, &Plan::new(Kind::Random, 0, 100), |_| true).failure.expect("it is removed first");
        assert_eq!(failure.violation.breach, Breach::Unexpected);
        let shrunk = shrink(("look", LOOK), &setup, &failure, &[], 1000);
        assert_eq!(shrunk.violation.subject, failure.violation.subject);
        assert!(shrunk.size().steps < shrunk.before.steps, "{}", shrunk.scenario);
        assert!(learn(&shrunk.setup).1.violations.is_empty(), "{}", shrunk.scenario);
        assert!(!shrunk.departures.is_empty());
    }

    #[test]
    fn an_image_stays_as_long_as_it_is_used() {
        let text = "steps:\n  - image: disk\n  - image: target\n  - vm: launch\n  - x: {filename: TEST_DIR/PID-disk}\n";
        assert!(lacks_image(text, &text.replace("  - image: disk\n", "")));
        assert!(!lacks_image(text, &text.replace("  - image: target\n", "")));
    }

    #[test]
    fn a_case_is_not_shrunk_to_another_one() {
        let mut shrinker = shrinker(&[]);
        let without = |part: &str| TWO_CASES.replace(part, "");
        let parsed = shrinker.parse(&without("  - {size: 64k}\n")).expect("its own case is left");
        assert!(parsed.1 && parsed.0.case.name == "128k");
        assert!(shrinker.parse(&without("  - {size: 128k}\n")).is_none());
        // Once it is alone it may lose its name.
        shrinker.is_only_case = true;
        let unnamed = without("  - {size: 64k}\n").replace("case-name: \"{{ size }}\"\n", "");
        assert!(shrinker.parse(&unnamed).is_some());
    }

    #[test]
    fn sizes_are_found_where_they_are_keys() {
        let text = "vars:\n  size: 262144\nsteps:\n  - image: a\n    size: 1M\n  - x: {cluster-size: 64k, size: 1M}\n";
        assert_eq!(sizes(text), [("1M".to_owned(), 1 << 20), ("262144".to_owned(), 262_144)]);
        let smaller = with_size(text, "1M", 65536);
        assert_eq!(smaller.matches("size: 64k").count(), 3);
        assert!(smaller.contains("size: 262144"));
    }
}
