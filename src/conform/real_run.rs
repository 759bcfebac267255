//! One case on a real QEMU, from an empty directory to the end of all processes.
//!
//! Must never give a transcript without saying how the run ended.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::scenario::Case;
use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::{CaseOutcome, Ending, Recorder, run_recorded};

use super::chance::ChanceQemu;
use super::guard;
use super::guests::{concurrent, guest_nodes};
use super::left::of_directory;
use super::real::{RealOptions, RealQemu, Trouble};

/// A case done by a real QEMU.
#[derive(Clone, Debug)]
pub struct RealRun {
    /// What the runner wrote, and how the run ended.
    pub outcome: CaseOutcome,
    /// What was wrong with QEMU itself; then the outcome means nothing.
    pub trouble: Option<Trouble>,
    /// What raw images hold in the end, of a case with actors.
    pub left: String,
    /// Where images and output are kept, if they are.
    pub kept: Option<PathBuf>,
}

/// Runs `case`. Its files are deleted, or kept in a new directory below `keep`.
pub fn run_real(options: &RealOptions, case: &Case, keep: Option<&Path>) -> RealRun {
    let dir = match directory(keep) {
        Ok(dir) => dir,
        Err(error) => return never_began(case, format!("no directory for the run: {error}")),
    };
    let _guarded = keep.is_none().then(|| guard::Directory::new(dir.path()));
    let backend = match RealQemu::new(options, dir.path()) {
        Ok(backend) => backend,
        Err(trouble) => {
            return RealRun { trouble: Some(trouble.clone()), ..never_began(case, trouble.to_string()) };
        }
    };
    let recorder = Recorder::default();
    let has_actors = concurrent(&case.steps).next().is_some();
    let outcome = match has_actors {
        true => ready(run_recorded(&ChanceQemu::new(backend.clone(), guest_nodes(&case.steps)), case, &recorder)),
        false => ready(run_recorded(&backend, case, &recorder)),
    };
    let ending = match outcome {
        Some(outcome) => outcome.ending,
        None => failed(case, "the run waits for nothing".to_owned()),
    };
    let trouble = backend.trouble();
    // The machine must be gone before its directory is.
    drop(backend);
    let left = if has_actors { of_directory(dir.path()) } else { String::new() };
    let kept = match keep {
        Some(_) => Some(dir.keep()),
        None => {
            drop(dir);
            None
        }
    };
    RealRun { outcome: CaseOutcome { transcript: recorder.transcript(), ending }, trouble, left, kept }
}

/// The result of a future of the real backend: every method blocks, so the first poll is the last one.
pub(super) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn directory(keep: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("backsim-");
    match keep {
        None => builder.tempdir(),
        Some(keep) => {
            std::fs::create_dir_all(keep)?;
            builder.tempdir_in(keep.canonicalize()?)
        }
    }
}

fn failed(case: &Case, why: String) -> Ending {
    Ending::Failed { line: case.line, kind: RunErrorKind::Machine, why }
}

fn never_began(case: &Case, why: String) -> RealRun {
    let outcome = CaseOutcome { transcript: Recorder::default().transcript(), ending: failed(case, why.clone()) };
    RealRun { outcome, trouble: Some(Trouble::surroundings(why)), left: String::new(), kept: None }
}
