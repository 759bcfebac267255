//! Copies inside the host: requests that go down through the graphs of source and target at once.
//!
//! The source's drivers say where the bytes lie, then the target's where they go, until two files are left between
//! which the host can copy. A driver that can't take part refuses, at whatever depth it lies: what the drivers above
//! it have done by then (clusters allocated and given back) has happened. QEMU's source: `bdrv_co_copy_range` in
//! `block/io.c`, with the functions of the same name in `block/qcow2.c`, `block/raw-format.c` and
//! `block/file-posix.c`. Data never pass through QEMU here, so nobody may look at them.

use std::rc::Rc;

use crate::errno::{Errno, Res};

use super::backend::InFlight;
use super::flags::ReqFlags;
use super::graph::Block;
use super::io::{BoxFuture, checked_end, child_of};
use super::node::{Driver, Node, NodeId};

/// Where bytes are, or where they go.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) node: NodeId,
    pub(super) offset: u64,
}

impl Place {
    /// The place `bytes` further on.
    pub(super) fn plus(self, bytes: u64) -> Place {
        Place { node: self.node, offset: self.offset + bytes }
    }
}

impl Block {
    /// Copies from one node to another; ENOTSUP where not every byte comes from and goes to a plain file beneath raw
    /// and qcow2 nodes.
    pub async fn co_copy_range(
        self: &Rc<Self>,
        source: NodeId,
        target: NodeId,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        self.copy_range_from(Place { node: source, offset }, Place { node: target, offset }, bytes, flags).await
    }

    /// The way down through the source's graph. A zero write among `flags` has no source.
    pub(super) fn copy_range_from<'a>(
        self: &'a Rc<Self>,
        from: Place,
        to: Place,
        bytes: u64,
        flags: ReqFlags,
    ) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let (source, target) = (self.node(from.node), self.node(to.node));
            self.check_driver(&target)?;
            checked_end(to.offset, bytes)?;
            if flags.contains(ReqFlags::ZERO_WRITE) {
                return self.co_pwrite_zeroes(to.node, to.offset, bytes, flags).await;
            }
            self.check_ends(&source, &target)?;
            checked_end(from.offset, bytes)?;
            let _in_flight = InFlight::new(&source.in_flight);
            let request = source.tracker.begin(&self.sim, from.offset, bytes, self.request_alignment(&source));
            request.wait(false).await?;
            let driver = source.driver.borrow().clone();
            match driver {
                Driver::File(_) => self.copy_range_to(from, to, bytes, flags).await,
                Driver::Raw(raw) => {
                    let below =
                        Place { node: child_of(&source, "file")?, offset: raw.place(from.offset, bytes, false)? };
                    self.copy_range_from(below, to, bytes, flags).await
                }
                Driver::Qcow2(qcow2) => qcow2.copy_range_from(self, from.offset, to, bytes, flags).await,
                _ => Err(Errno::ENOTSUP),
            }
        })
    }

    /// The way down through the target's graph; the source is a file by now.
    pub(super) fn copy_range_to<'a>(
        self: &'a Rc<Self>,
        from: Place,
        to: Place,
        bytes: u64,
        flags: ReqFlags,
    ) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let (source, target) = (self.node(from.node), self.node(to.node));
            self.check_ends(&source, &target)?;
            checked_end(to.offset, bytes)?;
            let _in_flight = InFlight::new(&target.in_flight);
            let traced = self.trace_begin(&target, "copy-range", to.offset, bytes);
            let request = target.tracker.begin(&self.sim, to.offset, bytes, self.request_alignment(&target));
            if flags.contains(ReqFlags::SERIALISING) {
                request.serialise(self.serialising_alignment(&target));
            }
            let mut result = self.prepare_write(&target, &request, flags).await;
            if result.is_ok() {
                result = self.copy_range_into(&source, &target, from, to.offset, bytes, flags).await;
            }
            self.finish_write(&target, to.offset, bytes, result);
            self.trace_end(traced, result.as_ref().err());
            result
        })
    }

    async fn copy_range_into(
        self: &Rc<Self>,
        source: &Node,
        target: &Node,
        from: Place,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        let driver = target.driver.borrow().clone();
        match driver {
            Driver::File(file) => {
                let Driver::File(origin) = source.driver.borrow().clone() else { return Err(Errno::ENOTSUP) };
                file.copy_from(self, target, &origin, from.offset, offset, bytes).await
            }
            Driver::Raw(raw) => {
                let below = Place { node: child_of(target, "file")?, offset: raw.place(offset, bytes, true)? };
                self.copy_range_to(from, below, bytes, flags).await
            }
            Driver::Qcow2(qcow2) => qcow2.copy_range_to(self, from, offset, bytes, flags).await,
            _ => Err(Errno::ENOTSUP),
        }
    }

    /// Whether the drivers of both ends know how to take part.
    fn check_ends(&self, source: &Node, target: &Node) -> Res<()> {
        self.check_driver(source)?;
        self.check_driver(target)?;
        let takes_part =
            |node: &Node| matches!(&*node.driver.borrow(), Driver::File(_) | Driver::Raw(_) | Driver::Qcow2(_));
        if takes_part(source) && takes_part(target) { Ok(()) } else { Err(Errno::ENOTSUP) }
    }
}
