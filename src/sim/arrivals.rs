//! Arrivals: what comes from outside QEMU, in the order in which the loop takes it by itself.
//!
//! Only the queue; `poll.rs` decides when an arrival is delivered. A run has few arrivals pending at a time, and looks
//! at all of them at each decision, so they lie side by side. The order must depend on nothing but the keys.

use std::collections::VecDeque;

use super::Nanos;
use super::choices::Footprint;
use super::executor::TaskId;

/// Order among arrivals at the same time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A device has done something.
    Completion,
    /// A timer has expired.
    Timer,
    /// A client or guest goes on.
    Actor,
    /// A device has made durable what it holds.
    Durable,
    /// How long a client waits before it gives up: the last thing to happen, never chosen early.
    Patience,
}

/// Where an arrival stands among those that are due; in this order the loop takes them by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ArrivalKey {
    /// When it is due, ns.
    pub(super) at: Nanos,
    pub(super) class: Class,
    /// Completions: how many rounds of completions had been delivered when the request was made; else 0. What was
    /// asked for between two rounds is found complete by one poll. For what is made durable, how many rounds there will
    /// have been when it is due even if other things are.
    pub(super) round: u64,
    /// Within a round the newest request is told first, as QEMU's thread pool does (`util/thread-pool.c`); all
    /// else comes in the order in which it was asked for.
    pub(super) place: u64,
    /// Counts all arrivals of the run, from 1; 0 is the loop itself.
    pub(super) sequence: u64,
}

/// What happens when it arrives.
pub(super) enum Arrives {
    Wake(TaskId),
    Actor(TaskId),
    Call(Box<dyn FnOnce()>),
}

/// Something that is to come.
pub(super) struct Arrival {
    pub(super) what: Arrives,
    pub(super) footprint: Footprint,
    /// See [`super::Alternative::event`].
    pub(super) event: u64,
}

/// What is to come, in the order of the keys.
#[derive(Default)]
pub(super) struct Arrivals(VecDeque<(ArrivalKey, Arrival)>);

impl Arrivals {
    /// Adds one; no two have the same key.
    pub(super) fn insert(&mut self, key: ArrivalKey, arrival: Arrival) {
        let place = self.0.partition_point(|(other, _)| *other < key);
        self.0.insert(place, (key, arrival));
    }

    /// Takes one out, if it is still to come. It is nearly always among the first.
    pub(super) fn remove(&mut self, key: &ArrivalKey) -> Option<Arrival> {
        let place = self.0.iter().position(|(other, _)| other.sequence == key.sequence)?;
        self.0.remove(place).map(|(_, arrival)| arrival)
    }

    /// So many rounds of completions have been delivered: what has been made durable meanwhile is one of them now.
    pub(super) fn promote(&mut self, round: u64) {
        while let Some(place) = self.0.iter().position(|(key, _)| key.class == Class::Durable && key.round <= round) {
            let Some((mut key, arrival)) = self.0.remove(place) else { return };
            key.class = Class::Completion;
            self.insert(key, arrival);
        }
    }

    /// The one that the loop would take.
    pub(super) fn first(&self) -> Option<ArrivalKey> {
        self.0.front().map(|(key, _)| *key)
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(ArrivalKey, Arrival)> {
        self.0.iter()
    }

    /// Forgets all but those of actors: the process that waited for the others is gone.
    pub(super) fn keep_actors(&mut self) {
        self.0.retain(|(key, _)| key.class == Class::Actor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(at: Nanos, class: Class, place: u64) -> ArrivalKey {
        ArrivalKey { at, class, round: 0, place, sequence: place }
    }

    #[test]
    fn time_decides_then_class_then_place() {
        let mut arrivals = Arrivals::default();
        let order = [
            key(1, Class::Actor, 9),
            key(2, Class::Completion, 3),
            key(2, Class::Completion, 7),
            key(2, Class::Timer, 1),
            key(2, Class::Actor, 2),
        ];
        for index in [3, 0, 4, 2, 1] {
            let what = Arrives::Call(Box::new(|| ()));
            arrivals.insert(order[index], Arrival { what, footprint: Footprint::named("test"), event: 0 });
        }
        let sequences = |arrivals: &Arrivals| arrivals.iter().map(|(key, _)| key.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(&arrivals), [9, 3, 7, 1, 2]);
        assert!(arrivals.remove(&order[2]).is_some());
        assert!(arrivals.remove(&order[2]).is_none(), "it has been taken out already");
        arrivals.keep_actors();
        assert_eq!(sequences(&arrivals), [9, 2]);
    }

    #[test]
    fn a_flush_comes_after_clients_until_its_rounds_have_gone_by() {
        let mut arrivals = Arrivals::default();
        let keys = [
            key(1, Class::Actor, 1),
            ArrivalKey { round: 2, ..key(1, Class::Durable, 2) },
            ArrivalKey { round: 3, ..key(1, Class::Completion, 3) },
        ];
        for key in keys {
            let what = Arrives::Call(Box::new(|| ()));
            arrivals.insert(key, Arrival { what, footprint: Footprint::named("test"), event: 0 });
        }
        let sequences = |arrivals: &Arrivals| arrivals.iter().map(|(key, _)| key.sequence).collect::<Vec<_>>();
        arrivals.promote(1);
        assert_eq!(sequences(&arrivals), [3, 1, 2]);
        arrivals.promote(2);
        assert_eq!(sequences(&arrivals), [2, 3, 1]);
    }
}
