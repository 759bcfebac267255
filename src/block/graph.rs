//! The node graph: creating and finding nodes, attaching and detaching edges, references.
//!
//! Every change of the graph goes through here, so that permissions (`permissions.rs`), drained
//! sections (`drain.rs`) and QEMU 10's graph lock are kept in one place. Nothing here may look into a driver.

use std::rc::Rc;

use crate::bitmap::BitmapList;
use crate::quirks::Quirks;
use crate::sim::Sim;
use crate::sim::rng::{Rng, Stream};
use crate::sim::shared::{Cell, Counter, RefCell, Unwatched};
use crate::store::Host;

use super::backend::Backend;
use super::drain::GraphLock;
use super::faults::Faults;
use super::file::FileLocks;
use super::flags::Perm;
use super::node::{Driver, Edge, JobParent, Node, NodeId, NodeOptions, Parent, Role};
use super::printed::Printed;
use super::timing::Timing;

/// Most nodes that a process has at a time. QEMU's limit is the number of files that its host lets it open, some 1,000 as a rule;
/// images that are backing files of each other, which it does not notice, end there.
pub const MOST_NODES: usize = 1000;

/// The block layer of one QEMU process (or of one run of qemu-img).
pub struct Block {
    /// The kernel that everything runs on.
    pub sim: Sim,
    /// Which QEMU is reproduced.
    pub quirks: Quirks,
    /// The host's files.
    pub host: Rc<Host>,
    /// Locks that processes hold on the host's files.
    pub locks: Rc<FileLocks>,
    /// What device operations cost.
    pub timing: Timing,
    /// Faults that a scenario added.
    pub faults: Faults,
    /// What the process has written to its standard error.
    pub stderr: RefCell<String>,
    /// What an assertion of QEMU has found, once one has failed.
    aborted: Cell<Option<&'static str>>,
    /// What it has written to its standard output (qemu-io's reports).
    pub stdout: Unwatched<Printed>,
    /// `BLOCK_IMAGE_CORRUPTED` and the like, for the layer that knows QMP.
    pub notices: RefCell<Vec<Notice>>,
    /// The program's name in front of warnings.
    pub program: &'static str,
    /// Names this process among those that lock files.
    pub process: u32,
    nodes: RefCell<Vec<Option<Rc<Node>>>>,
    /// Live nodes, newest first (`graph_bdrv_states`).
    order: RefCell<Vec<NodeId>>,
    /// Named and unnamed backends, oldest first.
    pub(super) backends: RefCell<Vec<Rc<Backend>>>,
    name_counter: Cell<u32>,
    name_digits: RefCell<Rng>,
    pub(super) graph_lock: GraphLock,
    pub(super) drain_all_count: Cell<u32>,
    pub(super) next_owner: Cell<u32>,
}

/// Something that QEMU reports by an event and that happens deep in the block layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An image was found to be corrupt while in use.
    ImageCorrupted {
        /// Node name.
        node: Rc<str>,
        /// The message.
        message: String,
        /// Offset and size of the write that was prevented, if it was one.
        range: Option<(u64, u64)>,
        /// Whether the driver was detached.
        fatal: bool,
    },
}

/// What the process-wide parts of a block layer are made of.
pub struct BlockConfig {
    /// The kernel.
    pub sim: Sim,
    /// Which QEMU.
    pub quirks: Quirks,
    /// The host's files.
    pub host: Rc<Host>,
    /// Locks on them.
    pub locks: Rc<FileLocks>,
    /// Device costs.
    pub timing: Timing,
    /// Seeds generated names.
    pub seed: u64,
    /// `qemu-system-x86_64`, `qemu-img`.
    pub program: &'static str,
    /// Names this process among those that lock files.
    pub process: u32,
}

impl Block {
    /// An empty graph.
    pub fn new(config: BlockConfig) -> Rc<Block> {
        Rc::new(Block {
            sim: config.sim,
            quirks: config.quirks,
            host: config.host,
            locks: config.locks,
            timing: config.timing,
            faults: Faults::default(),
            stderr: RefCell::default(),
            aborted: Cell::new(None),
            stdout: Unwatched::default(),
            notices: RefCell::default(),
            program: config.program,
            process: config.process,
            nodes: RefCell::default(),
            order: RefCell::default(),
            backends: RefCell::default(),
            name_counter: Cell::new(0),
            name_digits: RefCell::new(Rng::new(config.seed, Stream::Names)),
            graph_lock: GraphLock::default(),
            drain_all_count: Cell::new(0),
            next_owner: Cell::new(1),
        })
    }

    /// A node by its id, which must be one of a live node.
    pub fn node(&self, id: NodeId) -> Rc<Node> {
        self.try_node(id).expect("ids are kept only by those who hold a reference on the node")
    }

    /// A node by its id, if it still lives.
    pub fn try_node(&self, id: NodeId) -> Option<Rc<Node>> {
        self.nodes.borrow().get(id.0 as usize).cloned().flatten()
    }

    /// Live nodes, newest first.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.order.borrow().clone()
    }

    /// Live nodes, newest first.
    pub fn live_nodes(&self) -> Vec<Rc<Node>> {
        let nodes = self.nodes.borrow();
        self.order.borrow().iter().filter_map(|id| nodes[id.0 as usize].clone()).collect()
    }

    /// A node by its node-name.
    pub fn find_node(&self, name: &str) -> Option<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let order = self.order.borrow();
        order.iter().filter_map(|id| nodes[id.0 as usize].as_ref()).find(|n| &*n.name == name).cloned()
    }

    /// A named backend.
    pub fn find_backend(&self, name: &str) -> Option<Rc<Backend>> {
        self.backends.borrow().iter().find(|b| b.name.as_deref() == Some(name)).cloned()
    }

    /// A node by a name that may be a device's or a node's (`bdrv_lookup_bs`).
    pub fn lookup(&self, device: Option<&str>, node_name: Option<&str>) -> Result<Rc<Node>, String> {
        if let Some(device) = device
            && let Some(backend) = self.find_backend(device)
        {
            let node = backend.node(self);
            return node.ok_or_else(|| format!("Device '{device}' has no medium"));
        }
        if let Some(node) = node_name.and_then(|name| self.find_node(name)) {
            return Ok(node);
        }
        let (device, node_name) = (device.unwrap_or(""), node_name.unwrap_or(""));
        Err(format!("Cannot find device='{device}' nor node-name='{node_name}'"))
    }

    /// Checks a node-name that a user gave.
    pub fn check_node_name(&self, name: &str) -> Result<(), String> {
        if !is_well_formed_id(name) {
            return Err(format!("Invalid node-name: '{name}'"));
        }
        if self.find_backend(name).is_some() {
            return Err(format!("node-name={name} is conflicting with a device id"));
        }
        if self.find_node(name).is_some() {
            return Err(format!("Duplicate nodes with node-name='{name}'"));
        }
        if name.len() >= 32 {
            return Err("Node name too long".to_owned());
        }
        Ok(())
    }

    /// Generates `#block` + counter + two random digits (`id_generate`).
    fn generate_name(&self) -> Rc<str> {
        let counter = self.name_counter.get();
        self.name_counter.set(counter + 1);
        let digits = self.name_digits.borrow_mut().below(100);
        format!("#block{counter}{digits:02}").into()
    }

    /// Adds a node without a driver. The caller holds the one reference.
    pub fn new_node(&self, name: Option<&str>, options: NodeOptions) -> Result<Rc<Node>, String> {
        let (name, generated_name): (Rc<str>, bool) = match name {
            Some(name) => {
                self.check_node_name(name)?;
                (name.into(), false)
            }
            None => (self.generate_name(), true),
        };
        if self.order.borrow().len() >= MOST_NODES {
            return Err(format!("not modelled: more than {MOST_NODES} nodes"));
        }
        let mut nodes = self.nodes.borrow_mut();
        let id = NodeId(nodes.len() as u32);
        let node = Rc::new(Node {
            id,
            name,
            generated_name,
            driver: RefCell::new(Driver::None),
            options: RefCell::new(options),
            children: RefCell::default(),
            parents: RefCell::default(),
            bitmaps: RefCell::new(BitmapList::default()),
            length: Cell::new(0),
            given: RefCell::default(),
            inherits_from: Cell::new(None),
            opened_below: RefCell::default(),
            automatic_backing: RefCell::default(),
            was_writable: Cell::new(false),
            monitor_owned: Cell::new(false),
            references: Cell::new(1),
            in_flight: Counter::default(),
            quiesce: Cell::new(self.drain_all_count.get()),
            tracker: Default::default(),
            write_generation: Counter::default(),
            flushed_generation: Cell::new(0),
            flush: Default::default(),
            op_blockers: RefCell::default(),
            ejected: Cell::new(false),
        });
        nodes.push(Some(node.clone()));
        self.sim.name_object(id.0, &node.name);
        self.order.borrow_mut().insert(0, id);
        Ok(node)
    }

    /// Forgets a closed node.
    pub(super) fn remove_node(&self, id: NodeId) {
        self.nodes.borrow_mut()[id.0 as usize] = None;
        self.order.borrow_mut().retain(|other| *other != id);
    }

    /// Attaches `child` below `parent` and takes a reference on it. On a permission conflict
    /// nothing has changed and the caller gets QEMU's text.
    pub fn attach(
        &self,
        parent: Parent,
        name: &'static str,
        role: Role,
        child: NodeId,
        root_perms: Option<(Perm, Perm)>,
    ) -> Result<Rc<Edge>, String> {
        let (perm, shared) = root_perms.unwrap_or((Perm::NONE, Perm::ALL));
        let child_node = self.node(child);
        if let Parent::Node(above) = parent
            && self.reaches(child, above)
        {
            let above = &self.node(above).name;
            return Err(format!("Making '{}' a {name} child of '{above}' would create a cycle", child_node.name));
        }
        let edge = Edge::new(name, parent, role, child);
        edge.perm.set(perm);
        edge.shared.set(shared);
        self.link(&edge);
        if let Err(conflict) = self.refresh_permissions(&[edge.parent_node().unwrap_or(child), child]) {
            self.unlink(&edge);
            return Err(conflict);
        }
        child_node.references.set(child_node.references.get() + 1);
        Ok(edge)
    }

    /// Puts an edge into both of its ends and hands it the child's drained sections.
    pub(super) fn link(&self, edge: &Rc<Edge>) {
        let child = self.node(edge.child.get());
        child.parents.borrow_mut().insert(0, edge.clone());
        if let Some(parent) = edge.parent_node() {
            self.node(parent).children.borrow_mut().push(edge.clone());
        }
        if child.is_quiesced() {
            self.quiesce_parent(edge);
        }
    }

    pub(super) fn unlink(&self, edge: &Rc<Edge>) {
        let child = self.node(edge.child.get());
        child.parents.borrow_mut().retain(|e| !Rc::ptr_eq(e, edge));
        if let Some(parent) = edge.parent_node() {
            self.node(parent).children.borrow_mut().retain(|e| !Rc::ptr_eq(e, edge));
        }
        while edge.quiesced.get() > 0 {
            self.unquiesce_parent(edge);
        }
    }

    /// Takes an edge out of the graph; the reference on the child stays with the caller.
    pub fn detach(&self, edge: &Rc<Edge>) {
        self.unlink(edge);
        let child = edge.child.get();
        // Giving permissions up can never conflict.
        let _ = self.refresh_permissions(&[child]);
    }

    /// The same for an edge whose child others keep: the reference goes too.
    pub(super) fn let_go(&self, edge: &Rc<Edge>) {
        self.detach(edge);
        let child = self.node(edge.child.get());
        child.references.set(child.references.get().saturating_sub(1));
    }

    /// Points an edge at another node (`bdrv_replace_child_noperm`), references included.
    pub(super) fn redirect(&self, edge: &Rc<Edge>, to: NodeId) {
        let old = self.node(edge.child.get());
        let new = self.node(to);
        old.parents.borrow_mut().retain(|e| !Rc::ptr_eq(e, edge));
        edge.child.set(to);
        new.parents.borrow_mut().insert(0, edge.clone());
        new.references.set(new.references.get() + 1);
        old.references.set(old.references.get().saturating_sub(1));
        self.witness_move(edge);
        match (new.is_quiesced(), edge.quiesced.get() > 0) {
            (true, false) => self.quiesce_parent(edge),
            (false, true) => {
                while edge.quiesced.get() > 0 {
                    self.unquiesce_parent(edge);
                }
            }
            _ => {}
        }
    }

    /// The edges of one job, in the order in which they were attached.
    pub fn job_edges(&self, job: &dyn JobParent) -> Vec<Rc<Edge>> {
        let mut edges = Vec::new();
        for node in self.live_nodes() {
            for edge in node.parents.borrow().iter() {
                if let Parent::Job(parent) = &edge.parent
                    && parent.key() == job.key()
                {
                    edges.push(edge.clone());
                }
            }
        }
        edges
    }

    /// Whether `node` is `below` or anything above it (through any edge).
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        if from == to {
            return true;
        }
        let children: Vec<NodeId> = self.node(from).children.borrow().iter().map(|e| e.child.get()).collect();
        children.into_iter().any(|child| self.reaches(child, to))
    }

    /// The node below all filters.
    pub fn skip_filters(&self, mut id: NodeId) -> NodeId {
        while let Some(below) = self.node(id).filtered_child() {
            id = below;
        }
        id
    }

    /// The backing node as backup chains see it: below the filters of `id`.
    pub fn backing_chain_next(&self, id: NodeId) -> Option<NodeId> {
        self.node(self.skip_filters(id)).backing().map(|b| self.skip_filters(b))
    }

    /// Writes a line to the process's standard error.
    pub fn report_stderr(&self, line: String) {
        let mut stderr = self.stderr.borrow_mut();
        stderr.push_str(&line);
        stderr.push('\n');
    }

    /// An assertion of QEMU fails here: the process is dead, and nobody may believe what it still does.
    pub(super) fn abort(&self, why: &'static str) {
        self.aborted.set(Some(why));
    }

    /// What an assertion has found, if one has failed.
    pub fn aborted(&self) -> Option<&'static str> {
        self.aborted.get()
    }

    /// Writes to the process's standard output.
    pub fn print(&self, text: impl Into<Printed>) {
        self.stdout.borrow_mut().append(text.into());
    }

    /// A fresh number for an op blocker's owner or a job.
    pub fn new_owner(&self) -> u32 {
        let owner = self.next_owner.get();
        self.next_owner.set(owner + 1);
        owner
    }

    /// Refuses an operation on a node that a job has blocked (`bdrv_op_is_blocked`).
    pub fn check_op_blocker(&self, node: &Node) -> Result<(), String> {
        match node.op_blockers.borrow().first() {
            Some((_, reason)) => Err(format!("Node '{}' is busy: {reason}", self.device_or_node_name(node))),
            None => Ok(()),
        }
    }

    /// Refuses an operation on a node that is the backing file of another (`bdrv_backing_attach` blocks all
    /// but being a backup's source or target).
    pub fn check_not_backing(&self, node: &Node) -> Result<(), String> {
        let parents = node.parents.borrow();
        let overlay = parents.iter().find(|edge| edge.name == "backing").and_then(|edge| edge.parent_node());
        match overlay {
            Some(overlay) => {
                let (name, above) = (&node.name, self.node(overlay).name.clone());
                Err(format!("Node '{name}' is busy: node is used as backing hd of '{above}'"))
            }
            None => Ok(()),
        }
    }

    /// The name of the backend at the root of `node`, or "" (`bdrv_get_device_name`).
    pub fn device_name(&self, node: &Node) -> Rc<str> {
        for edge in node.parents.borrow().iter() {
            if let Parent::Backend(backend) = &edge.parent
                && let Some(name) = &backend.name
            {
                return name.clone();
            }
        }
        "".into()
    }

    /// The backend's name, else the node-name (`bdrv_get_device_or_node_name`).
    pub fn device_or_node_name(&self, node: &Node) -> Rc<str> {
        let device = self.device_name(node);
        if device.is_empty() { node.name.clone() } else { device }
    }
}

/// Letter first, then letters, digits, `-`, `.`, `_` (`id_wellformed`).
pub fn is_well_formed_id(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}
