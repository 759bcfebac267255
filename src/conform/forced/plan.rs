//! What a schedule of the model means for a real QEMU: in which order clients act and devices answer.
//!
//! The plan is read off one run of the model under the schedule. Must never know how any of it is brought about.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::scenario::ast::Step;
use crate::sim::{ChoicePoint, Strategy};

use super::super::guests::concurrent;

/// What steps of clients are called.
const ACTOR: &str = "actor";

/// A request at the bottom of the graph, where a device would do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node of the file.
    pub node: Rc<str>,
    /// `read`, `write`, `discard` or `flush`.
    pub operation: &'static str,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}+{}", self.operation, self.node, self.offset, self.bytes)
    }
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An actor goes on.
    Actor(Rc<str>),
    /// The device has done the request of this number.
    Done(usize),
    /// Something that only QEMU itself decides about (a timer).
    Own(&'static str),
}

/// One move, and the requests that begin in consequence, by number and in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// What comes.
    pub what: What,
    /// What begins then.
    pub begins: Vec<usize>,
}

/// The moves from the first step of an actor to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In their order.
    pub moves: Vec<Move>,
    /// All requests that begin in them.
    pub requests: Vec<Request>,
}

/// The names of all actors of the steps.
pub fn actors(steps: &[Step]) -> BTreeSet<Rc<str>> {
    concurrent(steps).flat_map(|step| step.actors.iter().map(|(name, _)| Rc::from(&**name))).collect()
}

/// Lets another strategy decide and writes the plan down.
pub struct Planner {
    inner: Box<dyn Strategy>,
    actors: BTreeSet<Rc<str>>,
    plan: Rc<RefCell<Plan>>,
    /// Requests under way: their number in the plan by the number of their arrival.
    under_way: BTreeMap<u64, usize>,
    /// The last arrival that was looked at.
    seen: u64,
}

impl Planner {
    /// Plans what `inner` decides, between the first and the last step of one of `actors`.
    pub fn new(inner: Box<dyn Strategy>, actors: BTreeSet<Rc<str>>) -> (Planner, Rc<RefCell<Plan>>) {
        let plan: Rc<RefCell<Plan>> = Rc::default();
        (Planner { inner, actors, plan: plan.clone(), under_way: BTreeMap::new(), seen: 0 }, plan)
    }

    /// Takes in the requests that have begun since the last move.
    fn look(&mut self, point: &ChoicePoint<'_>) {
        let mut plan = self.plan.borrow_mut();
        let mut new: Vec<_> =
            point.alternatives.iter().filter(|one| !one.is_loop() && one.sequence > self.seen).collect();
        // They stand in the order in which they would be told; what is noted is the order in which they begin.
        new.sort_by_key(|one| one.sequence);
        for alternative in new {
            let footprint = &alternative.footprint;
            let node = point.sim().and_then(|sim| sim.object_name(footprint.object));
            let is_request = matches!(footprint.what, "read" | "write" | "flush" | "discard");
            let Some((node, last)) = node.filter(|_| is_request).zip(plan.moves.len().checked_sub(1)) else { continue };
            let (operation, offset, bytes) = (footprint.what, footprint.offset, footprint.bytes);
            plan.requests.push(Request { node, operation, offset, bytes });
            let number = plan.requests.len() - 1;
            plan.moves[last].begins.push(number);
            self.under_way.insert(alternative.sequence, number);
        }
        let latest = point.alternatives.iter().map(|one| one.sequence).max();
        self.seen = self.seen.max(latest.unwrap_or(0));
    }

    fn note(&mut self, point: &ChoicePoint<'_>, taken: usize) {
        let alternative = &point.alternatives[taken];
        if alternative.is_loop() {
            return;
        }
        let actor = point.actor(taken);
        let what = match self.under_way.remove(&alternative.sequence) {
            Some(number) => What::Done(number),
            None if self.actors.contains(&actor) => What::Actor(actor),
            // Who waits for the actors to end has no move of its own.
            None if alternative.footprint.what == ACTOR => return,
            None => What::Own(alternative.footprint.what),
        };
        let mut plan = self.plan.borrow_mut();
        // What comes before the first actor is in QEMU's own order, as it is in a real QEMU.
        if !plan.moves.is_empty() || matches!(what, What::Actor(_)) {
            plan.moves.push(Move { what, begins: Vec::new() });
        }
    }
}

impl Strategy for Planner {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        self.look(point);
        let answer = self.inner.next_step(point);
        let taken = if answer < point.alternatives.len() { answer } else { 0 };
        self.note(point, taken);
        taken
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.look(point);
        self.inner.forced_step(point);
        self.note(point, 0);
    }

    fn pick(&mut self, n: usize, what: &'static str) -> usize {
        self.inner.pick(n, what)
    }
}
