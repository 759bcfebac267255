//! The simulated QEMU as a backend, and running a case on it.
//!
//! [`simulate`] puts kernel, host and machine together for one case and drives them with the same runner that
//! drives a real QEMU. A run is a pure function of case, options and recorded choices; nothing here may look
//! at a clock or at the environment.

use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::{Cost, Costs, Fault, FileLocks, Operation, Timing};
use crate::img::{ImgEnv, NewImage};
use crate::qmp::{Machine, MachineConfig};
use crate::quirks::{Compat, Quirks};
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{Choices, Countdown, Recorded, Running, Sim, Stuck, TraceEvent};
use crate::store::Host;

use super::ast::{FaultSpec, ImageFormat, Workload};
use super::backend::{
    Actor, Backend, Event, ImageSpec, QemuImgOutput, QemuIoReply, RunError, RunErrorKind, StepPosition,
    WorkloadSummary, no_nodes,
};
use super::run::{CaseOutcome, Ending, Recorder, run_recorded};
use super::{Case, ast, values};

/// Is given the kernel of a run before anything runs.
pub type Observer = Box<dyn FnOnce(&Sim)>;

/// What a run is made with, beside the case.
pub struct SimOptions {
    /// Whose behaviour; none: the case's.
    pub compat: Option<Compat>,
    /// The seed; none: the case's.
    pub seed: Option<u64>,
    /// Where images live; none: in memory.
    pub directory: Option<PathBuf>,
    /// Who decides; none: QEMU's own order.
    pub choices: Choices,
    /// The run ends after this many steps of the event loop; none: the kernel's own limit.
    pub step_limit: Option<u64>,
    /// Is given the kernel before anything runs, to subscribe to its trace.
    pub observe: Option<Observer>,
    /// Defects beside the case's.
    pub defects: Vec<String>,
    /// Is given the machine that is left at the end, if one is, before it is dropped. What it awaits runs in
    /// QEMU's own order.
    pub inspect: Option<Inspect>,
    /// Is shown the files of the host when no machine runs any more.
    pub inspect_files: Option<InspectFiles>,
}

/// A last look at the files of the host.
pub type InspectFiles = Box<dyn FnOnce(&Host)>;

/// A last look at a machine.
pub type Inspect = Box<dyn FnOnce(Rc<Machine>) -> std::pin::Pin<Box<dyn Future<Output = ()>>>>;

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions {
            compat: None,
            seed: None,
            directory: None,
            choices: Choices::qemu(),
            step_limit: None,
            observe: None,
            defects: Vec::new(),
            inspect: None,
            inspect_files: None,
        }
    }
}

/// What a simulated run gave.
pub struct SimRun {
    /// Transcript and ending.
    pub outcome: CaseOutcome,
    /// The decisions that were taken.
    pub choices: Vec<Recorded>,
    /// Virtual time at the end, ns.
    pub time: u64,
    /// Steps of the event loop.
    pub steps: u64,
    /// What the machines wrote to their standard error.
    pub stderr: String,
}

/// Each run of a search would leave its machine behind.
fn take_down(sim: Sim, backend: SimBackend, run: Running<CaseOutcome>) {
    sim.drop_everything();
    let host = Rc::downgrade(&backend.0.host);
    drop((run, backend));
    debug_assert_eq!(host.strong_count(), 0, "nothing of a run keeps the rest of it alive");
}

/// Runs a case on the simulated QEMU. An error means that the storage directory can't be used.
pub fn simulate(case: &Case, options: SimOptions) -> Result<SimRun, String> {
    let mut simulation = Simulation::begin(case, options)?;
    while simulation.step() {}
    Ok(simulation.finish())
}

/// A run of a case that is taken step by step.
pub struct Simulation {
    sim: Sim,
    backend: SimBackend,
    recorder: Recorder,
    /// The line of the case.
    line: u32,
    run: Running<CaseOutcome>,
    ended: Option<Result<CaseOutcome, Stuck>>,
    inspect: Option<Inspect>,
    inspect_files: Option<InspectFiles>,
}

impl Simulation {
    /// Puts everything together; nothing has run yet. An error means that the storage directory can't be used.
    pub fn begin(case: &Case, options: SimOptions) -> Result<Simulation, String> {
        let compat = options.compat.unwrap_or(case.settings.compat.0);
        let seed = options.seed.unwrap_or(case.settings.seed);
        let names = case.settings.defects.iter().map(|name| name.0).chain(options.defects.iter().map(String::as_str));
        let quirks = Quirks::with_defects(compat, names)?;
        let host = match &options.directory {
            None => Host::memory(),
            Some(directory) => Host::in_dir(directory.clone()),
        };
        let sim = Sim::new(options.choices);
        if let Some(limit) = options.step_limit {
            sim.set_step_limit(limit);
        }
        if let Some(observe) = options.observe {
            observe(&sim);
        }
        let (host, locks): (Rc<Host>, Rc<FileLocks>) = (Rc::new(host), Rc::default());
        let backend = SimBackend(Rc::new(Shared {
            img: ImgEnv::new(sim.clone(), quirks, host.clone(), locks.clone(), seed),
            sim: sim.clone(),
            host,
            locks,
            quirks,
            seed,
            timing: case.settings.timing.clone(),
            machine: RefCell::default(),
            dead: RefCell::default(),
            processes: Cell::new(0),
            stderr: RefCell::default(),
            concurrent: Cell::new(0),
        }));
        let recorder = Recorder::default();
        let (driven, case_of_run, recorded) = (backend.clone(), case.clone(), recorder.clone());
        let run = sim.begin("scenario", async move { run_recorded(&driven, &case_of_run, &recorded).await });
        let (inspect, inspect_files) = (options.inspect, options.inspect_files);
        Ok(Simulation { sim, backend, recorder, line: case.line, run, ended: None, inspect, inspect_files })
    }

    /// Executes one event of the loop; false when the run has come to its end.
    pub fn step(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.run.step();
        }
        self.ended.is_none()
    }

    /// What an assertion of QEMU has found wrong, if one has failed in the last machine.
    pub fn aborted(&self) -> Option<String> {
        let Shared { machine, dead, .. } = &*self.backend.0;
        let machine = machine.borrow().clone().or_else(|| dead.borrow().clone())?;
        machine.block.aborted().map(|why| aborted("", why).to_string())
    }

    /// Looks at what is left, as the options ask for, and takes everything down. A run that had not come to its end
    /// counts as one that goes on for ever.
    pub fn finish(self) -> SimRun {
        let Simulation { sim, backend, recorder, line, run: scenario, ended, inspect, inspect_files } = self;
        let ended = ended.unwrap_or_else(|| Err(Stuck::StepLimit(sim.steps(), sim.waiting())));
        let is_stuck = ended.is_err();
        let outcome = ended.unwrap_or_else(|stuck| stuck_outcome(line, &recorder, &stuck));
        let choices = sim.with_choices(std::mem::take).into_recorded();
        let left = backend.0.machine.borrow().clone().filter(|_| !is_stuck);
        if let (Some(inspect), Some(machine)) = (inspect, left) {
            // Whatever still happens has no say in how the run ended.
            let _ = sim.run("inspection", inspect(machine));
        }
        backend.drop_machine();
        if let Some(inspect) = inspect_files {
            inspect(&backend.0.host);
        }
        let run = SimRun { outcome, choices, time: sim.now(), steps: sim.steps(), stderr: backend.0.stderr.take() };
        take_down(sim, backend, scenario);
        run
    }

    /// Takes everything down, wherever the run is.
    pub fn abandon(self) {
        self.backend.drop_machine();
        take_down(self.sim, self.backend, self.run);
    }
}

fn stuck_outcome(line: u32, recorder: &Recorder, stuck: &Stuck) -> CaseOutcome {
    let kind = match stuck {
        Stuck::Deadlock(_) => RunErrorKind::Deadlock,
        Stuck::StepLimit(..) => RunErrorKind::Failed,
    };
    CaseOutcome { transcript: recorder.transcript(), ending: Ending::Failed { line, kind, why: stuck.to_string() } }
}

struct Shared {
    img: ImgEnv,
    sim: Sim,
    host: Rc<Host>,
    locks: Rc<FileLocks>,
    quirks: Quirks,
    seed: u64,
    timing: values::Timing,
    machine: RefCell<Option<Rc<Machine>>>,
    /// The last machine, whose events stay readable until the next launch.
    dead: RefCell<Option<Rc<Machine>>>,
    processes: Cell<u32>,
    stderr: RefCell<String>,
    /// `concurrently` steps under way.
    concurrent: Cell<u32>,
}

/// The simulated QEMU with its host.
#[derive(Clone)]
pub struct SimBackend(Rc<Shared>);

impl SimBackend {
    fn machine(&self) -> Result<Rc<Machine>, RunError> {
        self.check_alive()?;
        let machine = self.launched()?;
        match machine.has_quit() {
            true => Err(RunError::machine("QEMU ended by itself: exit status 0")),
            false => Ok(machine),
        }
    }

    /// Buries a machine that an assertion has ended. What it may have answered after that does not count.
    fn check_alive(&self) -> Result<(), RunError> {
        let machine = self.0.machine.borrow().clone();
        let Some((machine, why)) = machine.and_then(|machine| Some((machine.clone(), machine.block.aborted()?))) else {
            return Ok(());
        };
        machine.kill();
        self.retire();
        Err(aborted("", why))
    }

    /// The machine that was launched, even if it has been told to quit.
    fn launched(&self) -> Result<Rc<Machine>, RunError> {
        let machine = self.0.machine.borrow().clone();
        machine.ok_or_else(|| RunError::machine("no machine is running; `vm: launch` starts one"))
    }

    fn new_process(&self) -> u32 {
        self.0.processes.set(self.0.processes.get() + 1);
        self.0.processes.get()
    }

    fn block_timing(&self) -> Timing {
        let costs = |given: &values::Costs| {
            let or_default = |own: Option<values::Cost>, general: Option<values::Cost>| {
                let cost = own.or(general).unwrap_or_default();
                Cost { min: cost.min, max: cost.max }
            };
            let general = &self.0.timing.default;
            Costs {
                read: or_default(given.read, general.read),
                write: or_default(given.write, general.write),
                flush: or_default(given.flush, general.flush),
                discard: or_default(given.discard, general.discard),
            }
        };
        let nodes = self.0.timing.nodes.iter().map(|(name, own)| (name.clone(), costs(own))).collect();
        Timing::new(costs(&self.0.timing.default), nodes, self.0.seed)
    }

    /// Retires the machine, whose end has been dealt with.
    fn retire(&self) {
        let machine = self.0.machine.borrow_mut().take();
        if let Some(machine) = machine {
            self.0.stderr.borrow_mut().push_str(&machine.block.stderr.borrow());
            *self.0.dead.borrow_mut() = Some(machine);
        }
    }

    fn drop_machine(&self) {
        let machine = self.0.machine.borrow().clone();
        if let Some(machine) = machine.filter(|machine| !machine.has_quit()) {
            machine.kill();
        }
        self.retire();
        self.0.dead.borrow_mut().take();
    }

    fn watched(&self) -> Option<Rc<Machine>> {
        self.0.machine.borrow().clone().or_else(|| self.0.dead.borrow().clone())
    }
}

/// The end of a run in which an assertion of QEMU fails; `program` names qemu-img and what it was to do.
fn aborted(program: &str, why: &str) -> RunError {
    let message = format!("QEMU ended by itself: {program}signal 6 (SIGABRT, as after a failed assertion): {why}");
    RunError { kind: RunErrorKind::Aborted, message }
}

impl Backend for SimBackend {
    async fn image(&self, spec: &ImageSpec) -> Result<(), RunError> {
        crate::img::create_for_scenario(&self.0.img, &img_spec(spec)).await.map_err(RunError::failed)
    }

    async fn launch(&self) -> Result<(), RunError> {
        if self.0.machine.borrow().is_some() {
            return Err(RunError::machine("a machine is running already"));
        }
        self.0.dead.borrow_mut().take();
        let machine = Machine::launch(MachineConfig {
            sim: self.0.sim.clone(),
            quirks: self.0.quirks,
            host: self.0.host.clone(),
            locks: self.0.locks.clone(),
            timing: self.block_timing(),
            seed: self.0.seed,
            process: self.new_process(),
        });
        *self.0.machine.borrow_mut() = Some(machine);
        Ok(())
    }

    async fn shutdown(&self) -> Result<(), RunError> {
        let machine = self.launched()?;
        if !machine.has_quit() {
            let ending = machine.clone();
            machine.in_monitor(Box::pin(async move { ending.shutdown().await })).await;
        }
        self.check_alive()?;
        self.retire();
        Ok(())
    }

    async fn kill(&self) -> Result<(), RunError> {
        let machine = self.launched()?;
        if !machine.has_quit() {
            machine.kill();
        }
        self.retire();
        Ok(())
    }

    async fn execute(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError> {
        let machine = self.machine()?;
        let reply = machine.execute(command, arguments).await;
        self.check_alive()?;
        Ok(reply)
    }

    async fn bitmaps(&self) -> Result<Map<String, Value>, RunError> {
        let machine = self.machine()?;
        let handler = machine.clone();
        // The same moment in the monitor as the whole command has; all that it tells of a node is not put together.
        let told = machine.in_monitor(Box::pin(async move { handler.query_bitmaps().await })).await;
        told.unwrap_or_else(|| Err("the machine is gone".into())).map_err(|error| no_nodes(&error.to_value()))
    }

    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        let machine = self.machine()?;
        let said = if self.0.concurrent.get() > 0 {
            machine.guest_command(node, command).await
        } else {
            let (handler, node, line) = (machine.clone(), node.to_owned(), command.to_owned());
            let said = machine.in_monitor(Box::pin(async move { handler.qemu_io_step(&node, &line).await })).await;
            said.unwrap_or_default()
        };
        // Everything since the last command, as somebody sees it who reads the process's output.
        let output = machine.block.stdout.take();
        self.check_alive()?;
        Ok(QemuIoReply { output, reply: json!({ "return": said }) })
    }

    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        let output = crate::img::run(&self.0.img, args).await;
        if let Some(why) = output.aborted {
            return Err(aborted(&format!("qemu-img {}: ", args.join(" ")), why));
        }
        Ok(QemuImgOutput { stdout: output.stdout, stderr: output.stderr, status: output.status })
    }

    fn event(&self, index: usize) -> Option<Event> {
        let machine = self.watched()?;
        let events = machine.events();
        let event = events.get(index)?;
        Some(Event { name: event.name.into(), data: event.data.clone() })
    }

    async fn wait_event(&self, index: usize, timeout_ns: u64) -> Result<bool, RunError> {
        let sim = &self.0.sim;
        let deadline = sim.now().saturating_add(timeout_ns);
        let Some(me) = sim.current() else { return Ok(false) };
        // A timer stands for the client's own clock.
        let late = Rc::new(Cell::new(false));
        let (flag, waker) = (late.clone(), sim.clone());
        sim.patience(deadline, move || {
            if !flag.replace(true) {
                waker.wake(me);
            }
        });
        loop {
            self.check_alive()?;
            let Some(machine) = self.watched() else { return Ok(false) };
            if machine.events().len() > index {
                late.set(true);
                return Ok(true);
            }
            if late.get() {
                return Ok(false);
            }
            machine.event_waiters().wait(sim, "an event").await;
        }
    }

    fn now(&self) -> u64 {
        self.0.sim.now()
    }

    async fn sleep(&self, ns: u64) -> Result<(), RunError> {
        self.0.sim.sleep(ns).await;
        self.check_alive()
    }

    async fn add_fault(&self, spec: &FaultSpec) -> Result<(), RunError> {
        let machine = self.machine()?;
        machine.block.faults.add(Fault {
            node: spec.node.to_string(),
            on: Some(operation(spec.on)),
            range: spec.range.map(|range| (range.offset, range.length)),
            error: spec.error.map(|error| error.0),
            after: spec.after,
            times: spec.times,
            latency: spec.latency.map_or(0, |latency| latency.0),
        });
        Ok(())
    }

    async fn workload(&self, spec: &Workload) -> Result<WorkloadSummary, RunError> {
        let machine = self.machine()?;
        super::workload::run(&machine, spec, self.0.seed).await
    }

    async fn concurrently(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError> {
        let sim = &self.0.sim;
        let Some(me) = sim.current() else { return Ok(()) };
        self.0.concurrent.set(self.0.concurrent.get() + 1);
        let left = Rc::new(Countdown::new(actors.len(), me));
        let failure: Rc<RefCell<Option<RunError>>> = Rc::default();
        for (name, actor) in actors {
            let (left, failure, waker) = (left.clone(), failure.clone(), sim.clone());
            // Taken now: an actor may come for the first time when the machine has died already.
            let deaths = sim.deaths();
            sim.spawn_actor(name, async move {
                if let Err(error) = actor.await {
                    // An actor whose machine another one has killed has simply ended.
                    if error.kind != RunErrorKind::Machine || waker.deaths() == deaths {
                        failure.borrow_mut().get_or_insert(error);
                        waker.wake(me);
                    }
                }
                left.done(&waker);
            });
        }
        while !left.is_over() && failure.borrow().is_none() {
            sim.park("the actors").await;
        }
        self.0.concurrent.set(self.0.concurrent.get() - 1);
        if self.0.concurrent.get() == 0
            && let Ok(machine) = self.machine()
        {
            let ending = machine.clone();
            machine.in_monitor(Box::pin(async move { ending.drop_guests().await })).await;
        }
        failure.take().map_or(Ok(()), Err)
    }

    fn announce(&self, actor: Option<&str>, next: impl FnOnce() -> String) {
        self.0.sim.announce(actor.unwrap_or("scenario"), next);
    }

    fn set_position(&self, step: &StepPosition<'_>) {
        self.0.sim.emit(|| TraceEvent::Step { line: step.line, text: step.label.unwrap_or(step.verb).into() });
    }
}

/// What `qemu-img create` would be asked for.
fn img_spec(spec: &ImageSpec) -> NewImage {
    let format = |format: ImageFormat| match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    };
    NewImage {
        file: spec.file.clone(),
        format: format(spec.format).to_owned(),
        size: spec.size,
        backing: spec.backing.as_ref().map(|(file, below)| (file.clone(), format(*below).to_owned())),
        cluster_size: spec.cluster_size,
        options: spec.options.clone(),
    }
}

fn operation(operation: ast::Operation) -> Operation {
    match operation {
        ast::Operation::Read => Operation::Read,
        ast::Operation::Write => Operation::Write,
        ast::Operation::Flush => Operation::Flush,
        ast::Operation::Discard => Operation::Discard,
    }
}
