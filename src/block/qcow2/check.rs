//! `qemu-img check`: counting all references of an image and comparing them with its refcounts.
//!
//! Reads tables from the file, not from the cache, as the file is what is to be checked; meant for
//! an image that has just been opened. This file counts; comparing and repairing is in
//! `repair.rs`, building new refcount structures in `rebuild.rs`. QEMU's source:
//! `qcow2_check_refcounts` in `block/qcow2-refcount.c`.

use std::rc::Rc;

use crate::block::{Block, Preallocation, ReqFlags};
use crate::cutils::alternate_hex;
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::Qcow2;
use super::bitmap_format::{TABLE_OFFSET_MASK, is_table_entry};
use super::layout::{
    COPIED, ClusterType, ENTRY_BYTES, L1E_OFFSET_MASK, L1E_RESERVED, L2E_OFFSET_MASK, L2E_RESERVED, MAX_L1_BYTES,
    REFT_OFFSET_MASK, REFT_RESERVED, ZERO,
};
use super::open::read_bytes;
use super::overlap::Area;
use super::references::References;
use super::table::{content_prefix, entries_of};

/// What a check may repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fix {
    /// Clusters that nobody uses (`-r leaks`).
    pub leaks: bool,
    /// Everything else (`-r all`).
    pub errors: bool,
}

impl Fix {
    /// Only look.
    pub const NOTHING: Fix = Fix { leaks: false, errors: false };
    /// `-r leaks`.
    pub const LEAKS: Fix = Fix { leaks: true, errors: false };
    /// `-r all`.
    pub const ALL: Fix = Fix { leaks: true, errors: true };

    /// Whether anything may be written.
    pub fn any(self) -> bool {
        self.leaks || self.errors
    }
}

/// What a check found (`BdrvCheckResult`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Things that are wrong and were not repaired.
    pub corruptions: u64,
    /// Clusters that nobody uses and that were not freed.
    pub leaks: u64,
    /// Failures of the check itself.
    pub check_errors: u64,
    /// Repaired corruptions.
    pub corruptions_fixed: u64,
    /// Freed clusters.
    pub leaks_fixed: u64,
    /// End of the last cluster in use, bytes; 0 if the check did not get that far.
    pub image_end_offset: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Guest clusters with a place in the file.
    pub allocated_clusters: u64,
    /// Of these, those that do not continue their predecessor.
    pub fragmented_clusters: u64,
    /// Of these, compressed ones.
    pub compressed_clusters: u64,
}

/// A check under way.
pub(super) struct Checker<'a> {
    pub(super) image: &'a Qcow2,
    pub(super) block: &'a Rc<Block>,
    pub(super) fix: Fix,
    pub(super) result: CheckResult,
    /// The same of the snapshot table, which the judgement on refcounts does not look at.
    pub(super) snapshots: CheckResult,
    /// References counted so far, by cluster.
    pub(super) references: References,
    /// Refcounts cannot be repaired one by one.
    pub(super) rebuild: bool,
}

impl Qcow2 {
    /// Checks the image and repairs what `fix` allows; findings are told on stderr as they are
    /// made. The result holds as far as the check got, also on an error.
    pub async fn check(self: &Rc<Self>, block: &Rc<Block>, fix: Fix) -> (CheckResult, Res<()>) {
        let _locked = self.lock(block).await;
        let outcome = self.check_locked(block, fix).await;
        let is_repaired = outcome.0.leaks_fixed + outcome.0.corruptions_fixed > 0;
        if is_repaired && self.l2_cache.next_dirty(0).is_none() && self.refcount_cache.next_dirty(0).is_none() {
            // Repairs went to the file behind the cache's back.
            self.reshape_caches();
        }
        outcome
    }

    pub(super) async fn check_locked(&self, block: &Rc<Block>, fix: Fix) -> (CheckResult, Res<()>) {
        let mut checker = Checker::new(self, block, fix);
        let mut outcome = checker.whole().await;
        checker.add_snapshots();
        let sound = checker.result.check_errors == 0 && checker.result.corruptions == 0;
        if outcome.is_ok() && fix.any() && sound {
            outcome = self.mark_sound(block).await;
        }
        (checker.result, outcome)
    }

    /// Clears the dirty and the corrupt bit after a repair.
    async fn mark_sound(&self, block: &Rc<Block>) -> Res<()> {
        self.mark_clean(block).await?;
        if self.header.borrow().incompatible & super::header::INCOMPAT_CORRUPT != 0 {
            self.flush_caches(block).await?;
            self.header.borrow_mut().incompatible &= !super::header::INCOMPAT_CORRUPT;
            self.update_header(block).await?;
        }
        Ok(())
    }
}

impl<'a> Checker<'a> {
    fn new(image: &'a Qcow2, block: &'a Rc<Block>, fix: Fix) -> Checker<'a> {
        let result = CheckResult { total_clusters: image.geo.clusters(image.virtual_size()), ..CheckResult::default() };
        let references = References::new(image.geo.refcount_order);
        Checker { image, block, fix, result, snapshots: CheckResult::default(), references, rebuild: false }
    }

    async fn whole(&mut self) -> Res<()> {
        self.load_snapshots().await?;
        // QEMU counts them in an int, to begin with.
        if self.file_clusters() > i32::MAX as u64 {
            self.result.check_errors += 1;
            return Err(Errno::EFBIG);
        }
        self.look_at_file()?;
        self.run().await?;
        self.fix_snapshots().await
    }

    /// Adds what was found in the snapshot table to the rest.
    fn add_snapshots(&mut self) {
        let found = &self.snapshots;
        self.result.corruptions += found.corruptions;
        self.result.corruptions_fixed += found.corruptions_fixed;
        self.result.check_errors += found.check_errors;
    }

    /// Looks at all clusters of the file.
    fn look_at_file(&mut self) -> Res<()> {
        let clusters = self.file_clusters();
        self.references.grow(clusters).inspect_err(|_| self.result.check_errors += 1)
    }

    fn file_clusters(&self) -> u64 {
        self.image.geo.clusters(self.block.node(self.image.file()).length.get())
    }

    /// Writes a line about something that is wrong.
    pub(super) fn complain(&mut self, line: String) {
        self.block.report_stderr(line);
        self.result.corruptions += 1;
    }

    pub(super) fn check_error(&mut self, line: String) {
        self.block.report_stderr(line);
        self.result.check_errors += 1;
    }

    /// Counts a reference to every cluster of a range. An offset that QEMU takes for negative ends
    /// the check with ENOMEM, as it does there.
    pub(super) fn count(&mut self, offset: u64, bytes: u64) -> Res<()> {
        if bytes == 0 {
            return Ok(());
        }
        if i64::try_from(offset).is_err() {
            return Err(Errno::ENOMEM);
        }
        let geo = self.image.geo;
        let end = offset.saturating_add(bytes);
        // The last cluster may be there only in part.
        let file_len = self.block.node(self.image.file()).length.get();
        if end.saturating_sub(file_len) >= geo.cluster_size() && end > file_len {
            let what = "ERROR: counting reference for region exceeding the end of the file by one cluster or more";
            self.complain(format!("{what}: offset {offset:#x} size {bytes:#x}"));
            return Ok(());
        }
        for cluster in offset >> geo.cluster_bits..=(end - 1) >> geo.cluster_bits {
            let grown = self.references.grow(cluster + 1);
            grown.inspect_err(|_| self.result.check_errors += 1)?;
            let references = self.references.get(cluster);
            if u64::from(references) == geo.refcount_max() {
                let at = cluster << geo.cluster_bits;
                self.complain(format!("ERROR: overflow cluster offset={at:#x}"));
                self.block.report_stderr(
                    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean \
                     copy if the image cannot be opened for writing"
                        .to_owned(),
                );
            } else {
                self.references.set(cluster, references + 1);
            }
        }
        Ok(())
    }

    /// Counts everything that the image refers to.
    pub(super) async fn count_all(&mut self) -> Res<()> {
        let image = self.image;
        self.count(0, image.geo.cluster_size())?;
        let active = (image.l1_offset.get(), image.l1.borrow().len() as u64);
        self.count_l1(active, true).await?;
        let snapshots = image.snapshots.borrow().clone();
        for snapshot in &snapshots.list {
            let (id, name) = (&snapshot.id, &snapshot.name);
            let (at, entries) = (snapshot.l1_table_offset, u64::from(snapshot.l1_size));
            let tail = "snapshot table entry corrupted";
            if image.geo.into_cluster(at) != 0 {
                let at = alternate_hex(at);
                self.complain(format!(
                    "ERROR snapshot {id} ({name}) l1_offset={at}: L1 table is not cluster aligned; {tail}"
                ));
            } else if entries * ENTRY_BYTES > MAX_L1_BYTES {
                let entries = alternate_hex(entries);
                self.complain(format!("ERROR snapshot {id} ({name}) l1_size={entries}: L1 table is too large; {tail}"));
            } else {
                self.count_l1((at, entries), false).await?;
            }
        }
        self.count(snapshots.offset, snapshots.bytes)?;
        let (reftable_offset, reftable_bytes) = {
            let table = image.reftable.borrow();
            (table.offset, table.bytes())
        };
        self.count(reftable_offset, reftable_bytes)?;
        self.count_bitmaps().await?;
        self.count_refblocks().await
    }

    /// Counts an L1 table and what it leads to; statistics are those of the active one.
    async fn count_l1(&mut self, (offset, entries): (u64, u64), active: bool) -> Res<()> {
        if entries == 0 {
            return Ok(());
        }
        self.count(offset, entries * ENTRY_BYTES)?;
        let read = self.read_table(offset, entries * ENTRY_BYTES).await;
        let table = read.inspect_err(|_| self.check_error("ERROR: I/O error in check_refcounts_l1".to_owned()))?;
        for entry in table.into_iter().filter(|entry| *entry != 0) {
            if entry & L1E_RESERVED != 0 {
                self.complain(format!("ERROR found L1 entry with reserved bits set: {entry:x}"));
            }
            let l2 = entry & L1E_OFFSET_MASK;
            self.count(l2, self.image.geo.cluster_size())?;
            if self.image.geo.into_cluster(l2) != 0 {
                self.complain(format!("ERROR l2_offset={l2:x}: Table is not cluster aligned; L1 entry corrupted"));
            }
            self.count_l2(l2, active).await?;
        }
        Ok(())
    }

    /// The entries of a table in the file, without those behind the last that is not 0.
    pub(super) async fn read_table(&self, offset: u64, bytes: u64) -> Res<Vec<u64>> {
        let content = self.block.co_pread(self.image.file(), offset, bytes, ReqFlags::NONE).await?;
        Ok(entries_of(&content_prefix(&content)))
    }

    async fn count_l2(&mut self, offset: u64, active: bool) -> Res<()> {
        let read = self.read_table(offset, self.image.geo.cluster_size()).await;
        let table = read.inspect_err(|_| self.check_error("ERROR: I/O error in check_refcounts_l2".to_owned()))?;
        let mut expected = 0;
        for (index, entry) in table.into_iter().enumerate() {
            let kind = ClusterType::of(entry);
            if kind != ClusterType::Compressed && entry & L2E_RESERVED != 0 {
                self.complain(format!("ERROR found l2 entry with reserved bits set: {entry:x}"));
            }
            match kind {
                ClusterType::Compressed => self.count_compressed(entry, active)?,
                ClusterType::Normal | ClusterType::ZeroAlloc => {
                    let host = entry & L2E_OFFSET_MASK;
                    if active {
                        self.result.allocated_clusters += 1;
                        if expected != 0 && host != expected {
                            self.result.fragmented_clusters += 1;
                        }
                        expected = host + self.image.geo.cluster_size();
                    }
                    self.count_cluster(offset + index as u64 * ENTRY_BYTES, entry).await?;
                }
                ClusterType::Unallocated | ClusterType::ZeroPlain => {}
            }
        }
        Ok(())
    }

    fn count_compressed(&mut self, entry: u64, active: bool) -> Res<()> {
        let (host, bytes) = self.image.geo.compressed_extent(entry);
        if entry & COPIED != 0 {
            self.complain(format!("ERROR: coffset={host:#x}: copied flag must never be set for compressed clusters"));
        }
        self.count(host, bytes)?;
        if active {
            self.result.allocated_clusters += 1;
            self.result.compressed_clusters += 1;
            self.result.fragmented_clusters += 1;
        }
        Ok(())
    }

    /// Counts the cluster of the L2 entry at `place`.
    async fn count_cluster(&mut self, place: u64, entry: u64) -> Res<()> {
        let host = entry & L2E_OFFSET_MASK;
        if self.image.geo.into_cluster(host) != 0 {
            let tail = "cluster is not properly aligned; L2 entry corrupted.";
            if entry & ZERO == 0 {
                self.complain(format!("ERROR offset={host:x}: Data {tail}"));
            } else {
                let verb = if self.fix.errors { "Repairing" } else { "ERROR" };
                self.complain(format!("{verb} offset={host:x}: Preallocated {tail}"));
                if self.fix.errors && self.write_zero_entry(place).await? {
                    self.result.corruptions -= 1;
                    self.result.corruptions_fixed += 1;
                    return Ok(());
                }
            }
        }
        self.count(host, self.image.geo.cluster_size())
    }

    /// Makes a cluster read as zeros without a place in the file; whether that could be written. A table that lies
    /// where none may be written ends the check.
    async fn write_zero_entry(&mut self, place: u64) -> Res<bool> {
        let allowed = self.image.check_overlap(self.block, Some(Area::ActiveL2), place, ENTRY_BYTES).await;
        allowed.inspect_err(|_| self.check_error("ERROR: Overlap check failed".to_owned()))?;
        let written = self.image.write_sync(self.block, place, Content::from_bytes(ZERO.to_be_bytes())).await;
        if let Err(error) = written {
            self.check_error(format!("ERROR: Failed to overwrite L2 table entry: {error}"));
        }
        Ok(written.is_ok())
    }

    async fn count_bitmaps(&mut self) -> Res<()> {
        let extension = self.image.extras.borrow().bitmaps;
        if extension.count == 0 {
            return Ok(());
        }
        self.count(extension.directory_offset, extension.directory_size)?;
        let Ok(list) = self.image.read_directory(self.block).await else {
            self.result.corruptions += 1;
            return Err(Errno::EINVAL);
        };
        for bitmap in list {
            let place = bitmap.table;
            self.count(place.offset, place.bytes())?;
            let bytes = read_bytes(self.block, self.image.file(), place.offset, place.bytes()).await;
            let table = bytes.inspect_err(|_| self.result.corruptions += 1)?;
            for entry in entries_of(&table) {
                let offset = entry & TABLE_OFFSET_MASK;
                if !is_table_entry(self.image.geo, entry) {
                    self.result.corruptions += 1;
                } else if offset != 0 {
                    self.count(offset, self.image.geo.cluster_size())?;
                }
            }
        }
        Ok(())
    }

    async fn count_refblocks(&mut self) -> Res<()> {
        let geo = self.image.geo;
        let entries = self.image.reftable.borrow().entries.clone();
        for (index, entry) in entries.into_iter().enumerate() {
            let offset = entry & REFT_OFFSET_MASK;
            let cluster = offset >> geo.cluster_bits;
            if entry & REFT_RESERVED != 0 {
                self.complain(format!("ERROR refcount table entry {index} has reserved bits set"));
                self.rebuild = true;
            } else if geo.into_cluster(offset) != 0 {
                let tail = "is not cluster aligned; refcount table entry corrupted";
                self.complain(format!("ERROR refcount block {index} {tail}"));
                self.rebuild = true;
            } else if cluster >= self.references.clusters() {
                self.count_refblock_outside(index, offset).await?;
            } else if offset != 0 {
                self.count(offset, geo.cluster_size())?;
                let references = self.references.get(cluster);
                if references != 1 {
                    self.complain(format!("ERROR refcount block {index} refcount={references}"));
                    self.rebuild = true;
                }
            }
        }
        Ok(())
    }

    /// A refcount block behind the end of the file can be had by making the file longer.
    async fn count_refblock_outside(&mut self, index: usize, offset: u64) -> Res<()> {
        let verb = if self.fix.errors { "Repairing" } else { "ERROR" };
        self.complain(format!("{verb} refcount block {index} is outside image"));
        if !self.fix.errors {
            return Ok(());
        }
        let end = offset.saturating_add(self.image.geo.cluster_size());
        let resized = match i64::try_from(end) {
            Ok(_) => self.block.co_truncate(self.image.file(), end, Preallocation::Off).await.map_err(|reason| {
                self.block.report_stderr(format!("{}: {reason}", self.block.program));
                // Who asked for too much is told a number, everybody else what the host has said.
                match reason.starts_with("offset(") {
                    true => Errno::EIO.to_string(),
                    false => reason.rsplit(": ").next().unwrap_or_default().to_owned(),
                }
            }),
            Err(_) => Err(Errno::EINVAL.to_string()),
        };
        match resized {
            Ok(()) => {
                self.look_at_file()?;
                self.result.corruptions -= 1;
                self.result.corruptions_fixed += 1;
                self.count(offset, self.image.geo.cluster_size())?;
            }
            Err(reason) => {
                self.block.report_stderr(format!("ERROR could not resize image: {reason}"));
                self.rebuild = true;
            }
        }
        Ok(())
    }
}
