//! A search: runs of one case under a strategy, until the budget is spent or enough was found.
//!
//! Runs are numbered; run 0 is QEMU's own order and teaches the others what they need to know. The verdict on a
//! run depends on its number, the seed and the scenario alone, never on the runs around it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::sim::{ChoicePoint, Strategy};

use crate::shard::Shard;

use super::known::is_known;
use super::memory::{Memory, Share, SharedMemory, Walk};
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

    /// An empty memory for the seeded runs.
    pub fn memory(&self) -> SharedMemory {
        SharedMemory::new(Memory::new(self.kind.looks_at_order()))
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

/// Runs that are looked at together, most of them remembered.
const BATCH: usize = 256;

/// One in so many remembered runs is made all the same, and compared.
const CHECKED: u64 = 1024;

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
    /// What it remembers of its runs; none where that is not worth it.
    memory: RefCell<Option<Rc<Share>>>,
}

/// A run of a stretch.
enum Made<'b> {
    /// QEMU's own order, made long ago.
    Own,
    /// Its end is remembered.
    Remembered(Box<Walk>),
    /// It is made; with what leads it through what is remembered.
    Trial(Trial<'b>, Option<Rc<RefCell<Walk>>>),
}

impl<'a> Seeded<'a> {
    /// Makes the run in QEMU's own order, which all others need. It has a memory to itself.
    pub fn new(setup: &'a Setup, plan: &'a Plan) -> Seeded<'a> {
        Seeded::sharing(setup, plan, &plan.memory())
    }

    /// The same with a memory that other searches of the same case and kind fill too.
    pub fn sharing(setup: &'a Setup, plan: &'a Plan, memory: &SharedMemory) -> Seeded<'a> {
        let (learned, own_order) = learn(setup);
        let share = Rc::new(Share::new(memory.clone()));
        Seeded { setup, plan, learned, own_order, memory: RefCell::new(Some(share)) }
    }

    /// The same search with another memory; without one each run is made.
    pub fn with_memory(self, memory: Option<Memory>) -> Seeded<'a> {
        let share = memory.map(|memory| Rc::new(Share::new(SharedMemory::new(memory))));
        Seeded { memory: RefCell::new(share), ..self }
    }

    /// Whether it remembers anything: it stops where that costs more than it spares.
    pub fn remembers(&self) -> bool {
        self.memory.borrow().is_some()
    }

    /// Whether more than half of the last hundred runs or so were remembered from beginning to end.
    pub fn is_mostly_remembered(&self) -> bool {
        self.memory.borrow().as_ref().is_some_and(|share| share.knows_most())
    }

    /// Makes the plan's runs in `numbers` up to the first that fails; `go_on` is asked before each.
    pub fn stretch(&self, numbers: Range<u64>, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
        let mut tally = Tally { complete: true, next: numbers.start, ..Tally::default() };
        if let Some(share) = &*self.memory.borrow() {
            share.begin_count();
        }
        let end = numbers.end.min(self.plan.end);
        let mut own = (numbers.start..end).filter(|index| self.plan.takes(*index));
        let mut going_on = true;
        while going_on {
            let (mut batch, mut trials) = (Vec::new(), 0);
            while trials < ABREAST && batch.len() < BATCH && going_on {
                let Some(index) = own.next() else { break };
                going_on = go_on(&tally);
                if going_on {
                    let made = self.begin(index);
                    trials += usize::from(matches!(made, Made::Trial(..)));
                    batch.push((index, made));
                }
            }
            if batch.is_empty() {
                break;
            }
            side_by_side(&mut batch);
            let mut failed = None;
            for (index, made) in batch {
                // The runs behind the first that fails do not count, but each is taken down.
                let counts = failed.is_none().then_some(&mut tally);
                if self.take(counts, index, made) {
                    failed = failed.or(Some(index));
                }
            }
            if let Some(index) = failed {
                tally.failure = Some(describe(self.setup, self.plan, index, self.strategy(index)));
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

    /// Begins run `index`, unless its end is known.
    fn begin(&self, index: u64) -> Made<'_> {
        if index == 0 {
            return Made::Own;
        }
        let strategy = self.strategy(index);
        let mut memory = self.memory.borrow_mut();
        if memory.as_ref().is_some_and(|share| !share.is_useful()) {
            *memory = None;
        }
        let Some(share) = &*memory else { return Made::Trial(Trial::begin(self.setup, strategy, None), None) };
        let walk = Walk::begin(share, strategy);
        if walk.is_over() {
            return Made::Remembered(Box::new(walk));
        }
        let (trial, walk) = walk.made(self.setup);
        Made::Trial(trial, Some(walk))
    }

    /// Judges run `index`, which has come to its end, and counts it in the tally, if there is one; true if it broke
    /// something that is not known.
    fn take(&self, mut tally: Option<&mut Tally>, index: u64, made: Made<'_>) -> bool {
        let mut count =
            |report: &RunReport| tally.as_mut().is_some_and(|tally| tally.take_run(self.plan, index, report));
        match made {
            Made::Own => count(&self.own_order),
            Made::Trial(trial, None) => count(&trial.judge()),
            Made::Trial(trial, Some(walk)) => {
                let is_remembered = walk.borrow().is_over();
                let report = match is_remembered {
                    true => {
                        trial.abandon();
                        None
                    }
                    false => Some(trial.judge()),
                };
                if let Some(report) = &report {
                    walk.borrow_mut().has_ended(report);
                }
                let walk = walk.borrow();
                walk.close();
                tally.is_some_and(|tally| match report {
                    Some(report) => {
                        walk.tell(index, tally);
                        tally.take_run(self.plan, index, &report)
                    }
                    None => self.take_remembered(tally, index, &walk),
                })
            }
            Made::Remembered(walk) => {
                walk.close();
                tally.is_some_and(|tally| self.take_remembered(tally, index, &walk))
            }
        }
    }

    fn take_remembered(&self, tally: &mut Tally, index: u64, walk: &Walk) -> bool {
        let Some(verdict) = walk.tell(index, tally) else { return false };
        tally.remembered += 1;
        if index % CHECKED == CHECKED - 1 {
            let made = run(self.setup, self.strategy(index));
            // How it is told may depend on what independent events came first.
            let broken =
                |all: &[Violation]| all.iter().map(|one| (one.breach, one.subject.clone())).collect::<Vec<_>>();
            let (goes, remembered) = (broken(&made.violations), broken(&verdict.violations));
            assert_eq!(
                (made.state, goes),
                (verdict.state, remembered),
                "run {index} is remembered otherwise than it goes"
            );
        }
        tally.take_verdict(self.plan, index, verdict.state, &verdict.violations)
    }

    fn strategy(&self, index: u64) -> Box<dyn Strategy> {
        match index {
            0 => Box::new(Sparse::new(Vec::new())),
            _ => self.plan.kind.strategy(self.plan.seed, index, &self.learned),
        }
    }
}

/// Makes runs side by side, an event of each in turn.
fn side_by_side(batch: &mut [(u64, Made<'_>)]) {
    let mut going_on = true;
    while going_on {
        going_on = false;
        for (_, made) in batch.iter_mut() {
            if let Made::Trial(trial, _) = made {
                going_on |= trial.step();
            }
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
            tally.failure = Some(describe(setup, plan, tally.runs - 1, again));
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
                tally.failure = Some(describe(self.setup, self.plan, tally.next - 1, again));
                tally.complete = false;
                return;
            }
            let steps = report.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.taken);
            let taken = (0..).zip(steps).filter(|(_, taken)| *taken > 0);
            self.corpus.has_run(taken.collect(), report.seen.coverage());
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

/// Repeats a run that has broken something, and writes its schedule down.
pub(super) fn describe(setup: &Setup, plan: &Plan, index: u64, strategy: Box<dyn Strategy>) -> Failure {
    let (report, record) = transcribe(setup, strategy);
    let violation = report.violations.into_iter().find(|violation| !plan.is_known(violation));
    // Nothing but a mistake in here could make two runs of one schedule differ.
    let violation =
        violation.unwrap_or_else(|| panic!("run {index} broke something, and nothing when it was repeated"));
    Failure { index, violation, departures: record.departures }
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
