//! `backsim run`: transcripts on standard output, and nothing else there.
//!
//! All files are read and checked before the first case runs. How a run ended is told on standard error.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::report::ChromeTrace;
use crate::scenario::Case;

use super::args::RunArgs;
use super::engine::{Overrides, RunOptions, Runner, guarded, judge};
use super::error::{Failure, Message};
use super::exit::Exit;
use super::images::Images;
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
    let mut session = Session {
        runner,
        images: images(args, &loaded)?,
        trace: args.trace.as_deref().map(|path| TraceFile::create(path, &args.files)).transpose()?,
        exit: Exit::Good,
    };
    let mut progress = Progress::new(loaded.iter().map(|loaded| loaded.cases.len()).sum());
    for Loaded { scenario, cases } in &loaded {
        for case in cases {
            progress.show(terminal, &format!("{}: {}", scenario.file, case.name))?;
            session.case(&scenario.file, case, &mut progress, terminal)?;
            progress.advance();
        }
    }
    progress.hide(terminal)?;
    if let Some(trace) = session.trace {
        trace.finish()?;
    }
    Ok(session.exit)
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

/// What the cases of one command have in common.
struct Session {
    runner: Runner,
    images: Images,
    trace: Option<TraceFile>,
    exit: Exit,
}

impl Session {
    fn case(
        &mut self,
        file: &str,
        case: &Case,
        progress: &mut Progress,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), Failure> {
        let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let place = self.images.place(&stem.unwrap_or_default(), case)?;
        let dir = place.as_ref().map(|place| place.path().to_owned());
        let options = RunOptions { dir, trace: self.trace.is_some() };
        let runner = self.runner;
        let result = guarded(|| runner(case, &options));
        progress.hide(terminal)?;
        let run = match result {
            Ok(Ok(run)) => run,
            Ok(Err(why)) => return Err(Message::mistake(why).at(format!("{file}:{}", case.line)).into()),
            Err(defect) => {
                self.exit = self.exit.max(Exit::Broken);
                writeln!(terminal.err, "{file}:{}: case `{}`: {defect}", case.line, case.name)?;
                return Ok(());
            }
        };
        terminal.out.write_all(run.outcome.transcript.text().as_bytes())?;
        terminal.out.flush()?;
        terminal.err.write_all(run.stderr.as_bytes())?;
        if let Some(complaint) = judge(case, &run.outcome.ending) {
            self.exit = self.exit.max(Exit::Different);
            writeln!(terminal.err, "{file}:{}: case `{}`: {}", complaint.line, case.name, complaint.what)?;
        }
        if let Some(trace) = &mut self.trace {
            trace.content.case(&format!("{file}: {}", case.name), &run.trace);
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
