//! What is asked of the outside: devices that complete requests, timers, the patience of a client.
//!
//! Each makes an arrival for the loop (`poll.rs`) and waits for it. Nothing here may decide when one is delivered.

use super::Nanos;
use super::arrivals::{ArrivalKey, Arrives, Class};
use super::choices::Footprint;
use super::executor::{Sim, TaskId};
use super::shared::Cell;

impl Sim {
    /// Yields until a device has done something that takes `latency` ns.
    pub async fn device(&self, latency: Nanos, footprint: Footprint) {
        self.completion(Class::Completion, latency, footprint).await;
    }

    /// Yields until a device has made durable what it holds, which takes `latency` ns. A real disk takes longer for that
    /// than a client for its next command: of what is due at the same time it comes last, but not after more than a
    /// few rounds of other requests.
    pub async fn device_sync(&self, latency: Nanos, footprint: Footprint) {
        self.completion(Class::Durable, latency, footprint).await;
    }

    async fn completion(&self, class: Class, latency: Nanos, mut footprint: Footprint) {
        let Some(me) = self.current() else { return };
        footprint.task = Some(me);
        let at = self.now().saturating_add(latency);
        if self.comes_at_once(me, at, class) {
            return;
        }
        self.0.events.borrow_mut().arrive(at, class, Arrives::Wake(me), footprint);
        self.park("the device").await;
    }

    /// Spares a coroutine the way to the loop and back where the loop could do nothing but to come back with what is
    /// asked for here: nothing else is pending, or not before it, and nobody but the loop waits for the coroutine to
    /// yield. Whoever watches a run sees the loop do it.
    fn comes_at_once(&self, me: TaskId, at: Nanos, class: Class) -> bool {
        // The monitor's turn, then the arrival.
        let steps = self.0.steps.get() + 2;
        let goes_to_loop = self.0.from_loop.get() == Some(me) && !self.has_woken(me);
        if !goes_to_loop || steps > self.0.step_limit.get() || self.is_watched() {
            return false;
        }
        let mut events = self.0.events.borrow_mut();
        let Some((key, event)) = events.take_at_once(at, class) else { return false };
        self.0.steps.set(steps);
        self.0.work.set(0);
        self.begin_arrival(&mut events, key, event);
        true
    }

    /// Runs `f` from the loop at time `at` (a timer's callback).
    pub fn timer(&self, at: Nanos, f: impl FnOnce() + 'static) {
        let what = Arrives::Call(Box::new(f));
        self.0.events.borrow_mut().arrive(at.max(self.now()), Class::Timer, what, Footprint::named("timer"));
    }

    /// Like [`Sim::timer`], for the patience of a client: exploration never lets it run out while anything
    /// else can still happen.
    pub fn patience(&self, at: Nanos, f: impl FnOnce() + 'static) {
        let what = Arrives::Call(Box::new(f));
        self.0.events.borrow_mut().arrive(at.max(self.now()), Class::Patience, what, Footprint::named("patience"));
    }

    /// Sleeps on the virtual clock.
    pub async fn sleep(&self, ns: Nanos) {
        Sleeper::default().sleep(self, ns).await;
    }
}

/// A sleep that somebody else can end early (`QemuCoSleep`).
#[derive(Default)]
pub struct Sleeper {
    sleeping: Cell<Option<(ArrivalKey, TaskId)>>,
}

impl Sleeper {
    /// Sleeps `ns`, or until [`Sleeper::wake`].
    pub async fn sleep(&self, sim: &Sim, ns: Nanos) {
        let Some(me) = sim.current() else { return };
        let at = sim.now().saturating_add(ns);
        let mut footprint = Footprint::named("timer");
        footprint.task = Some(me);
        let key = sim.0.events.borrow_mut().arrive(at, Class::Timer, Arrives::Wake(me), footprint);
        self.sleeping.set(Some((key, me)));
        sim.park("a timer").await;
        self.sleeping.set(None);
    }

    /// Ends the sleep now; false if nobody sleeps.
    pub fn wake(&self, sim: &Sim) -> bool {
        let Some((key, task)) = self.sleeping.take() else { return false };
        // Without its arrival the sleep has ended already and the task is on its way.
        if !sim.0.events.borrow_mut().take_back(&key) {
            return false;
        }
        sim.wake(task);
        true
    }
}
