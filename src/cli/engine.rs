//! The seam between the commands and whatever carries out a case, and the judgement of how a case ended.
//!
//! A case is carried out by a [`Runner`], a plain function, so that commands can be tested with another
//! one. A panic inside a run is a defect of backsim's own: it is caught here and becomes a [`Defect`].
//! Nothing here may look into a transcript.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;

use crate::quirks::Compat;
use crate::scenario::Case;
use crate::scenario::ast::{Outcome, Storage};
use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::{CaseOutcome, Ending};
use crate::scenario::simulate::{SimOptions, simulate};
use crate::sim::Sim;
use crate::sim::trace::Stamped;

/// What a run needs to know besides its case.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Where image files live; given whenever the case's storage is `file`.
    pub dir: Option<PathBuf>,
    /// Whether trace events are wanted.
    pub trace: bool,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct CaseRun {
    /// The transcript up to the end, and how it ended.
    pub outcome: CaseOutcome,
    /// What happened, if it was asked for.
    pub trace: Vec<Stamped>,
    /// What the machines of the case wrote to their standard error.
    pub stderr: String,
}

/// Carries out a case. An error means that its images can't be kept where they should, in words.
pub type Runner = fn(&Case, &RunOptions) -> Result<CaseRun, String>;

/// Carries out a case on the simulated QEMU.
pub fn simulated(case: &Case, options: &RunOptions) -> Result<CaseRun, String> {
    let trace = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&trace);
    let subscribe = move |sim: &Sim| sim.trace().subscribe(move |event| seen.borrow_mut().push(event.clone()));
    let run = simulate(
        case,
        SimOptions {
            directory: options.dir.clone(),
            observe: options.trace.then(|| Box::new(subscribe) as Box<dyn FnOnce(&Sim)>),
            ..SimOptions::default()
        },
    )?;
    Ok(CaseRun { outcome: run.outcome, trace: trace.take(), stderr: run.stderr })
}

/// What the command line says against a scenario's own settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides {
    /// `--compat`
    pub compat: Option<Compat>,
    /// `--seed`
    pub seed: Option<u64>,
    /// `--storage`
    pub storage: Option<Storage>,
}

impl Overrides {
    /// Puts them in the place of the settings of `case`.
    pub fn apply(&self, case: &mut Case) {
        let settings = &mut case.settings;
        if let Some(compat) = self.compat {
            settings.compat.0 = compat;
        }
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings.storage = self.storage.unwrap_or(settings.storage);
    }
}

/// What is wrong with the end of a run, and the line of the scenario to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The line.
    pub line: u32,
    /// A sentence fragment.
    pub what: String,
}

/// Compares the end of a run with what the scenario expects; `None` if it is as expected.
pub fn judge(case: &Case, ending: &Ending) -> Option<Complaint> {
    let wanted = case.settings.expect.as_ref().map(|expect| expect.outcome);
    let (outcome, line, what) = match ending {
        Ending::Passed => (Outcome::Passed, case.line, "the run passed".to_owned()),
        Ending::Failed { line, kind: RunErrorKind::Deadlock, why } => {
            (Outcome::Deadlock, *line, format!("the run came to a deadlock: {why}"))
        }
        Ending::Failed { line, why, .. } => (Outcome::Failed, *line, format!("the run failed: {why}")),
    };
    if wanted.unwrap_or(Outcome::Passed) == outcome {
        return None;
    }
    let what = match wanted {
        None => what,
        Some(Outcome::Passed) => format!("{what} (`expect` says: passed)"),
        Some(Outcome::Failed) => format!("{what} (`expect` says: failed)"),
        Some(Outcome::Deadlock) => format!("{what} (`expect` says: deadlock)"),
    };
    Some(Complaint { line, what })
}

/// A broken invariant of backsim's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    message: String,
    /// File and line of the source.
    place: Option<String>,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a broken invariant of backsim's own: {}", self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  = at: {place} (backsim {})", env!("CARGO_PKG_VERSION"))?;
        }
        f.write_str("\n  = hint: this is a defect of backsim; please report it with the command and the scenario")
    }
}

thread_local! {
    /// What the panic hook saw on this thread, while somebody is there to catch it.
    static CAUGHT: RefCell<Option<Option<Defect>>> = const { RefCell::new(None) };
}

/// Does `work`; a panic in it is returned instead of shown.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Defect> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let shown = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let caught = CAUGHT.with_borrow_mut(|caught| match caught {
                Some(defect) => {
                    let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
                    *defect = Some(Defect { message: message(info.payload()), place });
                    true
                }
                None => false,
            });
            if !caught {
                shown(info);
            }
        }));
    });
    let outer = CAUGHT.replace(Some(None));
    // Whatever the work left half done is dropped with its case; nothing of it is looked at again.
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let seen = CAUGHT.replace(outer).flatten();
    result.map_err(|payload| seen.unwrap_or_else(|| Defect { message: message(&*payload), place: None }))
}

fn message(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_defect() {
        let defect = guarded(|| panic!("two and two is {}", 5)).expect_err("it panicked");
        let text = defect.to_string();
        assert!(text.starts_with("a broken invariant of backsim's own: two and two is 5\n  = at: src"), "{text}");
        assert_eq!(guarded(|| 4), Ok(4));
    }

    #[test]
    fn a_panic_inside_a_guard_inside_a_guard_stays_there() {
        let result = guarded(|| guarded(|| panic!("inner")).is_err());
        assert_eq!(result, Ok(true));
    }
}
