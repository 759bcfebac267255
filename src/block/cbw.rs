//! The copy-before-write filter: guest writes wait until what they overwrite has been copied.
//!
//! It also serves the snapshot interface: reads that show the disk as it was, from the target where a
//! cluster has been copied, else from the source, which guest writes must then leave alone until
//! the read is over. QEMU's source: `block/copy-before-write.c`. It knows nothing of jobs.

use std::rc::Rc;

use crate::bitmap::{BitmapId, DirtyBitmap};
use crate::errno::{Errno, Res};
use crate::sim::access::Mode;
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{Nanos, Sleeper, TraceEvent, WaitQueue};
use crate::store::Content;

use super::backend::InFlight;
use super::block_copy::{BlockCopy, CallOptions, MAX_WORKERS};
use super::flags::{BlockStatus, ReqFlags, StatusFlags};
use super::graph::Block;
use super::node::{Driver, NodeId};

/// What happens when copying before a write fails (`on-cbw-error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnCbwError {
    /// The guest's write fails.
    #[default]
    BreakGuestWrite,
    /// The snapshot is broken, the guest goes on.
    BreakSnapshot,
}

/// A range that a snapshot read takes from the source; guest writes there wait.
struct FrozenRead {
    id: u64,
    offset: u64,
    bytes: u64,
    waiters: Rc<WaitQueue>,
}

/// State of a copy-before-write node.
pub struct CopyBeforeWrite {
    /// The filter itself.
    node: NodeId,
    /// The copying machinery, shared with a backup job.
    pub copy: Rc<BlockCopy>,
    /// Clusters that snapshot reads may see.
    access: BitmapId,
    /// Clusters that are in the target because of a guest's write.
    done: BitmapId,
    frozen: RefCell<Vec<FrozenRead>>,
    next_read: Cell<u64>,
    on_error: OnCbwError,
    /// Longest time that a guest's write waits, ns; 0: for ever.
    timeout: Nanos,
    /// The failure that broke the snapshot.
    broken: Cell<Option<Errno>>,
}

/// Options of the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct CbwOptions {
    /// `bitmap`: only these clusters are kept and shown.
    pub bitmap: Option<(NodeId, BitmapId)>,
    /// `on-cbw-error`.
    pub on_error: OnCbwError,
    /// `cbw-timeout`, seconds.
    pub timeout_s: u32,
    /// `min-cluster-size`, bytes; 0: none.
    pub min_cluster_size: u64,
    /// `discard-source` of the backup that makes the filter.
    pub discard_source: bool,
}

/// What a snapshot read got from its lock step.
struct Locked {
    from: NodeId,
    bytes: u64,
    frozen: Option<u64>,
}

impl CopyBeforeWrite {
    /// The state of filter `node` between `source` and `target`.
    pub async fn open(
        block: &Rc<Block>,
        node: NodeId,
        source: NodeId,
        target: NodeId,
        options: CbwOptions,
    ) -> Result<CopyBeforeWrite, String> {
        let bitmap_node = if block.quirks.copy_bitmap_on_filter { node } else { source };
        let filter = block.node(node);
        let edges = filter.child("file").zip(filter.child("target")).ok_or("a filter between nothing")?;
        let copy =
            BlockCopy::new(block, edges, bitmap_node, options.bitmap, options.min_cluster_size, options.discard_source)
                .await
                .map_err(|reason| format!("Cannot create block-copy-state: {reason}"))?;
        let (length, cluster) = (block.length(&block.node(source)), copy.cluster_size);
        let mut list = filter.bitmaps.borrow_mut();
        let done = list.create(length, cluster, None).map_err(|fault| fault.to_string())?;
        let access = list.create(length, cluster, None).map_err(|fault| fault.to_string())?;
        for id in [done, access] {
            if let Some(bitmap) = list.get_mut(id) {
                bitmap.disabled = true;
            }
        }
        drop(list);
        let contents = copy.with_bitmap(block, |copy| copy.contents());
        if let Some(bitmap) = filter.bitmaps.borrow_mut().get_mut(access) {
            bitmap.restore(contents);
        }
        let mut timeout = u64::from(options.timeout_s) * 1_000_000_000;
        if block.quirks.cbw_timeout_32_bits {
            timeout &= u64::from(u32::MAX);
        }
        block.witness_snapshot(node, source, target, options.bitmap.is_none());
        Ok(CopyBeforeWrite {
            node,
            copy: Rc::new(copy),
            access,
            done,
            frozen: RefCell::default(),
            next_read: Cell::new(0),
            on_error: options.on_error,
            timeout,
            broken: Cell::new(None),
        })
    }

    /// Whether copied clusters are discarded on the source.
    pub fn discards_source(&self) -> bool {
        self.copy.discard_source
    }

    /// Drops the bitmaps that the filter owns.
    pub fn close(&self, block: &Block) {
        self.copy.release(block);
        if let Some(node) = block.try_node(self.node) {
            let mut list = node.bitmaps.borrow_mut();
            list.release(self.access);
            list.release(self.done);
        }
    }

    /// Runs `f` on a part of one of the filter's own bitmaps, which it uses so.
    fn with_own<T>(
        &self,
        block: &Block,
        id: BitmapId,
        (offset, bytes): (u64, u64),
        mode: Mode,
        f: impl FnOnce(&mut DirtyBitmap) -> T,
    ) -> T {
        let node = block.node(self.node);
        node.note_bits(id, offset, bytes, mode);
        let mut list = node.bitmaps.borrow_part_mut();
        f(list.get_mut(id).expect("a filter's bitmaps live as long as it does"))
    }

    /// Notes what is in the target. The filter learns that the disk grows when the write has ended, so one that makes it
    /// longer comes too early.
    fn note_done(&self, block: &Block, start: u64, length: u64) {
        let fits = self.with_own(block, self.done, (start, length), Mode::Add, |done| {
            done.set(start, length);
            start + length <= done.end_of_granules()
        });
        if !fits {
            block.abort("a guest's write ends behind the filter's bitmap of what is copied");
        }
    }

    /// Copies what a guest's write of `offset..offset+bytes` is about to change
    /// (`cbw_do_copy_before_write`).
    pub async fn before_write(self: &Rc<Self>, block: &Rc<Block>, offset: u64, bytes: u64, flags: ReqFlags) -> Res<()> {
        if flags.contains(ReqFlags::UNCHANGED) || self.broken.get().is_some() {
            return Ok(());
        }
        let cluster = self.copy.cluster_size;
        let start = offset - offset % cluster;
        let length = (offset + bytes).next_multiple_of(cluster) - start;
        let options =
            CallOptions { offset: start, bytes: length, max_workers: MAX_WORKERS, max_chunk: 0, ignore_limit: true };
        let result = if self.timeout == 0 {
            let node = block.node(self.node);
            let _in_flight = InFlight::new(&node.in_flight);
            self.copy.run(block, options).await
        } else {
            self.copy_with_timeout(block, options).await
        };
        match result {
            Err(error) if self.on_error == OnCbwError::BreakGuestWrite => return Err(error),
            Err(error) => self.broken.set(self.broken.get().or(Some(error))),
            Ok(()) => self.note_done(block, start, length),
        }
        if block.quirks.defects.fleecing_read_unprotected {
            return Ok(());
        }
        self.wait_for_frozen_reads(block, start, length).await;
        Ok(())
    }

    /// Runs the call in a coroutine of its own and stops waiting for it after the time-out; the call
    /// goes on and keeps the filter busy until it has ended.
    async fn copy_with_timeout(self: &Rc<Self>, block: &Rc<Block>, options: CallOptions) -> Res<()> {
        let sleeper = Rc::new(Sleeper::default());
        let node = block.node(self.node);
        node.in_flight.add(1);
        let (ended, sim) = (sleeper.clone(), block.sim.clone());
        let call = self.copy.start(block, options, move || {
            node.in_flight.sub(1);
            ended.wake(&sim);
        });
        if !call.is_finished() {
            sleeper.sleep(&block.sim, self.timeout).await;
        }
        if !call.is_finished() {
            call.cancel(&block.sim);
            return Err(Errno::ETIMEDOUT);
        }
        call.failure().map_or(Ok(()), |(error, _)| Err(error))
    }

    async fn wait_for_frozen_reads(&self, block: &Block, offset: u64, bytes: u64) {
        loop {
            let waiters = {
                let frozen = self.frozen.borrow();
                let overlapping =
                    frozen.iter().rev().find(|r| r.offset < offset + bytes && offset < r.offset + r.bytes);
                match overlapping {
                    None => return,
                    Some(read) => read.waiters.clone(),
                }
            };
            waiters.wait(&block.sim, "a snapshot read").await;
        }
    }

    /// Decides where the first part of a snapshot read comes from, and freezes it
    /// (`cbw_snapshot_read_lock`). Never yields.
    fn lock(&self, block: &Block, offset: u64, bytes: u64) -> Res<Locked> {
        let hidden = self.with_own(block, self.access, (offset, bytes), Mode::Read, |access| {
            access.next_zero(offset, bytes).is_some()
        });
        if self.broken.get().is_some() || hidden {
            return Err(Errno::EACCES);
        }
        let (is_done, run) = self.done_run(block, offset, bytes);
        if is_done {
            return Ok(Locked { from: self.copy.target(), bytes: run, frozen: None });
        }
        let id = self.next_read.get();
        self.next_read.set(id + 1);
        // The whole request is frozen, though only a part of it may be read now.
        self.frozen.borrow_mut().push(FrozenRead { id, offset, bytes, waiters: Rc::default() });
        Ok(Locked { from: self.copy.source(), bytes: run, frozen: Some(id) })
    }

    /// Whether the range begins with clusters that are done, and how far that goes.
    fn done_run(&self, block: &Block, offset: u64, bytes: u64) -> (bool, u64) {
        self.with_own(block, self.done, (offset, bytes), Mode::Read, |done| {
            if !done.is_set(offset) {
                let run = done.next_dirty(offset, bytes).map_or(bytes, |next| next - offset);
                return (false, run);
            }
            match done.next_zero(offset, bytes) {
                None => (true, bytes),
                Some(next) => (!block.quirks.snapshot_done_lookup_wrong, next - offset),
            }
        })
    }

    fn unlock(&self, block: &Block, locked: &Locked) {
        let Some(id) = locked.frozen else { return };
        let mut frozen = self.frozen.borrow_mut();
        let Some(index) = frozen.iter().position(|read| read.id == id) else { return };
        let read = frozen.remove(index);
        drop(frozen);
        read.waiters.wake_all(&block.sim);
    }
}

impl Block {
    /// The filter below `node`, if that is a snapshot-access node.
    pub fn snapshot_filter(&self, node: NodeId) -> Option<NodeId> {
        let node = self.node(node);
        let shows = matches!(&*node.driver.borrow(), Driver::SnapshotAccess);
        if shows { node.primary_child() } else { None }
    }

    /// The filter whose snapshot a snapshot-access node shows.
    fn snapshot_of(&self, node: NodeId) -> Res<Rc<CopyBeforeWrite>> {
        match &*self.node(node).driver.borrow() {
            Driver::CopyBeforeWrite(cbw) => Ok(cbw.clone()),
            _ => Err(Errno::ENOTSUP),
        }
    }

    /// Reads the disk as it was (`cbw_co_preadv_snapshot`).
    pub(super) async fn snapshot_read(self: &Rc<Self>, filter: NodeId, offset: u64, bytes: u64) -> Res<Content> {
        let cbw = self.snapshot_of(filter)?;
        let mut content = Content::zeros(0);
        while content.len() < bytes {
            let pos = offset + content.len();
            let locked = cbw.lock(self, pos, bytes - content.len())?;
            let piece = self.co_pread(locked.from, pos, locked.bytes, ReqFlags::NONE).await;
            cbw.unlock(self, &locked);
            content.push(piece?);
        }
        let node = || self.node(filter).name.clone();
        self.sim.emit(|| TraceEvent::SnapshotRead { filter: node(), offset, content: content.fills() });
        Ok(content)
    }

    /// Block status of the disk as it was (`cbw_co_snapshot_block_status`).
    pub(super) async fn snapshot_status(self: &Rc<Self>, filter: NodeId, offset: u64, bytes: u64) -> Res<BlockStatus> {
        let cbw = self.snapshot_of(filter)?;
        let locked = cbw.lock(self, offset, bytes)?;
        // It always asks where zeros are, whatever its own caller wants to know, so that what the source's layer does
        // not have counts as allocated zeros where there is no backing file.
        let status = self.co_block_status(locked.from, offset, locked.bytes, true).await;
        cbw.unlock(self, &locked);
        let is_nowhere = status.as_ref().is_ok_and(|status| !status.flags.contains(StatusFlags::ALLOCATED));
        if self.quirks.copied_is_asserted && locked.from == cbw.copy.target() && is_nowhere {
            self.abort("what a filter has copied is not allocated in its target");
        }
        status
    }

    /// Gives clusters of the snapshot up: they are neither kept nor shown any more
    /// (`cbw_co_pdiscard_snapshot`).
    pub(super) async fn snapshot_discard(self: &Rc<Self>, filter: NodeId, offset: u64, bytes: u64) -> Res<()> {
        let cbw = self.snapshot_of(filter)?;
        let cluster = cbw.copy.cluster_size;
        let start = offset.next_multiple_of(cluster);
        let asked = offset + bytes;
        let end = if asked >= cbw.copy.length { cbw.copy.length } else { asked - asked % cluster };
        if !self.quirks.snapshot_discard_rounds && (start != offset || end != asked) {
            self.abort("a part of a cluster of a snapshot is discarded");
            return Err(Errno::EINVAL);
        }
        if end <= start {
            return Ok(());
        }
        cbw.with_own(self, cbw.access, (start, end - start), Mode::Write, |access| access.reset(start, end - start));
        cbw.copy.with_bitmap(self, |copy| copy.reset(start, end - start));
        cbw.copy.update_progress(self);
        self.co_pdiscard(cbw.copy.target(), start, end - start).await
    }
}
