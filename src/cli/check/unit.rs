//! One piece of a check's work: a scenario, run under each version it is checked for.
//!
//! Runs on any thread and gives back only finished results. Must never write or print.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::engine::{Overrides, RunOptions, Runner, guarded};
use crate::cli::error::{Failure, Message};
use crate::cli::images::Images;
use crate::cli::select;
use crate::quirks::Compat;
use crate::scenario::Case;

use super::layout;
use super::verdict::{Comparison, compare};

/// What came of a scenario under each version, or why it can't be run, in words.
pub type Checked = Result<Vec<Version>, String>;

/// What came of a scenario under one version.
pub struct Version {
    /// The version.
    pub compat: Compat,
    /// Where its expected transcript lies, or should.
    pub expected: PathBuf,
    /// What came out, against it.
    pub comparison: Comparison,
    /// Whether a case is marked as an expected failure, so that what comes out is not what should.
    pub marked: bool,
}

/// Runs the scenario in `file` under each of `versions`.
pub fn check(file: &Path, versions: &[Compat], runner: Runner) -> Checked {
    select::load(file).map_err(|mistakes| mistakes.to_string()).and_then(|loaded| {
        let version = |compat: &Compat| version(file, &loaded.cases, *compat, runner);
        let versions: Result<Vec<Version>, Failure> = versions.iter().map(version).collect();
        versions.map_err(|failure| failure.to_string())
    })
}

fn version(file: &Path, cases: &[Case], compat: Compat, runner: Runner) -> Result<Version, Failure> {
    let expected = layout::expected(file, compat);
    let text = match fs::read(&expected) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::file(&expected, "read the expected transcript", &error)),
    };
    let overrides = Overrides { compat: Some(compat), ..Overrides::default() };
    let mut cases = cases.to_vec();
    let mut runs = Vec::with_capacity(cases.len());
    for case in &mut cases {
        overrides.apply(case);
        let place = Images::Temporary.place("", case)?;
        let options = RunOptions { dir: place.as_ref().map(|place| place.path().to_owned()), trace: false };
        let case: &Case = case;
        runs.push(match guarded(|| runner(case, &options)) {
            Ok(Ok(run)) => Ok(run.outcome),
            Ok(Err(why)) => {
                let place = format!("{}:{}", file.display(), case.line);
                return Err(Message::mistake(why).at(place).into());
            }
            Err(defect) => Err(defect),
        });
    }
    let comparison = compare(&file.display().to_string(), &cases, &runs, text.as_deref());
    let marked = cases.iter().any(|case| case.settings.expected_failure.is_some());
    Ok(Version { compat, expected, comparison, marked })
}
