//! One run under one strategy, judged.
//!
//! A run that panics has broken an invariant like any other; it must not end the search. Nothing of a run may
//! stay behind for the next one.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use serde_json::Value;

use crate::quirks::Compat;
use crate::scenario::Case;
use crate::scenario::ast::{Outcome, Verb};
use crate::scenario::run::Ending;
use crate::scenario::simulate::{SimOptions, SimRun, Simulation};
use crate::scenario::values::Word;
use crate::sim::access::{self, Recorder};
use crate::sim::trace::Stamped;
use crate::sim::{Choices, Recorded, Strategy};
use crate::store::Host;

use super::model::hash::Fnv;
use super::model::qcow2_image::{self, Verdict};
use super::model::{Breach, FinalState, Invariant, Sightings, Violation, Watch};

/// A run of a small scenario that is not over by then never will be.
const STEP_LIMIT: u64 = 200_000;
/// So much of a run without end is enough to show what goes round.
const SHOWN_STEPS: u64 = 5_000;

/// What is run again and again.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The case.
    pub case: Case,
    /// Defects beside the case's own.
    pub defects: Vec<String>,
    /// Whose behaviour; none: the case's.
    pub compat: Option<Compat>,
    /// Whether no tool changes an image between two machines.
    pub own_images: bool,
    /// Events of a run, and requests and tasks of one event, until it is taken for one without end.
    pub step_limit: u64,
}

impl Setup {
    /// Prepares a case.
    pub fn new(case: Case, defects: Vec<String>) -> Setup {
        let changes_images = |verb: &Verb| matches!(verb, Verb::QemuImg(img) if !is_only_a_look(&img.qemu_img));
        let own_images = !case.steps.iter().any(|step| changes_images(&step.verb));
        Setup { case, defects, compat: None, own_images, step_limit: STEP_LIMIT }
    }

    /// Whose behaviour is reproduced.
    pub fn version(&self) -> Compat {
        self.compat.unwrap_or(self.case.settings.compat.0)
    }

    /// What to run to show a violation: of a run that has no end only the beginning, over and over.
    pub fn to_show(&self, violation: &Violation) -> Setup {
        let step_limit = if violation.is_livelock() { SHOWN_STEPS } else { self.step_limit };
        Setup { step_limit, ..self.clone() }
    }
}

/// Whether qemu-img only looks at an image.
fn is_only_a_look(args: &[Word]) -> bool {
    matches!(args.first().map(|word| &*word.0), Some("check" | "map" | "info" | "compare"))
}

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// What it broke.
    pub violations: Vec<Violation>,
    /// The decisions that were taken.
    pub choices: Vec<Recorded>,
    /// Events of the loop.
    pub steps: u64,
    /// What it has reached.
    pub seen: Sightings,
    /// A hash of what it left.
    pub state: u64,
    /// The transcript, for whoever shows the run.
    pub transcript: String,
    /// What it left, if it came to its end.
    pub left: Option<FinalState>,
}

thread_local! {
    /// What the last panic of a run said; set while a run is under way.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Lets panics of runs be kept instead of printed; those of everybody else go where they went.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.get() {
                PANIC.set(Some(info.to_string().replace('\n', " ")));
            } else {
                others(info);
            }
        }));
    });
}

/// Is told each trace event of a run, and how many invariants the run had broken by then.
pub type Listener = Box<dyn FnMut(&Stamped, usize)>;

/// Runs the case once.
pub fn run(setup: &Setup, strategy: Box<dyn Strategy>) -> RunReport {
    judged(setup, strategy, None)
}

/// Runs the case once with all that is told only to those who name the steps of a run and follow them.
pub fn run_in_detail(setup: &Setup, strategy: Box<dyn Strategy>, listener: Option<Listener>) -> RunReport {
    judged(setup, strategy, Some(listener.unwrap_or_else(|| Box::new(|_, _| {}))))
}

fn judged(setup: &Setup, strategy: Box<dyn Strategy>, listener: Option<Listener>) -> RunReport {
    let mut trial = Trial::begin(setup, strategy, listener);
    while trial.step() {}
    trial.judge()
}

/// A run that is taken step by step and judged at its end.
pub struct Trial<'a> {
    setup: &'a Setup,
    watch: Rc<RefCell<Watch>>,
    /// What it touches is numbered and recorded apart from that of other runs.
    recorder: Recorder,
    left: Rc<RefCell<Option<FinalState>>>,
    images: Rc<RefCell<Vec<(String, Verdict)>>>,
    state: TrialState,
}

enum TrialState {
    Running(Box<Simulation>),
    Crashed(String),
    /// An assertion of QEMU had failed; what went wrong after that says nothing.
    Aborted(String),
    Refused(String),
}

impl<'a> Trial<'a> {
    /// Puts everything together; nothing has run yet.
    pub fn begin(setup: &'a Setup, strategy: Box<dyn Strategy>, listener: Option<Listener>) -> Trial<'a> {
        let watch = Rc::new(RefCell::new(Watch::new(setup.own_images)));
        Trial::watched(setup, strategy, watch, listener)
    }

    /// The same for a strategy that wants to know what the judges have seen so far.
    pub fn watched(
        setup: &'a Setup,
        strategy: Box<dyn Strategy>,
        watch: Rc<RefCell<Watch>>,
        listener: Option<Listener>,
    ) -> Trial<'a> {
        keep_panics();
        let left: Rc<RefCell<Option<FinalState>>> = Rc::default();
        let images: Rc<RefCell<Vec<(String, Verdict)>>> = Rc::default();
        let mut options = options(setup, strategy, &watch, &left, listener);
        let slot = images.clone();
        options.inspect_files = Some(Box::new(move |host| *slot.borrow_mut() = judge_files(host)));
        let mut recorder = Recorder::default();
        let begun = recorded(&mut recorder, || {
            access::record(options.choices.records());
            guarded(|| Simulation::begin(&setup.case, options))
        });
        let state = match begun {
            Err(said) => TrialState::Crashed(said),
            Ok(Err(reason)) => TrialState::Refused(reason),
            Ok(Ok(simulation)) => TrialState::Running(Box::new(simulation)),
        };
        Trial { setup, watch, recorder, left, images, state }
    }

    /// Executes one event of the loop; false when the run has come to its end.
    pub fn step(&mut self) -> bool {
        let TrialState::Running(simulation) = &mut self.state else { return false };
        match recorded(&mut self.recorder, || guarded(|| simulation.step())) {
            Ok(going_on) => going_on,
            Err(said) => {
                let then = match simulation.aborted() {
                    Some(why) => TrialState::Aborted(why),
                    None => TrialState::Crashed(said),
                };
                let crashed = std::mem::replace(&mut self.state, then);
                // Nobody can tell what may be left of it.
                let _ = guarded(move || drop(crashed));
                false
            }
        }
    }

    /// Takes a run down whose end is known without it.
    pub fn abandon(mut self) {
        let state = std::mem::replace(&mut self.state, TrialState::Crashed(String::new()));
        if let TrialState::Running(simulation) = state {
            // Who has the verdict does not care how it goes down.
            let _ = recorded(&mut self.recorder, || guarded(move || simulation.abandon()));
        }
    }

    /// The verdict on a run that has come to its end.
    pub fn judge(self) -> RunReport {
        let Trial { setup, watch, mut recorder, left, images, state } = self;
        let (mut report, mut ending) = (RunReport::default(), Vec::new());
        let outcome = match state {
            TrialState::Aborted(why) => {
                ending.push(Violation::new(Breach::Aborted, &why, why.clone()));
                None
            }
            TrialState::Running(simulation) => {
                Some(recorded(&mut recorder, || guarded(move || simulation.finish())).map(Ok))
            }
            TrialState::Crashed(said) => Some(Err(said)),
            TrialState::Refused(reason) => Some(Ok(Err(reason))),
        };
        match outcome {
            None => {}
            Some(Err(said)) => {
                let text = format!("the machine crashed: {said}");
                ending.push(Violation::new(Breach::Crash, "the machine", text));
            }
            Some(Ok(Err(reason))) => ending.push(Violation::new(Breach::Unexpected, "the scenario", reason)),
            Some(Ok(Ok(run))) => {
                judge_ending(setup, &run, &mut ending);
                report.choices = run.choices;
                report.steps = run.steps;
                report.transcript = run.outcome.transcript.text().to_owned();
            }
        }
        let state = left.take();
        let mut watch = watch.borrow_mut();
        let is_stuck = ending.iter().any(|violation| violation.invariant() == Invariant::Progress);
        report.violations = watch.finish(state.as_ref().filter(|_| !is_stuck));
        judge_images(images.take(), &watch, &mut report.violations);
        // What the scenario expects is often only what follows; that nothing goes on comes first.
        let place = if is_stuck { 0 } else { report.violations.len() };
        report.violations.splice(place..place, ending);
        report.seen = std::mem::take(&mut watch.seen);
        report.state = hash(state.as_ref(), &report.violations);
        report.left = state;
        report
    }
}

/// Lets a run do something while its own record is the thread's.
fn recorded<T>(recorder: &mut Recorder, f: impl FnOnce() -> T) -> T {
    recorder.exchange();
    let value = f();
    recorder.exchange();
    value
}

/// Lets a run do something; an error is what it said when it panicked.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    RUNNING.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    RUNNING.set(false);
    outcome.map_err(|_| PANIC.take().unwrap_or_default())
}

fn options(
    setup: &Setup,
    strategy: Box<dyn Strategy>,
    watch: &Rc<RefCell<Watch>>,
    left: &Rc<RefCell<Option<FinalState>>>,
    mut listener: Option<Listener>,
) -> SimOptions {
    let (reader, wanting, slot) = (watch.clone(), watch.clone(), left.clone());
    let over = Rc::new(Cell::new(false));
    let is_over = over.clone();
    SimOptions {
        compat: setup.compat,
        choices: Choices::with(strategy),
        step_limit: Some(setup.step_limit),
        observe: Some(Box::new(move |sim| {
            if listener.is_some() {
                sim.trace().want_detail();
            }
            sim.trace().subscribe(move |event| {
                if is_over.get() {
                    return;
                }
                reader.borrow_mut().see(event);
                if let Some(listener) = &mut listener {
                    listener(event, reader.borrow().broken());
                }
            });
        })),
        defects: setup.defects.clone(),
        inspect: Some(Box::new(move |machine| {
            Box::pin(async move {
                FinalState::rest(&machine).await;
                over.set(true);
                let wanted = wanting.borrow().wanted();
                let state = FinalState::look(machine, wanted).await;
                *slot.borrow_mut() = Some(state);
            })
        })),
        ..SimOptions::default()
    }
}

/// A run that ended otherwise than the scenario says, or wrote that something is wrong.
fn judge_ending(setup: &Setup, run: &SimRun, found: &mut Vec<Violation>) {
    if let Ending::Failed { line, why, .. } = &run.outcome.ending
        && !run.outcome.is_as_expected(&setup.case.settings)
    {
        let stuck = run.outcome.outcome() == Outcome::Deadlock || why.starts_with("no end after");
        let (breach, subject) = match stuck {
            true => (Breach::Stuck, "the scenario"),
            false if why.starts_with("QEMU ended by itself") => (Breach::Aborted, why.as_str()),
            false => (Breach::Unexpected, why.as_str()),
        };
        found.push(Violation::new(breach, subject, format!("line {line}: {why}")));
    }
    let is_wrong = |line: &&str| line.contains("ERROR!") || line.starts_with("Pattern verification failed");
    if let Some(wrong) = run.outcome.transcript.text().lines().find(is_wrong) {
        found.push(Violation::new(Breach::WrongOutput, wrong, wrong.to_owned()));
    }
}

/// Corrupt images are never right, lost clusters only where no machine ended in order.
fn judge_images(images: Vec<(String, Verdict)>, watch: &Watch, found: &mut Vec<Violation>) {
    for (file, verdict) in images.into_iter().filter(|(file, _)| !watch.is_tampered(file)) {
        let leaks = Some(verdict.leaks).filter(|leaks| watch.is_closed() && *leaks > 0);
        let leaks = leaks.map(|leaks| format!("{leaks} clusters are lost, though it was closed in order"));
        let corruption = verdict.corruption.map(|wrong| match watch.is_out_of_order() {
            true => (Breach::CorruptUnnoticed, format!("{wrong}, and a write had failed unnoticed")),
            false => (Breach::Corrupt, wrong),
        });
        if let Some((breach, wrong)) = corruption.or(leaks.map(|wrong| (Breach::Leak, wrong))) {
            found.push(Violation::new(breach, &file, format!("image {file}: {wrong}")));
        }
    }
}

/// The qcow2 images among the host's files, judged.
fn judge_files(host: &Host) -> Vec<(String, Verdict)> {
    let judged = |name: String| {
        let store = host.open(&name).ok()?;
        Some((name, qcow2_image::judge(&store)?))
    };
    host.names().into_iter().filter_map(judged).collect()
}

/// What two runs that only differ in the order of independent steps must agree on.
fn hash(state: Option<&FinalState>, violations: &[Violation]) -> u64 {
    let mut hash = Fnv::new(violations.len() as u64);
    let Some(state) = state else { return hash.0 };
    for content in state.content.values() {
        content.iter().for_each(|(bytes, value)| hash.add(bytes << 8 | u64::from(*value)));
        hash.add(u64::MAX);
    }
    for bitmap in &state.bitmaps {
        bitmap.dirty.iter().for_each(|(offset, bytes)| hash.add(offset ^ bytes << 32));
        hash.add(u64::from(bitmap.recording) | u64::from(bitmap.busy) << 1);
    }
    for (name, data) in &state.events {
        hash.add(name.bytes().fold(0, |sum, byte| sum << 5 ^ u64::from(byte)));
        hash.add(data.get("offset").and_then(Value::as_u64).unwrap_or(u64::MAX));
    }
    hash.add(state.jobs.len() as u64);
    hash.0
}
