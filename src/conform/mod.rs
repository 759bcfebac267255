//! Conformance: the same scenario on a real QEMU and on the model, and the difference of the transcripts.

mod guard;
pub mod real;
mod real_run;

pub use real_run::{RealRun, run_real};
