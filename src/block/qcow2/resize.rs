//! Changing an image's virtual size, and the L1 table with it; changing the backing file's name.
//!
//! The new size reaches the header last, so that a power cut leaves the old image and perhaps
//! leaked clusters. QEMU's source: `qcow2_co_truncate` in `block/qcow2.c`, `qcow2_grow_l1_table`,
//! `qcow2_shrink_l1_table` and `qcow2_shrink_reftable`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, Preallocation, ReqFlags};
use crate::cutils::alternate_hex;
use crate::errno::{Errno, Res};
use crate::sim::CoMutexGuard;
use crate::store::Content;

use super::layout::{ENTRY_BYTES, L1E_OFFSET_MASK, MAX_L1_BYTES, REFT_OFFSET_MASK};
use super::refcount::DiscardType;
use super::table::{entry_bytes, prefix_content};
use super::zero::Clear;
use super::{Qcow2, stored_name};

/// So many characters of a backing file's format are stored (`bs->backing_format`).
const MOST_OF_FORMAT: usize = 15;

impl Qcow2 {
    /// Sets the virtual size, bytes; new parts read as zeros. The error is QEMU's text. The caller
    /// sets the node's length.
    pub async fn truncate(
        self: &Rc<Self>,
        block: &Rc<Block>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), String> {
        if !size.is_multiple_of(512) {
            return Err("The new size must be a multiple of 512".to_owned());
        }
        let mut locked = Some(self.lock(block).await);
        if self.geo.version < 3 && !self.snapshots.borrow().list.is_empty() {
            return Err("Can't resize a v2 image which has snapshots".to_owned());
        }
        self.check_bitmaps_for_resize(block).await?;
        let old_size = self.virtual_size();
        let l1_entries = self.geo.l1_entries(size);
        let failed = |what: &str, error: Errno| format!("{what}: {error}");
        if size < old_size {
            if preallocation != Preallocation::Off {
                return Err("Preallocation can't be used for shrinking an image".to_owned());
            }
            self.shrink(block, size, old_size, l1_entries).await?;
        } else {
            let grown = self.grow_l1(block, l1_entries, true).await;
            grown.map_err(|error| failed("Failed to grow the L1 table", error))?;
        }
        block.node(self.node).bitmaps.borrow().check_size(size).map_err(|fault| fault.to_string())?;
        match preallocation {
            Preallocation::Off => {}
            Preallocation::Metadata => self.preallocate(block, old_size, size, &mut locked).await?,
            Preallocation::Falloc | Preallocation::Full => {
                self.preallocate_data(block, old_size, size, preallocation, &mut locked).await?;
            }
        }
        if preallocation != Preallocation::Off {
            // Metadata are safe before the size tells of them.
            let written = self.write_caches(block).await;
            written.map_err(|error| failed("Failed to flush the preallocated area to disk", error))?;
        }
        let zeroed = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
        let hides = !zeroed && size > old_size;
        if hides && self.backing_reaches_beyond(block, old_size) {
            self.hide_backing(block, old_size, size, &mut locked).await?;
        }
        self.header.borrow_mut().size = size;
        // Whatever fails from here on, the node keeps its new length, and its bitmaps their old one.
        block.node(self.node).length.set(size);
        let written = self.write_sync(block, 24, Content::from_bytes(size.to_be_bytes())).await;
        written.map_err(|error| failed("Failed to update the image size", error))?;
        // The caches get a new shape, and forget: with the dirty bit set, too, refcounts are written before.
        self.flush_caches_in_words(block).await?;
        self.reshape_caches();
        drop(locked);
        Ok(())
    }

    /// Makes the new area read as zeros where the backing file would show through.
    async fn hide_backing<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        old_size: u64,
        size: u64,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Result<(), String> {
        let start = old_size.next_multiple_of(self.geo.cluster_size());
        if start < size {
            let cleared = match self.geo.version {
                // There are no zero clusters, and giving clusters up would let the backing file show through.
                ..3 => Err(Errno::ENOTSUP),
                _ => self.clear(block, start, size - start, Clear::Zeroes { unmap: false }).await,
            };
            cleared.map_err(|error| format!("Failed to zero out new clusters: {error}"))?;
        }
        let head_end = start.min(size);
        if head_end == old_size {
            return Ok(());
        }
        // The head of the area shares a cluster with old data: a write like any other.
        *locked = None;
        let zeros = Content::zeros(head_end - old_size);
        let written = self.pwrite(block, old_size, zeros, ReqFlags::NONE).await;
        written.map_err(|error| format!("Failed to zero out the new area: {error}"))?;
        *locked = Some(self.lock(block).await);
        Ok(())
    }

    fn backing_reaches_beyond(&self, block: &Block, size: u64) -> bool {
        self.backing(block).is_some_and(|backing| block.length(&block.node(backing)) > size)
    }

    /// Gives up everything behind the new end.
    async fn shrink(&self, block: &Rc<Block>, size: u64, old_size: u64, l1_entries: u64) -> Result<(), String> {
        let failed = |what: &str, error: Errno| format!("{what}: {error}");
        let start = size.next_multiple_of(self.geo.cluster_size());
        let cleared =
            self.clear(block, start, old_size.saturating_sub(start), Clear::Everything(DiscardType::Always)).await;
        cleared.map_err(|error| failed("Failed to discard cropped clusters", error))?;
        let shrunk = self.shrink_l1(block, l1_entries as usize).await;
        shrunk.map_err(|error| failed("Failed to reduce the number of L2 tables", error))?;
        let dropped = self.shrink_reftable(block).await;
        dropped.map_err(|error| failed("Failed to discard unused refblocks", error))?;
        let file_size = block.length(&block.node(self.file()));
        let last = self.last_cluster(block, file_size).await;
        let last = last.map_err(|error| failed("Failed to find the last cluster", error))?;
        let end = (last + 1) << self.geo.cluster_bits;
        if end < file_size
            && let Err(text) = block.co_truncate(self.file(), end, Preallocation::Off).await
        {
            let program = block.program;
            block.report_stderr(format!("{program}: warning: Failed to truncate the tail of the image: {text}"));
        }
        Ok(())
    }

    /// Makes the L1 table larger, in a new place; `exact`: not larger than asked for.
    pub(super) async fn grow_l1(&self, block: &Rc<Block>, min_entries: u64, exact: bool) -> Res<()> {
        let old_entries = self.l1.borrow().len() as u64;
        if min_entries <= old_entries {
            return Ok(());
        }
        let mut entries = if exact { min_entries } else { old_entries.max(1) };
        while entries < min_entries {
            entries = (entries * 3).div_ceil(2);
        }
        if entries > MAX_L1_BYTES / ENTRY_BYTES {
            return Err(Errno::EFBIG);
        }
        let bytes = entries * ENTRY_BYTES;
        block.debug_event(self.file(), BlkdebugEvent::L1GrowAllocTable).await;
        let place = self.alloc_clusters(block, bytes).await?;
        if let Err(error) = self.move_l1(block, place, entries).await {
            self.free_clusters(block, place, bytes, DiscardType::Other).await;
            return Err(error);
        }
        let old_place = self.l1_offset.replace(place);
        self.l1.borrow_mut().resize(entries as usize, 0);
        {
            let mut header = self.header.borrow_mut();
            (header.l1_table_offset, header.l1_size) = (place, entries as u32);
        }
        self.free_clusters(block, old_place, old_entries * ENTRY_BYTES, DiscardType::Other).await;
        Ok(())
    }

    /// Writes the L1 table, with room for `entries`, to its new place and lets the header refer to
    /// it.
    async fn move_l1(&self, block: &Rc<Block>, place: u64, entries: u64) -> Res<()> {
        let bytes = entries * ENTRY_BYTES;
        self.cache_flush(block, &self.refcount_cache).await?;
        self.check_overlap(block, None, place, bytes).await?;
        block.debug_event(self.file(), BlkdebugEvent::L1GrowWriteTable).await;
        let content = prefix_content(entry_bytes(&self.l1.borrow()), bytes);
        self.write_sync(block, place, content).await?;
        block.debug_event(self.file(), BlkdebugEvent::L1GrowActivateTable).await;
        let mut fields = (entries as u32).to_be_bytes().to_vec();
        fields.extend_from_slice(&place.to_be_bytes());
        self.write_sync(block, 36, Content::from_bytes(fields)).await
    }

    /// Zeroes the L1 entries from `keep` on, durably, then frees their L2 tables.
    async fn shrink_l1(&self, block: &Rc<Block>, keep: usize) -> Res<()> {
        let len = self.l1.borrow().len();
        if keep >= len {
            return Ok(());
        }
        block.debug_event(self.file(), BlkdebugEvent::L1ShrinkWriteTable).await;
        let at = self.l1_offset.get() + keep as u64 * ENTRY_BYTES;
        let bytes = (len - keep) as u64 * ENTRY_BYTES;
        let mut result = block.co_pwrite_zeroes(self.file(), at, bytes, ReqFlags::NONE).await;
        if result.is_ok() {
            result = block.co_flush(self.file()).await;
        }
        if result.is_err() {
            // Who knows what is in the file now; at least nothing more is written through these.
            self.l1.borrow_mut()[keep..].fill(0);
            return result;
        }
        block.debug_event(self.file(), BlkdebugEvent::L1ShrinkFreeL2Clusters).await;
        for index in (keep..len).rev() {
            let table = self.l1.borrow()[index] & L1E_OFFSET_MASK;
            if table != 0 {
                self.free_clusters(block, table, self.geo.cluster_size(), DiscardType::Always).await;
                self.l1.borrow_mut()[index] = 0;
            }
        }
        Ok(())
    }

    /// Drops refcount blocks that count nothing but themselves; rewrites the refcount table.
    async fn shrink_reftable(&self, block: &Rc<Block>) -> Res<()> {
        let (entries, at, bytes) = {
            let table = self.reftable.borrow();
            (table.entries.clone(), table.offset, table.bytes())
        };
        let mut kept = entries.clone();
        for (index, entry) in kept.iter_mut().enumerate() {
            let offset = *entry & REFT_OFFSET_MASK;
            if offset == 0 || self.counts_nothing_else(block, index as u64, offset).await? {
                *entry = 0;
            }
        }
        let mut result = self.write_sync(block, at, prefix_content(entry_bytes(&kept), bytes)).await;
        for (index, (old, new)) in entries.iter().zip(&kept).enumerate() {
            if *old != 0 && *new == 0 {
                if *old & REFT_OFFSET_MASK == 0 {
                    block.abort("a refcount block of reserved bits only is dropped");
                }
                if result.is_ok() {
                    result = self.drop_refblock(block, *old & REFT_OFFSET_MASK).await;
                }
                self.reftable.borrow_mut().entries[index] = 0;
            }
        }
        if !self.cache_discards.get() {
            self.process_discards(block, result.is_ok()).await;
        }
        result
    }

    async fn counts_nothing_else(&self, block: &Rc<Block>, index: u64, offset: u64) -> Res<bool> {
        let refblock = self.cache_get(block, &self.refcount_cache, offset).await?;
        let cluster = offset >> self.geo.cluster_bits;
        let own = cluster >> self.geo.refblock_bits() == index;
        let in_block = (cluster & (self.geo.refblock_entries() - 1)) as usize;
        Ok(refblock.read(|table| {
            let mut table = table.clone();
            if own {
                table.set(self.geo.refcount_order, in_block, 0);
            }
            table.is_empty()
        }))
    }

    async fn drop_refblock(&self, block: &Rc<Block>, offset: u64) -> Res<()> {
        let cluster = offset >> self.geo.cluster_bits;
        let table_index = self.short_table_index(cluster);
        let describing = self.reftable.borrow().block_offset(table_index);
        if describing == 0 {
            let message = format!("Refblock at {offset:#x} is not covered by the refcount structures");
            self.signal_corruption(block, true, None, message).await;
            return Err(Errno::EIO);
        }
        let refblock = self.cache_get(block, &self.refcount_cache, describing).await?;
        let index = (cluster & (self.geo.refblock_entries() - 1)) as usize;
        let order = self.geo.refcount_order;
        let refcount = refblock.read(|table| table.get(order, index));
        if refcount != 1 {
            let message = format!(
                "Invalid refcount: refblock offset {describing:#x}, reftable index {table_index}, \
                 block offset {offset:#x}, refcount {}",
                alternate_hex(refcount)
            );
            drop(refblock);
            self.signal_corruption(block, true, None, message).await;
            return Err(Errno::EINVAL);
        }
        refblock.update(|table| table.set(order, index, 0));
        drop(refblock);
        self.free_cluster_index.set(self.free_cluster_index.get().min(cluster));
        self.refcount_cache.discard(offset);
        self.queue_discard(offset, self.geo.cluster_size());
        Ok(())
    }

    /// The last cluster of a file of `size` bytes that is in use.
    pub(super) async fn last_cluster(&self, block: &Rc<Block>, size: u64) -> Res<u64> {
        let mut next = self.geo.clusters(size).checked_sub(1);
        while let Some(cluster) = next {
            next = cluster.checked_sub(1);
            let block_index = cluster >> self.geo.refblock_bits();
            if self.reftable.borrow().block_offset(block_index) == 0 {
                // None of the clusters that such a block would count is in use.
                next = (block_index << self.geo.refblock_bits()).checked_sub(1);
                continue;
            }
            let refcount = self.get_refcount(block, cluster).await.inspect_err(|error| {
                block.report_stderr(format!("Can't get refcount for cluster {cluster}: {error}"));
            })?;
            if refcount > 0 {
                return Ok(cluster);
            }
        }
        let message = "There are no references in the refcount table.".to_owned();
        self.signal_corruption(block, true, None, message).await;
        Err(Errno::EIO)
    }

    /// Changes the name and format of the backing file in the header (`qemu-img rebase -u`). The
    /// attached backing node stays.
    pub async fn change_backing(
        self: &Rc<Self>,
        block: &Rc<Block>,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Res<()> {
        if name.is_some_and(|name| name.len() > 1023) {
            return Err(Errno::EINVAL);
        }
        {
            let mut extras = self.extras.borrow_mut();
            let stored = name.map(|name| if self.prefixed { stored_name(name) } else { name });
            extras.backing_name = stored.filter(|n| !n.is_empty()).map(str::to_owned);
            // A longer one is cut, though it makes no sense then.
            let format = format.filter(|format| !format.is_empty());
            extras.backing_format = format.map(|format| format.chars().take(MOST_OF_FORMAT).collect());
        }
        self.update_header(block).await
    }
}
