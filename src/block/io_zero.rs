//! Zero writes and discards: the generic path splits them at the driver's units and falls back.
//!
//! QEMU's source: `bdrv_co_do_pwrite_zeroes` and `bdrv_co_pdiscard` in `block/io.c`. Neither may
//! ever materialise a buffer of zeros.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::store::Content;

use super::backend::InFlight;
use super::blkdebug::IoType;
use super::blkdebug_event::BlkdebugEvent;
use super::flags::ReqFlags;
use super::graph::Block;
use super::io::{BoxFuture, checked_end, child_of};
use super::node::{Driver, Node, NodeId};

/// The largest buffer of zeros that a zero write falls back to, bytes (`MAX_BOUNCE_BUFFER`).
const MAX_BOUNCE_BYTES: u64 = 16 << 20;

impl Block {
    /// Makes a range of a node read as zeros.
    pub fn co_pwrite_zeroes<'a>(
        self: &'a Rc<Self>,
        node: NodeId,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            self.check_driver(node)?;
            let mut flags = flags | ReqFlags::ZERO_WRITE;
            if !node.discard_unmap() && !flags.contains(ReqFlags::KEEP_UNMAP) {
                flags = flags.without(ReqFlags::MAY_UNMAP);
            }
            flags = flags.without(ReqFlags::KEEP_UNMAP);
            let end = checked_end(offset, bytes)?;
            let align = self.request_alignment(node);
            let _in_flight = InFlight::new(&node.in_flight);
            let request = node.tracker.begin(&self.sim, offset, bytes, align);
            if flags.contains(ReqFlags::SERIALISING) {
                request.serialise(self.serialising_alignment(node));
            }
            let traced = self.trace_begin(node, "write-zeroes", offset, bytes);
            let aligned = offset % align == 0 && end % align == 0;
            let result = if aligned {
                self.aligned_zeroes(node, &request, offset, bytes, flags).await
            } else {
                self.padded_zeroes(node, &request, offset, bytes, flags, align).await
            };
            self.trace_end(traced, result.as_ref().err());
            result
        })
    }

    async fn aligned_zeroes(
        self: &Rc<Self>,
        node: &Node,
        request: &super::track::TrackedRequest<'_>,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        self.prepare_write(node, request, flags).await?;
        self.own_event(node, BlkdebugEvent::PwritevZero).await;
        let result = self.do_pwrite_zeroes(node, offset, bytes, flags).await;
        self.own_event(node, BlkdebugEvent::PwritevDone).await;
        self.finish_write(node, offset, bytes, result);
        result
    }

    /// A zero write with ragged ends: the ends are written as data, the middle as zeros.
    async fn padded_zeroes(
        self: &Rc<Self>,
        node: &Node,
        request: &super::track::TrackedRequest<'_>,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
        align: u64,
    ) -> Res<()> {
        let data_flags = flags.without(ReqFlags::ZERO_WRITE | ReqFlags::MAY_UNMAP);
        let end = offset + bytes;
        let head_end = offset.next_multiple_of(align).min(end);
        if head_end > offset {
            let head = Content::zeros(head_end - offset);
            self.padded_pwrite(node, request, offset, head, data_flags, align).await?;
        }
        let tail_start = (end - end % align).max(head_end);
        if tail_start > head_end {
            self.aligned_zeroes(node, request, head_end, tail_start - head_end, flags).await?;
        }
        if end > tail_start {
            let tail = Content::zeros(end - tail_start);
            self.padded_pwrite(node, request, tail_start, tail, data_flags, align).await?;
        }
        Ok(())
    }

    /// The units in which the driver zeroes efficiently, bytes.
    fn zeroes_alignment(&self, node: &Node) -> u64 {
        let driver = match &*node.driver.borrow() {
            Driver::Qcow2(qcow2) => qcow2.zeroes_alignment(),
            Driver::Blkdebug(blkdebug) => blkdebug.opt_write_zero.unwrap_or(0),
            _ => 0,
        };
        driver.max(self.request_alignment(node))
    }

    /// Splits a zero write at the driver's units; pieces that the driver declines are written as
    /// data.
    pub(super) async fn do_pwrite_zeroes(
        self: &Rc<Self>,
        node: &Node,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        if flags.contains(ReqFlags::NO_FALLBACK) && !self.promises_zeroes(node) {
            return Err(Errno::ENOTSUP);
        }
        let align = self.zeroes_alignment(node);
        let max_transfer = self.max_transfer(node).min(MAX_BOUNCE_BYTES);
        let max_zeroes = self.max_write_zeroes(node, align);
        let end = offset + bytes;
        let mut need_flush = false;
        let mut pos = offset;
        while pos < end {
            let mut piece = end - pos;
            if pos % align != 0 {
                piece = piece.min(max_transfer).min(align - pos % align);
            } else if end % align != 0 && piece > align {
                piece -= end % align;
            }
            piece = piece.min(max_zeroes);
            let (result, flushes) = self.driver_pwrite_zeroes(node, pos, piece, flags).await;
            need_flush |= flushes;
            match result {
                Err(Errno::ENOTSUP) if !flags.contains(ReqFlags::NO_FALLBACK) => {
                    piece = piece.min(max_transfer);
                    let data_flags = flags.without(ReqFlags::ZERO_WRITE | ReqFlags::MAY_UNMAP);
                    self.driver_pwrite(node, pos, Content::zeros(piece), data_flags).await?;
                }
                other => other?,
            }
            pos += piece;
        }
        if need_flush {
            self.co_flush(node.id).await?;
        }
        Ok(())
    }

    /// Whether the driver takes zero writes that must not fall back to data at all (`BDRV_REQ_NO_FALLBACK` among its
    /// `supported_zero_flags`).
    fn promises_zeroes(&self, node: &Node) -> bool {
        match &*node.driver.borrow() {
            Driver::File(_) => true,
            Driver::Qcow2(qcow2) => qcow2.version() >= 3,
            Driver::Raw(_) | Driver::Blkdebug(_) | Driver::CopyBeforeWrite(_) => {
                node.primary_child().is_some_and(|child| self.promises_zeroes(&self.node(child)))
            }
            Driver::None | Driver::Null(_) | Driver::SnapshotAccess => false,
        }
    }

    fn max_write_zeroes(&self, node: &Node, align: u64) -> u64 {
        let own = match &*node.driver.borrow() {
            Driver::Blkdebug(blkdebug) => blkdebug.max_write_zero,
            _ => None,
        };
        let limit = own.filter(|n| *n > 0).unwrap_or(i64::MAX as u64);
        (limit - limit % align).max(align)
    }

    /// The driver's own zero write; also tells whether a flush must stand in for FUA.
    async fn driver_pwrite_zeroes(
        self: &Rc<Self>,
        node: &Node,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> (Res<()>, bool) {
        let unmap = flags.contains(ReqFlags::MAY_UNMAP);
        let fua = flags.contains(ReqFlags::FUA);
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::None => (Err(Errno::ENOMEDIUM), false),
            Driver::File(file) => (file.write_zeroes(self, node, offset, bytes, unmap).await, fua),
            Driver::Null(_) => (Err(Errno::ENOTSUP), false),
            Driver::Qcow2(qcow2) => {
                let result = Box::pin(qcow2.pwrite_zeroes(self, offset, bytes, flags.without(ReqFlags::FUA))).await;
                (result, fua && result != Err(Errno::ENOTSUP))
            }
            Driver::Raw(raw) => {
                let place = match raw.place(offset, bytes, true) {
                    Ok(place) => place,
                    Err(error) => return (Err(error), false),
                };
                (self.pass_zeroes(self.written_child(node, "file", place + bytes), place, bytes, flags).await, false)
            }
            Driver::Blkdebug(blkdebug) => {
                // A piece below the unit is declined before any rule is looked at.
                if bytes < blkdebug.align.max(blkdebug.opt_write_zero.unwrap_or(0)) {
                    return (Err(Errno::ENOTSUP), false);
                }
                match blkdebug.check(self, IoType::WriteZeroes, Some((offset, bytes))).await {
                    Ok(true) => {
                        let child = self.written_child(node, "image", offset + bytes);
                        (self.pass_zeroes(child, offset, bytes, flags).await, false)
                    }
                    other => (other.map(|_| ()), false),
                }
            }
            Driver::CopyBeforeWrite(cbw) => {
                if let Err(error) = cbw.before_write(self, offset, bytes, flags).await {
                    return (Err(error), false);
                }
                let child = self.written_child(node, "file", offset + bytes);
                (self.pass_zeroes(child, offset, bytes, flags).await, false)
            }
            Driver::SnapshotAccess => (Err(Errno::ENOTSUP), false),
        }
    }

    async fn pass_zeroes(self: &Rc<Self>, child: Res<NodeId>, offset: u64, bytes: u64, flags: ReqFlags) -> Res<()> {
        // The request of this node has waited for the others already.
        let flags = flags.without(ReqFlags::ZERO_WRITE | ReqFlags::SERIALISING);
        self.co_pwrite_zeroes(child?, offset, bytes, flags).await
    }

    /// Tells a node that a range is not needed any more; a hint, unless it ends in an error.
    pub fn co_pdiscard<'a>(self: &'a Rc<Self>, node: NodeId, offset: u64, bytes: u64) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            self.check_driver(node)?;
            if node.any_bitmap_readonly() {
                return Err(Errno::EPERM);
            }
            checked_end(offset, bytes)?;
            let declines = matches!(&*node.driver.borrow(), Driver::Null(_));
            if !node.discard_unmap() || declines {
                return Ok(());
            }
            let _in_flight = InFlight::new(&node.in_flight);
            let request = node.tracker.begin(&self.sim, offset, bytes, self.request_alignment(node));
            self.prepare_write(node, &request, ReqFlags::NONE).await?;
            let traced = self.trace_begin(node, "discard", offset, bytes);
            let result = self.split_discard(node, offset, bytes).await;
            self.finish_write(node, offset, bytes, result);
            self.trace_end(traced, result.as_ref().err());
            result
        })
    }

    /// Splits a discard at the driver's units; pieces that it declines are passed over.
    async fn split_discard(self: &Rc<Self>, node: &Node, offset: u64, bytes: u64) -> Res<()> {
        let request_align = self.request_alignment(node);
        let (unit, max) = match &*node.driver.borrow() {
            Driver::Qcow2(qcow2) => (qcow2.cluster_size(), None),
            Driver::Blkdebug(blkdebug) => (blkdebug.opt_discard.unwrap_or(0), blkdebug.max_discard),
            _ => (0, None),
        };
        let align = unit.max(request_align);
        let max = max.filter(|n| *n > 0).unwrap_or(i64::MAX as u64);
        let max = (max - max % align).max(align);
        let end = offset + bytes;
        let tail = end % align;
        let mut pos = offset;
        while pos < end {
            let mut piece = end - pos;
            if pos % align != 0 {
                piece = piece.min(align - pos % align);
                if piece % request_align != 0 && piece > request_align {
                    piece %= request_align;
                }
            } else if tail != 0 {
                if piece > align {
                    piece -= tail;
                } else if tail % request_align != 0 && tail > request_align {
                    piece -= tail % request_align;
                }
            }
            piece = piece.min(max);
            match self.driver_pdiscard(node, pos, piece).await {
                Err(Errno::ENOTSUP) => {}
                other => other?,
            }
            pos += piece;
        }
        Ok(())
    }

    async fn driver_pdiscard(self: &Rc<Self>, node: &Node, offset: u64, bytes: u64) -> Res<()> {
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::None => Err(Errno::ENOMEDIUM),
            Driver::File(file) => file.discard(self, node, offset, bytes).await,
            Driver::Null(_) => Err(Errno::ENOTSUP),
            Driver::Raw(raw) => {
                let place = raw.place(offset, bytes, true)?;
                self.co_pdiscard(self.discarded_child(node, "file", place + bytes)?, place, bytes).await
            }
            Driver::Qcow2(qcow2) => qcow2.pdiscard(self, offset, bytes).await,
            Driver::Blkdebug(blkdebug) => {
                if bytes < self.request_alignment(node) {
                    return Err(Errno::ENOTSUP);
                }
                match blkdebug.check(self, IoType::Discard, Some((offset, bytes))).await? {
                    true => self.co_pdiscard(self.discarded_child(node, "image", offset + bytes)?, offset, bytes).await,
                    false => Ok(()),
                }
            }
            Driver::CopyBeforeWrite(cbw) => {
                if !self.quirks.defects.discard_bypasses_cbw {
                    cbw.before_write(self, offset, bytes, ReqFlags::NONE).await?;
                }
                self.co_pdiscard(self.discarded_child(node, "file", offset + bytes)?, offset, bytes).await
            }
            Driver::SnapshotAccess => self.snapshot_discard(child_of(node, "file")?, offset, bytes).await,
        }
    }
}
