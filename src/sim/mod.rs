//! The kernel: one thread, virtual time, and every scheduling decision in one place.
//!
//! A QEMU coroutine is an `async` task here, a bottom half is a closure or a *frame* (an `async`
//! block that stands for main-loop code and may poll), and everything that comes from outside QEMU
//! (a device completion, an expired timer, a client) is an *arrival*. [`Sim`] runs them in the order
//! of QEMU's event loop; where that order depends on the outside it asks [`Choices`].
//!
//! No other module may decide who runs next, look at a clock, or draw a random number of its own.

pub mod access;
mod arrivals;
mod choices;
mod choose;
mod executor;
mod outside;
mod poll;
pub mod rng;
pub mod shared;
mod sync;
#[cfg(test)]
mod tests;
pub mod trace;

pub use choices::{ABANDON, Alternative, ChoicePoint, Choices, Footprint, Names, Queues, Recorded, Strategy};
pub use executor::{LocalFuture, Running, Sim, Stuck, TaskId, TaskKind};
pub use outside::Sleeper;
pub use poll::PollUntil;
pub use sync::{CoMutex, CoMutexGuard, Countdown, WaitQueue};
pub use trace::{BackupCreated, BitmapDump, DiskPlace, Layer, Runs, Trace, TraceEvent};

/// Virtual time in nanoseconds since the start of the run.
pub type Nanos = u64;
