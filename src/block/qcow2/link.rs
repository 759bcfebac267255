//! The second half of an allocating write: old content, data, then the L2 table.
//!
//! The order is what makes a power cut harmless: refcounts before the L2 entry, copied content
//! before the L2 entry, the freed old cluster after it. QEMU's source: `perform_cow` and
//! `qcow2_alloc_cluster_link_l2` in `block/qcow2-cluster.c`, `handle_alloc_space` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BoxFuture, ReqFlags};
use crate::errno::{Errno, Res};
use crate::sim::CoMutexGuard;
use crate::store::Content;

use super::Qcow2;
use super::inflight::Allocation;
use super::layout::COPIED;
use super::refcount::DiscardType;
use super::write::Run;

/// Head and tail are read at once if at most this many bytes lie between them.
const MERGE_READS_BYTES: u64 = 16384;

impl Qcow2 {
    /// Writes a run that allocates clusters, and points the L2 table at them.
    pub(super) fn write_allocated<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        offset: u64,
        content: Content,
        run: Run,
    ) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            // QEMU's list of a request's allocations has the newest first.
            let allocations: Vec<Rc<Allocation>> = run.allocations.into_iter().rev().collect();
            let mut merged = None;
            let mut result = self.zero_new_clusters(block, &allocations).await;
            if result.is_ok() {
                merged = allocations.iter().position(|a| merges_with(a, offset, content.len()));
                if merged.is_none() {
                    block.debug_event(self.file(), BlkdebugEvent::WriteAio).await;
                    result = block.co_pwrite(self.file(), run.host, content.clone(), ReqFlags::NONE).await;
                }
            }
            let mut locked = Some(self.lock(block).await);
            let merged = merged.map(|index| (index, &content));
            self.settle(block, allocations, result, merged, &mut locked).await
        })
    }

    /// Links the allocations of a run, newest first, or gives them back where `result` is a failure or linking
    /// fails. `merged`: the content that is written together with what the allocation of that index carries over.
    pub(super) async fn settle<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        allocations: Vec<Rc<Allocation>>,
        mut result: Res<()>,
        merged: Option<(usize, &Content)>,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Res<()> {
        let mut left = allocations.into_iter().enumerate();
        if result.is_ok() {
            for (index, allocation) in left.by_ref() {
                let data = merged.filter(|(of, _)| *of == index).map(|(_, content)| content);
                result = self.link(block, &allocation, data, locked).await;
                if result.is_err() {
                    self.abandon_one(block, &allocation).await;
                    break;
                }
                self.retire(block, &allocation);
            }
        }
        for (_, allocation) in left {
            self.abandon_one(block, &allocation).await;
        }
        result
    }

    /// Allocates and links clusters for the beginning of a range without writing data, under the
    /// lock (preallocation). Returns host offset and bytes.
    pub(super) async fn allocate_range<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        offset: u64,
        bytes: u64,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Res<(u64, u64)> {
        let run = self.prepare_run_locked(block, offset, bytes, locked).await?;
        let found = (run.host, run.bytes);
        for allocation in &run.allocations {
            if let Err(error) = self.link(block, allocation, None, locked).await {
                self.abandon(block, run.allocations.clone()).await;
                return Err(error);
            }
            self.retire(block, allocation);
        }
        Ok(found)
    }

    /// Gives back clusters of a write that failed.
    pub(super) async fn abandon(&self, block: &Rc<Block>, allocations: Vec<Rc<Allocation>>) {
        for allocation in allocations.iter().rev() {
            self.abandon_one(block, allocation).await;
        }
    }

    async fn abandon_one(&self, block: &Rc<Block>, allocation: &Rc<Allocation>) {
        if !allocation.keeps_clusters {
            let bytes = allocation.clusters << self.geo.cluster_bits;
            self.free_clusters(block, allocation.host, bytes, DiscardType::Never).await;
        }
        self.retire(block, allocation);
    }

    /// Zeroes the new clusters as a whole where nothing but zeros would have to be carried over.
    async fn zero_new_clusters(self: &Rc<Self>, block: &Rc<Block>, allocations: &[Rc<Allocation>]) -> Res<()> {
        for allocation in allocations {
            if !allocation.has_cow() || !self.is_zero_cow(block, allocation).await? {
                continue;
            }
            let (start, end) = (allocation.host + allocation.head.0, allocation.host + allocation.tail.1);
            self.check_overlap(block, None, start, end - start).await?;
            block.debug_event(self.file(), BlkdebugEvent::ClusterAllocSpace).await;
            match block.co_pwrite_zeroes(self.file(), start, end - start, ReqFlags::NO_FALLBACK).await {
                Ok(()) => allocation.cow_done.set(true),
                // Old content is written as data then.
                Err(Errno::ENOTSUP | Errno::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether head and tail surely read as zeros.
    async fn is_zero_cow(&self, block: &Rc<Block>, allocation: &Allocation) -> Res<bool> {
        for (start, end) in [allocation.head, allocation.tail] {
            if start < end && !block.co_is_zero_fast(self.node, allocation.guest + start, end - start).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Carries old content over and points the L2 entries at the clusters.
    pub(super) async fn link<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        allocation: &Allocation,
        data: Option<&Content>,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Res<()> {
        if allocation.has_cow() && !allocation.cow_done.get() {
            *locked = None;
            let copied = Box::pin(self.carry_over(block, allocation, data)).await;
            *locked = Some(self.lock(block).await);
            copied?;
            self.l2_cache.depends_on_flush.set(true);
        }
        if self.uses_lazy_refcounts() {
            // Nobody looks whether that worked: if not, refcounts are kept accurate.
            let _ = self.mark_dirty(block).await;
        }
        if self.needs_accurate_refcounts() {
            self.l2_depends_on_refcounts(block).await;
        }
        let place = self.writable_l2(block, allocation.guest).await?;
        let mut replaced = Vec::new();
        place.table.update(|table| {
            for i in 0..allocation.clusters {
                let index = place.index + i as usize;
                let old = table.get(index);
                if old != 0 {
                    replaced.push(old);
                }
                table.set(index, (allocation.host + (i << self.geo.cluster_bits)) | COPIED);
            }
        });
        drop(place);
        if !allocation.keeps_clusters {
            // The next write will take them again: no hole for the host.
            for entry in replaced {
                self.free_entry(block, entry, DiscardType::Never).await;
            }
        }
        Ok(())
    }

    /// Reads what surrounds the written data and writes it to the new clusters, together with the
    /// data if these have not been written yet (`perform_cow`).
    async fn carry_over(
        self: &Rc<Self>,
        block: &Rc<Block>,
        allocation: &Allocation,
        data: Option<&Content>,
    ) -> Res<()> {
        let (head, tail) = (allocation.head, allocation.tail);
        let both = head.0 < head.1 && tail.0 < tail.1;
        let (old_head, old_tail) = if both && tail.0 - head.1 <= MERGE_READS_BYTES {
            let all = self.cow_read(block, allocation, (head.0, tail.1)).await?;
            (all.slice(0, head.1 - head.0), all.slice(tail.0 - head.0, tail.1 - tail.0))
        } else {
            (self.cow_read(block, allocation, head).await?, self.cow_read(block, allocation, tail).await?)
        };
        match data {
            Some(data) => {
                block.debug_event(self.file(), BlkdebugEvent::WriteAio).await;
                let all = old_head.concat(data.clone()).concat(old_tail);
                self.cow_write(block, allocation.host + head.0, all).await
            }
            None => {
                self.cow_write(block, allocation.host + head.0, old_head).await?;
                self.cow_write(block, allocation.host + tail.0, old_tail).await
            }
        }
    }

    async fn cow_read(
        self: &Rc<Self>,
        block: &Rc<Block>,
        allocation: &Allocation,
        (start, end): (u64, u64),
    ) -> Res<Content> {
        if start >= end {
            return Ok(Content::zeros(0));
        }
        block.debug_event(self.file(), BlkdebugEvent::CowRead).await;
        self.pread(block, allocation.guest + start, end - start).await
    }

    async fn cow_write(&self, block: &Rc<Block>, host: u64, content: Content) -> Res<()> {
        if content.is_empty() {
            return Ok(());
        }
        self.check_overlap(block, None, host, content.len()).await?;
        block.debug_event(self.file(), BlkdebugEvent::CowWrite).await;
        block.co_pwrite(self.file(), host, content, ReqFlags::NONE).await
    }
}

/// Whether the data lie exactly between the old content of an allocation, so that one write does.
fn merges_with(allocation: &Allocation, offset: u64, bytes: u64) -> bool {
    allocation.has_cow()
        && !allocation.cow_done.get()
        && allocation.guest + allocation.head.1 == offset
        && allocation.guest + allocation.tail.0 == offset + bytes
}
