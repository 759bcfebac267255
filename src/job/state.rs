//! States of a job, legal transitions, and which command a job accepts in which state.
//!
//! The two tables are QEMU's (`JobSTT` and `JobVerbTable` in `job.c`). Nothing here has effects.

/// A state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Not yet announced.
    Undefined,
    /// Made, not started.
    Created,
    /// Its coroutine may run.
    Running,
    /// It sits in a pause point.
    Paused,
    /// It could be completed (never for backup).
    Ready,
    /// Paused while ready.
    Standby,
    /// Done, waiting for others of its transaction.
    Waiting,
    /// Done, waiting to be finalized.
    Pending,
    /// Failed or cancelled.
    Aborting,
    /// All over, waiting to be dismissed.
    Concluded,
    /// Gone.
    Null,
}

/// What a command asks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// job-cancel.
    Cancel,
    /// job-pause.
    Pause,
    /// job-resume.
    Resume,
    /// block-job-set-speed.
    SetSpeed,
    /// job-complete.
    Complete,
    /// job-finalize.
    Finalize,
    /// job-dismiss.
    Dismiss,
    /// block-job-change.
    Change,
}

impl Status {
    /// The QAPI name.
    pub fn name(self) -> &'static str {
        match self {
            Status::Undefined => "undefined",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Ready => "ready",
            Status::Standby => "standby",
            Status::Waiting => "waiting",
            Status::Pending => "pending",
            Status::Aborting => "aborting",
            Status::Concluded => "concluded",
            Status::Null => "null",
        }
    }

    /// Whether the job's coroutine is over (`job_is_completed`).
    pub fn is_completed(self) -> bool {
        matches!(self, Status::Waiting | Status::Pending | Status::Aborting | Status::Concluded | Status::Null)
    }

    /// Whether a job may go from this state to `next`.
    pub fn may_become(self, next: Status) -> bool {
        use Status::*;
        let legal: &[Status] = match self {
            Undefined => &[Created],
            Created => &[Running, Aborting, Null],
            Running => &[Paused, Ready, Waiting, Aborting],
            Paused => &[Running],
            Ready => &[Standby, Waiting, Aborting],
            Standby => &[Ready],
            Waiting => &[Pending, Aborting],
            Pending => &[Aborting, Concluded],
            Aborting => &[Aborting, Concluded],
            Concluded => &[Null],
            Null => &[],
        };
        legal.contains(&next)
    }

    /// Whether a job in this state accepts `verb`.
    pub fn accepts(self, verb: Verb) -> bool {
        use Status::*;
        match verb {
            Verb::Cancel => matches!(self, Created | Running | Paused | Ready | Standby | Waiting | Pending),
            Verb::Pause | Verb::Resume | Verb::SetSpeed | Verb::Change => {
                matches!(self, Created | Running | Paused | Ready | Standby)
            }
            Verb::Complete => matches!(self, Ready | Standby),
            Verb::Finalize => self == Pending,
            Verb::Dismiss => self == Concluded,
        }
    }
}

impl Verb {
    /// The word in error messages.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::SetSpeed => "set-speed",
            Verb::Complete => "complete",
            Verb::Finalize => "finalize",
            Verb::Dismiss => "dismiss",
            Verb::Change => "change",
        }
    }
}
