//! `backsim run`: transcripts on standard output, and nothing else there.
//!
//! All files are read and checked before the first case runs. Cases run side by side, each on one thread, and
//! are told in order. How a run ended is told on standard error.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::report::ChromeTrace;
use crate::scenario::Case;
use crate::scenario::run::CaseOutcome;
use crate::workers::{cores, in_order};

use super::args::RunArgs;
use super::engine::{Defect, Overrides, RunOptions, Runner, guarded, judge};
use super::error::{Failure, Message};
use super::exit::Exit;
use super::images::{Images, Place};
use super::select::{self, Loaded};
use super::terminal::{Progress, Terminal};

/// Runs the cases that `args` select.
pub fn run(args: &RunArgs, terminal: &mut Terminal<'_>, runner: Runner) -> Result<Exit, Failure> {
    let mut loaded = select::load_all(&args.files)?;
    let overrides = Overrides { compat: args.compat, seed: args.seed, storage: args.storage };
    for case in loaded.iter_mut().flat_map(|loaded| &mut loaded.cases) {
        overrides.apply(case);
    }
    keep_named(&mut loaded, args.case.as_deref())?;
    let mut images = images(args, &loaded)?;
    let mut works = Vec::new();
    for Loaded { scenario, cases } in &loaded {
        for case in cases {
            let kept = if args.dir.is_some() { images.place(&stem(&scenario.file), case)? } else { None };
            works.push(Work { file: scenario.file.to_string(), case, kept });
        }
    }
    let mut session = Session {
        trace: args.trace.as_deref().map(|path| TraceFile::create(path, &args.files)).transpose()?,
        exit: Exit::Good,
    };
    let traced = session.trace.is_some();
    let mut progress = Progress::new(works.len());
    progress.show(terminal, "")?;
    let carry_out = |index: u64| {
        let work = &works[index as usize];
        (work, work.carry_out(runner, traced.then_some(index as u32)))
    };
    in_order(works.len() as u64, cores(), carry_out, |(work, done)| {
        progress.hide(terminal)?;
        session.tell(work, done, terminal)?;
        progress.advance();
        progress.show(terminal, &format!("{}: {}", work.file, work.case.name)).map_err(Failure::from)
    })?;
    progress.hide(terminal)?;
    if let Some(trace) = session.trace {
        trace.finish()?;
    }
    Ok(session.exit)
}

/// The name of a scenario's file without its ending.
fn stem(file: &str) -> String {
    Path::new(file).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// Leaves out all cases but those called `name`.
fn keep_named(loaded: &mut [Loaded], name: Option<&str>) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    let all: Vec<String> = loaded.iter().flat_map(|loaded| &loaded.cases).map(|case| case.name.clone()).collect();
    for loaded in loaded.iter_mut() {
        loaded.cases.retain(|case| case.name == name);
    }
    if loaded.iter().any(|loaded| !loaded.cases.is_empty()) {
        return Ok(());
    }
    const SHOWN: usize = 12;
    let mut expected = all.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        expected.push_str(&format!(" or {} more", all.len() - SHOWN));
    }
    let message = Message::new(Exit::Nothing, format!("no case is called `{name}`")).expected(expected);
    Err(message.hint("`backsim list FILE` shows all cases").into())
}

/// Where the cases keep their images.
fn images(args: &RunArgs, loaded: &[Loaded]) -> Result<Images, Failure> {
    let Some(dir) = &args.dir else { return Ok(Images::Temporary) };
    let mut cases = loaded.iter().flat_map(|loaded| &loaded.cases);
    if !cases.any(|case| case.settings.storage == crate::scenario::ast::Storage::File) {
        let message = Message::mistake("--dir keeps image files, but no case has any");
        return Err(message.hint("add --storage file").into());
    }
    Images::kept(dir)
}

/// A case to be run.
struct Work<'a> {
    file: String,
    case: &'a Case,
    /// Its directory below `--dir`.
    kept: Option<Place>,
}

/// What came of a case.
struct Done {
    outcome: CaseOutcome,
    stderr: String,
    /// Its part of the trace, if one is wanted.
    trace: ChromeTrace,
}

impl Work<'_> {
    /// Runs the case on the caller's thread. `traced` is its number, from 0, if a trace is wanted.
    fn carry_out(&self, runner: Runner, traced: Option<u32>) -> Result<Done, Trouble> {
        let temporary = match self.kept {
            Some(_) => None,
            None => Images::Temporary.place("", self.case).map_err(Trouble::Failure)?,
        };
        let dir = self.kept.as_ref().or(temporary.as_ref()).map(|place| place.path().to_owned());
        let options = RunOptions { dir, trace: traced.is_some() };
        let run = guarded(|| runner(self.case, &options)).map_err(Trouble::Defect)?.map_err(|why| {
            Trouble::Failure(Message::mistake(why).at(format!("{}:{}", self.file, self.case.line)).into())
        })?;
        let mut trace = ChromeTrace::after(traced.unwrap_or(0));
        if traced.is_some() {
            trace.case(&format!("{}: {}", self.file, self.case.name), &run.trace);
        }
        Ok(Done { outcome: run.outcome, stderr: run.stderr, trace })
    }
}

/// Why nothing came of a case.
enum Trouble {
    /// A defect of backsim's own; other cases may be well.
    Defect(Defect),
    /// Nothing can go on.
    Failure(Failure),
}

/// What the cases of one command have in common.
struct Session {
    trace: Option<TraceFile>,
    exit: Exit,
}

impl Session {
    fn tell(
        &mut self,
        work: &Work<'_>,
        done: Result<Done, Trouble>,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), Failure> {
        let Work { file, case, .. } = work;
        let done = match done {
            Ok(done) => done,
            Err(Trouble::Failure(failure)) => return Err(failure),
            Err(Trouble::Defect(defect)) => {
                self.exit = self.exit.max(Exit::Broken);
                writeln!(terminal.err, "{file}:{}: case `{}`: {defect}", case.line, case.name)?;
                return Ok(());
            }
        };
        terminal.out.write_all(done.outcome.transcript.text().as_bytes())?;
        terminal.out.flush()?;
        terminal.err.write_all(done.stderr.as_bytes())?;
        if let Some(complaint) = judge(case, &done.outcome.ending) {
            self.exit = self.exit.max(Exit::Different);
            writeln!(terminal.err, "{file}:{}: case `{}`: {}", complaint.line, case.name, complaint.what)?;
        }
        if let Some(trace) = &mut self.trace {
            trace.content.append(&done.trace);
        }
        Ok(())
    }
}

/// The file of `--trace`.
struct TraceFile {
    path: PathBuf,
    file: File,
    content: ChromeTrace,
}

impl TraceFile {
    /// Opens the file before anything runs, so that a mistake in its name costs no time.
    fn create(path: &Path, inputs: &[PathBuf]) -> Result<TraceFile, Failure> {
        refuse_input(path, inputs, "--trace")?;
        let file = File::create(path).map_err(|error| Failure::file(path, "write the trace here", &error))?;
        Ok(TraceFile { path: path.to_owned(), file, content: ChromeTrace::default() })
    }

    fn finish(mut self) -> Result<(), Failure> {
        let text = self.content.finish();
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| Failure::file(&self.path, "write the trace here", &error))
    }
}

/// Refuses to write over a file that is read as a scenario.
pub(super) fn refuse_input(path: &Path, inputs: &[PathBuf], flag: &str) -> Result<(), Failure> {
    let Ok(own) = path.canonicalize() else { return Ok(()) };
    if inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == own)) {
        let message = Message::mistake(format!("{flag} would overwrite a scenario")).at(path.display());
        return Err(message.hint(format!("{flag} takes the name of the file to write")).into());
    }
    Ok(())
}
