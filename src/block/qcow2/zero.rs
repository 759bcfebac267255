//! Zero writes and discards: changing what clusters read as without writing data.
//!
//! Only L2 entries and refcounts change, in the cache; freed clusters are punched out of the host
//! file at the end of the call, before any metadata is written. This is the hot path of copying
//! empty disks: on a cached L2 table it must neither yield nor allocate. QEMU's source:
//! `qcow2_subcluster_zeroize` and `qcow2_cluster_discard` in `block/qcow2-cluster.c`.

use std::rc::Rc;

use crate::block::{Block, ReqFlags};
use crate::errno::{Errno, Res};

use super::l2_table::L2Table;
use super::layout::{COMPRESSED, COPIED, ClusterType, L1E_OFFSET_MASK, ZERO};
use super::refcount::DiscardType;
use super::{LOCK, Qcow2};

/// What clusters become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clear {
    /// Zeros; with `unmap`, without a host cluster.
    Zeroes {
        /// Host clusters are given up.
        unmap: bool,
    },
    /// What a discard leaves: zeros, or nothing where nothing was.
    Discard(DiscardType),
    /// Nothing at all, even if a backing file shows through: the range is beyond the new end.
    Everything(DiscardType),
}

impl Qcow2 {
    /// Writes zeros to a guest range without data, or says ENOTSUP.
    pub async fn pwrite_zeroes(
        self: &Rc<Self>,
        block: &Rc<Block>,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let (start, end) = self.whole_clusters(block, offset, bytes);
        let partial = (start, end) != (offset, offset + bytes);
        if partial && !self.rest_is_zero(block, offset, bytes, start, end).await {
            return Err(Errno::ENOTSUP);
        }
        let _locked = self.lock(block).await;
        if partial {
            // Somebody may have written there while it was looked at.
            let mapping = self.mapping(block, start, self.geo.cluster_size()).await?;
            if !(mapping.kind.is_zero() || mapping.kind == ClusterType::Unallocated) {
                return Err(Errno::ENOTSUP);
            }
        }
        if self.geo.version < 3 {
            return match self.backing(block) {
                None => self.clear(block, start, end - start, Clear::Discard(DiscardType::Request)).await,
                Some(_) => Err(Errno::ENOTSUP),
            };
        }
        let unmap = flags.contains(ReqFlags::MAY_UNMAP);
        self.clear(block, start, end - start, Clear::Zeroes { unmap }).await
    }

    /// The range widened to clusters, except at the image's end.
    #[inline]
    fn whole_clusters(&self, block: &Block, offset: u64, bytes: u64) -> (u64, u64) {
        let end = offset + bytes;
        let aligned_end = end.next_multiple_of(self.geo.cluster_size());
        let start = self.geo.cluster_start(offset);
        if aligned_end == end && start == offset {
            return (start, end);
        }
        (start, if end == block.node(self.node).length.get() { end } else { aligned_end })
    }

    /// Whether what surrounds the range in its cluster reads as zeros.
    async fn rest_is_zero(&self, block: &Rc<Block>, offset: u64, bytes: u64, start: u64, end: u64) -> bool {
        let length = block.node(self.node).length.get();
        let (tail, end) = (offset + bytes, end.min(length));
        for (from, to) in [(start, offset), (tail, end)] {
            if from < to && !block.co_is_zero(self.node, from, to - from).await.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Discards a guest range; partial clusters are declined with ENOTSUP, which does no harm.
    pub async fn pdiscard(self: &Rc<Self>, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<()> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        if self.geo.version < 3 && self.backing(block).is_some() {
            return Err(Errno::ENOTSUP);
        }
        let whole = self.geo.into_cluster(offset | bytes) == 0;
        let at_end = self.geo.into_cluster(offset) == 0 && offset + bytes == block.node(self.node).length.get();
        if !whole && !at_end {
            return Err(Errno::ENOTSUP);
        }
        let _locked = self.lock(block).await;
        self.clear(block, offset, bytes, Clear::Discard(DiscardType::Request)).await
    }

    /// Clears whole clusters, under the lock; the last one may be cut by the image's end.
    pub(super) async fn clear(&self, block: &Rc<Block>, offset: u64, bytes: u64, what: Clear) -> Res<()> {
        self.cache_discards.set(true);
        let mut at = offset;
        let mut left = self.geo.clusters(bytes);
        let mut result = Ok(());
        while left > 0 {
            match self.clear_in_slice(block, at, left, what).await {
                Ok(cleared) => {
                    left -= cleared;
                    at += cleared << self.geo.cluster_bits;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.cache_discards.set(false);
        self.process_discards(block, result.is_ok()).await;
        result
    }

    /// Zero writes of `chunk` bytes each from `offset` on, as many of `bytes` as only change entries of one cached slice
    /// of an L2 table; returns their bytes. None of them would yield, so that they may be done in one go. Only for who
    /// holds the image's lock, or while nobody does.
    pub fn zero_row(&self, offset: u64, bytes: u64, chunk: u64) -> u64 {
        let l1_index = self.geo.l1_index(offset);
        let known = usize::try_from(l1_index).ok().and_then(|i| self.l1.borrow().get(i).copied());
        let Some(entry) = known.filter(|entry| entry & COPIED != 0) else { return 0 };
        let table_offset = entry & L1E_OFFSET_MASK;
        let fits = table_offset != 0 && self.geo.into_cluster(table_offset | chunk | offset) == 0;
        if !fits || self.ejected.get() || self.geo.version < 3 {
            return 0;
        }
        let index = self.slice_index(offset);
        let Some(table) = self.l2_cache.lookup(self.slice_offset(offset, table_offset)) else { return 0 };
        let limit = self.entries_behind(offset).min(bytes >> self.geo.cluster_bits) as usize;
        let clusters = table.read(|table| table.count_equal(index, limit, 0, COMPRESSED)) as u64;
        let bytes = clusters << self.geo.cluster_bits;
        let bytes = bytes - bytes % chunk;
        let end = index + self.geo.clusters(bytes) as usize;
        let all = self.slice_entries() as usize;
        table.update_if(|table| (table.set_bits(index, end, all, ZERO), ()));
        bytes
    }

    /// A zero write of whole clusters that is in the queue for the lock already, and has only `place` others in front.
    /// Only for version 3 and later.
    pub async fn zero_queued(&self, block: &Rc<Block>, place: usize, offset: u64, bytes: u64) -> Res<()> {
        let _locked = self.lock.lock_at(&block.sim, place, LOCK).await;
        self.clear(block, offset, bytes, Clear::Zeroes { unmap: false }).await
    }

    /// Clears clusters up to the end of one L2 table or slice; returns how many.
    #[inline]
    async fn clear_in_slice(&self, block: &Rc<Block>, offset: u64, clusters: u64, what: Clear) -> Res<u64> {
        let place = self.writable_l2(block, offset).await?;
        let count = clusters.min(place.left as u64);
        let end = place.index + count as usize;
        let mut next = place.index;
        while next < end {
            // Each entry changes before its cluster is freed, one after the other.
            let stopped = place.table.update_if(|table| self.clear_entries(block, table, next, end, what));
            let Some((index, old)) = stopped else { break };
            let discard = match what {
                Clear::Zeroes { .. } => DiscardType::Request,
                Clear::Discard(discard) | Clear::Everything(discard) => discard,
            };
            if !self.keeps_reference(old, what) {
                self.free_entry(block, old, discard).await;
            } else if self.passes_discard(block, DiscardType::Request) {
                let host = old & super::layout::L2E_OFFSET_MASK;
                self.queue_discard(host, self.geo.cluster_size());
            }
            next = index + 1;
        }
        Ok(count)
    }

    /// Changes entries until one of them gives up its cluster: that one and what it was.
    fn clear_entries(
        &self,
        block: &Block,
        table: &mut L2Table,
        first: usize,
        end: usize,
        what: Clear,
    ) -> (bool, Option<(usize, u64)>) {
        table.rewrite(first, end, |old| {
            let kind = ClusterType::of(old);
            match what {
                Clear::Zeroes { unmap } => {
                    let gives_up = kind == ClusterType::Compressed || (unmap && kind.is_allocated());
                    let stays = !gives_up || self.keeps_reference(old, what);
                    (if stays { old | ZERO } else { ZERO }, gives_up)
                }
                Clear::Discard(_) if kind.is_allocated() || self.backing(block).is_some() => {
                    let zero = if self.geo.version >= 3 { ZERO } else { 0 };
                    let stays = self.keeps_reference(old, what);
                    (if stays { old | ZERO } else { zero }, kind.is_allocated())
                }
                Clear::Discard(_) => (old, false),
                Clear::Everything(_) => (0, kind.is_allocated()),
            }
        })
    }

    /// `discard-no-unref`: a guest's discard leaves the cluster where it is.
    fn keeps_reference(&self, old: u64, what: Clear) -> bool {
        let by_guest = matches!(what, Clear::Discard(DiscardType::Request) | Clear::Zeroes { unmap: true });
        self.options.borrow().discard_no_unref
            && by_guest
            && matches!(ClusterType::of(old), ClusterType::Normal | ClusterType::ZeroAlloc)
    }
}
