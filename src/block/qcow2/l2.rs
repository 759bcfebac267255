//! From guest offset to L2 entry: looking mappings up, and making L2 tables writable.
//!
//! An L2 table that a snapshot shares, or that does not exist, is replaced by a fresh one before
//! any entry of it changes; the L1 entry is written at once, after everything it points to is
//! durable. QEMU's source: `block/qcow2-cluster.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BoxFuture, ReqFlags};
use crate::cutils::alternate_hex;
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::Qcow2;
use super::cache::TableRef;
use super::l2_table::L2Table;
use super::layout::{COPIED, ClusterType, ENTRY_BYTES, L1E_OFFSET_MASK, L2E_OFFSET_MASK, MAX_HOST_OFFSET};
use super::overlap::Area;
use super::refcount::DiscardType;
use super::table::entry_bytes;

/// What a guest range maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The kind of all clusters of the range.
    pub(super) kind: ClusterType,
    /// Bytes of the range, from the offset that was asked about.
    pub(super) bytes: u64,
    /// Host offset of the first byte; the whole L2 entry of a compressed cluster; else 0.
    pub(super) host: u64,
}

/// An L2 entry's table, and its place in it.
pub(super) struct L2Place<'a> {
    pub(super) table: TableRef<'a, L2Table>,
    pub(super) index: usize,
    /// Entries from `index` to the end of the table or slice.
    pub(super) left: usize,
}

impl Qcow2 {
    /// Entries of one cached piece of an L2 table.
    #[inline]
    pub(super) fn slice_entries(&self) -> u64 {
        self.l2_cache.entry_bytes() / ENTRY_BYTES
    }

    #[inline]
    pub(super) fn slice_index(&self, offset: u64) -> usize {
        ((offset >> self.geo.cluster_bits) & (self.slice_entries() - 1)) as usize
    }

    /// Where the slice that maps a guest offset lies, given where its L2 table begins.
    #[inline]
    pub(super) fn slice_offset(&self, offset: u64, table_offset: u64) -> u64 {
        let in_table = (offset >> self.geo.cluster_bits) & ((1 << self.geo.l2_bits()) - 1);
        table_offset + (in_table - self.slice_index(offset) as u64) * ENTRY_BYTES
    }

    /// Entries of the slice that maps a guest offset, from that offset's on.
    pub(super) fn entries_behind(&self, offset: u64) -> u64 {
        self.slice_entries() - self.slice_index(offset) as u64
    }

    /// The slice of the L2 table at `table_offset` that maps a guest offset.
    #[inline]
    async fn l2_slice(&self, block: &Rc<Block>, offset: u64, table_offset: u64) -> Res<L2Place<'_>> {
        let index = self.slice_index(offset);
        let table = self.cache_get(block, &self.l2_cache, self.slice_offset(offset, table_offset)).await?;
        Ok(L2Place { table, index, left: self.slice_entries() as usize - index })
    }

    /// What the guest range starting at `offset` maps to, as far as it is of one kind (and, for
    /// data, contiguous in the file).
    pub(super) async fn mapping(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<Mapping> {
        let into = self.geo.into_cluster(offset);
        let left_in_slice = self.entries_behind(offset) << self.geo.cluster_bits;
        let needed = bytes.saturating_add(into).min(left_in_slice);
        let nothing = Mapping { kind: ClusterType::Unallocated, bytes: needed - into, host: 0 };
        let l1_index = self.geo.l1_index(offset);
        let l1_entry = match usize::try_from(l1_index).ok().and_then(|i| self.l1.borrow().get(i).copied()) {
            Some(entry) => entry & L1E_OFFSET_MASK,
            None => return Ok(nothing),
        };
        if l1_entry == 0 {
            return Ok(nothing);
        }
        if self.geo.into_cluster(l1_entry) != 0 {
            return Err(self.unaligned_l2(block, l1_entry, l1_index).await);
        }
        let place = self.l2_slice(block, offset, l1_entry).await?;
        let wanted = self.geo.clusters(needed) as usize;
        let (entry, count) = place.table.read(|table| {
            let entry = table.get(place.index);
            (entry, self.count_alike(table, place.index, wanted, entry))
        });
        let kind = ClusterType::of(entry);
        let mut host = 0;
        match kind {
            ClusterType::Compressed => host = entry,
            ClusterType::ZeroAlloc | ClusterType::Normal => {
                let cluster = entry & L2E_OFFSET_MASK;
                if self.geo.into_cluster(cluster) != 0 {
                    let what = format!("Cluster allocation offset {cluster:#x} unaligned");
                    return Err(self.bad_entry(block, what, l1_entry, place.index).await);
                }
                host = cluster + into;
            }
            ClusterType::ZeroPlain | ClusterType::Unallocated => {}
        }
        if self.geo.version < 3 && kind.is_zero() {
            let what = "Zero cluster entry found in pre-v3 image".to_owned();
            return Err(self.bad_entry(block, what, l1_entry, place.index).await);
        }
        let available = ((count as u64) << self.geo.cluster_bits).min(needed);
        Ok(Mapping { kind, bytes: available - into, host })
    }

    /// How many entries from `first` on continue what `entry`, the first of them, begins.
    #[inline]
    fn count_alike(&self, table: &L2Table, first: usize, limit: usize, entry: u64) -> usize {
        match ClusterType::of(entry) {
            ClusterType::Compressed => 1,
            kind @ (ClusterType::Unallocated | ClusterType::ZeroPlain) => {
                let equal = table.count_equal(first, limit, entry, u64::MAX);
                equal + table.count_while(first + equal, limit - equal, |other| ClusterType::of(other) == kind)
            }
            kind @ (ClusterType::Normal | ClusterType::ZeroAlloc) => {
                let host = entry & L2E_OFFSET_MASK;
                table.count_contiguous(first, limit, host, self.geo.cluster_size(), |other| {
                    ClusterType::of(other) == kind
                })
            }
        }
    }

    fn unaligned_l2<'a>(&'a self, block: &'a Rc<Block>, offset: u64, l1_index: u64) -> BoxFuture<'a, Errno> {
        let message = format!("L2 table offset {offset:#x} unaligned (L1 index: {})", alternate_hex(l1_index));
        Box::pin(async move {
            self.signal_corruption(block, true, None, message).await;
            Errno::EIO
        })
    }

    fn bad_entry<'a>(&'a self, block: &'a Rc<Block>, what: String, l2: u64, index: usize) -> BoxFuture<'a, Errno> {
        let message = format!("{what} (L2 offset: {l2:#x}, L2 index: {})", alternate_hex(index as u64));
        Box::pin(async move {
            self.signal_corruption(block, true, None, message).await;
            Errno::EIO
        })
    }

    /// The L2 entry of a guest offset, in a table that only the active L1 table refers to. Allocates
    /// one where there is none; grows the L1 table where it is too short.
    #[inline]
    pub(super) async fn writable_l2<'a>(&'a self, block: &Rc<Block>, offset: u64) -> Res<L2Place<'a>> {
        let l1_index = self.geo.l1_index(offset);
        let known = usize::try_from(l1_index).ok().and_then(|i| self.l1.borrow().get(i).copied());
        let mut table = known.unwrap_or(0) & L1E_OFFSET_MASK;
        if self.geo.into_cluster(table) != 0 || known.is_none_or(|entry| entry & COPIED == 0) {
            table = self.make_l2_writable(block, l1_index).await?;
        }
        self.l2_slice(block, offset, table).await
    }

    /// Gives the L1 entry an L2 table of its own and returns that table's offset.
    fn make_l2_writable<'a>(&'a self, block: &'a Rc<Block>, l1_index: u64) -> BoxFuture<'a, Res<u64>> {
        Box::pin(async move {
            if l1_index >= self.l1.borrow().len() as u64 {
                self.grow_l1(block, l1_index + 1, false).await?;
            }
            let index = l1_index as usize;
            let old = self.l1.borrow()[index] & L1E_OFFSET_MASK;
            if self.geo.into_cluster(old) != 0 {
                return Err(self.unaligned_l2(block, old, l1_index).await);
            }
            let new = self.allocate_l2(block, index).await?;
            if old != 0 {
                self.free_clusters(block, old, self.geo.cluster_size(), DiscardType::Other).await;
            }
            Ok(new)
        })
    }

    /// Allocates an L2 table, a copy of the present one if there is one, and points the L1 entry at
    /// it. On failure everything is as before.
    async fn allocate_l2(&self, block: &Rc<Block>, index: usize) -> Res<u64> {
        let old = self.l1.borrow()[index];
        let new = self.alloc_clusters(block, self.geo.cluster_size()).await?;
        let result = self.fill_new_l2(block, index, old & L1E_OFFSET_MASK, new).await;
        match result {
            Ok(()) => Ok(new),
            Err(error) => {
                self.l1.borrow_mut()[index] = old;
                if new > 0 {
                    self.free_clusters(block, new, self.geo.cluster_size(), DiscardType::Always).await;
                }
                Err(error)
            }
        }
    }

    async fn fill_new_l2(&self, block: &Rc<Block>, index: usize, old: u64, new: u64) -> Res<()> {
        if new > MAX_HOST_OFFSET {
            return Err(Errno::EFBIG);
        }
        if new == 0 {
            let message = "Preventing invalid allocation of L2 table at offset 0".to_owned();
            self.signal_corruption(block, true, None, message).await;
            return Err(Errno::EIO);
        }
        self.cache_flush(block, &self.refcount_cache).await?;
        let slice_bytes = self.l2_cache.entry_bytes();
        for start in (0..self.geo.cluster_size()).step_by(slice_bytes as usize) {
            let table = self.cache_get_empty(block, &self.l2_cache, new + start).await?;
            let content = if old == 0 {
                L2Table::default()
            } else {
                block.debug_event(self.file(), BlkdebugEvent::L2AllocCowRead).await;
                let shared = self.cache_get(block, &self.l2_cache, old + start).await?;
                shared.read(L2Table::clone)
            };
            block.debug_event(self.file(), BlkdebugEvent::L2AllocWrite).await;
            table.update(|t| *t = content);
        }
        self.cache_flush(block, &self.l2_cache).await?;
        self.l1.borrow_mut()[index] = new | COPIED;
        self.l2_span.set(self.l2_span.get().with(new));
        self.write_l1_entry(block, index).await
    }

    /// Writes an L1 entry, with its neighbours if the file wants larger blocks, and makes it
    /// durable.
    pub(super) async fn write_l1_entry(&self, block: &Rc<Block>, index: usize) -> Res<()> {
        let align = block.request_alignment(&block.node(self.file())).max(ENTRY_BYTES);
        let per_block = (align / ENTRY_BYTES) as usize;
        let first = index - index % per_block;
        // The table may end within the block; what follows is written as zeros.
        let mut bytes = {
            let l1 = self.l1.borrow();
            entry_bytes(&l1[first..l1.len().min(first + per_block)])
        };
        let table_end = (self.l1.borrow().len() as u64 * ENTRY_BYTES).next_multiple_of(self.geo.cluster_size());
        bytes.resize((align.min(table_end - first as u64 * ENTRY_BYTES)) as usize, 0);
        let at = self.l1_offset.get() + first as u64 * ENTRY_BYTES;
        self.check_overlap(block, Some(Area::ActiveL1), at, bytes.len() as u64).await?;
        block.debug_event(self.file(), BlkdebugEvent::L1Update).await;
        self.write_sync(block, at, Content::from_bytes(bytes)).await
    }

    /// Writes to the file and makes it durable (`bdrv_pwrite_sync`).
    pub(super) async fn write_sync(&self, block: &Rc<Block>, offset: u64, content: Content) -> Res<()> {
        block.co_pwrite(self.file(), offset, content, ReqFlags::NONE).await?;
        block.co_flush(self.file()).await
    }
}
