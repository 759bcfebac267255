//! The machine: one QEMU process with its graph, its jobs and its monitor.
//!
//! A client gives it commands; the monitor runs one at a time in the event loop's monitor context and
//! answers in the next dispatch of that context, as QEMU does since 7.2.9. What a command does is in
//! `commands/`.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::{Backend, Block, BlockConfig, FileLocks, Timing};
use crate::job::Jobs;
use crate::quirks::Quirks;
use crate::sim::shared::{Cell, Ref, RefCell};
use crate::sim::{LocalFuture, Sim, TraceEvent, WaitQueue};
use crate::store::Host;

use super::error::QmpError;
use super::events::QmpEvent;

/// What a machine is started with.
pub struct MachineConfig {
    /// The kernel.
    pub sim: Sim,
    /// Which QEMU.
    pub quirks: Quirks,
    /// The host's files.
    pub host: Rc<Host>,
    /// Locks on them.
    pub locks: Rc<FileLocks>,
    /// Device costs.
    pub timing: Timing,
    /// Seeds generated names.
    pub seed: u64,
    /// Names the process among those of the host.
    pub process: u32,
}

/// A QEMU process.
pub struct Machine {
    /// Its block layer.
    pub block: Rc<Block>,
    /// Its jobs.
    pub jobs: Rc<Jobs>,
    /// Everything that the monitor has sent, oldest first.
    events: Rc<RefCell<Vec<QmpEvent>>>,
    event_waiters: Rc<WaitQueue>,
    pub(super) exports: RefCell<super::commands::Exports>,
    /// Backends of guest disks, by the name that the scenario uses.
    pub(super) guests: RefCell<BTreeMap<String, Rc<Backend>>>,
    /// Whether the guest runs.
    pub(super) run_state: Cell<super::commands::RunState>,
    /// Set by `quit`.
    pub(super) quits: Cell<bool>,
}

impl Machine {
    /// Starts a machine without devices.
    pub fn launch(config: MachineConfig) -> Rc<Machine> {
        let sim = config.sim.clone();
        let block = Block::new(BlockConfig {
            sim: config.sim,
            quirks: config.quirks,
            host: config.host,
            locks: config.locks,
            timing: config.timing,
            seed: config.seed,
            program: "qemu-system-x86_64",
            process: config.process,
        });
        let jobs = Jobs::new(block.clone());
        let events: Rc<RefCell<Vec<QmpEvent>>> = Rc::default();
        let event_waiters: Rc<WaitQueue> = Rc::default();
        let (sink, waiters, below) = (events.clone(), event_waiters.clone(), block.clone());
        jobs.set_sink(move |event| {
            // What the block layer has met on the job's behalf comes before what the job makes of it.
            send_notices(&below, &sink, &waiters);
            let event = QmpEvent::of_job(event, sim.now());
            send(&sim, &sink, &waiters, event);
        });
        Rc::new(Machine {
            block,
            jobs,
            events,
            event_waiters,
            exports: RefCell::default(),
            guests: RefCell::default(),
            run_state: Cell::default(),
            quits: Cell::new(false),
        })
    }

    /// The events so far, oldest first.
    pub fn events(&self) -> Ref<'_, Vec<QmpEvent>> {
        self.events.borrow()
    }

    /// Woken at each event.
    pub fn event_waiters(&self) -> &WaitQueue {
        &self.event_waiters
    }

    pub(super) fn send_event(&self, name: &'static str, data: Value) {
        let sim = &self.block.sim;
        send(sim, &self.events, &self.event_waiters, QmpEvent::new(name, data, sim.now()));
    }

    /// Sends what the block layer has noticed meanwhile.
    pub(super) fn send_notices(&self) {
        send_notices(&self.block, &self.events, &self.event_waiters);
    }

    /// A client's command: handed to the monitor, its reply awaited. The reply is as on the wire.
    pub async fn execute(self: &Rc<Self>, command: &str, arguments: &Map<String, Value>) -> Value {
        let (machine, command, arguments) = (self.clone(), command.to_owned(), Rc::new(arguments.clone()));
        let handler = Box::pin(async move { machine.dispatch(&command, &arguments).await });
        match self.in_monitor(handler).await {
            Some(Ok(value)) => Value::Object(Map::from_iter([("return".to_owned(), value)])),
            Some(Err(error)) => error.to_value(),
            None => QmpError::from("the machine is gone").to_value(),
        }
    }

    /// Runs a handler in the monitor's context and gives its result to the calling actor one dispatch
    /// later; none if the machine died meanwhile.
    pub async fn in_monitor<T: 'static>(&self, handler: LocalFuture<T>) -> Option<T> {
        let sim = self.block.sim.clone();
        let me = sim.current()?;
        let slot: Rc<Cell<Option<T>>> = Rc::new(Cell::new(None));
        let (result, in_frame) = (slot.clone(), sim.clone());
        sim.monitor_frame("monitor", async move {
            let value = handler.await;
            let sim = in_frame.clone();
            in_frame.monitor(move || {
                result.set(Some(value));
                sim.wake(me);
            });
        });
        sim.park("a reply from the monitor").await;
        slot.take()
    }

    /// Whether `quit` has ended it.
    pub fn has_quit(&self) -> bool {
        self.quits.get()
    }

    /// Ends the machine in order: jobs cancelled, nodes closed, bitmaps stored (`qemu_cleanup`).
    pub async fn shutdown(self: &Rc<Self>) {
        self.send_event("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
        self.cleanup().await;
    }

    async fn cleanup(self: &Rc<Self>) {
        self.drop_all_exports().await;
        self.drop_guests().await;
        // Jobs are cancelled drained, so that none sleeps for the sake of its speed.
        if self.block.quirks.quit_stops_first {
            self.stop_disks().await;
            self.block.drain_all_begin().await;
        } else {
            self.block.drain_all_begin().await;
            self.stop_disks().await;
        }
        // Cancelling concludes a job, cancelling a concluded one dismisses it.
        while let Some(job) = self.jobs.all().first() {
            job.cancel_sync().await;
        }
        self.block.drain_all_end();
        self.block.close_all().await;
        self.block.sim.emit(|| TraceEvent::ShutDown);
        self.jobs.clear();
    }

    /// The process has died: nothing is flushed, nothing stored.
    pub fn kill(&self) {
        self.block.sim.emit(|| TraceEvent::Killed);
        self.block.sim.kill();
        self.jobs.clear();
        self.block.abandon();
    }
}

fn send_notices(block: &Block, events: &RefCell<Vec<QmpEvent>>, waiters: &WaitQueue) {
    let notices = std::mem::take(&mut *block.notices.borrow_mut());
    for notice in notices {
        send(&block.sim, events, waiters, QmpEvent::of_notice(notice, block.sim.now()));
    }
}

/// A job that ignores an error of the same request for ever says so each time, and no clock need go on meanwhile.
const MOST_EVENTS: usize = 1_000_000;

fn send(sim: &Sim, events: &RefCell<Vec<QmpEvent>>, waiters: &WaitQueue, event: QmpEvent) {
    sim.emit(|| TraceEvent::QmpEvent { name: event.name });
    events.borrow_mut().push(event);
    if events.borrow().len() > MOST_EVENTS {
        sim.give_up();
    }
    waiters.wake_all(sim);
}
