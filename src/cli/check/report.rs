//! What a check tells: a line a case, the difference below it, the command that mends what is missing.
//!
//! Everything here is words; verdicts come from elsewhere and stay as they are.

use std::path::{Path, PathBuf};

use crate::cli::engine::Defect;
use crate::cli::exit::Exit;
use crate::report::{Style, Suite, TestCase, TestResult};

use super::unit::{Checked, Version};
use super::verdict::{Judged, Verdict};

/// How many cases had which end, in the order of the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// As they should be, and never anything else.
    pub same: usize,
    /// Known not to be as they should be.
    pub known: usize,
    /// Different, failed, missing or recovered.
    pub wrong: usize,
    /// Scenarios with mistakes.
    pub mistaken: usize,
    /// Defects of backsim's own.
    pub broken: usize,
    /// Expected transcripts without a scenario.
    pub orphans: usize,
    /// Expected transcripts written.
    pub blessed: usize,
}

impl Tally {
    /// Counts a verdict.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Same => self.same += 1,
            Verdict::KnownFailure(_) => self.known += 1,
            Verdict::Broken(_) => self.broken += 1,
            Verdict::Different | Verdict::Failed(_) | Verdict::Missing | Verdict::Recovered(_) => self.wrong += 1,
        }
    }

    /// What the process returns.
    pub fn exit(&self) -> Exit {
        match self {
            Tally { broken: 1.., .. } => Exit::Broken,
            Tally { mistaken: 1.., .. } => Exit::Mistake,
            Tally { wrong: 1.., .. } | Tally { orphans: 1.., .. } => Exit::Different,
            _ => Exit::Good,
        }
    }

    /// The last line.
    pub fn summary(&self, style: Style) -> String {
        let mut parts = vec![format!("{} as expected", self.same)];
        let mut add = |count: usize, what: &str| {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        };
        add(self.known, "known to fail");
        add(self.wrong, "not as expected");
        add(self.broken, "broke backsim");
        add(self.mistaken, if self.mistaken == 1 { "scenario with mistakes" } else { "scenarios with mistakes" });
        add(self.orphans, if self.orphans == 1 { "orphan" } else { "orphans" });
        add(self.blessed, if self.blessed == 1 { "file blessed" } else { "files blessed" });
        let cases = self.same + self.known + self.wrong + self.broken;
        let text = format!("{cases} {}: {}", if cases == 1 { "case" } else { "cases" }, parts.join(", "));
        if self.exit() == Exit::Good { style.green(&text) } else { style.red(&text) }
    }
}

/// The line of a case.
pub fn case_line(title: &str, version: &Version, case: &Judged, style: Style) -> String {
    let word = word(&case.verdict);
    let padded = format!("{word:8}");
    let word = match case.verdict {
        Verdict::Same => style.green(&padded),
        Verdict::KnownFailure(_) => style.yellow(&padded),
        _ => style.red(&padded),
    };
    let mut line = format!("{word} {title} {} {}", version.compat.name(), case.name);
    match &case.verdict {
        Verdict::KnownFailure(reason) => line.push_str(&format!(" (expected failure: {reason})")),
        Verdict::Recovered(reason) => line.push_str(&format!(" (marked as an expected failure: {reason})")),
        _ => {}
    }
    line
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "ok",
        Verdict::Different => "differs",
        Verdict::Failed(_) => "failed",
        Verdict::Missing => "missing",
        Verdict::KnownFailure(_) => "known",
        Verdict::Recovered(_) => "passes",
        Verdict::Broken(_) => "broken",
    }
}

/// What is to be said about a case below its line; it names the scenario's line.
pub fn details(file: &Path, case: &Judged) -> Option<String> {
    let place = |line: u32| format!("{}:{line}", file.display());
    match &case.verdict {
        Verdict::Failed(complaint) => Some(format!("{}: {}", place(complaint.line), complaint.what)),
        Verdict::Recovered(_) => Some(format!(
            "{}: this case passes although it is marked as an expected failure\n  = hint: take `expected-failure` \
             out of the scenario",
            place(case.line)
        )),
        Verdict::Broken(defect) => Some(format!("{}: {defect}", place(case.line))),
        Verdict::Same | Verdict::Different | Verdict::Missing | Verdict::KnownFailure(_) => None,
    }
}

/// The difference of a scenario under one version, or what to do about a missing expected transcript.
pub fn difference(file: &Path, version: &Version, style: Style) -> Option<String> {
    let missing = version.comparison.cases.iter().any(|case| case.verdict == Verdict::Missing);
    let expected = version.expected.display();
    if missing {
        let command = bless_command(file, version);
        return Some(format!("{expected}: there is no such file\n  = hint: to make it: {command}\n"));
    }
    let actual = format!("{} ({})", file.display(), version.compat.name());
    let difference = version.comparison.difference.as_ref()?;
    Some(difference.unified(&expected.to_string(), &actual, style))
}

/// The change that blessing makes.
pub fn blessing(file: &Path, version: &Version, style: Style) -> String {
    let expected = version.expected.display();
    let Some(difference) = &version.comparison.difference else {
        let lines = version.comparison.actual.lines().count();
        return format!("{}\n", style.yellow(&format!("blessed: {expected} is new, {lines} lines")));
    };
    let actual = format!("{} ({})", file.display(), version.compat.name());
    let change = difference.unified(&expected.to_string(), &actual, style);
    format!("{change}{}\n", style.yellow(&format!("blessed: {expected} changed as shown")))
}

/// Why a difference was not blessed.
pub fn not_blessed(version: &Version) -> String {
    let why = if version.marked {
        "a case is marked as an expected failure, so what comes out is not what should\n  = hint: write what should \
         come out by hand"
    } else {
        "a run did not end as it should"
    };
    format!("{}: not blessed: {why}", version.expected.display())
}

fn bless_command(file: &Path, version: &Version) -> String {
    format!("backsim check --bless --compat {} {}", version.compat.name(), quoted(file))
}

/// What to do about an expected transcript without a scenario.
pub fn orphan(file: &Path) -> String {
    format!("{}: no scenario has this expected transcript\n  = hint: to remove it: rm {}", file.display(), quoted(file))
}

/// A file's name as a shell takes it.
fn quoted(file: &Path) -> String {
    let name = file.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=,@%".contains(c);
    if !name.is_empty() && !name.starts_with('-') && name.chars().all(plain) {
        return name;
    }
    let name = if name.starts_with('-') { format!("./{name}") } else { name };
    format!("'{}'", name.replace('\'', r"'\''"))
}

/// The suites of one scenario.
pub fn suites(checked: &Result<Checked, Defect>, file: &Path, title: &str) -> Vec<Suite> {
    let alone = |headline: &str, text: String| {
        let result = TestResult::Error(headline.to_owned(), text);
        let case = TestCase { name: title.to_owned(), result };
        vec![Suite { name: title.to_owned(), class: class(title, "scenario"), cases: vec![case] }]
    };
    match checked {
        Err(defect) => alone("backsim broke", defect.to_string()),
        Ok(Err(mistakes)) => alone("the scenario can't be run", mistakes.clone()),
        Ok(Ok(versions)) => versions.iter().map(|version| suite(version, file, title)).collect(),
    }
}

fn suite(version: &Version, file: &Path, title: &str) -> Suite {
    let difference = difference(file, version, Style::default()).unwrap_or_default();
    let case = |case: &Judged| {
        let details = details(file, case);
        let result = match &case.verdict {
            Verdict::Same => TestResult::Passed,
            Verdict::KnownFailure(reason) => TestResult::Skipped(format!("expected failure: {reason}")),
            Verdict::Different => TestResult::Failure("the transcript differs".to_owned(), difference.clone()),
            Verdict::Missing => TestResult::Failure("no expected transcript".to_owned(), difference.clone()),
            Verdict::Failed(complaint) => TestResult::Failure(complaint.what.clone(), details.unwrap_or_default()),
            Verdict::Recovered(_) => TestResult::Failure("passes".to_owned(), details.unwrap_or_default()),
            Verdict::Broken(_) => TestResult::Error("backsim broke".to_owned(), details.unwrap_or_default()),
        };
        TestCase { name: case.name.clone(), result }
    };
    let compat = version.compat.name();
    Suite {
        name: format!("{title} {compat}"),
        class: class(title, compat),
        cases: version.comparison.cases.iter().map(case).collect(),
    }
}

/// The suite of the orphans.
pub fn orphan_suite(orphans: &[PathBuf]) -> Option<Suite> {
    let case = |file: &PathBuf| TestCase {
        name: file.display().to_string(),
        result: TestResult::Failure("no scenario has this expected transcript".to_owned(), orphan(file)),
    };
    let cases: Vec<TestCase> = orphans.iter().map(case).collect();
    (!cases.is_empty()).then(|| Suite { name: "orphans".to_owned(), class: "orphans".to_owned(), cases })
}

/// Version, directory and scenario as a Java class, which is how Jenkins groups.
fn class(title: &str, group: &str) -> String {
    let title = title.trim_start_matches(['.', '/']).replace('.', "_").replace('/', ".");
    format!("{}.{title}", group.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_a_shell_needs_it() {
        let quoted = |name: &str| super::quoted(Path::new(name));
        assert_eq!(quoted("scenarios/257.yaml"), "scenarios/257.yaml");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("-f"), "'./-f'");
    }

    #[test]
    fn the_worst_end_decides() {
        let exit = |tally: Tally| tally.exit();
        assert_eq!(exit(Tally { same: 1, known: 1, ..Tally::default() }), Exit::Good);
        assert_eq!(exit(Tally { orphans: 1, ..Tally::default() }), Exit::Different);
        assert_eq!(exit(Tally { wrong: 1, mistaken: 1, ..Tally::default() }), Exit::Mistake);
        assert_eq!(exit(Tally { wrong: 1, mistaken: 1, broken: 1, ..Tally::default() }), Exit::Broken);
    }

    #[test]
    fn classes_are_grouped_by_version_and_directory() {
        assert_eq!(class("iotests/055", "qemu-7.2"), "qemu-7_2.iotests.055");
        assert_eq!(class("../corpus/a.b", "qemu-7.2"), "qemu-7_2.corpus.a_b");
    }
}
