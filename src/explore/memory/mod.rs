//! What a search remembers of its runs, so that it need not make a run again whose end it knows.
//!
//! A *place* is a point of a run where the strategy is asked; a *step* is an event that was taken there, with what the
//! judges saw meanwhile, and leads to another place or to an end with its verdict. Runs that have had the same events
//! so far, with those that conflict in the same order, are at the same place, whichever way they came (happens-before
//! caching: Musuvathi, Qadeer, "Partial-order reduction for context-bounded state exploration", MSR-TR-2007-12).
//! [`Walk`] lets a run go through what is remembered and makes only what is not. Most steps are known before a run has
//! taken them: what an event has done once it does wherever its past is the same (`executions.rs`).
//!
//! Must never change a verdict: a search that remembers and one that does not say the same of every run
//! (`tests/memory.rs`).

mod executions;
mod footprints;
mod share;
mod walk;

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::sim::access::{Accesses, mix};
use crate::sim::{Alternative, ChoicePoint, Footprint, Queues, TaskId};

use super::model::{Mark, Seen, Violation};
use executions::Executions;
use footprints::Footprints;

pub use share::{Share, SharedMemory};
pub use walk::Walk;

/// So many steps are remembered at most, of some hundreds of bytes each.
const STEPS: usize = 600_000;

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// A hash of what it left.
    pub state: u64,
    /// What it broke.
    pub violations: Vec<Violation>,
}

/// Which events have come, and in which order those that conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Class {
    digest: u64,
    /// Events of the loop's own among them.
    loops: u64,
    /// The loop has looked at a condition since, in vain.
    looked: bool,
}

impl Class {
    /// The class after an event with this identity; `changed`: it was more than a look.
    fn after(self, event: u64, identity: u64, changed: bool) -> Class {
        if !changed {
            return Class { looked: true, ..self };
        }
        let digest = self.digest.wrapping_add(identity);
        Class { digest, loops: self.loops + u64::from(event == 0), looked: false }
    }

    /// The name that an event has in the whole run if it comes next; the loop's own are counted.
    fn name_of_next(self, event: u64) -> u64 {
        if event == 0 { self.loops + 1 } else { event }
    }
}

/// A point of a run where the strategy is asked.
struct Place {
    class: Class,
    /// What is possible, by its number among the memory's lists.
    list: u32,
    closed: bool,
    queues: Queues,
    /// The events that were taken here: name, step, where it leads to.
    steps: SmallVec<[(u64, u32, To); 2]>,
}

/// What is possible at some places.
struct Possible {
    alternatives: Box<[Alternative]>,
    /// Who takes each, by its number among the memory's names.
    actors: Box<[u32]>,
}

impl Possible {
    fn has(&self, event: u64) -> bool {
        self.alternatives.iter().any(|one| one.event == event)
    }

    fn each(&self) -> impl Iterator<Item = (Alternative, u32)> {
        self.alternatives.iter().copied().zip(self.actors.iter().copied())
    }
}

/// Where a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Place(u32),
    End(u32),
}

/// An event that was taken at a place.
struct Step {
    /// Where it was taken; none: it is what happens before the first point.
    from: Option<u32>,
    /// Its name; 0: the loop's own.
    event: u64,
    to: To,
    /// What it touched, if it was more than a look.
    touched: Option<u32>,
    /// Which event it is, with its past.
    identity: u64,
    /// The number of what the judges saw.
    seen: u32,
}

/// What a run has done since the last point.
struct Done {
    /// The place and the event that was taken there; none: it is what happens before the first point.
    from: Option<(u32, u64)>,
    /// None: it was not recorded.
    touched: Option<Accesses>,
    changed: bool,
    seen: Seen,
}

/// See the module's text.
pub struct Memory {
    /// Strategies look at the order in which events stand at a point, not only at which there are.
    ordered: bool,
    /// What is taken again is compared with what is remembered of it.
    checks: bool,
    places: Vec<Place>,
    /// For each place where the judges stand there.
    marks: Vec<Mark>,
    /// There are far fewer lists of what is possible than places.
    lists: Vec<Possible>,
    by_list: BTreeMap<u64, u32>,
    steps: Vec<Step>,
    ends: Vec<Verdict>,
    /// What the judges have seen during steps, from where each began.
    seen: Vec<Seen>,
    by_class: BTreeMap<u64, u32>,
    footprints: Footprints,
    executions: Executions,
    /// What happens before the first point.
    begin: Option<u32>,
    /// Where the judges stand then.
    start: Mark,
    /// What actors are called.
    names: Vec<Box<str>>,
}

impl Memory {
    /// Nothing is remembered. `ordered`: the strategy looks at the order of what is possible.
    pub fn new(ordered: bool) -> Memory {
        Memory {
            ordered,
            checks: false,
            places: Vec::new(),
            marks: Vec::new(),
            lists: Vec::new(),
            by_list: BTreeMap::new(),
            steps: Vec::new(),
            ends: Vec::new(),
            seen: Vec::new(),
            by_class: BTreeMap::new(),
            footprints: Footprints::default(),
            executions: Executions::default(),
            begin: None,
            start: Mark::default(),
            names: Vec::new(),
        }
    }

    /// The same, kept whatever it costs: what a run takes again on its way to something new must touch what it touched the
    /// first time.
    pub fn checking(ordered: bool) -> Memory {
        Memory { checks: true, ..Memory::new(ordered) }
    }

    fn is_full(&self) -> bool {
        self.steps.len() >= STEPS
    }

    /// The step that an event is at a place, or what happens before the first one.
    fn after(&self, from: Option<(u32, u64)>) -> Option<u32> {
        let Some((place, event)) = from else { return self.begin };
        let steps = &self.places[place as usize].steps;
        steps.iter().find(|(name, ..)| *name == event).map(|(_, step, _)| *step)
    }

    fn add_step(&mut self, step: Step) -> u32 {
        let number = self.steps.len() as u32;
        match step.from {
            Some(place) => self.places[place as usize].steps.push((step.event, number, step.to)),
            None => self.begin = Some(number),
        }
        self.steps.push(step);
        number
    }

    /// Remembers what a run has done, which is at a point now. `before`: the events before, by their identity and what
    /// they touched; `mark`: where the judges stand.
    fn remember(&mut self, done: Done, before: &[(u64, u32)], point: &ChoicePoint<'_>, mark: Mark) -> u32 {
        let seen = self.add_seen(done.seen);
        let Some((from, event)) = done.from else {
            let to = To::Place(self.place_at(Class::default(), point, mark));
            return self.add_step(Step { from: None, event: 0, to, touched: None, identity: 0, seen });
        };
        let touched = self.footprints.number(done.touched.unwrap_or_else(Accesses::everything));
        let class = self.places[from as usize].class;
        let name = class.name_of_next(event);
        let past = self.past(before, name, touched);
        let class = class.after(event, past.identity, done.changed);
        let to = self.place_at(class, point, mark);
        let own = done.changed.then_some(touched);
        let step = Step { from: Some(from), event, to: To::Place(to), touched: own, identity: past.identity, seen };
        self.note(name, &past, touched, &step, done.changed);
        self.add_step(step)
    }

    fn add_seen(&mut self, seen: Seen) -> u32 {
        self.seen.push(seen);
        self.seen.len() as u32 - 1
    }

    /// What was seen in a step, and where that began.
    fn seen_in(&self, step: u32) -> (&Seen, &Mark) {
        let Step { from, seen, .. } = &self.steps[step as usize];
        let mark = from.map_or(&self.start, |place| &self.marks[place as usize]);
        (&self.seen[*seen as usize], mark)
    }

    /// What is possible at a place.
    fn possible(&self, place: u32) -> &Possible {
        &self.lists[self.places[place as usize].list as usize]
    }

    /// All of what is possible that a strategy sees, as a number.
    fn name_of_list(&self, alternatives: &[Alternative]) -> u64 {
        if !self.ordered {
            return alternatives.iter().fold(0, |sum, one| sum.wrapping_add(mix(one.event, 1)));
        }
        let length = alternatives.len() as u64;
        alternatives.iter().fold(length, |name, one| {
            let Footprint { object, offset, bytes, writes, task, .. } = one.footprint;
            let task = task.map_or(0, TaskId::number);
            let range = mix(offset, bytes << 1 | u64::from(writes));
            mix(mix(name, one.event), mix(one.due, mix(u64::from(object) ^ task, range)))
        })
    }

    /// The place at which a run is.
    fn place_at(&mut self, class: Class, point: &ChoicePoint<'_>, mark: Mark) -> u32 {
        let name = self.name_of_list(point.alternatives);
        let list = self.by_list.get(&name).copied().unwrap_or_else(|| {
            let actors = (0..point.alternatives.len()).map(|index| self.name_of(&point.actor(index))).collect();
            self.add_list(name, Possible { alternatives: point.alternatives.into(), actors })
        });
        let place =
            self.add_place(Place { class, list, closed: point.closed, queues: point.queues, steps: SmallVec::new() });
        self.stands_at(place, mark);
        place
    }

    fn add_list(&mut self, name: u64, possible: Possible) -> u32 {
        let number = self.lists.len() as u32;
        self.lists.push(possible);
        self.by_list.insert(name, number);
        number
    }

    /// The number of a place, which may be known already.
    fn add_place(&mut self, place: Place) -> u32 {
        let Class { digest, loops, looked } = place.class;
        let number = self.places.len() as u32;
        let known = *self
            .by_class
            .entry(mix(mix(digest, loops << 1 | u64::from(looked)), u64::from(place.list)))
            .or_insert(number);
        if known == number {
            self.places.push(place);
        }
        known
    }

    /// The judges stand there at a place.
    fn stands_at(&mut self, place: u32, mark: Mark) {
        match self.marks.get(place as usize) {
            Some(known) => assert!(!self.checks || *known == mark, "the judges stand elsewhere at a known place"),
            None => self.marks.push(mark),
        }
    }

    /// The number of an actor's name. There are few.
    fn name_of(&mut self, actor: &str) -> u32 {
        let known = self.names.iter().position(|name| **name == *actor);
        if known.is_none() {
            self.names.push(actor.into());
        }
        known.unwrap_or(self.names.len() - 1) as u32
    }

    fn add_end(&mut self, verdict: Verdict) -> u32 {
        // Most runs end well, in one of a few states.
        let known = self.ends.iter().position(|other| *other == verdict);
        let end = known.unwrap_or(self.ends.len());
        if known.is_none() {
            self.ends.push(verdict);
        }
        end as u32
    }
}
