//! Guest writes: finding host clusters for them, writing data, carrying old content over.
//!
//! A write is cut into host-contiguous runs; clusters that only the guest uses are overwritten in
//! place, others are allocated. Data are written with the image's lock released; the L2 table is
//! only changed after them (`link.rs`). Nothing is flushed here. QEMU's source:
//! `qcow2_co_pwritev_part` in `block/qcow2.c`, `qcow2_alloc_host_offset` in `block/qcow2-cluster.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, ReqFlags};
use crate::errno::{Errno, Res};
use crate::sim::CoMutexGuard;
use crate::sim::shared::Cell;
use crate::store::Content;

use super::Qcow2;
use super::inflight::{Allocation, Dependency};
use super::l2::L2Place;
use super::layout::{ClusterType, L2E_OFFSET_MASK, REQUEST_MAX_BYTES, needs_new_cluster};
use super::pool::TaskPool;

/// A host-contiguous run found for a write.
pub(super) struct Run {
    /// Host offset of its first byte.
    pub(super) host: u64,
    /// Its length.
    pub(super) bytes: u64,
    /// What has to be linked once the data are written, oldest first.
    pub(super) allocations: Vec<Rc<Allocation>>,
}

/// What one step of gathering a run found.
enum Step {
    /// This many bytes at this host offset.
    Found(u64, u64),
    /// Nothing of the kind looked for begins here.
    Other,
    /// It does not continue the run: the rest is for the next run.
    Stop,
}

impl Qcow2 {
    /// Writes guest data.
    pub async fn pwrite(
        self: &Rc<Self>,
        block: &Rc<Block>,
        offset: u64,
        content: Content,
        _flags: ReqFlags,
    ) -> Res<()> {
        if self.ejected.get() {
            return Err(Errno::ENOMEDIUM);
        }
        let bytes = content.len();
        let mut pool: Option<TaskPool> = None;
        let mut done = 0;
        let mut result = Ok(());
        while done < bytes && !pool.as_ref().is_some_and(TaskPool::has_failed) {
            let run = match self.prepare_run(block, offset + done, bytes - done).await {
                Ok(run) => run,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let at = offset + done;
            done += run.bytes;
            if pool.is_none() && done == bytes {
                result = self.write_run(block, at, content, run).await;
                break;
            }
            let piece = content.slice(at - offset, run.bytes);
            let (image, core) = (self.clone(), block.clone());
            let pool = pool.get_or_insert_default();
            pool.start(&block.sim, Box::pin(async move { image.write_run(&core, at, piece, run).await })).await;
        }
        if result.is_ok() {
            // QEMU takes the lock once more on its way out.
            drop(self.lock(block).await);
        }
        match pool {
            Some(pool) => {
                let pooled = pool.finish(&block.sim).await;
                result.and(pooled)
            }
            None => result,
        }
    }

    /// Finds host clusters for the beginning of a write. Nothing stays allocated on failure.
    async fn prepare_run(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<Run> {
        let mut locked = Some(self.lock(block).await);
        self.prepare_run_locked(block, offset, bytes, &mut locked).await
    }

    /// As [`Qcow2::prepare_run`], with the lock held already; it is let go of while waiting.
    pub(super) async fn prepare_run_locked<'a>(
        &'a self,
        block: &'a Rc<Block>,
        offset: u64,
        bytes: u64,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Res<Run> {
        let mut allocations = Vec::new();
        let gathered = self.gather_run(block, offset, bytes, &mut allocations, locked).await;
        let checked = match gathered {
            Ok((host, bytes)) => self.check_overlap(block, None, host, bytes).await.map(|()| (host, bytes)),
            Err(error) => Err(error),
        };
        match checked {
            Ok((host, bytes)) => Ok(Run { host, bytes, allocations }),
            Err(error) => {
                self.abandon(block, allocations).await;
                Err(error)
            }
        }
    }

    /// Host offset and length of the run that a write begins with (`qcow2_alloc_host_offset`).
    async fn gather_run<'a>(
        &'a self,
        block: &'a Rc<Block>,
        offset: u64,
        bytes: u64,
        allocations: &mut Vec<Rc<Allocation>>,
        locked: &mut Option<CoMutexGuard<'a>>,
    ) -> Res<(u64, u64)> {
        let (mut start, mut host) = (None, None);
        let mut done = 0;
        while done < bytes {
            let guest = offset + done;
            let holds = !allocations.is_empty();
            let free = match self.wait_for_dependencies(block, guest, bytes - done, holds, locked).await {
                Dependency::Free(free) => free.min(REQUEST_MAX_BYTES),
                Dependency::Slept => {
                    (start, host, done) = (None, None, 0);
                    continue;
                }
                Dependency::Blocked => break,
            };
            let step = match self.owned_run(block, guest, host, free, allocations).await? {
                Step::Other => self.allocate_run(block, guest, host, free, allocations).await?,
                step => step,
            };
            let Step::Found(at, found) = step else { break };
            start = start.or(Some(at));
            host = Some(at + found);
            done += found;
        }
        // The first step of a run always finds something: without a host offset to continue from
        // nothing can stop it.
        start.map(|host| (host, done)).ok_or(Errno::EIO)
    }

    /// The clusters from `guest` on that can be overwritten in place (`handle_copied`).
    async fn owned_run(
        &self,
        block: &Rc<Block>,
        guest: u64,
        continues: Option<u64>,
        bytes: u64,
        allocations: &mut Vec<Rc<Allocation>>,
    ) -> Res<Step> {
        let into = self.geo.into_cluster(guest);
        let place = self.writable_l2(block, guest).await?;
        let limit = (self.geo.clusters(into + bytes) as usize).min(place.left);
        let entry = place.table.read(|table| table.get(place.index));
        if needs_new_cluster(entry) {
            return Ok(Step::Other);
        }
        let cluster = entry & L2E_OFFSET_MASK;
        if self.geo.into_cluster(cluster) != 0 {
            let what = if entry & super::layout::ZERO != 0 { "Preallocated zero" } else { "Data" };
            let message = format!("{what} cluster offset {cluster:#x} unaligned (guest offset: {guest:#x})");
            self.signal_corruption(block, true, None, message).await;
            return Err(Errno::EIO);
        }
        if continues.is_some_and(|host| self.geo.cluster_start(host) != cluster) {
            return Ok(Step::Stop);
        }
        let cluster_size = self.geo.cluster_size();
        let kept = place.table.read(|table| {
            table.count_contiguous(place.index, limit, cluster, cluster_size, |entry| !needs_new_cluster(entry))
        });
        let found = bytes.min(((kept as u64) << self.geo.cluster_bits) - into);
        self.note_allocation(&place, guest, cluster, found, true, allocations);
        Ok(Step::Found(cluster + into, found))
    }

    /// Allocates clusters for the unowned run from `guest` on (`handle_alloc`).
    async fn allocate_run(
        &self,
        block: &Rc<Block>,
        guest: u64,
        continues: Option<u64>,
        bytes: u64,
        allocations: &mut Vec<Rc<Allocation>>,
    ) -> Res<Step> {
        let into = self.geo.into_cluster(guest);
        let place = self.writable_l2(block, guest).await?;
        let limit = (self.geo.clusters(into + bytes) as usize).min(place.left);
        let wanted = place.table.read(|table| table.count_while(place.index, limit, needs_new_cluster)) as u64;
        let (cluster, count) = match continues {
            None => (self.alloc_clusters(block, wanted << self.geo.cluster_bits).await?, wanted),
            Some(host) => {
                let cluster = self.geo.cluster_start(host);
                (cluster, self.alloc_clusters_at(block, cluster, wanted).await?)
            }
        };
        if count == 0 {
            return Ok(Step::Stop);
        }
        let found = bytes.min((count << self.geo.cluster_bits) - into);
        self.note_allocation(&place, guest, cluster, found, false, allocations);
        Ok(Step::Found(cluster + into, found))
    }

    /// Puts a run on the list of running allocations, unless it is a plain overwrite
    /// (`calculate_l2_meta`).
    fn note_allocation(
        &self,
        place: &L2Place<'_>,
        guest: u64,
        host_cluster: u64,
        bytes: u64,
        owned: bool,
        allocations: &mut Vec<Rc<Allocation>>,
    ) {
        let from = self.geo.into_cluster(guest);
        let to = from + bytes;
        let clusters = self.geo.clusters(to);
        let count = clusters as usize;
        let normal = |entry: u64| ClusterType::of(entry) == ClusterType::Normal;
        let (first, last, all) = place.table.read(|table| {
            let all = owned && table.count_while(place.index, count, normal) == count;
            (table.get(place.index), table.get(place.index + count - 1), all)
        });
        if all {
            return;
        }
        let head_start = if owned && normal(first) { from } else { 0 };
        let tail_end = if owned && normal(last) { to } else { to.next_multiple_of(self.geo.cluster_size()) };
        let allocation = Rc::new(Allocation {
            guest: self.geo.cluster_start(guest),
            host: host_cluster,
            clusters,
            keeps_clusters: owned,
            head: (head_start, from),
            tail: (to, tail_end),
            cow_done: Cell::new(false),
            waiters: Default::default(),
        });
        self.in_flight.borrow_mut().push(allocation.clone());
        allocations.push(allocation);
    }

    /// Writes one run and links it (`qcow2_co_pwritev_task`).
    async fn write_run(self: &Rc<Self>, block: &Rc<Block>, offset: u64, content: Content, run: Run) -> Res<()> {
        if run.allocations.is_empty() {
            block.debug_event(self.file(), BlkdebugEvent::WriteAio).await;
            let result = block.co_pwrite(self.file(), run.host, content, ReqFlags::NONE).await;
            drop(self.lock(block).await);
            return result;
        }
        self.write_allocated(block, offset, content, run).await
    }
}
