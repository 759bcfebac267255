//! One run: through what is remembered as far as that goes, and made from there.
//!
//! The strategy is asked at every point, remembered or not, and can't tell the difference. A run that is made takes the
//! remembered events first, unrecorded; it is given up as soon as it has come back to where the rest is remembered.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::RwLockReadGuard;

use crate::sim::access::{self, Accesses};
use crate::sim::{ABANDON, Alternative, ChoicePoint, Names, Strategy};

use super::super::model::{Mark, Seen, Sightings, Watch};
use super::super::run::{RunReport, Setup, Trial};
use super::super::tally::Tally;
use super::{Done, Memory, Possible, Share, Step, To, Verdict};

/// As many steps as a run of a small scenario has.
const USUAL: usize = 64;
/// A run that adds more than this has no end, or is like no other.
const LONG: u64 = 5_000;

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At a place that is remembered.
    Place(u32),
    /// At an end.
    End(u32),
    /// Where nothing will be remembered any more.
    Outside,
}

/// An event that nobody has taken there before, while it happens.
#[derive(Default)]
struct UnderWay {
    /// The place and the event's name; none: what happens before the first point.
    from: Option<(u32, u64)>,
    touched: Option<Accesses>,
    changed: bool,
    /// Where the judges stood when it began.
    begun: Mark,
    seen: Sightings,
}

/// See the module's text.
pub struct Walk {
    share: Rc<Share>,
    strategy: Box<dyn Strategy>,
    at: At,
    /// Remembered steps that it has taken, or that are remembered since.
    passed: Vec<u32>,
    /// Those of them that were new.
    new: u64,
    /// How many of them the run that is made has taken too.
    taken: usize,
    /// What comes behind them: the place, and the event, of which nothing is remembered there.
    unknown: Option<(u32, u64)>,
    /// The events among the first `counted` of them that were more than a look, by identity and what they touched.
    before: Vec<(u64, u32)>,
    counted: usize,
    /// What it takes again, where that is compared.
    again: Option<u32>,
    under_way: Option<UnderWay>,
    /// What was seen outside.
    rest: Sightings,
}

impl Walk {
    /// Goes as far as everything is remembered.
    pub fn begin(share: &Rc<Share>, strategy: Box<dyn Strategy>) -> Walk {
        let mut walk = Walk {
            share: share.clone(),
            strategy,
            at: At::Outside,
            passed: Vec::with_capacity(USUAL),
            new: 0,
            taken: 0,
            unknown: None,
            before: Vec::new(),
            counted: 0,
            again: None,
            under_way: None,
            rest: Sightings::default(),
        };
        let memory = share.memory.read();
        match memory.begin {
            Some(step) => {
                walk.pass(step, memory.steps[step as usize].to);
                walk.taken = 1;
                walk.go_on(share, memory);
            }
            None => walk.under_way = Some(UnderWay::default()),
        }
        walk
    }

    /// Whether it has come to a remembered end: the run need not be made, or no further.
    pub fn is_over(&self) -> bool {
        matches!(self.at, At::End(_))
    }

    /// Begins to make the run.
    pub fn made(self, setup: &Setup) -> (Trial<'_>, Rc<RefCell<Walk>>) {
        let walk = Rc::new(RefCell::new(self));
        let watch = Rc::new(RefCell::new(Watch::new(setup.own_images)));
        let guide = Guide { walk: walk.clone(), watch: watch.clone() };
        (Trial::watched(setup, Box::new(guide), watch, None), walk)
    }

    /// Tells what the judges have seen in run `index`, which is later than all that have been told in this count; and its
    /// verdict, if its end is remembered.
    pub fn tell(&self, index: u64, tally: &mut Tally) -> Option<Verdict> {
        let memory = self.share.memory.read();
        let take = |seen: &Seen, mark: &Mark| tally.take_seen(index, seen.coverage(mark), seen.cells(mark));
        self.share.tell(&memory, &self.passed, take);
        let verdict = match self.at {
            At::End(end) => Some(memory.ends[end as usize].clone()),
            At::Place(_) | At::Outside => None,
        };
        drop(memory);
        tally.take_seen(index, self.rest.coverage(), self.rest.cells());
        verdict
    }

    /// The run has come to its end by itself: remembers it.
    pub fn has_ended(&mut self, report: &RunReport) {
        let rest = report.seen.clone();
        let Some(UnderWay { from, begun, mut seen, .. }) = self.under_way.take() else {
            // A run that crashed where a remembered one did not says so by its violation.
            return self.rest.add(rest);
        };
        seen.add(rest);
        let memory = &mut *self.share.memory.write();
        let step = memory.after(from).unwrap_or_else(|| {
            let end = memory.add_end(Verdict { state: report.state, violations: report.violations.clone() });
            let seen = memory.add_seen(seen.since(&begun));
            let (from, event) = from.unzip();
            memory.add_step(Step {
                from,
                event: event.unwrap_or(0),
                to: To::End(end),
                touched: None,
                identity: 0,
                seen,
            })
        });
        self.passed.push(step);
        self.new += 1;
    }

    /// Lets the memory know how much of the run was new.
    pub fn close(&self) {
        let steps = self.passed.len() as u64 + u64::from(self.at == At::Outside);
        self.share.has_run(steps, self.new + u64::from(self.at == At::Outside));
    }

    /// Takes a remembered step.
    fn pass(&mut self, step: u32, to: To) {
        self.passed.push(step);
        self.at = match to {
            To::Place(place) => At::Place(place),
            To::End(end) => At::End(end),
        };
    }

    /// Writes down what events there were before.
    fn count(&mut self, memory: &Memory) {
        for step in &self.passed[self.counted..] {
            let Step { touched, identity, .. } = memory.steps[*step as usize];
            self.before.extend(touched.map(|touched| (identity, touched)));
        }
        self.counted = self.passed.len();
    }

    /// Goes on through what is remembered or known from elsewhere, up to an end or to an event that is neither.
    fn go_on<'a>(&mut self, share: &'a Share, mut memory: RwLockReadGuard<'a, Memory>) {
        loop {
            let Some((place, event)) = self.follow(&memory) else { return };
            self.count(&memory);
            let known = memory.known_by_past(&self.before, place, event);
            drop(memory);
            let passed = known.and_then(|known| {
                let memory = &mut *share.memory.write();
                let step = memory.after(Some((place, event))).or_else(|| memory.add_known(known))?;
                Some((step, memory.steps[step as usize].to))
            });
            let Some((step, to)) = passed else {
                self.unknown = Some((place, event));
                return;
            };
            self.pass(step, to);
            memory = share.memory.read();
        }
    }

    /// Goes on as far as there are steps. Tells at which place there is none for which event.
    fn follow(&mut self, memory: &Memory) -> Option<(u32, u64)> {
        let share = self.share.clone();
        let all = share.names(memory);
        while let At::Place(place) = self.at {
            let here = &memory.places[place as usize];
            let Possible { alternatives, actors } = memory.possible(place);
            let (names, closed, queues) = (Names::Kept(actors, &all), here.closed, here.queues);
            let point = ChoicePoint { step: 0, alternatives, closed, queues, names };
            let event = alternatives[ask(&mut *self.strategy, &point)].event;
            let Some((_, step, to)) = here.steps.iter().find(|(name, ..)| *name == event) else {
                return Some((place, event));
            };
            self.pass(*step, *to);
        }
        None
    }

    /// The event under way has come to its end at a point: remembers both, and goes on from there.
    fn arrive(&mut self, point: &ChoicePoint<'_>, watch: &Watch) {
        let Some(UnderWay { from, touched, changed, begun, seen }) = self.under_way.take() else { return };
        let share = self.share.clone();
        let mut memory = share.memory.write();
        let step = match memory.after(from) {
            // Another run that is made at the same time was faster.
            Some(step) => step,
            None if memory.is_full() || self.new > LONG => {
                self.at = At::Outside;
                return self.rest.add(seen);
            }
            None => {
                self.new += 1;
                self.count(&memory);
                let done = Done { from, touched, changed, seen: seen.since(&begun) };
                memory.remember(done, &self.before, point, watch.mark())
            }
        };
        self.pass(step, memory.steps[step as usize].to);
        self.taken = self.passed.len();
        drop(memory);
        self.go_on(&share, share.memory.read());
    }

    /// A run that is made takes the next event. If it is not remembered it is under way from now on. Tells its place among
    /// the alternatives, and whether it is to be recorded.
    fn take_next(&mut self, point: &ChoicePoint<'_>) -> Option<(usize, bool)> {
        let memory = self.share.memory.read();
        let again = self.passed.get(self.taken).copied();
        let from = again.map(|step| (memory.steps[step as usize].from, memory.steps[step as usize].event));
        let (place, event) = match from {
            Some((place, event)) => (place?, event),
            None => self.unknown.take()?,
        };
        let here = memory.possible(place);
        let index = point.alternatives.iter().position(|one| one.event == event);
        let is_same = || {
            let has = |one: &Alternative| point.alternatives.iter().any(|other| other.event == one.event);
            here.alternatives.len() == point.alternatives.len() && here.alternatives.iter().all(has)
        };
        let index = index.filter(|_| is_same()).expect("a run that is made comes to where a remembered one was");
        if again.is_some() {
            self.taken += 1;
            self.again = again.filter(|_| memory.checks);
            return Some((index, memory.checks));
        }
        self.under_way = Some(UnderWay { from: Some((place, event)), ..UnderWay::default() });
        Some((index, true))
    }

    /// What was taken again has touched the same things.
    fn check(&mut self, touched: &Accesses) {
        let Some(step) = self.again.take() else { return };
        let memory = self.share.memory.read();
        let remembered = memory.steps[step as usize].touched.map(|number| memory.footprints.list(number));
        if let Some(remembered) = remembered {
            assert_eq!(remembered, touched, "an event of a remembered run touches something else now");
        }
    }
}

/// Asks a strategy as [`crate::sim::Choices`] does.
fn ask(strategy: &mut dyn Strategy, point: &ChoicePoint<'_>) -> usize {
    if point.alternatives.len() > 1 {
        let taken = strategy.next_step(point);
        return if taken < point.alternatives.len() { taken } else { 0 };
    }
    if !point.alternatives[0].is_loop() {
        strategy.forced_step(point);
    }
    0
}

/// Leads a run that is made.
struct Guide {
    walk: Rc<RefCell<Walk>>,
    watch: Rc<RefCell<Watch>>,
}

impl Guide {
    /// What the judges have noted since the last time.
    fn seen(&self) -> Sightings {
        std::mem::take(&mut self.watch.borrow_mut().seen)
    }
}

impl Strategy for Guide {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let mut walk = self.walk.borrow_mut();
        walk.arrive(point, &self.watch.borrow());
        if walk.is_over() {
            return ABANDON;
        }
        let Some((index, records)) = walk.take_next(point) else {
            access::record(false);
            return ask(&mut *walk.strategy, point);
        };
        if let Some(under_way) = &mut walk.under_way {
            // What was seen on the way here is remembered with the way.
            self.seen();
            under_way.begun = self.watch.borrow().mark();
        }
        access::record(records);
        index
    }

    fn observes(&self) -> bool {
        true
    }

    fn records(&self) -> bool {
        self.walk.borrow().under_way.is_some()
    }

    fn has_run(&mut self, touched: Accesses, changed: bool) {
        let mut walk = self.walk.borrow_mut();
        walk.check(&touched);
        let Some(under_way) = &mut walk.under_way else { return };
        // Where nothing could be chosen what came next belongs to the same event.
        under_way.touched = Some(if under_way.touched.is_some() { Accesses::everything() } else { touched });
        under_way.changed |= changed;
        under_way.seen.add(self.seen());
    }
}
