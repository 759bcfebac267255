//! Refcounts: looking them up, raising and lowering them.
//!
//! Only cached refcount blocks are changed here; they reach the file with the cache. A range is
//! changed as a whole or not at all. Refcount blocks that do not exist yet are made by
//! `refgrow.rs`. QEMU's source: `update_refcount` and friends in `block/qcow2-refcount.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BoxFuture};
use crate::cutils::alternate_hex;
use crate::errno::{Errno, Res};

use super::Qcow2;
use super::cache::TableRef;
use super::layout::{ClusterType, ENTRY_BYTES, L2E_OFFSET_MASK, REFT_OFFSET_MASK};
use super::table::Refblock;

/// Why clusters are freed, which decides whether the host gets them back
/// (`enum qcow2_discard_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscardType {
    /// Keep them in the host file.
    Never,
    /// Always punch a hole.
    Always,
    /// The guest asked for it: if the node may unmap.
    Request,
    /// Anything else, metadata above all.
    Other,
}

/// The refcount table: the offsets of the refcount blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Reftable {
    /// Host offset.
    pub(super) offset: u64,
    /// Entries that the table has room for.
    pub(super) len: u64,
    /// The entries up to the last that was ever set.
    pub(super) entries: Vec<u64>,
}

impl Reftable {
    /// The offset of the refcount block at `index`, 0 if there is none.
    #[inline]
    pub(super) fn block_offset(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|i| self.entries.get(i)).map_or(0, |entry| entry & REFT_OFFSET_MASK)
    }

    /// Sets an entry, which must lie within `len`.
    pub(super) fn set(&mut self, index: u64, entry: u64) {
        let index = index as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, 0);
        }
        self.entries[index] = entry;
    }

    /// Bytes of the table in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.len * ENTRY_BYTES
    }
}

/// Which way a refcount goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// One user more.
    Up,
    /// One user less.
    Down,
}

impl Qcow2 {
    /// Reads the refcount of a cluster.
    #[inline]
    pub(super) async fn get_refcount(&self, block: &Rc<Block>, cluster: u64) -> Res<u64> {
        let table_index = cluster >> self.geo.refblock_bits();
        let offset = self.reftable.borrow().block_offset(table_index);
        if offset == 0 {
            return Ok(0);
        }
        if self.geo.into_cluster(offset) != 0 {
            return Err(self.unaligned_refblock(block, offset, table_index).await);
        }
        let refblock = self.cache_get(block, &self.refcount_cache, offset).await?;
        let index = (cluster & (self.geo.refblock_entries() - 1)) as usize;
        Ok(refblock.read(|table| table.get(self.geo.refcount_order, index)))
    }

    pub(super) fn unaligned_refblock<'a>(
        &'a self,
        block: &'a Rc<Block>,
        offset: u64,
        table_index: u64,
    ) -> BoxFuture<'a, Errno> {
        Box::pin(async move {
            let message =
                format!("Refblock offset {offset:#x} unaligned (reftable index: {})", alternate_hex(table_index));
            self.signal_corruption(block, true, None, message).await;
            Errno::EIO
        })
    }

    /// Changes the refcounts of all clusters that the range touches, by one. EAGAIN: a refcount
    /// block had to be allocated, and free clusters must be looked for again.
    pub(super) async fn update_refcount(
        &self,
        block: &Rc<Block>,
        offset: u64,
        bytes: u64,
        change: Change,
        discard: DiscardType,
    ) -> Res<()> {
        if bytes == 0 {
            return Ok(());
        }
        if change == Change::Down {
            self.refcounts_depend_on_l2(block).await;
        }
        let cluster_size = self.geo.cluster_size();
        let start = self.geo.cluster_start(offset);
        let last = self.geo.cluster_start(offset.checked_add(bytes - 1).ok_or(Errno::EINVAL)?);
        let mut refblock: Option<(u64, TableRef<'_, Refblock>)> = None;
        let mut result = Ok(());
        let mut at = start;
        while at <= last {
            result = self.update_one(block, &mut refblock, (at, offset), change, discard).await;
            if result.is_err() {
                break;
            }
            at += cluster_size;
        }
        if !self.cache_discards.get() {
            self.process_discards(block, result.is_ok()).await;
        }
        drop(refblock);
        if result.is_err() {
            self.roll_back(block, offset, at, change).await;
        }
        result
    }

    /// Changes the refcount of the cluster at `at`, part of a range that starts at `range_start`.
    async fn update_one<'a>(
        &'a self,
        block: &Rc<Block>,
        current: &mut Option<(u64, TableRef<'a, Refblock>)>,
        (at, range_start): (u64, u64),
        change: Change,
        discard: DiscardType,
    ) -> Res<()> {
        let cluster = at >> self.geo.cluster_bits;
        let table_index = cluster >> self.geo.refblock_bits();
        if current.as_ref().is_none_or(|(index, _)| *index != table_index) {
            *current = None;
            match self.refblock_for(block, cluster).await {
                Ok(refblock) => *current = Some((table_index, refblock)),
                Err(error) => {
                    if error == Errno::EAGAIN {
                        let first = self.geo.cluster_start(range_start) >> self.geo.cluster_bits;
                        self.free_cluster_index.set(self.free_cluster_index.get().min(first));
                    }
                    return Err(error);
                }
            }
        }
        let Some((_, refblock)) = current else { return Err(Errno::EIO) };
        let order = self.geo.refcount_order;
        let index = (cluster & (self.geo.refblock_entries() - 1)) as usize;
        let old = refblock.update(|table| table.get(order, index));
        let new = match change {
            Change::Up => old.checked_add(1).filter(|new| *new <= self.geo.refcount_max()),
            Change::Down => old.checked_sub(1),
        };
        let new = new.ok_or(Errno::EINVAL)?;
        if new == 0 {
            self.free_cluster_index.set(self.free_cluster_index.get().min(cluster));
        }
        refblock.update(|table| table.set(order, index, new));
        if new == 0 {
            // Tables in freed clusters must not be written any more.
            self.forget_tables_at(range_start, current);
            if self.passes_discard(block, discard) {
                self.queue_discard(at, self.geo.cluster_size());
            }
        }
        Ok(())
    }

    fn forget_tables_at(&self, offset: u64, current: &mut Option<(u64, TableRef<'_, Refblock>)>) {
        if let Some(table) = self.refcount_cache.lookup(offset) {
            drop(table);
            *current = None;
            self.refcount_cache.discard(offset);
        }
        if let Some(table) = self.l2_cache.lookup(offset) {
            drop(table);
            self.l2_cache.discard(offset);
        }
    }

    /// Takes back what was changed before the cluster at `stop` failed.
    fn roll_back<'a>(&'a self, block: &'a Rc<Block>, offset: u64, stop: u64, change: Change) -> BoxFuture<'a, ()> {
        let back = match change {
            Change::Up => Change::Down,
            Change::Down => Change::Up,
        };
        Box::pin(async move {
            let bytes = stop.saturating_sub(offset);
            // Nothing better can be done if this fails too: clusters leak.
            let _ = self.update_refcount(block, offset, bytes, back, DiscardType::Never).await;
        })
    }

    /// Gives up one reference on the range; errors are only told on stderr, as the clusters merely
    /// leak.
    pub(super) async fn free_clusters(&self, block: &Rc<Block>, offset: u64, bytes: u64, discard: DiscardType) {
        block.debug_event(self.file(), BlkdebugEvent::ClusterFree).await;
        if let Err(error) = self.update_refcount(block, offset, bytes, Change::Down, discard).await {
            block.report_stderr(format!("qcow2_free_clusters failed: {error}"));
        }
    }

    /// Gives up what an L2 entry refers to.
    pub(super) async fn free_entry(&self, block: &Rc<Block>, entry: u64, discard: DiscardType) {
        match ClusterType::of(entry) {
            ClusterType::Compressed => {
                let (offset, bytes) = self.geo.compressed_extent(entry);
                self.free_clusters(block, offset, bytes, discard).await;
            }
            ClusterType::Normal | ClusterType::ZeroAlloc => {
                let offset = entry & L2E_OFFSET_MASK;
                if self.geo.into_cluster(offset) != 0 {
                    let message = format!("Cannot free unaligned cluster {offset:#x}");
                    self.signal_corruption(block, false, None, message).await;
                } else {
                    self.free_clusters(block, offset, self.geo.cluster_size(), discard).await;
                }
            }
            ClusterType::Unallocated | ClusterType::ZeroPlain => {}
        }
    }

    /// Whether the host gets clusters back that are freed for this reason.
    pub(super) fn passes_discard(&self, block: &Block, discard: DiscardType) -> bool {
        match discard {
            DiscardType::Never => false,
            DiscardType::Always => true,
            DiscardType::Request => {
                self.options.borrow().pass_discard_request.unwrap_or_else(|| block.node(self.node).discard_unmap())
            }
            DiscardType::Other => self.options.borrow().pass_discard_other,
        }
    }

    /// Remembers a freed range of the file, merged with what it touches.
    pub(super) fn queue_discard(&self, offset: u64, bytes: u64) {
        let mut queue = self.discards.borrow_mut();
        let (mut start, mut end) = (offset, offset + bytes);
        queue.retain(|(other_start, other_end)| {
            let apart = *other_end < start || end < *other_start;
            if !apart {
                start = start.min(*other_start);
                end = end.max(*other_end);
            }
            apart
        });
        queue.push((start, end));
    }

    /// Punches the holes that were queued, or forgets them if the operation failed.
    pub(super) async fn process_discards(&self, block: &Rc<Block>, succeeded: bool) {
        if self.discards.borrow().is_empty() {
            return;
        }
        let queue = std::mem::take(&mut *self.discards.borrow_mut());
        for (start, end) in queue {
            if succeeded {
                // A hint that may fail.
                let _ = block.co_pdiscard(self.file(), start, end - start).await;
            }
        }
    }
}
