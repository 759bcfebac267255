//! `conform`: the comparison with a real QEMU, as a command.
//!
//! Arguments become options, the simulator becomes the model to compare with; everything else is
//! [`crate::conform`]'s.

use std::time::Duration;

use crate::conform::{self, ConformOptions, GenerateOptions, Side, Status};
use crate::scenario::Case;
use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::Ending;

use super::args::ConformArgs;
use super::engine::{RunOptions, Runner, guarded};
use super::error::{Failure, Message};
use super::exit::Exit;
use super::terminal::Terminal;

/// Compares scenarios on the simulator with a real QEMU.
pub fn conform(args: &ConformArgs, terminal: &mut Terminal<'_>, runner: Runner) -> Result<Exit, Failure> {
    let generate = args.generate.map(|count| GenerateOptions {
        count,
        seed: args.seed,
        family: args.family,
        out: args.out.clone(),
        shrink_budget: args.shrink_budget,
        shrink_most: args.shrink_most,
    });
    let options = ConformOptions {
        files: args.files.clone(),
        schedules: args.schedule.clone(),
        generate,
        qemu: args.qemu.clone(),
        qemu_img: args.qemu_img.clone(),
        repeat: args.repeat,
        orders: args.orders,
        keep: args.keep.clone(),
        jobs: usize::from(args.jobs),
        patience: Duration::from_secs(args.patience),
    };
    let model = move |case: &Case| simulated_side(case, runner);
    let mut silence = std::io::sink();
    let progress: &mut dyn std::io::Write = if terminal.progress { terminal.err } else { &mut silence };
    match conform::command(&options, &model, terminal.out, progress) {
        Ok(Status::Same) => Ok(Exit::Good),
        Ok(Status::Different) => Ok(Exit::Different),
        Ok(Status::Invalid) => Ok(Exit::Mistake),
        Err(error) => Err(Message::mistake(error.to_string())
            .hint("`--qemu PATH` and `--qemu-img PATH` name the programs to compare with")
            .into()),
    }
}

/// The simulator's side of a case; a defect of the simulator is an ending like any other.
fn simulated_side(case: &Case, runner: Runner) -> Side {
    let broken = |why: String| Side {
        transcript: String::new(),
        ending: Ending::Failed { line: case.line, kind: RunErrorKind::Machine, why },
    };
    match guarded(|| runner(case, &RunOptions::default())) {
        Ok(Ok(run)) => run.outcome.into(),
        Ok(Err(reason)) => broken(reason),
        Err(defect) => broken(defect.to_string()),
    }
}
