//! Tracked requests of a node: who waits for whom when ranges overlap.
//!
//! Ordinary requests are not ordered against each other; only a serialising one (padded to the
//! node's alignment, or asked to be so) waits for, and holds off, what overlaps it. QEMU's source:
//! tracked requests in `block/io.c`.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::access::Mode;
use crate::sim::shared::{Cell, Counter, RefCell};
use crate::sim::{Sim, WaitQueue};

struct Tracked {
    id: u64,
    offset: u64,
    end: u64,
    serialising: bool,
    /// It waits itself, so that nobody may wait for it (two would wait for each other).
    waits: bool,
    waiters: Option<Rc<WaitQueue>>,
}

/// The requests in flight on one node.
#[derive(Default)]
pub struct Tracker {
    /// By number, as they begin.
    requests: RefCell<Vec<Tracked>>,
    serialising: Cell<u32>,
    /// Serialising ones may come, though the node has no blocks that requests must fill.
    expected: Cell<bool>,
    next: Counter<u64>,
}

/// A request in flight; leaves the list when dropped.
pub struct TrackedRequest<'a> {
    tracker: &'a Tracker,
    sim: &'a Sim,
    id: u64,
}

impl Tracker {
    /// Says that serialising requests will come (`BDRV_REQ_SERIALISING`).
    pub fn expect_serialising(&self) {
        self.expected.set(true);
    }

    /// Enters a request into the list. `align`: what requests of the node must fill, bytes; those that do not are padded,
    /// and serialising.
    pub fn begin<'a>(&'a self, sim: &'a Sim, offset: u64, bytes: u64, align: u64) -> TrackedRequest<'a> {
        let id = self.next.ticket(1);
        let end = offset.saturating_add(bytes);
        // Ordinary requests do not mind each other; who looks for conflicts minds the range, and which is the newest.
        self.requests.note(offset, end, Mode::Add);
        if align > 1 || self.expected.get() {
            self.requests.note_order(Mode::Write);
        }
        self.requests.borrow_part_mut().push(Tracked {
            id,
            offset,
            end,
            serialising: false,
            waits: false,
            waiters: None,
        });
        TrackedRequest { tracker: self, sim, id }
    }

    /// Takes over a request that another task has begun and handed over.
    pub fn adopt<'a>(&'a self, sim: &'a Sim, handed: HandedOver) -> TrackedRequest<'a> {
        TrackedRequest { tracker: self, sim, id: handed.0 }
    }

    /// Whether some request in flight may make others wait.
    pub fn has_serialising(&self) -> bool {
        self.serialising.get() > 0
    }

    fn conflict(&self, id: u64) -> Option<Rc<WaitQueue>> {
        let mut requests = self.requests.borrow_mut();
        let me = requests.iter().find(|r| r.id == id)?;
        let (offset, end, serialising) = (me.offset, me.end, me.serialising);
        // Newest first, as in QEMU's list.
        let other = requests
            .iter_mut()
            .rev()
            .find(|r| r.id != id && !r.waits && (serialising || r.serialising) && r.offset < end && offset < r.end)?;
        Some(other.waiters.get_or_insert_with(Rc::default).clone())
    }
}

/// A request in flight that nobody holds for the moment; [`Tracker::adopt`] takes it over.
pub struct HandedOver(u64);

impl TrackedRequest<'_> {
    /// Leaves the request in the list for another task.
    pub fn hand_over(self) -> HandedOver {
        let id = self.id;
        std::mem::forget(self);
        HandedOver(id)
    }

    /// Makes the request serialising over its range widened to `align`.
    pub fn serialise(&self, align: u64) {
        let mut requests = self.tracker.requests.borrow_mut();
        if let Some(me) = requests.iter_mut().find(|r| r.id == self.id) {
            me.offset -= me.offset % align;
            me.end = me.end.next_multiple_of(align);
            if !me.serialising {
                me.serialising = true;
                self.tracker.serialising.set(self.tracker.serialising.get() + 1);
            }
        }
    }

    /// Waits until nothing in flight conflicts; with `no_wait` a conflict is EBUSY.
    pub async fn wait(&self, no_wait: bool) -> Res<()> {
        if self.tracker.serialising.get() == 0 {
            return Ok(());
        }
        while let Some(queue) = self.tracker.conflict(self.id) {
            if no_wait {
                return Err(Errno::EBUSY);
            }
            self.set_waits(true);
            queue.wait(self.sim, "an overlapping request").await;
            self.set_waits(false);
        }
        Ok(())
    }

    fn set_waits(&self, waits: bool) {
        let mut requests = self.tracker.requests.borrow_mut();
        if let Some(me) = requests.iter_mut().find(|r| r.id == self.id) {
            me.waits = waits;
        }
    }
}

impl Drop for TrackedRequest<'_> {
    fn drop(&mut self) {
        let mut requests = self.tracker.requests.borrow_part_mut();
        let Ok(index) = requests.binary_search_by_key(&self.id, |request| request.id) else { return };
        let me = requests.remove(index);
        drop(requests);
        let alone = !me.serialising && me.waiters.is_none();
        self.tracker.requests.note(me.offset, me.end, if alone { Mode::Add } else { Mode::Write });
        if me.serialising {
            self.tracker.serialising.set(self.tracker.serialising.get() - 1);
        }
        if let Some(waiters) = me.waiters {
            waiters.wake_all(self.sim);
        }
    }
}
