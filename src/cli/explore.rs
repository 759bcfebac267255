//! `backsim explore` and `backsim replay`: arguments to the options of [`crate::explore::command`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::explore::Kind;
use crate::explore::command::{self, CommandError, ExploreOptions, Format, Method};
use crate::explore::strategy::{Reduction, Selection};

use super::error::{Failure, Message};
use super::exit::Exit;
use super::terminal::Terminal;

/// `explore`
#[derive(Debug, Args)]
pub struct ExploreArgs {
    /// The scenario.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only the case of this name.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// auto, random, pct, pos, urw, surw, delays, coverage, bounded, or exhaustive.
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
    /// Runs per case at most.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub schedules: u64,
    /// Seconds per case at most.
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Seeds the strategy.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Puts a known defect into the model (see `list --defects`); may be given again.
    #[arg(long, value_name = "NAME")]
    pub defect: Vec<String>,
    /// Threads.
    #[arg(long, short = 'j', value_name = "N", default_value_t = 1)]
    pub jobs: u64,
    /// A violation that is known, `INVARIANT` or `INVARIANT:PART`; may be given again.
    #[arg(long, value_name = "V")]
    pub known: Vec<String>,
    /// Does not shrink what was found.
    #[arg(long)]
    pub no_shrink: bool,
    /// Keeps what was found in this file, for `backsim replay`.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Writes one JSON object a case.
    #[arg(long)]
    pub json: bool,
}

/// `backsim explore`
pub fn explore(args: &ExploreArgs, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    let selected = args.select.as_deref().map(|name| {
        Selection::from_name(name).ok_or_else(|| Message::mistake(format!("nothing can be selected by `{name}`")))
    });
    let method = match Kind::from_name(&args.strategy, args.depth) {
        Some(Kind::Surw(any)) => Method::Seeded(Kind::Surw(selected.transpose()?.unwrap_or(any))),
        Some(kind) => Method::Seeded(kind),
        None if args.strategy == "coverage" => Method::Coverage,
        None if args.strategy == "bounded" => Method::Bounded(args.depth as usize),
        None if args.strategy == "exhaustive" => {
            Method::Exhaustive(if args.no_reduction { Reduction::None } else { Reduction::SourceSets })
        }
        None => {
            let message = Message::mistake(format!("no strategy is called `{}`", args.strategy));
            return Err(message
                .expected("auto, random, pct, pos, urw, surw, delays, coverage, bounded, exhaustive")
                .into());
        }
    };
    let options = ExploreOptions {
        case: args.case.clone(),
        method,
        schedules: args.schedules,
        time: args.seconds.map(Duration::from_secs),
        seed: args.seed,
        defects: args.defect.clone(),
        threads: args.jobs,
        known: args.known.clone(),
        shrink: if args.no_shrink { 0 } else { 2_000 },
        save: args.save.clone(),
        format: if args.json { Format::Json } else { Format::Text },
        ..ExploreOptions::new(args.file.clone())
    };
    status(command::explore(&options, &mut *terminal.out))
}

/// `backsim replay`: a violation that shows again is what was asked for.
pub fn replay(file: &std::path::Path, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    status(command::replay_command(file, &mut *terminal.out))
}

fn status(result: Result<bool, CommandError>) -> Result<Exit, Failure> {
    match result {
        Ok(true) => Ok(Exit::Good),
        Ok(false) => Ok(Exit::Different),
        Err(CommandError::Mistake(what)) => Err(Message::mistake(what).into()),
        Err(CommandError::Output(error)) => Err(error.into()),
    }
}
