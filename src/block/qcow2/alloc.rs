//! Finding free clusters.
//!
//! First fit from `free_cluster_index`, which only goes back when a lower cluster is freed: the
//! layout of an image depends on it. Allocating marks refcounts in the cache and writes nothing.
//! QEMU's source: `qcow2_alloc_clusters` and friends in `block/qcow2-refcount.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block};
use crate::errno::{Errno, Res};

use super::Qcow2;
use super::layout::MAX_HOST_OFFSET;
use super::refcount::{Change, DiscardType};

impl Qcow2 {
    /// Finds consecutive free clusters for `bytes` bytes below `max`, without taking them. Returns
    /// their host offset.
    pub(super) async fn find_free(&self, block: &Rc<Block>, bytes: u64, max: u64) -> Res<u64> {
        // Clusters that wait for their hole to be punched must not be reused before.
        if self.cache_discards.get() {
            self.process_discards(block, true).await;
        }
        let wanted = self.geo.clusters(bytes);
        let mut found = 0;
        while found < wanted {
            let next = self.free_cluster_index.get();
            self.free_cluster_index.set(next + 1);
            found = if self.get_refcount(block, next).await? == 0 { found + 1 } else { 0 };
        }
        let end = self.free_cluster_index.get();
        if end > 0 && end - 1 > max >> self.geo.cluster_bits {
            return Err(Errno::EFBIG);
        }
        Ok((end - wanted) << self.geo.cluster_bits)
    }

    /// Takes consecutive clusters for `bytes` bytes and returns their host offset.
    pub(super) async fn alloc_clusters(&self, block: &Rc<Block>, bytes: u64) -> Res<u64> {
        block.debug_event(self.file(), BlkdebugEvent::ClusterAlloc).await;
        loop {
            let offset = self.find_free(block, bytes, MAX_HOST_OFFSET).await?;
            match self.update_refcount(block, offset, bytes, Change::Up, DiscardType::Never).await {
                Err(Errno::EAGAIN) => {}
                other => return other.map(|()| offset),
            }
        }
    }

    /// Takes as many free clusters as there are from `offset` on, at most `wanted`; returns their
    /// number, maybe 0.
    pub(super) async fn alloc_clusters_at(&self, block: &Rc<Block>, offset: u64, wanted: u64) -> Res<u64> {
        loop {
            let first = offset >> self.geo.cluster_bits;
            let mut free = 0;
            while free < wanted && self.get_refcount(block, first + free).await? == 0 {
                free += 1;
            }
            let bytes = free << self.geo.cluster_bits;
            match self.update_refcount(block, offset, bytes, Change::Up, DiscardType::Never).await {
                Err(Errno::EAGAIN) => {}
                other => return other.map(|()| free),
            }
        }
    }

    /// Takes `bytes` bytes, at most a cluster, that need not be aligned: room for a compressed
    /// cluster, behind the last one where it fits. Returns their host offset.
    pub(super) async fn alloc_bytes(&self, block: &Rc<Block>, bytes: u64) -> Res<u64> {
        block.debug_event(self.file(), BlkdebugEvent::ClusterAllocBytes).await;
        let cluster_size = self.geo.cluster_size();
        let max = MAX_HOST_OFFSET.min((1 << self.geo.compressed_shift()) - 1);
        let mut offset = self.free_byte_offset.get();
        if offset != 0 {
            let refcount = self.get_refcount(block, offset >> self.geo.cluster_bits).await?;
            if refcount == self.geo.refcount_max() {
                offset = 0;
            }
        }
        let mut room = cluster_size - self.geo.into_cluster(offset);
        loop {
            if offset == 0 || room < bytes {
                let new = self.find_free(block, cluster_size, max).await?;
                if new == 0 {
                    let message = "Preventing invalid allocation of compressed cluster at offset 0".to_owned();
                    self.signal_corruption(block, true, None, message).await;
                    return Err(Errno::EIO);
                }
                if offset == 0 || offset.next_multiple_of(cluster_size) != new {
                    offset = new;
                    room = cluster_size;
                } else {
                    room += cluster_size;
                }
            }
            match self.update_refcount(block, offset, bytes, Change::Up, DiscardType::Never).await {
                Ok(()) => break,
                Err(Errno::EAGAIN) => offset = 0,
                Err(error) => return Err(error),
            }
        }
        // The L2 entry that will refer to it must not reach the file before its refcount.
        self.l2_depends_on_refcounts(block).await;
        let end = offset + bytes;
        self.free_byte_offset.set(if self.geo.into_cluster(end) == 0 { 0 } else { end });
        Ok(offset)
    }
}
