//! Exhaustive search of one case: runs until no schedule is left.
//!
//! [`Tree`] says what to run; this counts, judges and estimates. Must never claim completeness after it was
//! stopped.

use std::cell::RefCell;
use std::rc::Rc;

use super::run::{RunReport, Setup, run};
use super::search::{Plan, Tally, describe};
use super::strategy::{Exhaustive, Reduction, Script, Tree};

/// What an exhaustive search has come to.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    /// Runs that came to their end; with a reduction each stands for a class of equivalent schedules.
    pub complete: u64,
    /// Runs that were begun in vain.
    pub vain: u64,
    /// About how many classes there are, if the search was stopped.
    pub about: Option<f64>,
}

impl Classes {
    /// What the search has come to, in words.
    pub fn text(&self, reduction: Reduction, complete: bool) -> String {
        let what = if reduction == Reduction::None { "schedules" } else { "classes of schedules" };
        let count = match self.about {
            _ if complete => format!("all {}", grouped(self.complete)),
            Some(about) => format!("{} of about {}", grouped(self.complete), rounded(about)),
            None => grouped(self.complete),
        };
        let vain = if self.vain > 0 { format!(", and {} runs in vain", grouped(self.vain)) } else { String::new() };
        format!("exhaustive: {count} {what}{vain}")
    }
}

/// A number as people read it.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Two digits of an estimate.
fn rounded(number: f64) -> String {
    let unit = 10f64.powf((number.max(1.0).log10().floor() - 1.0).max(0.0));
    grouped(((number / unit).round() * unit) as u64)
}

/// Runs a tree's next schedule.
pub fn run_next(setup: &Setup, tree: &Rc<RefCell<Tree>>) -> RunReport {
    let report = run(setup, Box::new(Exhaustive(tree.clone())));
    tree.borrow_mut().finish();
    report
}

/// An exhaustive search of a case, any stretch of it at a time.
pub struct Exhausting<'a> {
    setup: &'a Setup,
    plan: &'a Plan,
    tree: Rc<RefCell<Tree>>,
    /// The share of the tree that has been walked through, by Knuth's weights.
    explored: f64,
    ended: bool,
}

impl<'a> Exhausting<'a> {
    /// Nothing has been run.
    pub fn new(setup: &'a Setup, plan: &'a Plan, reduction: Reduction) -> Exhausting<'a> {
        let tree = Rc::new(RefCell::new(Tree::new(reduction)));
        Exhausting { setup, plan, tree, explored: 1.0, ended: false }
    }

    /// Makes runs up to number `end`, and notes in the tally what the search has come to; `go_on` is asked before
    /// each.
    pub fn stretch(&mut self, tally: &mut Tally, end: u64, go_on: &mut dyn FnMut(&Tally) -> bool) {
        let mut broken_off = false;
        while !self.ended && tally.next < end && tally.failure.is_none() {
            if !go_on(tally) {
                broken_off = true;
                break;
            }
            self.run(tally);
        }
        tally.complete &= !broken_off && tally.failure.is_none();
        let tree = self.tree.borrow();
        let about = (!self.ended).then(|| tree.complete as f64 / self.explored);
        tally.classes = Some(Classes { complete: tree.complete, vain: tree.vain, about });
    }

    fn run(&mut self, tally: &mut Tally) {
        let report = run_next(self.setup, &self.tree);
        let blocked = self.tree.borrow().is_blocked();
        if blocked {
            tally.runs += 1;
            tally.next += 1;
        } else if tally.take(self.plan, &report) {
            let names = self.tree.borrow().events().iter().map(|event| event.name).collect();
            tally.failure = Some(describe(self.setup, self.plan, tally.next - 1, Box::new(Script::new(names))));
            return;
        }
        self.explored = self.tree.borrow().explored();
        self.ended = !self.tree.borrow_mut().advance();
    }

    /// Whether no schedule is left.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// About how many runs are left.
    pub fn left(&self) -> f64 {
        let tree = self.tree.borrow();
        (tree.complete + tree.vain) as f64 * (1.0 / self.explored - 1.0)
    }
}

/// Runs all schedules of a case that are not equivalent to another, at most as many as the plan says.
pub fn search_exhaustively(
    setup: &Setup,
    plan: &Plan,
    reduction: Reduction,
    mut go_on: impl FnMut(&Tally) -> bool,
) -> Tally {
    let mut search = Exhausting::new(setup, plan, reduction);
    let mut tally = Tally { complete: true, ..Tally::default() };
    search.stretch(&mut tally, plan.end, &mut go_on);
    tally.complete &= search.has_ended();
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_it_came() {
        let classes = Classes { complete: 41_203, vain: 7, about: Some(1_234_567.0) };
        let said = classes.text(Reduction::SourceSets, false);
        assert_eq!(said, "exhaustive: 41,203 of about 1,200,000 classes of schedules, and 7 runs in vain");
        assert_eq!(classes.text(Reduction::None, true), "exhaustive: all 41,203 schedules, and 7 runs in vain");
    }
}
