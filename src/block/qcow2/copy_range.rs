//! qcow2's part in copies inside the host: it says where guest clusters lie, or makes room for them.
//!
//! QEMU's source: `qcow2_co_copy_range_from` and `qcow2_co_copy_range_to` in `block/qcow2.c`. No data are read or
//! written here but those of a cluster that the copy fills in part.

use std::rc::Rc;

use crate::block::copy_range::Place;
use crate::block::{Block, ReqFlags};
use crate::errno::{Errno, Res};

use super::Qcow2;
use super::inflight::Allocation;
use super::l2::Mapping;
use super::layout::ClusterType;

impl Qcow2 {
    /// Copies guest data of this image elsewhere, one run of clusters after another.
    pub(in crate::block) async fn copy_range_from(
        self: &Rc<Self>,
        block: &Rc<Block>,
        offset: u64,
        to: Place,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let mapping = self.locked_mapping(block, at, bytes - done).await?;
            let (from, found) = self.origin(block, at, mapping)?;
            let (from, flags) = match from {
                Some(from) => (from, flags),
                None => (Place { node: self.node, offset: at }, flags | ReqFlags::ZERO_WRITE),
            };
            block.copy_range_from(from, to.plus(done), found, flags).await?;
            done += found;
        }
        Ok(())
    }

    /// Where the bytes of a mapping come from, none for zeros, and how many of them.
    fn origin(&self, block: &Block, at: u64, mapping: Mapping) -> Res<(Option<Place>, u64)> {
        match mapping.kind {
            ClusterType::Unallocated => {
                let Some(backing) = self.backing(block) else { return Ok((None, mapping.bytes)) };
                let length = block.length(&block.node(backing));
                Ok(if at >= length {
                    (None, mapping.bytes)
                } else {
                    (Some(Place { node: backing, offset: at }), mapping.bytes.min(length - at))
                })
            }
            ClusterType::ZeroPlain | ClusterType::ZeroAlloc => Ok((None, mapping.bytes)),
            ClusterType::Compressed => Err(Errno::ENOTSUP),
            ClusterType::Normal => Ok((Some(Place { node: self.file(), offset: mapping.host }), mapping.bytes)),
        }
    }

    /// Makes room for guest data, lets them be copied there, and links the clusters.
    pub(in crate::block) async fn copy_range_to(
        self: &Rc<Self>,
        block: &Rc<Block>,
        from: Place,
        offset: u64,
        bytes: u64,
        flags: ReqFlags,
    ) -> Res<()> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let mut locked = Some(self.lock(block).await);
        let mut done = 0;
        while done < bytes {
            let run = self.prepare_run_locked(block, offset + done, bytes - done, &mut locked).await?;
            // The newest first, as in QEMU's list of a request's allocations.
            let allocations: Vec<Rc<Allocation>> = run.allocations.into_iter().rev().collect();
            drop(locked.take());
            let target = Place { node: self.file(), offset: run.host };
            let result = block.copy_range_to(from.plus(done), target, run.bytes, flags).await;
            locked = Some(self.lock(block).await);
            self.settle(block, allocations, result, None, &mut locked).await?;
            done += run.bytes;
        }
        Ok(())
    }
}
