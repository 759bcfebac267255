//! A block node and the edges between nodes.
//!
//! Data only: the fields of QEMU's `BlockDriverState` and `BdrvChild` that behaviour depends on.
//! Who may change the graph is decided in `graph.rs`, what a request does in `io.rs`.

use std::rc::Rc;

use serde_json::{Map, Value};

use crate::bitmap::{BitmapId, BitmapList};
use crate::sim::access::Mode;
use crate::sim::shared::{Cell, Counter, RefCell};

use super::backend::Backend;
use super::blkdebug::Blkdebug;
use super::cbw::CopyBeforeWrite;
use super::file::FileDriver;
use super::flags::Perm;
use super::null::NullDriver;
use super::open::CommonOptions;
use super::qcow2::Qcow2;
use super::raw::RawDriver;
use super::track::Tracker;

/// Names a node for as long as the machine lives; ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// What a node is and the state that its driver keeps.
#[derive(Clone)]
pub enum Driver {
    /// Being opened, or detached after fatal corruption: requests get ENOMEDIUM.
    None,
    /// `file`: a file of the host.
    File(Rc<FileDriver>),
    /// `null-co`.
    Null(Rc<NullDriver>),
    /// `raw` over its `file` child.
    Raw(Rc<RawDriver>),
    /// `qcow2`.
    Qcow2(Rc<Qcow2>),
    /// `blkdebug` over its `image` child.
    Blkdebug(Rc<Blkdebug>),
    /// `copy-before-write`.
    CopyBeforeWrite(Rc<CopyBeforeWrite>),
    /// `snapshot-access` over a copy-before-write node.
    SnapshotAccess,
}

/// `detect-zeroes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// Leave writes alone.
    #[default]
    Off,
    /// Turn writes of zeros into zero writes.
    On,
    /// And let them unmap.
    Unmap,
}

/// What an edge is for (`BdrvChildRole`, as far as permissions depend on it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A format's storage: data and metadata.
    Storage,
    /// A filter's filtered child.
    Filtered,
    /// A backing file.
    Cow,
    /// The target of copy-before-write.
    CbwTarget,
    /// Below snapshot-access.
    Snapshot,
    /// A root edge (backend or job), whose permissions are set by its owner.
    Root,
}

/// The upper end of an edge.
#[derive(Clone)]
pub enum Parent {
    /// Another node.
    Node(NodeId),
    /// A block backend (device, export, monitor command).
    Backend(Rc<Backend>),
    /// A job.
    Job(Rc<dyn JobParent>),
}

/// What the block layer asks of a job whose nodes are drained (`child_job` in QEMU's `blockjob.c`).
pub trait JobParent {
    /// Ask the job to pause.
    fn drained_begin(&self);
    /// Whether the job still has requests in flight.
    fn drained_poll(&self) -> bool;
    /// Take one pause request back.
    fn drained_end(&self);
    /// How permission errors call it: `backup job 'ID'`.
    fn describe(&self) -> String;
    /// Identity, to find a job's edges.
    fn key(&self) -> u32;
}

/// An edge of the graph (`BdrvChild`).
pub struct Edge {
    /// `file`, `backing`, `image`, `target`, `root`, `main node`.
    pub name: &'static str,
    /// The lower end.
    pub child: Cell<NodeId>,
    /// The upper end.
    pub parent: Parent,
    /// What the edge is for.
    pub role: Role,
    /// Permissions that the parent takes.
    pub perm: Cell<Perm>,
    /// Permissions that it lets others take.
    pub shared: Cell<Perm>,
    /// How often the parent was quiesced through this edge.
    pub quiesced: Cell<u32>,
}

impl Edge {
    /// An edge that takes nothing and shares everything, not yet in the graph.
    pub(super) fn new(name: &'static str, parent: Parent, role: Role, child: NodeId) -> Rc<Edge> {
        Rc::new(Edge {
            name,
            child: Cell::new(child),
            parent,
            role,
            perm: Cell::new(Perm::NONE),
            shared: Cell::new(Perm::ALL),
            quiesced: Cell::new(0),
        })
    }

    /// The parent node, if the parent is one.
    pub fn parent_node(&self) -> Option<NodeId> {
        match self.parent {
            Parent::Node(id) => Some(id),
            _ => None,
        }
    }
}

/// Options that a node was opened with and that `query-named-block-nodes` or requests look at.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// `read-only`.
    pub read_only: bool,
    /// `auto-read-only`.
    pub auto_read_only: bool,
    /// `discard: unmap`.
    pub discard_unmap: bool,
    /// `detect-zeroes`.
    pub detect_zeroes: DetectZeroes,
    /// `cache.direct`.
    pub direct: bool,
    /// `cache.no-flush`.
    pub no_flush: bool,
    /// `force-share`.
    pub force_share: bool,
    /// Opened for `qemu-img check`: some validations are skipped.
    pub check: bool,
    /// Opened only to look at metadata (`BDRV_O_NO_IO`).
    pub no_io: bool,
}

/// What a node was given when it was opened or reopened, without its children.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Options common to all drivers.
    pub common: CommonOptions,
    /// Options of its driver, flat.
    pub own: Map<String, Value>,
    /// The common options that have a value since it was reopened, its parent's among them; none: all of them.
    pub set: Option<CommonOptions>,
}

/// A node of the graph (`BlockDriverState`).
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its node-name, given or generated.
    pub name: Rc<str>,
    /// Whether the name was generated (`#block…`).
    pub generated_name: bool,
    /// Driver and its state.
    pub driver: RefCell<Driver>,
    /// Options.
    pub options: RefCell<NodeOptions>,
    /// What it was given of them.
    pub given: RefCell<Given>,
    /// The parent whose options it takes over: it was opened inline.
    pub inherits_from: Cell<Option<NodeId>>,
    /// The links, from the top, below which it was opened inline, once the parent is gone.
    pub opened_below: RefCell<Vec<&'static str>>,
    /// The name of the backing node that the image itself asks for (`auto_backing_file`).
    pub automatic_backing: RefCell<Option<String>>,
    /// While it is being reopened: whether it could be written to before.
    pub(super) was_writable: Cell<bool>,
    /// Edges to children, oldest first.
    pub children: RefCell<Vec<Rc<Edge>>>,
    /// Edges from parents, newest first.
    pub parents: RefCell<Vec<Rc<Edge>>>,
    /// Dirty bitmaps.
    pub bitmaps: RefCell<BitmapList>,
    /// Length in bytes, a multiple of 512 (`total_sectors`).
    pub length: Cell<u64>,
    /// Whether blockdev-add owns a reference.
    pub monitor_owned: Cell<bool>,
    /// References: edges to it, the monitor's, temporary ones.
    pub references: Cell<u32>,
    /// Requests inside the node.
    pub in_flight: Counter<u32>,
    /// Drained sections that cover the node.
    pub quiesce: Cell<u32>,
    /// Tracked requests, serialising ones among them.
    pub tracker: Tracker,
    /// Counts completed writes; see flushing.
    pub write_generation: Counter<u64>,
    /// The write generation at the last successful flush.
    pub flushed_generation: Cell<u64>,
    /// A flush is under way; others wait.
    pub flush: crate::sim::CoMutex,
    /// Reason that blocks every block operation (`bdrv_op_block_all`), if any, with its owner.
    pub op_blockers: RefCell<Vec<(u32, Rc<str>)>>,
    /// Fatal corruption was met.
    pub ejected: Cell<bool>,
}

impl Node {
    /// Whether the node refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.options.borrow().read_only
    }

    /// Whether discards may reach the driver.
    pub fn discard_unmap(&self) -> bool {
        self.options.borrow().discard_unmap
    }

    /// The child edge called `name`.
    pub fn child(&self, name: &str) -> Option<Rc<Edge>> {
        self.children.borrow().iter().find(|edge| edge.name == name).cloned()
    }

    /// The child that holds what guests see (`bdrv_primary_child`).
    pub fn primary_child(&self) -> Option<NodeId> {
        let name = match &*self.driver.borrow() {
            Driver::Blkdebug(_) => "image",
            _ => "file",
        };
        self.child(name).map(|edge| edge.child.get())
    }

    /// The child below a filter, if this is one.
    pub fn filtered_child(&self) -> Option<NodeId> {
        match &*self.driver.borrow() {
            Driver::Blkdebug(_) | Driver::CopyBeforeWrite(_) => self.primary_child(),
            _ => None,
        }
    }

    /// The backing node.
    pub fn backing(&self) -> Option<NodeId> {
        self.child("backing").map(|edge| edge.child.get())
    }

    /// The driver's name as QMP shows it; none for an ejected node.
    pub fn driver_name(&self) -> Option<&'static str> {
        Some(match &*self.driver.borrow() {
            Driver::None => return None,
            Driver::File(_) => "file",
            Driver::Null(_) => "null-co",
            Driver::Raw(_) => "raw",
            Driver::Qcow2(_) => "qcow2",
            Driver::Blkdebug(_) => "blkdebug",
            Driver::CopyBeforeWrite(_) => "copy-before-write",
            Driver::SnapshotAccess => "snapshot-access",
        })
    }

    /// The qcow2 state, if this is a qcow2 node.
    pub fn qcow2(&self) -> Option<Rc<Qcow2>> {
        match &*self.driver.borrow() {
            Driver::Qcow2(q) => Some(q.clone()),
            _ => None,
        }
    }

    /// Says that a part of one of the node's bitmaps is used so.
    pub(super) fn note_bits(&self, id: BitmapId, offset: u64, bytes: u64, mode: Mode) {
        // Part 0 of the list is which bitmaps there are and what they do; the bits of each follow.
        const UNIT: u64 = 4096;
        let bits = (u64::from(id.0) + 1).min(4094) << 52;
        self.bitmaps.note(0, 1, Mode::Read);
        let end = offset.saturating_add(bytes).div_ceil(UNIT);
        self.bitmaps.note(bits + offset / UNIT, bits + end, mode);
    }

    /// Whether a bitmap forbids writes.
    pub fn any_bitmap_readonly(&self) -> bool {
        self.bitmaps.note(0, 1, Mode::Read);
        self.bitmaps.borrow_part().any_readonly()
    }

    /// A write has touched a range: every enabled bitmap notes it. Setting bits commutes with setting others.
    pub(super) fn mark_dirty(&self, offset: u64, bytes: u64) {
        self.bitmaps.note(0, 1, Mode::Read);
        let mut list = self.bitmaps.borrow_part_mut();
        for (id, _) in list.iter().filter(|(_, bitmap)| bitmap.enabled()) {
            self.note_bits(id, offset, bytes, Mode::Add);
        }
        list.mark_dirty(offset, bytes);
    }

    /// Whether each bitmap that records reaches up to `end`. If one does not, a write up to there fails an assertion of QEMU's
    /// (`hbitmap_set`).
    pub(super) fn records_up_to(&self, end: u64) -> bool {
        self.bitmaps.borrow_part().iter().all(|(_, bitmap)| !bitmap.enabled() || end <= bitmap.end_of_granules())
    }

    /// Whether two nodes are drained together: any section covers this one.
    pub fn is_quiesced(&self) -> bool {
        self.quiesce.get() > 0
    }
}
