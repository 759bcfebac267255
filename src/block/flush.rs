//! Flushing a node: driver cache, then disk, then children, each left out when nothing was written
//! since.
//!
//! QEMU's source: `bdrv_co_flush` in `block/io.c`. Flushes of one node never overlap.

use std::rc::Rc;

use crate::errno::{Errno, Res};

use super::backend::InFlight;
use super::blkdebug::IoType;
use super::blkdebug_event::BlkdebugEvent;
use super::flags::Perm;
use super::graph::Block;
use super::io::{BoxFuture, child_of};
use super::node::{Driver, Node, NodeId};

impl Block {
    /// Makes durable what a node was given.
    pub fn co_flush<'a>(self: &'a Rc<Self>, node: NodeId) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            let without_driver = matches!(&*node.driver.borrow(), Driver::None);
            if without_driver || node.is_read_only() {
                return Ok(());
            }
            let _in_flight = InFlight::new(&node.in_flight);
            let generation = node.write_generation.get();
            let _others = node.flush.lock(&self.sim, "another flush").await;
            let traced = self.trace_begin(node, "flush", 0, 0);
            let result = self.flush_node(node, generation).await;
            if result.is_ok() {
                node.flushed_generation.set(generation);
            }
            self.trace_end(traced, result.as_ref().err());
            result
        })
    }

    async fn flush_node(self: &Rc<Self>, node: &Node, generation: u64) -> Res<()> {
        // A driver that flushes in one go does nothing else.
        let whole = matches!(&*node.driver.borrow(), Driver::CopyBeforeWrite(_));
        if whole {
            return match child_of(node, "file") {
                Ok(file) => self.co_flush(file).await,
                Err(_) => Ok(()),
            };
        }
        if let Some(child) = node.primary_child() {
            self.debug_event(child, BlkdebugEvent::FlushToOs).await;
        }
        if let Some(qcow2) = node.qcow2() {
            qcow2.flush_to_os(self).await?;
        }
        let no_flush = node.options.borrow().no_flush;
        if !no_flush && node.flushed_generation.get() != generation {
            if let Some(child) = node.primary_child() {
                self.debug_event(child, BlkdebugEvent::FlushToDisk).await;
            }
            self.driver_flush_to_disk(node).await?;
        }
        self.flush_children(node).await
    }

    async fn driver_flush_to_disk(self: &Rc<Self>, node: &Node) -> Res<()> {
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::File(file) => file.flush(self, node).await,
            Driver::Null(null) => null.request(self).await,
            Driver::Blkdebug(blkdebug) => match blkdebug.check(self, IoType::Flush, None).await? {
                true => self.co_flush(child_of(node, "image")?).await,
                false => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Flushes the children that the node may write to; the first error counts.
    async fn flush_children(self: &Rc<Self>, node: &Node) -> Res<()> {
        let children: Vec<NodeId> = {
            let children = node.children.borrow();
            let written = children.iter().filter(|e| e.perm.get().intersects(Perm::WRITE | Perm::WRITE_UNCHANGED));
            written.map(|e| e.child.get()).collect()
        };
        let mut first: Option<Errno> = None;
        for child in children {
            if let Err(error) = self.co_flush(child).await {
                first = first.or(Some(error));
            }
        }
        first.map_or(Ok(()), Err)
    }
}
