//! Rows of zero writes: what a row of chunks on cached metadata does, done in one go.
//!
//! Block-copy clears large areas chunk by chunk, as QEMU does; each chunk that only changes cached L2 entries begins
//! and ends without a yield. Here is what makes that certain, from the node down to the table. Anything that could
//! tell a row from its chunks (a fault rule, a reader of the trace, a serialising request) must end it.

use super::graph::Block;
use super::node::{Driver, NodeId};

impl Block {
    /// Whether zero writes of the node that only change cached L2 entries end as soon as they begin, and are seen by
    /// nobody who does not read the trace.
    pub(super) fn zeroes_at_once(&self, node: NodeId) -> bool {
        let node = self.node(node);
        let is_free = match &*node.driver.borrow() {
            Driver::Qcow2(image) => {
                matches!(&*self.node(image.file()).driver.borrow(), Driver::File(_)) && !image.is_locked()
            }
            _ => false,
        };
        let is_writable = !node.is_read_only() && !node.any_bitmap_readonly();
        is_free && is_writable && !node.tracker.has_serialising()
    }

    /// Zero writes of `chunk` bytes each from `offset` on, `bytes` at most: as many as end at once, in one piece.
    /// Returns how many bytes that were, a multiple of `chunk`. Only where [`Block::zeroes_at_once`].
    pub(super) fn zero_row(&self, node: NodeId, offset: u64, bytes: u64, chunk: u64) -> u64 {
        let node = self.node(node);
        let Driver::Qcow2(image) = node.driver.borrow().clone() else { return 0 };
        let bytes = bytes.min(node.length.get().saturating_sub(offset));
        let done = image.zero_row(offset, bytes, chunk);
        if done > 0 {
            node.write_generation.add(done / chunk);
            node.mark_dirty(offset, done);
        }
        done
    }

    /// Whether the node tells without a yield what its cached tables know of a range, the same of each part of it, and
    /// nobody sees that it was asked: no fault rule, no snapshot and no image that somebody has locked is on the way.
    pub(super) fn tells_at_once(&self, node: NodeId) -> bool {
        let node = self.node(node);
        let below = match &*node.driver.borrow() {
            Driver::File(_) | Driver::Null(_) => None,
            Driver::Raw(_) | Driver::CopyBeforeWrite(_) => node.primary_child(),
            Driver::Qcow2(image) => {
                if image.is_locked() || !self.tells_at_once(image.file()) {
                    return false;
                }
                image.backing_node()
            }
            Driver::None | Driver::Blkdebug(_) | Driver::SnapshotAccess => return false,
        };
        below.is_none_or(|below| self.tells_at_once(below))
    }
}
