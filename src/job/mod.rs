//! Jobs: life cycle, transactions of jobs, the backup and create jobs.
//!
//! `state.rs` has the tables, `job.rs` the job and its commands, `finish.rs` how it ends (alone or with its
//! transaction), `backup/` the backup job, `create.rs` blockdev-create. Jobs report what they do as
//! [`JobEvent`]s; how those look on the wire is the QMP layer's business.

pub mod backup;
mod create;
mod finish;
#[allow(clippy::module_inception, reason = "the job itself is what this room is named after")]
mod job;
mod state;

pub use create::{CreateOptions, create_image, start_create};
pub use finish::JobTxn;
pub use job::{ErrorAction, IoStatus, Job, JobConfig, JobEvent, JobKind, Jobs, OnError};
pub use state::{Status, Verb};
