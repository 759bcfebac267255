//! qemu-img in the simulated host: what an author of scenarios does with images outside the machine.
//!
//! A run is a process of its own: a fresh block layer on the same host's files and locks, whose main-loop code runs in
//! the event loop like any other. `process.rs` is that process, `args.rs`, `size.rs`, `options.rs` and `json.rs` read and write text
//! as qemu-img does; every other file is one subcommand. QEMU's source: `qemu-img.c`, `block/qapi.c`.
//!
//! Must never touch a file but through the block layer, never look at the machine, and never pass
//! over in silence what is not modelled.

mod args;
mod bitmap;
mod check;
mod compare;
mod convert;
mod convert_copy;
mod create;
mod dispatch;
mod info;
mod info_text;
mod json;
mod map;
mod options;
mod process;
mod rebase;
mod rebase_copy;
mod resize;
mod size;

use std::rc::Rc;

use serde_json::{Map, Value};

use crate::block::FileLocks;
use crate::quirks::Quirks;
use crate::sim::shared::Cell;
use crate::sim::{LocalFuture, Sim};
use crate::store::Host;

use process::Process;

/// Processes of qemu-img are numbered from here, so that none shares its locks with a machine.
const FIRST_PROCESS: u32 = 1 << 20;

/// Where qemu-img runs.
pub struct ImgEnv {
    /// The kernel.
    pub sim: Sim,
    /// Whose qemu-img.
    pub quirks: Quirks,
    /// The host's files.
    pub host: Rc<Host>,
    /// Locks that processes hold on them.
    pub locks: Rc<FileLocks>,
    /// Seeds generated node names.
    pub seed: u64,
    runs: Cell<u32>,
}

impl ImgEnv {
    /// A place to run in; `seed` seeds generated node names.
    pub fn new(sim: Sim, quirks: Quirks, host: Rc<Host>, locks: Rc<FileLocks>, seed: u64) -> ImgEnv {
        ImgEnv { sim, quirks, host, locks, seed, runs: Cell::new(0) }
    }

    /// A number that no other process of the host has.
    fn next_process(&self) -> u32 {
        let run = self.runs.get();
        self.runs.set(run.wrapping_add(1));
        FIRST_PROCESS.wrapping_add(run)
    }
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImgOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: i32,
    /// What an assertion of QEMU has found, if one has failed; the rest does not count then.
    pub aborted: Option<&'static str>,
}

/// An image that a scenario wants, as behind `qemu-img create -q`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewImage {
    /// The file's name.
    pub file: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Virtual size, bytes; none: that of the backing file.
    pub size: Option<u64>,
    /// Name and format of the backing file.
    pub backing: Option<(String, String)>,
    /// Bytes of a cluster; none: the format's default.
    pub cluster_size: Option<u64>,
    /// Further creation options, as behind `-o`.
    pub options: Map<String, Value>,
}

/// Runs `qemu-img args…` to its end for the calling actor; `args` begin with the subcommand.
pub async fn run(env: &ImgEnv, args: &[String]) -> ImgOutput {
    let process = Rc::new(Process::new(env));
    let (inner, args) = (process.clone(), args.to_vec());
    let status = in_main_loop(&env.sim, Box::pin(async move { dispatch::dispatch(&inner, &args).await })).await;
    process.end(status)
}

/// Creates an image for a scenario's `image:`; the error is what qemu-img would print.
pub async fn create_for_scenario(env: &ImgEnv, image: &NewImage) -> Result<(), String> {
    let mut args = vec!["create".to_owned(), "-q".to_owned(), "-f".to_owned(), image.format.clone()];
    let mut options = Vec::new();
    if let Some(bytes) = image.cluster_size {
        options.push(format!("cluster_size={bytes}"));
    }
    for (key, value) in &image.options {
        let value = match value {
            Value::String(text) => text.replace(',', ",,"),
            Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
            other => other.to_string(),
        };
        options.push(format!("{}={value}", key.replace('-', "_")));
    }
    if !options.is_empty() {
        args.extend(["-o".to_owned(), options.join(",")]);
    }
    if let Some((file, format)) = &image.backing {
        args.extend(["-b", file, "-F", format].map(str::to_owned));
    }
    args.extend(["--".to_owned(), image.file.clone()]);
    args.extend(image.size.map(|bytes| bytes.to_string()));
    let output = run(env, &args).await;
    match output.status {
        0 => Ok(()),
        _ => Err(output.stderr.trim_end().to_owned()),
    }
}

/// Runs main-loop code for an actor, which waits; none if the machine that drives the event loop was
/// killed meanwhile.
async fn in_main_loop<T: 'static>(sim: &Sim, work: LocalFuture<T>) -> Option<T> {
    let me = sim.current()?;
    let slot: Rc<Cell<Option<T>>> = Rc::new(Cell::new(None));
    let (result, waker) = (slot.clone(), sim.clone());
    sim.monitor_frame("qemu-img", async move {
        result.set(Some(work.await));
        waker.wake(me);
    });
    sim.park("the end of qemu-img").await;
    slot.take()
}
