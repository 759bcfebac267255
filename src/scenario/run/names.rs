//! What steps are called by those who schedule them: short, and the same as long as the step is.
//!
//! A name tells what an actor does, never where in the file it stands: stored schedules must survive lines that
//! come and go.

use serde_json::{Map, Value};

use crate::scenario::ast::{Execute, Step, Verb};

/// What a step does, in a few words.
pub(super) fn step(step: &Step) -> String {
    match &*step.verb {
        Verb::Execute(execute) => command(execute),
        Verb::QemuIo(io) => {
            let first = io.command.iter().chain(io.commands.iter().flatten()).next();
            first.map_or_else(|| "qemu-io".to_owned(), |first| first.0.clone())
        }
        Verb::WaitEvent(_) | Verb::RunJob(_) => waiting(step),
        Verb::Fault(fault) => format!("fault: {} of {} fails", fault.fault.on.word(), &*fault.fault.node),
        Verb::Vm(vm) => format!("vm: {}", vm.vm.word()),
        Verb::ExpectBitmap(expect) => format!("expect-bitmap {}", expect.name.as_deref().unwrap_or("(anonymous)")),
        Verb::Image(image) => format!("image {}", &*image.image),
        Verb::Workload(workload) => format!("workload {}", &*workload.workload),
        other => other.key().to_owned(),
    }
}

/// What an actor does that waits for events: looks whether the right one has come.
pub(super) fn waiting(step: &Step) -> String {
    match &*step.verb {
        Verb::WaitEvent(wait) => format!("wait-event {}", &*wait.wait_event),
        Verb::RunJob(job) => format!("run-job {}", &*job.run_job),
        other => other.key().to_owned(),
    }
}

/// What an actor does that has nothing left to do.
pub(super) fn end() -> String {
    "end".to_owned()
}

/// A QMP command with whom it is about.
fn command(execute: &Execute) -> String {
    let subject = |arguments: &Map<String, Value>| {
        let keys = ["job-id", "id", "name", "node-name", "node", "device"];
        keys.into_iter().find_map(|key| arguments.get(key)?.as_str().map(str::to_owned))
    };
    match subject(&execute.arguments) {
        Some(subject) => format!("{} {subject}", &*execute.execute),
        None => execute.execute.0.clone(),
    }
}
