//! What a search has seen, in a form that does not depend on who has seen it.
//!
//! Everything that is counted is kept with the number of the run that showed it first. So the tallies of threads
//! and of machines add up to exactly what one thread would have counted, also where the search ends at a failure:
//! what runs behind it have shown is forgotten.

use std::collections::BTreeMap;

use super::exhaustive::Classes;
use super::model::Violation;
use super::run::RunReport;
use super::schedule::Departure;
use super::search::Plan;

/// A run that broke something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its number.
    pub index: u64,
    /// What it broke first.
    pub violation: Violation,
    /// Its schedule.
    pub departures: Vec<Departure>,
}

/// Distinct things, each with the number of the run that showed it first.
pub type Seen = BTreeMap<u64, u64>;

/// What a search has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs that were judged.
    pub runs: u64,
    /// How many of them this process did not have to make. That depends on the number of threads, so no result keeps it.
    pub remembered: u64,
    /// All runs of the search that have a lower number than this are made.
    pub next: u64,
    /// Distinct abstract states.
    pub coverage: Seen,
    /// Distinct final states.
    pub states: Seen,
    /// Distinct pairs of a job's state and a device operation that ended in it; see [`Cells`].
    pub cells: Seen,
    /// Runs that only broke what is known, by number.
    pub known: Vec<u64>,
    /// The first run that broke something else.
    pub failure: Option<Failure>,
    /// Whether every schedule that the strategy has was run.
    pub complete: bool,
    /// What an exhaustive search has come to.
    pub classes: Option<Classes>,
}

impl Tally {
    /// Whether nothing has ended the search so far.
    pub fn is_going_on(&self) -> bool {
        self.failure.is_none() && self.complete
    }

    /// Takes the run with the next number in; true if it broke something that is not known.
    pub fn take(&mut self, plan: &Plan, report: &RunReport) -> bool {
        self.take_run(plan, self.next, report)
    }

    /// Takes run `index` in, the highest so far; true if it broke something that is not known.
    pub fn take_run(&mut self, plan: &Plan, index: u64, report: &RunReport) -> bool {
        self.take_seen(index, report.seen.coverage(), report.seen.cells());
        self.take_verdict(plan, index, report.state, &report.violations)
    }

    /// Takes in what was seen in run `index`, the highest so far.
    pub fn take_seen(&mut self, index: u64, coverage: impl Iterator<Item = u64>, cells: impl Iterator<Item = u64>) {
        for state in coverage {
            self.coverage.entry(state).or_insert(index);
        }
        for cell in cells {
            self.cells.entry(cell).or_insert(index);
        }
    }

    /// Takes in how run `index` ended, the highest so far; true if it broke something that is not known.
    pub fn take_verdict(&mut self, plan: &Plan, index: u64, state: u64, violations: &[Violation]) -> bool {
        self.runs += 1;
        self.next = index + 1;
        self.states.entry(state).or_insert(index);
        let new = violations.iter().any(|violation| !plan.is_known(violation));
        if !new && !violations.is_empty() {
            self.known.push(index);
        }
        new
    }

    /// Adds a later stretch of the same search.
    pub fn append(&mut self, later: Tally) {
        self.runs += later.runs;
        self.remembered += later.remembered;
        self.next = later.next;
        self.known.extend(later.known);
        add(&mut self.coverage, later.coverage);
        add(&mut self.states, later.states);
        add(&mut self.cells, later.cells);
        self.complete = later.complete;
        self.failure = later.failure;
    }

    /// Adds what another part of the same search has seen; `runs` says how many runs of all parts have a lower
    /// number than this.
    pub fn merge(&mut self, other: Tally, runs: impl FnOnce(u64) -> u64) {
        self.known.extend(other.known);
        self.known.sort_unstable();
        add(&mut self.coverage, other.coverage);
        add(&mut self.states, other.states);
        add(&mut self.cells, other.cells);
        self.complete &= other.complete;
        self.failure = match (self.failure.take(), other.failure) {
            (Some(own), Some(theirs)) => Some(if theirs.index < own.index { theirs } else { own }),
            (own, theirs) => own.or(theirs),
        };
        self.next = self.next.min(other.next);
        if let Some(failure) = &self.failure {
            let end = failure.index;
            self.next = self.next.min(end + 1);
            self.known.retain(|index| *index <= end);
            for seen in [&mut self.coverage, &mut self.states, &mut self.cells] {
                seen.retain(|_, first| *first <= end);
            }
        }
        self.runs = runs(self.failure.as_ref().map_or(u64::MAX, |failure| failure.index + 1));
    }
}

fn add(to: &mut Seen, from: Seen) {
    for (what, first) in from {
        to.entry(what).and_modify(|own| *own = first.min(*own)).or_insert(first);
    }
}

/// How much of the table of job states and device operations was reached: where a fault could strike, and where
/// faults did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// Pairs that were seen.
    pub reached: usize,
    /// States of jobs that were seen.
    pub states: usize,
    /// Operations that were seen, those that failed apart.
    pub operations: usize,
}

impl Cells {
    /// Counts; each entry holds the state in its highest byte and the operation in the rest.
    pub fn of(seen: &Seen) -> Cells {
        let distinct = |part: fn(u64) -> u64| {
            let mut all: Vec<u64> = seen.keys().map(|cell| part(*cell)).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        Cells { reached: seen.len(), states: distinct(|cell| cell >> 56), operations: distinct(|cell| cell << 8) }
    }
}
