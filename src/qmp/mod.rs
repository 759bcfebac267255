//! QMP: commands, replies, events; the machine that holds a graph and its jobs.
//!
//! `machine.rs` is the process, `dispatch.rs` the table of commands, `commands/` the commands by subject,
//! `args.rs` reads arguments as QAPI does, `events.rs` turns what jobs tell into events, `qemu_io/` is the
//! qemu-io behind human-monitor-command. Nothing here knows scenarios.

mod args;
mod commands;
mod dispatch;
mod error;
mod events;
mod guest;
mod known;
mod machine;
pub mod qemu_io;

pub use dispatch::COMMANDS;
pub use error::{ErrorClass, QmpError, QmpResult};
pub use events::QmpEvent;
pub use machine::{Machine, MachineConfig};
