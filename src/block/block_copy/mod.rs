//! block-copy: copies dirty clusters from one node to another, for guests and in the background.
//!
//! The copy bitmap says what is still to be copied. A *task* takes an area out of it before any
//! I/O and holds its range until it has ended; a *call* works through a range with parallel tasks and waits for
//! those of others. Copy-before-write makes a call for each guest write, a backup job one for the whole
//! disk. QEMU's source: `block/block-copy.c`. Nothing here knows what a job or a filter is.

mod call;
mod limit;
mod row;
mod task;

use std::rc::Rc;

use crate::bitmap::{BitmapFault, BitmapId, DirtyBitmap};
use crate::sim::access::Mode;
use crate::sim::shared::{Cell, Counter, RefCell};
use crate::sim::{WaitQueue, access};

use super::flags::ReqFlags;
use super::graph::Block;
use super::node::{Driver, Edge, NodeId};

pub use call::{Call, CallOptions};
pub use limit::RateLimit;
use task::Request;

/// The smallest backup cluster, bytes.
const CLUSTER_SIZE_DEFAULT: u64 = 1 << 16;
/// Chunks of reading and writing, bytes (`BLOCK_COPY_MAX_BUFFER`).
const MAX_BUFFER: u64 = 1 << 20;
/// Chunks of copying inside the host, bytes (`BLOCK_COPY_MAX_COPY_RANGE`).
const MAX_COPY_RANGE: u64 = 16 << 20;
/// Memory for data in flight, bytes (`BLOCK_COPY_MAX_MEM`).
const MAX_MEMORY: u64 = 128 << 20;
/// Parallel tasks of a guest's call (`BLOCK_COPY_MAX_WORKERS`).
pub const MAX_WORKERS: u32 = 64;

/// How data are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Read and write one cluster at a time.
    Cluster,
    /// Read and write.
    ReadWrite,
    /// Try to copy inside the host, in small chunks until it has worked once.
    RangeSmall,
    /// Copying inside the host has worked.
    RangeFull,
    /// The source is known to be zero there.
    WriteZeroes,
}

/// Progress of a job: bytes done and bytes in all (`ProgressMeter`).
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes done.
    pub current: Counter<u64>,
    /// Bytes to do in all: those done and those left, looked up anew by each who has changed either.
    pub total: Counter<u64>,
}

impl Progress {
    /// `bytes` more are done.
    pub fn work_done(&self, bytes: u64) {
        self.current.add(bytes);
    }

    /// So much is left.
    pub fn set_remaining(&self, bytes: u64) {
        self.total.refresh(access::unseen(|| self.current.get()) + bytes);
    }
}

/// What all calls between one source and one target share (`BlockCopyState`).
pub struct BlockCopy {
    source: Rc<Edge>,
    target: Rc<Edge>,
    /// The node that the copy bitmap is listed on, and the bitmap.
    bitmap: (NodeId, BitmapId),
    /// The unit of copying, bytes.
    pub cluster_size: u64,
    /// Length of the source when the state was made, bytes.
    pub length: u64,
    max_transfer: u64,
    method: Cell<Method>,
    write_flags: Cell<ReqFlags>,
    /// Clusters that the top layer of the source does not have are left out.
    pub skip_unallocated: Cell<bool>,
    /// Discard what has been copied on the source.
    pub discard_source: bool,
    in_flight: Counter<u64>,
    /// Ranges in flight, newest first.
    requests: RefCell<Vec<Rc<Request>>>,
    /// Background limit.
    pub limit: RateLimit,
    /// Bytes taken of [`MAX_MEMORY`].
    memory_taken: Counter<u64>,
    memory_waiters: WaitQueue,
    /// A job's progress, once there is a job.
    pub progress: RefCell<Option<Rc<Progress>>>,
    calls: RefCell<Vec<Rc<Call>>>,
    /// The last area that could not be copied, for the defect that forgets it.
    failed: Cell<(u64, u64)>,
}

/// Why a block-copy state could not be made.
pub type SetupError = String;

impl BlockCopy {
    /// Where data come from: an overlay, once one was put between the filter and the disk.
    pub fn source(&self) -> NodeId {
        self.source.child.get()
    }

    /// Where they go.
    pub fn target(&self) -> NodeId {
        self.target.child.get()
    }

    /// A state with every cluster to be copied, or those of `bitmap`.
    pub async fn new(
        block: &Rc<Block>,
        (source, target): (Rc<Edge>, Rc<Edge>),
        bitmap_node: NodeId,
        bitmap: Option<(NodeId, BitmapId)>,
        min_cluster_size: u64,
        discard_source: bool,
    ) -> Result<BlockCopy, SetupError> {
        let (source_id, target_id) = (source.child.get(), target.child.get());
        let cluster_size = choose_cluster_size(block, target_id, min_cluster_size)?;
        let length = block.length(&block.node(source_id));
        let copy = {
            let node = block.node(bitmap_node);
            let mut list = node.bitmaps.borrow_mut();
            let id = list.create(length, cluster_size, None).map_err(|fault| fault.to_string())?;
            if let Some(copy) = list.get_mut(id) {
                copy.disabled = true;
                copy.fill(bitmap.is_none());
            }
            id
        };
        let limits = [source_id, target_id].map(|id| block.max_transfer(&block.node(id)));
        let max_transfer = limits[0].min(limits[1]).min(i32::MAX as u64);
        let max_transfer = max_transfer - max_transfer % cluster_size;
        let is_fleecing = block.chain_contains(target_id, source_id);
        if is_fleecing {
            block.node(target_id).tracker.expect_serialising();
        }
        let state = BlockCopy {
            source,
            target,
            bitmap: (bitmap_node, copy),
            cluster_size,
            length,
            max_transfer,
            method: Cell::new(Method::ReadWrite),
            write_flags: Cell::new(if is_fleecing { ReqFlags::SERIALISING } else { ReqFlags::NONE }),
            skip_unallocated: Cell::new(false),
            discard_source,
            in_flight: Counter::default(),
            requests: RefCell::default(),
            limit: RateLimit::default(),
            memory_taken: Counter::default(),
            memory_waiters: WaitQueue::default(),
            progress: RefCell::default(),
            calls: RefCell::default(),
            failed: Cell::new((0, 0)),
        };
        state.set_options(false, false);
        if let Some(from) = bitmap
            && let Err(fault) = state.merge_from(block, from)
        {
            state.release(block);
            let name = block.node(from.0).bitmaps.borrow().get(from.1).and_then(|bitmap| bitmap.name.clone());
            let name = name.unwrap_or_default();
            return Err(format!("Failed to merge bitmap '{name}' to internal copy-bitmap: {fault}"));
        }
        Ok(state)
    }

    /// Chooses how data are moved (`block_copy_set_copy_opts`).
    pub fn set_options(&self, use_copy_range: bool, compress: bool) {
        let flags = self.write_flags.get() & ReqFlags::SERIALISING;
        self.write_flags.set(if compress { flags | ReqFlags::COMPRESSED } else { flags });
        self.method.set(if self.max_transfer < self.cluster_size || compress {
            Method::Cluster
        } else if use_copy_range {
            Method::RangeSmall
        } else {
            Method::ReadWrite
        });
    }

    /// Runs `f` on the copy bitmap.
    pub fn with_bitmap<T>(&self, block: &Block, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        let node = block.node(self.bitmap.0);
        let mut list = node.bitmaps.borrow_mut();
        f(list.get_mut(self.bitmap.1).expect("the copy bitmap lives as long as its filter"))
    }

    /// Runs `f` on a part of the copy bitmap, which it uses so.
    pub(super) fn with_bits<T>(
        &self,
        block: &Block,
        (offset, bytes): (u64, u64),
        mode: Mode,
        f: impl FnOnce(&mut DirtyBitmap) -> T,
    ) -> T {
        let node = block.node(self.bitmap.0);
        node.note_bits(self.bitmap.1, offset, bytes, mode);
        let mut list = node.bitmaps.borrow_part_mut();
        f(list.get_mut(self.bitmap.1).expect("the copy bitmap lives as long as its filter"))
    }

    /// Marks to be copied what another bitmap has set.
    fn merge_from(&self, block: &Block, from: (NodeId, BitmapId)) -> Result<(), BitmapFault> {
        let node = block.node(from.0);
        let source = node.bitmaps.borrow().get(from.1).cloned().ok_or(BitmapFault::Unknown(from.1))?;
        self.with_bitmap(block, |copy| copy.merge_from(&source))
    }

    /// Sets the copy bitmap to exactly what `from` has set (the start of a bitmap backup).
    pub fn reset_to(&self, block: &Block, from: (NodeId, BitmapId)) {
        self.with_bitmap(block, |copy| copy.fill(false));
        block.assert_merged(self.merge_from(block, from));
    }

    /// The copy bitmap's place.
    pub fn bitmap(&self) -> (NodeId, BitmapId) {
        self.bitmap
    }

    /// Takes the last area that could not be copied for done: what the defect `stop-loses-chunk` does.
    pub fn forget_failed(&self, block: &Block) {
        let (offset, bytes) = self.failed.replace((0, 0));
        if bytes > 0 {
            self.with_bitmap(block, |copy| copy.reset(offset, bytes));
        }
    }

    /// Drops the copy bitmap; the state must not be used afterwards.
    pub fn release(&self, block: &Block) {
        if let Some(node) = block.try_node(self.bitmap.0) {
            node.bitmaps.borrow_mut().release(self.bitmap.1);
        }
    }

    /// Bytes that are neither copied nor being copied, and those in flight.
    pub fn remaining(&self, block: &Block) -> u64 {
        self.with_bitmap(block, |copy| copy.count_bytes()) + self.in_flight.get()
    }

    /// Tells the job that `bytes` more are copied.
    fn work_done(&self, bytes: u64) {
        let progress = self.progress.borrow().clone();
        if let Some(progress) = progress {
            progress.work_done(bytes);
        }
    }

    /// Tells the job what is left.
    pub fn update_progress(&self, block: &Block) {
        let progress = self.progress.borrow().clone();
        if let Some(progress) = progress {
            // What is left does not depend on who has taken which part of it: others' tasks only move it.
            progress.set_remaining(access::unseen(|| self.remaining(block)));
        }
    }

    /// Bytes of one task at most.
    fn chunk_size(&self) -> u64 {
        match self.method.get() {
            Method::Cluster | Method::WriteZeroes => self.cluster_size,
            Method::ReadWrite | Method::RangeSmall => self.cluster_size.max(MAX_BUFFER).min(self.max_transfer),
            Method::RangeFull => self.cluster_size.max(MAX_COPY_RANGE).min(self.max_transfer),
        }
    }

    /// Sets the speed of background calls, bytes per second (0: unlimited), and lets sleepers look
    /// at it again.
    pub fn set_speed(&self, block: &Block, speed: u64) {
        self.limit.set_speed(speed);
        // A call that goes on may end, and leaves the list then.
        let calls = self.calls.borrow().clone();
        for call in calls {
            call.kick(&block.sim);
        }
    }
}

/// The unit of copying: what the target writes in one piece, but not below 64 KiB
/// (`block_copy_calculate_cluster_size`).
fn choose_cluster_size(block: &Rc<Block>, target: NodeId, min_cluster_size: u64) -> Result<u64, SetupError> {
    if i64::try_from(min_cluster_size).is_err() {
        return Err(format!("min-cluster-size too large: {min_cluster_size} > {}", i64::MAX));
    }
    if min_cluster_size != 0 && !min_cluster_size.is_power_of_two() {
        return Err("min-cluster-size needs to be a power of 2".to_owned());
    }
    if min_cluster_size > 1 << 31 {
        return Err("not modelled: a min-cluster-size of 4 GiB or more, which aborts QEMU".to_owned());
    }
    let floor = min_cluster_size.max(CLUSTER_SIZE_DEFAULT);
    let node = block.node(block.skip_filters(target));
    let has_backing = node.backing().is_some();
    match &*node.driver.borrow() {
        Driver::Qcow2(qcow2) => return Ok(floor.max(qcow2.cluster_size())),
        Driver::File(_) | Driver::Raw(_) => return Ok(floor),
        _ => {}
    }
    if !has_backing {
        block.report_stderr(unknown_cluster_size_warning(block, floor));
    }
    Ok(floor)
}

fn unknown_cluster_size_warning(block: &Block, size: u64) -> String {
    let (the, assumed) = if block.quirks.since_9 {
        ("The (default) block size", "block size")
    } else {
        ("The default block size", "default")
    };
    format!(
        "{}: warning: The target block device doesn't provide information about the block size and it \
         doesn't have a backing file. {the} of {size} bytes is used. If the actual block size of the \
         target exceeds this {}, the backup may be unusable",
        block.program,
        if block.quirks.since_9 { "value" } else { assumed }
    )
}
