//! A poll point of a run that is explored: what could come next, and the strategy's answer.
//!
//! Where those points are is the loop's business (`poll.rs`). Asking must never change anything.

use smallvec::SmallVec;

use super::access;
use super::arrivals::{Arrival, ArrivalKey};
use super::choices::{Alternative, ChoicePoint, Footprint, Names};
use super::executor::Sim;

/// What comes next at a poll point.
pub(super) enum Next {
    /// An arrival, and whether the loop had nothing else to do.
    Arrival(ArrivalKey, bool),
    /// The loop's own next event, or the end.
    Loop,
    /// The strategy has seen enough of this run.
    Abandoned,
}

impl Sim {
    /// Asks the strategy what comes next at a poll point.
    pub(super) fn choose_next(&self) -> Next {
        let idle_look = self.0.events.borrow_mut().end_event();
        let mut choices = self.0.choices.borrow_mut();
        if choices.observes() {
            choices.has_run(access::take(), !idle_look);
        }
        let mut keys: SmallVec<[Option<ArrivalKey>; 16]> = SmallVec::new();
        let mut alternatives: SmallVec<[Alternative; 16]> = SmallVec::new();
        // The loop's looks at its own queues here belong to no event.
        access::unseen(|| {
            let events = self.0.events.borrow();
            if !events.is_idle() {
                keys.push(None);
                let footprint = Footprint { writes: !events.can_only_look(), ..Alternative::of_loop().footprint };
                let due = events.due_later(self.now());
                alternatives.push(Alternative { footprint, due, ..Alternative::of_loop() });
            }
            for (key, arrival) in events.possible() {
                keys.push(Some(*key));
                let Arrival { footprint, event, .. } = *arrival;
                let due = events.due(key, self.now());
                alternatives.push(Alternative { footprint, sequence: key.sequence, event, due });
            }
        });
        let has_loop = alternatives.first().is_some_and(Alternative::is_loop);
        let (closed, queues) = access::unseen(|| (self.0.events.borrow().is_bare(), self.0.events.borrow().queues()));
        debug_assert_eq!(has_loop, !queues.is_idle(closed), "{queues:?}");
        let (step, names) = (self.steps(), Names::Of(self));
        let point = ChoicePoint { step, alternatives: &alternatives, closed, queues, names };
        let taken = match keys.len() {
            0 => return Next::Loop,
            1 if has_loop => choices.only_loop(&point),
            _ => choices.next_step(&point),
        };
        drop(choices);
        let Some(taken) = taken else { return Next::Abandoned };
        match keys.get(taken).copied().flatten() {
            Some(key) => Next::Arrival(key, !has_loop),
            None => {
                self.0.events.borrow_mut().begin_own_event();
                Next::Loop
            }
        }
    }
}
