//! Arguments: one type a command, from which parser, help, man page and completions all come.
//!
//! Nothing is done here; a mistake that several arguments make together is found by the command.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::conform::generate::Family;
use crate::quirks::Compat;
use crate::scenario::ast::Storage;
use crate::shard::Shard;

use super::exit::Exit;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

fn statuses() -> String {
    format!("Exit status:\n{}", Exit::table())
}

/// A deterministic simulator of QEMU's backup subsystem, driven by YAML scenarios.
#[derive(Debug, Parser)]
#[command(name = "backsim", version, styles = STYLES, after_help = statuses(), max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs scenarios and writes their transcripts, one after another, to standard output.
    Run(RunArgs),
    /// Runs scenarios and compares their transcripts with the expected ones.
    Check(CheckArgs),
    /// Runs scenarios on a real QEMU too and compares the transcripts.
    Conform(ConformArgs),
    /// Makes up random valid scenarios, the same for the same seed.
    Generate(GenerateArgs),
    /// Runs a scenario under many schedules and judges each run.
    Explore(Box<super::explore::ExploreArgs>),
    /// Shows a run again that `explore --save` has kept.
    Replay(super::explore::ReplayArgs),
    /// Says why such a run fails: the two steps whose order decides.
    Explain {
        /// The file.
        file: PathBuf,
    },
    /// Lists scenarios and their cases, one case a line.
    List(ListArgs),
    /// Writes the JSON Schema of the scenario language to standard output.
    Schema,
    /// Writes a completion script for a shell to standard output.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the man page, of backsim or of one of its commands, to standard output.
    Man {
        /// The command; without it, the page of backsim itself.
        command: Option<String>,
    },
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Scenario files, run in this order.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Runs only the case of this name.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Reproduces this version of QEMU, whatever the scenario says.
    #[arg(long, value_name = "V", value_parser = compat())]
    pub compat: Option<Compat>,
    /// Seeds every random choice with this, whatever the scenario says.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Keeps images there, whatever the scenario says.
    #[arg(long, value_name = "memory|file", value_parser = storage())]
    pub storage: Option<Storage>,
    /// Keeps image files in D, which must be empty or new: one directory a case, D/SCENARIO/NUMBER-CASE.
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// Writes what happened to FILE as Chrome trace-event JSON, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Scenario files, or directories of them.
    #[arg(value_name = "PATH", default_value = "scenarios")]
    pub paths: Vec<PathBuf>,
    /// Writes what came out as what is expected, and shows the change. Refused where CI is set.
    #[arg(long)]
    pub bless: bool,
    /// Checks only this version of QEMU instead of all.
    #[arg(long, value_name = "V", value_parser = compat())]
    pub compat: Option<Compat>,
    /// Writes the result to FILE in the JUnit dialect of Jenkins, without times.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Does one of N parts: every Nth scenario and version from the Mth on, or those whose name falls to M.
    #[arg(long, value_name = "slice:M/N|hash:M/N")]
    pub shard: Option<Shard>,
    /// Checks this many scenarios at a time [default: one a core].
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
}

/// `conform`
#[derive(Debug, Args)]
pub struct ConformArgs {
    /// Scenario files.
    #[arg(value_name = "FILE", required_unless_present_any = ["generate", "schedule"])]
    pub files: Vec<PathBuf>,
    /// Forces the schedule of a file that `explore --save` has written on real QEMU, by blkdebug's breakpoints.
    #[arg(long, value_name = "FILE")]
    pub schedule: Vec<PathBuf>,
    /// The system emulator [default: $QEMU_PROG, or qemu-system-x86_64].
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// The image tool [default: $QEMU_IMG_PROG, or qemu-img].
    #[arg(long = "qemu-img", value_name = "PATH")]
    pub qemu_img: Option<PathBuf>,
    /// Lets real QEMU do each case this often, to tell an unstable scenario from a difference.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Asks the model in up to N other orders where its own does not agree with real QEMU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub orders: u64,
    /// Keeps the files of all real runs in new directories below DIR.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Compares this many scenarios at a time.
    #[arg(long, short, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Fails a run of real QEMU that leaves an answer open for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub patience: u64,
    /// Makes up this many scenarios and compares them, after the files.
    #[arg(long, value_name = "N")]
    pub generate: Option<u64>,
    /// The seed of the first generated scenario; each further one has the next.
    #[arg(long, value_name = "S", default_value_t = 0, requires = "generate")]
    pub seed: u64,
    /// Makes up scenarios of this family only.
    #[arg(long, value_name = "F", requires = "generate", value_parser = family())]
    pub family: Option<Family>,
    /// Writes each difference, shrunk, below DIR.
    #[arg(long, value_name = "DIR", default_value = "differences", requires = "generate")]
    pub out: PathBuf,
    /// Shrinks a difference with at most this many runs of real QEMU.
    #[arg(long = "shrink-budget", value_name = "N", default_value_t = 200, requires = "generate")]
    pub shrink_budget: u32,
    /// Shrinks at most this many differences.
    #[arg(long = "shrink-most", value_name = "N", default_value_t = 10, requires = "generate")]
    pub shrink_most: u64,
}

/// `generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The seed of the first scenario; each further one has the next.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Of this family only.
    #[arg(long, value_name = "F", value_parser = family())]
    pub family: Option<Family>,
    /// How many scenarios; more than one needs --out.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u64,
    /// Writes each scenario to DIR/NAME.yaml; existing files are not overwritten.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Scenario files, or directories of them.
    #[arg(value_name = "PATH", default_value = "scenarios")]
    pub paths: Vec<PathBuf>,
    /// Lists the defects that can be put into the model instead, one a line.
    #[arg(long)]
    pub defects: bool,
}

/// Reads one of the names that `compat:` knows.
pub(super) fn compat() -> impl clap::builder::TypedValueParser<Value = Compat> {
    use clap::builder::TypedValueParser;
    let names = clap::builder::PossibleValuesParser::new(Compat::ALL.map(Compat::name));
    names.try_map(|name| Compat::from_name(&name).ok_or("not a version"))
}

/// Reads the name of a family of generated scenarios.
fn family() -> impl clap::builder::TypedValueParser<Value = Family> {
    use clap::builder::TypedValueParser;
    let names = clap::builder::PossibleValuesParser::new(Family::ALL.map(Family::name));
    names.try_map(|name| name.parse::<Family>().map_err(|_| "not a family"))
}

/// Reads one of the names that `storage:` knows.
fn storage() -> impl clap::builder::TypedValueParser<Value = Storage> {
    use clap::builder::TypedValueParser;
    let names = clap::builder::PossibleValuesParser::new(["memory", "file"]);
    names.map(|name| if name == "file" { Storage::File } else { Storage::Memory })
}
