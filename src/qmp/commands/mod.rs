//! The commands, by subject; each file names the QEMU source whose behaviour it has.

mod backup;
mod bitmaps;
mod blockdev;
mod exports;
mod jobs;
mod query;
mod reopen;
mod snapshot;
mod transaction;
mod vm;

pub(crate) use exports::Exports;
pub(crate) use vm::RunState;
