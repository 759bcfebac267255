//! qemu-io, as the monitor's `human-monitor-command` runs it on a node.
//!
//! `table.rs` has the commands, `parse.rs` reads command lines with qemu-io's options and errors, `run.rs` does the
//! I/O and prints what qemu-io prints. QEMU's sources: `qemu-io-cmds.c` and `hmp_qemu_io` in `block/monitor/block-hmp-cmds.c`.

mod hmp;
mod numbers;
mod parse;
mod report;
mod run;
mod table;

pub use parse::{IoCommand, IoLine, parse};
pub use run::run_as_guest;
