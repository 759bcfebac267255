//! New refcount structures from nothing but counted references.
//!
//! The last resort of a repair: refcount blocks and a table are placed into clusters to which no
//! reference was found, written, and only then entered into the header. The old structures become
//! leaks, which the caller frees. QEMU's source: `rebuild_refcount_structure` in
//! `block/qcow2-refcount.c`.

use crate::block::ReqFlags;
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::check::Checker;
use super::layout::{ENTRY_BYTES, MAX_REFTABLE_BYTES};
use super::refcount::Reftable;
use super::table::{Refblock, SharedEntries, Table, entry_bytes, prefix_content};

impl Checker<'_> {
    /// Writes new refcount blocks and a new table, and switches to them.
    pub(super) async fn rebuild_refcounts(&mut self) -> Res<()> {
        let image = self.image;
        // What is cached describes the old structures.
        image.refcount_cache.depends.set(false);
        image.l2_cache.depends.set(false);
        image.reshape_caches();
        let mut table = Reftable::default();
        self.place_blocks(0, &mut table)?;
        loop {
            let len = (table.entries.len() as u64).next_multiple_of(image.geo.cluster_size() / ENTRY_BYTES);
            if len * ENTRY_BYTES > MAX_REFTABLE_BYTES {
                return Err(Errno::EFBIG);
            }
            let clusters = image.geo.clusters(len * ENTRY_BYTES);
            let first = self.take_free(0, clusters)?;
            let blocks = table.entries.len();
            // The table's own clusters may need further blocks, and these a larger table.
            self.place_blocks(first, &mut table)?;
            if table.entries.len() as u64 <= len {
                (table.offset, table.len) = (first << image.geo.cluster_bits, len);
                break;
            }
            debug_assert!(table.entries.len() > blocks, "only more blocks make a larger table");
            self.references.fill(first..first + clusters, 0);
        }
        self.write_structures(&table).await?;
        image.reftable.replace(table);
        image.free_cluster_index.set(0);
        Ok(())
    }

    /// Gives every stretch of clusters with references, from the one of cluster `next` on, a refcount block. No block
    /// lies before the stretch that it is for: those before have theirs.
    fn place_blocks(&mut self, mut next: u64, table: &mut Reftable) -> Res<()> {
        let bits = self.image.geo.refblock_bits();
        while let Some(used) = self.references.next_used(next) {
            let index = used >> bits;
            if table.block_offset(index) == 0 {
                if index >= MAX_REFTABLE_BYTES / ENTRY_BYTES {
                    return Err(Errno::EFBIG);
                }
                let cluster = self.take_free(index << bits, 1)?;
                table.set(index, cluster << self.image.geo.cluster_bits);
            }
            next = (index + 1) << bits;
        }
        Ok(())
    }

    /// Takes the first free clusters in a row from `from` on; behind the end of the file if there are none.
    fn take_free(&mut self, from: u64, count: u64) -> Res<u64> {
        let first = self.references.first_free(from, count);
        self.references.grow(first + count)?;
        self.references.fill(first..first + count, 1);
        Ok(first)
    }

    async fn write_structures(&self, table: &Reftable) -> Res<()> {
        let image = self.image;
        let cluster_size = image.geo.cluster_size();
        let order = image.geo.refcount_order;
        let bits = image.geo.refblock_bits();
        for (index, offset) in table.entries.iter().enumerate().filter(|(_, offset)| **offset != 0) {
            let mut refblock = Refblock::default();
            let first = (index as u64) << bits;
            let mut next = first;
            while let Some(used) = self.references.next_used(next).filter(|used| used >> bits == index as u64) {
                refblock.set(order, (used - first) as usize, u64::from(self.references.get(used)));
                next = used + 1;
            }
            self.write_structure(
                "refblock",
                *offset,
                refblock.content(*offset, cluster_size, &SharedEntries::default()),
            )
            .await?;
        }
        let content = prefix_content(entry_bytes(&table.entries), table.bytes());
        self.write_structure("reftable", table.offset, content).await?;
        self.block.co_flush(image.file()).await?;
        let clusters = (table.bytes() >> image.geo.cluster_bits) as u32;
        let mut fields = table.offset.to_be_bytes().to_vec();
        fields.extend_from_slice(&clusters.to_be_bytes());
        image.write_sync(self.block, 48, Content::from_bytes(fields)).await?;
        let mut header = image.header.borrow_mut();
        (header.refcount_table_offset, header.refcount_table_clusters) = (table.offset, clusters);
        Ok(())
    }

    async fn write_structure(&self, what: &str, at: u64, content: Content) -> Res<()> {
        let checked = self.image.check_overlap(self.block, None, at, content.len()).await;
        let written = match checked {
            Ok(()) => self.block.co_pwrite(self.image.file(), at, content, ReqFlags::NONE).await,
            refused => refused,
        };
        written.inspect_err(|error| {
            self.block.report_stderr(format!("{}: ERROR writing {what}: {error}", self.block.program));
        })
    }
}
