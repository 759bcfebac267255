//! Rows of zero writes: what a row of chunks on cached metadata does, done in one go.
//!
//! Block-copy clears large areas chunk by chunk, as QEMU does; each chunk that only changes cached L2 entries begins
//! and ends without a yield. Here is what makes that certain, from the node down to the table. Anything that could
//! tell a row from its chunks (a fault rule, a reader of the trace, a serialising request) must end it.

use std::future::Future;
use std::rc::Rc;

use crate::errno::Res;

use super::backend::InFlight;
use super::graph::Block;
use super::node::{Driver, Node, NodeId};
use super::qcow2::Qcow2;
use super::track::HandedOver;

/// When a zero write that only changes cached L2 entries has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// As soon as it begins.
    Now,
    /// When those have ended that hold the image's lock, or wait for it.
    Queued,
}

/// Zero writes of a node, one behind the other: where they begin, bytes of each, how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) node: NodeId,
    pub(super) offset: u64,
    pub(super) chunk: u64,
    pub(super) count: usize,
}

impl Row {
    /// Where the row's `n`th write begins.
    pub(super) fn start(&self, n: usize) -> u64 {
        self.offset + n as u64 * self.chunk
    }
}

/// A write of a row whose turn had come, but which can't end at once.
pub(super) struct Waiter {
    row: Row,
    image: Rc<Qcow2>,
    /// Its number in the row.
    pub(super) number: usize,
    place: usize,
    request: HandedOver,
}

impl Block {
    /// When zero writes of the node have their turn that are seen by nobody who does not read the trace; `None` if there
    /// may be somebody.
    pub(super) fn turn_of_zeroes(&self, node: NodeId) -> Option<Turn> {
        let node = self.node(node);
        let image = plain_image(&node)?;
        let is_plain = matches!(&*self.node(image.file()).driver.borrow(), Driver::File(_));
        let is_writable = !node.is_read_only() && !node.any_bitmap_readonly();
        let is_recorded = node.records_up_to(node.length.get());
        if !is_plain || !is_writable || !is_recorded || node.tracker.has_serialising() {
            return None;
        }
        Some(if image.is_locked() { Turn::Queued } else { Turn::Now })
    }

    /// Zero writes of `chunk` bytes each from `offset` on, `bytes` at most: as many as end at once, in one piece.
    /// Returns how many bytes that were, a multiple of `chunk`. Only where it is [`Turn::Now`].
    pub(super) fn zero_row(&self, node: NodeId, offset: u64, bytes: u64, chunk: u64) -> u64 {
        let node = self.node(node);
        let Some(image) = plain_image(&node) else { return 0 };
        zero_row(&node, &image, offset, bytes, chunk)
    }

    /// A row of zero writes that wait for the image's lock, one behind the other; nobody can come between them, and when
    /// the first has its turn the others follow without a yield. Those of which that is not true after all are handed
    /// to `start`, in order: it starts a task for each that awaits [`Block::zero_waiter`]. `end` hears the numbers of
    /// those that have ended, the last first: of tasks of their own each would go on with the next before it woke
    /// anybody. Only where it is [`Turn::Queued`].
    pub(super) async fn zero_queued_row(
        self: &Rc<Self>,
        row: Row,
        mut start: impl FnMut(Waiter),
        mut end: impl FnMut(usize),
    ) {
        let node = self.node(row.node);
        let image = plain_image(&node).expect("a row is begun where the node has been found fit for one");
        let _in_flight = InFlight::new(&node.in_flight);
        let align = self.request_alignment(&node);
        let begin = |n| node.tracker.begin(&self.sim, row.start(n), row.chunk, align);
        let mut requests: Vec<_> = (0..row.count).map(begin).collect();
        let locked = image.lock(self).await;
        let mut done = 0;
        while done < row.count {
            let bytes = (row.count - done) as u64 * row.chunk;
            match zero_row(&node, &image, row.start(done), bytes, row.chunk) {
                0 => break,
                bytes => done += (bytes / row.chunk) as usize,
            }
        }
        for (place, request) in requests.drain(done..).enumerate() {
            start(Waiter { row, image: image.clone(), number: done + place, place, request: request.hand_over() });
        }
        drop(locked);
        while let Some(request) = requests.pop() {
            drop(request);
            end(requests.len());
        }
    }

    /// The zero write of a row that has to go on by itself.
    pub(super) fn zero_waiter(self: &Rc<Self>, waiter: Waiter) -> impl Future<Output = Res<()>> + use<> {
        let (block, row) = (self.clone(), waiter.row);
        let offset = row.start(waiter.number);
        async move {
            let node = block.node(row.node);
            let _in_flight = InFlight::new(&node.in_flight);
            let _request = node.tracker.adopt(&block.sim, waiter.request);
            let result = waiter.image.zero_queued(&block, waiter.place, offset, row.chunk).await;
            block.finish_write(&node, offset, row.chunk, result);
            result
        }
    }

    /// Whether the node tells without a yield what its cached tables know of a range, the same of each part of it, and
    /// nobody sees that it was asked: no fault rule for it, no snapshot and no image that somebody has locked is on the way.
    pub(super) fn tells_at_once(&self, node: NodeId) -> bool {
        let node = self.node(node);
        let below = match &*node.driver.borrow() {
            Driver::File(_) | Driver::Null(_) => None,
            Driver::Raw(_) | Driver::CopyBeforeWrite(_) => node.primary_child(),
            Driver::Qcow2(image) => {
                if image.is_locked() || !self.tells_at_once(image.file()) {
                    return false;
                }
                node.backing()
            }
            Driver::Blkdebug(blkdebug) if blkdebug.spares_status() => node.primary_child(),
            Driver::None | Driver::Blkdebug(_) | Driver::SnapshotAccess => return false,
        };
        below.is_none_or(|below| self.tells_at_once(below))
    }
}

/// The node's driver, if it is one that has rows.
fn plain_image(node: &Node) -> Option<Rc<Qcow2>> {
    match &*node.driver.borrow() {
        Driver::Qcow2(image) if image.version() >= 3 => Some(image.clone()),
        _ => None,
    }
}

fn zero_row(node: &Node, image: &Qcow2, offset: u64, bytes: u64, chunk: u64) -> u64 {
    let bytes = bytes.min(node.length.get().saturating_sub(offset));
    let done = image.zero_row(offset, bytes, chunk);
    if done > 0 {
        node.write_generation.add(done / chunk);
        node.mark_dirty(offset, done);
    }
    done
}
