//! `backsim explore`, `replay` and `explain`: arguments to the options of [`crate::explore`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::explore::Kind;
use crate::explore::command::{self, CommandError, Ui};
use crate::explore::options::{ExploreOptions, Format, Method, SHRINK, Telling};
use crate::explore::replaying::{self, ReplayOptions};
use crate::explore::strategy::{Reduction, Selection};
use crate::quirks::Compat;
use crate::shard::Shard;
use crate::workers::cores;

use super::args::compat;
use super::error::{Failure, Message};
use super::exit::Exit;
use super::terminal::Terminal;

/// `explore`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ExploreArgs {
    /// Other things to do.
    #[command(subcommand)]
    pub other: Option<ExploreCommand>,
    /// The scenario.
    #[arg(value_name = "FILE", required = true)]
    pub file: Option<PathBuf>,
    /// Only the case of this name.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Reproduces this version of QEMU, whatever the scenario says.
    #[arg(long, value_name = "V", value_parser = compat())]
    pub compat: Option<Compat>,
    /// auto, seeded, random, pct, pos, urw, surw, delays, coverage, bounded, or exhaustive.
    #[arg(long, value_name = "S", default_value = "auto")]
    pub strategy: String,
    /// Depth of pct, most departures of delays and bounded.
    #[arg(long, value_name = "D", default_value_t = 2)]
    pub depth: u32,
    /// The events that surw mixes evenly: `job` or `cluster:N` (64 KiB each); none: another cluster in each run.
    #[arg(long, value_name = "WHAT")]
    pub select: Option<String>,
    /// Lets exhaustive run every schedule, also equivalent ones.
    #[arg(long)]
    pub no_reduction: bool,
    /// Runs per case at most, of all parts together.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub schedules: u64,
    /// Time per case at most, such as 90s, 10m or 2h; a number alone is seconds.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub time: Option<Duration>,
    /// Seeds the strategy.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Puts a known defect into the model (see `list --defects`); may be given again.
    #[arg(long, value_name = "NAME")]
    pub defect: Vec<String>,
    /// Threads [default: one a core].
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Does one of N parts of the runs: every Nth from the Mth on, or those whose number falls to M.
    #[arg(long, value_name = "slice:M/N|hash:M/N")]
    pub shard: Option<Shard>,
    /// Keeps the search in FILE while it runs, and goes on from there if FILE exists.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// A violation that is known, `INVARIANT` or `BREACH`, with `:PART` for part of its text; may be given again.
    #[arg(long, value_name = "V")]
    pub known: Vec<String>,
    /// Stops at known findings too, which `../findings/known.list` beside the scenario's directory lists.
    #[arg(long)]
    pub no_known: bool,
    /// What is done with the results.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// What is done with the results of a search.
#[derive(Debug, Args)]
pub struct TellingArgs {
    /// Does not shrink what was found.
    #[arg(long)]
    pub no_shrink: bool,
    /// Keeps what was found in this file, for `backsim replay`.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Writes the results to FILE as JSON lines, for `backsim explore merge`.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Writes the results to FILE in the JUnit dialect of Jenkins, without times.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Writes one JSON object a case to standard output.
    #[arg(long)]
    pub json: bool,
}

impl TellingArgs {
    fn telling(&self) -> Telling {
        Telling {
            shrink: if self.no_shrink { 0 } else { SHRINK },
            save: self.save.clone(),
            format: if self.json { Format::Json } else { Format::Text },
            out: self.out.clone(),
            junit: self.junit.clone(),
        }
    }
}

/// `explore merge`
#[derive(Debug, Subcommand)]
pub enum ExploreCommand {
    /// Puts the results of all parts of a search together, as if it had been done at once.
    Merge {
        /// What `explore --out` has written, of all parts.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// What is done with the results.
        #[command(flatten)]
        telling: TellingArgs,
    },
}

/// `replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Ends the table with the first step whose name contains STEP (`guest1: write`), or with the step of this number.
    #[arg(long, value_name = "STEP")]
    pub until: Option<String>,
    /// Writes what happened to FILE as Chrome trace-event JSON, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// Reads a time: seconds, or a number with `s`, `m` or `h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "expected a time, such as 90s, 10m or 2h".to_owned())?;
    let scale = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        unit => return Err(format!("no unit of time is called `{unit}`; there are s, m and h")),
    };
    number.checked_mul(scale).map(Duration::from_secs).ok_or_else(|| "longer than anybody waits".to_owned())
}

/// `backsim explore`
pub fn explore(args: &ExploreArgs, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    if let Some(ExploreCommand::Merge { files, telling }) = &args.other {
        return with_ui(terminal, |ui| command::merge(files, &telling.telling(), ui));
    }
    let selected = args.select.as_deref().map(|name| {
        Selection::from_name(name).ok_or_else(|| Message::mistake(format!("nothing can be selected by `{name}`")))
    });
    let Some(method) = Method::from_name(&args.strategy, args.depth) else {
        let message = Message::mistake(format!("no strategy is called `{}`", args.strategy));
        return Err(message
            .expected("auto, seeded, random, pct, pos, urw, surw, delays, coverage, bounded, exhaustive")
            .into());
    };
    let method = match method {
        Method::Seeded(Kind::Surw(any)) => Method::Seeded(Kind::Surw(selected.transpose()?.unwrap_or(any))),
        Method::Exhaustive(_) if args.no_reduction => Method::Exhaustive(Reduction::None),
        method => method,
    };
    let options = ExploreOptions {
        case: args.case.clone(),
        compat: args.compat,
        method,
        depth: args.depth,
        schedules: args.schedules,
        time: args.time,
        seed: args.seed,
        defects: args.defect.clone(),
        threads: args.jobs.map_or_else(|| cores() as u64, u64::from),
        part: args.shard,
        known: args.known.clone(),
        listed: !args.no_known,
        checkpoint: args.checkpoint.clone(),
        telling: args.telling.telling(),
        ..ExploreOptions::new(args.file.clone().unwrap_or_default())
    };
    with_ui(terminal, |ui| command::explore(&options, ui))
}

/// `backsim replay`: a violation that shows again is what was asked for.
pub fn replay(args: &ReplayArgs, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    let options = ReplayOptions { file: args.file.clone(), until: args.until.clone(), trace: args.trace.clone() };
    status(replaying::replay(&options, &mut *terminal.out))
}

/// `backsim explain`
pub fn explain(file: &Path, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    status(replaying::explain_file(file, &mut *terminal.out))
}

/// Does something that takes long, with a line on the terminal that shows how far it has come.
fn with_ui(
    terminal: &mut Terminal<'_>,
    work: impl FnOnce(&mut Ui<'_>) -> Result<bool, CommandError>,
) -> Result<Exit, Failure> {
    let (err, shown) = (&mut *terminal.err, terminal.progress);
    // A terminal that is gone takes no line; the search goes on.
    let mut show = |line: &str| {
        let line: String = line.chars().take(118).collect();
        let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
    };
    let progress: Option<&mut dyn FnMut(&str)> = if shown { Some(&mut show) } else { None };
    status(work(&mut Ui { out: &mut *terminal.out, progress }))
}

fn status(result: Result<bool, CommandError>) -> Result<Exit, Failure> {
    match result {
        Ok(true) => Ok(Exit::Good),
        Ok(false) => Ok(Exit::Different),
        Err(CommandError::Mistake(what)) => Err(Message::mistake(what).into()),
        Err(error @ CommandError::NoCase { .. }) => {
            let message = Message::new(Exit::Nothing, error.to_string());
            Err(message.hint("`backsim list FILE` shows all cases").into())
        }
        Err(CommandError::File { path, error }) => Err(Failure::file(&path, "use the file", &error)),
        Err(CommandError::Output(error)) => Err(error.into()),
    }
}
