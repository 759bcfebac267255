//! Compressed clusters: packing them behind one another, reading them back.
//!
//! A compressed cluster is raw deflate without a header, over a window of 4 KiB. How well it packs decides where the
//! next cluster goes and how long the file gets, so the packing is zlib's own, as QEMU's is. QEMU's source:
//! `qcow2_co_pwritev_compressed_part` in `block/qcow2.c`, `block/qcow2-threads.c`.

use std::rc::Rc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::block::{BlkdebugEvent, Block, Preallocation, ReqFlags};
use crate::errno::{Errno, Res};
use crate::sim::shared::Cell;
use crate::sim::{Footprint, WaitQueue};
use crate::store::Content;

use super::Qcow2;
use super::l2::Mapping;
use super::layout::{COMPRESSED, COMPRESSED_SECTOR, ClusterType};
use super::pool::TaskPool;

/// How far back a match may reach, as a power of two.
const WINDOW_BITS: u8 = 12;
/// Clusters of an image that are packed or unpacked at once (`QCOW2_MAX_THREADS`).
const MAX_THREADS: usize = 4;

/// Who packs and unpacks clusters of one image at the moment.
#[derive(Default)]
pub(super) struct Threads {
    busy: Cell<usize>,
    waiting: WaitQueue,
}

impl Qcow2 {
    /// Writes guest data compressed; whole clusters only, except at the image's end. A cluster
    /// that is allocated already cannot be overwritten so.
    pub async fn pwrite_compressed(self: &Rc<Self>, block: &Rc<Block>, offset: u64, content: Content) -> Res<()> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let bytes = content.len();
        if bytes == 0 {
            return self.end_with_a_sector(block).await;
        }
        let to_end = offset + bytes == block.node(self.node).length.get();
        if self.geo.into_cluster(offset) != 0 || (self.geo.into_cluster(bytes) != 0 && !to_end) {
            return Err(Errno::EINVAL);
        }
        let cluster = self.geo.cluster_size();
        if bytes <= cluster {
            return self.write_compressed_cluster(block, offset, content).await;
        }
        let pool = TaskPool::default();
        let mut done = 0;
        while done < bytes && !pool.has_failed() {
            let piece = content.slice(done, cluster);
            let (image, core, at) = (self.clone(), block.clone(), offset + done);
            done += piece.len();
            let piece = async move { image.write_compressed_cluster(&core, at, piece).await };
            pool.start(&block.sim, Box::pin(piece)).await;
        }
        pool.finish(&block.sim).await
    }

    /// Whoever has written his last compressed cluster says so by an empty write: other writes are easier where the file
    /// has whole sectors.
    async fn end_with_a_sector(&self, block: &Rc<Block>) -> Res<()> {
        let sectors = block.length(&block.node(self.file()));
        block.co_truncate(self.file(), sectors, Preallocation::Off).await.map_err(|_| Errno::EIO)
    }

    async fn write_compressed_cluster(self: &Rc<Self>, block: &Rc<Block>, offset: u64, content: Content) -> Res<()> {
        if self.header.borrow().compression_type != 0 {
            return Err(Errno::ENOTSUP);
        }
        let mut plain = content.to_vec();
        plain.resize(self.geo.cluster_size() as usize, 0);
        self.in_thread(block, "compression").await;
        let Some(packed) = deflate(&plain) else {
            return self.pwrite(block, offset, content, ReqFlags::NONE).await;
        };
        let locked = self.lock(block).await;
        let host = self.map_compressed(block, offset, packed.len() as u64).await?;
        self.check_overlap(block, None, host, packed.len() as u64).await?;
        drop(locked);
        block.debug_event(self.file(), BlkdebugEvent::WriteCompressed).await;
        block.co_pwrite(self.file(), host, Content::from_bytes(packed), ReqFlags::NONE).await
    }

    /// Has a thread of the host's pool pack or unpack a cluster (`qcow2_co_process`).
    async fn in_thread(&self, block: &Block, what: &'static str) {
        let threads = &self.threads;
        let mut locked = self.lock(block).await;
        while threads.busy.get() >= MAX_THREADS {
            drop(locked);
            threads.waiting.wait(&block.sim, "a thread for a compressed cluster").await;
            locked = self.lock(block).await;
        }
        threads.busy.set(threads.busy.get() + 1);
        drop(locked);
        block.sim.device(0, Footprint::named(what)).await;
        let _locked = self.lock(block).await;
        threads.busy.set(threads.busy.get() - 1);
        threads.waiting.wake_one(&block.sim);
    }

    /// Allocates room for a compressed cluster and points its L2 entry there.
    async fn map_compressed(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<u64> {
        let place = self.writable_l2(block, offset).await?;
        if ClusterType::of(place.table.read(|table| table.get(place.index))).is_allocated() {
            return Err(Errno::EIO);
        }
        let host = self.alloc_bytes(block, bytes).await?;
        let sectors = (host + bytes - 1) / COMPRESSED_SECTOR - host / COMPRESSED_SECTOR;
        let entry = host | COMPRESSED | sectors << self.geo.compressed_shift();
        block.debug_event(self.file(), BlkdebugEvent::L2UpdateCompressed).await;
        place.table.update(|table| table.set(place.index, entry));
        Ok(host)
    }

    /// Reads from a compressed cluster; `mapping.host` is its L2 entry.
    pub(super) async fn read_compressed(&self, block: &Rc<Block>, offset: u64, mapping: Mapping) -> Res<Content> {
        let (host, bytes) = self.geo.compressed_extent(mapping.host);
        if self.header.borrow().compression_type != 0 {
            return Err(Errno::ENOTSUP);
        }
        block.debug_event(self.file(), BlkdebugEvent::ReadCompressed).await;
        let packed = block.co_pread(self.file(), host, bytes, ReqFlags::NONE).await?.to_vec();
        self.in_thread(block, "decompression").await;
        let plain = inflate(&packed, self.geo.cluster_size() as usize).ok_or(Errno::EIO)?;
        let content = match plain.first() {
            Some(first) if plain.iter().all(|b| b == first) => Content::pattern(*first, plain.len() as u64),
            _ => Content::from_bytes(plain),
        };
        Ok(content.slice(self.geo.into_cluster(offset), mapping.bytes))
    }
}

/// Compresses a cluster; `None` if that does not make it smaller.
fn deflate(plain: &[u8]) -> Option<Vec<u8>> {
    let mut state = Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS);
    let mut packed = Vec::with_capacity(plain.len());
    let status = state.compress_vec(plain, &mut packed, FlushCompress::Finish).ok()?;
    (status == Status::StreamEnd && packed.len() < plain.len()).then_some(packed)
}

/// Decompresses a cluster of `size` bytes; `None` if the data are damaged or too short.
fn inflate(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(size);
    let mut state = Decompress::new_with_window_bits(false, WINDOW_BITS);
    state.decompress_vec(packed, &mut plain, FlushDecompress::Finish).ok()?;
    (plain.len() == size).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_survive_compression() {
        let mut plain: Vec<u8> = vec![0xa5; 65536];
        plain[5000] = 1;
        let packed = deflate(&plain).expect("runs are compressible");
        assert!(packed.len() < 1000, "{}", packed.len());
        assert_eq!(inflate(&packed, 65536), Some(plain));
    }

    #[test]
    fn noise_is_not_compressed_and_garbage_not_believed() {
        let mut x = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .take(65536)
        .collect();
        assert_eq!(deflate(&noise), None);
        assert_eq!(inflate(&noise[..512], 65536), None);
    }
}
