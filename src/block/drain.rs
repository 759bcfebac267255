//! Drained sections, and the graph lock of QEMU 10 that is built from them.
//!
//! Quiescing a node quiesces its parents: a backend queues its requests, a job is asked to pause.
//! Then the drain polls until nothing is in flight. QEMU's sources: `block/io.c` (drain) and
//! `block/graph-lock.c`. What a job does when it is asked is the job layer's business.

use std::rc::Rc;

use crate::sim::WaitQueue;
use crate::sim::shared::{Cell, Counter};

use super::graph::Block;
use super::node::{Edge, NodeId, Parent};

/// The lock that QEMU 10 takes around changes of the graph.
#[derive(Default)]
pub struct GraphLock {
    readers: Counter<u32>,
    writer: Cell<bool>,
    waiting: WaitQueue,
}

/// Held by a coroutine that relies on the graph to stay as it is.
pub struct GraphReader<'a>(Option<&'a GraphLock>);

impl Drop for GraphReader<'_> {
    fn drop(&mut self) {
        if let Some(lock) = self.0 {
            lock.readers.sub(1);
        }
    }
}

/// Proof that the graph is locked for writing; given back to [`Block::graph_write_unlock`].
#[must_use]
pub struct GraphWriter(());

impl Block {
    /// Takes the graph lock for reading; no wait and no lock before QEMU 10.
    pub async fn graph_read_lock(&self) -> GraphReader<'_> {
        if !self.quirks.graph_lock {
            return GraphReader(None);
        }
        while self.graph_lock.writer.get() {
            self.graph_lock.waiting.wait(&self.sim, "the graph lock").await;
        }
        self.graph_lock.readers.add(1);
        GraphReader(Some(&self.graph_lock))
    }

    /// Takes the graph lock for writing: asks everything to pause until no coroutine reads.
    pub async fn graph_write_lock(&self) -> GraphWriter {
        if self.quirks.graph_lock {
            self.quiesce_all();
            self.graph_lock.writer.set(true);
            let lock = &self.graph_lock;
            self.sim.poll_until("readers of the graph", || lock.readers.get() == 0).await;
            self.unquiesce_all();
        }
        GraphWriter(())
    }

    /// Releases the graph lock and runs one round of bottom halves, as QEMU 10 does.
    pub async fn graph_write_unlock(&self, _writer: GraphWriter) {
        if self.quirks.graph_lock {
            self.graph_lock.writer.set(false);
            self.graph_lock.waiting.wake_all(&self.sim);
            self.sim.poll_bottom_halves().await;
        }
    }

    /// A change of the graph that is over at once; only its drained section is visible.
    pub async fn graph_write_section(&self) {
        let lock = self.graph_write_lock().await;
        self.graph_write_unlock(lock).await;
    }

    /// The same for a coroutine: a bottom half does it for it.
    pub async fn graph_write_section_for_coroutine(self: &Rc<Self>) {
        let Some(me) = self.sim.current().filter(|_| self.quirks.graph_lock) else { return };
        let block = self.clone();
        self.sim.bh_frame("graph change", async move {
            block.graph_write_section().await;
            block.sim.wake(me);
        });
        self.sim.park("a change of the graph").await;
    }

    /// Begins a drained section of `node` and waits until nothing is in flight on it or its
    /// parents.
    pub async fn drained_begin(self: &Rc<Self>, node: NodeId) {
        self.quiesce_node(node);
        self.drain_wait(move |block| !block.is_drain_busy(node)).await;
        self.witness_drain(Some(node), true);
    }

    /// The same for a command that holds no reference on the node, which may be a job's filter: if the job ends meanwhile, QEMU
    /// goes on with what it has freed. See [`Block::still_there`].
    pub async fn drained_begin_unheld(self: &Rc<Self>, node: NodeId) -> Result<(), String> {
        self.drained_begin(node).await;
        self.still_there(node)
    }

    /// Ends the machine if a node is gone that a command still works with.
    pub fn still_there(&self, node: NodeId) -> Result<(), String> {
        if self.try_node(node).is_some() {
            return Ok(());
        }
        let why = "the filter that a command names has gone while the command ran";
        self.abort(why);
        Err(why.to_owned())
    }

    /// Ends a drained section.
    pub fn drained_end(&self, node: NodeId) {
        self.witness_drain(Some(node), false);
        self.unquiesce_node(node);
    }

    /// Begins a drained section of all nodes.
    pub async fn drain_all_begin(self: &Rc<Self>) {
        self.quiesce_all();
        self.drain_wait(|block| !block.live_nodes().iter().any(|n| block.is_drain_busy(n.id))).await;
        self.witness_drain(None, true);
    }

    /// Ends a drained section of all nodes.
    pub fn drain_all_end(&self) {
        self.witness_drain(None, false);
        self.unquiesce_all();
    }

    /// A drained section of all nodes around nothing.
    pub async fn drain_all(self: &Rc<Self>) {
        self.drain_all_begin().await;
        self.drain_all_end();
    }

    /// Polls from main-loop code; a coroutine lets a bottom half poll for it.
    async fn drain_wait(self: &Rc<Self>, mut is_idle: impl FnMut(&Block) -> bool + Unpin + 'static) {
        if !self.sim.in_coroutine() {
            let block: &Block = self;
            return self.sim.poll_until("in-flight requests", move || is_idle(block)).await;
        }
        let Some(me) = self.sim.current() else { return };
        let block = self.clone();
        self.sim.bh_frame("drain", async move {
            let polled = block.clone();
            block.sim.poll_until("in-flight requests", move || is_idle(&polled)).await;
            block.sim.wake(me);
        });
        self.sim.park("a drained section to begin").await;
    }

    /// All nodes, oldest first.
    fn nodes_oldest_first(&self) -> Vec<NodeId> {
        let mut ids = self.node_ids();
        ids.reverse();
        ids
    }

    fn quiesce_all(&self) {
        self.drain_all_count.set(self.drain_all_count.get() + 1);
        let nodes = self.nodes_oldest_first();
        let told = self.tell_direct_users(&nodes);
        for id in nodes {
            self.quiesce_node(id);
        }
        for edge in &told {
            self.unquiesce_parent(edge);
        }
    }

    /// Tells the jobs and backends on these nodes, node by node, that a section begins, if sections of all nodes do not climb:
    /// what does climb to them finds them told already. Their edges, to tell them of the end.
    fn tell_direct_users(&self, nodes: &[NodeId]) -> Vec<Rc<Edge>> {
        if self.quirks.drain_all_climbs {
            return Vec::new();
        }
        let parents = nodes.iter().flat_map(|id| self.node(*id).parents.borrow().clone());
        let users: Vec<Rc<Edge>> = parents.filter(|edge| !matches!(edge.parent, Parent::Node(_))).collect();
        for edge in &users {
            self.quiesce_parent(edge);
        }
        users
    }

    fn unquiesce_all(&self) {
        self.drain_all_count.set(self.drain_all_count.get() - 1);
        let nodes = self.nodes_oldest_first();
        // A section around the end of this one: who is above a node is not told before those on older nodes.
        let told = self.tell_direct_users(&nodes);
        for id in nodes {
            self.unquiesce_node(id);
        }
        for edge in &told {
            self.unquiesce_parent(edge);
        }
    }

    pub(super) fn quiesce_node(&self, id: NodeId) {
        let node = self.node(id);
        node.quiesce.set(node.quiesce.get() + 1);
        if node.quiesce.get() == 1 {
            let parents = node.parents.borrow().clone();
            for edge in &parents {
                self.quiesce_parent(edge);
            }
        }
    }

    fn unquiesce_node(&self, id: NodeId) {
        let Some(node) = self.try_node(id) else { return };
        node.quiesce.set(node.quiesce.get().saturating_sub(1));
        if node.quiesce.get() == 0 {
            let parents = node.parents.borrow().clone();
            for edge in &parents {
                // The parent's end of a section may already have taken this edge away.
                if edge.quiesced.get() > 0 {
                    self.unquiesce_parent(edge);
                }
            }
        }
    }

    pub(super) fn quiesce_parent(&self, edge: &Rc<Edge>) {
        edge.quiesced.set(edge.quiesced.get() + 1);
        match &edge.parent {
            Parent::Node(id) => self.quiesce_node(*id),
            Parent::Backend(backend) => backend.quiesce.set(backend.quiesce.get() + 1),
            Parent::Job(job) => job.drained_begin(),
        }
    }

    pub(super) fn unquiesce_parent(&self, edge: &Rc<Edge>) {
        edge.quiesced.set(edge.quiesced.get() - 1);
        match &edge.parent {
            Parent::Node(id) => self.unquiesce_node(*id),
            Parent::Backend(backend) => {
                backend.quiesce.set(backend.quiesce.get() - 1);
                if backend.quiesce.get() == 0 {
                    backend.wake_queued(self);
                }
            }
            Parent::Job(job) => job.drained_end(),
        }
    }

    /// Whether requests are in flight on the node or on anything above it.
    fn is_drain_busy(&self, id: NodeId) -> bool {
        let Some(node) = self.try_node(id) else { return false };
        if node.in_flight.get() > 0 {
            return true;
        }
        let parents = node.parents.borrow().clone();
        parents.iter().any(|edge| match &edge.parent {
            Parent::Node(parent) => self.is_drain_busy(*parent),
            Parent::Backend(backend) => backend.in_flight.get() > 0,
            Parent::Job(job) => job.drained_poll(),
        })
    }
}
