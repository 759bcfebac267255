//! Clusters for data that may come: `preallocation` of new and of growing images.
//!
//! With `metadata` every cluster is mapped as a write would map it; with `falloc` and `full` the data clusters lie
//! in one piece behind everything else, in a file that allocates them by the same mode. QEMU's source:
//! `preallocate_co` and `qcow2_co_truncate` in `block/qcow2.c`. Nothing is written as data here.

use std::rc::Rc;

use crate::block::{Block, Preallocation};
use crate::errno::Errno;
use crate::sim::shared::Cell;
use crate::sim::{CoMutexGuard, WaitQueue};

use super::Qcow2;
use super::inflight::Allocation;
use super::refcount::DiscardType;
use super::refgrow::Room;

impl Qcow2 {
    /// Maps every cluster of the range without writing data, and lets the file reach to the last. The error is
    /// QEMU's text.
    pub(super) async fn preallocate<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        from: u64,
        to: u64,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Result<(), String> {
        let failed = |error: Errno| format!("Allocating clusters failed: {error}");
        let mut at = from;
        let mut file_end = 0;
        while at < to {
            let (host, bytes) = self.allocate_range(block, at, to - at, locked).await.map_err(failed)?;
            file_end = (host + bytes).next_multiple_of(self.geo.cluster_size());
            at += bytes;
        }
        if file_end > block.length(&block.node(self.file())) {
            block.co_truncate(self.file(), file_end, Preallocation::Off).await?;
        }
        Ok(())
    }

    /// Maps every cluster of the range to one area at the end of the file, and allocates that.
    pub(super) async fn preallocate_data<'a>(
        self: &'a Rc<Self>,
        block: &'a Rc<Block>,
        from: u64,
        to: u64,
        preallocation: Preallocation,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Result<(), String> {
        let failed = |what: &str, error: Errno| format!("{what}: {error}");
        let cluster_size = self.geo.cluster_size();
        let file_size = block.length(&block.node(self.file()));
        // Without an answer all of the file counts as used.
        let last = self.last_cluster(block, file_size).await;
        let end = last.map_or(file_size.next_multiple_of(cluster_size), |last| (last + 1) << self.geo.cluster_bits);
        let first_guest = from - from % cluster_size;
        let clusters = self.geo.clusters(to - first_guest);
        // More than is needed, so that no refcount block has to be made in the middle of what follows.
        let tables = clusters.div_ceil(1 << self.geo.l2_bits()) + 1;
        let place = self.build_refcount_area(block, end, Room::Behind(clusters + tables), None).await;
        let place = place.map_err(|error| failed("Failed to resize refcount structures", error))?;
        let taken = self.alloc_clusters_at(block, place, clusters).await;
        taken.map_err(|error| failed("Failed to allocate data clusters", error))?;
        let bytes = clusters << self.geo.cluster_bits;
        if let Err(text) = block.co_truncate(self.file(), place + bytes, preallocation).await {
            self.free_clusters(block, place, bytes, DiscardType::Other).await;
            return Err(format!("Failed to resize underlying file: {text}"));
        }
        let (mut guest, mut host, mut left) = (first_guest, place, clusters);
        while left > 0 {
            let count = left.min(self.entries_behind(guest));
            let allocation =
                empty_clusters(guest, host, count, count << self.geo.cluster_bits, from.saturating_sub(guest));
            let linked = self.link(block, &allocation, None, locked).await;
            if let Err(error) = linked {
                self.free_clusters(block, host, left << self.geo.cluster_bits, DiscardType::Other).await;
                return Err(failed("Failed to update L2 tables", error));
            }
            guest += count << self.geo.cluster_bits;
            host += count << self.geo.cluster_bits;
            left -= count;
        }
        Ok(())
    }
}

/// `clusters` clusters that nothing is written to but the old content of the first `head` bytes.
fn empty_clusters(guest: u64, host: u64, clusters: u64, bytes: u64, head: u64) -> Allocation {
    Allocation {
        guest,
        host,
        clusters,
        keeps_clusters: false,
        head: (0, head),
        tail: (bytes, bytes),
        cow_done: Cell::new(false),
        waiters: WaitQueue::default(),
    }
}
