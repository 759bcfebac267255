//! The backup job: copies a disk as it was when the job started, while guests go on writing.
//!
//! `create.rs` checks the arguments and builds filter and job, `run.rs` is the job's coroutine; this file
//! is what both share. QEMU's sources: `block/backup.c` and `blockdev.c`. Copying itself is block-copy's
//! business, protecting old data the filter's.

mod create;
mod run;

use std::rc::Rc;

use crate::bitmap::BitmapId;
use crate::block::block_copy::{BlockCopy, Call};
use crate::block::{Block, Node, NodeId};
use crate::sim::shared::{Cell, RefCell};

use crate::sim::TraceEvent;

use super::job::{Job, OnError};

pub use create::create_backup;
pub use run::start_backup;

/// `sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The top layer.
    Top,
    /// Everything.
    Full,
    /// Only what guests overwrite.
    None,
    /// What the bitmap says; on-success.
    Incremental,
    /// What the bitmap says.
    Bitmap,
}

impl SyncMode {
    /// The QAPI name.
    pub fn name(self) -> &'static str {
        match self {
            SyncMode::Top => "top",
            SyncMode::Full => "full",
            SyncMode::None => "none",
            SyncMode::Incremental => "incremental",
            SyncMode::Bitmap => "bitmap",
        }
    }
}

/// `bitmap-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    /// The bitmap restarts when the backup succeeds.
    OnSuccess,
    /// The bitmap goes on as if there had been no backup.
    Never,
    /// The bitmap restarts, and keeps what was not copied.
    Always,
}

/// Arguments of blockdev-backup and drive-backup after the two nodes.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// `job-id`.
    pub job_id: Option<String>,
    /// `sync`.
    pub sync: SyncMode,
    /// `bitmap`.
    pub bitmap: Option<String>,
    /// `bitmap-mode`.
    pub bitmap_mode: Option<BitmapMode>,
    /// `compress`.
    pub compress: bool,
    /// `on-source-error`.
    pub on_source_error: OnError,
    /// `on-target-error`.
    pub on_target_error: OnError,
    /// `speed`, bytes per second.
    pub speed: i64,
    /// `auto-finalize`.
    pub auto_finalize: bool,
    /// `auto-dismiss`.
    pub auto_dismiss: bool,
    /// `filter-node-name`.
    pub filter_node_name: Option<String>,
    /// `discard-source`.
    pub discard_source: bool,
    /// `x-perf.use-copy-range`.
    pub use_copy_range: bool,
    /// `x-perf.max-workers`.
    pub max_workers: i64,
    /// `x-perf.max-chunk`, bytes; 0: no limit.
    pub max_chunk: i64,
    /// `x-perf.min-cluster-size`, bytes; 0: none.
    pub min_cluster_size: u64,
}

impl BitmapMode {
    /// The QAPI name.
    pub fn name(self) -> &'static str {
        match self {
            BitmapMode::OnSuccess => "on-success",
            BitmapMode::Never => "never",
            BitmapMode::Always => "always",
        }
    }
}

/// State of a backup job.
pub struct Backup {
    block: Rc<Block>,
    filter: Rc<Node>,
    source: NodeId,
    copy: Rc<BlockCopy>,
    sync: SyncMode,
    bitmap: Option<BitmapId>,
    bitmap_mode: BitmapMode,
    on_source_error: OnError,
    on_target_error: OnError,
    max_workers: u32,
    max_chunk: u64,
    length: u64,
    call: RefCell<Option<Rc<Call>>>,
    /// The job's coroutine waits for the call to wind down, outside of job-level yields.
    waits: Cell<bool>,
}

impl Backup {
    /// Settles the sync bitmap at the job's end (`backup_cleanup_sync_bitmap`).
    pub(super) fn settle_bitmap(&self, job: &Job, success: bool) {
        let settled = self.bitmap.and_then(|id| self.settle(id, success));
        self.block.sim.emit(|| TraceEvent::BackupSettled {
            job: job.id.clone(),
            success,
            bitmap: settled.and_then(|id| self.block.dump_bitmap(self.source, id)).map(Rc::new),
        });
    }

    /// Gives the sync bitmap back; returns what it is now.
    fn settle(&self, id: BitmapId, success: bool) -> Option<BitmapId> {
        let defects = &self.block.quirks.defects;
        let node = self.block.node(self.source);
        let restart = match self.bitmap_mode {
            BitmapMode::Never => false,
            BitmapMode::OnSuccess => success,
            BitmapMode::Always => true,
        };
        let settled = {
            let mut list = node.bitmaps.borrow_mut();
            if defects.successor_dropped_on_failure && !success {
                let successor = list.get(id).and_then(|bitmap| bitmap.successor());
                if let Some(successor) = successor.and_then(|id| list.get_mut(id)) {
                    successor.fill(false);
                }
            }
            if restart { list.abdicate(id) } else { list.reclaim(id).map(|()| id) }
        };
        let settled = self.block.assert_merged(settled);
        let keep_uncopied = restart && !success && !defects.always_forgets_uncopied;
        if let (true, Some(settled)) = (keep_uncopied, &settled) {
            let left = self.copy.with_bitmap(&self.block, |copy| copy.clone());
            let merged = node.bitmaps.borrow_mut().get_mut(*settled).map_or(Ok(()), |bitmap| bitmap.merge_from(&left));
            self.block.assert_merged(merged);
        }
        settled
    }

    /// Removes the filter.
    pub(super) async fn drop_filter(&self) {
        self.block.drop_filter(&self.filter).await;
    }

    /// Sets the speed, bytes per second.
    pub(super) fn set_speed(&self, speed: u64) {
        self.copy.set_speed(&self.block, speed);
    }

    /// A pause ends the call under way and waits for its tasks (`backup_pause`).
    pub(super) async fn wind_down_for_pause(&self) {
        let call = self.call.borrow().clone();
        if let Some(call) = call.filter(|call| !call.is_finished()) {
            call.cancel(&self.block.sim);
            self.wait_for_call(&call).await;
        }
    }

    /// Sleeps until the call has ended; the job counts as busy all that time.
    async fn wait_for_call(&self, call: &Call) {
        if call.is_finished() {
            return;
        }
        self.waits.set(true);
        self.block.sim.park("its block-copy call to wind down").await;
        self.waits.set(false);
    }
}
