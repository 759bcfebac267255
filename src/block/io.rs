//! The generic request path: what QEMU does around every driver's own code.
//!
//! A request is counted, tracked, padded to the node's alignment, handed to the driver, and settled
//! (write generation, length, dirty bitmaps). QEMU's source: `block/io.c`. What a driver does with a
//! request is in its own file; zero writes and discards are in `io_zero.rs`, flushes in `flush.rs`.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::TraceEvent;
use crate::store::Content;

use super::backend::InFlight;
use super::blkdebug_event::BlkdebugEvent;
use super::flags::ReqFlags;
use super::graph::Block;
use super::node::{DetectZeroes, Driver, Node, NodeId};
use super::track::TrackedRequest;

/// A future of the block layer; boxed, since requests recurse through the graph. What only one driver or a rare
/// request needs is boxed apart, so that a request at a file does not take the room of one at a qcow2 node.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

impl Block {
    /// Reads `bytes` at `offset` from a node; past the node's end it reads zeros.
    pub fn co_pread<'a>(
        self: &'a Rc<Self>,
        node: NodeId,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> BoxFuture<'a, Res<Content>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            self.check_driver(node)?;
            if bytes == 0 {
                return Ok(Content::zeros(0));
            }
            let end = checked_end(offset, bytes)?;
            let _in_flight = InFlight::new(&node.in_flight);
            let align = self.request_alignment(node);
            let (start, stop) = (offset - offset % align, end.next_multiple_of(align));
            let request = node.tracker.begin(&self.sim, start, stop - start, align);
            if flags.contains(ReqFlags::SERIALISING) {
                request.serialise(align);
            }
            request.wait(false).await?;
            let traced = self.trace_begin(node, "read", offset, bytes);
            let result = self.aligned_pread(node, start, stop - start).await;
            self.trace_end(traced, result.as_ref().err());
            let content = result?;
            Ok(if start == offset && stop == end { content } else { content.slice(offset - start, bytes) })
        })
    }

    /// The part of an aligned read that lies before the node's end, then zeros.
    async fn aligned_pread(self: &Rc<Self>, node: &Node, offset: u64, bytes: u64) -> Res<Content> {
        let readable = self.length(node).saturating_sub(offset).min(bytes);
        if readable == 0 {
            return Ok(Content::zeros(bytes));
        }
        let mut content = self.driver_pread(node, offset, readable).await?;
        if readable < bytes {
            content.push(Content::zeros(bytes - readable));
        }
        Ok(content)
    }

    async fn driver_pread(self: &Rc<Self>, node: &Node, offset: u64, bytes: u64) -> Res<Content> {
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::None => Err(Errno::ENOMEDIUM),
            Driver::File(file) => file.read(self, node, offset, bytes).await,
            Driver::Null(null) => null.read(self, bytes).await,
            Driver::Raw(raw) => {
                let (child, place) = (child_of(node, "file")?, raw.place(offset, bytes, false)?);
                self.debug_event(child, BlkdebugEvent::ReadAio).await;
                self.co_pread(child, place, bytes, ReqFlags::NONE).await
            }
            Driver::Qcow2(qcow2) => Box::pin(qcow2.pread(self, offset, bytes)).await,
            Driver::Blkdebug(blkdebug) => {
                match blkdebug.check(self, super::blkdebug::IoType::Read, Some((offset, bytes))).await? {
                    true => self.co_pread(child_of(node, "image")?, offset, bytes, ReqFlags::NONE).await,
                    // QEMU leaves in the buffer what was there.
                    false => Ok(Content::zeros(bytes)),
                }
            }
            Driver::CopyBeforeWrite(_) => self.co_pread(child_of(node, "file")?, offset, bytes, ReqFlags::NONE).await,
            Driver::SnapshotAccess => self.snapshot_read(child_of(node, "file")?, offset, bytes).await,
        }
    }

    /// Writes `content` at `offset` of a node.
    pub fn co_pwrite<'a>(
        self: &'a Rc<Self>,
        node: NodeId,
        offset: u64,
        content: Content,
        flags: ReqFlags,
    ) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let node = self.node(node);
            let node = &*node;
            self.check_driver(node)?;
            let bytes = content.len();
            let end = checked_end(offset, bytes)?;
            let align = self.request_alignment(node);
            if bytes == 0 && offset % align != 0 {
                return Ok(());
            }
            let _in_flight = InFlight::new(&node.in_flight);
            let request = node.tracker.begin(&self.sim, offset, bytes, align);
            if flags.contains(ReqFlags::SERIALISING) {
                request.serialise(self.serialising_alignment(node));
            }
            let traced = self.trace_begin(node, "write", offset, bytes);
            let aligned = offset % align == 0 && end % align == 0;
            let result = if aligned {
                self.aligned_pwrite(node, &request, offset, content, flags).await
            } else {
                self.padded_pwrite(node, &request, offset, content, flags, align).await
            };
            self.trace_end(traced, result.as_ref().err());
            result
        })
    }

    /// A write that does not fill whole blocks of the node: reads the blocks at its ends, merges,
    /// writes (read-modify-write), while overlapping requests wait.
    pub(super) async fn padded_pwrite(
        self: &Rc<Self>,
        node: &Node,
        request: &TrackedRequest<'_>,
        offset: u64,
        content: Content,
        flags: ReqFlags,
        align: u64,
    ) -> Res<()> {
        request.serialise(align);
        request.wait(flags.contains(ReqFlags::NO_WAIT)).await?;
        let (start, merged) = Box::pin(self.pad(node, offset, content, align)).await?;
        self.aligned_pwrite(node, request, start, merged, flags).await
    }

    /// Reads what is missing in the first and last block; the events are those of
    /// `bdrv_padding_rmw_read`.
    async fn pad(self: &Rc<Self>, node: &Node, offset: u64, content: Content, align: u64) -> Res<(u64, Content)> {
        let end = offset + content.len();
        let (start, stop) = (offset - offset % align, end.next_multiple_of(align));
        let (head, tail) = (offset - start, stop - end);
        let mut merged = Content::zeros(0);
        let mut behind = Content::zeros(0);
        let one_read = stop - start <= align || (head > 0 && tail > 0 && stop - start == 2 * align);
        if one_read {
            if head > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwHead).await;
            }
            if tail > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwTail).await;
            }
            let blocks = self.aligned_pread(node, start, stop - start).await?;
            if head > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwAfterHead).await;
            }
            if tail > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwAfterTail).await;
            }
            merged.push(blocks.slice(0, head));
            behind = blocks.slice(end - start, tail);
        } else {
            if head > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwHead).await;
                let block = self.aligned_pread(node, start, align).await?;
                self.own_event(node, BlkdebugEvent::PwritevRmwAfterHead).await;
                merged.push(block.slice(0, head));
            }
            if tail > 0 {
                self.own_event(node, BlkdebugEvent::PwritevRmwTail).await;
                let block = self.aligned_pread(node, stop - align, align).await?;
                self.own_event(node, BlkdebugEvent::PwritevRmwAfterTail).await;
                behind = block.slice(align - tail, tail);
            }
        }
        merged.push(content);
        merged.push(behind);
        Ok((start, merged))
    }

    /// A write of whole blocks (`bdrv_aligned_pwritev`).
    pub(super) async fn aligned_pwrite(
        self: &Rc<Self>,
        node: &Node,
        request: &TrackedRequest<'_>,
        offset: u64,
        content: Content,
        mut flags: ReqFlags,
    ) -> Res<()> {
        let bytes = content.len();
        self.prepare_write(node, request, flags).await?;
        if !flags.contains(ReqFlags::COMPRESSED) {
            let detect = node.options.borrow().detect_zeroes;
            if detect != DetectZeroes::Off && content.is_zero() {
                flags |= ReqFlags::ZERO_WRITE;
                if detect == DetectZeroes::Unmap {
                    flags |= ReqFlags::MAY_UNMAP;
                }
            }
        }
        let result = if flags.contains(ReqFlags::ZERO_WRITE) {
            self.own_event(node, BlkdebugEvent::PwritevZero).await;
            self.do_pwrite_zeroes(node, offset, bytes, flags).await
        } else {
            self.own_event(node, BlkdebugEvent::Pwritev).await;
            self.split_pwrite(node, offset, content, flags).await
        };
        self.own_event(node, BlkdebugEvent::PwritevDone).await;
        self.finish_write(node, offset, bytes, result);
        result
    }

    /// Hands a write to the driver in pieces that it can take.
    async fn split_pwrite(self: &Rc<Self>, node: &Node, offset: u64, content: Content, flags: ReqFlags) -> Res<()> {
        let limit = self.max_transfer(node);
        if content.len() <= limit {
            return self.driver_pwrite(node, offset, content, flags).await;
        }
        let mut done = 0;
        while done < content.len() {
            let bytes = limit.min(content.len() - done);
            self.driver_pwrite(node, offset + done, content.slice(done, bytes), flags).await?;
            done += bytes;
        }
        Ok(())
    }

    /// Hands a write to the driver; a driver without FUA gets a flush after it.
    pub(super) async fn driver_pwrite(
        self: &Rc<Self>,
        node: &Node,
        offset: u64,
        content: Content,
        flags: ReqFlags,
    ) -> Res<()> {
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::None => Err(Errno::ENOMEDIUM),
            Driver::Qcow2(qcow2) if flags.contains(ReqFlags::COMPRESSED) => {
                Box::pin(qcow2.pwrite_compressed(self, offset, content)).await
            }
            // No other driver can, not even a filter above one that does.
            _ if flags.contains(ReqFlags::COMPRESSED) => Err(Errno::ENOTSUP),
            Driver::File(file) => {
                file.write(self, node, offset, &content).await?;
                if flags.contains(ReqFlags::FUA) {
                    file.flush(self, node).await?;
                }
                Ok(())
            }
            Driver::Null(null) => null.request(self).await,
            Driver::Raw(raw) => {
                let place = raw.place(offset, content.len(), true)?;
                let child = self.written_child(node, "file", place + content.len())?;
                self.debug_event(child, BlkdebugEvent::WriteAio).await;
                self.co_pwrite(child, place, content, flags).await
            }
            Driver::Qcow2(qcow2) => {
                Box::pin(qcow2.pwrite(self, offset, content, flags.without(ReqFlags::FUA))).await?;
                if flags.contains(ReqFlags::FUA) {
                    self.co_flush(node.id).await?;
                }
                Ok(())
            }
            Driver::Blkdebug(blkdebug) => {
                let range = Some((offset, content.len()));
                match blkdebug.check(self, super::blkdebug::IoType::Write, range).await? {
                    true => {
                        let child = self.written_child(node, "image", offset + content.len())?;
                        self.co_pwrite(child, offset, content, flags).await
                    }
                    false => Ok(()),
                }
            }
            Driver::CopyBeforeWrite(cbw) => {
                cbw.before_write(self, offset, content.len(), flags).await?;
                let child = self.written_child(node, "file", offset + content.len())?;
                self.co_pwrite(child, offset, content, flags).await
            }
            Driver::SnapshotAccess => Err(Errno::ENOTSUP),
        }
    }

    /// Checks that come before any write, and the wait for conflicting requests.
    pub(super) async fn prepare_write(&self, node: &Node, request: &TrackedRequest<'_>, flags: ReqFlags) -> Res<()> {
        if node.is_read_only() || node.any_bitmap_readonly() {
            return Err(Errno::EPERM);
        }
        request.wait(flags.contains(ReqFlags::NO_WAIT)).await
    }

    /// Settles a write, discard or zero write that the driver has ended, well or not.
    pub(super) fn finish_write(&self, node: &Node, offset: u64, bytes: u64, result: Res<()>) {
        node.write_generation.add(1);
        let end = offset + bytes;
        if result.is_ok() && end > node.length.get() && bytes > 0 {
            self.set_length(node, end.next_multiple_of(512));
        }
        if bytes > 0 {
            if !node.records_up_to(end) {
                self.abort("a bitmap ends before the write that it records");
            }
            self.witness_dirty(node, offset, bytes);
            node.mark_dirty(offset, bytes);
        }
    }

    /// ENOMEDIUM for a node without a driver.
    pub(super) fn check_driver(&self, node: &Node) -> Res<()> {
        match &*node.driver.borrow() {
            Driver::None => Err(Errno::ENOMEDIUM),
            _ => Ok(()),
        }
    }

    /// Blocks that requests on the node must fill, bytes (`request_alignment`).
    pub fn request_alignment(&self, node: &Node) -> u64 {
        match &*node.driver.borrow() {
            Driver::Blkdebug(blkdebug) => blkdebug.align.max(1),
            Driver::Qcow2(_) | Driver::None | Driver::File(_) | Driver::Null(_) => 1,
            _ => node.primary_child().map_or(1, |child| self.request_alignment(&self.node(child))),
        }
    }

    /// Serialising requests cover whole clusters of the node.
    pub(super) fn serialising_alignment(&self, node: &Node) -> u64 {
        match &*node.driver.borrow() {
            Driver::Qcow2(qcow2) => qcow2.cluster_size(),
            _ => self.request_alignment(node),
        }
    }

    /// The largest single request of the driver, bytes.
    pub fn max_transfer(&self, node: &Node) -> u64 {
        let own = match &*node.driver.borrow() {
            Driver::Blkdebug(blkdebug) => blkdebug.max_transfer,
            _ => None,
        };
        let all = (i32::MAX as u64 / 512) * 512;
        let limit = own.filter(|n| *n > 0).unwrap_or(all);
        limit - limit % self.request_alignment(node)
    }

    /// An event on the node itself, which only a blkdebug node hears.
    pub(super) async fn own_event(self: &Rc<Self>, node: &Node, event: BlkdebugEvent) {
        let blkdebug = match &*node.driver.borrow() {
            Driver::Blkdebug(blkdebug) => blkdebug.clone(),
            _ => return,
        };
        blkdebug.event(self, &node.name, event).await;
    }

    /// A driver tells the node below that it has come to a certain place.
    pub async fn debug_event(self: &Rc<Self>, child: NodeId, event: BlkdebugEvent) {
        let node = self.node(child);
        self.own_event(&node, event).await;
    }

    pub(super) fn trace_begin(&self, node: &Node, operation: &'static str, offset: u64, bytes: u64) -> u64 {
        self.sim.count_work();
        let trace = self.sim.trace();
        if !trace.is_read() {
            return 0;
        }
        let id = trace.request_id();
        let device = node.primary_child().is_none() || matches!(&*node.driver.borrow(), Driver::Blkdebug(_));
        let node = self.told_name(node);
        self.sim.emit(|| TraceEvent::RequestBegin { id, node, operation, offset, bytes, device });
        id
    }

    pub(super) fn trace_end(&self, id: u64, error: Option<&Errno>) {
        self.sim.emit(|| TraceEvent::RequestEnd { id, error: error.map_or(0, |e| e.0) });
    }
}

/// The child of a driver that cannot exist without it.
pub(super) fn child_of(node: &Node, name: &str) -> Res<NodeId> {
    node.child(name).map(|edge| edge.child.get()).ok_or(Errno::ENOMEDIUM)
}

/// The end of a request, which must fit into a signed 64-bit offset.
pub(super) fn checked_end(offset: u64, bytes: u64) -> Res<u64> {
    offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::EIO)
}
