//! Conformance: the same scenario on a real QEMU and on the model, and the difference of their transcripts.
//!
//! [`real`] is the backend that is a real QEMU, [`Trial`] compares one scenario, [`search`] generates,
//! compares and shrinks. This is the one part of backsim that lives in real time, with processes and threads;
//! must never be used by what runs under the simulator.

mod chance;
mod command;
pub mod forced;
pub mod generate;
mod guard;
mod guests;
mod left;
mod orders;
pub mod real;
mod real_run;
pub mod search;
pub mod skip;
mod tools;
mod trial;
mod verdict;

pub use command::{ConformError, ConformOptions, GenerateOptions, Status, command};
pub use real_run::{RealRun, run_real};
pub use tools::{Qemu, QemuError, Version};
pub use trial::{CaseReport, Model, Repeat, Trial};
pub use verdict::{Difference, RealSide, Side, Verdict, compare};
