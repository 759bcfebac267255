//! The block layer: nodes, edges, requests, drivers.
//!
//! `graph.rs` holds nodes and edges, `open.rs`, `open_blkdebug.rs`, `open_failed.rs`, `reopen.rs` and `close.rs` make, change and end them, `permissions.rs`
//! and `drain.rs` guard changes; `filename.rs` says what they are called, `qdict.rs` in which order QEMU tells options; `io.rs`, `io_zero.rs`, `zero_row.rs`, `flush.rs`, `copy_range.rs`, `status.rs`, `truncate.rs` are the generic request path;
//! `file.rs`, `null.rs`, `raw.rs`, `blkdebug.rs`, `cbw.rs`, `qcow2/` are drivers, `block_copy/` the copying machinery
//! that copy-before-write and backup share. Nothing here knows jobs beyond [`JobParent`], or QMP.

mod backend;
mod blkdebug;
mod blkdebug_event;
pub mod block_copy;
mod cbw;
mod close;
mod copy_range;
mod drain;
mod faults;
mod file;
mod filename;
mod flags;
mod flush;
mod graph;
mod io;
mod io_zero;
mod json_filename;
mod length;
mod node;
mod null;
pub mod open;
mod open_blkdebug;
mod open_failed;
mod permissions;
mod printed;
pub mod qcow2;
pub mod qdict;
mod raw;
mod reopen;
mod status;
mod timing;
mod track;
mod truncate;
mod witness;
mod zero_row;

pub use backend::{Backend, REQUEST_MAX_BYTES};
pub use blkdebug::{Blkdebug, InjectError, IoType, SetState};
pub use blkdebug_event::BlkdebugEvent;
pub use cbw::{CbwOptions, CopyBeforeWrite, OnCbwError};
pub use faults::Fault;
pub use file::{FileLocks, set_file_length};
pub use flags::{BlockStatus, Perm, ReqFlags, StatusFlags};
pub use graph::{Block, BlockConfig, Notice, is_well_formed_id};
pub use io::BoxFuture;
pub use node::{DetectZeroes, Driver, Edge, Given, JobParent, Node, NodeId, NodeOptions, Parent, Role};
pub use null::NullDriver;
pub use printed::Printed;
pub use raw::{RawDriver, Window};
pub use status::ChainStatus;
pub use timing::{Cost, Costs, Operation, Timing};
pub use truncate::Preallocation;
use truncate::check_length;
