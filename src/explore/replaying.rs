//! The commands `replay` and `explain`: what a replay file says, shown again.
//!
//! Nothing is searched here. A file that does not break any more what it says is told to, step by step.

use std::io;
use std::path::{Path, PathBuf};

use crate::report::ChromeTrace;
use crate::scenario::simulate::{SimOptions, simulate};
use crate::sim::Choices;
use crate::sim::trace::Stamped;

use super::command::CommandError;
use super::explain::explain;
use super::file::ReplayFile;
use super::report;
use super::run::Setup;
use super::schedule::{Departure, Replay};
use super::story::tell;

/// Options of `backsim replay`.
#[derive(Clone, Debug, Default)]
pub struct ReplayOptions {
    /// The file.
    pub file: PathBuf,
    /// The table ends with the first step whose name contains this, or with the step of this number.
    pub until: Option<String>,
    /// Where the timeline goes.
    pub trace: Option<PathBuf>,
}

fn read(path: &Path) -> Result<(ReplayFile, Setup), CommandError> {
    let text = std::fs::read_to_string(path).map_err(CommandError::file(path))?;
    let wrong = |what: String| CommandError::Mistake(format!("{}: {what}", path.display()));
    let file = ReplayFile::parse(&text).map_err(wrong)?;
    let setup = file.setup().map_err(wrong)?;
    Ok((file, setup))
}

/// Shows a file's run again; true if it breaks what the file says.
pub fn replay(options: &ReplayOptions, out: &mut dyn io::Write) -> Result<bool, CommandError> {
    let (file, setup) = read(&options.file)?;
    let (strategy, fit) = Replay::new(&file.schedule());
    let (run, _, mut story) = tell(&setup, Box::new(strategy));
    let mut violations = run.violations.clone();
    if let Some(until) = &options.until {
        let number = until.parse::<usize>().ok();
        let ends = |(index, step): (usize, &super::story::StoryStep)| {
            number == Some(index + 1) || step.name.as_ref().is_some_and(|name| name.to_string().contains(until))
        };
        let at = story.steps.iter().enumerate().position(ends);
        let at = at.ok_or_else(|| CommandError::Mistake(format!("the run has no step '{until}'")))?;
        story.steps.truncate(at + 1);
        violations.truncate(story.steps.last().map_or(0, |step| step.broken));
    }
    write!(out, "{}\n{}", report::violations(&violations), report::table(&story, &violations))?;
    for missed in &fit.borrow().missed {
        writeln!(out, "does not fit any more: {missed}")?;
    }
    for moved in &fit.borrow().moved {
        writeln!(out, "came later than written: {moved}")?;
    }
    if let Some(path) = &options.trace {
        let text = timeline(&setup, &file.schedule())?;
        std::fs::write(path, text).map_err(CommandError::file(path))?;
    }
    let same = file.find(&run.violations).is_some();
    if !same {
        writeln!(out, "{} ({}) does not break any more", file.invariant, file.breach)?;
    }
    Ok(same)
}

/// The run as a timeline for a viewer.
fn timeline(setup: &Setup, departures: &[Departure]) -> Result<String, CommandError> {
    let events: std::rc::Rc<std::cell::RefCell<Vec<Stamped>>> = std::rc::Rc::default();
    let seen = events.clone();
    let options = SimOptions {
        compat: setup.compat,
        choices: Choices::with(Box::new(Replay::new(departures).0)),
        defects: setup.defects.clone(),
        observe: Some(Box::new(move |sim| {
            sim.trace().want_detail();
            sim.trace().subscribe(move |event| seen.borrow_mut().push(event.clone()));
        })),
        ..SimOptions::default()
    };
    simulate(&setup.case, options).map_err(CommandError::Mistake)?;
    let events = events.take();
    let mut trace = ChromeTrace::default();
    trace.case(&setup.case.name, &events);
    Ok(trace.finish())
}

/// Says why the run of a file fails; true if it does.
pub fn explain_file(path: &Path, out: &mut dyn io::Write) -> Result<bool, CommandError> {
    let (file, setup) = read(path)?;
    let departures = file.schedule();
    let (run, _, _) = super::search::replay(&setup, &departures);
    let Some(violation) = file.find(&run.violations) else {
        writeln!(out, "{} ({}) does not break any more", file.invariant, file.breach)?;
        return Ok(false);
    };
    write!(out, "{violation}\n{}", report::explanation(&explain(&setup, &departures, violation)))?;
    Ok(true)
}
