//! Guest reads and block status.
//!
//! A read is cut where the kind of cluster changes or data stop being contiguous in the file. Zeros
//! cost no I/O. The image's lock is held only while mappings are looked up. QEMU's source:
//! `qcow2_co_preadv_part` and `qcow2_co_block_status` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BlockStatus, ReqFlags, StatusFlags};
use crate::errno::{Errno, Res};
use crate::sim::shared::RefCell;
use crate::store::Content;

use super::Qcow2;
use super::l2::Mapping;
use super::layout::ClusterType;
use super::pool::TaskPool;

/// QEMU's 32-bit limit of one lookup, bytes.
const LOOKUP_MAX_BYTES: u64 = i32::MAX as u64;

impl Qcow2 {
    /// Reads guest data.
    pub async fn pread(self: &Rc<Self>, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<Content> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let first = self.locked_mapping(block, offset, bytes).await?;
        if first.bytes >= bytes {
            if self.reads_zero(block, first.kind) {
                return Ok(Content::zeros(bytes));
            }
            return self.read_piece(block, offset, first).await;
        }
        self.pread_in_pieces(block, offset, bytes, first).await
    }

    pub(super) async fn locked_mapping(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<Mapping> {
        let _locked = self.lock(block).await;
        self.mapping(block, offset, bytes.min(LOOKUP_MAX_BYTES)).await
    }

    fn reads_zero(&self, block: &Block, kind: ClusterType) -> bool {
        kind.is_zero() || (kind == ClusterType::Unallocated && self.backing(block).is_none())
    }

    /// Reads a range that is not of one piece; pieces are read beside each other.
    async fn pread_in_pieces(
        self: &Rc<Self>,
        block: &Rc<Block>,
        offset: u64,
        bytes: u64,
        first: Mapping,
    ) -> Res<Content> {
        let pool = TaskPool::default();
        let pieces: Rc<RefCell<Vec<Content>>> = Rc::default();
        let mut done = 0;
        let mut next = Some(first);
        let mut failed = None;
        while done < bytes && !pool.has_failed() {
            let mapping = match next.take() {
                Some(mapping) => mapping,
                None => match self.locked_mapping(block, offset + done, bytes - done).await {
                    Ok(mapping) => mapping,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                },
            };
            let index = pieces.borrow().len();
            pieces.borrow_mut().push(Content::zeros(mapping.bytes));
            if !self.reads_zero(block, mapping.kind) {
                let (image, core, pieces) = (self.clone(), block.clone(), pieces.clone());
                let at = offset + done;
                let piece = Box::pin(async move {
                    let content = image.read_piece(&core, at, mapping).await?;
                    pieces.borrow_mut()[index] = content;
                    Ok(())
                });
                pool.start(&block.sim, piece).await;
            }
            done += mapping.bytes;
        }
        let pooled = pool.finish(&block.sim).await;
        failed.map_or(pooled, Err)?;
        let pieces = pieces.take();
        Ok(pieces.into_iter().reduce(Content::concat).unwrap_or_default())
    }

    /// Reads a range of one kind that does not read as zeros by itself.
    pub(super) async fn read_piece(&self, block: &Rc<Block>, offset: u64, mapping: Mapping) -> Res<Content> {
        match mapping.kind {
            ClusterType::Unallocated => {
                let Some(backing) = self.backing(block) else { return Ok(Content::zeros(mapping.bytes)) };
                block.debug_event(self.file(), BlkdebugEvent::ReadBackingAio).await;
                block.co_pread(backing, offset, mapping.bytes, ReqFlags::NONE).await
            }
            ClusterType::Compressed => self.read_compressed(block, offset, mapping).await,
            ClusterType::Normal => {
                block.debug_event(self.file(), BlkdebugEvent::ReadAio).await;
                block.co_pread(self.file(), mapping.host, mapping.bytes, ReqFlags::NONE).await
            }
            ClusterType::ZeroPlain | ClusterType::ZeroAlloc => Ok(Content::zeros(mapping.bytes)),
        }
    }

    /// What is known about a range of this layer without reading it.
    pub async fn block_status(self: &Rc<Self>, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<BlockStatus> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let preallocated = self.may_have_holes(block).await;
        let mapping = self.locked_mapping(block, offset, bytes).await?;
        let flags = match mapping.kind {
            ClusterType::Unallocated => StatusFlags::NONE,
            ClusterType::ZeroPlain => StatusFlags::ZERO,
            ClusterType::ZeroAlloc => StatusFlags::ZERO | StatusFlags::OFFSET_VALID,
            ClusterType::Normal if preallocated => StatusFlags::DATA | StatusFlags::OFFSET_VALID | StatusFlags::RECURSE,
            ClusterType::Normal => StatusFlags::DATA | StatusFlags::OFFSET_VALID,
            ClusterType::Compressed => StatusFlags::DATA | StatusFlags::COMPRESSED,
        };
        let mut status = BlockStatus::new(flags, mapping.bytes);
        if flags.contains(StatusFlags::OFFSET_VALID) {
            status.map = mapping.host;
            status.file = Some(self.file());
        }
        Ok(status)
    }
}
