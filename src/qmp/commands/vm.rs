//! stop, cont and query-status: whether the guest's processors run (`softmmu/cpus.c`, later `system/cpus.c`).
//!
//! No guest is simulated here; what matters is that stopping drains and flushes all disks. The machine is started
//! as with `-S`.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::qmp::error::QmpResult;
use crate::qmp::machine::Machine;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Not yet.
    #[default]
    Prelaunch,
    /// It does.
    Running,
    /// Not any more.
    Paused,
}

impl Machine {
    /// query-status (`qmp_query_status` in `softmmu/runstate.c`).
    pub(in crate::qmp) fn query_status(&self) -> Value {
        let state = self.run_state.get();
        let word = match state {
            RunState::Prelaunch => "prelaunch",
            RunState::Running => "running",
            RunState::Paused => "paused",
        };
        let mut status = json!({"running": state == RunState::Running, "status": word});
        if !self.block.quirks.since_9 {
            status["singlestep"] = false.into();
        }
        status
    }

    /// stop (`vm_stop` in `softmmu/cpus.c`); a machine that does not run flushes too.
    pub(in crate::qmp) async fn stop(self: &Rc<Self>) -> QmpResult {
        if self.run_state.get() == RunState::Running {
            self.run_state.set(RunState::Paused);
            self.send_event("STOP", Value::Null);
        }
        self.stop_disks().await;
        Ok(json!({}))
    }

    /// Drains and flushes all disks; nobody is told of a failure (`do_vm_stop` in `softmmu/cpus.c`).
    pub(in crate::qmp) async fn stop_disks(&self) {
        self.block.drain_all().await;
        self.block.flush_all().await;
    }

    /// cont (`qmp_cont` in `monitor/qmp-cmds.c`): forgets that jobs have met errors.
    pub(in crate::qmp) fn cont(&self) -> Value {
        for job in self.jobs.all() {
            job.reset_io_status();
        }
        if self.run_state.replace(RunState::Running) != RunState::Running {
            self.send_event("RESUME", Value::Null);
        }
        json!({})
    }
}
