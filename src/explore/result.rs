//! What a search of one case has come to, as one line of JSON: what `--out` writes, `merge` reads, and a
//! checkpoint keeps.
//!
//! No time, no machine and no number of threads is in it: the same search gives the same bytes, whoever did it, at
//! once or in parts.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::scenario::{self, Case};
use crate::shard::Shard;

use super::file::{self, NamedDeparture};
use super::model::{Breach, Violation};
use super::options::{ExploreOptions, Method};
use super::run::Setup;
use super::schedule::Departure;
use super::tally::{Failure, Seen, Tally};

/// Which search it is: results can be put together only where all of this is equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Search {
    /// The version of backsim.
    pub backsim: String,
    /// The scenario as it was named.
    pub scenario_name: String,
    /// The case.
    pub case: String,
    /// Whose behaviour, where that is not the scenario's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<String>,
    /// Defects beside the scenario's own.
    pub defects: Vec<String>,
    /// The strategy's name.
    pub strategy: String,
    /// As `--depth` said.
    pub depth: u32,
    /// The seed.
    pub seed: u64,
    /// Runs at most, of all parts.
    pub schedules: u64,
    /// What is passed over.
    pub known: Vec<String>,
    /// The scenario's text.
    pub scenario: String,
}

impl Search {
    /// The search of one case that the options ask for.
    pub fn of(options: &ExploreOptions, text: &str, case: &Case) -> Search {
        Search {
            backsim: env!("CARGO_PKG_VERSION").to_owned(),
            scenario_name: options.scenario.display().to_string(),
            case: case.name.clone(),
            compat: options.compat.map(|compat| compat.name().to_owned()),
            defects: options.defects.clone(),
            strategy: options.method().name().to_owned(),
            depth: options.depth,
            seed: options.seed,
            schedules: options.schedules,
            known: options.known.clone(),
            scenario: text.to_owned(),
        }
    }

    /// What is run again and again; reads the scenario from the text.
    pub fn setup(&self) -> Result<Setup, String> {
        let loaded = scenario::parse(&self.scenario_name, &self.scenario).map_err(|found| found.to_string())?;
        let cases = loaded.cases().map_err(|found| found.to_string())?;
        let case = cases.into_iter().find(|case| case.name == self.case);
        let case = case.ok_or_else(|| format!("{} has no case '{}'", self.scenario_name, self.case))?;
        let compat = file::version(self.compat.as_deref())?;
        Ok(Setup { compat, ..Setup::new(case, self.defects.clone()) })
    }

    /// How the runs were chosen.
    pub fn method(&self) -> Result<Method, String> {
        let method = Method::from_name(&self.strategy, self.depth);
        method.ok_or_else(|| format!("no strategy is called '{}'", self.strategy))
    }

    /// The first difference between two searches, in words.
    pub fn difference(&self, other: &Search) -> Option<String> {
        let differ = |what: &str, own: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug| {
            let (own, theirs) = (format!("{own:?}"), format!("{theirs:?}"));
            (own != theirs).then(|| format!("{what} {own} and {theirs}"))
        };
        differ("version", &self.backsim, &other.backsim)
            .or_else(|| differ("case", &self.case, &other.case))
            .or_else(|| differ("strategy", &(&self.strategy, self.depth), &(&other.strategy, other.depth)))
            .or_else(|| differ("seed", &self.seed, &other.seed))
            .or_else(|| differ("schedules", &self.schedules, &other.schedules))
            .or_else(|| differ("compat", &self.compat, &other.compat))
            .or_else(|| differ("defects", &self.defects, &other.defects))
            .or_else(|| differ("known", &self.known, &other.known))
            .or_else(|| (self.scenario != other.scenario).then(|| "two different texts of the scenario".to_owned()))
    }
}

/// A failure as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct NamedFailure {
    schedule: u64,
    breach: String,
    subject: String,
    violation: String,
    departures: Vec<NamedDeparture>,
}

/// One line; see the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Outcome {
    /// Which search it is.
    pub search: Search,
    /// Which part of it; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    runs: u64,
    next: u64,
    complete: bool,
    known_runs: Vec<u64>,
    failure: Option<NamedFailure>,
    states: Vec<(u64, u64)>,
    coverage: Vec<(u64, u64)>,
    cells: Vec<(u64, u64)>,
}

fn pairs(seen: &Seen) -> Vec<(u64, u64)> {
    seen.iter().map(|(what, first)| (*what, *first)).collect()
}

impl Outcome {
    /// What a part (or all) of a search has come to.
    pub fn new(search: Search, part: Option<Shard>, tally: &Tally) -> Outcome {
        let failure = tally.failure.as_ref().map(|failure| NamedFailure {
            schedule: failure.index,
            breach: failure.violation.breach.name().to_owned(),
            subject: failure.violation.subject.clone(),
            violation: failure.violation.text.clone(),
            departures: failure.departures.iter().map(NamedDeparture::from).collect(),
        });
        Outcome {
            search,
            part: part.map(|part| part.to_string()),
            runs: tally.runs,
            next: tally.next,
            complete: tally.complete,
            known_runs: tally.known.clone(),
            failure,
            states: pairs(&tally.states),
            coverage: pairs(&tally.coverage),
            cells: pairs(&tally.cells),
        }
    }

    /// What it says, for counting.
    pub fn tally(&self) -> Result<Tally, String> {
        let failure = |named: &NamedFailure| {
            let breach = Breach::from_name(&named.breach);
            let breach = breach.ok_or_else(|| format!("no breach is called '{}'", named.breach))?;
            Ok::<Failure, String>(Failure {
                index: named.schedule,
                violation: Violation::new(breach, &named.subject, named.violation.clone()),
                departures: named.departures.iter().map(Departure::from).collect(),
            })
        };
        Ok(Tally {
            runs: self.runs,
            remembered: 0,
            next: self.next,
            coverage: self.coverage.iter().copied().collect(),
            states: self.states.iter().copied().collect(),
            cells: self.cells.iter().copied().collect(),
            known: self.known_runs.clone(),
            failure: self.failure.as_ref().map(failure).transpose()?,
            complete: self.complete,
            // How many classes there are is told where they were counted.
            classes: None,
        })
    }
}

/// Reads a file of outcomes.
pub fn read(path: &Path) -> Result<Vec<Outcome>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let parse = |(line, number): (&str, u32)| {
        serde_json::from_str(line).map_err(|error| format!("{}:{number}: not a result: {error}", path.display()))
    };
    lines.map(parse).collect()
}

/// Writes a file of outcomes so that at any moment there is either the old file or the new one.
pub fn write(path: &Path, outcomes: &[Outcome]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable as any other file is, less what the umask takes.
    let permissions = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
    for outcome in outcomes {
        serde_json::to_writer(&mut file, outcome)?;
        file.write_all(b"\n")?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Puts the parts of searches together, case by case; every part of each must be there once.
pub fn merge(outcomes: Vec<Outcome>) -> Result<Vec<Outcome>, String> {
    let mut groups: Vec<Vec<Outcome>> = Vec::new();
    for outcome in outcomes {
        let same = |group: &&mut Vec<Outcome>| {
            group[0].search.case == outcome.search.case && group[0].search.scenario_name == outcome.search.scenario_name
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(outcome),
            None => groups.push(vec![outcome]),
        }
    }
    groups.into_iter().map(merge_parts).collect()
}

fn merge_parts(parts: Vec<Outcome>) -> Result<Outcome, String> {
    let search = parts[0].search.clone();
    let about = format!("{} ({})", search.scenario_name, search.case);
    if let Some(difference) = parts.iter().find_map(|part| search.difference(&part.search)) {
        return Err(format!("{about}: results of two searches: {difference}"));
    }
    let mut shards: Vec<Shard> = Vec::new();
    let mut ends: Vec<u64> = Vec::new();
    let mut all: Option<Tally> = None;
    for part in &parts {
        let Some(shard) = &part.part else {
            return if parts.len() == 1 {
                Ok(parts[0].clone())
            } else {
                Err(format!("{about}: a whole search and another"))
            };
        };
        let shard: Shard = shard.parse().map_err(|error| format!("{about}: {error}"))?;
        if shards.contains(&shard) {
            return Err(format!("{about}: part {shard} is there twice"));
        }
        let tally = part.tally()?;
        shards.push(shard);
        ends.push(tally.next);
        let made = |end: u64| made_below(&shards, &ends, end);
        match &mut all {
            None => all = Some(tally),
            Some(all) => all.merge(tally, made),
        }
    }
    if let Some(missing) = shards[0].all().find(|shard| !shards.contains(shard)) {
        return Err(format!("{about}: part {missing} is missing"));
    }
    if shards.len() as u64 != shards[0].all().count() as u64 {
        return Err(format!("{about}: parts of different divisions"));
    }
    Ok(Outcome::new(search, None, &all.unwrap_or_default()))
}

/// How many runs with a number below `end` the parts have made, each of them its own below its own end.
fn made_below(shards: &[Shard], ends: &[u64], end: u64) -> u64 {
    let own = |(shard, own): (&Shard, &u64)| (0..end.min(*own)).filter(|n| shard.takes(*n, &n.to_string())).count();
    shards.iter().zip(ends).map(|part| own(part) as u64).sum()
}
