//! What a scenario drives: the simulated QEMU, or a real one.
//!
//! The runner knows only this. Must never know of YAML or of the transcript: a backend gives replies and
//! events as they are, with image files under the names the scenario has for them
//! (`TEST_DIR/PID-NAME`), and the runner decides what is written.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::block::Printed;

use super::ast::{FaultSpec, ImageFormat, Workload};
use super::json::dumps;

/// Why a run can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunError {
    /// What kind of end it is.
    pub kind: RunErrorKind,
    /// The reason, for people.
    pub message: String,
}

/// The kinds of ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunErrorKind {
    /// The scenario asked for something that did not happen.
    Failed,
    /// Nothing could go on.
    Deadlock,
    /// The machine is gone, or the scenario does to it what it can't take (no machine was launched).
    Machine,
    /// An assertion of the simulated QEMU has failed.
    Aborted,
}

impl RunError {
    /// A run that failed for the reason `message`.
    pub fn failed(message: impl Into<String>) -> RunError {
        RunError { kind: RunErrorKind::Failed, message: message.into() }
    }

    /// A run that ended because of the machine, for the reason `message`.
    pub fn machine(message: impl Into<String>) -> RunError {
        RunError { kind: RunErrorKind::Machine, message: message.into() }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RunError {}

/// An image to be created outside the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// The file, `TEST_DIR/PID-NAME`.
    pub file: String,
    /// Its format.
    pub format: ImageFormat,
    /// Size of the disk in bytes; `None`: that of the backing file.
    pub size: Option<u64>,
    /// File and format of the image below.
    pub backing: Option<(String, ImageFormat)>,
    /// Cluster size in bytes; `None`: the format's default.
    pub cluster_size: Option<u64>,
    /// Further options, as behind `qemu-img create -o`.
    pub options: Map<String, Value>,
}

/// What a qemu-io command gave.
pub struct QemuIoReply {
    /// What qemu-io itself printed, with its newlines, the line with the rate included.
    pub output: Printed,
    /// The reply of `human-monitor-command`.
    pub reply: Value,
}

/// What qemu-img gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuImgOutput {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: i32,
}

/// A QMP event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its data; null if it has none.
    pub data: Rc<Value>,
}

/// What a workload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadSummary {
    /// Requests made.
    pub requests: u64,
    /// Requests that failed with an error.
    pub failed: u64,
    /// Bytes written, zeroes included.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// Reads that returned something else than the guest had written.
    pub mismatches: u64,
}

/// The step that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPosition<'a> {
    /// The line of the scenario it begins at.
    pub line: u32,
    /// The lines of the `use` steps that led to it, outermost first.
    pub via: &'a [u32],
    /// Its label.
    pub label: Option<&'a str>,
    /// The verb's key.
    pub verb: &'static str,
    /// The actor that does it; `None` outside `concurrently`.
    pub actor: Option<&'a str>,
}

/// The end of a run to whose question after the nodes this was the reply.
pub fn no_nodes(reply: &Value) -> RunError {
    RunError::failed(format!("query-named-block-nodes failed: {}", dumps(reply, None)))
}

/// The steps of one actor, on their way.
pub type Actor = Pin<Box<dyn Future<Output = Result<(), RunError>>>>;

/// A machine and its surroundings. A handle: clones mean the same machine.
///
/// All methods take `&self` and none is called before the futures of others have been dropped or are
/// pending in other actors. Futures stay on one thread.
#[allow(async_fn_in_trait)]
pub trait Backend: Clone + 'static {
    /// Creates an image, as `qemu-img create` does.
    async fn image(&self, spec: &ImageSpec) -> Result<(), RunError>;
    /// Starts a machine. Its events are counted from 0 again.
    async fn launch(&self) -> Result<(), RunError>;
    /// Ends the machine in order. The events up to its end stay readable until the next launch.
    async fn shutdown(&self) -> Result<(), RunError>;
    /// Drops the machine as SIGKILL does.
    async fn kill(&self) -> Result<(), RunError>;
    /// Sends a QMP command; the reply as on the wire, `{"return": …}` or `{"error": {"class", "desc"}}`.
    async fn execute(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError>;
    /// The bitmaps of every node that has any, by node, as query-named-block-nodes tells them.
    async fn bitmaps(&self) -> Result<Map<String, Value>, RunError> {
        // Flat: what lies below a node is not described again inside it; the bitmaps are the same.
        let flat = Map::from_iter([("flat".to_owned(), Value::Bool(true))]);
        let mut reply = self.execute("query-named-block-nodes", &flat).await?;
        let Some(Value::Array(nodes)) = reply.get_mut("return") else { return Err(no_nodes(&reply)) };
        let with_bitmaps = nodes.iter_mut().filter_map(|node| {
            let name = node.get("node-name")?.as_str()?.to_owned();
            Some((name, node.get_mut("dirty-bitmaps")?.take()))
        });
        Ok(with_bitmaps.collect())
    }
    /// Runs a qemu-io command at `node` through the human monitor.
    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError>;
    /// Runs qemu-img with `args`, outside the machine.
    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError>;
    /// The event number `index` since launch, or `None` while it has not come.
    fn event(&self, index: usize) -> Option<Event>;
    /// Waits until event number `index` has come (true) or `timeout_ns` nanoseconds have passed (false).
    async fn wait_event(&self, index: usize, timeout_ns: u64) -> Result<bool, RunError>;
    /// The time in nanoseconds, from any beginning.
    fn now(&self) -> u64;
    /// Lets `ns` nanoseconds pass.
    async fn sleep(&self, ns: u64) -> Result<(), RunError>;
    /// Adds a fault.
    async fn add_fault(&self, spec: &FaultSpec) -> Result<(), RunError>;
    /// Runs a seeded guest to its end.
    async fn workload(&self, spec: &Workload) -> Result<WorkloadSummary, RunError>;
    /// Runs the actors concurrently until all have ended; the first error ends the run.
    async fn concurrently(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError>;
    /// Is told what an actor (none: the scenario itself) does after what it does now, for the names of steps.
    fn announce(&self, actor: Option<&str>, next: impl FnOnce() -> String) {
        let _ = (actor, next);
    }
    /// Is told each step before it is done, for traces.
    fn set_position(&self, step: &StepPosition<'_>) {
        let _ = step;
    }
}
