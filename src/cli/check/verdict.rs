//! The verdict on each case of a scenario under one version.
//!
//! Takes what came out and what was expected, and decides. Must never write, print or run anything.

use crate::cli::engine::{Complaint, Defect, judge};
use crate::report::{Difference, difference};
use crate::scenario::Case;
use crate::scenario::run::CaseOutcome;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Same,
    /// The transcript differs.
    Different,
    /// The run did not end as it should.
    Failed(Complaint),
    /// There is no expected transcript to compare with.
    Missing,
    /// Not as it should be, which is known, for this reason.
    KnownFailure(String),
    /// As it should be, although it is marked as a known failure for this reason.
    Recovered(String),
    /// backsim itself is at fault.
    Broken(Defect),
}

/// A case and its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The case's name.
    pub name: String,
    /// The scenario's line it is written at.
    pub line: u32,
    /// The verdict.
    pub verdict: Verdict,
}

/// All cases of a scenario under one version, against the expected transcript.
#[derive(Debug)]
pub struct Comparison {
    /// The verdicts, in the order of the cases.
    pub cases: Vec<Judged>,
    /// What differs.
    pub difference: Option<Difference>,
    /// All transcripts, one after another.
    pub actual: String,
}

/// What stands in the place of a transcript that backsim did not come to write, so that the difference shows
/// there and not at the case before.
const BROKEN: &str = "(backsim broke here)\n";

/// Compares the runs of `cases` with `expected`; `file` is the scenario's name in messages.
pub fn compare(file: &str, cases: &[Case], runs: &[Result<CaseOutcome, Defect>], expected: Option<&str>) -> Comparison {
    let mut actual = String::new();
    // The line of the whole transcript, from 0, at which each case begins.
    let mut starts = Vec::with_capacity(cases.len());
    let mut lines = 0;
    for run in runs {
        starts.push(lines);
        let text = run.as_ref().map_or(BROKEN, |run| run.transcript.text());
        actual.push_str(text);
        lines += text.lines().count();
    }
    // Cases without a line begin where the next one does, so the last that begins is the one meant.
    let case_at = |line: usize| starts.partition_point(|start| *start <= line).saturating_sub(1);
    let origin = |line: usize| {
        let index = case_at(line);
        let run = runs.get(index)?.as_ref().ok()?;
        let own = u32::try_from(line - starts[index] + 1).ok()?;
        let origin = run.transcript.origin(own).unwrap_or(cases[index].line);
        Some(format!("{file}:{origin}: {}", cases[index].name))
    };
    let difference = expected.and_then(|expected| difference(expected, &actual, origin));
    let mut differs = vec![false; cases.len()];
    for changed in difference.iter().flat_map(|difference| &difference.changed) {
        let first = if changed.is_empty() { changed.start.saturating_sub(1) } else { changed.start };
        let last = changed.end.saturating_sub(1).max(first);
        for differs in differs.iter_mut().take(case_at(last) + 1).skip(case_at(first)) {
            *differs = true;
        }
    }
    let judged = cases.iter().zip(runs).zip(differs).map(|((case, run), differs)| Judged {
        name: case.name.clone(),
        line: case.line,
        verdict: verdict(case, run, expected.is_some(), differs),
    });
    Comparison { cases: judged.collect(), difference, actual }
}

fn verdict(case: &Case, run: &Result<CaseOutcome, Defect>, is_expected: bool, differs: bool) -> Verdict {
    let complaint = match run {
        Err(defect) => return Verdict::Broken(defect.clone()),
        Ok(run) => judge(case, &run.ending),
    };
    match (&case.settings.expected_failure, complaint) {
        (None, Some(complaint)) => Verdict::Failed(complaint),
        _ if !is_expected => Verdict::Missing,
        (None, None) if differs => Verdict::Different,
        (None, None) => Verdict::Same,
        (Some(reason), None) if !differs => Verdict::Recovered(reason.0.clone()),
        (Some(reason), _) => Verdict::KnownFailure(reason.0.clone()),
    }
}
