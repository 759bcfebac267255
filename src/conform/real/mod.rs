//! A real QEMU as the backend of the runner.
//!
//! Its machine is a qemu-system process without machine or display, its images are files that qemu-img
//! makes in a directory of the run. Everything blocks and is ready at the first poll: real time passes
//! here. Must never leave a process behind, and never answer anything that QEMU did not say.

mod machine;
mod names;
mod process;
mod trouble;
mod wire;

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::scenario::ast::{FaultSpec, Workload};
use crate::scenario::backend::{
    Actor, Backend, Event, ImageSpec, QemuImgOutput, QemuIoReply, RunError, StepPosition, WorkloadSummary,
};

use self::machine::Machine;
use self::names::Names;
use self::process::{Running, text};
pub use self::trouble::{Trouble, TroubleKind};

/// Where the programs are, and how patient a run is with them.
#[derive(Clone, Debug)]
pub struct RealOptions {
    /// The system emulator.
    pub qemu: PathBuf,
    /// The image tool.
    pub qemu_img: PathBuf,
    /// How long any answer may take.
    pub patience: Duration,
    /// The longest that a scenario's own waits for events may take, whatever it says; `None`: what it says.
    pub longest_wait: Option<Duration>,
}

/// A real QEMU and its surroundings. A handle: clones mean the same machine. It ends with the last of them.
#[derive(Clone, Debug)]
pub struct RealQemu(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    options: RealOptions,
    dir: PathBuf,
    names: Names,
    begin: Instant,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    machine: Option<Machine>,
    /// How many machines were launched, and qemu-img runs made.
    launched: u32,
    tools: u32,
    /// The events of a machine that is gone.
    past: Vec<Event>,
    greeting: Option<Value>,
    trouble: Option<Trouble>,
}

impl RealQemu {
    /// A backend without machine and images that works in `dir`, which must be empty. An error if QEMU would
    /// not take the directory's name as it is.
    pub fn new(options: &RealOptions, dir: &Path) -> Result<RealQemu, Trouble> {
        let names = Names::new(dir).ok_or_else(|| {
            let why = format!(
                "{} can't be used: QEMU gives a meaning to some character of its name (set TMPDIR)",
                dir.display()
            );
            Trouble::surroundings(why)
        })?;
        Ok(RealQemu(Rc::new(Shared {
            options: options.clone(),
            dir: dir.to_owned(),
            names,
            begin: Instant::now(),
            state: RefCell::default(),
        })))
    }

    /// What went wrong with QEMU itself, if anything did.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.state.borrow().trouble.clone()
    }

    /// The greeting of the last machine, in which the version stands.
    pub fn greeting(&self) -> Option<Value> {
        self.0.state.borrow().greeting.clone()
    }

    /// Keeps `trouble` for the verdict and gives the runner its end.
    fn end(&self, trouble: Trouble) -> RunError {
        let error = RunError::machine(trouble.kind.to_string());
        let mut state = self.0.state.borrow_mut();
        state.machine = None;
        state.trouble.get_or_insert(trouble);
        error
    }

    fn surroundings(&self, why: String) -> RunError {
        self.end(Trouble::surroundings(why))
    }

    /// Does `work` with the machine.
    fn with<T>(&self, work: impl FnOnce(&mut Machine) -> Result<T, Trouble>) -> Result<T, RunError> {
        let result = match &mut self.0.state.borrow_mut().machine {
            Some(machine) => work(machine),
            None => return Err(RunError::machine("no machine was launched")),
        };
        result.map_err(|trouble| self.end(trouble))
    }

    /// Runs qemu-img with the arguments of the scenario.
    fn tool(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        let shared = &self.0;
        let number = {
            let mut state = shared.state.borrow_mut();
            state.tools += 1;
            state.tools
        };
        let real: Vec<OsString> = args.iter().map(|arg| shared.names.to_real(arg).into()).collect();
        let program = &shared.options.qemu_img;
        let mut running = Running::start(program, "qemu-img", &real, &shared.dir, &format!("img-{number}"))
            .map_err(|error| self.surroundings(format!("{}: {error}", program.display())))?;
        let patience = shared.options.patience;
        let status = running.wait(Instant::now() + patience).map_err(|error| self.surroundings(error.to_string()))?;
        let stdout = shared.names.to_scenario(&text(&running.stdout));
        let stderr = shared.names.to_scenario(&text(&running.stderr));
        let what = || format!("qemu-img {}", args.join(" "));
        let Some(status) = status else {
            let kind = TroubleKind::Hung { what: what(), seconds: patience.as_secs() };
            return Err(self.end(Trouble { kind, output: stderr + &stdout }));
        };
        let Some(status) = status.code() else {
            let kind = TroubleKind::Died(format!("{}: {}", what(), trouble::how(status)));
            return Err(self.end(Trouble { kind, output: stderr + &stdout }));
        };
        Ok(QemuImgOutput { stdout, stderr, status })
    }

    /// Sends a command and waits for its reply, as [`Backend::execute`] does.
    pub(super) fn execute_now(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError> {
        self.with(|machine| machine.execute(command, arguments))
    }

    /// What QEMU has printed since it was last asked.
    pub(super) fn new_output(&self) -> String {
        self.0.state.borrow_mut().machine.as_mut().map(Machine::new_output).unwrap_or_default()
    }

    fn cannot(what: &str) -> RunError {
        RunError::machine(format!("real QEMU can't do `{what}` deterministically"))
    }
}

impl Backend for RealQemu {
    async fn image(&self, spec: &ImageSpec) -> Result<(), RunError> {
        let done = self.tool(&create_arguments(spec))?;
        if done.status == 0 {
            return Ok(());
        }
        let why = done.stderr.trim_end();
        Err(RunError::failed(format!("image {}: {why}", spec.file)))
    }

    async fn launch(&self) -> Result<(), RunError> {
        let shared = &self.0;
        if shared.state.borrow().machine.is_some() {
            return Err(RunError::machine("a machine is running already"));
        }
        let number = shared.state.borrow().launched;
        let options = &shared.options;
        let started = Machine::start(&options.qemu, &shared.dir, &shared.names, number, options.patience);
        let (machine, greeting) = started.map_err(|trouble| self.end(trouble))?;
        let mut state = shared.state.borrow_mut();
        state.launched += 1;
        state.past.clear();
        state.greeting = Some(greeting);
        state.machine = Some(machine);
        Ok(())
    }

    async fn shutdown(&self) -> Result<(), RunError> {
        let Some(machine) = self.0.state.borrow_mut().machine.take() else {
            return Err(RunError::machine("no machine was launched"));
        };
        let events = machine.shut_down().map_err(|trouble| self.end(trouble))?;
        self.0.state.borrow_mut().past = events;
        Ok(())
    }

    async fn kill(&self) -> Result<(), RunError> {
        let Some(machine) = self.0.state.borrow_mut().machine.take() else {
            return Err(RunError::machine("no machine was launched"));
        };
        self.0.state.borrow_mut().past = machine.kill();
        Ok(())
    }

    async fn execute(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError> {
        self.execute_now(command, arguments)
    }

    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        // As iotests' hmp_qemu_io writes it, without escapes.
        let line = json!(format!("qemu-io {node} \"{command}\""));
        let arguments = Map::from_iter([("command-line".to_owned(), line)]);
        self.with(|machine| {
            let reply = machine.execute("human-monitor-command", &arguments)?;
            Ok(QemuIoReply { output: machine.new_output().into(), reply })
        })
    }

    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        self.tool(args)
    }

    fn event(&self, index: usize) -> Option<Event> {
        let mut state = self.0.state.borrow_mut();
        match &mut state.machine {
            None => state.past.get(index).cloned(),
            Some(machine) => {
                if machine.events().len() <= index {
                    machine.drain();
                }
                machine.events().get(index).cloned()
            }
        }
    }

    async fn wait_event(&self, index: usize, timeout_ns: u64) -> Result<bool, RunError> {
        if self.0.state.borrow().machine.is_none() {
            return Ok(index < self.0.state.borrow().past.len());
        }
        let wanted = Duration::from_nanos(timeout_ns);
        let deadline = Instant::now() + self.0.options.longest_wait.map_or(wanted, |longest| longest.min(wanted));
        self.with(|machine| {
            while machine.events().len() <= index {
                if !machine.wait_event(deadline)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn sleep(&self, ns: u64) -> Result<(), RunError> {
        std::thread::sleep(Duration::from_nanos(ns));
        Ok(())
    }

    async fn add_fault(&self, _: &FaultSpec) -> Result<(), RunError> {
        Err(RealQemu::cannot("fault"))
    }

    async fn workload(&self, _: &Workload) -> Result<WorkloadSummary, RunError> {
        Err(RealQemu::cannot("workload"))
    }

    async fn concurrently(&self, _: Vec<(String, Actor)>) -> Result<(), RunError> {
        Err(RealQemu::cannot("concurrently"))
    }

    fn set_position(&self, step: &StepPosition<'_>) {
        // The model has no time between the events of one act; here a look could come between two of them.
        if let ("query-events", Some(machine)) = (step.verb, &mut self.0.state.borrow_mut().machine) {
            machine.settle();
        }
    }
}

/// The arguments by which qemu-img creates the image.
fn create_arguments(spec: &ImageSpec) -> Vec<String> {
    let mut args: Vec<String> = ["create", "-q", "-f", spec.format.word()].map(str::to_owned).into();
    if let Some((file, format)) = &spec.backing {
        args.extend(["-b", file, "-F", format.word()].map(str::to_owned));
    }
    let mut options: Vec<String> = Vec::new();
    options.extend(spec.cluster_size.map(|size| format!("cluster_size={size}")));
    options.extend(spec.options.iter().map(|(name, value)| format!("{name}={}", option_value(value))));
    if !options.is_empty() {
        args.extend(["-o".to_owned(), options.join(",")]);
    }
    args.push(spec.file.clone());
    args.extend(spec.size.map(|size| size.to_string()));
    args
}

/// A value as QEMU's option lists have it.
fn option_value(value: &Value) -> String {
    match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::String(text) => text.replace(',', ",,"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::ast::ImageFormat;

    #[test]
    fn images_are_created_as_the_scenario_says() {
        let spec = ImageSpec {
            file: "TEST_DIR/PID-a".to_owned(),
            format: ImageFormat::Qcow2,
            size: Some(65536),
            backing: Some(("TEST_DIR/PID-b".to_owned(), ImageFormat::Raw)),
            cluster_size: Some(4096),
            options: Map::from_iter([("lazy_refcounts".to_owned(), json!(true)), ("x".to_owned(), json!("a,b"))]),
        };
        assert_eq!(
            create_arguments(&spec).join(" "),
            "create -q -f qcow2 -b TEST_DIR/PID-b -F raw -o cluster_size=4096,lazy_refcounts=on,x=a,,b TEST_DIR/PID-a 65536"
        );
    }
}
