//! Exploration: the schedule that loses data, found, shrunk and replayed.
//!
//! [`run`] makes one run and judges it by the reference models in [`model`]; [`strategy`] says who comes next;
//! [`search`] makes many runs, [`mod@memory`] spares it those whose end is known, [`auto`] makes runs of all kinds, [`parallel`] on several threads; [`tally`] counts, [`mod@result`] keeps and merges the
//! counts; [`known`] lists what it goes on past. [`shrink`] makes a failing run small, [`mod@explain`] finds the steps whose order decides, [`story`] tells
//! the run step by step, [`report`] shows it and [`mod@file`] keeps it.
//! Nothing below knows of this layer: it listens to the trace and answers at choice points.

pub mod auto;
pub mod command;
pub mod exhaustive;
pub mod explain;
pub mod file;
pub mod known;
pub mod memory;
pub mod model;
pub mod options;
pub mod parallel;
pub mod progress;
pub mod replaying;
pub mod report;
pub mod result;
pub mod run;
pub mod schedule;
pub mod search;
pub mod shrink;
pub mod story;
pub mod strategy;
pub mod tally;

pub use model::{Breach, Invariant, Violation};
pub use run::{RunReport, Setup};
pub use schedule::{Departure, StepName};
pub use search::Plan;
pub use strategy::Kind;
pub use tally::{Failure, Tally};
