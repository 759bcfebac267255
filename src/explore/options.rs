//! What `backsim explore` can be asked for, and what that means for a search.

use std::path::PathBuf;
use std::time::Duration;

use crate::quirks::Compat;
use crate::shard::Shard;

use super::known;
use super::search::Plan;
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
    /// Everything: seeded runs, the exhaustive search where it may end, variations.
    Auto,
    /// A seeded strategy.
    Seeded(Kind),
    /// Every schedule with at most so many departures.
    Bounded(usize),
    /// Variations of runs that reached something new.
    Coverage,
    /// Every schedule, or one of each class.
    Exhaustive(Reduction),
}

impl Method {
    /// The method that `--strategy` and `--depth` name.
    pub fn from_name(name: &str, depth: u32) -> Option<Method> {
        match name {
            "auto" => Some(Method::Auto),
            "bounded" => Some(Method::Bounded(depth as usize)),
            "coverage" => Some(Method::Coverage),
            "exhaustive" => Some(Method::Exhaustive(Reduction::SourceSets)),
            "unreduced" => Some(Method::Exhaustive(Reduction::None)),
            name => Kind::from_name(name, depth).map(Method::Seeded),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Seeded(kind) => kind.name(),
            Method::Bounded(_) => "bounded",
            Method::Coverage => "coverage",
            Method::Exhaustive(Reduction::None) => "unreduced",
            Method::Exhaustive(_) => "exhaustive",
        }
    }
}

/// What is done with a failure that was found.
#[derive(Clone, Debug)]
pub struct Telling {
    /// Runs that shrinking may take; 0: none.
    pub shrink: u64,
    /// Where the replay file goes.
    pub save: Option<PathBuf>,
    /// How to write.
    pub format: Format,
    /// Where the results go as JSON lines, for `merge`.
    pub out: Option<PathBuf>,
    /// Where the results go as JUnit XML.
    pub junit: Option<PathBuf>,
}

impl Default for Telling {
    fn default() -> Telling {
        Telling { shrink: SHRINK, save: None, format: Format::Text, out: None, junit: None }
    }
}

/// Runs that shrinking takes at most unless it is told otherwise.
pub const SHRINK: u64 = 3_000;

/// Options of `backsim explore`.
#[derive(Clone, Debug)]
pub struct ExploreOptions {
    /// The scenario.
    pub scenario: PathBuf,
    /// Only the case of this name.
    pub case: Option<String>,
    /// Whose behaviour; none: the scenario's.
    pub compat: Option<Compat>,
    /// How runs are chosen.
    pub method: Method,
    /// As `--depth` says.
    pub depth: u32,
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
    /// The part of the runs that is made here.
    pub part: Option<Shard>,
    /// Known violations: the name of an invariant or a breach, with or without `:PART OF THE TEXT`.
    pub known: Vec<String>,
    /// Whether what is listed beside the scenario is known too.
    pub listed: bool,
    /// Where the search is kept while it runs, and taken up again.
    pub checkpoint: Option<PathBuf>,
    /// What is done with what is found.
    pub telling: Telling,
}

impl ExploreOptions {
    /// The defaults for a scenario.
    pub fn new(scenario: PathBuf) -> ExploreOptions {
        ExploreOptions {
            scenario,
            case: None,
            compat: None,
            method: Method::Auto,
            depth: 2,
            schedules: 10_000,
            time: None,
            seed: 0,
            defects: Vec::new(),
            threads: 1,
            part: None,
            known: Vec::new(),
            listed: true,
            checkpoint: None,
            telling: Telling::default(),
        }
    }

    /// How runs are chosen: a search in parts or with checkpoints can only be of seeded runs.
    pub fn method(&self) -> Method {
        let in_one_piece = self.part.is_none() && self.checkpoint.is_none();
        if self.method == Method::Auto && !in_one_piece { Method::Seeded(Kind::Auto) } else { self.method }
    }

    /// What is to be run of each case.
    pub fn plan(&self) -> Result<Plan, String> {
        let kind = match self.method() {
            Method::Seeded(kind) => kind,
            method if self.part.is_some() || self.checkpoint.is_some() => {
                return Err(format!(
                    "a {} search goes through its schedules in one piece: it has no parts and no checkpoints",
                    method.name()
                ));
            }
            Method::Auto | Method::Bounded(_) | Method::Coverage | Method::Exhaustive(_) => Kind::Auto,
        };
        let mut plan = Plan::new(kind, self.seed, self.schedules);
        plan.part = self.part;
        plan.known = known::read(&self.known)?;
        Ok(plan)
    }
}
