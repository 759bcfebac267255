//! Permissions: who may do what with a node while others use it too.
//!
//! Every edge takes permissions and says which it leaves to others; a change is first tried on the
//! whole subgraph below and undone when two users collide. QEMU's source: `bdrv_refresh_perms` and the
//! default child permissions in `block.c`. Nothing here changes the graph.

use std::rc::Rc;

use super::flags::Perm;
use super::graph::Block;
use super::node::{Driver, Edge, Node, NodeId, Parent, Role};

/// An edge's permissions before a change: taken, shared.
type Saved = (Rc<Edge>, Perm, Perm);

impl Block {
    /// Recomputes the permissions below `roots`; on a conflict nothing has changed.
    pub(super) fn refresh_permissions(&self, roots: &[NodeId]) -> Result<(), String> {
        let mut order = Vec::new();
        for root in roots.iter().rev() {
            self.topological(*root, &mut order);
        }
        let mut saved: Vec<Saved> = Vec::new();
        for id in order.iter().rev() {
            if let Err(conflict) = self.refresh_node(*id, &mut saved) {
                for (edge, perm, shared) in saved.into_iter().rev() {
                    edge.perm.set(perm);
                    edge.shared.set(shared);
                }
                for id in order {
                    self.settle_locks(id);
                }
                return Err(conflict);
            }
        }
        Ok(())
    }

    /// Appends `id` after everything below it, what its newest link leads to first (the reverse is parents first, and
    /// what older links lead to before the rest).
    fn topological(&self, id: NodeId, order: &mut Vec<NodeId>) {
        if order.contains(&id) {
            return;
        }
        for edge in self.node(id).children.borrow().iter().rev() {
            self.topological(edge.child.get(), order);
        }
        order.push(id);
    }

    fn refresh_node(&self, id: NodeId, saved: &mut Vec<Saved>) -> Result<(), String> {
        let node = self.node(id);
        self.check_parents(&node)?;
        let (perm, shared) = cumulative(&node);
        if perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) && node.is_read_only() {
            return Err(match node.was_writable.get() {
                true => format!("Read-only block node '{}' cannot support read-write users", node.name),
                false => "Block node is read-only".to_owned(),
            });
        }
        let unaligned = || node.length.get() % self.request_alignment(&node) != 0;
        if perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) && !perm.contains(Perm::RESIZE) && unaligned() {
            let why = "Image size is not a multiple of request alignment";
            return Err(format!("Cannot get 'write' permission without 'resize': {why}"));
        }
        if let Driver::File(file) = &*node.driver.borrow() {
            file.try_lock(&self.locks, id, perm, shared, node.options.borrow().force_share)?;
        }
        for edge in node.children.borrow().iter() {
            let (child_perm, child_shared) = self.child_permissions(&node, edge, perm, shared);
            saved.push((edge.clone(), edge.perm.get(), edge.shared.get()));
            edge.perm.set(child_perm);
            edge.shared.set(child_shared);
        }
        Ok(())
    }

    /// Puts the locks of a file node back to what its parents take now.
    fn settle_locks(&self, id: NodeId) {
        let node = self.node(id);
        if let Driver::File(file) = &*node.driver.borrow() {
            let (perm, shared) = cumulative(&node);
            // What was held before the change was held without a conflict.
            let _ = file.try_lock(&self.locks, id, perm, shared, node.options.borrow().force_share);
        }
    }

    fn check_parents(&self, node: &Node) -> Result<(), String> {
        let parents = node.parents.borrow();
        for a in parents.iter() {
            for b in parents.iter() {
                let refused = b.perm.get().without(a.shared.get());
                if !Rc::ptr_eq(a, b) && !refused.is_empty() {
                    return Err(format!(
                        "Permission conflict on node '{0}': permissions '{1}' are both required by {2} \
                         (uses node '{0}' as '{3}' child) and unshared by {4} (uses node '{0}' as '{5}' child).",
                        node.name,
                        refused.names(),
                        self.describe_parent(b),
                        b.name,
                        self.describe_parent(a),
                        a.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn describe_parent(&self, edge: &Edge) -> String {
        match &edge.parent {
            Parent::Node(id) => format!("node '{}'", self.node(*id).name),
            Parent::Backend(backend) => backend.describe(),
            Parent::Job(job) => job.describe(),
        }
    }

    /// What a node takes and shares on a child, given what its own parents do (`bdrv_child_perm`).
    fn child_permissions(&self, node: &Node, edge: &Edge, perm: Perm, shared: Perm) -> (Perm, Perm) {
        let through = (perm, shared | Perm::WRITE_UNCHANGED);
        match edge.role {
            Role::Root => (edge.perm.get(), edge.shared.get()),
            Role::Snapshot => (Perm::NONE, Perm::ALL),
            Role::CbwTarget => (Perm::WRITE, Perm::ALL.without(Perm::RESIZE)),
            Role::Cow => {
                let may_change = if shared.contains(Perm::WRITE) { Perm::WRITE | Perm::RESIZE } else { Perm::NONE };
                (perm & Perm::CONSISTENT_READ, may_change | Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED)
            }
            Role::Storage => {
                let (mut perm, shared) = through;
                if !node.is_read_only() {
                    perm |= Perm::WRITE | Perm::RESIZE;
                }
                if !node.options.borrow().no_io {
                    perm |= Perm::CONSISTENT_READ;
                }
                (perm, shared.without(Perm::WRITE | Perm::RESIZE))
            }
            Role::Filtered => match &*node.driver.borrow() {
                Driver::CopyBeforeWrite(cbw) if !node.parents.borrow().is_empty() => {
                    let (mut taken, shared) = through;
                    if self.quirks.cbw_always_reads || perm.contains(Perm::WRITE) {
                        taken |= Perm::CONSISTENT_READ;
                    }
                    if cbw.discards_source() {
                        taken |= Perm::WRITE;
                    }
                    (taken, shared.without(Perm::WRITE | Perm::RESIZE))
                }
                Driver::Raw(raw) if raw.is_window() => (perm | Perm::CONSISTENT_READ, through.1.without(Perm::RESIZE)),
                Driver::Blkdebug(blkdebug) => (through.0 | blkdebug.take, through.1.without(blkdebug.unshare)),
                _ => through,
            },
        }
    }
}

/// What all parents together take, and what all of them share.
fn cumulative(node: &Node) -> (Perm, Perm) {
    let parents = node.parents.borrow();
    parents
        .iter()
        .fold((Perm::NONE, Perm::ALL), |(perm, shared), edge| (perm | edge.perm.get(), shared & edge.shared.get()))
}
