//! What a check makes of the table of internal snapshots: reading it, and writing a repaired one.
//!
//! The table is read before references are counted, since it leads to many of them, and written when refcounts can be
//! trusted again. QEMU's source: `qcow2_check_read_snapshot_table` and `qcow2_check_fix_snapshot_table` in
//! `block/qcow2-snapshot.c`.

use crate::errno::{Errno, Res};
use crate::store::Content;

use super::check::Checker;
use super::layout::be_at;
use super::open::read_bytes;
use super::refcount::DiscardType;
use super::snapshot::{FIXED_BYTES, MAX_SNAPSHOTS, MAX_TABLE_BYTES, Repairs, SnapshotTable, read_snapshots};

/// Where the header has the number of snapshots, and behind it the place of their table.
const COUNT_OFFSET: u64 = 60;
/// Extra data that a table of version 3 must have of each snapshot, bytes.
const LEAST_EXTRA_BYTES: u64 = 16;

impl Checker<'_> {
    fn snapshot_error(&mut self, line: String) {
        self.block.report_stderr(line);
        self.snapshots.check_errors += 1;
    }

    /// Reads the table, which an open for a check leaves out. With `-r all` entries that are too many or too large
    /// are left out or cut.
    pub(super) async fn load_snapshots(&mut self) -> Res<()> {
        let (image, block, program) = (self.image, self.block, self.block.program);
        let fields = read_bytes(block, image.file(), COUNT_OFFSET, 12).await;
        let fields = fields.inspect_err(|error| {
            self.snapshot_error(format!(
                "ERROR failed to read the snapshot table pointer from the image header: {error}"
            ));
        })?;
        let (mut count, offset) = (be_at(&fields, 0, 4), be_at(&fields, 4, 8));
        let mut repairs = self.fix.errors.then(Repairs::default);
        if let Some(repairs) = repairs.as_mut().filter(|_| count > MAX_SNAPSHOTS) {
            repairs.left_out = count - MAX_SNAPSHOTS;
            block.report_stderr(format!("Discarding {} overhanging snapshots", repairs.left_out));
            count = MAX_SNAPSHOTS;
        }
        let end = offset.checked_add(count * FIXED_BYTES);
        if end.is_none_or(|end| i64::try_from(end).is_err()) || image.geo.into_cluster(offset) != 0 {
            self.snapshot_error(format!("{program}: ERROR snapshot table offset invalid"));
            return Err(Errno::EINVAL);
        }
        if count > MAX_SNAPSHOTS {
            let more = count - MAX_SNAPSHOTS;
            self.snapshot_error(format!("{program}: ERROR snapshot table too large"));
            block.report_stderr(format!(
                "You can force-remove all {more} overhanging snapshots with qemu-img check -r all"
            ));
            return Err(Errno::EFBIG);
        }
        {
            let mut header = image.header.borrow_mut();
            (header.nb_snapshots, header.snapshots_offset) = (count as u32, offset);
        }
        let header = image.header.borrow().clone();
        let table = read_snapshots(block, image.file(), &header, repairs.as_mut()).await;
        let table = table.map_err(|fault| {
            self.snapshot_error(format!("{program}: ERROR failed to read the snapshot table: {}", fault.reason));
            if let Some(hint) = fault.hint {
                block.report_stderr(hint);
            }
            fault.errno
        })?;
        self.take_snapshots(table, repairs.unwrap_or_default()).await
    }

    async fn take_snapshots(&mut self, table: SnapshotTable, repairs: Repairs) -> Res<()> {
        let (image, block) = (self.image, self.block);
        self.snapshots.corruptions += repairs.left_out + repairs.cut;
        if repairs.left_out > 0 {
            let count = table.list.len() as u32;
            image.header.borrow_mut().nb_snapshots = count;
            let written = image.write_sync(block, COUNT_OFFSET, Content::from_bytes(count.to_be_bytes())).await;
            written.inspect_err(|error| {
                self.snapshot_error(format!("ERROR failed to update the snapshot count in the image header: {error}"));
            })?;
            self.snapshots.corruptions -= repairs.left_out;
            self.snapshots.corruptions_fixed += repairs.left_out;
        }
        let verb = if self.fix.errors { "Repairing" } else { "ERROR" };
        for (index, snapshot) in table.list.iter().enumerate() {
            if image.geo.version >= 3 && snapshot.extra_bytes < LEAST_EXTRA_BYTES {
                block.report_stderr(format!("{verb} snapshot table entry {index} is incomplete"));
                self.snapshots.corruptions += 1;
            }
        }
        image.snapshots.replace(table);
        Ok(())
    }

    /// Writes the table anew, where `-r all` has something to repair in it.
    pub(super) async fn fix_snapshots(&mut self) -> Res<()> {
        if !self.fix.errors || self.snapshots.corruptions == 0 {
            return Ok(());
        }
        let written = self.write_snapshots().await;
        written.inspect_err(|error| {
            self.snapshot_error(format!("ERROR failed to update snapshot table: {error}"));
        })?;
        self.snapshots.corruptions_fixed += std::mem::take(&mut self.snapshots.corruptions);
        Ok(())
    }

    /// A new table in new clusters, then the header's pointer to it, then the old one is free.
    async fn write_snapshots(&self) -> Res<()> {
        let (image, block) = (self.image, self.block);
        let old = image.snapshots.borrow().clone();
        let mut entries = Vec::new();
        for snapshot in &old.list {
            entries.resize(entries.len().next_multiple_of(8), 0);
            entries.extend(snapshot.entry());
        }
        let bytes = entries.len() as u64;
        if bytes > MAX_TABLE_BYTES {
            return Err(Errno::EFBIG);
        }
        let offset = image.alloc_clusters(block, bytes).await?;
        let written = async {
            image.flush_caches(block).await?;
            image.check_overlap(block, None, offset, bytes).await?;
            image.write_sync(block, offset, Content::from_bytes(entries)).await?;
            let mut pointer = (old.list.len() as u32).to_be_bytes().to_vec();
            pointer.extend(offset.to_be_bytes());
            image.write_sync(block, COUNT_OFFSET, Content::from_bytes(pointer)).await
        }
        .await;
        if let Err(error) = written {
            image.free_clusters(block, offset, bytes, DiscardType::Always).await;
            return Err(error);
        }
        image.free_clusters(block, old.offset, old.bytes, DiscardType::Always).await;
        image.header.borrow_mut().snapshots_offset = offset;
        let mut table = image.snapshots.borrow_mut();
        (table.offset, table.bytes) = (offset, bytes);
        table.list.iter_mut().for_each(|snapshot| snapshot.extra_bytes = snapshot.stored_extra_bytes());
        Ok(())
    }
}
