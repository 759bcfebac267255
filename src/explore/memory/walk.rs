//! One run: through what is remembered as far as that goes, and made from there.
//!
//! The strategy is asked at every point, remembered or not, and can't tell the difference. A run that is made takes the
//! remembered events first, unrecorded; it is given up as soon as it has come back to where the rest is remembered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::sim::access::{self, Accesses, mix};
use crate::sim::{ABANDON, Alternative, ChoicePoint, Names, Strategy};

use super::super::model::Watch;
use super::super::run::{RunReport, Setup, Trial};
use super::super::tally::Tally;
use super::{Class, Memory, Seen, Step, To, Verdict};

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
    seen: Seen,
}

/// See the module's text.
pub struct Walk {
    memory: Rc<RefCell<Memory>>,
    strategy: Box<dyn Strategy>,
    at: At,
    /// Remembered steps that it has taken, or that are remembered since.
    passed: Vec<u32>,
    /// Those of them that were new.
    new: u64,
    /// Events before, by name and what they touched: of those that were recorded.
    before: Vec<(u64, u32)>,
    /// What a run that is made has yet to take, each event with its place; the last one is not remembered.
    script: VecDeque<(u32, u64)>,
    /// What it takes again, where that is compared.
    again: Option<u32>,
    under_way: Option<UnderWay>,
    /// What was seen outside.
    rest: Seen,
}

impl Walk {
    /// Goes as far as everything is remembered.
    pub fn begin(memory: &Rc<RefCell<Memory>>, strategy: Box<dyn Strategy>) -> Walk {
        let mut walk = Walk {
            memory: memory.clone(),
            strategy,
            at: At::Outside,
            passed: Vec::new(),
            new: 0,
            before: Vec::new(),
            script: VecDeque::new(),
            again: None,
            under_way: None,
            rest: Seen::default(),
        };
        let memory = memory.borrow();
        match memory.begin {
            Some(step) => {
                walk.pass(&memory, step, 0);
                walk.go_on(&memory);
            }
            None => walk.under_way = Some(UnderWay::default()),
        }
        walk
    }

    /// The end, if the run need not be made, or no further.
    pub fn end(&self) -> Option<u32> {
        match self.at {
            At::End(end) => Some(end),
            At::Place(_) | At::Outside => None,
        }
    }

    /// Begins to make the run.
    pub fn made(self, setup: &Setup) -> (Trial<'_>, Rc<RefCell<Walk>>) {
        let walk = Rc::new(RefCell::new(self));
        let watch = Rc::new(RefCell::new(Watch::new(setup.own_images)));
        let guide = Guide { walk: walk.clone(), watch: watch.clone() };
        (Trial::watched(setup, Box::new(guide), watch, None), walk)
    }

    /// Tells what the judges have seen in run `index`, which is later than all that have been told in this count.
    pub fn tell(&self, index: u64, tally: &mut Tally) {
        let memory = self.memory.borrow();
        let passed = self.passed.iter().map(|step| &memory.steps[*step as usize]);
        let new = passed.filter(|step| step.told.replace(memory.count) != memory.count).map(|step| &step.seen);
        for seen in new.chain([&self.rest]) {
            tally.take_seen(index, &seen.coverage, &seen.cells);
        }
    }

    /// The verdict of an end.
    pub fn verdict(&self, end: u32) -> Verdict {
        self.memory.borrow().ends[end as usize].clone()
    }

    /// The run has come to its end by itself: remembers it.
    pub fn has_ended(&mut self, report: &RunReport) {
        let rest = Seen::new(report.coverage.clone(), report.cells.clone());
        let Some(UnderWay { from, mut seen, .. }) = self.under_way.take() else {
            // A run that crashed where a remembered one did not says so by its violation.
            return self.rest.add(rest);
        };
        seen.add(rest);
        let memory = &mut *self.memory.borrow_mut();
        let step = memory.after(from).unwrap_or_else(|| {
            let end = memory.add_end(Verdict { state: report.state, violations: report.violations.clone() });
            memory.add_step(from, Step::new(To::End(end), None, seen))
        });
        self.passed.push(step);
        self.new += 1;
    }

    /// Lets the memory know how much of the run was new.
    pub fn close(&self) {
        let steps = self.passed.len() as u64 + u64::from(self.at == At::Outside);
        self.memory.borrow_mut().has_run(steps, self.new + u64::from(self.at == At::Outside));
    }

    /// Takes a remembered step.
    fn pass(&mut self, memory: &Memory, step: u32, event: u64) {
        let Step { to, touched, .. } = &memory.steps[step as usize];
        self.passed.push(step);
        self.at = match *to {
            To::Place(place) => {
                if let Some(touched) = touched {
                    let loops = memory.places[place as usize].class.loops;
                    self.before.push((name(event, loops), *touched));
                }
                At::Place(place)
            }
            To::End(end) => At::End(end),
        };
    }

    /// Goes on through what is remembered, up to an end or to an event that is not, and writes down what a run that is
    /// made has to take.
    fn go_on(&mut self, memory: &Memory) {
        while let At::Place(place) = self.at {
            let here = &memory.places[place as usize];
            let names = Names::Kept(&here.actors);
            let point = ChoicePoint { step: 0, alternatives: &here.alternatives, closed: here.closed, names };
            let event = here.alternatives[ask(&mut *self.strategy, &point)].event;
            self.script.push_back((place, event));
            match memory.after(Some((place, event))) {
                Some(step) => self.pass(memory, step, event),
                None => return,
            }
        }
    }

    /// The event under way has come to its end at a point: remembers both, and goes on from there.
    fn arrive(&mut self, point: &ChoicePoint<'_>) {
        let Some(UnderWay { from, touched, changed, seen }) = self.under_way.take() else { return };
        let touched = touched.unwrap_or_else(Accesses::everything);
        let memory = self.memory.clone();
        let memory = &mut *memory.borrow_mut();
        let step = match memory.after(from) {
            // Another run that is made at the same time was faster.
            Some(step) => step,
            None if memory.is_full() || self.new > LONG => {
                self.at = At::Outside;
                return self.rest.add(seen);
            }
            None => {
                self.new += 1;
                let (class, touched) = self.class_after(memory, from, touched, changed);
                let found = memory.find(class, point.alternatives);
                let place = found.unwrap_or_else(|| memory.add_place(class, point));
                memory.add_step(from, Step::new(To::Place(place), touched, seen))
            }
        };
        self.pass(memory, step, from.map_or(0, |(_, event)| event));
        self.go_on(memory);
    }

    /// A run that is made takes the next event. If it is not remembered it is under way from now on. Tells its place among
    /// the alternatives, and whether it is to be recorded.
    fn take_next(&mut self, point: &ChoicePoint<'_>) -> Option<(usize, bool)> {
        let (place, event) = self.script.pop_front()?;
        let memory = self.memory.borrow();
        let here = &memory.places[place as usize];
        let index = point.alternatives.iter().position(|one| one.event == event);
        let is_same = || {
            let has = |one: &Alternative| point.alternatives.iter().any(|other| other.event == one.event);
            here.alternatives.len() == point.alternatives.len() && here.alternatives.iter().all(has)
        };
        let index = index.filter(|_| is_same()).expect("a run that is made comes to where a remembered one was");
        if !self.script.is_empty() {
            self.again = memory.after(Some((place, event))).filter(|_| memory.checks);
            return Some((index, memory.checks));
        }
        self.under_way = Some(UnderWay { from: Some((place, event)), ..UnderWay::default() });
        Some((index, true))
    }

    /// What was taken again has touched the same things.
    fn check(&mut self, touched: &Accesses) {
        let Some(step) = self.again.take() else { return };
        let memory = self.memory.borrow();
        let remembered = memory.steps[step as usize].touched.map(|number| memory.footprints.list(number));
        if let Some(remembered) = remembered {
            assert_eq!(remembered, touched, "an event of a remembered run touches something else now");
        }
    }

    /// The class of a run after an event, and the number of what it touched.
    fn class_after(
        &self,
        memory: &mut Memory,
        from: Option<(u32, u64)>,
        touched: Accesses,
        changed: bool,
    ) -> (Class, Option<u32>) {
        let Some((place, event)) = from else { return (Class::default(), None) };
        let before = memory.places[place as usize].class;
        if !changed {
            return (Class { looked: true, ..before }, None);
        }
        let loops = before.loops + u64::from(event == 0);
        let (name, touched) = (name(event, loops), memory.footprints.number(touched));
        let mut digest = before.digest.wrapping_add(mix(name, 0));
        for (earlier, footprint) in &self.before {
            if memory.footprints.conflict(*footprint, touched) {
                digest = digest.wrapping_add(mix(*earlier, name));
            }
        }
        (Class { digest, loops, looked: false }, Some(touched))
    }
}

/// An event's name among those of a run; the loop's own are counted.
fn name(event: u64, loops: u64) -> u64 {
    if event == 0 { loops } else { event }
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
    fn seen(&self) -> Seen {
        let mut watch = self.watch.borrow_mut();
        Seen::new(std::mem::take(&mut watch.coverage), std::mem::take(&mut watch.cells))
    }
}

impl Strategy for Guide {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let mut walk = self.walk.borrow_mut();
        walk.arrive(point);
        if walk.end().is_some() {
            return ABANDON;
        }
        let Some((index, records)) = walk.take_next(point) else {
            access::record(false);
            return ask(&mut *walk.strategy, point);
        };
        if walk.under_way.is_some() {
            // What was seen on the way here is remembered with the way.
            self.seen();
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
