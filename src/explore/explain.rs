//! Why a run fails: the one pair of neighbouring steps whose order decides.
//!
//! A schedule that can't be made smaller fails with its last departure and passes without it: there the step comes
//! later. Between the two lie runs in which it comes a little later each; bisecting them leaves two runs that differ
//! in the order of two neighbouring steps and in the verdict. Must never claim a pair that was not run both ways.

use std::collections::BTreeMap;

use crate::sim::rng::{Rng, Stream};
use crate::sim::{ChoicePoint, Runs, Strategy};

use super::model::Violation;
use super::run::{RunReport, Setup, run};
use super::schedule::{Departure, Replay, StepName};
use super::search::{learn, replay, transcribe};
use super::story::{Story, StoryStep, Touch, Words, common, footprint, tell};
use super::strategy::SampledDelays;

/// Runs that look for one that passes, where QEMU's own order fails.
const TRIES: u64 = 64;

/// What was found.
#[derive(Clone, Debug)]
pub enum Explanation {
    /// The order of two steps decides.
    Pair(Box<Pair>),
    /// No order was found in which it passes, in so many runs.
    Always(u64),
    /// The step could not be held back in a way that changes the verdict.
    Unclear,
}

/// Two neighbouring steps; see the module's text.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The step that moves.
    pub step: StepName,
    /// The other one, in words.
    pub other: String,
    /// Whether the run fails if the step comes before the other; else it fails if it comes after.
    pub fails_before: bool,
    /// What both touch.
    pub common: Vec<String>,
    /// What each touches, where the trace shows nothing common.
    pub apart: [Vec<String>; 2],
    /// How what is left differs: in the failing run, in the passing one.
    pub outcomes: Vec<String>,
    /// Runs that it took.
    pub runs: u64,
}

/// Takes departures again, and holds the step of one more back for some time.
struct Held {
    replay: Replay,
    held: Departure,
    /// Events for which it is held back; then it comes as soon as it can.
    patience: u64,
    reached: bool,
    done: bool,
}

impl Held {
    fn new(departures: &[Departure], held: &Departure, patience: u64) -> Held {
        let replay = Replay::new(departures).0;
        Held { replay, held: held.clone(), patience, reached: false, done: false }
    }

    fn decide(&mut self, point: &ChoicePoint<'_>) -> Option<usize> {
        if self.done {
            return None;
        }
        let place = self.replay.place();
        let wanted = (0..point.alternatives.len()).find(|i| place.is(point, *i, &self.held.take));
        self.reached |= place.is_at(&self.held, point);
        if !self.reached {
            return None;
        }
        let wanted = wanted?;
        if self.patience == 0 {
            self.done = true;
            return Some(wanted);
        }
        self.patience -= 1;
        None
    }
}

impl Strategy for Held {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let held = self.decide(point);
        let before = self.replay.place().clone();
        let replayed = self.replay.next_step(point);
        let taken = held.unwrap_or(replayed);
        self.done |= self.reached && before.is(point, taken, &self.held.take);
        if taken != replayed {
            self.replay.instead(before, point, taken);
        }
        taken
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.done |= self.reached && self.replay.place().is(point, 0, &self.held.take);
        self.replay.forced_step(point);
    }
}

/// Explains a failing run, which should be shrunk.
pub fn explain(setup: &Setup, departures: &[Departure], violation: &Violation) -> Explanation {
    match departures.split_last() {
        Some((last, before)) => bisect(setup, before, last, violation, true),
        None => match passing_neighbour(setup, violation) {
            Some(departures) => match departures.split_last() {
                Some((last, before)) => bisect(setup, before, last, violation, false),
                None => Explanation::Unclear,
            },
            None => Explanation::Always(TRIES),
        },
    }
}

/// A run near QEMU's own order, which fails, that does not; its departures are as few as possible.
fn passing_neighbour(setup: &Setup, violation: &Violation) -> Option<Vec<Departure>> {
    let (learned, own_order) = learn(setup);
    // A run that ends before the job does passes for want of trying.
    let left = |report: &RunReport| report.left.as_ref().map(|left| left.jobs.clone());
    let passes = |report: &RunReport| {
        left(report) == left(&own_order) && !report.violations.iter().any(|found| found.is_like(violation))
    };
    for index in 0..TRIES {
        let strategy = || Box::new(SampledDelays::new(Rng::new(index, Stream::Schedule), 1, learned.points));
        if !passes(&run(setup, strategy())) {
            continue;
        }
        let mut departures = transcribe(setup, strategy()).1.departures;
        let mut at = 0;
        while at < departures.len() {
            let mut fewer = departures.clone();
            fewer.remove(at);
            if passes(&replay(setup, &fewer).0) {
                departures = fewer;
            } else {
                at += 1;
            }
        }
        return Some(departures);
    }
    None
}

/// Bisects over how long `last` is held back. `fails_early`: whether the run fails if it is not.
fn bisect(
    setup: &Setup,
    before: &[Departure],
    last: &Departure,
    violation: &Violation,
    fails_early: bool,
) -> Explanation {
    let strategy = |patience| Box::new(Held::new(before, last, patience));
    let mut runs = 0;
    let mut fails = |patience: u64| {
        runs += 1;
        let report = replayed(setup, strategy(patience));
        report.violations.iter().any(|found| found.is_like(violation))
    };
    // As far as it comes by itself: then holding it back longer changes nothing.
    let (mut early, mut late) = (0, 1);
    while fails(late) == fails_early {
        early = late;
        late *= 2;
        if late > 1 << 16 {
            return Explanation::Unclear;
        }
    }
    if fails(early) != fails_early {
        return Explanation::Unclear;
    }
    while late - early > 1 {
        let middle = early + (late - early) / 2;
        if fails(middle) == fails_early {
            early = middle;
        } else {
            late = middle;
        }
    }
    let (first, _, first_story) = tell(setup, strategy(early));
    let (second, _, second_story) = tell(setup, strategy(late));
    match pair_of(&last.take, &first_story, &second_story) {
        None => Explanation::Unclear,
        Some((step, other)) => {
            let mut words = Words::new(&first_story);
            let own = of(&words, &footprint(&step));
            let theirs = of(&words, &footprint(&other));
            let shared = of(&words, &common(&footprint(&step), &footprint(&other)));
            let (failing, passing) = if fails_early { (&first, &second) } else { (&second, &first) };
            Explanation::Pair(Box::new(Pair {
                step: last.take.clone(),
                other: name_of(&mut words, &second_story, &other),
                fails_before: fails_early,
                common: shared,
                apart: [own, theirs],
                outcomes: differences(&words, failing, passing),
                runs,
            }))
        }
    }
}

/// Names are needed to follow the schedule.
fn replayed(setup: &Setup, strategy: Box<dyn Strategy>) -> RunReport {
    super::run::run_in_detail(setup, strategy, None)
}

/// In the first run the step comes just before the other, in the second just after it.
fn pair_of(moved: &StepName, first: &Story, second: &Story) -> Option<(StoryStep, StoryStep)> {
    let place = |story: &Story| story.steps.iter().position(|step| step.name.as_ref() == Some(moved));
    let (early, late) = (place(first)?, place(second)?);
    let other = second.steps.get(late.checked_sub(1)?)?;
    (late == early + 1).then(|| (first.steps[early].clone(), other.clone()))
}

/// What a step is: the arrival's name, or what the loop's event did.
fn name_of(words: &mut Words, story: &Story, step: &StoryStep) -> String {
    if let Some(name) = &step.name {
        return format!("{}: {}", name.actor, words.arrival(name));
    }
    let who = step.events.iter().find_map(|(owner, _)| owner.clone());
    let said: Vec<String> = step.events.iter().filter_map(|(_, event)| words.event(event)).collect();
    let what = match said.first() {
        Some(said) => said.clone(),
        None => {
            let next = story.steps.iter().skip_while(|own| !std::ptr::eq(*own, step)).find_map(|own| own.name.clone());
            next.map_or_else(|| "goes on".to_owned(), |next| format!("goes on, before [{next}]"))
        }
    };
    match who {
        Some(who) => format!("{who}: {what}"),
        None => format!("the event loop: {what}"),
    }
}

fn of(words: &Words, touched: &[Touch]) -> Vec<String> {
    let mut found: Vec<String> = touched
        .iter()
        .map(|touch| match touch.end {
            end if end == touch.start => touch.what.clone(),
            u64::MAX => format!("all of {}", touch.what),
            end => format!("{} of {}", words.range(touch.start, end - touch.start), touch.what),
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// How what the two runs left differs, in a few lines.
fn differences(words: &Words, failing: &RunReport, passing: &RunReport) -> Vec<String> {
    let (Some(one), Some(other)) = (&failing.left, &passing.left) else { return Vec::new() };
    let mut found = Vec::new();
    for (node, content) in &one.content {
        if let Some(theirs) = other.content.get(node)
            && let Some((at, own, theirs)) = first_difference(content, theirs)
        {
            let place = words.range(at, 1);
            let place = place.rsplit("in ").next().unwrap_or(&place).to_owned();
            found.push(format!("{place} of {node} holds {own:#04x} if it fails, {theirs:#04x} if it passes"));
        }
    }
    let bitmaps = |report: &super::model::FinalState| {
        let named = report.bitmaps.iter().map(|dump| ((dump.node.clone(), dump.name.clone()), dump.dirty.clone()));
        named.collect::<BTreeMap<_, _>>()
    };
    let theirs = bitmaps(other);
    for ((node, name), dirty) in bitmaps(one) {
        if let Some(passing) = theirs.get(&(node.clone(), name.clone())).filter(|passing| **passing != dirty) {
            let areas = |dirty: &[(u64, u64)]| {
                let all: Vec<String> = dirty.iter().map(|(at, bytes)| words.range(*at, *bytes)).collect();
                if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
            };
            found.push(format!(
                "bitmap {name} of {node} holds {} if it fails, {} if it passes",
                areas(&dirty),
                areas(passing)
            ));
        }
    }
    found
}

/// The first byte in which two contents differ, with its values.
fn first_difference(one: &Runs, other: &Runs) -> Option<(u64, u8, u8)> {
    let (mut one, mut other) = (one.iter().copied(), other.iter().copied());
    let (mut own, mut theirs) = (one.next()?, other.next()?);
    let mut at = 0;
    loop {
        if own.1 != theirs.1 {
            return Some((at, own.1, theirs.1));
        }
        let step = own.0.min(theirs.0);
        at += step;
        (own.0, theirs.0) = (own.0 - step, theirs.0 - step);
        if own.0 == 0 {
            own = one.next()?;
        }
        if theirs.0 == 0 {
            theirs = other.next()?;
        }
    }
}
