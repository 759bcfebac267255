//! How jobs end: completion, finalization, cancelling, and doing so together in a transaction.
//!
//! Rules of QEMU's `job.c`: a failure or a cancel of one member aborts all; success waits for all; members
//! are settled in list order, newest first. Settling may poll, so all of it is main-loop code.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::errno::Errno;
use crate::sim::TraceEvent;
use crate::sim::shared::{Cell, RefCell};

use super::job::{Job, JobEvent, JobKind};
use super::state::Status;

/// A set of jobs that succeed or fail together (`JobTxn`).
#[derive(Default)]
pub struct JobTxn {
    /// Newest first.
    jobs: RefCell<Vec<Rc<Job>>>,
    aborting: Cell<bool>,
}

impl JobTxn {
    pub(super) fn add(&self, job: &Rc<Job>) {
        self.jobs.borrow_mut().insert(0, job.clone());
    }

    fn remove(&self, job: &Job) {
        self.jobs.borrow_mut().retain(|other| other.key != job.key);
    }

    /// A number that all members of a group share.
    pub(super) fn group(&self) -> Option<u64> {
        self.jobs.borrow().last().map(|oldest| u64::from(oldest.key))
    }

    fn members(&self) -> Vec<Rc<Job>> {
        self.jobs.borrow().clone()
    }
}

impl Job {
    pub(super) fn txn(&self) -> Rc<JobTxn> {
        self.txn.borrow().clone()
    }

    /// The coroutine's last act: leaves the rest to the main loop (`job_co_entry`).
    pub(super) fn coroutine_ended(self: &Rc<Self>, result: Result<(), (Errno, Option<String>)>) {
        if let Err((error, text)) = result {
            self.ret.set(Some(error));
            *self.error.borrow_mut() = text;
        }
        self.deferred.set(true);
        self.busy.set(true);
        let job = self.clone();
        self.jobs.block.sim.bh_frame("job_exit", async move {
            job.busy.set(false);
            job.completed().await;
        });
    }

    /// Boxed, because aborting a transaction may complete other members on the way.
    fn completed(self: &Rc<Self>) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            self.update_result();
            if self.ret.get().is_some() {
                self.abort_transaction().await;
            } else {
                self.succeed().await;
            }
        })
    }

    /// A cancel turns success into ECANCELED; any error means aborting (`job_update_rc`).
    fn update_result(&self) {
        if self.ret.get().is_none() && self.is_cancelled() {
            self.ret.set(Some(Errno::ECANCELED));
        }
        if let Some(error) = self.ret.get() {
            self.error.borrow_mut().get_or_insert_with(|| error.to_string());
            self.become_status(Status::Aborting);
        }
    }

    /// Waits for the other members; the last one moves all on (`job_completed_txn_success`).
    async fn succeed(self: &Rc<Self>) {
        self.become_status(Status::Waiting);
        let members = self.txn().members();
        if members.iter().any(|other| !other.status().is_completed()) {
            return;
        }
        for member in &members {
            member.become_status(Status::Pending);
            member.was_pending.set(true);
            if !member.auto_finalize && member.kind != JobKind::Create {
                member.jobs.send(JobEvent::Pending { id: member.id.clone() });
            }
        }
        if members.iter().all(|member| member.auto_finalize) {
            self.do_finalize().await;
        }
    }

    /// Finalizes all members (`job_do_finalize`).
    pub(super) async fn do_finalize(self: &Rc<Self>) {
        let members = self.txn().members();
        for member in &members {
            member.update_result();
            if member.ret.get().is_some() {
                return self.abort_transaction().await;
            }
        }
        for member in &members {
            member.finalize_single().await;
        }
    }

    /// Cancels all other members and finalizes everybody in list order
    /// (`job_completed_txn_abort`).
    async fn abort_transaction(self: &Rc<Self>) {
        let txn = self.txn();
        if txn.aborting.replace(true) {
            // Whoever aborts the transaction settles this job too.
            return;
        }
        for other in txn.members() {
            if other.key == self.key {
                continue;
            }
            if self.jobs.block.quirks.defects.group_finalizes_alone && other.status() == Status::Waiting {
                other.become_status(Status::Pending);
                continue;
            }
            other.cancel_async();
        }
        loop {
            let first = txn.jobs.borrow().first().cloned();
            let Some(job) = first else { break };
            if !job.status().is_completed() {
                job.finish_sync().await;
            }
            job.finalize_single().await;
        }
    }

    /// Polls until the job's coroutine is over (`job_finish_sync`). For a job that never started that is for ever:
    /// QEMU hangs there too (see docs/findings.md).
    async fn finish_sync(self: &Rc<Self>) {
        let job = self.clone();
        let sim = self.jobs.block.sim.clone();
        sim.poll_until("a cancelled job", move || {
            job.enter();
            job.status().is_completed()
        })
        .await;
    }

    /// Settles one job: commit or abort, clean, events, conclusion (`job_finalize_single`).
    async fn finalize_single(self: &Rc<Self>) {
        self.update_result();
        let defect = self.jobs.block.quirks.defects.pending_cancel_is_success && self.was_pending.get();
        let success = self.ret.get().is_none() || defect;
        let backup = self.backup.borrow_mut().take();
        if let Some(backup) = backup {
            backup.settle_bitmap(self, success);
            self.remove_nodes().await;
            backup.drop_filter().await;
        }
        if self.is_started() && self.kind == JobKind::Backup {
            let cancelled = self.is_cancelled();
            self.jobs.block.sim.emit(|| TraceEvent::JobEnded {
                id: self.id.clone(),
                len: self.progress.total.get(),
                offset: self.progress.current.get(),
                cancelled,
                failed: self.ret.get().is_some(),
            });
            self.jobs.send(JobEvent::Ended {
                id: self.id.clone(),
                len: self.progress.total.get(),
                offset: self.progress.current.get(),
                speed: self.speed(),
                cancelled,
                error: if cancelled { None } else { self.error() },
            });
        }
        self.txn().remove(self);
        self.become_status(Status::Concluded);
        if self.auto_dismiss || !self.is_started() {
            self.do_dismiss().await;
        }
    }

    /// Forgets the job (`job_do_dismiss`).
    pub(super) async fn do_dismiss(self: &Rc<Self>) {
        self.busy.set(false);
        self.paused.set(false);
        self.deferred.set(true);
        self.txn().remove(self);
        self.become_status(Status::Null);
        self.jobs.forget(self);
        if self.kind == JobKind::Backup {
            // Freeing a block job changes the graph once more.
            self.jobs.block.graph_write_section().await;
        }
    }

    /// A job that was made but will not be started, because its maker failed (`job_early_fail`).
    pub async fn early_fail(self: &Rc<Self>) {
        self.remove_nodes().await;
        self.do_dismiss().await;
    }

    /// Cancels the job in whatever state it is (`job_cancel`).
    pub async fn cancel(self: &Rc<Self>) {
        if self.status() == Status::Concluded {
            return self.do_dismiss().await;
        }
        self.cancel_async();
        if !self.is_started() {
            self.completed().await;
        } else if self.deferred.get() {
            self.abort_deferred().await;
        } else {
            self.enter();
        }
    }

    /// A cancel after the coroutine's end: `job_exit` may still have to run.
    async fn abort_deferred(self: &Rc<Self>) {
        self.abort_transaction().await;
    }

    /// Cancels and waits for the end (`job_cancel_sync`).
    pub async fn cancel_sync(self: &Rc<Self>) {
        if self.status().is_completed() && self.status() != Status::Waiting && self.status() != Status::Pending {
            if self.status() == Status::Concluded {
                self.do_dismiss().await;
            }
            return;
        }
        self.cancel().await;
        let job = self.clone();
        let sim = self.jobs.block.sim.clone();
        sim.poll_until("a cancelled job", move || {
            job.enter();
            matches!(job.status(), Status::Concluded | Status::Null)
        })
        .await;
    }
}
