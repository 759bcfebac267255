//! backsim: a deterministic discrete-event simulator of QEMU's backup subsystem.
//!
//! # The map of the house
//!
//! A layer knows only what is below it; `tests/tidy.rs` checks that by machine. From the ground up:
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`errno`], [`quirks`], [`shard`], [`units`], [`cutils`] | the ground: error numbers, version differences, parts of work, sizes and durations, numbers as QEMU reads them |
//! | [`sim`] | executor in QEMU's event-loop order, virtual time, choices, wait queues, trace |
//! | [`store`] | bytes: sparse memory by runs, real files |
//! | [`bitmap`] | dirty bitmaps: granularity, successor, merge |
//! | [`block`] | node graph, requests, drain, drivers (file, null-co, raw, qcow2, blkdebug, copy-before-write, snapshot-access) |
//! | [`job`] | job life cycle, transactions, block-copy, backup, create |
//! | [`qmp`] | commands, events, errors; the machine that holds a graph and its jobs |
//! | [`img`] | qemu-img's side: create, info, check, map, compare, … on the simulated host |
//! | [`scenario`] | YAML, cases, steps, the runner and its transcript |
//! | [`workers`] | cases side by side, each on one thread, told in order |
//! | [`explore`], [`conform`], [`report`] | search through schedules; comparison with real QEMU; output for people and CI |
//! | [`cli`] | arguments, commands, exit status |

pub mod bitmap;
pub mod block;
pub mod cli;
pub mod conform;
pub mod cutils;
pub mod errno;
pub mod explore;
pub mod img;
pub mod job;
pub mod qmp;
pub mod quirks;
pub mod report;
pub mod scenario;
pub mod shard;
pub mod sim;
pub mod store;
pub mod units;
pub mod workers;
