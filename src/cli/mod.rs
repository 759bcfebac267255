//! The command line: arguments, commands, exit status.
//!
//! [`main`] is the process; [`execute`] is the same with streams and runner of one's choice, for tests.
//! [`exit`] says what each status means, [`engine`] is the seam to the simulator. Nothing here may know
//! how a scenario is read or carried out.

mod args;
mod check;
mod conform;
pub mod engine;
mod error;
pub mod exit;
mod explore;
mod generate;
mod images;
mod run;
mod select;
mod terminal;
#[cfg(test)]
mod tests;
mod texts;

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
pub use std::process::ExitCode;

use clap::Parser;

pub use terminal::Terminal;

use args::{Cli, Command};
use engine::{Runner, guarded};
use error::Failure;
use exit::Exit;
use terminal::Surroundings;

use crate::workers::on_deep_stack;

/// The process: runs what the arguments say and returns its status.
pub fn main(runner: Runner) -> ExitCode {
    let exit = on_deep_stack(|| {
        guarded(|| {
            let Surroundings { style, progress, ci } = Surroundings::look();
            let mut out = BufWriter::new(io::stdout().lock());
            let mut err = io::stderr();
            let mut terminal = Terminal { out: &mut out, err: &mut err, style, progress, ci };
            execute(std::env::args_os(), &mut terminal, runner)
        })
    });
    match exit {
        Ok(exit) => exit.into(),
        Err(defect) => {
            // If even standard error is gone, the status has to say it all.
            let _ = writeln!(io::stderr(), "backsim: {defect}");
            Exit::Broken.into()
        }
    }
}

/// Does what `args` (the program's name first) say.
pub fn execute(args: impl IntoIterator<Item = OsString>, terminal: &mut Terminal<'_>, runner: Runner) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(answer) => return usage(&answer),
    };
    let result = command(&cli.command, terminal, runner).and_then(|exit| {
        terminal.out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = failure.exit();
            if !matches!(failure, Failure::OutputClosed) {
                // What was written before the failure comes first; a second failure has nobody to tell.
                let _ = terminal.out.flush();
                let _ = writeln!(terminal.err, "{failure}");
            }
            exit
        }
    }
}

/// All commands and flags, for whoever documents them.
pub fn interface() -> clap::Command {
    let mut cli = <Cli as clap::CommandFactory>::command();
    cli.build();
    cli
}

fn command(command: &Command, terminal: &mut Terminal<'_>, runner: Runner) -> Result<Exit, Failure> {
    match command {
        Command::Run(args) => run::run(args, terminal, runner),
        Command::Check(args) => check::check(args, terminal, runner),
        Command::Conform(args) => conform::conform(args, terminal, runner),
        Command::Generate(args) => generate::generate(args, terminal),
        Command::Explore(args) => explore::explore(args, terminal),
        Command::Replay(args) => explore::replay(args, terminal),
        Command::Explain { file } => explore::explain(file, terminal),
        Command::List(args) if args.defects => texts::defects(terminal),
        Command::List(args) => texts::list(&args.paths, terminal),
        Command::Schema => texts::schema(terminal),
        Command::Completions { shell } => texts::completions(*shell, terminal),
        Command::Man { command } => texts::man(command.as_deref(), terminal),
    }
}

/// Shows what clap has to say: help, the version, or what is wrong with the arguments.
fn usage(answer: &clap::Error) -> Exit {
    // `--help | head` closes the stream early; that is no error.
    let _ = answer.print();
    if answer.use_stderr() { Exit::Mistake } else { Exit::Good }
}
