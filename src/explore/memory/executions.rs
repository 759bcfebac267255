//! What events do, apart from where they come: an event does the same wherever it has the same past.
//!
//! The past of an event are the events before it that conflict with it, with their own pasts; all that it looks at was
//! left by them. So what it did once is what it does at any other place where its past is the same, whatever independent
//! events have come before it or not (Mazurkiewicz, "Trace theory", 1987; Winskel, "Event structures", 1987). Nobody
//! need make a run to see it, as long as something is known with that past.
//!
//! What is worked out here must be what a run finds (`tests/memory.rs`). The order in which events stand at a point is not
//! worked out, so strategies that look at it have nothing of this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use smallvec::SmallVec;

use crate::sim::access::mix;
use crate::sim::{Alternative, Queues};

use super::super::model::Mark;
use super::footprints::Pair;
use super::{Memory, Place, Possible, Step, To};

/// An event's past, as numbers.
pub(super) struct Past {
    /// Of the event with what conflicts with it.
    pub(super) identity: u64,
    /// The same with what counts together with it: whether the event is the last of several that something waits for.
    whole: u64,
}

/// What an event has done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Execution {
    changed: bool,
    /// Where the judges stood, and where they stand after it.
    marks: (Mark, Mark),
    /// What can come no more, and what can come now, with the number of its actor's name; without the loop's own event.
    gone: Box<[u64]>,
    made: Box<[(Alternative, u32)]>,
    /// What the loop has to do after it.
    queues: Queues,
    /// Whether it has looked at the bottom halves, and at the monitor's queue.
    uses: (bool, bool),
    /// Nothing else is like it was before: a machine ended.
    all: bool,
    seen: u32,
}

/// An event that has been seen elsewhere with the same past.
pub(super) struct Known {
    place: u32,
    event: u64,
    past: Past,
    touched: u32,
}

/// After so many questions it is seen whether they are worth their cost, which grows with the length of runs.
const TRIAL: u32 = 4096;

/// All that are known.
#[derive(Default)]
pub(super) struct Executions {
    /// Too few questions were answered.
    useless: AtomicBool,
    asked: AtomicU32,
    answered: AtomicU32,
    /// What events of a name have touched.
    footprints: BTreeMap<u64, SmallVec<[u32; 2]>>,
    /// By the whole past and what was touched.
    known: BTreeMap<(u64, u32), Execution>,
}

impl Executions {
    fn is_useless(&self) -> bool {
        self.useless.load(Ordering::Relaxed)
    }

    /// A question was asked.
    fn count(&self, answered: bool) {
        let answered = u32::from(answered) + self.answered.fetch_add(u32::from(answered), Ordering::Relaxed);
        if self.asked.fetch_add(1, Ordering::Relaxed) + 1 == TRIAL {
            self.useless.store(answered < TRIAL / 8, Ordering::Relaxed);
            self.asked.store(0, Ordering::Relaxed);
            self.answered.store(0, Ordering::Relaxed);
        }
    }
}

impl Memory {
    /// The past of an event that touches this, after those before it.
    pub(super) fn past(&self, before: &[(u64, u32)], name: u64, touched: u32) -> Past {
        let (mut conflicting, mut together) = (0u64, 0u64);
        for (identity, other) in before {
            match self.footprints.pair(*other, touched) {
                Pair::Conflict => conflicting = conflicting.wrapping_add(*identity),
                Pair::Together => together = together.wrapping_add(*identity),
                Pair::Apart => {}
            }
        }
        let identity = mix(name, conflicting);
        Past { identity, whole: mix(identity, together) }
    }

    /// Notes what an event has done that was taken at one place and led to another.
    pub(super) fn note(&mut self, name: u64, past: &Past, touched: u32, step: &Step, changed: bool) {
        let (Some(from), To::Place(to)) = (step.from, step.to) else { return };
        let is_known = self.executions.known.contains_key(&(past.whole, touched));
        if self.ordered || self.executions.is_useless() || is_known && !self.checks {
            return;
        }
        let (before, after) = (&self.places[from as usize], &self.places[to as usize]);
        if before.closed || after.closed {
            // Where only requests can come what else there is can't be seen.
            return;
        }
        let (old, new) = (self.possible(from), self.possible(to));
        let own = old.alternatives.iter().filter(|one| !one.is_loop()).map(|one| one.event);
        let gone = own.filter(|event| !new.has(*event)).collect();
        let made = new.each().filter(|(one, _)| !one.is_loop() && !old.has(one.event)).collect();
        let marks = (self.marks[from as usize].clone(), self.marks[to as usize].clone());
        let list = self.footprints.list(touched);
        let (uses, all, queues) = (list.uses_queues(), list.everything, after.queues);
        let execution = Execution { changed, marks, gone, made, queues, uses, all, seen: step.seen };
        let footprints = self.executions.footprints.entry(name).or_default();
        if !footprints.contains(&touched) {
            footprints.push(touched);
        }
        if !is_known {
            self.executions.known.insert((past.whole, touched), execution);
            return;
        }
        let known = &self.executions.known[&(past.whole, touched)];
        assert!(known.is_like(&execution), "an event with the same past does something else");
    }

    /// What `event` does at `place`, if that is known from elsewhere. `before`: the events on the way there, by their
    /// identity and what they touched.
    pub(super) fn known_by_past(&self, before: &[(u64, u32)], place: u32, event: u64) -> Option<Known> {
        let Place { class, closed, .. } = self.places[place as usize];
        if self.ordered || closed || self.executions.is_useless() || self.is_full() {
            return None;
        }
        let name = class.name_of_next(event);
        let known = self.executions.footprints.get(&name).into_iter().flatten().find_map(|touched| {
            let past = self.past(before, name, *touched);
            let is_known = self.executions.known.contains_key(&(past.whole, *touched));
            is_known.then_some(Known { place, event, past, touched: *touched })
        });
        self.executions.count(known.is_some());
        known
    }

    /// Adds the step that is known from elsewhere. None: the run may come to its end with it.
    pub(super) fn add_known(&mut self, Known { place, event, past, touched }: Known) -> Option<u32> {
        let loop_name = self.name_of(Alternative::of_loop().footprint.what);
        let execution = &self.executions.known[&(past.whole, touched)];
        let (changed, seen) = (execution.changed, execution.seen);
        let here = &self.places[place as usize];
        let (class, queues) = (here.class.after(event, past.identity, changed), execution.leaves(event, here.queues));
        let mark = self.marks[place as usize].moved(&execution.marks.0, &execution.marks.1);
        let possible = execution.then_possible(self.possible(place), queues, loop_name)?;
        let list = self.name_of_list(&possible.alternatives);
        let list = self.by_list.get(&list).copied().unwrap_or_else(|| self.add_list(list, possible));
        let there = self.add_place(Place { class, list, closed: false, queues, steps: SmallVec::new() });
        self.stands_at(there, mark);
        let (touched, identity) = (changed.then_some(touched), past.identity);
        Some(self.add_step(Step { from: Some(place), event, to: To::Place(there), touched, identity, seen }))
    }
}

impl Execution {
    /// Whether both do the same.
    fn is_like(&self, other: &Execution) -> bool {
        let made = |one: &Execution| one.made.iter().map(|(made, _)| made.event).collect::<BTreeSet<u64>>();
        let gone = |one: &Execution| one.gone.iter().copied().collect::<BTreeSet<u64>>();
        let way = |one: &Execution| one.marks.1.sum.wrapping_sub(one.marks.0.sum);
        let is_way = self.changed == other.changed && way(self) == way(other);
        is_way && made(self) == made(other) && gone(self) == gone(other)
    }

    /// What the loop has to do after the event, where it had this to do before.
    fn leaves(&self, event: u64, here: Queues) -> Queues {
        let is_own = event == 0 || self.all;
        Queues {
            framed: if is_own { self.queues.framed } else { here.framed },
            // Whatever else happens, the innermost frame looks again.
            looked: is_own && self.queues.looked,
            bottom_halves: if self.uses.0 { self.queues.bottom_halves } else { here.bottom_halves },
            monitor: if self.uses.1 { self.queues.monitor } else { here.monitor },
        }
    }

    /// What can come after it where that could come before. None: perhaps nothing, and the run has come to its end.
    fn then_possible(&self, here: &Possible, queues: Queues, loop_name: u32) -> Option<Possible> {
        let own = (!queues.is_idle(false)).then_some((Alternative::of_loop(), loop_name));
        let stays = here.each().filter(|(one, _)| !one.is_loop() && !self.gone.contains(&one.event));
        let comes = self.made.iter().copied().filter(|(one, _)| !here.has(one.event));
        let (alternatives, actors): (Vec<_>, Vec<_>) = own.into_iter().chain(stays).chain(comes).unzip();
        (!alternatives.is_empty()).then(|| Possible { alternatives: alternatives.into(), actors: actors.into() })
    }
}
