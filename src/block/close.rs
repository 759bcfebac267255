//! References, closing nodes, inserting and removing filters.
//!
//! A node without references is flushed, closed and forgotten, then its children lose a
//! reference each. QEMU's source: `bdrv_unref`, `bdrv_close`, `bdrv_insert_node` and
//! `bdrv_drop_filter` in `block.c`.

use std::rc::Rc;

use crate::bitmap::BitmapId;

use super::blkdebug::Blkdebug;
use super::cbw::{CbwOptions, CopyBeforeWrite};
use super::graph::Block;
use super::io::BoxFuture;
use super::node::{Driver, Edge, Node, NodeId, NodeOptions, Parent, Role};

impl Block {
    /// Takes a reference.
    pub fn reference(&self, node: &Node) {
        node.references.set(node.references.get() + 1);
    }

    /// Drops a reference; the last one closes the node.
    pub fn unref<'a>(self: &'a Rc<Self>, id: NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let node = self.node(id);
            node.references.set(node.references.get().saturating_sub(1));
            if node.references.get() == 0 {
                self.close(&node).await;
            }
        })
    }

    async fn close(self: &Rc<Self>, node: &Rc<Node>) {
        self.drained_begin(node.id).await;
        self.flush_in_vain(node.id).await;
        self.close_driver(node).await;
        let lock = self.graph_write_lock().await;
        self.disinherit_children(node);
        let children: Vec<Rc<Edge>> = node.children.borrow().clone();
        for edge in children.iter().rev() {
            self.detach(edge);
        }
        self.graph_write_unlock(lock).await;
        if node.bitmaps.borrow().iter().any(|(_, bitmap)| bitmap.name.is_none()) {
            // 7.2: a filter keeps what it has copied in a bitmap of the node that was below it when it was opened.
            self.abort("a node is closed that has a bitmap of somebody else");
        }
        self.drained_end(node.id);
        self.remove_node(node.id);
        for edge in children.iter().rev() {
            self.unref(edge.child.get()).await;
        }
    }

    async fn close_driver(self: &Rc<Self>, node: &Rc<Node>) {
        let driver = std::mem::replace(&mut *node.driver.borrow_mut(), Driver::None);
        match driver {
            Driver::Qcow2(qcow2) => {
                *node.driver.borrow_mut() = Driver::Qcow2(qcow2.clone());
                let block = self.clone();
                self.sim.run_coroutine("qcow2 close", async move { qcow2.close(&block).await }).await;
                *node.driver.borrow_mut() = Driver::None;
            }
            Driver::CopyBeforeWrite(cbw) => cbw.close(self),
            Driver::File(file) => self.locks.release(file.process, node.id),
            _ => {}
        }
    }

    /// Finds a bitmap by node and name, with QEMU's texts (`block_dirty_bitmap_lookup`).
    pub fn find_bitmap(&self, node: &str, name: &str) -> Result<(NodeId, BitmapId), String> {
        let found = self.lookup(Some(node), Some(node)).map_err(|_| format!("Node '{node}' not found"))?;
        let id = found.bitmaps.borrow().find(name);
        id.map(|id| (found.id, id)).ok_or_else(|| format!("Dirty bitmap '{name}' not found"))
    }

    /// Inserts a copy-before-write filter above `source` (`bdrv_cbw_append`). The caller gets the
    /// reference on it.
    pub async fn append_cbw(
        self: &Rc<Self>,
        name: Option<&str>,
        source: &Rc<Node>,
        target: &Rc<Node>,
        options: CbwOptions,
    ) -> Result<Rc<Node>, String> {
        let prefixed = |reason: String| format!("Could not create node: {reason}");
        let node_options = NodeOptions {
            // QEMU's filter drops guests' discards; the defect lets them through, past the copying.
            discard_unmap: options.discard_source || self.quirks.defects.discard_bypasses_cbw,
            ..Default::default()
        };
        let filter = self.named_node(name, node_options).await.map_err(prefixed)?;
        let opened = self.open_appended(&filter, source, target, options).await;
        if let Err(reason) = opened {
            self.driver_refused(filter.id, None).await;
            return Err(prefixed(reason));
        }
        self.drained_begin(source.id).await;
        self.graph_write_section().await;
        let lock = self.graph_write_lock().await;
        let replaced = self.replace_node(source.id, filter.id);
        self.graph_write_unlock(lock).await;
        self.drained_end(source.id);
        if let Err(reason) = replaced {
            self.unref(filter.id).await;
            return Err(format!("Could not replace node: {reason}"));
        }
        Ok(filter)
    }

    async fn open_appended(
        self: &Rc<Self>,
        filter: &Rc<Node>,
        source: &Rc<Node>,
        target: &Rc<Node>,
        options: CbwOptions,
    ) -> Result<(), String> {
        self.attach(Parent::Node(filter.id), "file", Role::Filtered, source.id, None)?;
        self.graph_write_section().await;
        self.attach(Parent::Node(filter.id), "target", Role::CbwTarget, target.id, None)?;
        self.graph_write_section().await;
        let cbw = CopyBeforeWrite::open(self, filter.id, source.id, target.id, options).await?;
        filter.length.set(source.length.get());
        *filter.driver.borrow_mut() = Driver::CopyBeforeWrite(Rc::new(cbw));
        Ok(())
    }

    /// Points the parents of `from` at `to`, except jobs and what lies below `to`
    /// (`bdrv_replace_node`).
    fn replace_node(&self, from: NodeId, to: NodeId) -> Result<(), String> {
        let parents = self.node(from).parents.borrow().clone();
        let moves = |edge: &&Rc<Edge>| match &edge.parent {
            Parent::Job(_) => false,
            Parent::Node(parent) => !self.reaches(to, *parent),
            Parent::Backend(_) => true,
        };
        let moved: Vec<Rc<Edge>> = parents.iter().filter(moves).cloned().collect();
        // Oldest first, so that the list on the new node keeps its order.
        for edge in moved.iter().rev() {
            self.redirect(edge, to);
        }
        if let Err(reason) = self.refresh_permissions(&[to, from]) {
            for edge in moved.iter().rev() {
                self.redirect(edge, from);
            }
            let _ = self.refresh_permissions(&[to, from]);
            return Err(reason);
        }
        Ok(())
    }

    /// Takes a filter out of the graph and drops the caller's reference on it (`bdrv_cbw_drop`).
    pub async fn drop_filter(self: &Rc<Self>, filter: &Rc<Node>) {
        let expected = filter.child("file").map(|edge| edge.child.get());
        let drained = expected.filter(|_| self.quirks.left_node_is_drained).unwrap_or(filter.id);
        if self.quirks.defects.filter_leaves_early {
            self.quiesce_node(drained);
        } else {
            self.drained_begin(drained).await;
        }
        let lock = self.graph_write_lock().await;
        let own: Vec<Rc<Edge>> = filter.children.borrow().clone();
        let file = own.iter().find(|edge| edge.name == "file").cloned();
        let below = file.as_ref().map(|edge| edge.child.get());
        if below != expected {
            // Another filter was below this one, and has left while the drain polled. 7.2 goes on with what it has freed; 10.0
            // asserts that this filter is drained, which nobody does any more.
            self.abort("the node below a job's filter has gone while it was drained for the filter to leave");
        }
        if let (Some(file), Some(below)) = (&file, below) {
            let parents = filter.parents.borrow().clone();
            for edge in parents.iter().rev() {
                self.redirect(edge, below);
            }
            self.detach(file);
            // The filter shared less than the source does alone.
            let _ = self.refresh_permissions(&[below]);
        }
        self.graph_write_unlock(lock).await;
        // Before the filter goes: while that polls, the node below may rightly end with a job of its own.
        if let Some(below) = below {
            if self.quirks.left_node_is_drained && self.node(below).references.get() == 1 {
                self.abort("the node below a job's filter ends with it");
            }
            self.unref(below).await;
        }
        self.drained_end(drained);
        self.unref(filter.id).await;
    }

    /// Puts `overlay` on top of `node`: the node's parents use the overlay, whose backing file the node
    /// becomes (`bdrv_append`).
    pub async fn append(self: &Rc<Self>, node: &Rc<Node>, overlay: &Rc<Node>) -> Result<(), String> {
        let lock = self.graph_write_lock().await;
        let attached = self.attach(Parent::Node(overlay.id), "backing", Role::Cow, node.id, None);
        let replaced = attached.and_then(|edge| {
            self.replace_node(node.id, overlay.id).inspect_err(|_| {
                self.detach(&edge);
                node.references.set(node.references.get().saturating_sub(1));
            })
        });
        self.graph_write_unlock(lock).await;
        replaced
    }

    /// Takes `overlay` from the top of `node` again; its users go back to the node (`external_snapshot_abort` in
    /// `blockdev.c`). These are two changes of the graph, and between them nothing drains the overlay: what its users have
    /// queued goes on there, with nothing below it.
    pub async fn take_back(self: &Rc<Self>, node: &Rc<Node>, overlay: &Rc<Node>) {
        let Some(edge) = overlay.child("backing") else { return };
        self.reference(node);
        // An action that was taken back before may have put another node there.
        let below = edge.child.get();
        self.drained_begin(below).await;
        let lock = self.graph_write_lock().await;
        self.witness_take_back(overlay, true);
        self.detach(&edge);
        self.graph_write_unlock(lock).await;
        self.drained_end(below);
        self.unref(below).await;
        self.drained_begin(overlay.id).await;
        let lock = self.graph_write_lock().await;
        // The users were there before the overlay came.
        let _ = self.replace_node(overlay.id, node.id);
        self.witness_take_back(overlay, false);
        self.graph_write_unlock(lock).await;
        self.drained_end(overlay.id);
        self.unref(node.id).await;
    }

    /// Drops the monitor's reference on every node (`bdrv_close_all`).
    pub async fn close_all(self: &Rc<Self>) {
        for node in self.live_nodes() {
            if node.monitor_owned.replace(false) {
                self.unref(node.id).await;
            }
        }
    }

    /// Flushes all nodes that the monitor made (`bdrv_flush_all`). Nobody is told of a failure.
    pub async fn flush_all(self: &Rc<Self>) {
        for node in self.live_nodes() {
            if node.monitor_owned.get() {
                self.flush_in_vain(node.id).await;
            }
        }
    }

    /// Flushes a node for nobody who could be told of a failure.
    async fn flush_in_vain(self: &Rc<Self>, id: NodeId) {
        let block = self.clone();
        let _ = self.sim.run_coroutine("flush", async move { block.co_flush(id).await }).await;
    }

    /// The process has died: forgets nodes and locks without closing anything.
    pub fn abandon(&self) {
        self.locks.release_process(self.process);
        for node in self.live_nodes() {
            node.children.borrow_mut().clear();
            node.parents.borrow_mut().clear();
            *node.driver.borrow_mut() = Driver::None;
            self.remove_node(node.id);
        }
        for backend in self.backends.take() {
            backend.abandon();
        }
    }

    /// The first blkdebug node at or below `id`.
    pub fn find_blkdebug(&self, id: NodeId) -> Option<Rc<Blkdebug>> {
        let node = self.node(id);
        if let Driver::Blkdebug(blkdebug) = &*node.driver.borrow() {
            return Some(blkdebug.clone());
        }
        node.primary_child().and_then(|child| self.find_blkdebug(child))
    }

    /// Bytes that the node's file really takes on the host.
    pub fn allocated_size(&self, id: NodeId) -> Option<u64> {
        let node = self.node(id);
        match &*node.driver.borrow() {
            Driver::File(file) => Some(file.store.allocated_bytes()),
            Driver::Null(_) => Some(0),
            // A protocol driver that does not know.
            Driver::Blkdebug(_) => None,
            _ => node.primary_child().and_then(|child| self.allocated_size(child)),
        }
    }

    /// Whether `node` is in the backing chain of `top`, or `top` itself.
    pub fn chain_contains(&self, top: NodeId, node: NodeId) -> bool {
        let mut layer = Some(top);
        while let Some(id) = layer {
            if id == node {
                return true;
            }
            let here = self.node(id);
            layer = here.filtered_child().or_else(|| here.backing());
        }
        false
    }
}
