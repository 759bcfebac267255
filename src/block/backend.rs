//! Block backends: the roots through which devices, exports and monitor commands use a node.
//!
//! A backend checks requests against the node's length, queues them while the node is drained, and
//! counts them so that a drain can wait. It must not know who its user is.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::WaitQueue;
use crate::sim::shared::{Cell, Counter, RefCell};
use crate::store::Content;

use super::flags::{Perm, ReqFlags};
use super::graph::Block;
use super::node::{Edge, Node, NodeId, Parent, Role};

/// The largest request that a backend passes on, bytes (`BDRV_REQUEST_MAX_BYTES`).
pub const REQUEST_MAX_BYTES: u64 = 2_147_483_136;

/// A root user of a node (`BlockBackend`).
#[derive(Default)]
pub struct Backend {
    /// The device name, for guest disks.
    pub name: Option<Rc<str>>,
    root: RefCell<Option<Rc<Edge>>>,
    perm: Cell<Perm>,
    shared: Cell<Perm>,
    pub(super) in_flight: Counter<u32>,
    pub(super) quiesce: Cell<u32>,
    queued: WaitQueue,
    /// Every write is followed by a flush.
    pub writethrough: Cell<bool>,
    /// Which guest's disk it is, for whoever checks a run.
    pub guest: Option<Rc<str>>,
}

impl Backend {
    /// The node at the root.
    pub fn node_id(&self) -> Option<NodeId> {
        self.root.borrow().as_ref().map(|edge| edge.child.get())
    }

    /// The node at the root.
    pub fn node(&self, block: &Block) -> Option<Rc<Node>> {
        self.node_id().and_then(|id| block.try_node(id))
    }

    /// How permission errors call this user.
    pub fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("block device '{name}'"),
            None => "an unnamed block device".to_owned(),
        }
    }

    /// The process has died: the edge and its backend must not keep each other alive.
    pub(super) fn abandon(&self) {
        self.root.take();
    }

    pub(super) fn wake_queued(&self, block: &Block) {
        self.queued.wake_all(&block.sim);
    }
}

impl Block {
    /// Creates a backend on `node` that takes `perm` and shares `shared` (`blk_new` +
    /// `blk_insert_bs`).
    pub fn new_backend(
        &self,
        name: Option<&str>,
        node: NodeId,
        perm: Perm,
        shared: Perm,
    ) -> Result<Rc<Backend>, String> {
        self.add_backend(Backend { name: name.map(Rc::from), ..Backend::default() }, node, perm, shared)
    }

    /// The same where nothing may run while the graph changes (`blk_insert_bs`, from the main loop). The node is held until its
    /// backend holds it; a job's filter that leaves meanwhile is one that nothing uses.
    pub async fn insert_backend(
        self: &Rc<Self>,
        node: &Rc<Node>,
        perm: Perm,
        shared: Perm,
    ) -> Result<Rc<Backend>, String> {
        self.reference(node);
        let lock = self.graph_write_lock().await;
        let backend = self.new_backend(None, node.id, perm, shared);
        self.graph_write_unlock(lock).await;
        self.unref(node.id).await;
        backend
    }

    /// The same for the disk of a guest, which is known by the name of the node that it asked for.
    pub fn new_guest(&self, guest: &str, node: NodeId) -> Result<Rc<Backend>, String> {
        let backend = Backend { guest: Some(guest.into()), ..Backend::default() };
        self.add_backend(backend, node, Perm::CONSISTENT_READ | Perm::WRITE, Perm::ALL)
    }

    fn add_backend(&self, backend: Backend, node: NodeId, perm: Perm, shared: Perm) -> Result<Rc<Backend>, String> {
        let backend = Rc::new(backend);
        backend.perm.set(perm);
        backend.shared.set(shared);
        let edge = self.attach(Parent::Backend(backend.clone()), "root", Role::Root, node, Some((perm, shared)))?;
        *backend.root.borrow_mut() = Some(edge);
        self.backends.borrow_mut().push(backend.clone());
        Ok(backend)
    }

    /// Removes a backend that has no requests from a node that others keep.
    pub(super) fn forget_backend(&self, backend: &Rc<Backend>) {
        let root = backend.root.borrow_mut().take();
        if let Some(edge) = root {
            self.let_go(&edge);
        }
        self.backends.borrow_mut().retain(|other| !Rc::ptr_eq(other, backend));
    }

    /// Takes further permissions (`blk_set_perm`).
    pub fn backend_require(&self, backend: &Backend, perm: Perm) -> Result<(), String> {
        let root = backend.root.borrow().clone();
        let Some(edge) = root else { return Ok(()) };
        let old = edge.perm.get();
        if old.contains(perm) {
            return Ok(());
        }
        edge.perm.set(old | perm);
        if let Err(conflict) = self.refresh_permissions(&[edge.child.get()]) {
            edge.perm.set(old);
            return Err(conflict);
        }
        Ok(())
    }

    /// Does not leave a permission to others any more (`blk_set_perm`).
    pub fn backend_withhold(&self, backend: &Backend, perm: Perm) -> Result<(), String> {
        let root = backend.root.borrow().clone();
        let Some(edge) = root else { return Ok(()) };
        let old = edge.shared.replace(edge.shared.get().without(perm));
        self.refresh_permissions(&[edge.child.get()]).inspect_err(|_| edge.shared.set(old))
    }

    /// Waits for a backend's requests (`blk_drain`). Its node is held: if it is a job's filter that leaves, the backend has
    /// another one afterwards.
    async fn drain_backend(self: &Rc<Self>, backend: &Backend) {
        let Some(node) = backend.node(self) else { return };
        self.reference(&node);
        self.drained_begin(node.id).await;
        self.drained_end(node.id);
        self.unref(node.id).await;
    }

    /// Removes a backend: waits for its requests, detaches it, drops its reference
    /// (`blk_unref`).
    pub async fn delete_backend(self: &Rc<Self>, backend: &Rc<Backend>) {
        // Its last user lets go of it, then it of its node: each waits.
        self.drain_backend(backend).await;
        self.drain_backend(backend).await;
        let root = backend.root.borrow_mut().take();
        if let Some(edge) = root {
            let lock = self.graph_write_lock().await;
            self.detach(&edge);
            self.graph_write_unlock(lock).await;
            self.unref(edge.child.get()).await;
        }
        self.backends.borrow_mut().retain(|b| !Rc::ptr_eq(b, backend));
    }

    /// Whether `offset..offset+bytes` lies within the node (`blk_check_byte_request`).
    fn check_request(&self, backend: &Backend, offset: u64, bytes: u64, bounded: bool) -> Res<Rc<Node>> {
        let node = backend.node(self).ok_or(Errno::ENOMEDIUM)?;
        if node.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let end = offset.checked_add(bytes).ok_or(Errno::EIO)?;
        let too_large = bounded && bytes > REQUEST_MAX_BYTES;
        if too_large || i64::try_from(end).is_err() || end > self.length(&node) {
            return Err(Errno::EIO);
        }
        Ok(node)
    }

    /// Waits while the backend is drained, then counts the request in.
    async fn backend_enter<'a>(&self, backend: &'a Backend) -> InFlight<'a> {
        // Nothing sees that QEMU counts it in before it looks and out again before it waits.
        while backend.quiesce.get() > 0 {
            backend.queued.wait(&self.sim, "the end of a drained section").await;
        }
        InFlight::new(&backend.in_flight)
    }

    /// Reads through a backend.
    pub async fn backend_read(self: &Rc<Self>, backend: &Backend, offset: u64, bytes: u64) -> Res<Content> {
        let _in_flight = self.backend_enter(backend).await;
        let node = self.check_request(backend, offset, bytes, true)?;
        let _reader = self.graph_read_lock().await;
        let id = self.witness_begin((backend, &node), "read", offset, bytes, None, ReqFlags::NONE);
        let result = self.co_pread(node.id, offset, bytes, ReqFlags::NONE).await;
        self.witness_end(id, &result, Content::fills);
        result
    }

    /// Writes through a backend.
    pub async fn backend_write(
        self: &Rc<Self>,
        backend: &Backend,
        offset: u64,
        content: Content,
        flags: ReqFlags,
    ) -> Res<()> {
        let _in_flight = self.backend_enter(backend).await;
        let node = self.check_request(backend, offset, content.len(), true)?;
        let _reader = self.graph_read_lock().await;
        let flags = if backend.writethrough.get() { flags | ReqFlags::FUA } else { flags };
        let id = self.witness_begin((backend, &node), "write", offset, content.len(), Some(&content), flags);
        let result = self.co_pwrite(node.id, offset, content, flags).await;
        self.witness_end(id, &result, |()| Vec::new());
        result
    }

    /// Writes zeros through a backend.
    pub async fn backend_write_zeroes(
        self: &Rc<Self>,
        backend: &Backend,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        let _in_flight = self.backend_enter(backend).await;
        let node = self.check_request(backend, offset, bytes, false)?;
        let _reader = self.graph_read_lock().await;
        let mut flags = if backend.writethrough.get() { flags | ReqFlags::FUA } else { flags };
        if self.quirks.backend_keeps_unmap {
            flags |= ReqFlags::KEEP_UNMAP;
        }
        let id = self.witness_begin((backend, &node), "write-zeroes", offset, bytes, None, flags);
        let result = self.co_pwrite_zeroes(node.id, offset, bytes, flags).await;
        self.witness_end(id, &result, |()| Vec::new());
        result
    }

    /// Discards through a backend.
    pub async fn backend_discard(self: &Rc<Self>, backend: &Backend, offset: u64, bytes: u64) -> Res<()> {
        let _in_flight = self.backend_enter(backend).await;
        let node = self.check_request(backend, offset, bytes, false)?;
        let _reader = self.graph_read_lock().await;
        let id = self.witness_begin((backend, &node), "discard", offset, bytes, None, ReqFlags::NONE);
        let result = self.co_pdiscard(node.id, offset, bytes).await;
        self.witness_end(id, &result, |()| Vec::new());
        result
    }

    /// Flushes through a backend.
    pub async fn backend_flush(self: &Rc<Self>, backend: &Backend) -> Res<()> {
        let _in_flight = self.backend_enter(backend).await;
        let node = backend.node(self).ok_or(Errno::ENOMEDIUM)?;
        let _reader = self.graph_read_lock().await;
        let id = self.witness_begin((backend, &node), "flush", 0, 0, None, ReqFlags::NONE);
        let result = self.co_flush(node.id).await;
        self.witness_end(id, &result, |()| Vec::new());
        result
    }
}

/// Counts a request in a counter for as long as it lives.
pub(super) struct InFlight<'a>(&'a Counter<u32>);

impl<'a> InFlight<'a> {
    pub(super) fn new(counter: &'a Counter<u32>) -> InFlight<'a> {
        counter.add(1);
        InFlight(counter)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}
