//! The runner: does the steps of a case one after the other and writes the transcript.
//!
//! One runner serves every [`Backend`]. Must never do what a backend should do, and never write anything
//! that does not come from the scenario or from the backend.

mod events;
mod job;
mod names;
mod verbs;

use std::rc::Rc;

use self::events::EventLog;
use super::ast::{Outcome, Settings, Step};
use super::backend::{Backend, RunError, RunErrorKind, StepPosition};
use super::load::Case;
use super::transcript::Transcript;
use crate::sim::shared::{RefCell, Unwatched};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every step was done.
    Passed,
    /// A step could not be done.
    Failed {
        /// The line of that step.
        line: u32,
        /// What kind of end it is.
        kind: RunErrorKind,
        /// The reason.
        why: String,
    },
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseOutcome {
    /// The transcript up to the end.
    pub transcript: Transcript,
    /// How it ended.
    pub ending: Ending,
}

impl CaseOutcome {
    /// The kind of end, in the words of `expect`.
    pub fn outcome(&self) -> Outcome {
        match self.ending {
            Ending::Passed => Outcome::Passed,
            Ending::Failed { kind: RunErrorKind::Deadlock, .. } => Outcome::Deadlock,
            Ending::Failed { .. } => Outcome::Failed,
        }
    }

    /// Whether the run ended as the scenario expects; without `expect`, as passed.
    pub fn is_as_expected(&self, settings: &Settings) -> bool {
        let expected = settings.expect.as_ref().map(|expect| expect.outcome);
        self.outcome() == expected.unwrap_or_default()
    }
}

/// The transcript of a run that may still be going on, readable from outside: what was written stays even
/// if the run can never end.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Rc<Unwatched<Transcript>>);

impl Recorder {
    /// What has been written so far.
    pub fn transcript(&self) -> Transcript {
        self.0.borrow().clone()
    }
}

/// Runs `case` on `backend`, which must have no machine and no images yet.
pub async fn run_case<B: Backend>(backend: &B, case: &Case) -> CaseOutcome {
    run_recorded(backend, case, &Recorder::default()).await
}

/// Like [`run_case`], writing to `recorder`.
pub async fn run_recorded<B: Backend>(backend: &B, case: &Case, recorder: &Recorder) -> CaseOutcome {
    let runner = Runner {
        backend: backend.clone(),
        shared: Rc::new(Shared {
            recorder: recorder.clone(),
            events: RefCell::new(EventLog::default()),
            failed: RefCell::new(None),
        }),
        actor: None,
    };
    let ending = match runner.steps(&case.steps).await {
        Ok(()) => Ending::Passed,
        Err(error) => {
            let line = runner.shared.failed.borrow().unwrap_or(case.line);
            Ending::Failed { line, kind: error.kind, why: error.message }
        }
    };
    CaseOutcome { transcript: recorder.transcript(), ending }
}

/// What all actors of a run have in common.
struct Shared {
    recorder: Recorder,
    events: RefCell<EventLog>,
    /// The line of the first step that failed.
    failed: RefCell<Option<u32>>,
}

/// One actor at work.
#[derive(Clone)]
struct Runner<B> {
    backend: B,
    shared: Rc<Shared>,
    actor: Option<Rc<str>>,
}

impl<B: Backend> Runner<B> {
    /// Writes a text and a newline for `step`.
    fn log(&self, step: &Step, text: &str) {
        self.shared.recorder.0.borrow_mut().log(step.line, text);
    }

    /// Says what this actor does when it next comes.
    fn announce(&self, next: impl FnOnce() -> String) {
        self.backend.announce(self.actor.as_deref(), next);
    }

    async fn steps(&self, steps: &[Step]) -> Result<(), RunError> {
        for (index, step) in steps.iter().enumerate() {
            self.backend.set_position(&StepPosition {
                line: step.line,
                via: &step.via,
                label: step.label.as_deref(),
                verb: step.verb.key(),
                actor: self.actor.as_deref(),
            });
            self.announce(|| steps.get(index + 1).map_or_else(names::end, names::step));
            if let Err(error) = self.step(step, steps.get(index + 1)).await {
                self.shared.failed.borrow_mut().get_or_insert(step.line);
                return Err(error);
            }
        }
        Ok(())
    }
}
