//! The backup job's coroutine.
//!
//! It prepares the copy bitmap for the sync mode, then keeps one block-copy call going until everything is
//! copied, an error ends the job, or somebody cancels it (`backup_run` in `block/backup.c`).

use std::rc::Rc;

use crate::block::block_copy::{BlockCopy, Call, CallOptions};
use crate::errno::{Errno, Res};
use crate::job::job::{ErrorAction, Job};

use super::{Backup, SyncMode};

/// Starts a job that `create_backup` has made.
pub fn start_backup(job: &Rc<Job>) {
    let backup = job.backup.borrow().clone();
    let Some(backup) = backup else { return };
    let running = job.clone();
    job.start(async move { backup.run(&running).await.map_err(|error| (error, None)) });
}

impl Backup {
    async fn run(self: &Rc<Self>, job: &Rc<Job>) -> Res<()> {
        self.prepare_copy_bitmap(job);
        match self.sync {
            SyncMode::Top => {
                self.copy.skip_unallocated.set(true);
                self.drop_unallocated(job).await?;
                self.copy.skip_unallocated.set(false);
            }
            SyncMode::None => {
                while !job.is_cancelled() {
                    job.yield_job().await;
                }
                return Ok(());
            }
            SyncMode::Full | SyncMode::Bitmap | SyncMode::Incremental => {}
        }
        self.copy_everything(job).await
    }

    /// A bitmap backup copies what the sync bitmap has set; the others begin with everything.
    fn prepare_copy_bitmap(&self, job: &Job) {
        if let (SyncMode::Bitmap | SyncMode::Incremental, Some(bitmap)) = (self.sync, self.bitmap) {
            self.copy.reset_to(&self.block, (self.source, bitmap));
        }
        job.progress.set_remaining(self.copy.remaining(&self.block));
    }

    /// Takes out of the copy bitmap what the top layer does not have.
    async fn drop_unallocated(&self, job: &Rc<Job>) -> Res<()> {
        let mut pos = 0;
        while pos < self.length {
            if job.is_cancelled() {
                return Err(Errno::ECANCELED);
            }
            job.breathe().await;
            if job.is_cancelled() {
                return Err(Errno::ECANCELED);
            }
            pos += self.copy.reset_unallocated(&self.block, pos).await?;
        }
        Ok(())
    }

    async fn copy_everything(self: &Rc<Self>, job: &Rc<Job>) -> Res<()> {
        loop {
            let call = self.start_call(job);
            while !call.is_finished() && !job.is_cancelled() {
                job.yield_job().await;
            }
            if !call.is_finished() {
                call.cancel(&self.block.sim);
                self.wait_for_call(&call).await;
                return Ok(());
            }
            if job.is_cancelled() {
                return Ok(());
            }
            if call.is_cancelled() {
                // A pause ended it; whatever failed in it meanwhile is tried again by the next one.
                continue;
            }
            let Some((error, is_read)) = call.failure() else { return Ok(()) };
            let policy = if is_read { self.on_source_error } else { self.on_target_error };
            match job.error_action(policy, is_read, error) {
                ErrorAction::Report => return Err(error),
                ErrorAction::Stop => {
                    if self.block.quirks.defects.stop_loses_chunk {
                        self.copy.forget_failed(&self.block);
                    }
                    job.pause_point().await;
                }
                ErrorAction::Ignore => {}
            }
        }
    }

    fn start_call(self: &Rc<Self>, job: &Rc<Job>) -> Rc<Call> {
        let cluster = self.copy.cluster_size;
        let bytes = if self.block.quirks.defects.partial_tail_not_copied {
            self.length - self.length % cluster
        } else {
            self.length.next_multiple_of(cluster)
        };
        let options = CallOptions {
            offset: 0,
            bytes,
            max_workers: self.max_workers,
            max_chunk: self.max_chunk,
            ignore_limit: false,
        };
        // The job keeps the call; a call that never ends must not keep the job.
        let (backup, waiting) = (Rc::downgrade(self), Rc::downgrade(job));
        let ended = move || {
            if let (Some(backup), Some(job)) = (backup.upgrade(), waiting.upgrade()) {
                backup.call_ended(&job);
            }
        };
        let call = self.copy.start(&self.block, options, ended);
        *self.call.borrow_mut() = Some(call.clone());
        call
    }

    /// The call is over: whoever of the job waits for it goes on.
    fn call_ended(&self, job: &Job) {
        if self.waits.replace(false) {
            if let Some(coroutine) = job.coroutine.get() {
                self.block.sim.wake(coroutine);
            }
        } else {
            job.enter();
        }
    }
}

impl BlockCopy {
    /// Decides the clusters at `offset`: those that the source's top layer does not have need no copy
    /// (`block_copy_reset_unallocated`). Returns how many bytes are decided.
    async fn reset_unallocated(&self, block: &Rc<crate::block::Block>, offset: u64) -> Res<u64> {
        let (allocated, bytes) = self.allocated_run(block, offset).await?;
        if !allocated {
            self.with_bitmap(block, |copy| copy.reset(offset, bytes));
            self.update_progress(block);
        }
        Ok(bytes)
    }

    /// Whether the clusters at `offset` are in the top layer, and for how many bytes of whole
    /// clusters that holds.
    async fn allocated_run(&self, block: &Rc<crate::block::Block>, offset: u64) -> Res<(bool, u64)> {
        let cluster = self.cluster_size;
        let mut run = 0;
        loop {
            let left = self.length - offset - run;
            let (allocated, bytes) = block.co_is_allocated(self.source(), offset + run, left).await?;
            run += bytes;
            if allocated || bytes == 0 || run == self.length - offset {
                // A cluster that is partly allocated counts as allocated, a partial one at the end as whole.
                return Ok((allocated, run.next_multiple_of(cluster).max(cluster)));
            }
            if run >= cluster {
                return Ok((false, run - run % cluster));
            }
        }
    }
}
