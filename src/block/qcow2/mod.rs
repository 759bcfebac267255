//! The qcow2 driver: real bytes of the real format, written in QEMU's order.
//!
//! An image maps guest clusters through two levels of tables to clusters of its `file` node, counts
//! references to each of them, and keeps dirty bitmaps. Everything that reaches the file goes
//! through the block core's requests, so that blkdebug sees what it would see in QEMU, a power
//! cut can strike between any two writes, and the result can be opened by the real thing.
//!
//! | file | what it does |
//! | --- | --- |
//! | `layout`, `header`, `table`, `l2_table` | the format as numbers and bytes |
//! | `open`, `reopen`, `extensions`, `create`, `close`, `info` | an image's life |
//! | `cache`, `release_order`, `cache_io` | metadata in memory, and the order in which they are written |
//! | `refcount`, `alloc`, `refgrow` | who uses a cluster; finding free ones |
//! | `l2` | guest offset to host offset |
//! | `read`, `write`, `inflight`, `link`, `zero`, `compressed`, `pool` | guest requests |
//! | `preallocate` | clusters for data that may come |
//! | `preallocated` | mapped clusters that are holes of the file |
//! | `overlap` | no write may hit foreign metadata; corruption |
//! | `resize`, `bitmaps`, `bitmap_store`, `bitmap_format`, `snapshot`, `check`, `repair`, `rebuild` | everything else |
//!
//! Nothing here may panic on any image's bytes, and nothing writes to the file but through
//! [`Block`]. Guest data are never materialised, only cut and joined.

mod alloc;
mod bitmap_format;
mod bitmap_store;
mod bitmaps;
mod cache;
mod cache_io;
mod check;
mod close;
mod compressed;
mod copy_range;
mod create;
mod extensions;
mod header;
mod inflight;
mod info;
mod l2;
mod l2_table;
mod layout;
mod link;
mod open;
mod options;
mod overlap;
mod place_index;
mod pool;
mod preallocate;
mod preallocated;
mod read;
mod rebuild;
mod refcount;
mod references;
mod refgrow;
mod release_order;
mod reopen;
mod repair;
mod resize;
mod snapshot;
mod snapshot_check;
mod table;
mod write;
mod zero;

use std::rc::Rc;

use crate::sim::shared::{Cell, RefCell};
use crate::sim::{CoMutex, CoMutexGuard};
use crate::store::TEST_PREFIX;

use super::{Block, Edge, NodeId};
use cache::Cache;
use compressed::Threads;
use header::{COMPAT_LAZY_REFCOUNTS, Extras, Header, INCOMPAT_DIRTY};
use inflight::Allocation;
use l2_table::L2Table;
use layout::Geometry;
use overlap::Span;
use refcount::Reftable;
use snapshot::SnapshotTable;
use table::Refblock;

pub use check::{CheckResult, Fix};
pub use info::{BitmapInfo, Qcow2Info};
pub use options::{OpenFlags, Qcow2CreateOptions, Qcow2Options};
pub use snapshot::{CUT_HINT, Snapshot};

/// An open image (`BDRVQcow2State`).
pub struct Qcow2 {
    /// The qcow2 node itself.
    node: NodeId,
    /// The edge to what holds the image's bytes.
    file: Rc<Edge>,
    options: RefCell<Qcow2Options>,
    geo: Geometry,
    header: RefCell<Header>,
    extras: RefCell<Extras>,
    /// The image is named with the host's prefix, and so are its neighbours.
    prefixed: bool,
    /// Whether mapped clusters may be holes of the file; none: not looked at yet.
    preallocated: Cell<Option<bool>>,
    /// The active L1 table.
    l1: RefCell<Vec<u64>>,
    /// Where the tables lie that the active L1 table ever named.
    l2_span: Cell<Span>,
    /// Host offset of the active L1 table.
    l1_offset: Cell<u64>,
    reftable: RefCell<Reftable>,
    l2_cache: Cache<L2Table>,
    refcount_cache: Cache<Refblock>,
    /// Where the search for free clusters goes on, in clusters.
    free_cluster_index: Cell<u64>,
    /// Where the next compressed cluster goes, bytes; 0: into a new cluster.
    free_byte_offset: Cell<u64>,
    /// Held while tables are looked at or changed, not while guest data move.
    lock: CoMutex,
    /// Work on compressed clusters.
    threads: Threads,
    /// Allocating writes, oldest first.
    in_flight: RefCell<Vec<Rc<Allocation>>>,
    /// Freed ranges of the file (begin, end) whose holes are yet to be punched.
    discards: RefCell<Vec<(u64, u64)>>,
    /// Holes are collected until the end of the operation.
    cache_discards: Cell<bool>,
    snapshots: RefCell<SnapshotTable>,
    read_only: Cell<bool>,
    signaled_corruption: Cell<bool>,
    /// Corruption has detached the driver.
    ejected: Cell<bool>,
}

impl Qcow2 {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.geo.cluster_size()
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.geo.version
    }

    /// Units in which zero writes are cheap, bytes.
    pub fn zeroes_alignment(&self) -> u64 {
        self.geo.cluster_size()
    }

    /// Virtual size, bytes, a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        self.header.borrow().size & !511
    }

    /// The backing file's name. What stands in the image is relative to its directory, so that real
    /// tools find real files; the host's prefix is put back here.
    pub fn backing_name(&self) -> Option<String> {
        let stored = self.extras.borrow().backing_name.clone();
        stored.map(|name| if self.prefixed { prefixed_name(name) } else { name })
    }

    /// The backing file's format in the image.
    pub fn backing_format(&self) -> Option<String> {
        self.extras.borrow().backing_format.clone()
    }

    /// The node that unallocated clusters read from; none: they read as zeros.
    fn backing(&self, block: &Block) -> Option<NodeId> {
        block.node(self.node).backing()
    }

    /// The node that holds the image's bytes: a filter, while one is above the file.
    pub fn file(&self) -> NodeId {
        self.file.child.get()
    }

    /// Whether refcounts in the file may be wrong until the image is closed or repaired.
    pub fn is_dirty(&self) -> bool {
        self.header.borrow().incompatible & INCOMPAT_DIRTY != 0
    }

    /// Whether corruption has detached the driver from its node.
    pub fn is_ejected(&self) -> bool {
        self.ejected.get()
    }

    /// Whether some request holds the image's lock, so that others wait.
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// Takes the image's lock.
    #[inline]
    pub(super) async fn lock<'a>(&'a self, block: &'a Block) -> CoMutexGuard<'a> {
        self.lock.lock(&block.sim, LOCK).await
    }

    /// Whether refcount updates may be postponed at the price of a repair after a crash.
    fn uses_lazy_refcounts(&self) -> bool {
        self.lazy_refcounts_with(&self.options.borrow())
    }

    /// Whether they may be postponed with these options.
    fn lazy_refcounts_with(&self, options: &Qcow2Options) -> bool {
        options.lazy_refcounts.unwrap_or_else(|| self.header.borrow().compatible & COMPAT_LAZY_REFCOUNTS != 0)
    }

    /// Whether refcounts in the file must be right at all times.
    fn needs_accurate_refcounts(&self) -> bool {
        !self.is_dirty()
    }
}

/// The host's name of a file that stands beside the image.
fn prefixed_name(stored: String) -> String {
    let elsewhere = stored.contains(['/', ':']);
    if elsewhere { stored } else { format!("{TEST_PREFIX}{stored}") }
}

/// What who waits for an image's lock waits for.
const LOCK: &str = "the lock of a qcow2 image";

/// What stands in the image for a file of that name.
fn stored_name(name: &str) -> &str {
    name.strip_prefix(TEST_PREFIX).filter(|plain| !plain.is_empty() && !plain.contains(['/', ':'])).unwrap_or(name)
}
