//! `backsim check`: every scenario under every version against its expected transcript.
//!
//! [`layout`] says where expected transcripts lie, [`unit`] runs a scenario, [`verdict`] judges its cases,
//! [`report`] finds the words. Nothing is written but what `--bless` and `--junit` name.

mod layout;
mod report;
mod unit;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};

use crate::quirks::Compat;
use crate::report::{Suite, junit};
use crate::workers::{cores, in_order};

use super::args::CheckArgs;
use super::engine::{Defect, Runner, guarded};
use super::error::{Failure, Message};
use super::exit::Exit;
use super::run::refuse_input;
use super::select;
use super::terminal::{Progress, Terminal};
use report::Tally;
use unit::{Checked, Version};
use verdict::Verdict;

/// Checks what `args` name.
pub fn check(args: &CheckArgs, terminal: &mut Terminal<'_>, runner: Runner) -> Result<Exit, Failure> {
    if args.bless && terminal.ci {
        let message = Message::mistake("--bless is refused where CI is set");
        return Err(message.hint("bless on your own machine, read the diff, and commit the result").into());
    }
    let mut files = select::files(&args.paths)?;
    if let Some(junit) = &args.junit {
        refuse_input(junit, &files, "--junit")?;
    }
    let is_first = args.shard.is_none_or(|shard| shard.is_first());
    if let Some(shard) = args.shard {
        let mut index = 0..;
        files.retain(|file| index.next().is_some_and(|index| shard.takes(index, &layout::title(file))));
    }
    let orphans: Vec<PathBuf> = if is_first { layout::orphans(&args.paths)?.into_iter().collect() } else { Vec::new() };
    if files.is_empty() && orphans.is_empty() {
        return Err(Message::new(Exit::Nothing, "no scenario falls to this shard").into());
    }
    let versions = args.compat.map_or_else(|| Compat::ALL.to_vec(), |compat| vec![compat]);
    let mut session = Session {
        bless: args.bless,
        tally: Tally::default(),
        suites: Vec::new(),
        progress: Progress::new(files.len()),
    };
    session.progress.show(terminal, "")?;
    let work = |index: u64| {
        let file = &files[index as usize];
        (file, guarded(|| unit::check(file, &versions, runner)))
    };
    let jobs = args.jobs.map_or_else(cores, usize::from);
    in_order(files.len() as u64, jobs, work, |(file, checked)| session.take(file, &checked, terminal))?;
    session.progress.hide(terminal)?;
    session.orphans(&orphans, terminal)?;
    writeln!(terminal.out, "{}", session.tally.summary(terminal.style))?;
    if let Some(path) = &args.junit {
        let written = fs::write(path, junit(&session.suites));
        written.map_err(|error| Failure::file(path, "write the JUnit file here", &error))?;
    }
    Ok(session.tally.exit())
}

/// What has come of a check so far.
struct Session {
    bless: bool,
    tally: Tally,
    suites: Vec<Suite>,
    progress: Progress,
}

impl Session {
    /// Tells and counts what came of the scenario in `file`.
    fn take(
        &mut self,
        file: &Path,
        checked: &Result<Checked, Defect>,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), Failure> {
        self.progress.hide(terminal)?;
        let title = layout::title(file);
        match checked {
            Err(defect) => {
                self.tally.broken += 1;
                writeln!(terminal.out, "{} {title}", terminal.style.red("broken  "))?;
                writeln!(terminal.out, "{}: {defect}", file.display())?;
            }
            Ok(Err(mistakes)) => {
                self.tally.mistaken += 1;
                writeln!(terminal.out, "{} {title}", terminal.style.red("mistaken"))?;
                writeln!(terminal.out, "{mistakes}")?;
            }
            Ok(Ok(versions)) => {
                for version in versions {
                    self.version(file, &title, version, terminal)?;
                }
            }
        }
        self.suites.extend(report::suites(checked, file, &title));
        self.progress.advance();
        self.progress.show(terminal, &title)?;
        Ok(())
    }

    fn version(
        &mut self,
        file: &Path,
        title: &str,
        version: &Version,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), Failure> {
        let style = terminal.style;
        let blessable = self.bless && is_blessable(version);
        for case in &version.comparison.cases {
            let mut case = case.clone();
            if blessable && matches!(case.verdict, Verdict::Different | Verdict::Missing) {
                case.verdict = Verdict::Same;
            }
            self.tally.count(&case.verdict);
            writeln!(terminal.out, "{}", report::case_line(title, version, &case, style))?;
            if let Some(details) = report::details(file, &case) {
                writeln!(terminal.out, "{details}")?;
            }
        }
        let difference = report::difference(file, version, style);
        if !blessable {
            write!(terminal.out, "{}", difference.unwrap_or_default())?;
            if self.bless && !is_same(version) {
                writeln!(terminal.out, "{}", report::not_blessed(version))?;
            }
            return Ok(());
        }
        if is_same(version) {
            return Ok(());
        }
        write!(terminal.out, "{}", report::blessing(file, version, style))?;
        write_expected(version)?;
        self.tally.blessed += 1;
        Ok(())
    }

    fn orphans(&mut self, orphans: &[PathBuf], terminal: &mut Terminal<'_>) -> Result<(), Failure> {
        for orphan in orphans {
            self.tally.orphans += 1;
            writeln!(terminal.out, "{} {}", terminal.style.red("orphan  "), orphan.display())?;
            writeln!(terminal.out, "{}", report::orphan(orphan))?;
        }
        self.suites.extend(report::orphan_suite(orphans));
        Ok(())
    }
}

/// Whether what came out is what was expected, marks or not.
fn is_same(version: &Version) -> bool {
    let missing = version.comparison.cases.iter().any(|case| case.verdict == Verdict::Missing);
    !missing && version.comparison.difference.is_none()
}

/// Whether what came out can be what is expected from now on: every run ended as it should, and none is
/// known to be wrong.
fn is_blessable(version: &Version) -> bool {
    let ended = |verdict: &Verdict| matches!(verdict, Verdict::Same | Verdict::Different | Verdict::Missing);
    !version.marked && version.comparison.cases.iter().all(|case| ended(&case.verdict))
}

fn write_expected(version: &Version) -> Result<(), Failure> {
    let path = &version.expected;
    let home = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = home.and_then(|()| fs::write(path, &version.comparison.actual));
    written.map_err(|error| Failure::file(path, "write the expected transcript here", &error))
}
