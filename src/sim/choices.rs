//! The one source of choice.
//!
//! Everything that is not determined by the scenario is asked here: `choose(n, what) -> 0..n`, where
//! 0 is what QEMU would do by itself. The list of answers is the whole identity of a run: replay
//! feeds it back, shrinking makes it smaller, exhaustive search counts through it. Nothing here may
//! know what is being chosen beyond its name and its footprint.

use std::rc::Rc;

use super::access::Accesses;
use super::executor::{Sim, TaskId};

/// What a step is about to touch, announced before it runs, so that independence of two steps can
/// be judged without running them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Footprint {
    /// A short name of the kind of step (`"read"`, `"client"`, `"timer"`).
    pub what: &'static str,
    /// The node or other object it is about; 0 where there is none.
    pub object: u32,
    /// Byte range on that object.
    pub offset: u64,
    /// Length of the range in bytes; 0 where a range makes no sense.
    pub bytes: u64,
    /// Whether the step changes what it touches.
    pub writes: bool,
    /// The task that runs next in this step.
    pub task: Option<TaskId>,
}

impl Footprint {
    /// The step of an actor: it may do anything, so it is independent of nothing.
    pub fn actor(task: TaskId) -> Footprint {
        Footprint { what: "actor", task: Some(task), writes: true, ..Footprint::default() }
    }

    /// A step called `what` on a byte range of `object`.
    pub fn range(what: &'static str, object: u32, offset: u64, bytes: u64, writes: bool) -> Footprint {
        Footprint { what, object, offset, bytes, writes, task: None }
    }

    /// A step that is only a name.
    pub fn named(what: &'static str) -> Footprint {
        Footprint { what, writes: true, ..Footprint::default() }
    }
}

impl Alternative {
    /// The loop's own next event.
    pub fn of_loop() -> Alternative {
        Alternative { footprint: Footprint::named("loop"), sequence: 0, event: 0, due: 0 }
    }

    /// Whether this is not an arrival but the event loop's own next step.
    pub fn is_loop(&self) -> bool {
        self.sequence == 0
    }
}

/// One of the steps that could come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// What it will touch.
    pub footprint: Footprint,
    /// Its sequence number among all arrivals of the run; stable between equal prefixes.
    pub sequence: u64,
    /// Names the event by who has made it: the same in all runs that differ in the order of independent events
    /// only; 0 for the loop's own next event.
    pub event: u64,
    /// How long until it is due and what it is: all that decides where it stands among those that are made after it. Of
    /// the loop's own event: the same of all that can't come at this point.
    pub due: u64,
}

/// Where the names of tasks are looked up.
#[derive(Clone, Copy)]
pub enum Names<'a> {
    /// In the run.
    Of(&'a Sim),
    /// The run is only remembered: one for each alternative, by its number among all.
    Kept(&'a [u32], &'a [Rc<str>]),
    /// Nowhere: in tests of strategies.
    None,
}

/// What the loop has to do by itself, at a choice point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// It is in a nested poll.
    pub framed: bool,
    /// The frame that polls has looked at its condition since anything last happened.
    pub looked: bool,
    /// Bottom halves are pending.
    pub bottom_halves: bool,
    /// Something waits for the next dispatch of the monitor's context.
    pub monitor: bool,
}

impl Queues {
    /// Whether there is nothing for it to do but to wait. `closed`: see [`ChoicePoint::closed`].
    pub fn is_idle(self, closed: bool) -> bool {
        // Inside a frame's poll the monitor's context does not run.
        !self.bottom_halves && if self.framed { self.looked && !closed } else { !self.monitor }
    }
}

/// A place where more than one step could come next; the first alternative is QEMU's own.
pub struct ChoicePoint<'a> {
    /// Steps executed before this point.
    pub step: u64,
    /// What could come next, the default first.
    pub alternatives: &'a [Alternative],
    /// Only the loop and requests can go on here; whatever else is due comes when the loop has.
    pub closed: bool,
    /// What the loop has to do by itself.
    pub queues: Queues,
    /// Names of tasks.
    pub names: Names<'a>,
}

impl<'a> ChoicePoint<'a> {
    /// The run that is at this point.
    pub fn sim(&self) -> Option<&'a Sim> {
        match self.names {
            Names::Of(sim) => Some(sim),
            Names::Kept(..) | Names::None => None,
        }
    }

    /// Who takes the step: the name of its task, or of what arrives without one.
    pub fn actor(&self, index: usize) -> Rc<str> {
        let footprint = &self.alternatives[index].footprint;
        match (footprint.task, self.names) {
            (_, Names::Kept(numbers, names)) => names[numbers[index] as usize].clone(),
            (Some(task), Names::Of(sim)) => sim.task_name(task),
            _ => Rc::from(footprint.what),
        }
    }
}

/// The answer of a strategy that has seen enough of a run.
pub const ABANDON: usize = usize::MAX;

/// Decides at choice points; one implementation for each way to explore.
pub trait Strategy {
    /// The alternative to take, or [`ABANDON`]; anything else out of range counts as the default.
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize;

    /// Is told of every arrival that comes where there was nothing to choose.
    fn forced_step(&mut self, _point: &ChoicePoint<'_>) {}

    /// Whether it wants to know what each event has touched, by [`Strategy::has_run`]. Such a strategy is asked
    /// by [`Strategy::next_step`] at every point, also where there is nothing to choose.
    fn observes(&self) -> bool {
        false
    }

    /// Whether what happens before the first point is recorded. Who observes and does not want everything recorded says
    /// so, by [`super::access::record`].
    fn records(&self) -> bool {
        self.observes()
    }

    /// The event that was begun last has run, and has touched that; `changed`: it was more than a look at a
    /// condition that does not hold.
    fn has_run(&mut self, _touched: Accesses, _changed: bool) {}

    /// A decision that is not about order (a fault, a duration): `0..n`, 0 is "as QEMU would".
    fn pick(&mut self, _n: usize, _what: &'static str) -> usize {
        0
    }
}

/// One answer, as a failure report prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// How many alternatives there were.
    pub n: u32,
    /// Which was taken.
    pub taken: u32,
    /// What was decided.
    pub what: &'static str,
}

/// Asks a strategy and records its answers; without one, every answer is 0 and nothing is recorded.
#[derive(Default)]
pub struct Choices {
    strategy: Option<Box<dyn Strategy>>,
    observes: bool,
    recorded: Vec<Recorded>,
}

impl Choices {
    /// QEMU's own order, always.
    pub fn qemu() -> Choices {
        Choices::default()
    }

    /// Asks `strategy` wherever there is more than one possibility.
    pub fn with(strategy: Box<dyn Strategy>) -> Choices {
        let observes = strategy.observes();
        Choices { strategy: Some(strategy), observes, recorded: Vec::new() }
    }

    /// Whether answers can differ from 0 at all.
    pub fn explores(&self) -> bool {
        self.strategy.is_some()
    }

    /// The answers so far.
    pub fn recorded(&self) -> &[Recorded] {
        &self.recorded
    }

    /// The answers of a run that is over.
    pub fn into_recorded(self) -> Vec<Recorded> {
        self.recorded
    }

    /// A decision among `n` possibilities that is not about which step comes next.
    pub fn choose(&mut self, n: usize, what: &'static str) -> usize {
        let Some(strategy) = &mut self.strategy else { return 0 };
        if n < 2 {
            return 0;
        }
        let taken = in_range(strategy.pick(n, what), n);
        self.recorded.push(Recorded { n: n as u32, taken: taken as u32, what });
        taken
    }

    /// Which of the possible next steps is taken; none: the run is to be abandoned.
    pub fn next_step(&mut self, point: &ChoicePoint<'_>) -> Option<usize> {
        let n = point.alternatives.len();
        let Some(strategy) = &mut self.strategy else { return Some(0) };
        if n < 2 && !self.observes {
            strategy.forced_step(point);
            return Some(0);
        }
        let answer = strategy.next_step(point);
        if answer == ABANDON {
            return None;
        }
        let taken = in_range(answer, n);
        if n > 1 {
            self.recorded.push(Recorded { n: n as u32, taken: taken as u32, what: "step" });
        }
        Some(taken)
    }

    /// Only the loop can go on. A strategy that observes is asked as at any other point.
    pub fn only_loop(&mut self, point: &ChoicePoint<'_>) -> Option<usize> {
        if self.observes { self.next_step(point) } else { Some(0) }
    }

    /// Whether the strategy wants to know what events touch.
    pub fn observes(&self) -> bool {
        self.observes
    }

    /// See [`Strategy::records`].
    pub fn records(&self) -> bool {
        self.strategy.as_ref().is_some_and(|strategy| strategy.records())
    }

    /// Tells it.
    pub fn has_run(&mut self, touched: Accesses, changed: bool) {
        if let Some(strategy) = &mut self.strategy {
            strategy.has_run(touched, changed);
        }
    }
}

fn in_range(answer: usize, n: usize) -> usize {
    if answer < n { answer } else { 0 }
}
