//! What a search remembers of its runs, so that it need not make a run again whose end it knows.
//!
//! A *place* is a point of a run where the strategy is asked; a *step* is an event that was taken there, with what the
//! judges saw meanwhile, and leads to another place or to an end with its verdict. Runs that have had the same events
//! so far, with those that conflict in the same order, are at the same place, whichever way they came (happens-before
//! caching: Musuvathi, Qadeer, "Partial-order reduction for context-bounded state exploration", MSR-TR-2007-12).
//! [`Walk`] lets a run go through what is remembered and makes only what is not.
//!
//! Must never change a verdict: a search that remembers and one that does not say the same of every run
//! (`tests/memory.rs`).

mod footprints;
mod walk;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use smallvec::SmallVec;

use crate::sim::access::mix;
use crate::sim::{Alternative, ChoicePoint, Footprint, TaskId};

use super::model::Violation;
use footprints::Footprints;

pub use walk::Walk;

/// So many steps are remembered at most, of some hundreds of bytes each.
const STEPS: usize = 250_000;
/// Runs after which it is seen whether remembering is worth its cost, for the first time, and again after twice, four
/// times as many and so on.
const TRIAL: u64 = 64;

/// What the judges have noted while something happened, beside violations.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Abstract states.
    pub coverage: Box<[u64]>,
    /// Pairs of a job's state and a device operation.
    pub cells: Box<[u64]>,
}

impl Seen {
    /// Takes down what was noted.
    pub fn new(coverage: BTreeSet<u64>, cells: BTreeSet<u64>) -> Seen {
        let all = |set: BTreeSet<u64>| set.into_iter().collect();
        Seen { coverage: all(coverage), cells: all(cells) }
    }

    fn add(&mut self, more: Seen) {
        let join = |own: &mut Box<[u64]>, theirs: Box<[u64]>| {
            if !theirs.is_empty() {
                *own = own.iter().chain(&*theirs).copied().collect();
            }
        };
        join(&mut self.coverage, more.coverage);
        join(&mut self.cells, more.cells);
    }
}

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

/// A point of a run where the strategy is asked.
struct Place {
    class: Class,
    alternatives: Box<[Alternative]>,
    closed: bool,
    actors: Box<[Rc<str>]>,
    /// The events that were taken here, by name.
    steps: SmallVec<[(u64, u32); 2]>,
}

/// Where a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Place(u32),
    End(u32),
}

/// An event that was taken at a place.
struct Step {
    to: To,
    /// What it touched, if it was more than a look.
    touched: Option<u32>,
    seen: Seen,
    /// The count in which what was seen has been told last.
    told: Cell<u64>,
}

impl Step {
    fn new(to: To, touched: Option<u32>, seen: Seen) -> Step {
        Step { to, touched, seen, told: Cell::new(0) }
    }
}

/// See the module's text.
pub struct Memory {
    /// Strategies look at the order in which events stand at a point, not only at which there are.
    ordered: bool,
    /// What is taken again is compared with what is remembered of it.
    checks: bool,
    useful: bool,
    places: Vec<Place>,
    steps: Vec<Step>,
    ends: Vec<Verdict>,
    by_class: BTreeMap<u64, u32>,
    footprints: Footprints,
    /// What happens before the first point.
    begin: Option<u32>,
    /// The number of the count under way.
    count: u64,
    /// All runs so far.
    runs: u64,
    lately: Lately,
    /// The share of runs without a new step, of 65,536; the last hundred count most.
    known: u32,
}

/// What the runs since the last decision have come to, of those that were made.
#[derive(Default)]
struct Lately {
    /// Their steps, and those that were new.
    steps: u64,
    new: u64,
}

impl Memory {
    /// Nothing is remembered. `ordered`: the strategy looks at the order of what is possible.
    pub fn new(ordered: bool) -> Memory {
        Memory {
            ordered,
            checks: false,
            useful: true,
            places: Vec::new(),
            steps: Vec::new(),
            ends: Vec::new(),
            by_class: BTreeMap::new(),
            footprints: Footprints::default(),
            begin: None,
            count: 0,
            runs: 0,
            lately: Lately::default(),
            known: 0,
        }
    }

    /// The same, kept whatever it costs: what a run takes again on its way to something new must touch what it touched the
    /// first time.
    pub fn checking(ordered: bool) -> Memory {
        Memory { checks: true, ..Memory::new(ordered) }
    }

    /// A new count begins: what is seen in it for the first time is told again.
    pub fn begin_count(&mut self) {
        self.count += 1;
    }

    /// Whether remembering is still worth its cost.
    pub fn is_useful(&self) -> bool {
        self.useful
    }

    /// Whether most runs have their end remembered by now.
    pub fn knows_most(&self) -> bool {
        self.known > 1 << 15
    }

    fn is_full(&self) -> bool {
        self.steps.len() >= STEPS
    }

    /// A run that has had `steps`, `new` of them, is over. Now and then it is decided whether to go on: where many steps
    /// of the runs that had to be made are new, others will seldom come to the same places either.
    fn has_run(&mut self, steps: u64, new: u64) {
        self.known = self.known - self.known / 64 + if new == 0 { 1024 } else { 0 };
        self.runs += 1;
        let lately = &mut self.lately;
        if new > 0 {
            lately.steps += steps;
            lately.new += new;
        }
        if self.runs >= TRIAL && self.runs.is_power_of_two() {
            // A new step costs several that are only made; at first more of them are new.
            let most = match self.runs / TRIAL {
                1 => lately.steps * 5 / 8,
                2..8 => lately.steps / 2,
                _ => lately.steps / 3,
            };
            self.useful = self.checks || lately.new <= most;
            *lately = Lately::default();
        }
    }

    /// The step that an event is at a place, or what happens before the first one.
    fn after(&self, from: Option<(u32, u64)>) -> Option<u32> {
        let Some((place, event)) = from else { return self.begin };
        let steps = &self.places[place as usize].steps;
        steps.iter().find(|(name, _)| *name == event).map(|(_, step)| *step)
    }

    fn add_step(&mut self, from: Option<(u32, u64)>, step: Step) -> u32 {
        let number = self.steps.len() as u32;
        self.steps.push(step);
        match from {
            Some((place, event)) => self.places[place as usize].steps.push((event, number)),
            None => self.begin = Some(number),
        }
        number
    }

    /// The place of this class where this is possible, if it is known.
    fn find(&self, class: Class, alternatives: &[Alternative]) -> Option<u32> {
        self.by_class.get(&self.name(class, alternatives)).copied()
    }

    /// Everything that decides how a run goes on from here, and what its strategy sees of that.
    fn name(&self, class: Class, alternatives: &[Alternative]) -> u64 {
        let own = mix(class.digest, class.loops << 1 | u64::from(class.looked));
        if !self.ordered {
            return alternatives.iter().fold(own, |sum, one| sum.wrapping_add(mix(one.event, 1)));
        }
        alternatives.iter().fold(own, |name, one| {
            let Footprint { object, offset, bytes, writes, task, .. } = one.footprint;
            let task = task.map_or(0, TaskId::number);
            let range = mix(offset, bytes << 1 | u64::from(writes));
            mix(mix(name, one.event), mix(one.due, mix(u64::from(object) ^ task, range)))
        })
    }

    fn add_place(&mut self, class: Class, point: &ChoicePoint<'_>) -> u32 {
        let number = self.places.len() as u32;
        let name = self.name(class, point.alternatives);
        self.by_class.insert(name, number);
        self.places.push(Place {
            class,
            alternatives: point.alternatives.into(),
            closed: point.closed,
            actors: (0..point.alternatives.len()).map(|index| point.actor(index)).collect(),
            steps: SmallVec::new(),
        });
        number
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
