//! Exploration: the schedule that loses data, found, shrunk and replayed.
//!
//! [`run`] makes one run and judges it by the reference models in [`model`]; [`strategy`] says who comes next;
//! [`search`] makes many runs; [`shrink`] makes a failing run small; [`report`] shows it and [`mod@file`] keeps it.
//! Nothing below knows of this layer: it listens to the trace and answers at choice points.

pub mod command;
pub mod exhaustive;
pub mod file;
pub mod model;
pub mod parallel;
pub mod report;
pub mod run;
pub mod schedule;
pub mod search;
pub mod shrink;
pub mod strategy;

pub use model::{Invariant, Violation};
pub use run::{RunReport, Setup};
pub use schedule::{Departure, StepName};
pub use search::{Failure, Plan, Tally};
pub use strategy::Kind;
