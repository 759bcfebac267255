//! How long nodes are, and who knows of it when a node gets another length.
//!
//! A node keeps the length that it had when it was opened or last changed (`total_sectors`), whatever becomes of the node
//! below. Nobody may look at the host's file here.

use crate::bitmap::BitmapFault;
use crate::errno::{Errno, Res};

use super::flags::Perm;
use super::graph::Block;
use super::io::child_of;
use super::node::{Driver, Node, NodeId};

impl Block {
    /// The node's length, bytes, for somebody who asks (`bdrv_getlength`): raw looks at the node below in 7.2.
    pub fn length(&self, node: &Node) -> u64 {
        if self.quirks.raw_asks_for_length && matches!(&*node.driver.borrow(), Driver::Raw(_)) {
            self.look_at_length(node);
        }
        node.length.get()
    }

    /// What came of two bitmaps of one node that QEMU merges without a look at their lengths (`hbitmap_merge`): those that
    /// were made before the node was found to be longer have not followed.
    pub fn assert_merged<T>(&self, merged: Result<T, BitmapFault>) -> Option<T> {
        if let Err(BitmapFault::Sizes { .. }) = merged {
            self.abort("bitmaps of different lengths are merged");
        }
        merged.ok()
    }

    /// A node that is as long as what it shows of the one below looks how long that is (`bdrv_refresh_total_sectors`); its
    /// bitmaps do not follow.
    pub(super) fn look_at_length(&self, node: &Node) {
        let Some(below) = node.primary_child() else { return };
        let below = self.length(&self.node(below));
        let length = match &*node.driver.borrow() {
            Driver::Raw(raw) => raw.window().length(below),
            _ => below,
        };
        if length != node.length.get() {
            node.length.set(length);
        }
    }

    /// The node's length has changed; its bitmaps follow.
    pub(super) fn set_length(&self, node: &Node, length: u64) {
        node.length.set(length);
        // A bitmap too large for the new length keeps its old size; QEMU has no error for it here.
        let _ = node.bitmaps.borrow_mut().truncate(length);
    }

    /// The child that a filter's write which ends at `end` goes to. It may end behind that node only if the filter may make
    /// it longer (`bdrv_co_write_req_prepare`); one that was not told that the node has become shorter does not know.
    pub(super) fn written_child(&self, node: &Node, name: &str, end: u64) -> Res<NodeId> {
        let edge = node.child(name).ok_or(Errno::ENOMEDIUM)?;
        let child = edge.child.get();
        if end > self.node(child).length.get() && !edge.perm.get().contains(Perm::RESIZE) {
            self.abort("a write ends behind the node, which its parent may not make longer");
        }
        Ok(child)
    }

    /// The same for a discard, which only comes as far where the child takes discards.
    pub(super) fn discarded_child(&self, node: &Node, name: &str, end: u64) -> Res<NodeId> {
        let child = child_of(node, name)?;
        if self.node(child).discard_unmap() { self.written_child(node, name, end) } else { Ok(child) }
    }
}
