//! The commands `explore`, `explore merge`, `replay` and `explain`: options in, text out. The command line only
//! fills the options in.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::quirks::{Compat, Quirks};
use crate::report::{Suite, TestCase, TestResult, junit};
use crate::scenario::{self, Case};

use super::auto::search_mixed;
use super::exhaustive::search_exhaustively;
use super::explain::{Explanation, explain};
use super::file::{NamedDeparture, ReplayFile};
use super::known;
use super::options::{ExploreOptions, Format, Method, Telling};
use super::parallel::search_on;
use super::progress::Progress;
use super::report;
use super::result::{self, Outcome, Search};
use super::run::Setup;
use super::schedule::Replay;
use super::search::{Plan, Tally, learn, search_bounded, search_covering};
use super::shrink::{Shrunk, shrink};
use super::story::tell;
use super::strategy::Reduction;
use super::tally::{Cells, Failure};

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Something the user gave is wrong.
    #[error("{0}")]
    Mistake(String),
    /// The scenario has no case of this name.
    #[error("{} has no case '{name}'", path.display())]
    NoCase {
        /// The scenario's file.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
    },
    /// A file of the user's can't be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Its name.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The output can't be written.
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Where a command writes, and who looks on.
pub struct Ui<'a> {
    /// Standard output.
    pub out: &'a mut dyn io::Write,
    /// Is given a line that may come and go, empty to take it away; none where nobody looks.
    pub progress: Option<&'a mut dyn FnMut(&str)>,
}

impl Ui<'_> {
    fn show(&mut self, line: &str) {
        if let Some(show) = &mut self.progress {
            show(line);
        }
    }
}

impl CommandError {
    /// A file that the system refuses.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> CommandError {
        let path = path.to_owned();
        |error| CommandError::File { path, error }
    }
}

fn mistake(what: impl ToString) -> CommandError {
    CommandError::Mistake(what.to_string())
}

fn cases_of(path: &Path, name: Option<&str>) -> Result<(String, Vec<Case>), CommandError> {
    let loaded = scenario::load(path).map_err(mistake)?;
    let cases = loaded.cases().map_err(mistake)?;
    let cases: Vec<Case> = cases.into_iter().filter(|case| name.is_none_or(|name| case.name == name)).collect();
    match (cases.is_empty(), name) {
        (true, Some(name)) => Err(CommandError::NoCase { path: path.to_owned(), name: name.to_owned() }),
        _ => Ok((loaded.text().to_owned(), cases)),
    }
}

/// Explores every case of a scenario; true if nothing new was broken.
pub fn explore(options: &ExploreOptions, ui: &mut Ui<'_>) -> Result<bool, CommandError> {
    let (text, cases) = cases_of(&options.scenario, options.case.as_deref())?;
    let defects = options.defects.iter().map(String::as_str);
    Quirks::with_defects(Compat::Qemu72, defects).map_err(CommandError::Mistake)?;
    let options = &with_listed(options, &text, &cases, ui)?;
    let plan = options.plan().map_err(CommandError::Mistake)?;
    let mut kept = Kept::open(options)?;
    let mut teller = Teller::new(&options.telling);
    for case in cases {
        let search = Search::of(options, &text, &case);
        let begin = Instant::now();
        let tally = search_case(options, &plan, &search, &mut kept, ui)?;
        let seconds = begin.elapsed().as_secs_f64();
        teller.case(Outcome::new(search, options.part, &tally), &tally, Some(seconds), ui)?;
    }
    teller.finish()
}

/// The options with what is known beside the scenario; says so. With a defect put in nothing is passed over that the
/// user has not named.
fn with_listed(
    options: &ExploreOptions,
    text: &str,
    cases: &[Case],
    ui: &mut Ui<'_>,
) -> Result<ExploreOptions, CommandError> {
    let mut options = options.clone();
    if !options.listed || !options.defects.is_empty() {
        return Ok(options);
    }
    let versions: Vec<Compat> = cases.iter().map(|case| options.compat.unwrap_or(case.settings.compat.0)).collect();
    for finding in known::beside(&options.scenario, text, &versions).map_err(CommandError::Mistake)? {
        if options.telling.format == Format::Text {
            writeln!(ui.out, "goes on past {} ({})", finding.finding, finding.signature())?;
        }
        options.known.push(finding.signature());
    }
    Ok(options)
}

/// Puts the results of parts of a search together and tells them as if it had been one.
pub fn merge(files: &[PathBuf], telling: &Telling, ui: &mut Ui<'_>) -> Result<bool, CommandError> {
    let mut outcomes = Vec::new();
    for file in files {
        outcomes.extend(result::read(file).map_err(CommandError::Mistake)?);
    }
    let mut teller = Teller::new(telling);
    for outcome in result::merge(outcomes).map_err(CommandError::Mistake)? {
        let tally = outcome.tally().map_err(CommandError::Mistake)?;
        teller.case(outcome, &tally, None, ui)?;
    }
    teller.finish()
}

/// What a checkpoint holds, and where it is.
struct Kept {
    path: Option<PathBuf>,
    outcomes: Vec<Outcome>,
    written: Instant,
}

/// How often a checkpoint is written while a search runs.
const KEEP: Duration = Duration::from_secs(2);

impl Kept {
    fn open(options: &ExploreOptions) -> Result<Kept, CommandError> {
        let there = options.checkpoint.as_ref().filter(|path| path.exists());
        let outcomes = there.map_or(Ok(Vec::new()), |path| result::read(path)).map_err(CommandError::Mistake)?;
        Ok(Kept { path: options.checkpoint.clone(), outcomes, written: Instant::now() })
    }

    /// How far this search has come.
    fn begun(&self, options: &ExploreOptions, search: &Search) -> Result<Tally, CommandError> {
        let found = self.outcomes.iter().find(|outcome| outcome.search.case == search.case);
        let Some(outcome) = found else { return Ok(Tally::default()) };
        let part = options.part.map(|part| part.to_string());
        let difference = outcome.search.difference(search);
        if let Some(difference) =
            difference.or_else(|| (outcome.part != part).then(|| format!("part {:?} and {part:?}", outcome.part)))
        {
            let path = self.path.as_deref().unwrap_or(Path::new("")).display().to_string();
            return Err(mistake(format!("{path}: the checkpoint is of another search: {difference}")));
        }
        outcome.tally().map_err(CommandError::Mistake)
    }

    /// Keeps what has been done; seldom unless it `must` be kept.
    fn keep(&mut self, outcome: impl FnOnce() -> Outcome, must: bool) -> Result<(), CommandError> {
        let Some(path) = &self.path else { return Ok(()) };
        if !must && self.written.elapsed() < KEEP {
            return Ok(());
        }
        let outcome = outcome();
        self.outcomes.retain(|other| other.search.case != outcome.search.case);
        self.outcomes.push(outcome);
        self.written = Instant::now();
        result::write(path, &self.outcomes).map_err(CommandError::file(path))
    }
}

fn search_case(
    options: &ExploreOptions,
    plan: &Plan,
    search: &Search,
    kept: &mut Kept,
    ui: &mut Ui<'_>,
) -> Result<Tally, CommandError> {
    let begun = kept.begun(options, search)?;
    let mut progress = Progress::new(&search.case, plan, options.time, begun.runs);
    let begin = Instant::now();
    let memory = plan.memory();
    let in_time = || options.time.is_none_or(|time| begin.elapsed() < time);
    // A case can't be sent to another thread, so each reads the scenario again; it was readable above.
    let make = || search.setup().expect("the scenario was read with this case a moment ago");
    if !matches!(options.method(), Method::Seeded(_) | Method::Auto) {
        let setup = make();
        let look = |tally: &Tally| {
            if let Some(line) = progress.line(tally) {
                ui.show(&line);
            }
            in_time()
        };
        let tally = match options.method() {
            Method::Bounded(bound) => search_bounded(&setup, plan, bound, look),
            Method::Exhaustive(reduction) => search_exhaustively(&setup, plan, reduction, look),
            _ => search_covering(&setup, plan, look),
        };
        ui.show("");
        return Ok(tally);
    }
    if options.method() == Method::Auto {
        let setup = make();
        let shown = std::cell::RefCell::new(|tally: &Tally| {
            if let Some(line) = progress.line(tally) {
                ui.show(&line);
            }
        });
        let look = |tally: &Tally| (shown.borrow_mut())(tally);
        let mut seeded = |begun: Tally, end: u64| {
            let part = Plan { end, ..plan.clone() };
            search_on(options.threads, &make, &part, &memory, begun, &in_time, &mut |tally| look(tally))
        };
        let mut go_on = |tally: &Tally| {
            look(tally);
            in_time()
        };
        let tally = search_mixed(&setup, plan, begun, &mut seeded, &mut go_on);
        ui.show("");
        return Ok(tally);
    }
    let mut trouble = None;
    let tally = search_on(options.threads, &make, plan, &memory, begun, &in_time, &mut |tally| {
        if let Some(line) = progress.line(tally) {
            ui.show(&line);
        }
        if trouble.is_none() {
            trouble = kept.keep(|| Outcome::new(search.clone(), options.part, tally), false).err();
        }
    });
    ui.show("");
    kept.keep(|| Outcome::new(search.clone(), options.part, &tally), true)?;
    trouble.map_or(Ok(tally), Err)
}

/// Tells results case by case and keeps what was asked for.
struct Teller<'a> {
    telling: &'a Telling,
    outcomes: Vec<Outcome>,
    suite: Vec<TestCase>,
    failures: u32,
}

impl<'a> Teller<'a> {
    fn new(telling: &'a Telling) -> Teller<'a> {
        Teller { telling, outcomes: Vec::new(), suite: Vec::new(), failures: 0 }
    }

    /// Tells what became of one case; `seconds` is how long it took, where anybody knows.
    fn case(
        &mut self,
        outcome: Outcome,
        tally: &Tally,
        seconds: Option<f64>,
        ui: &mut Ui<'_>,
    ) -> Result<(), CommandError> {
        let search = outcome.search.clone();
        let setup = search.setup().map_err(CommandError::Mistake)?;
        let mut found = None;
        if let Some(failure) = &tally.failure {
            ui.show("shrinking ...");
            let shown = setup.to_show(&failure.violation);
            let known = known::read(&search.known).map_err(CommandError::Mistake)?;
            let scenario = (&*search.scenario_name, &*search.scenario);
            let shrunk = shrink(scenario, &shown, failure, &known, self.telling.shrink);
            ui.show("explaining ...");
            let explanation = explain(&shrunk.setup, &shrunk.departures, &shrunk.violation);
            ui.show("");
            found = Some((failure, shrunk, explanation));
        }
        let saved = match &found {
            Some((_, shrunk, _)) => self.save(&search, shrunk)?,
            None => None,
        };
        let report = found.as_ref().map(|(failure, shrunk, explanation)| {
            failure_text(&search, failure, shrunk, explanation, saved.as_deref())
        });
        match self.telling.format {
            Format::Json => {
                let shrunk = found.as_ref().map(|(_, shrunk, _)| shrunk);
                writeln!(ui.out, "{}", as_json(&search, &setup, tally, shrunk, seconds, saved.as_deref()))?;
            }
            Format::Text => {
                write!(ui.out, "{}", summary(&search, &setup, tally, seconds))?;
                write!(ui.out, "{}", report.as_deref().unwrap_or_default())?;
            }
        }
        let result = match (&found, report) {
            (Some((_, shrunk, _)), Some(report)) => TestResult::Failure(shrunk.violation.to_string(), report),
            _ => TestResult::Passed,
        };
        self.suite.push(TestCase { name: search.case.clone(), result });
        self.outcomes.push(outcome);
        Ok(())
    }

    /// Writes the replay file; that of a further case gets a number.
    fn save(&mut self, search: &Search, shrunk: &Shrunk) -> Result<Option<PathBuf>, CommandError> {
        self.failures += 1;
        let Some(path) = &self.telling.save else { return Ok(None) };
        let path = if self.failures == 1 { path.clone() } else { numbered(path, self.failures) };
        let file = replay_file(search, shrunk);
        std::fs::write(&path, file.to_yaml()).map_err(CommandError::file(&path))?;
        Ok(Some(path))
    }

    /// Writes the files for other programs; true if nothing new was broken.
    fn finish(self) -> Result<bool, CommandError> {
        if let Some(path) = &self.telling.out {
            result::write(path, &self.outcomes).map_err(CommandError::file(path))?;
        }
        if let Some(path) = &self.telling.junit {
            let name = self.outcomes.first().map_or_else(String::new, |outcome| outcome.search.scenario_name.clone());
            let stem = Path::new(&name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let version = self.outcomes.first().and_then(|outcome| outcome.search.compat.clone());
            let parts = ["explore".to_owned()].into_iter().chain(version).chain(stem);
            let class: Vec<String> = parts.map(|part| part.replace('.', "_")).collect();
            let class = class.join(".");
            let text = junit(&[Suite { name, class, cases: self.suite }]);
            std::fs::write(path, text).map_err(CommandError::file(path))?;
        }
        Ok(self.failures == 0)
    }
}

/// `found.yaml` becomes `found-2.yaml`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    path.with_file_name(name)
}

fn as_json(
    search: &Search,
    setup: &Setup,
    tally: &Tally,
    shrunk: Option<&Shrunk>,
    seconds: Option<f64>,
    saved: Option<&Path>,
) -> serde_json::Value {
    let cells = Cells::of(&tally.cells);
    json!({
        "scenario": search.scenario_name,
        "case": search.case,
        "compat": setup.version().name(),
        "strategy": search.strategy,
        "seed": search.seed,
        "runs": tally.runs,
        "seconds": seconds,
        "states": tally.states.len(),
        "coverage": tally.coverage.len(),
        "cells": {"reached": cells.reached, "states": cells.states, "operations": cells.operations},
        "known": tally.known.len(),
        "complete": tally.complete,
        "invariant": shrunk.map(|shrunk| shrunk.violation.invariant().name()),
        "breach": shrunk.map(|shrunk| shrunk.violation.breach.name()),
        "violation": shrunk.map(|shrunk| shrunk.violation.to_string()),
        "schedule": tally.failure.as_ref().map(|failure| failure.index),
        "departures": shrunk.map(|shrunk| shrunk.departures.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "replay": saved.map(|path| format!("backsim replay {}", path.display())),
    })
}

fn summary(search: &Search, setup: &Setup, tally: &Tally, seconds: Option<f64>) -> String {
    let version = search.compat.as_ref().map_or_else(String::new, |compat| format!(" as {compat}"));
    let mut text = format!("{}{version}: {} schedules", search.case, tally.runs);
    if let Some(seconds) = seconds {
        let _ = write!(text, " in {seconds:.1} s ({:.0} a second", tally.runs as f64 / seconds.max(1e-9));
        if tally.remembered > 0 {
            let _ = write!(text, "; the ends of {} % were known already", tally.remembered * 100 / tally.runs.max(1));
        }
        text.push(')');
    }
    let cells = Cells::of(&tally.cells);
    let _ = writeln!(
        text,
        "\n  {} final states, {} abstract states, {} of {} job states x device operations",
        tally.states.len(),
        tally.coverage.len(),
        cells.reached,
        cells.states * cells.operations
    );
    let guarantee = match search.method() {
        Ok(Method::Bounded(bound)) if tally.complete => {
            Some(format!("complete: every schedule with at most {bound} departures from QEMU's own order was run"))
        }
        Ok(Method::Bounded(bound)) => Some(format!("incomplete: schedules with at most {bound} departures are left")),
        Ok(Method::Exhaustive(reduction)) => {
            tally.classes.as_ref().map(|classes| classes.text(reduction, tally.complete))
        }
        Ok(Method::Seeded(kind)) => kind.guarantee(tally.runs, &learn(setup).0),
        Ok(Method::Auto) => {
            tally.classes.as_ref().map(|found| found.text(Reduction::SourceSets, found.about.is_none()))
        }
        Ok(Method::Coverage) | Err(_) => None,
    };
    if let Some(guarantee) = guarantee {
        let _ = writeln!(text, "  {guarantee}");
    }
    if !tally.known.is_empty() {
        let _ = writeln!(text, "  {} runs broke only what is known", tally.known.len());
    }
    text
}

fn failure_text(
    search: &Search,
    failure: &Failure,
    shrunk: &Shrunk,
    explanation: &Explanation,
    saved: Option<&Path>,
) -> String {
    let (run, _, story) = tell(&shrunk.setup, Box::new(Replay::new(&shrunk.departures).0));
    let mut text = format!("\n{}", report::wrapped(&shrunk.violation.to_string()));
    let _ = write!(text, "{}", report::wrapped(&format!("schedule {}; {}", failure.index, report::shrinking(shrunk))));
    let _ = writeln!(text, "* departs from QEMU's own order\n\n{}", report::table(&story, &run.violations));
    text += &report::explanation(explanation);
    let setup = &shrunk.setup;
    let compat = setup.compat.unwrap_or(setup.case.settings.compat.0);
    let finding = known::recognize(&shrunk.violation, &shrunk.scenario, compat).filter(|_| search.defects.is_empty());
    if let Some(finding) = finding {
        let said = format!(
            "known: QEMU itself does this: {} in docs/findings.md; --known {} goes on past it",
            finding.finding,
            quoted(&finding.signature())
        );
        text += &report::wrapped(&said);
    }
    let replay = match saved {
        Some(path) => format!("backsim replay {}", quoted(&path.display().to_string())),
        None => format!("{} --save FILE && backsim replay FILE", again(search, failure)),
    };
    let _ = writeln!(text, "replay: {replay}");
    text
}

/// The command that finds the failure again.
fn again(search: &Search, failure: &Failure) -> String {
    let mut command = format!("backsim explore {} --case {}", quoted(&search.scenario_name), quoted(&search.case));
    if let Some(compat) = &search.compat {
        command += &format!(" --compat {compat}");
    }
    for (flag, values) in [("--defect", &search.defects), ("--known", &search.known)] {
        values.iter().for_each(|value| command += &format!(" {flag} {}", quoted(value)));
    }
    command += &format!(" --strategy {} --depth {} --seed {}", search.strategy, search.depth, search.seed);
    // What `auto` spends on what depends on the whole.
    let schedules = if search.strategy == "auto" { search.schedules } else { failure.index + 1 };
    command + &format!(" --schedules {schedules}")
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn replay_file(search: &Search, shrunk: &Shrunk) -> ReplayFile {
    ReplayFile {
        backsim: env!("CARGO_PKG_VERSION").to_owned(),
        invariant: shrunk.violation.invariant().name().to_owned(),
        breach: shrunk.violation.breach.name().to_owned(),
        violation: shrunk.violation.text.clone(),
        case: shrunk.setup.case.name.clone(),
        compat: search.compat.clone(),
        defects: search.defects.clone(),
        departures: shrunk.departures.iter().map(NamedDeparture::from).collect(),
        scenario_name: search.scenario_name.clone(),
        scenario: shrunk.scenario.clone(),
    }
}
