//! Making a failing run small: fewer departures from QEMU's own order, then fewer steps of the scenario.
//!
//! Only runs that break the same invariant about the same subject are kept. A departure that no longer fits after
//! another was taken out is dropped with it. Shrinking never invents departures.

use std::rc::Rc;

use crate::scenario::Case;
use crate::scenario::ast::{Concurrently, Step, Verb};
use crate::scenario::values::Steps;

use super::model::Violation;
use super::run::Setup;
use super::schedule::Departure;
use super::search::{Failure, replay};

/// A small failing run, and how it came to be.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The case, with what the failure does not need taken out.
    pub setup: Setup,
    /// The schedule.
    pub departures: Vec<Departure>,
    /// What it breaks.
    pub violation: Violation,
    /// Departures before.
    pub departures_before: usize,
    /// Steps of the scenario before.
    pub steps_before: usize,
    /// Runs that it took.
    pub runs: u64,
    /// The parts of the scenario that were taken out, each by its number among those left then.
    pub removed: Vec<usize>,
}

/// Tries candidates and remembers the best.
struct Shrinker {
    best: Shrunk,
    budget: u64,
}

impl Shrinker {
    /// Runs a candidate; if it breaks the same invariant, it is the best from now on.
    fn keeps(&mut self, setup: &Setup, departures: &[Departure]) -> bool {
        if self.best.runs >= self.budget {
            return false;
        }
        self.best.runs += 1;
        let (report, record, _) = replay(setup, departures);
        let same = report.violations.into_iter().find(|violation| violation.is_like(&self.best.violation));
        let Some(violation) = same else { return false };
        self.best.setup = setup.clone();
        self.best.violation = violation;
        // What did not fit is gone; what is left is what the run really did.
        self.best.departures = record.departures;
        true
    }

    /// Takes departures out: halves, quarters, … then one by one (ddmin, Zeller and Hildebrandt 2002).
    fn fewer_departures(&mut self) {
        let mut piece = self.best.departures.len().max(1);
        while piece > 0 && self.best.runs < self.budget {
            let mut at = 0;
            let mut shrank = false;
            while at < self.best.departures.len() && self.best.runs < self.budget {
                let mut fewer = self.best.departures.clone();
                fewer.drain(at..(at + piece).min(fewer.len()));
                let setup = self.best.setup.clone();
                if fewer.len() < self.best.departures.len() && self.keeps(&setup, &fewer) {
                    shrank = true;
                } else {
                    at += piece;
                }
            }
            if !shrank || piece > self.best.departures.len() {
                piece /= 2;
            }
        }
    }

    /// Takes steps out of the scenario, the last first, then single commands of guests.
    fn fewer_steps(&mut self) {
        let mut at = size(&self.best.setup.case.steps);
        while at > 0 && self.best.runs < self.budget {
            at -= 1;
            let setup = remove(&self.best.setup, at);
            let departures = self.best.departures.clone();
            if self.keeps(&setup, &departures) {
                self.best.removed.push(at);
            }
        }
    }
}

/// Makes a failure small within so many runs.
pub fn shrink(setup: &Setup, failure: &Failure, budget: u64) -> Shrunk {
    let best = Shrunk {
        setup: setup.clone(),
        departures: failure.departures.clone(),
        violation: failure.violation.clone(),
        departures_before: failure.departures.len(),
        steps_before: size(&setup.case.steps),
        runs: 0,
        removed: Vec::new(),
    };
    let mut shrinker = Shrinker { best, budget };
    shrinker.fewer_departures();
    shrinker.fewer_steps();
    shrinker.fewer_departures();
    shrinker.best
}

/// How many removable parts steps have: whole steps, an actor's steps, single commands of a guest.
pub fn size(steps: &[Step]) -> usize {
    steps.iter().map(parts).sum()
}

/// The setup without one part of its scenario.
pub fn remove(setup: &Setup, part: usize) -> Setup {
    let steps = without(&setup.case.steps, part);
    Setup { case: Case { steps: steps.into(), ..setup.case.clone() }, ..setup.clone() }
}

fn parts(step: &Step) -> usize {
    match &*step.verb {
        Verb::Concurrently(all) => all.actors.iter().map(|(_, steps)| size(&steps.0)).sum(),
        Verb::QemuIo(io) => io.commands.as_ref().map_or(1, Vec::len).max(1),
        _ => 1,
    }
}

/// The steps without the part number `at`.
fn without(steps: &[Step], mut at: usize) -> Vec<Step> {
    let mut kept = Vec::new();
    for step in steps {
        let count = parts(step);
        if at >= count {
            at -= count;
            kept.push(step.clone());
            continue;
        }
        kept.extend(step_without(step, at));
        at = usize::MAX;
    }
    kept
}

fn step_without(step: &Step, mut at: usize) -> Option<Step> {
    match &*step.verb {
        Verb::Concurrently(all) => {
            let mut actors = Vec::new();
            for (name, steps) in &all.actors {
                let count = size(&steps.0);
                if at >= count {
                    at -= count;
                    actors.push((name.clone(), steps.clone()));
                    continue;
                }
                let left = without(&steps.0, at);
                if !left.is_empty() {
                    actors.push((name.clone(), Steps(left)));
                }
                at = usize::MAX;
            }
            let verb = Verb::Concurrently(Concurrently { actors });
            Some(Step { verb: Rc::new(verb), ..step.clone() })
        }
        Verb::QemuIo(io) if parts(step) > 1 => {
            let mut io = io.clone();
            if let Some(commands) = &mut io.commands {
                commands.remove(at);
            }
            Some(Step { verb: Rc::new(Verb::QemuIo(io)), ..step.clone() })
        }
        _ => None,
    }
}
