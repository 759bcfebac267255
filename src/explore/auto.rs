//! `auto`: a budget spread over all ways to search.
//!
//! In rounds, each twice as long as the one before: half of a round are seeded runs of all kinds, a quarter goes to
//! the exhaustive search as long as it may come to an end, a quarter to variations of runs that reached something
//! new. Where the estimate says that the exhaustive search fits into what is left, it gets half of that at once. The
//! verdict on a run depends on the scenario, the seed, its number and the budget alone.

use super::exhaustive::Exhausting;
use super::run::Setup;
use super::search::{Covering, Plan, Seeded, Tally};
use super::strategy::Reduction;

/// Runs of the first round.
const ROUND: u64 = 1000;

/// Makes seeded runs from where a tally ends up to a number.
pub type SeededRuns<'a> = &'a mut dyn FnMut(Tally, u64) -> Tally;

/// Goes on with the plan from `begun`; `seeded` makes the seeded runs, `go_on` is asked between the others.
pub fn search_mixed(
    setup: &Setup,
    plan: &Plan,
    begun: Tally,
    seeded: SeededRuns<'_>,
    go_on: &mut dyn FnMut(&Tally) -> bool,
) -> Tally {
    let mut tally = Tally { complete: true, ..begun };
    let mut exhausting = Exhausting::new(setup, plan, Reduction::SourceSets);
    let mut covering = Covering::new(setup, plan);
    let mut round = ROUND;
    let mut may_end = true;
    while tally.next < plan.end && tally.is_going_on() {
        let (begin, length) = (tally.next, round.min(plan.end - tally.next));
        let quarters = |share: u64| begin + length * share / 4;
        tally = seeded(tally, quarters(2));
        if may_end && tally.is_going_on() {
            exhausting.stretch(&mut tally, quarters(3), go_on);
            let left = plan.end - tally.next.min(plan.end);
            may_end = exhausting.left() <= left as f64;
            if may_end && tally.is_going_on() {
                let until = quarters(3).max(tally.next + left / 2);
                exhausting.stretch(&mut tally, until, go_on);
            }
            if exhausting.has_ended() {
                break;
            }
        } else if tally.is_going_on() {
            tally = seeded(tally, quarters(3));
        }
        if tally.is_going_on() {
            let until = quarters(4).max(tally.next).min(plan.end);
            covering.stretch(&mut tally, until, go_on);
        }
        round *= 2;
    }
    tally
}

/// Runs the whole plan on this thread; `go_on` is asked between runs.
pub fn search_auto(setup: &Setup, plan: &Plan, mut go_on: impl FnMut(&Tally) -> bool) -> Tally {
    let runs = Seeded::new(setup, plan);
    let mut seeded = |mut tally: Tally, end: u64| {
        let more = runs.stretch(tally.next..end, |_| true);
        tally.append(more);
        tally
    };
    search_mixed(setup, plan, Tally::default(), &mut seeded, &mut go_on)
}
