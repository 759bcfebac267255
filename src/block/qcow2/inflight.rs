//! Allocating writes in flight: who waits for whom.
//!
//! From the moment clusters are allocated until the L2 table refers to them, a write is on the
//! image's list of running allocations; writes to the same clusters wait for it. QEMU's source:
//! `QCowL2Meta` and `handle_dependencies` in `block/qcow2-cluster.c`.

use std::rc::Rc;

use crate::block::Block;
use crate::sim::shared::Cell;
use crate::sim::{CoMutexGuard, WaitQueue};

use super::Qcow2;

/// A run of clusters that a write allocates, or takes out of the zero state; all offsets in bytes.
pub(super) struct Allocation {
    /// Guest offset of the first cluster.
    pub(super) guest: u64,
    /// Host offset of the first cluster.
    pub(super) host: u64,
    /// Clusters.
    pub(super) clusters: u64,
    /// The clusters were allocated before and stay so if the write fails.
    pub(super) keeps_clusters: bool,
    /// Old content in front of the written data: begin and end, relative to `guest`.
    pub(super) head: (u64, u64),
    /// Old content behind the written data, likewise.
    pub(super) tail: (u64, u64),
    /// Head and tail are filled already.
    pub(super) cow_done: Cell<bool>,
    /// Writes that wait for this one.
    pub(super) waiters: WaitQueue,
}

impl Allocation {
    /// Whether there is old content to carry over.
    pub(super) fn has_cow(&self) -> bool {
        self.head.0 < self.head.1 || self.tail.0 < self.tail.1
    }

    /// Guest offset at which old content begins.
    pub(super) fn cow_start(&self) -> u64 {
        self.guest + self.head.0
    }

    /// Guest offset at which old content ends.
    pub(super) fn cow_end(&self) -> u64 {
        self.guest + self.tail.1
    }
}

/// How a write may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dependency {
    /// At once, over this many bytes.
    Free(u64),
    /// It slept; what it knows about the tables is out of date.
    Slept,
    /// Not in this round: it holds allocations of its own and must not sleep on others.
    Blocked,
}

impl Qcow2 {
    /// Shortens a write to what no running allocation covers; sleeps, with the lock released, on
    /// one that covers its beginning.
    pub(super) async fn wait_for_dependencies<'a>(
        &'a self,
        block: &'a Rc<Block>,
        guest: u64,
        bytes: u64,
        holds_allocations: bool,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Dependency {
        let mut free = bytes;
        let mut blocker = None;
        if self.in_flight.borrow().is_empty() {
            return Dependency::Free(bytes);
        }
        for other in self.in_flight.borrow().iter().rev() {
            let end = guest + free;
            let start_of_other = self.geo.cluster_start(other.cow_start());
            let end_of_other = other.cow_end().next_multiple_of(self.geo.cluster_size());
            if end <= start_of_other || guest >= end_of_other {
                continue;
            }
            // Clusters that were allocated already only conflict where old content is moved.
            if other.keeps_clusters && (end <= other.cow_start() || guest >= other.cow_end()) {
                continue;
            }
            if guest < start_of_other {
                free = start_of_other - guest;
                continue;
            }
            blocker = Some(other.clone());
            break;
        }
        let Some(blocker) = blocker else { return Dependency::Free(free) };
        if holds_allocations {
            return Dependency::Blocked;
        }
        // Enter the queue before letting go of the lock, as QEMU does: nothing runs in between.
        let woken = blocker.waiters.wait(&block.sim, "an allocating write to the same cluster");
        let mut woken = std::pin::pin!(woken);
        let mut entered = false;
        std::future::poll_fn(|context| {
            let polled = woken.as_mut().poll(context);
            if !std::mem::replace(&mut entered, true) {
                *locked = None;
            }
            polled
        })
        .await;
        *locked = Some(self.lock(block).await);
        Dependency::Slept
    }

    /// Takes allocations off the list and wakes those who wait for them.
    pub(super) fn retire(&self, block: &Block, allocation: &Rc<Allocation>) {
        self.in_flight.borrow_mut().retain(|other| !Rc::ptr_eq(other, allocation));
        allocation.waiters.wake_all(&block.sim);
    }
}
