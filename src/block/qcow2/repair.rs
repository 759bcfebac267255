//! The second half of a check: comparing references with refcounts, repairing what may be
//! repaired, the COPIED flags.
//!
//! Refcounts are compared once without repairing, so that it is known whether repairing one by one
//! is possible at all. QEMU's source: `compare_refcounts`, `check_oflag_copied` in
//! `block/qcow2-refcount.c`.

use crate::block::ReqFlags;
use crate::errno::{Errno, Res};

use super::check::{CheckResult, Checker, Fix};
use super::layout::{COPIED, ClusterType, L1E_OFFSET_MASK, L2E_OFFSET_MASK};
use super::overlap::Area;
use super::refcount::DiscardType;
use super::table::{entry_bytes, prefix_content};

impl Checker<'_> {
    /// The whole check.
    pub(super) async fn run(&mut self) -> Res<()> {
        self.count_all().await?;
        let counted = self.result.clone();
        let mut highest = self.compare(Fix::NOTHING).await;
        if self.rebuild && self.fix.errors {
            self.block.report_stderr("Rebuilding refcount structure".to_owned());
            highest = self.rebuild_and_compare().await?;
        } else if self.fix.any() {
            if self.rebuild {
                self.block.report_stderr("ERROR need to rebuild refcount structures".to_owned());
                return Err(Errno::EIO);
            }
            if self.result.leaks > 0 || self.result.corruptions > 0 {
                self.result = counted;
                highest = self.compare(self.fix).await;
            }
        }
        self.check_copied_flags().await?;
        self.result.image_end_offset = (highest + 1) << self.image.geo.cluster_bits;
        Ok(())
    }

    /// Compares all refcounts and repairs them as far as `fix` allows. Returns the highest cluster
    /// in use.
    async fn compare(&mut self, fix: Fix) -> u64 {
        let mut highest = 0;
        let mut next = 0;
        while let Some(cluster) = self.next_described(next) {
            next = cluster + 1;
            let stored = match self.image.get_refcount(self.block, cluster).await {
                Ok(stored) => stored,
                Err(error) => {
                    self.check_error(format!("Can't get refcount for cluster {cluster}: {error}"));
                    continue;
                }
            };
            let counted = u64::from(self.references.get(cluster));
            if stored > 0 || counted > 0 {
                highest = cluster;
            }
            if stored != counted {
                self.settle(cluster, stored, counted, fix).await;
            }
        }
        highest
    }

    /// The first cluster from `from` on that something is known of: a reference, or a refcount block for it.
    fn next_described(&self, from: u64) -> Option<u64> {
        let bits = self.image.geo.refblock_bits();
        let table = self.image.reftable.borrow();
        let mut blocks = from >> bits..table.entries.len() as u64;
        let in_block = blocks.find(|index| table.block_offset(*index) != 0).map(|index| from.max(index << bits));
        let used = self.references.next_used(from);
        [used, in_block].into_iter().flatten().min().filter(|cluster| *cluster < self.references.clusters())
    }

    async fn settle(&mut self, cluster: u64, stored: u64, counted: u64, fix: Fix) {
        let leak = stored > counted;
        let repairs = if stored == 0 {
            self.rebuild = true;
            false
        } else {
            (leak && fix.leaks) || (!leak && fix.errors)
        };
        let verb = match (repairs, leak) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        self.block.report_stderr(format!("{verb} cluster {cluster} refcount={stored} reference={counted}"));
        let repaired = repairs && self.set_refcount(cluster, counted, leak).await.is_ok();
        match (repaired, leak) {
            (true, true) => self.result.leaks_fixed += 1,
            (true, false) => self.result.corruptions_fixed += 1,
            (false, true) => self.result.leaks += 1,
            (false, false) => self.result.corruptions += 1,
        }
    }

    /// Sets a refcount that is not 0 to what was counted.
    async fn set_refcount(&self, cluster: u64, counted: u64, lowers: bool) -> Res<()> {
        let image = self.image;
        if lowers {
            image.refcounts_depend_on_l2(self.block).await;
        }
        let refblock = image.refblock_for(self.block, cluster).await?;
        let index = (cluster & (image.geo.refblock_entries() - 1)) as usize;
        refblock.update(|table| table.set(image.geo.refcount_order, index, counted));
        drop(refblock);
        if counted == 0 {
            image.free_cluster_index.set(image.free_cluster_index.get().min(cluster));
            if image.passes_discard(self.block, DiscardType::Always) {
                image.queue_discard(cluster << image.geo.cluster_bits, image.geo.cluster_size());
            }
        }
        image.process_discards(self.block, true).await;
        Ok(())
    }

    /// Builds new refcount structures, and frees the old ones, which nothing refers to any more.
    async fn rebuild_and_compare(&mut self) -> Res<u64> {
        let before = self.result.clone();
        self.rebuild_refcounts().await?;
        let statistics = CheckResult { corruptions: 0, leaks: 0, ..before.clone() };
        self.result = CheckResult { total_clusters: before.total_clusters, ..CheckResult::default() };
        self.rebuild = false;
        self.references.clear();
        let fix = std::mem::replace(&mut self.fix, Fix::NOTHING);
        let counted = self.count_all().await;
        self.fix = fix;
        counted?;
        let mut highest = 0;
        let found = self.result.clone();
        if fix.leaks {
            // The old structures were not there before this repair: they are no finding.
            highest = self.compare(Fix::LEAKS).await;
            if self.rebuild {
                self.block.report_stderr("ERROR rebuilt refcount structure is still broken".to_owned());
            }
        }
        self.result = CheckResult {
            corruptions: found.corruptions,
            leaks: found.leaks,
            check_errors: statistics.check_errors + found.check_errors,
            corruptions_fixed: statistics.corruptions_fixed + before.corruptions.saturating_sub(found.corruptions),
            leaks_fixed: statistics.leaks_fixed + before.leaks.saturating_sub(found.leaks),
            ..statistics
        };
        Ok(highest)
    }

    /// COPIED must be set where the refcount is 1 and nowhere else, in the active tables.
    async fn check_copied_flags(&mut self) -> Res<()> {
        let result = &self.result;
        let nothing_else = result.check_errors == 0 && result.corruptions == 0 && result.leaks == 0;
        let repairs = self.fix.errors || (self.fix.leaks && nothing_else);
        let entries = self.image.l1.borrow().clone();
        for (index, entry) in entries.into_iter().enumerate() {
            let l2 = entry & L1E_OFFSET_MASK;
            if l2 == 0 {
                continue;
            }
            // Refcounts that cannot be read were complained about before.
            let Ok(refcount) = self.image.get_refcount(self.block, l2 >> self.image.geo.cluster_bits).await else {
                continue;
            };
            if (refcount == 1) != (entry & COPIED != 0) {
                let verb = if repairs { "Repairing" } else { "ERROR" };
                self.complain(format!(
                    "{verb} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
                ));
                if repairs {
                    self.image.l1.borrow_mut()[index] = with_copied(entry, refcount == 1);
                    let written = self.image.write_l1_entry(self.block, index).await;
                    written.inspect_err(|_| self.result.check_errors += 1)?;
                    self.result.corruptions -= 1;
                    self.result.corruptions_fixed += 1;
                }
            }
            self.check_copied_l2(l2, repairs).await?;
        }
        Ok(())
    }

    async fn check_copied_l2(&mut self, offset: u64, repairs: bool) -> Res<()> {
        let cluster_size = self.image.geo.cluster_size();
        let mut table = match self.read_table(offset, cluster_size).await {
            Ok(table) => table,
            Err(error) => {
                self.check_error(format!("ERROR: Could not read L2 table: {error}"));
                return Err(error);
            }
        };
        let mut changed = 0;
        for entry in &mut table {
            if !matches!(ClusterType::of(*entry), ClusterType::Normal | ClusterType::ZeroAlloc) {
                continue;
            }
            let cluster = (*entry & L2E_OFFSET_MASK) >> self.image.geo.cluster_bits;
            let Ok(refcount) = self.image.get_refcount(self.block, cluster).await else { continue };
            if (refcount == 1) == (*entry & COPIED != 0) {
                continue;
            }
            let verb = if repairs { "Repairing" } else { "ERROR" };
            self.complain(format!("{verb} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}"));
            if repairs {
                *entry = with_copied(*entry, refcount == 1);
                changed += 1;
            }
        }
        if changed == 0 {
            return Ok(());
        }
        let content = prefix_content(entry_bytes(&table), cluster_size);
        let checked = self.image.check_overlap(self.block, Some(Area::ActiveL2), offset, cluster_size).await;
        if let Err(error) = checked {
            let what = "ERROR: Could not write L2 table; metadata overlap check failed";
            self.check_error(format!("{what}: {error}"));
            return Err(error);
        }
        if let Err(error) = self.block.co_pwrite(self.image.file(), offset, content, ReqFlags::NONE).await {
            self.check_error(format!("ERROR: Could not write L2 table: {error}"));
            return Err(error);
        }
        self.result.corruptions -= changed;
        self.result.corruptions_fixed += changed;
        Ok(())
    }
}

fn with_copied(entry: u64, set: bool) -> u64 {
    if set { entry | COPIED } else { entry & !COPIED }
}
