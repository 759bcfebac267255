//! New refcount blocks, and a larger refcount table when the old one is full.
//!
//! Every pointer is written after what it points to is durable, so that a power cut leaves at most
//! leaked clusters. QEMU's source: `alloc_refcount_block` and `qcow2_refcount_area` in
//! `block/qcow2-refcount.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BoxFuture};
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::Qcow2;
use super::cache::TableRef;
use super::layout::{ENTRY_BYTES, Geometry, MAX_HOST_OFFSET, MAX_REFTABLE_BYTES};
use super::refcount::{Change, DiscardType, Reftable};
use super::table::{Refblock, entry_bytes, prefix_content};

impl Qcow2 {
    /// The refcount block of a cluster, to be changed. Where there is none it is made, and EAGAIN
    /// tells to look for free clusters again, since it may lie in those that were found.
    pub(super) async fn refblock_for<'a>(&'a self, block: &Rc<Block>, cluster: u64) -> Res<TableRef<'a, Refblock>> {
        block.debug_event(self.file(), BlkdebugEvent::RefblockAlloc).await;
        let table_index = self.short_table_index(cluster);
        let offset = self.reftable.borrow().block_offset(table_index);
        if offset != 0 {
            if self.geo.into_cluster(offset) != 0 {
                return Err(self.unaligned_refblock(block, offset, table_index).await);
            }
            block.debug_event(self.file(), BlkdebugEvent::RefblockLoad).await;
            return self.cache_get(block, &self.refcount_cache, offset).await;
        }
        Err(match self.make_refblock(block, cluster).await {
            Ok(()) => Errno::EAGAIN,
            Err(error) => error,
        })
    }

    /// The entry of the refcount table for a cluster where QEMU has 32 bits for it: far behind any file it is another
    /// cluster's, whose refcount is changed then.
    pub(super) fn short_table_index(&self, cluster: u64) -> u64 {
        u64::from((cluster >> self.geo.refblock_bits()) as u32)
    }

    fn make_refblock<'a>(&'a self, block: &'a Rc<Block>, cluster: u64) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let table_index = self.short_table_index(cluster);
            // The L2 tables may refer to clusters whose refcounts are about to be flushed.
            self.cache_flush(block, &self.l2_cache).await?;
            let new = self.find_free(block, self.geo.cluster_size(), MAX_HOST_OFFSET).await?;
            if new == 0 {
                let message = "Preventing invalid allocation of refcount block at offset 0".to_owned();
                self.signal_corruption(block, true, None, message).await;
                return Err(Errno::EIO);
            }
            let new_cluster = new >> self.geo.cluster_bits;
            let describes_itself = new_cluster >> self.geo.refblock_bits() == table_index;
            if !describes_itself {
                // Its refcount is in another block, which may have to be made first.
                self.update_refcount(block, new, self.geo.cluster_size(), Change::Up, DiscardType::Never).await?;
                self.cache_flush(block, &self.refcount_cache).await?;
            }
            let refblock = self.cache_get_empty(block, &self.refcount_cache, new).await?;
            let own = (new_cluster & (self.geo.refblock_entries() - 1)) as usize;
            refblock.update(|table| {
                *table = Refblock::default();
                if describes_itself {
                    table.set(self.geo.refcount_order, own, 1);
                }
            });
            block.debug_event(self.file(), BlkdebugEvent::RefblockAllocWrite).await;
            self.cache_flush(block, &self.refcount_cache).await?;
            drop(refblock);
            if table_index < self.reftable.borrow().len {
                return self.hook_up(block, table_index, new).await;
            }
            let used = (cluster + 1).max(new_cluster + 1).div_ceil(self.geo.refblock_entries());
            let area = (used * self.geo.refblock_entries()) << self.geo.cluster_bits;
            self.build_refcount_area(block, area, Room::Generous, Some((table_index, new))).await.map(|_| ())
        })
    }

    /// Writes a table entry and makes it durable.
    async fn hook_up(&self, block: &Rc<Block>, table_index: u64, new: u64) -> Res<()> {
        block.debug_event(self.file(), BlkdebugEvent::RefblockAllocHookup).await;
        let at = self.reftable.borrow().offset + table_index * ENTRY_BYTES;
        self.write_sync(block, at, Content::from_bytes(new.to_be_bytes())).await?;
        self.reftable.borrow_mut().set(table_index, new);
        Ok(())
    }

    /// Builds a new refcount table, and the blocks that describe it and everything before it, at
    /// the unused place `start`; switches to it and frees the old one. Returns the end of the area.
    pub(super) async fn build_refcount_area(
        &self,
        block: &Rc<Block>,
        start: u64,
        room: Room,
        new_block: Option<(u64, u64)>,
    ) -> Res<u64> {
        let plan = self.plan_area(start, room, new_block)?;
        let mut table = plan.table;
        let mut next = start;
        for index in plan.first_block..plan.blocks {
            let refblock = if table.block_offset(index) != 0 {
                self.cache_get(block, &self.refcount_cache, table.block_offset(index)).await?
            } else {
                table.set(index, next);
                let refblock = self.cache_get_empty(block, &self.refcount_cache, next).await?;
                refblock.update(|t| *t = Refblock::default());
                next += self.geo.cluster_size();
                refblock
            };
            let first = index * self.geo.refblock_entries();
            let (from, to) = (start >> self.geo.cluster_bits, plan.end >> self.geo.cluster_bits);
            refblock.update(|t| {
                for cluster in from.max(first)..to.min(first + self.geo.refblock_entries()) {
                    t.set(self.geo.refcount_order, (cluster - first) as usize, 1);
                }
            });
        }
        block.debug_event(self.file(), BlkdebugEvent::RefblockAllocWriteBlocks).await;
        self.cache_flush(block, &self.refcount_cache).await?;
        block.debug_event(self.file(), BlkdebugEvent::RefblockAllocWriteTable).await;
        let content = prefix_content(entry_bytes(&table.entries), table.bytes());
        self.write_sync(block, table.offset, content).await?;
        block.debug_event(self.file(), BlkdebugEvent::RefblockAllocSwitchTable).await;
        let clusters = (table.bytes() >> self.geo.cluster_bits) as u32;
        let mut fields = table.offset.to_be_bytes().to_vec();
        fields.extend_from_slice(&clusters.to_be_bytes());
        self.write_sync(block, 48, Content::from_bytes(fields)).await?;
        {
            let mut header = self.header.borrow_mut();
            (header.refcount_table_offset, header.refcount_table_clusters) = (table.offset, clusters);
        }
        let old = self.reftable.replace(table);
        self.free_clusters(block, old.offset, old.bytes(), DiscardType::Other).await;
        Ok(plan.end)
    }

    fn plan_area(&self, start: u64, room: Room, new_block: Option<(u64, u64)>) -> Res<Area> {
        let cluster_size = self.geo.cluster_size();
        let first_cluster = start >> self.geo.cluster_bits;
        let (blocks, wanted) = match room {
            Room::Generous => {
                let blocks = refcount_blocks(self.geo, first_cluster, true);
                (blocks, blocks + blocks.div_ceil(2))
            }
            Room::Behind(clusters) => {
                let blocks = refcount_blocks(self.geo, first_cluster + clusters, false);
                (blocks, blocks)
            }
        };
        let first_block = first_cluster >> self.geo.refblock_bits();
        let entries = wanted.next_multiple_of(cluster_size / ENTRY_BYTES);
        if entries > MAX_REFTABLE_BYTES / ENTRY_BYTES {
            return Err(Errno::EFBIG);
        }
        let mut table = Reftable { len: entries, ..self.reftable.borrow().clone() };
        if let Some((index, offset)) = new_block {
            table.set(index, offset);
        }
        let missing = (first_block..blocks).filter(|index| table.block_offset(*index) == 0).count() as u64;
        table.offset = start + missing * cluster_size;
        let end = table.offset + table.bytes();
        Ok(Area { table, first_block, blocks, end })
    }
}

/// What a new refcount area has room for, besides everything before it and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Half a table more.
    Generous,
    /// Exactly this many clusters behind it.
    Behind(u64),
}

/// What a new refcount area will hold.
struct Area {
    table: Reftable,
    /// The first refcount block that describes the area.
    first_block: u64,
    /// One behind the last.
    blocks: u64,
    /// Host offset behind the area.
    end: u64,
}

/// Refcount blocks that `clusters` clusters, the blocks themselves and a table for them need; with
/// `generous` room for half a table more.
pub(super) fn refcount_blocks(geo: Geometry, mut clusters: u64, generous: bool) -> u64 {
    let per_table_cluster = geo.cluster_size() / ENTRY_BYTES;
    let mut spare = generous;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (clusters + table + blocks).div_ceil(geo.refblock_entries());
        let needed_table = needed.div_ceil(per_table_cluster);
        if (needed, needed_table) == (blocks, table) {
            if !spare {
                return blocks;
            }
            clusters += table.div_ceil(2);
            spare = false;
        }
        (blocks, table) = (needed, needed_table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_count_themselves() {
        let geo = Geometry { version: 3, cluster_bits: 9, refcount_order: 4 };
        // 256 clusters to a block: 255 clusters leave no room for their block and table.
        assert_eq!(refcount_blocks(geo, 200, false), 1);
        assert_eq!(refcount_blocks(geo, 254, false), 1);
        assert_eq!(refcount_blocks(geo, 255, false), 2);
    }
}
