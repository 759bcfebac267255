//! The commands `explore` and `replay`: options in, text out. The command line only fills these options in.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::scenario::{self, Case};

use super::exhaustive::{Classes, search_exhaustively};
use super::file::{NamedDeparture, ReplayFile};
use super::model::Invariant;
use super::parallel::search_on;
use super::report;
use super::run::Setup;
use super::search::{Failure, Plan, Tally, learn, replay, search_bounded, search_covering};
use super::shrink::{Shrunk, shrink};
use super::strategy::{Kind, Reduction};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a case and line.
    Json,
}

/// How the runs are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A seeded strategy.
    Seeded(Kind),
    /// Every schedule with at most so many departures.
    Bounded(usize),
    /// Variations of runs that reached something new.
    Coverage,
    /// Every schedule, or one of each class.
    Exhaustive(Reduction),
}

/// Options of `backsim explore`.
#[derive(Clone, Debug)]
pub struct ExploreOptions {
    /// The scenario.
    pub scenario: PathBuf,
    /// Only the case of this name.
    pub case: Option<String>,
    /// How runs are chosen.
    pub method: Method,
    /// Runs per case at most.
    pub schedules: u64,
    /// Time per case at most.
    pub time: Option<Duration>,
    /// Seeds the strategies.
    pub seed: u64,
    /// Defects to put in.
    pub defects: Vec<String>,
    /// Threads.
    pub threads: u64,
    /// Part `m` (from 1) of `n` of the runs.
    pub shard: (u64, u64),
    /// Known violations, `INVARIANT` or `INVARIANT:PART OF THE TEXT`.
    pub known: Vec<String>,
    /// Runs that shrinking may take; 0: none.
    pub shrink: u64,
    /// Where the replay file goes.
    pub save: Option<PathBuf>,
    /// How to write.
    pub format: Format,
}

impl ExploreOptions {
    /// The defaults for a scenario.
    pub fn new(scenario: PathBuf) -> ExploreOptions {
        ExploreOptions {
            scenario,
            case: None,
            method: Method::Seeded(Kind::Auto),
            schedules: 10_000,
            time: None,
            seed: 0,
            defects: Vec::new(),
            threads: 1,
            shard: (1, 1),
            known: Vec::new(),
            shrink: 2_000,
            save: None,
            format: Format::Text,
        }
    }

    fn plan(&self) -> Result<Plan, String> {
        let kind = match self.method {
            Method::Seeded(kind) => kind,
            Method::Bounded(_) | Method::Coverage | Method::Exhaustive(_) => Kind::Auto,
        };
        let mut plan = Plan::new(kind, self.seed, self.schedules);
        (plan.first, plan.stride) = (self.shard.0.saturating_sub(1), self.shard.1.max(1));
        for known in &self.known {
            let (name, part) = known.split_once(':').unwrap_or((known, ""));
            Invariant::from_name(name).ok_or_else(|| format!("no invariant is called '{name}'"))?;
            plan.known.push((name.to_owned(), part.trim().to_owned()));
        }
        Ok(plan)
    }
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Something the user gave is wrong.
    #[error("{0}")]
    Mistake(String),
    /// The output can't be written.
    #[error("{0}")]
    Output(#[from] io::Error),
}

fn cases_of(path: &Path, name: Option<&str>) -> Result<(String, Vec<Case>), CommandError> {
    let loaded = scenario::load(path).map_err(|found| CommandError::Mistake(found.to_string()))?;
    let cases = loaded.cases().map_err(|found| CommandError::Mistake(found.to_string()))?;
    let cases: Vec<Case> = cases.into_iter().filter(|case| name.is_none_or(|name| case.name == name)).collect();
    match (cases.is_empty(), name) {
        (true, Some(name)) => Err(CommandError::Mistake(format!("{} has no case '{name}'", path.display()))),
        _ => Ok((loaded.text().to_owned(), cases)),
    }
}

/// Explores every case of a scenario; true if nothing new was broken.
pub fn explore(options: &ExploreOptions, out: &mut dyn io::Write) -> Result<bool, CommandError> {
    let (text, cases) = cases_of(&options.scenario, options.case.as_deref())?;
    let mut sound = true;
    for case in cases {
        sound &= explore_case(options, &text, &case, out)?;
    }
    Ok(sound)
}

fn explore_case(
    options: &ExploreOptions,
    text: &str,
    case: &Case,
    out: &mut dyn io::Write,
) -> Result<bool, CommandError> {
    let plan = options.plan().map_err(CommandError::Mistake)?;
    let setup = Setup::new(case.clone(), options.defects.clone());
    let begin = Instant::now();
    let in_time = move || options.time.is_none_or(|time| begin.elapsed() < time);
    let mut classes = None;
    let tally = match options.method {
        Method::Coverage => search_covering(&setup, &plan, |_| in_time()),
        Method::Exhaustive(reduction) => {
            let (tally, found) = search_exhaustively(&setup, &plan, reduction, |_| in_time());
            classes = Some(found);
            tally
        }
        Method::Bounded(bound) => search_bounded(&setup, &plan, bound, |_| in_time()),
        Method::Seeded(_) => {
            let (path, index, defects) = (options.scenario.clone(), case.index, options.defects.clone());
            // A case can't be sent to another thread, so each reads the scenario again; it was readable above.
            let make = move || {
                let cases = scenario::load(&path).and_then(|loaded| loaded.cases()).unwrap_or_default();
                let own = cases.into_iter().find(|case| case.index == index);
                Setup::new(own.expect("the scenario was read with this case a moment ago"), defects.clone())
            };
            search_on(options.threads, &make, &plan, &|_| in_time())
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    let shrunk = tally.failure.as_ref().map(|failure| shrink(&setup, failure, options.shrink));
    match options.format {
        Format::Json => writeln!(out, "{}", as_json(case, &tally, shrunk.as_ref(), seconds))?,
        Format::Text => {
            write!(out, "{}", summary(options, &setup, &tally, classes.as_ref(), seconds))?;
            if let (Some(failure), Some(shrunk)) = (&tally.failure, &shrunk) {
                write!(out, "{}", failure_text(options, failure, shrunk))?;
            }
        }
    }
    if let (Some(shrunk), Some(path)) = (&shrunk, &options.save) {
        std::fs::write(path, replay_file(options, text, shrunk).to_yaml())?;
    }
    Ok(tally.failure.is_none())
}

fn as_json(case: &Case, tally: &Tally, shrunk: Option<&Shrunk>, seconds: f64) -> serde_json::Value {
    json!({
        "case": case.name,
        "runs": tally.runs,
        "seconds": seconds,
        "states": tally.states.len(),
        "coverage": tally.coverage.len(),
        "known": tally.known,
        "complete": tally.complete,
        "violation": shrunk.map(|shrunk| shrunk.violation.to_string()),
        "schedule": tally.failure.as_ref().map(|failure| failure.index),
    })
}

fn summary(options: &ExploreOptions, setup: &Setup, tally: &Tally, classes: Option<&Classes>, seconds: f64) -> String {
    let mut text = format!(
        "{}: {} schedules in {seconds:.1} s ({:.0} a second), {} final states, {} abstract states\n",
        setup.case.name,
        tally.runs,
        tally.runs as f64 / seconds.max(1e-9),
        tally.states.len(),
        tally.coverage.len()
    );
    let guarantee = match options.method {
        Method::Bounded(bound) if tally.complete => {
            Some(format!("complete: every schedule with at most {bound} departures from QEMU's own order was run"))
        }
        Method::Bounded(bound) => Some(format!("incomplete: schedules with at most {bound} departures are left")),
        Method::Coverage => None,
        Method::Exhaustive(reduction) => classes.map(|classes| classes.text(reduction, tally.complete)),
        Method::Seeded(kind) => kind.guarantee(tally.runs, &learn(setup).0),
    };
    if let Some(guarantee) = guarantee {
        let _ = writeln!(text, "  {guarantee}");
    }
    if tally.known > 0 {
        let _ = writeln!(text, "  {} runs broke only what is known", tally.known);
    }
    text
}

fn failure_text(options: &ExploreOptions, failure: &Failure, shrunk: &Shrunk) -> String {
    let (_, record, _) = replay(&shrunk.setup, &shrunk.departures);
    let mut text = format!("\n{}\n", shrunk.violation);
    let _ = writeln!(
        text,
        "schedule {}; shrunk from {} to {} departures and from {} to {} commands in {} runs; * departs from QEMU's order\n",
        failure.index,
        shrunk.departures_before,
        shrunk.departures.len(),
        shrunk.steps_before,
        super::shrink::size(&shrunk.setup.case.steps),
        shrunk.runs
    );
    text += &report::table(&record.arrivals);
    if let Some(path) = &options.save {
        let _ = writeln!(text, "\nreplay: backsim replay {}", path.display());
    }
    text
}

/// The file keeps the whole scenario, so what shrinking took out of it is only left out of the table.
fn replay_file(options: &ExploreOptions, text: &str, shrunk: &Shrunk) -> ReplayFile {
    ReplayFile {
        backsim: env!("CARGO_PKG_VERSION").to_owned(),
        invariant: shrunk.violation.invariant.name().to_owned(),
        violation: shrunk.violation.text.clone(),
        case: shrunk.setup.case.name.clone(),
        defects: options.defects.clone(),
        departures: shrunk.departures.iter().map(NamedDeparture::from).collect(),
        removed: shrunk.removed.clone(),
        scenario_name: options.scenario.display().to_string(),
        scenario: text.to_owned(),
    }
}

/// Replays a file; true if it breaks what it says.
pub fn replay_command(path: &Path, out: &mut dyn io::Write) -> Result<bool, CommandError> {
    let text = std::fs::read_to_string(path)?;
    let file = ReplayFile::parse(&text).map_err(CommandError::Mistake)?;
    let mut setup = Setup::new(file.find_case().map_err(CommandError::Mistake)?, file.defects.clone());
    for part in &file.removed {
        setup = super::shrink::remove(&setup, *part);
    }
    let (run, record, fit) = replay(&setup, &file.schedule());
    write!(out, "{}\n{}", report::violations(&run.violations), report::table(&record.arrivals))?;
    for missed in &fit.missed {
        writeln!(out, "does not fit any more: {missed}")?;
    }
    for moved in &fit.moved {
        writeln!(out, "came later than written: {moved}")?;
    }
    let same = run.violations.iter().any(|violation| violation.invariant.name() == file.invariant);
    if !same {
        writeln!(out, "{} does not break any more", file.invariant)?;
    }
    Ok(same)
}
