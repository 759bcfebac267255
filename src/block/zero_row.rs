//! Rows of zero writes: what a row of chunks on cached metadata does, done in one go.
//!
//! Block-copy clears large areas chunk by chunk, as QEMU does; each chunk that only changes cached L2 entries begins
//! and ends without a yield. Here is what makes that certain, from the node down to the table. Anything that could
//! tell a row from its chunks (a fault rule, a reader of the trace, a serialising request) must end it.

use std::rc::Rc;

use super::graph::Block;
use super::node::{Driver, NodeId};

impl Block {
    /// Zero writes of `chunk` bytes each from `offset` on, `bytes` at most: as many as would end at once, in one
    /// piece. Returns how many bytes that were, a multiple of `chunk`.
    pub(super) fn zero_row(self: &Rc<Self>, node: NodeId, offset: u64, bytes: u64, chunk: u64) -> u64 {
        let node = self.node(node);
        let Driver::Qcow2(image) = node.driver.borrow().clone() else { return 0 };
        let file = self.node(image.file());
        let is_plain = matches!(&*file.driver.borrow(), Driver::File(_));
        let is_ready = !self.sim.is_watched() && !node.is_read_only() && !node.any_bitmap_readonly();
        let is_alone = !node.tracker.has_serialising();
        if !(is_plain && is_ready && is_alone) {
            return 0;
        }
        let bytes = bytes.min(node.length.get().saturating_sub(offset));
        let done = image.zero_row(offset, bytes, chunk);
        if done > 0 {
            node.write_generation.add(done / chunk);
            node.mark_dirty(offset, done);
        }
        done
    }

    /// Whether the status of a range of the node is the status of each of its parts, and asking for it is seen by
    /// nobody: so it is where no fault rule and no snapshot lies on the way.
    pub(super) fn status_is_plain(&self, node: NodeId) -> bool {
        let node = self.node(node);
        let below = match &*node.driver.borrow() {
            Driver::File(_) | Driver::Null(_) => None,
            Driver::Raw(_) | Driver::CopyBeforeWrite(_) => node.primary_child(),
            Driver::Qcow2(image) => {
                if !self.status_is_plain(image.file()) {
                    return false;
                }
                image.backing_node()
            }
            Driver::None | Driver::Blkdebug(_) | Driver::SnapshotAccess => return false,
        };
        below.is_none_or(|below| self.status_is_plain(below))
    }
}
