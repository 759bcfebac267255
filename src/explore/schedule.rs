//! Schedules as named steps, which a person can read and edit and which survive changes of unrelated code.
//!
//! A schedule is QEMU's own order plus [`Departure`]s: after a certain arrival, and so many events of the loop,
//! another arrival comes than QEMU's order would have. [`Scribe`] writes the departures of a run down,
//! [`Replay`] takes them again and tells which did not fit. Neither may change what is possible.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::sim::access::Accesses;
use crate::sim::{ABANDON, ChoicePoint, Strategy};

/// One arrival: on whose behalf, which step, and the how-manieth of that name in the run, from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepName {
    /// The actor or job on whose behalf it is.
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
    /// How many events of the loop come before it; none: all that there are, so it comes when the loop is idle.
    pub events: Option<u32>,
    /// The arrival that comes instead of the default.
    pub take: StepName,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.after {
            Some(after) => write!(f, "after [{after}]")?,
            None => f.write_str("at the start")?,
        }
        match self.events {
            Some(events) => write!(f, " and {events} events of the loop: [{}]", self.take),
            None => write!(f, " when the loop is idle: [{}]", self.take),
        }
    }
}

/// What a step is called, without its occurrence.
fn name_of(point: &ChoicePoint<'_>, index: usize) -> (String, String) {
    let footprint = &point.alternatives[index].footprint;
    let (Some(sim), Some(task)) = (point.sim(), footprint.task) else {
        return (footprint.what.to_owned(), footprint.what.to_owned());
    };
    if footprint.what == "actor" {
        let actor = sim.task_name(task);
        let next = sim.announced(&actor).map_or_else(|| "begin".to_owned(), |next| next.to_string());
        return (actor.to_string(), next);
    }
    let is_device = matches!(footprint.what, "read" | "write" | "flush" | "discard");
    let object = sim.object_name(footprint.object).filter(|_| is_device);
    let step = match (object, footprint.bytes) {
        (Some(object), 0) => format!("{} {object}", footprint.what),
        (Some(object), bytes) => format!("{} {object} {}+{}", footprint.what, short(footprint.offset), short(bytes)),
        (None, _) => footprint.what.to_owned(),
    };
    (sim.owner_name(task).to_string(), step)
}

/// A number of bytes as qemu-io takes it.
pub(super) fn short(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes if bytes % (1 << 20) == 0 => format!("{}M", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{}k", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

/// Follows a run and knows where it is, in names.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
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

    /// Whether the alternative is this arrival.
    pub(super) fn is(&self, point: &ChoicePoint<'_>, index: usize, name: &StepName) -> bool {
        !point.alternatives[index].is_loop() && self.name(point, index) == *name
    }

    /// Whether the departure is due here, or was due before without another arrival in between.
    pub(super) fn is_at(&self, departure: &Departure, point: &ChoicePoint<'_>) -> bool {
        let idle = !point.alternatives[0].is_loop();
        departure.after == self.after && departure.events.map_or(idle, |events| idle || self.events >= events)
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
                let events = point.alternatives[0].is_loop().then_some(self.place.events);
                let after = self.place.after.clone();
                record.departures.push(Departure { after, events, take: take.clone() });
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
        if answer == ABANDON {
            return ABANDON;
        }
        let taken = if answer < point.alternatives.len() { answer } else { 0 };
        let only_loop = point.alternatives.len() == 1 && point.alternatives[0].is_loop();
        if !only_loop {
            self.note(point, taken);
        }
        taken
    }

    fn observes(&self) -> bool {
        self.inner.observes()
    }

    fn has_run(&mut self, touched: Accesses, changed: bool) {
        self.inner.has_run(touched, changed);
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.inner.forced_step(point);
        self.note(point, 0);
    }

    fn pick(&mut self, n: usize, what: &'static str) -> usize {
        self.inner.pick(n, what)
    }
}

/// What became of departures that were to be taken again.
#[derive(Clone, Debug, Default)]
pub struct Fit {
    /// Those that have not been taken: their places never came, or what they take was not possible there.
    pub missed: Vec<Departure>,
    /// Those that came later than written, because the loop had other events than when they were written.
    pub moved: Vec<Departure>,
}

/// Takes departures again, QEMU's order everywhere else.
///
/// The number of events is the only part of a departure that a change of unrelated code may alter; where what is
/// to come is not possible after that many, it comes as soon as it is, before any other arrival.
pub struct Replay {
    fit: Rc<RefCell<Fit>>,
    place: Place,
}

impl Replay {
    /// Replays `departures`; the list that is returned tells at the end what has not fitted.
    pub fn new(departures: &[Departure]) -> (Replay, Rc<RefCell<Fit>>) {
        let fit = Rc::new(RefCell::new(Fit { missed: departures.to_vec(), moved: Vec::new() }));
        (Replay { fit: fit.clone(), place: Place::default() }, fit)
    }

    /// Is told that something else came than it had decided.
    pub(super) fn instead(&mut self, before: Place, point: &ChoicePoint<'_>, taken: usize) {
        self.place = before;
        self.place.advance(point, taken);
    }

    /// Where the run is.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn decide(&self, point: &ChoicePoint<'_>) -> usize {
        let mut fit = self.fit.borrow_mut();
        let idle = !point.alternatives[0].is_loop();
        let Some(index) = fit.missed.iter().position(|due| self.place.is_at(due, point)) else { return 0 };
        let wanted = &fit.missed[index].take;
        let found = (0..point.alternatives.len()).find(|i| self.place.is(point, *i, wanted));
        if found.is_some() {
            let taken = fit.missed.remove(index);
            if taken.events.is_some_and(|events| idle || self.place.events != events) {
                fit.moved.push(taken);
            }
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
