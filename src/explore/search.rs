//! A search: runs of one case under a strategy, until the budget is spent or enough was found.
//!
//! Runs are numbered; run 0 is QEMU's own order and teaches the others what they need to know. The verdict on a
//! run depends on its number, the seed and the scenario alone, never on the runs around it.

use std::borrow::Cow;
use std::ops::Range;

use crate::sim::{ChoicePoint, Strategy};

use crate::shard::Shard;

use super::known::is_known;
use super::model::Violation;
use super::run::{RunReport, Setup, Trial, run, run_in_detail};
use super::schedule::{Departure, Fit, Record, Replay, Scribe};
use super::strategy::{Corpus, DelayBounded, Departures, Kind, Learned, Sparse};
pub use super::tally::{Failure, Tally};

/// What to search, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The strategy of the seeded runs.
    pub kind: Kind,
    /// Seeds them.
    pub seed: u64,
    /// Runs are numbered from 0 up to this one, which is not run.
    pub end: u64,
    /// Only the runs of this part; none: all.
    pub part: Option<Shard>,
    /// Violations that are known and passed over: name of an invariant or a breach, and part of the text.
    pub known: Vec<(String, String)>,
}

impl Plan {
    /// All runs from 0 to `schedules`.
    pub fn new(kind: Kind, seed: u64, schedules: u64) -> Plan {
        Plan { kind, seed, end: schedules, part: None, known: Vec::new() }
    }

    /// Whether run `index` belongs to this part of the search.
    pub fn takes(&self, index: u64) -> bool {
        self.part.is_none_or(|part| part.takes(index, &index.to_string()))
    }

    /// Whether somebody has said that this is known.
    pub fn is_known(&self, violation: &Violation) -> bool {
        is_known(&self.known, violation)
    }
}

/// So many runs are made side by side, an event of each in turn. They do much the same at much the same time, so that
/// code which a run passes only once or twice is at hand for the others; how many is measured, not reasoned.
const ABREAST: usize = 8;

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

/// A seeded search of one case, any stretch of it at a time.
pub struct Seeded<'a> {
    setup: &'a Setup,
    plan: &'a Plan,
    learned: Learned,
    own_order: RunReport,
}

impl<'a> Seeded<'a> {
    /// Makes the run in QEMU's own order, which all others need.
    pub fn new(setup: &'a Setup, plan: &'a Plan) -> Seeded<'a> {
        let (learned, own_order) = learn(setup);
        Seeded { setup, plan, learned, own_order }
    }

    /// Makes the plan's runs in `numbers` up to the first that fails; `go_on` is asked before each.
    pub fn stretch(&self, numbers: Range<u64>, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
        let mut tally = Tally { complete: true, next: numbers.start, ..Tally::default() };
        let end = numbers.end.min(self.plan.end);
        let mut own = (numbers.start..end).filter(|index| self.plan.takes(*index));
        let mut going_on = true;
        while going_on {
            let mut abreast = Vec::new();
            while abreast.len() < ABREAST && going_on {
                let Some(index) = own.next() else { break };
                going_on = go_on(&tally);
                if going_on {
                    abreast.push((index, self.begin(index)));
                }
            }
            if abreast.is_empty() {
                break;
            }
            let mut failed = None;
            // The runs behind the first that fails do not count, but each is taken down by being judged.
            for (index, report) in self.reports(abreast) {
                if failed.is_none() && tally.take_run(self.plan, index, &report) {
                    failed = Some(index);
                }
            }
            if let Some(index) = failed {
                tally.failure = describe(self.setup, self.plan, index, self.strategy(index));
                tally.complete = false;
                return tally;
            }
        }
        match going_on {
            true => tally.next = end.max(numbers.start),
            false => tally.complete = false,
        }
        tally
    }

    /// Begins run `index`, unless it has been made already.
    fn begin(&self, index: u64) -> Option<Trial<'_>> {
        (index > 0).then(|| Trial::begin(self.setup, self.strategy(index), None))
    }

    /// Makes runs side by side, an event of each in turn, and judges one after the other.
    fn reports<'b>(
        &'b self,
        mut abreast: Vec<(u64, Option<Trial<'b>>)>,
    ) -> impl Iterator<Item = (u64, Cow<'b, RunReport>)> {
        let mut going_on = true;
        while going_on {
            going_on = false;
            for trial in abreast.iter_mut().filter_map(|(_, trial)| trial.as_mut()) {
                going_on |= trial.step();
            }
        }
        abreast.into_iter().map(|(index, trial)| match trial {
            Some(trial) => (index, Cow::Owned(trial.judge())),
            None => (index, Cow::Borrowed(&self.own_order)),
        })
    }

    fn strategy(&self, index: u64) -> Box<dyn Strategy> {
        match index {
            0 => Box::new(Sparse::new(Vec::new())),
            _ => self.plan.kind.strategy(self.plan.seed, index, &self.learned),
        }
    }
}

/// Runs the whole plan on this thread; `go_on` is asked between runs.
pub fn search(setup: &Setup, plan: &Plan, go_on: impl FnMut(&Tally) -> bool) -> Tally {
    Seeded::new(setup, plan).stretch(0..plan.end, go_on)
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

/// Varies the runs that reached a new abstract state, any stretch of the search at a time. Each run depends on those
/// before it, so a search is not shared out.
pub struct Covering<'a> {
    setup: &'a Setup,
    plan: &'a Plan,
    corpus: Corpus,
    tried: Departures,
}

impl<'a> Covering<'a> {
    /// Makes the run in QEMU's own order, of which the first run is made again and judged.
    pub fn new(setup: &'a Setup, plan: &'a Plan) -> Covering<'a> {
        let corpus = Corpus::new(plan.seed, learn(setup).0.points);
        Covering { setup, plan, corpus, tried: Departures::new() }
    }

    /// Makes runs up to number `end`; `go_on` is asked before each.
    pub fn stretch(&mut self, tally: &mut Tally, end: u64, go_on: &mut dyn FnMut(&Tally) -> bool) {
        while tally.next < end {
            if !go_on(tally) {
                tally.complete = false;
                return;
            }
            let report = run(self.setup, Box::new(Sparse::new(self.tried.clone())));
            if tally.take(self.plan, &report) {
                let again = Box::new(Sparse::new(std::mem::take(&mut self.tried)));
                tally.failure = describe(self.setup, self.plan, tally.next - 1, again);
                tally.complete = false;
                return;
            }
            let steps = report.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.taken);
            let taken = (0..).zip(steps).filter(|(_, taken)| *taken > 0);
            self.corpus.has_run(taken.collect(), &report.coverage);
            self.tried = self.corpus.next_schedule();
        }
    }
}

/// Varies the runs that reached a new abstract state, on this thread.
pub fn search_covering(setup: &Setup, plan: &Plan, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let mut tally = Tally::default();
    Covering::new(setup, plan).stretch(&mut tally, plan.end, &mut go_on);
    tally.complete = false;
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
