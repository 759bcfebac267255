//! Waiting for one another: wait queues and the coroutine mutex.
//!
//! Both are first-in-first-out, as QEMU's `CoQueue` and `CoMutex` are. They hold no lock on the
//! kernel while a task sleeps, and they never choose: order is the order of arrival.

use std::collections::VecDeque;

use super::executor::{Sim, TaskId};
use super::shared::{Cell, Counter, RefCell};

/// A queue of sleeping tasks (`CoQueue`).
#[derive(Default)]
pub struct WaitQueue {
    waiting: RefCell<VecDeque<TaskId>>,
}

impl WaitQueue {
    /// Sleeps until woken; `what` names the wait in deadlock reports.
    pub async fn wait(&self, sim: &Sim, what: &'static str) {
        self.wait_at(sim, usize::MAX, what).await;
    }

    /// As [`WaitQueue::wait`], with at most `place` sleepers in front.
    async fn wait_at(&self, sim: &Sim, place: usize, what: &'static str) {
        if let Some(me) = sim.current() {
            let in_front = place.min(self.waiting.borrow().len());
            self.waiting.borrow_mut().insert(in_front, me);
            sim.park(what).await;
        }
    }

    /// Wakes all sleepers in the order in which they came.
    pub fn wake_all(&self, sim: &Sim) {
        if self.is_empty() {
            return;
        }
        let sleepers = self.waiting.take();
        for id in sleepers {
            sim.wake(id);
        }
    }

    /// Wakes the oldest sleeper; false if there is none.
    pub fn wake_one(&self, sim: &Sim) -> bool {
        if self.is_empty() {
            return false;
        }
        let first = self.waiting.borrow_mut().pop_front();
        if let Some(id) = first {
            sim.wake(id);
        }
        first.is_some()
    }

    /// Whether nobody sleeps here.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

/// How many tasks are still under way that one other waits for. Only the last one wakes it, so the order in which
/// they end makes no difference to anybody.
pub struct Countdown {
    left: Counter<usize>,
    waiter: TaskId,
}

impl Countdown {
    /// `waiter` waits for so many.
    pub fn new(left: usize, waiter: TaskId) -> Countdown {
        let counter = Counter::default();
        counter.add(left);
        Countdown { left: counter, waiter }
    }

    /// One of them is over.
    pub fn done(&self, sim: &Sim) {
        let last = self.left.sub_to_zero(1);
        sim.wake_if(self.waiter, last);
    }

    /// Whether all are over, for the waiter.
    pub fn is_over(&self) -> bool {
        self.left.awaited() == 0
    }
}

/// A fair mutex for coroutines (`CoMutex`): unlocking hands it to the oldest waiter.
#[derive(Default)]
pub struct CoMutex {
    locked: Cell<bool>,
    queue: WaitQueue,
}

impl CoMutex {
    /// Locks, sleeping in a queue while another task holds it.
    pub async fn lock<'a>(&'a self, sim: &'a Sim, what: &'static str) -> CoMutexGuard<'a> {
        if self.locked.replace(true) {
            // The unlocker leaves `locked` set: ownership passes with the wake-up.
            self.queue.wait(sim, what).await;
        }
        CoMutexGuard { mutex: self, sim }
    }

    /// As [`CoMutex::lock`], with only `place` waiters in front: for one whose turn in the queue has been taken by the
    /// present holder, which did not use it.
    pub async fn lock_at<'a>(&'a self, sim: &'a Sim, place: usize, what: &'static str) -> CoMutexGuard<'a> {
        if self.locked.replace(true) {
            self.queue.wait_at(sim, place, what).await;
        }
        CoMutexGuard { mutex: self, sim }
    }

    /// Whether somebody holds it.
    pub fn is_locked(&self) -> bool {
        self.locked.get()
    }
}

/// Holds a [`CoMutex`] until dropped.
pub struct CoMutexGuard<'a> {
    mutex: &'a CoMutex,
    sim: &'a Sim,
}

impl Drop for CoMutexGuard<'_> {
    fn drop(&mut self) {
        if !self.mutex.queue.wake_one(self.sim) {
            self.mutex.locked.set(false);
        }
    }
}
