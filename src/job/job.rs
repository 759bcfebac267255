//! A job: its flags, its coroutine's pause points, and what commands do to it.
//!
//! Names and order of effects follow QEMU's `job.c` and `blockjob.c`. How a job ends is in
//! `finish.rs`. A job never looks into the scenario or into QMP.

use std::rc::Rc;

use crate::block::block_copy::Progress;
use crate::block::{Block, Edge, JobParent, NodeId, Parent, Perm, Role, is_well_formed_id};
use crate::errno::Errno;
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{TaskId, TraceEvent};

use super::backup::Backup;
use super::finish::JobTxn;
use super::state::{Status, Verb};

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// A backup: a block job.
    Backup,
    /// blockdev-create.
    Create,
}

impl JobKind {
    /// The QAPI name (`JobType`).
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Backup => "backup",
            JobKind::Create => "create",
        }
    }
}

/// `on-source-error` and `on-target-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// End the job.
    #[default]
    Report,
    /// Go on.
    Ignore,
    /// Pause on ENOSPC, else end.
    Enospc,
    /// Pause.
    Stop,
    /// As enospc.
    Auto,
}

/// What is done about an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The job ends.
    Report,
    /// The job goes on.
    Ignore,
    /// The job pauses.
    Stop,
}

impl OnError {
    /// The QAPI name.
    pub fn name(self) -> &'static str {
        match self {
            OnError::Report => "report",
            OnError::Ignore => "ignore",
            OnError::Enospc => "enospc",
            OnError::Stop => "stop",
            OnError::Auto => "auto",
        }
    }

    /// The action for an error.
    pub fn action(self, error: Errno) -> ErrorAction {
        match self {
            OnError::Enospc | OnError::Auto if error == Errno::ENOSPC => ErrorAction::Stop,
            OnError::Report | OnError::Enospc | OnError::Auto => ErrorAction::Report,
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
        }
    }
}

/// `io-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoStatus {
    /// No error stopped the job.
    #[default]
    Ok,
    /// An error stopped it.
    Failed,
    /// ENOSPC stopped it.
    Nospace,
}

/// What a job tells the world, in the order in which QEMU sends events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// JOB_STATUS_CHANGE.
    Status {
        /// Job id.
        id: Rc<str>,
        /// The new state.
        status: Status,
    },
    /// BLOCK_JOB_PENDING.
    Pending {
        /// Job id.
        id: Rc<str>,
    },
    /// BLOCK_JOB_COMPLETED or, if `cancelled`, BLOCK_JOB_CANCELLED.
    Ended {
        /// Job id.
        id: Rc<str>,
        /// Bytes in all.
        len: u64,
        /// Bytes done.
        offset: u64,
        /// Bytes per second.
        speed: i64,
        /// Whether the job was cancelled.
        cancelled: bool,
        /// Its error, if it completed with one.
        error: Option<String>,
    },
    /// BLOCK_JOB_ERROR.
    Error {
        /// Job id.
        id: Rc<str>,
        /// Whether reading failed, else writing.
        is_read: bool,
        /// What is done.
        action: ErrorAction,
    },
}

type EventSink = Box<dyn Fn(JobEvent)>;

/// All jobs of a machine.
pub struct Jobs {
    /// The block layer.
    pub block: Rc<Block>,
    /// Newest first.
    list: RefCell<Vec<Rc<Job>>>,
    sink: RefCell<Option<EventSink>>,
}

/// What a new job is made of.
pub struct JobConfig {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: JobKind,
    /// The transaction it joins; none: one of its own.
    pub txn: Option<Rc<JobTxn>>,
    /// Finalize without being asked.
    pub auto_finalize: bool,
    /// Dismiss without being asked.
    pub auto_dismiss: bool,
}

/// A job (`Job` and `BlockJob`).
pub struct Job {
    /// Its id.
    pub id: Rc<str>,
    /// Its kind.
    pub kind: JobKind,
    /// Finalize without being asked.
    pub auto_finalize: bool,
    /// Dismiss without being asked.
    pub auto_dismiss: bool,
    /// Bytes done and to do.
    pub progress: Rc<Progress>,
    pub(super) key: u32,
    pub(super) jobs: Rc<Jobs>,
    pub(super) txn: RefCell<Rc<JobTxn>>,
    pub(super) status: Cell<Status>,
    pub(super) pause_count: Cell<u32>,
    pub(super) paused: Cell<bool>,
    pub(super) user_paused: Cell<bool>,
    pub(super) busy: Cell<bool>,
    pub(super) cancelled: Cell<bool>,
    pub(super) force_cancel: Cell<bool>,
    pub(super) deferred: Cell<bool>,
    /// It has been `pending`.
    pub(super) was_pending: Cell<bool>,
    pub(super) ret: Cell<Option<Errno>>,
    pub(super) error: RefCell<Option<String>>,
    pub(super) io_status: Cell<IoStatus>,
    pub(super) speed: Cell<i64>,
    pub(super) coroutine: Cell<Option<TaskId>>,
    pub(super) backup: RefCell<Option<Rc<Backup>>>,
    pub(super) edges: RefCell<Vec<Rc<Edge>>>,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(block: Rc<Block>) -> Rc<Jobs> {
        Rc::new(Jobs { block, list: RefCell::default(), sink: RefCell::default() })
    }

    /// Who hears the jobs' events.
    pub fn set_sink(&self, sink: impl Fn(JobEvent) + 'static) {
        *self.sink.borrow_mut() = Some(Box::new(sink));
    }

    pub(super) fn send(&self, event: JobEvent) {
        if let Some(sink) = &*self.sink.borrow() {
            sink(event);
        }
    }

    /// All jobs, newest first.
    pub fn all(&self) -> Vec<Rc<Job>> {
        self.list.borrow().clone()
    }

    /// The job called `id`.
    pub fn find(&self, id: &str) -> Option<Rc<Job>> {
        self.list.borrow().iter().find(|job| &*job.id == id).cloned()
    }

    pub(super) fn forget(&self, job: &Job) {
        self.list.borrow_mut().retain(|other| other.key != job.key);
    }

    /// Forgets everything (the process has died): what a job has and what has the job must not keep each other alive.
    pub fn clear(&self) {
        for job in self.list.take() {
            job.abandon();
        }
        *self.sink.borrow_mut() = None;
    }

    /// Makes a job in state `created` (`job_create`).
    pub fn create(self: &Rc<Self>, config: JobConfig) -> Result<Rc<Job>, String> {
        if !is_well_formed_id(&config.id) {
            return Err(format!("Invalid job ID '{}'", config.id));
        }
        if self.find(&config.id).is_some() {
            return Err(format!("Job ID '{}' already in use", config.id));
        }
        let txn = config.txn.unwrap_or_default();
        let job = Rc::new(Job {
            id: config.id.into(),
            kind: config.kind,
            auto_finalize: config.auto_finalize,
            auto_dismiss: config.auto_dismiss,
            progress: Rc::default(),
            key: self.block.new_owner(),
            jobs: self.clone(),
            txn: RefCell::new(txn.clone()),
            status: Cell::new(Status::Undefined),
            pause_count: Cell::new(1),
            paused: Cell::new(true),
            user_paused: Cell::new(false),
            busy: Cell::new(false),
            cancelled: Cell::new(false),
            force_cancel: Cell::new(false),
            deferred: Cell::new(false),
            was_pending: Cell::new(false),
            ret: Cell::new(None),
            error: RefCell::default(),
            io_status: Cell::default(),
            speed: Cell::new(0),
            coroutine: Cell::new(None),
            backup: RefCell::default(),
            edges: RefCell::default(),
        });
        job.become_status(Status::Created);
        self.list.borrow_mut().insert(0, job.clone());
        txn.add(&job);
        Ok(job)
    }
}

impl Job {
    fn abandon(&self) {
        self.edges.take();
        self.backup.take();
        self.txn.take();
    }

    /// The state.
    pub fn status(&self) -> Status {
        self.status.get()
    }

    /// Whether anybody wants it to pause.
    pub fn should_pause(&self) -> bool {
        self.pause_count.get() > 0
    }

    /// `busy` as query-block-jobs shows it.
    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    /// `io-status`.
    pub fn io_status(&self) -> IoStatus {
        self.io_status.get()
    }

    /// Forgets that the job has met an error (`block_job_iostatus_reset`).
    pub fn reset_io_status(&self) {
        self.io_status.set(IoStatus::Ok);
    }

    /// The last accepted speed, bytes per second.
    pub fn speed(&self) -> i64 {
        self.speed.get()
    }

    /// The error object's text, from state aborting on.
    pub fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }

    /// The text for query-block-jobs: of the error object, or of the result.
    pub fn block_job_error(&self) -> Option<String> {
        let ret = self.ret.get()?;
        Some(self.error().unwrap_or_else(|| ret.to_string()))
    }

    /// Whether it is really cancelled (`job_is_cancelled`).
    pub fn is_cancelled(&self) -> bool {
        self.force_cancel.get()
    }

    pub(super) fn is_started(&self) -> bool {
        self.coroutine.get().is_some()
    }

    /// Goes to another state and says so; staying in one is silent.
    pub(super) fn become_status(&self, next: Status) {
        let old = self.status.get();
        assert!(old.may_become(next), "job {}: {} -> {}", self.id, old.name(), next.name());
        self.status.set(next);
        if old != next {
            let (id, status) = (self.id.clone(), next.name());
            self.jobs.block.sim.emit(|| TraceEvent::JobStatus { id, status });
            self.jobs.send(JobEvent::Status { id: self.id.clone(), status: next });
        }
    }

    fn check_verb(&self, verb: Verb) -> Result<(), String> {
        if self.status().accepts(verb) {
            return Ok(());
        }
        let state = self.status().name();
        Err(format!("Job '{}' in state '{state}' cannot accept command verb '{}'", self.id, verb.name()))
    }

    /// Attaches the job to a node and blocks other operations on it (`block_job_add_bdrv`).
    pub(super) fn add_node(self: &Rc<Self>, name: &'static str, node: NodeId) -> Result<(), String> {
        let parent: Rc<dyn JobParent> = self.clone();
        let block = &self.jobs.block;
        let edge = block.attach(Parent::Job(parent), name, Role::Root, node, Some((Perm::NONE, Perm::ALL)))?;
        self.edges.borrow_mut().push(edge);
        let reason = format!("block device is in use by block job: {}", self.kind.name());
        block.node(node).op_blockers.borrow_mut().push((self.key, reason.into()));
        Ok(())
    }

    /// Gives all nodes up (`block_job_remove_all_bdrv`).
    pub(super) async fn remove_nodes(&self) {
        let block = &self.jobs.block;
        let lock = block.graph_write_lock().await;
        let edges = std::mem::take(&mut *self.edges.borrow_mut());
        for edge in &edges {
            block.node(edge.child.get()).op_blockers.borrow_mut().retain(|(owner, _)| *owner != self.key);
            block.detach(edge);
        }
        block.graph_write_unlock(lock).await;
        for edge in &edges {
            block.unref(edge.child.get()).await;
        }
    }

    /// Starts the coroutine (`job_start`); `run` gives the job's result.
    pub(super) fn start(self: &Rc<Self>, run: impl Future<Output = Result<(), (Errno, Option<String>)>> + 'static) {
        let (job, sim) = (self.clone(), self.jobs.block.sim.clone());
        let coroutine = sim.create(format!("job {}", self.id), async move {
            job.pause_point().await;
            let result = run.await;
            job.coroutine_ended(result);
        });
        self.coroutine.set(Some(coroutine));
        self.pause_count.set(self.pause_count.get() - 1);
        self.busy.set(true);
        self.paused.set(false);
        self.become_status(Status::Running);
        sim.enter(coroutine);
    }

    /// Lets the coroutine go on if it sits in a job-level yield (`job_enter`).
    pub fn enter(&self) {
        let Some(coroutine) = self.coroutine.get() else { return };
        if self.deferred.get() || self.busy.get() {
            return;
        }
        self.busy.set(true);
        self.jobs.block.sim.wake(coroutine);
    }

    async fn do_yield(&self, what: &'static str) {
        self.busy.set(false);
        self.jobs.block.sim.park(what).await;
    }

    /// Sleeps until somebody enters the job (`job_yield`).
    pub(super) async fn yield_job(&self) {
        if self.is_cancelled() {
            return;
        }
        if !self.should_pause() {
            self.do_yield("its block-copy call or a command").await;
        }
        self.pause_point().await;
    }

    /// Lets others run for a moment (`job_sleep_ns` with 0).
    pub(super) async fn breathe(self: &Rc<Self>) {
        if !self.should_pause() {
            let job = self.clone();
            let sim = &self.jobs.block.sim;
            sim.timer(sim.now(), move || job.enter());
            self.do_yield("a moment for others").await;
        }
        self.pause_point().await;
    }

    /// Pauses if somebody wants that (`job_pause_point`); a cancelled job never does.
    pub(super) async fn pause_point(&self) {
        if !self.should_pause() || self.is_cancelled() {
            return;
        }
        let backup = self.backup.borrow().clone();
        if let Some(backup) = &backup {
            backup.wind_down_for_pause().await;
        }
        if self.should_pause() && !self.is_cancelled() {
            let status = self.status();
            self.become_status(if status == Status::Ready { Status::Standby } else { Status::Paused });
            self.paused.set(true);
            self.do_yield("being resumed").await;
            self.paused.set(false);
            self.become_status(status);
        }
    }

    fn pause(&self) {
        self.jobs.block.sim.emit(|| TraceEvent::JobAskedToPause { id: self.id.clone() });
        self.pause_count.set(self.pause_count.get() + 1);
        if !self.paused.get() {
            self.enter();
        }
    }

    fn resume(&self) {
        self.pause_count.set(self.pause_count.get().saturating_sub(1));
        if self.pause_count.get() == 0 {
            self.enter();
        }
    }

    /// job-pause, block-job-pause.
    pub fn user_pause(&self) -> Result<(), String> {
        self.check_verb(Verb::Pause)?;
        if self.user_paused.get() {
            return Err("Job is already paused".to_owned());
        }
        self.user_paused.set(true);
        self.pause();
        Ok(())
    }

    /// job-resume, block-job-resume.
    pub fn user_resume(&self) -> Result<(), String> {
        if !self.user_paused.get() || self.pause_count.get() == 0 {
            return Err("Can't resume a job that was not paused".to_owned());
        }
        self.check_verb(Verb::Resume)?;
        self.io_status.set(IoStatus::Ok);
        self.user_paused.set(false);
        self.resume();
        Ok(())
    }

    /// Sets the flags of a cancel; the caller enters the job (`job_cancel_async`). Backup turns
    /// every cancel into a forced one.
    pub(super) fn cancel_async(&self) {
        if self.user_paused.get() {
            self.io_status.set(IoStatus::Ok);
            self.user_paused.set(false);
            self.pause_count.set(self.pause_count.get().saturating_sub(1));
        }
        self.cancelled.set(true);
        self.force_cancel.set(true);
    }

    /// job-cancel.
    pub async fn user_cancel(self: &Rc<Self>) -> Result<(), String> {
        self.check_verb(Verb::Cancel)?;
        self.cancel().await;
        Ok(())
    }

    /// block-job-cancel.
    pub async fn block_job_cancel(self: &Rc<Self>, force: bool) -> Result<(), String> {
        if self.user_paused.get() && !force {
            return Err(format!("The block job for device '{}' is currently paused", self.id));
        }
        self.user_cancel().await
    }

    /// job-complete: no job of this machine can be completed.
    pub fn user_complete(&self) -> Result<(), String> {
        self.check_verb(Verb::Complete)?;
        Err(format!("The active block job '{}' cannot be completed", self.id))
    }

    /// block-job-change: no job of this machine can be changed.
    pub fn user_change(&self) -> Result<(), String> {
        self.check_verb(Verb::Change)?;
        Err("Job type does not support change".to_owned())
    }

    /// job-finalize.
    pub async fn user_finalize(self: &Rc<Self>) -> Result<(), String> {
        self.check_verb(Verb::Finalize)?;
        self.do_finalize().await;
        Ok(())
    }

    /// job-dismiss.
    pub async fn user_dismiss(self: &Rc<Self>) -> Result<(), String> {
        self.check_verb(Verb::Dismiss)?;
        self.do_dismiss().await;
        Ok(())
    }

    /// block-job-set-speed, bytes per second.
    pub fn set_speed(&self, speed: i64) -> Result<(), String> {
        self.check_verb(Verb::SetSpeed)?;
        if speed < 0 {
            return Err("Parameter 'speed' expects a non-negative value".to_owned());
        }
        self.speed.set(speed);
        if let Some(backup) = &*self.backup.borrow() {
            backup.set_speed(speed.unsigned_abs());
        }
        Ok(())
    }

    /// Decides about an I/O error and reports it (`block_job_error_action`).
    pub(super) fn error_action(&self, policy: OnError, is_read: bool, error: Errno) -> ErrorAction {
        let action = policy.action(error);
        self.jobs.send(JobEvent::Error { id: self.id.clone(), is_read, action });
        if action == ErrorAction::Stop {
            if !self.user_paused.get() {
                self.pause();
                self.user_paused.set(true);
            }
            if self.io_status.get() == IoStatus::Ok {
                self.io_status.set(if error == Errno::ENOSPC { IoStatus::Nospace } else { IoStatus::Failed });
            }
        }
        action
    }
}

impl JobParent for Job {
    fn drained_begin(&self) {
        self.pause();
    }

    fn drained_poll(&self) -> bool {
        self.busy.get() && !self.status().is_completed()
    }

    fn drained_end(&self) {
        self.resume();
    }

    fn describe(&self) -> String {
        format!("{} job '{}'", self.kind.name(), self.id)
    }

    fn key(&self) -> u32 {
        self.key
    }
}
