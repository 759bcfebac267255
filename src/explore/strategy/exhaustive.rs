//! Exhaustive search: one run for each class of schedules that differ in the order of independent events only.
//!
//! A [`Tree`] walks depth first through the schedules of a scenario, by running it again and again with a longer
//! and longer common beginning. Which events are independent it learns from what they have touched. It must never
//! leave out a schedule on a guess: an event that is not watched depends on everything.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::sim::access::Accesses;
use crate::sim::rng::Rng;
use crate::sim::{ABANDON, ChoicePoint, Strategy};

use super::order::{Before, class_of};

/// What is left out of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Nothing: every schedule is run.
    None,
    /// Sleep sets: what was run first and does not depend on what came since need not be run again. Each class
    /// of equivalent schedules is run to its end exactly once, but many runs are begun in vain (Godefroid,
    /// "Partial-order methods for the verification of concurrent systems", LNCS 1032, 1996).
    SleepSets,
    /// Source sets with sleep sets: at each point only those events are run first that a race seen later asks
    /// for (Abdulla, Aronis, Jonsson, Sagonas, "Optimal dynamic partial order reduction", POPL 2014: the
    /// algorithm Source-DPOR). The same classes as with sleep sets alone, with far fewer vain runs.
    SourceSets,
}

/// The name of the loop's own next event.
const LOOP: u64 = 0;

/// An event that need not come next, and what it touches.
type Sleeper = (u64, Rc<Accesses>);

/// A point of the run under way, and the event that was taken there.
pub(super) struct Node {
    /// Names of what could come, the default first; 0 is the loop's own next event.
    pub(super) enabled: Vec<u64>,
    /// Whether the loop's own event can only be a look at a condition.
    look: bool,
    /// Whether only the loop and requests could go on, and others had to wait for the loop.
    pub(super) closed: bool,
    /// What came.
    pub(super) taken: u64,
    /// What it touched.
    pub(super) touched: Rc<Accesses>,
    /// Whether it was more than a look of the loop at a condition that does not hold: such looks come first and
    /// are no alternative to anything.
    pub(super) changed: bool,
    /// The events that come before it in every equivalent schedule.
    pub(super) before: Before,
    /// What is to be taken here, one after the other, each with what is to follow it first.
    todo: Vec<(u64, Vec<u64>)>,
    /// What has been taken here.
    done: Vec<Sleeper>,
    sleeping: Vec<Sleeper>,
}

impl Node {
    fn is_done(&self, event: u64) -> bool {
        self.done.iter().chain(&self.sleeping).any(|(other, _)| *other == event)
    }
}

/// A depth-first walk through all schedules of a scenario.
pub struct Tree {
    reduction: Reduction,
    path: Vec<Node>,
    /// Points that the run under way has passed.
    at: usize,
    /// Points that it has in common with the run before; the last of them takes something else now.
    common: usize,
    /// Events that the run under way is to take next, so that it comes to the race that it was begun for and not to
    /// what was run elsewhere: most of what wakeup trees are for.
    guide: VecDeque<u64>,
    /// Draws what comes next in [`Tree::walk`].
    draw: Option<Rng>,
    /// It came to a point where everything that could come had been run elsewhere.
    blocked: bool,
    /// Runs that came to their end: classes, if there is a reduction.
    pub complete: u64,
    /// Runs that were begun in vain.
    pub vain: u64,
}

impl Tree {
    /// Nothing has been run.
    pub fn new(reduction: Reduction) -> Tree {
        Tree {
            reduction,
            path: Vec::new(),
            at: 0,
            common: 0,
            guide: VecDeque::new(),
            draw: None,
            blocked: false,
            complete: 0,
            vain: 0,
        }
    }

    /// A single random schedule, to be looked at by [`Tree::events`].
    pub fn walk(rng: Rng) -> Tree {
        Tree { draw: Some(rng), ..Tree::new(Reduction::None) }
    }

    /// The share of the tree that has been walked through when a run has ended: Knuth's weights ("Estimating the
    /// efficiency of backtrack programs", Mathematics of Computation 29, 1975), which count each branch of a point for
    /// the same, summed over what a depth-first walk has left behind (Kilby et al., "Estimating search tree size",
    /// AAAI 2006). Source sets grow on the way, so early on the share is too large.
    pub fn explored(&self) -> f64 {
        let (mut sum, mut share) = (0.0, 1.0);
        for node in self.path.iter().filter(|node| node.changed) {
            let all = node.todo.len().max(node.done.len() + 1) as f64;
            sum += share * node.done.len() as f64 / all;
            share /= all;
        }
        sum + share
    }

    /// Whether the run under way was given up.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The run is over. Whatever could still have come is taken for dependent on its last event, since what the
    /// run leaves is looked at then.
    pub fn finish(&mut self) {
        if self.blocked {
            self.vain += 1;
            return;
        }
        self.complete += 1;
        let Some(last) = self.path.last_mut() else { return };
        last.touched = Rc::new(Accesses::everything());
        last.changed = true;
        if self.reduction == Reduction::SourceSets {
            let known = |event: &u64| last.todo.iter().any(|(other, _)| other == event);
            let pending: Vec<u64> = last.enabled.iter().copied().filter(|event| !known(event)).collect();
            last.todo.extend(pending.into_iter().map(|event| (event, Vec::new())));
        }
        self.settle(self.path.len() - 1);
    }

    /// Goes on to the next schedule; false if there is none.
    pub fn advance(&mut self) -> bool {
        (self.at, self.blocked) = (0, false);
        while let Some(node) = self.path.last_mut() {
            if node.changed {
                node.done.push((node.taken, node.touched.clone()));
                let next = node.todo.iter().find(|(event, _)| !node.is_done(*event)).cloned();
                if let Some((next, then)) = next {
                    node.taken = next;
                    self.guide = then.into();
                    self.common = self.path.len();
                    return true;
                }
            }
            self.path.pop();
        }
        false
    }

    /// A number for the class of the run that has just ended.
    pub fn class(&self) -> u64 {
        class_of(&self.path)
    }

    /// The events of the run that has just ended, in their order, without mere looks.
    pub fn events(&self) -> Vec<Event> {
        let nodes = self.path.iter().filter(|node| node.changed);
        nodes.map(|n| Event { name: n.taken, touched: n.touched.clone(), enabled: n.enabled.clone() }).collect()
    }

    fn choose(&mut self, enabled: Vec<u64>, look: bool, closed: bool) -> Option<u64> {
        let mut sleeping: Vec<Sleeper> = Vec::new();
        if let Some(last) = self.path.last()
            && self.reduction != Reduction::None
        {
            let done = last.done.iter().filter(|(event, _)| *event != last.taken);
            let independent = |(_, touched): &&Sleeper| !last.changed || !touched.conflict(&last.touched);
            sleeping.extend(last.sleeping.iter().chain(done).filter(independent).cloned());
        }
        let awake = |event: &&u64| !sleeping.iter().any(|(other, _)| other == *event);
        let todo: Vec<u64> = enabled.iter().filter(awake).copied().collect();
        let taken = self.pick(&todo, look)?;
        let todo = self.children(todo, taken);
        let taken = todo.first().map_or(taken, |(event, _)| *event);
        self.path.push(Node {
            enabled,
            look,
            closed,
            taken,
            touched: Rc::default(),
            changed: true,
            before: Before::default(),
            todo,
            done: Vec::new(),
            sleeping,
        });
        Some(taken)
    }

    /// The next event among those that are awake: as guided, else the default. A look comes before anything else,
    /// because it may be no event at all.
    fn pick(&mut self, awake: &[u64], look: bool) -> Option<u64> {
        let first = *awake.first()?;
        if look && first == LOOP {
            return Some(first);
        }
        match self.guide.pop_front() {
            Some(next) if awake.contains(&next) => Some(next),
            _ => {
                self.guide.clear();
                Some(first)
            }
        }
    }

    /// What is to be taken at a new point.
    fn children(&mut self, mut awake: Vec<u64>, taken: u64) -> Vec<(u64, Vec<u64>)> {
        if self.reduction == Reduction::SourceSets {
            awake = vec![taken];
        }
        if let Some(rng) = &mut self.draw {
            awake = vec![awake[rng.below(awake.len() as u64) as usize]];
        }
        awake.into_iter().map(|event| (event, Vec::new())).collect()
    }

    /// The event at a point is known: finds what it races with, and sees that the races are run the other way
    /// round too.
    fn settle(&mut self, index: usize) {
        if !self.path[index].changed || self.reduction != Reduction::SourceSets {
            return;
        }
        let (before, races) = Before::of(&self.path, index);
        self.path[index].before = before;
        for race in races {
            self.reverse(race, index);
        }
    }

    /// Sees that some equivalent of "the later event without the earlier one before it" is begun at the earlier
    /// one's point.
    fn reverse(&mut self, earlier: usize, later: usize) {
        let mut others: Vec<usize> = Vec::new();
        let mut names: Vec<u64> = Vec::new();
        let mut initials: Vec<u64> = Vec::new();
        for index in earlier + 1..=later {
            let node = &self.path[index];
            let follows = index != later && node.before.contains(earlier);
            if !node.changed || follows {
                continue;
            }
            if !others.iter().any(|other| node.before.contains(*other)) {
                initials.push(node.taken);
            }
            others.push(index);
            names.push(node.taken);
        }
        let node = &mut self.path[earlier];
        let begun = |event: &u64| node.todo.iter().any(|(other, _)| other == event) || node.is_done(*event);
        if !initials.iter().any(begun) {
            // The loop may have had nothing to do there: then the earlier event is what gave it something.
            let possible = initials.into_iter().find(|event| node.enabled.contains(event));
            if let Some(first) = possible {
                names.remove(names.iter().position(|name| *name == first).unwrap_or(0));
                node.todo.push((first, names));
            }
        }
    }

    fn next(&mut self, point: &ChoicePoint<'_>) -> usize {
        let enabled: Vec<u64> = point.alternatives.iter().map(|alternative| alternative.event).collect();
        let at = self.at;
        self.at += 1;
        let taken = if at < self.common {
            let node = &self.path[at];
            assert!(node.enabled == enabled, "a repeated run differs at point {at}");
            Some(node.taken)
        } else {
            let look = point.alternatives[0].is_loop() && !point.alternatives[0].footprint.writes;
            self.choose(enabled, look, point.closed)
        };
        let index = taken.and_then(|taken| point.alternatives.iter().position(|other| other.event == taken));
        self.blocked = index.is_none();
        index.unwrap_or(ABANDON)
    }

    fn has_run(&mut self, touched: Accesses, changed: bool) {
        let Some(index) = self.at.checked_sub(1) else { return };
        if index + 1 < self.common {
            return;
        }
        let node = &mut self.path[index];
        node.touched = Rc::new(touched);
        node.changed = changed;
        if !changed {
            node.todo.truncate(1);
        } else if node.look && node.taken == LOOP && self.guide.front() == Some(&LOOP) {
            self.guide.pop_front();
        }
        self.settle(index);
    }
}

/// An event of a run that was watched.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name; 0 for the loop's own.
    pub name: u64,
    /// What it touched.
    pub touched: Rc<Accesses>,
    /// What else could have come.
    pub enabled: Vec<u64>,
}

/// The runs of a tree.
pub struct Exhaustive(pub Rc<RefCell<Tree>>);

impl Strategy for Exhaustive {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        self.0.borrow_mut().next(point)
    }

    fn observes(&self) -> bool {
        true
    }

    fn has_run(&mut self, touched: Accesses, changed: bool) {
        self.0.borrow_mut().has_run(touched, changed);
    }
}
