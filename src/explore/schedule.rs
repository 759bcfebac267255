//! Schedules as named steps, which a person can read and edit and which survive changes of unrelated code.
//!
//! A schedule is QEMU's own order plus [`Departure`]s: after a certain arrival, and so many events of the loop,
//! another arrival comes than QEMU's order would have. [`Scribe`] writes the departures of a run down,
//! [`Replay`] takes them again and tells which did not fit. Neither may change what is possible.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::sim::{ChoicePoint, Strategy};

/// One arrival: who, which step, and the how-manieth of that name in the run, from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepName {
    /// The task that takes the step.
    pub actor: String,
    /// What it is.
    pub step: String,
    /// Counts arrivals of the same actor and step, from 1.
    pub occurrence: u32,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} #{}", self.actor, self.step, self.occurrence)
    }
}

/// A place where a run leaves QEMU's own order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Departure {
    /// The last arrival before; none at the very start.
    pub after: Option<StepName>,
    /// Events of the loop since then at which something else could have come.
    pub events: u32,
    /// The arrival that comes instead of the default.
    pub take: StepName,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.after {
            Some(after) => write!(f, "after [{after}] and {} events: [{}]", self.events, self.take),
            None => write!(f, "at the start and {} events: [{}]", self.events, self.take),
        }
    }
}

/// What a step is called, without its occurrence.
fn name_of(point: &ChoicePoint<'_>, index: usize) -> (String, String) {
    let footprint = &point.alternatives[index].footprint;
    let actor = point.actor(index).to_string();
    let is_device = matches!(footprint.what, "read" | "write" | "flush" | "discard");
    let object = point.sim.filter(|_| is_device).and_then(|sim| sim.object_name(footprint.object));
    let step = match (object, footprint.bytes) {
        (Some(object), 0) => format!("{} {object}", footprint.what),
        (Some(object), bytes) => format!("{} {object} {}+{bytes}", footprint.what, footprint.offset),
        (None, _) => footprint.what.to_owned(),
    };
    (actor, step)
}

/// Follows a run and knows where it is, in names.
#[derive(Clone, Debug, Default)]
struct Place {
    counts: BTreeMap<(String, String), u32>,
    after: Option<StepName>,
    events: u32,
}

impl Place {
    /// The name of an alternative at this place.
    fn name(&self, point: &ChoicePoint<'_>, index: usize) -> StepName {
        let (actor, step) = name_of(point, index);
        let key = (actor, step);
        let occurrence = self.counts.get(&key).copied().unwrap_or(0) + 1;
        StepName { actor: key.0, step: key.1, occurrence }
    }

    fn advance(&mut self, point: &ChoicePoint<'_>, index: usize) {
        if point.alternatives[index].is_loop() {
            self.events += 1;
            return;
        }
        let name = self.name(point, index);
        self.counts.insert((name.actor.clone(), name.step.clone()), name.occurrence);
        self.after = Some(name);
        self.events = 0;
    }
}

/// What a scribe has written.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Where the run left QEMU's order.
    pub departures: Vec<Departure>,
    /// All arrivals in order, and whether each was a departure.
    pub arrivals: Vec<(StepName, bool)>,
}

/// Lets another strategy decide and writes the departures down.
pub struct Scribe {
    inner: Box<dyn Strategy>,
    place: Place,
    record: Rc<RefCell<Record>>,
}

impl Scribe {
    /// Writes what `inner` decides to the record that is returned.
    pub fn new(inner: Box<dyn Strategy>) -> (Scribe, Rc<RefCell<Record>>) {
        let record: Rc<RefCell<Record>> = Rc::default();
        (Scribe { inner, place: Place::default(), record: record.clone() }, record)
    }

    fn note(&mut self, point: &ChoicePoint<'_>, taken: usize) {
        let mut record = self.record.borrow_mut();
        if !point.alternatives[taken].is_loop() {
            let take = self.place.name(point, taken);
            if taken > 0 {
                let Place { after, events, .. } = &self.place;
                record.departures.push(Departure { after: after.clone(), events: *events, take: take.clone() });
            }
            record.arrivals.push((take, taken > 0));
        }
        drop(record);
        self.place.advance(point, taken);
    }
}

impl Strategy for Scribe {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let answer = self.inner.next_step(point);
        let taken = if answer < point.alternatives.len() { answer } else { 0 };
        self.note(point, taken);
        taken
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.inner.forced_step(point);
        self.note(point, 0);
    }

    fn pick(&mut self, n: usize, what: &'static str) -> usize {
        self.inner.pick(n, what)
    }
}

/// Takes departures again, QEMU's order everywhere else.
pub struct Replay {
    left: Rc<RefCell<Vec<Departure>>>,
    place: Place,
}

impl Replay {
    /// Replays `departures`; what is left in the returned list at the end did not fit.
    pub fn new(departures: &[Departure]) -> (Replay, Rc<RefCell<Vec<Departure>>>) {
        let left = Rc::new(RefCell::new(departures.to_vec()));
        (Replay { left: left.clone(), place: Place::default() }, left)
    }

    fn decide(&self, point: &ChoicePoint<'_>) -> usize {
        let mut left = self.left.borrow_mut();
        let here = |departure: &Departure| departure.events == self.place.events && departure.after == self.place.after;
        let Some(index) = left.iter().position(here) else { return 0 };
        let wanted = &left[index].take;
        let found = (0..point.alternatives.len())
            .find(|i| !point.alternatives[*i].is_loop() && self.place.name(point, *i) == *wanted);
        if found.is_some() {
            left.remove(index);
        }
        found.unwrap_or(0)
    }
}

impl Strategy for Replay {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let taken = self.decide(point);
        self.place.advance(point, taken);
        taken
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.place.advance(point, 0);
    }
}
