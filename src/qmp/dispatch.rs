//! The table of commands.
//!
//! A command that QEMU has and this machine has not is refused as not modelled; one that the reproduced
//! version does not have gets QEMU's own CommandNotFound.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::sim::TraceEvent;

use super::args::Args;
use super::error::{ErrorClass, QmpError, QmpResult};
use super::known;
use super::machine::Machine;

/// What is modelled, sorted.
pub const COMMANDS: &[&str] = &[
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-clear",
    "block-dirty-bitmap-disable",
    "block-dirty-bitmap-enable",
    "block-dirty-bitmap-merge",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-export-del",
    "block-job-cancel",
    "block-job-change",
    "block-job-complete",
    "block-job-dismiss",
    "block-job-finalize",
    "block-job-pause",
    "block-job-resume",
    "block-job-set-speed",
    "block_resize",
    "blockdev-add",
    "blockdev-backup",
    "blockdev-create",
    "blockdev-del",
    "blockdev-reopen",
    "blockdev-snapshot",
    "blockdev-snapshot-sync",
    "cont",
    "drive-backup",
    "human-monitor-command",
    "job-cancel",
    "job-complete",
    "job-dismiss",
    "job-finalize",
    "job-pause",
    "job-resume",
    "nbd-server-add",
    "nbd-server-remove",
    "nbd-server-start",
    "nbd-server-stop",
    "qmp_capabilities",
    "query-block",
    "query-block-exports",
    "query-block-jobs",
    "query-jobs",
    "query-name",
    "query-named-block-nodes",
    "query-status",
    "query-version",
    "quit",
    "stop",
    "transaction",
    "x-debug-block-dirty-bitmap-sha256",
];

/// Commands after which a bitmap may be there, gone, or different.
const CHANGES_BITMAPS: &[&str] = &[
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-clear",
    "block-dirty-bitmap-disable",
    "block-dirty-bitmap-enable",
    "block-dirty-bitmap-merge",
    "block-dirty-bitmap-remove",
    "block_resize",
    "blockdev-add",
    "blockdev-backup",
    "blockdev-del",
    "blockdev-reopen",
    "drive-backup",
    "transaction",
];

/// Commands about one job; each also exists with `block-` in front, or only so.
const JOB_COMMANDS: &[&str] =
    &["job-cancel", "job-dismiss", "job-finalize", "job-pause", "job-resume", "job-set-speed"];

impl Machine {
    /// Runs a command in the monitor's context.
    pub(super) async fn dispatch(self: &Rc<Self>, command: &str, arguments: &Rc<Map<String, Value>>) -> QmpResult {
        self.tell_job_command(command, arguments, None);
        let result = self.dispatch_one(command, arguments).await;
        self.tell_job_command(command, arguments, Some(result.is_ok()));
        self.send_notices();
        self.tell_bitmaps(command, arguments, result.is_ok());
        result
    }

    /// Tells the trace what a user asks of a job, before and after it is done.
    fn tell_job_command(&self, command: &str, arguments: &Map<String, Value>, succeeded: Option<bool>) {
        let word = command.strip_prefix("block-").unwrap_or(command);
        let Some(known) = JOB_COMMANDS.iter().find(|known| **known == word) else { return };
        let id = arguments.get("id").or_else(|| arguments.get("device")).and_then(Value::as_str);
        self.block.sim.emit(|| TraceEvent::JobCommand {
            command: known,
            id: id.unwrap_or_default().into(),
            speed: arguments.get("speed").and_then(Value::as_u64),
            succeeded,
        });
    }

    /// Tells the trace what bitmaps there are after a command that may have changed them.
    fn tell_bitmaps(&self, command: &str, arguments: &Rc<Map<String, Value>>, succeeded: bool) {
        let known = COMMANDS.iter().find(|name| **name == command);
        if let Some(command) = known.filter(|name| CHANGES_BITMAPS.contains(name)) {
            self.block.sim.emit(|| TraceEvent::Bitmaps {
                command,
                arguments: arguments.clone(),
                succeeded,
                list: self.block.dump_bitmaps(),
            });
        }
    }

    async fn dispatch_one(self: &Rc<Self>, command: &str, arguments: &Map<String, Value>) -> QmpResult {
        // Each on the heap: the frame of one must not be as large as that of the largest.
        match command {
            "blockdev-add" => Box::pin(self.blockdev_add(arguments)).await,
            "blockdev-del" => Box::pin(self.blockdev_del(arguments)).await,
            "blockdev-create" => self.blockdev_create(arguments),
            "blockdev-reopen" => Box::pin(self.blockdev_reopen(arguments)).await,
            "blockdev-snapshot" => Box::pin(self.single_snapshot(arguments, false)).await,
            "blockdev-snapshot-sync" => Box::pin(self.single_snapshot(arguments, true)).await,
            "block_resize" => Box::pin(self.block_resize(arguments)).await,
            "blockdev-backup" => Box::pin(self.single_backup(arguments, false)).await,
            "drive-backup" => Box::pin(self.single_backup(arguments, true)).await,
            "transaction" => Box::pin(self.transaction(arguments)).await,
            "block-job-change" if !self.block.quirks.since_9 => Err(not_found(command)),
            "block-dirty-bitmap-add"
            | "block-dirty-bitmap-remove"
            | "block-dirty-bitmap-clear"
            | "block-dirty-bitmap-enable"
            | "block-dirty-bitmap-disable"
            | "block-dirty-bitmap-merge"
            | "x-debug-block-dirty-bitmap-sha256" => Box::pin(self.bitmap_command(command, arguments)).await,
            "job-pause" | "job-resume" | "job-cancel" | "job-complete" | "job-finalize" | "job-dismiss" => {
                Box::pin(self.job_command(command, arguments)).await
            }
            "block-job-pause"
            | "block-job-resume"
            | "block-job-cancel"
            | "block-job-complete"
            | "block-job-finalize"
            | "block-job-dismiss"
            | "block-job-set-speed"
            | "block-job-change" => Box::pin(self.block_job_command(command, arguments)).await,
            "human-monitor-command" => Box::pin(self.human_monitor_command(arguments)).await,
            "nbd-server-start" | "nbd-server-stop" | "nbd-server-add" | "nbd-server-remove" | "block-export-add"
            | "block-export-del" => Box::pin(self.export_command(command, arguments)).await,
            _ => Box::pin(self.query(command, arguments)).await,
        }
    }

    /// Commands that only tell something, or almost.
    async fn query(self: &Rc<Self>, command: &str, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        match command {
            "query-named-block-nodes" => return self.query_named_block_nodes(&args).await,
            "qmp_capabilities" => return negotiate(&args),
            "query-jobs"
            | "query-block-jobs"
            | "query-block"
            | "query-block-exports"
            | "query-version"
            | "query-status"
            | "query-name"
            | "stop"
            | "cont"
            | "quit" => {}
            other if known::is_qmp(&self.block.quirks, other) => {
                return Err(format!("not modelled: command '{other}'; there are {}", COMMANDS.join(", ")).into());
            }
            other => return Err(not_found(other)),
        }
        args.finish()?;
        match command {
            "query-jobs" => self.query_jobs(),
            "query-block-jobs" => self.query_block_jobs(),
            "query-block" => self.query_block().await,
            "query-block-exports" => self.query_block_exports(),
            "query-version" => Ok(self.version()),
            "query-status" => Ok(self.query_status()),
            "stop" => self.stop().await,
            "cont" => Ok(self.cont()),
            "quit" => Ok(self.quit().await),
            _ => Ok(json!({})),
        }
    }

    /// quit: what a machine does when it is told to end (`qmp_quit` in `monitor/qmp-cmds.c`).
    async fn quit(self: &Rc<Self>) -> Value {
        self.quits.set(true);
        self.shutdown().await;
        json!({})
    }

    /// query-version (`monitor/qmp-cmds-control.c`); query-name has nothing to tell (`monitor/qmp-cmds.c`).
    fn version(&self) -> Value {
        let (major, minor, micro) = if self.block.quirks.since_9 { (10, 0, 2) } else { (7, 2, 22) };
        json!({"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "backsim"})
    }
}

/// qmp_capabilities, which was done when the machine was launched (`monitor/qmp-cmds-control.c`).
fn negotiate(args: &Args<'_>) -> QmpResult {
    for (item, name) in args.opt_list("enable")?.unwrap_or_default() {
        match item {
            Value::String(word) if word == "oob" => {}
            // QAPI has no name for what stands in a list.
            Value::String(word) => return Err(args.bad_value("null", word)),
            _ => return Err(format!("Invalid parameter type for '{name}', expected: string").into()),
        }
    }
    args.finish()?;
    let why = "Capabilities negotiation is already complete, command ignored";
    Err(QmpError::new(ErrorClass::CommandNotFound, why))
}

fn not_found(command: &str) -> QmpError {
    QmpError::new(ErrorClass::CommandNotFound, format!("The command {command} has not been found"))
}
