//! Nodes that never come to be: what of their end others notice.
//!
//! QEMU makes a node before it looks at its name, its children and its driver, so that one which can't be opened is
//! closed like any other, under the graph lock; a driver that refuses has its children taken away before that, under
//! the lock once more (`bdrv_open_driver`, `bdrv_close` in `block.c`). Must never leave such a node in the graph.

use std::rc::Rc;

use super::backend::Backend;
use super::graph::Block;
use super::node::{NodeId, NodeOptions};
use super::open::Opened;

impl Block {
    /// A node of this name with these options, or its end.
    pub(super) async fn named_node(&self, name: Option<&str>, options: NodeOptions) -> Opened {
        let node = self.checked_node(name, options);
        if node.is_err() {
            self.give_up(None, false).await;
        }
        node
    }

    /// The end of a node that has no children yet; of one that the model has not made at all, if there is no id.
    /// `by_driver`: the driver was asked and refused.
    pub(super) async fn give_up(&self, node: Option<NodeId>, by_driver: bool) {
        if let Some(id) = node {
            self.remove_node(id);
        }
        if by_driver {
            self.graph_write_section().await;
        }
        self.graph_write_section().await;
    }

    /// The end of a node with children whose driver has refused, and of what has looked at its file's format, if anything has.
    pub(super) async fn driver_refused(self: &Rc<Self>, node: NodeId, probe: Option<&Rc<Backend>>) {
        self.graph_write_section().await;
        if let Some(probe) = probe {
            self.delete_backend(probe).await;
        }
        self.unref(node).await;
    }
}
