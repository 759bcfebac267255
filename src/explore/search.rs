//! A search: runs of one case under a strategy, until the budget is spent or enough was found.
//!
//! Runs are numbered; run 0 is QEMU's own order and teaches the others what they need to know. The verdict on a
//! run depends on its number, the seed and the scenario alone, never on the runs around it.

use std::collections::BTreeSet;

use crate::sim::{ChoicePoint, Strategy};

use super::model::Violation;
use super::run::{RunReport, Setup, run, run_in_detail};
use super::schedule::{Departure, Fit, Record, Replay, Scribe};
use super::strategy::{Corpus, DelayBounded, Departures, Kind, Learned, Sparse};

/// What to search, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The strategy of the seeded runs.
    pub kind: Kind,
    /// Seeds them.
    pub seed: u64,
    /// Numbers of the runs: this one first …
    pub first: u64,
    /// … then every so-manieth …
    pub stride: u64,
    /// … up to this one, which is not run.
    pub end: u64,
    /// Violations that are known and passed over: invariant's name and part of the text.
    pub known: Vec<(String, String)>,
}

impl Plan {
    /// All runs from 0 to `schedules`.
    pub fn new(kind: Kind, seed: u64, schedules: u64) -> Plan {
        Plan { kind, seed, first: 0, stride: 1, end: schedules, known: Vec::new() }
    }

    /// Whether somebody has said that this is known.
    pub fn is_known(&self, violation: &Violation) -> bool {
        let name = violation.invariant.name();
        self.known.iter().any(|(invariant, part)| invariant == name && violation.text.contains(part.as_str()))
    }
}

/// A run that broke something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its number.
    pub index: u64,
    /// What it broke first.
    pub violation: Violation,
    /// Its schedule.
    pub departures: Vec<Departure>,
}

/// What a search has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs made.
    pub runs: u64,
    /// Events of the loop in all runs.
    pub steps: u64,
    /// Distinct abstract states.
    pub coverage: BTreeSet<u64>,
    /// Distinct final states.
    pub states: BTreeSet<u64>,
    /// Runs that only broke what is known.
    pub known: u64,
    /// The first run that broke something else.
    pub failure: Option<Failure>,
    /// Whether every schedule that the strategy has was run.
    pub complete: bool,
}

impl Tally {
    /// Takes a run in; true if it broke something that is not known.
    pub(super) fn take(&mut self, plan: &Plan, report: &RunReport) -> bool {
        self.runs += 1;
        self.steps += report.steps;
        self.coverage.extend(&report.coverage);
        self.states.insert(report.state);
        let new = report.violations.iter().any(|violation| !plan.is_known(violation));
        self.known += u64::from(!new && !report.violations.is_empty());
        new
    }

    /// Adds what another part of the same search has seen.
    pub fn merge(&mut self, other: Tally) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.coverage.extend(other.coverage);
        self.states.extend(other.states);
        self.known += other.known;
        self.complete &= other.complete;
        let earlier = match (&self.failure, &other.failure) {
            (Some(own), Some(theirs)) => theirs.index < own.index,
            (None, Some(_)) => true,
            _ => false,
        };
        if earlier {
            self.failure = other.failure;
        }
    }
}

/// QEMU's own order, counting as it goes.
struct Student {
    learned: std::rc::Rc<std::cell::RefCell<Learned>>,
}

impl Student {
    fn count(&self, point: &ChoicePoint<'_>) {
        let (actor, footprint) = (point.actor(0), &point.alternatives[0].footprint);
        let mut learned = self.learned.borrow_mut();
        if footprint.bytes > 0 {
            learned.ranges.push((actor.clone(), footprint.offset, footprint.bytes));
        }
        let actor = &*actor;
        match learned.steps.iter_mut().find(|(name, _)| name == actor) {
            Some((_, count)) => *count += 1,
            None => learned.steps.push((actor.to_owned(), 1)),
        }
    }
}

impl Strategy for Student {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        self.learned.borrow_mut().points += 1;
        self.count(point);
        0
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.count(point);
    }
}

/// Makes the run in QEMU's own order.
pub fn learn(setup: &Setup) -> (Learned, RunReport) {
    let learned: std::rc::Rc<std::cell::RefCell<Learned>> = std::rc::Rc::default();
    let report = run(setup, Box::new(Student { learned: learned.clone() }));
    (learned.take(), report)
}

/// Runs the plan's share of a seeded search; `go_on` is asked between runs.
pub fn search(setup: &Setup, plan: &Plan, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let mut tally = Tally { complete: true, ..Tally::default() };
    let (learned, own_order) = learn(setup);
    let mut index = plan.first;
    while index < plan.end {
        if !go_on(&tally) {
            tally.complete = false;
            break;
        }
        let seeded = |index: u64| plan.kind.strategy(plan.seed, index, &learned);
        let failed = if index == 0 {
            tally.take(plan, &own_order)
        } else {
            let report = run(setup, seeded(index));
            tally.take(plan, &report)
        };
        if failed {
            let again: Box<dyn Strategy> = if index == 0 { Box::new(Sparse::new(Vec::new())) } else { seeded(index) };
            tally.failure = describe(setup, plan, index, again);
            tally.complete = false;
            break;
        }
        index += plan.stride;
    }
    tally
}

/// Runs every schedule with at most `bound` departures, at most `limit` of them.
pub fn search_bounded(setup: &Setup, plan: &Plan, bound: usize, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let mut tally = Tally { complete: true, ..Tally::default() };
    let mut schedules = DelayBounded::new(bound);
    while let Some(departures) = schedules.next_schedule() {
        if tally.runs >= plan.end || !go_on(&tally) {
            tally.complete = false;
            break;
        }
        let report = run(setup, Box::new(Sparse::new(departures.clone())));
        if tally.take(plan, &report) {
            let again = Box::new(Sparse::new(departures));
            tally.failure = describe(setup, plan, tally.runs - 1, again);
            tally.complete = false;
            break;
        }
        let widths = report.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.n);
        schedules.has_run(widths.collect());
    }
    tally
}

/// Varies the runs that reached a new abstract state. Each run depends on those before it, so a search is not shared
/// out; a shard is another search.
pub fn search_covering(setup: &Setup, plan: &Plan, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let mut tally = Tally::default();
    let (learned, own_order) = learn(setup);
    let mut corpus = Corpus::new(plan.seed ^ plan.first << 32, learned.points);
    let mut report = own_order;
    let mut tried = Departures::new();
    loop {
        if tally.take(plan, &report) {
            tally.failure = describe(setup, plan, tally.runs - 1, Box::new(Sparse::new(tried)));
            break;
        }
        let steps = report.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.taken);
        let taken = (0..).zip(steps).filter(|(_, taken)| *taken > 0);
        corpus.has_run(taken.collect(), &report.coverage);
        if tally.runs >= plan.end || !go_on(&tally) {
            break;
        }
        tried = corpus.next_schedule();
        report = run(setup, Box::new(Sparse::new(tried.clone())));
    }
    tally
}

/// Repeats a run and writes its schedule down.
pub(super) fn describe(setup: &Setup, plan: &Plan, index: u64, strategy: Box<dyn Strategy>) -> Option<Failure> {
    let (report, record) = transcribe(setup, strategy);
    let violation = report.violations.into_iter().find(|violation| !plan.is_known(violation))?;
    Some(Failure { index, violation, departures: record.departures })
}

/// Runs once and writes everything down by name.
pub fn transcribe(setup: &Setup, strategy: Box<dyn Strategy>) -> (RunReport, Record) {
    let (scribe, record) = Scribe::new(strategy);
    let report = run_in_detail(setup, Box::new(scribe), None);
    (report, record.take())
}

/// Runs a schedule again; tells too which departures did not fit.
pub fn replay(setup: &Setup, departures: &[Departure]) -> (RunReport, Record, Fit) {
    let (replay, left) = Replay::new(departures);
    let (report, record) = transcribe(setup, Box::new(replay));
    (report, record, left.take())
}
