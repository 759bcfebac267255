//! The command `conform`: options in, text and a status out.
//!
//! Everything a user reads of it is written here. Must never decide anything by what it prints, and never
//! touch the terminal: both writers are given.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::explore::file::ReplayFile;
use crate::scenario::load;
use crate::workers::in_order;

use super::forced::{Forced, force};
use super::generate::{Family, generate};
use super::search::{Counts, Done, Search, SearchOptions, Summary};
use super::tools::{Qemu, QemuError};
use super::trial::{CaseReport, Model, Repeat, Trial};
use super::verdict::Verdict;

/// How many lines of a difference are shown; all of it is in the files that are kept.
const SHOWN_LINES: usize = 60;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct ConformOptions {
    /// Scenario files.
    pub files: Vec<PathBuf>,
    /// Replay files whose schedules are forced on the real QEMU (`--schedule`).
    pub schedules: Vec<PathBuf>,
    /// Generated scenarios to be compared after them.
    pub generate: Option<GenerateOptions>,
    /// The system emulator (`--qemu`); `None`: `$QEMU_PROG`, or what `PATH` has.
    pub qemu: Option<PathBuf>,
    /// The image tool (`--qemu-img`); `None`: `$QEMU_IMG_PROG`, or what `PATH` has.
    pub qemu_img: Option<PathBuf>,
    /// How often real QEMU does each case of a file. Generated scenarios are repeated only if they differ.
    pub repeat: u32,
    /// In how many other orders the model is asked where its own does not agree (`--orders`).
    pub orders: u64,
    /// Where the files of all real runs are kept (`--keep`).
    pub keep: Option<PathBuf>,
    /// How many scenarios are compared at a time.
    pub jobs: usize,
    /// How long QEMU may take for any answer.
    pub patience: Duration,
}

/// What is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How many scenarios.
    pub count: u64,
    /// The seed of the first; each further one has the next.
    pub seed: u64,
    /// Of which family; `None`: of all of them.
    pub family: Option<Family>,
    /// Where differences are written.
    pub out: PathBuf,
    /// How many runs of real QEMU the shrinking of one difference may cost.
    pub shrink_budget: u32,
    /// How many differences are shrunk.
    pub shrink_most: u64,
}

/// How the comparison came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nothing differs; scenarios that are skipped or unstable do not count.
    Same,
    /// Something differs, or QEMU failed.
    Different,
    /// A file is not a scenario.
    Invalid,
}

/// Why there was no comparison.
#[derive(Debug, thiserror::Error)]
pub enum ConformError {
    /// No QEMU to compare with.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The results could not be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Compares what `options` name with `model`. Results go to `out`, what is only of interest while it lasts to
/// `progress`.
pub fn command(
    options: &ConformOptions,
    model: &Model<'_>,
    out: &mut dyn Write,
    progress: &mut dyn Write,
) -> Result<Status, ConformError> {
    let qemu = Qemu::find(options.qemu.as_deref(), options.qemu_img.as_deref(), options.patience)?;
    let package = if qemu.package.is_empty() { String::new() } else { format!(" ({})", qemu.package) };
    writeln!(out, "QEMU {}{package}, compared as {}", qemu.version, qemu.compat().name())?;
    if let Some(note) = qemu.version.note() {
        writeln!(out, "note: {note}")?;
    }
    let trial = Trial {
        qemu: &qemu,
        model,
        repeat: Repeat { runs: options.repeat, only_if_different: false },
        orders: options.orders,
        keep: options.keep.as_deref(),
    };
    let mut status = Status::Same;
    if !options.files.is_empty() {
        status = status.max(files(options, &trial, out)?);
    }
    for file in &options.schedules {
        status = status.max(carried_over(&qemu, file, out)?);
    }
    if let Some(wanted) = &options.generate {
        status = status.max(generated(options, wanted, trial, out, progress)?);
    }
    Ok(status)
}

/// A scenario file compared, or the text of its mistakes.
type FileReport = Result<Vec<CaseReport>, String>;

fn files(options: &ConformOptions, trial: &Trial<'_>, out: &mut dyn Write) -> io::Result<Status> {
    let work = |index: u64| -> (&Path, FileReport) {
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let file = options.files.get(place).map_or(Path::new(""), PathBuf::as_path);
        let reports = load(file).and_then(|scenario| trial.scenario(&scenario));
        (file, reports.map_err(|mistakes| mistakes.to_string()))
    };
    let mut counts = Counts::default();
    in_order(options.files.len() as u64, options.jobs, work, |(file, report)| {
        file_report(trial, file, &report, &mut counts, out)
    })?;
    writeln!(out, "{}", sentence(&counts))?;
    Ok(status_of(&counts))
}

fn status_of(counts: &Counts) -> Status {
    if counts.invalid > 0 {
        Status::Invalid
    } else if counts.different + counts.broken > 0 {
        Status::Different
    } else {
        Status::Same
    }
}

/// The counts in words, without those that are zero.
fn sentence(counts: &Counts) -> String {
    let parts = [
        (counts.same, "same"),
        (counts.reordered, "reordered"),
        (counts.different, "different"),
        (counts.unstable, "unstable"),
        (counts.broken, "broken"),
        (counts.skipped, "skipped"),
        (counts.invalid, "not a scenario"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "nothing to compare".to_owned() } else { parts.join(", ") }
}

/// One line for a file of which all cases are the same, else one for each other case, with its difference.
fn file_report(
    trial: &Trial<'_>,
    file: &Path,
    report: &FileReport,
    counts: &mut Counts,
    out: &mut dyn Write,
) -> io::Result<()> {
    let file = file.display();
    let reports = match report {
        Ok(reports) => reports,
        Err(mistakes) => {
            counts.invalid += 1;
            writeln!(out, "{:<10} {file}", "invalid")?;
            return writeln!(out, "{}", mistakes.trim_end());
        }
    };
    reports.iter().for_each(|report| counts.count(&report.verdict));
    let same = reports.iter().filter(|report| report.verdict == Verdict::Same).count();
    if same > 0 {
        let all = if same == reports.len() { String::new() } else { format!(" of {}", reports.len()) };
        let cases = if reports.len() == 1 { String::new() } else { format!(" ({same}{all} cases)") };
        writeln!(out, "{:<10} {file}{cases}", "same")?;
    }
    for report in reports {
        case_report(trial, &file.to_string(), report, reports.len(), out)?;
    }
    Ok(())
}

fn case_report(
    trial: &Trial<'_>,
    file: &str,
    report: &CaseReport,
    cases: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let case = if cases == 1 { String::new() } else { format!(" case `{}`", report.name) };
    if report.verdict != Verdict::Same {
        writeln!(out, "{:<10} {file}{case}{}", report.verdict.word(), explained(&report.verdict))?;
    }
    if let Some(difference) = report.verdict.difference() {
        let diff = difference.diff(&format!("QEMU {}", trial.qemu.version), "model");
        for line in diff.lines().take(SHOWN_LINES) {
            writeln!(out, "    {line}")?;
        }
        let more = diff.lines().count().saturating_sub(SHOWN_LINES);
        if more > 0 {
            writeln!(out, "    ... {more} more lines")?;
        }
        if let Some(dir) = report.kept.first() {
            std::fs::write(dir.join("qemu.transcript"), difference.real.text())?;
            std::fs::write(dir.join("model.transcript"), difference.model.text())?;
        }
    }
    for dir in &report.kept {
        writeln!(out, "    kept: {}", dir.display())?;
    }
    Ok(())
}

/// What there is to say about a verdict behind its word.
fn explained(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Same | Verdict::Different(_) => String::new(),
        Verdict::Skipped { why } => format!(": {why}"),
        Verdict::Reordered { ways: 1 } => ": QEMU's way is the model's in another order".to_owned(),
        Verdict::Reordered { ways } => format!(": QEMU took {ways} different ways, all of them the model's"),
        Verdict::Unstable { ways, known, .. } => {
            let known = match known {
                0 => "none of them is the model's".to_owned(),
                1 => "one of them is the model's".to_owned(),
                some => format!("{some} of them are the model's"),
            };
            format!(": QEMU took {ways} different ways, {known}")
        }
        Verdict::Broken { trouble, .. } => {
            let output = trouble.output.trim_end();
            let printed = if output.is_empty() { String::new() } else { format!("; it printed:\n{output}") };
            format!(": {trouble}{printed}")
        }
    }
}

/// Forces the schedule of a replay file and tells what came of it. Where not every move could be forced, a
/// difference may come of that, and is none.
fn carried_over(qemu: &Qemu, path: &Path, out: &mut dyn Write) -> io::Result<Status> {
    let name = path.display();
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let report = match read.and_then(|text| ReplayFile::parse(&text)).and_then(|file| force(qemu, &file)) {
        Ok(report) => report,
        Err(why) => {
            writeln!(out, "{:<10} {name}: {why}", "invalid")?;
            return Ok(Status::Invalid);
        }
    };
    let word = match (report.is_same(), report.is_complete()) {
        (true, _) => "same",
        (false, true) => "different",
        (false, false) => "unforced",
    };
    let Forced { actors, held, in_place, free } = &report.forced;
    let in_turn = actors + held + in_place;
    writeln!(out, "{word:<10} {name}: {in_turn} of {} moves came in their turn", report.moves)?;
    writeln!(
        out,
        "    {actors} of clients, {held} of devices held till their turn, {in_place} in their place by themselves"
    )?;
    for free in free {
        writeln!(out, "    not forced: {free}")?;
    }
    for misfit in &report.misfits {
        writeln!(out, "    does not fit any more: {misfit}")?;
    }
    for image in &report.images {
        writeln!(out, "    {image}")?;
    }
    if let Some(difference) = report.verdict.difference() {
        for line in difference.diff(&format!("QEMU {}", qemu.version), "model").lines().take(SHOWN_LINES) {
            writeln!(out, "    {line}")?;
        }
    }
    Ok(if word == "different" { Status::Different } else { Status::Same })
}

fn generated(
    options: &ConformOptions,
    wanted: &GenerateOptions,
    trial: Trial<'_>,
    out: &mut dyn Write,
    progress: &mut dyn Write,
) -> io::Result<Status> {
    // What happens to be the same is the same, unless each way that QEMU may take is asked for; only a difference has to be
    // told from chance.
    let repeat = Repeat { runs: options.repeat.max(3), only_if_different: options.orders == 0 };
    let made = |seed| generate(seed, wanted.family);
    let search = Search { trial: Trial { repeat, ..trial }, generate: &made };
    let search_options = SearchOptions {
        seed: wanted.seed,
        count: wanted.count,
        jobs: options.jobs,
        out: wanted.out.clone(),
        shrink_budget: wanted.shrink_budget,
        shrink_most: wanted.shrink_most,
    };
    let mut written = Ok(());
    let summary = search.run(&search_options, &mut |done, summary| {
        written = one_generated(done, summary, wanted.count, out, progress);
        written.is_ok()
    });
    written?;
    writeln!(progress)?;
    write!(out, "{summary}")?;
    let all = summary.all();
    writeln!(out, "{:.2} % of what could be compared is the same", all.agreement() * 100.0)?;
    Ok(status_of(&all))
}

fn one_generated(
    done: &Done,
    summary: &Summary,
    count: u64,
    out: &mut dyn Write,
    progress: &mut dyn Write,
) -> io::Result<()> {
    let all = summary.all();
    write!(progress, "\r{}/{count}: {}", all.total(), sentence(&all))?;
    progress.flush()?;
    let word = match &done.result {
        Ok(Verdict::Same | Verdict::Reordered { .. } | Verdict::Skipped { .. }) => return Ok(()),
        Ok(verdict) => format!("{}{}", verdict.word(), explained(verdict)),
        Err(_) => "invalid: the generator's text is not a scenario".to_owned(),
    };
    writeln!(progress)?;
    writeln!(out, "family {}, seed {}: {word}", done.family, done.seed)?;
    match (&done.written, &done.write_error) {
        (Some(dir), _) => writeln!(out, "    written: {}", dir.display()),
        (None, Some(why)) => writeln!(out, "    could not be written: {why}"),
        (None, None) => Ok(()),
    }
}
