//! Block status: what is known about a range without reading it, on one layer or down a chain.
//!
//! QEMU's source: `bdrv_co_block_status` and `bdrv_co_common_block_status_above` in `block/io.c`.
//! An answer never covers ranges with different answers, but neighbours may have equal ones.

use std::rc::Rc;

use crate::errno::{Errno, Res};

use super::backend::InFlight;
use super::blkdebug::IoType;
use super::flags::{BlockStatus, StatusFlags};
use super::graph::Block;
use super::io::{BoxFuture, child_of};
use super::node::{Driver, Node, NodeId};

/// The layer that decided a question about a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStatus {
    /// The answer.
    pub status: BlockStatus,
    /// How many layers down it was found, 1 for the first; 0 if no layer has it.
    pub depth: u32,
}

impl Block {
    /// The status of a range on one layer.
    pub fn co_block_status<'a>(
        self: &'a Rc<Self>,
        node: NodeId,
        offset: u64,
        bytes: u64,
        want_zero: bool,
    ) -> BoxFuture<'a, Res<BlockStatus>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            self.check_driver(node)?;
            let length = self.length(node);
            if offset >= length {
                return Ok(BlockStatus::new(StatusFlags::EOF, 0));
            }
            if bytes == 0 {
                return Ok(BlockStatus::new(StatusFlags::NONE, 0));
            }
            let bytes = bytes.min(length - offset);
            self.sim.count_work();
            let _in_flight = InFlight::new(&node.in_flight);
            let mut status = self.driver_status(node, offset, bytes, want_zero).await?;
            status.bytes = status.bytes.min(bytes);
            if status.flags.contains(StatusFlags::RAW) {
                let below = status.file.ok_or(Errno::EIO)?;
                status = self.co_block_status(below, status.map, status.bytes, want_zero).await?;
            } else {
                self.complete_status(node, offset, want_zero, &mut status);
            }
            let recurse = StatusFlags::RECURSE | StatusFlags::DATA | StatusFlags::OFFSET_VALID;
            if want_zero && status.flags.contains(recurse) && !status.flags.contains(StatusFlags::ZERO) {
                self.look_below(&mut status).await;
            }
            if offset + status.bytes == length {
                status.flags |= StatusFlags::EOF;
            }
            Ok(status)
        })
    }

    /// What follows from a driver's answer: data and zeros are allocated; what no layer has is zero.
    fn complete_status(&self, node: &Node, offset: u64, want_zero: bool, status: &mut BlockStatus) {
        let supports_backing = matches!(&*node.driver.borrow(), Driver::Qcow2(_));
        if status.flags.intersects(StatusFlags::DATA | StatusFlags::ZERO) {
            status.flags |= StatusFlags::ALLOCATED;
        } else if supports_backing {
            let zero = match node.backing() {
                None => true,
                Some(backing) => want_zero && offset >= self.length(&self.node(backing)),
            };
            if zero {
                status.flags |= StatusFlags::ZERO;
            }
        }
    }

    /// Data of a preallocated image may be a hole in the file below.
    async fn look_below(self: &Rc<Self>, status: &mut BlockStatus) {
        let Some(file) = status.file else { return };
        let Ok(below) = self.co_block_status(file, status.map, status.bytes, true).await else { return };
        if below.flags.contains(StatusFlags::EOF) && (below.bytes == 0 || below.flags.contains(StatusFlags::ZERO)) {
            // Behind the end of the file everything is zero.
            status.flags |= StatusFlags::ZERO;
        } else {
            status.bytes = below.bytes;
            status.flags |= below.flags & StatusFlags::ZERO;
        }
    }

    async fn driver_status(self: &Rc<Self>, node: &Node, offset: u64, bytes: u64, want_zero: bool) -> Res<BlockStatus> {
        let pass = |child: NodeId| BlockStatus {
            flags: StatusFlags::RAW | StatusFlags::OFFSET_VALID,
            bytes,
            map: offset,
            file: Some(child),
        };
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::None => Err(Errno::ENOMEDIUM),
            Driver::File(file) if want_zero => Ok(file.status(node.id, offset, bytes)),
            Driver::File(_) => Ok(BlockStatus {
                flags: StatusFlags::DATA | StatusFlags::OFFSET_VALID,
                bytes,
                map: offset,
                file: Some(node.id),
            }),
            Driver::Null(null) => Ok(null.status(node.id, offset, bytes)),
            Driver::Raw(raw) => Ok(BlockStatus { map: offset + raw.offset(), ..pass(child_of(node, "file")?) }),
            Driver::CopyBeforeWrite(_) => Ok(pass(child_of(node, "file")?)),
            Driver::Qcow2(qcow2) => qcow2.block_status(self, offset, bytes).await,
            Driver::Blkdebug(blkdebug) => {
                blkdebug.check(self, IoType::BlockStatus, Some((offset, bytes))).await?;
                Ok(pass(child_of(node, "image")?))
            }
            Driver::SnapshotAccess => self.snapshot_status(child_of(node, "file")?, offset, bytes).await,
        }
    }

    /// The status of a range in a chain: from `top` down to, and not including, `base` (none: to
    /// the end), the first layer that has it.
    pub async fn co_block_status_above(
        self: &Rc<Self>,
        top: NodeId,
        base: Option<NodeId>,
        offset: u64,
        bytes: u64,
        want_zero: bool,
    ) -> Res<ChainStatus> {
        if Some(top) == base {
            return Ok(ChainStatus { status: BlockStatus::new(StatusFlags::NONE, bytes), depth: 0 });
        }
        let first = self.co_block_status(top, offset, bytes, want_zero).await?;
        if first.bytes == 0 || first.flags.contains(StatusFlags::ALLOCATED) {
            return Ok(ChainStatus { status: first, depth: 1 });
        }
        let mut eof = if first.flags.contains(StatusFlags::EOF) { offset + first.bytes } else { 0 };
        let mut bytes = first.bytes;
        let mut answer = ChainStatus { status: first, depth: 1 };
        let mut layer = self.filter_or_backing(top);
        while let Some(id) = layer.filter(|id| Some(*id) != base) {
            answer.depth += 1;
            let status = self.co_block_status(id, offset, bytes, want_zero).await?;
            answer.status = status;
            if status.bytes == 0 {
                // The layer ends before this offset: it reads as zeros, and its end decides.
                answer.status =
                    BlockStatus { flags: StatusFlags::ZERO | StatusFlags::ALLOCATED, bytes, map: 0, file: Some(id) };
                break;
            }
            if status.flags.contains(StatusFlags::ALLOCATED) {
                answer.status.flags = status.flags.without(StatusFlags::EOF);
                break;
            }
            if status.flags.contains(StatusFlags::EOF) {
                eof = offset + status.bytes;
            }
            bytes = bytes.min(status.bytes);
            layer = self.filter_or_backing(id);
        }
        if eof != 0 && offset + answer.status.bytes == eof {
            answer.status.flags |= StatusFlags::EOF;
        }
        Ok(answer)
    }

    fn filter_or_backing(&self, id: NodeId) -> Option<NodeId> {
        let node = self.node(id);
        node.filtered_child().or_else(|| node.backing())
    }

    /// Whether one layer has a range, and for how many bytes that holds (`bdrv_is_allocated`).
    pub async fn co_is_allocated(self: &Rc<Self>, node: NodeId, offset: u64, bytes: u64) -> Res<(bool, u64)> {
        // Filters have nothing of their own; the first real layer answers.
        let layer = self.skip_filters(node);
        let status = self.co_block_status(layer, offset, bytes, false).await?;
        Ok((status.flags.contains(StatusFlags::ALLOCATED), status.bytes))
    }

    /// Whether a layer from `top` down to, and not including, `base` has a range, and for how many bytes that holds: none
    /// behind the end of `top` (`bdrv_is_allocated_above`).
    pub async fn co_is_allocated_above(
        self: &Rc<Self>,
        top: NodeId,
        base: Option<NodeId>,
        offset: u64,
        bytes: u64,
    ) -> Res<(bool, u64)> {
        let status = self.co_block_status_above(top, base, offset, bytes, false).await?.status;
        Ok((status.flags.contains(StatusFlags::ALLOCATED), status.bytes))
    }

    /// Whether a range surely reads as zeros, as far as one cheap look at the chain tells; it does not tell where the
    /// range goes on behind the node's end (`bdrv_co_is_zero_fast`).
    pub async fn co_is_zero_fast(self: &Rc<Self>, node: NodeId, offset: u64, bytes: u64) -> Res<bool> {
        let answer = self.co_block_status_above(node, None, offset, bytes, false).await?.status;
        Ok(answer.bytes == bytes && answer.flags.contains(StatusFlags::ZERO))
    }

    /// Whether a range, or what of it lies before the node's end, reads as zeros through the whole chain (`is_zero` in
    /// `block/qcow2.c`).
    pub async fn co_is_zero(self: &Rc<Self>, node: NodeId, offset: u64, bytes: u64) -> Res<bool> {
        let mut pos = offset;
        let end = offset + bytes;
        while pos < end {
            let answer = self.co_block_status_above(node, None, pos, end - pos, true).await?.status;
            let zero = answer.flags.contains(StatusFlags::ZERO);
            if answer.bytes == 0 {
                return Ok(true);
            }
            if !zero {
                return Ok(false);
            }
            pos += answer.bytes;
        }
        Ok(true)
    }
}
