//! Uniform random walk over interleavings: tasks weighted by the steps that they have left.
//! Must never count a step that is not a choice.

use crate::sim::rng::Rng;
use crate::sim::{ChoicePoint, Strategy};

use super::Learned;

/// Takes a step of a task with a probability proportional to what that task has left to do.
///
/// With exact counts every interleaving is equally likely (Zhao et al., "Selectively uniform concurrency
/// testing", ASPLOS 2025, of which this is the walk without selection). The counts are those of the run in
/// QEMU's own order, by task name; where a schedule changes them it is only nearly uniform.
pub struct Urw {
    rng: Rng,
    left: Vec<(String, u64)>,
}

impl Urw {
    /// A walk with the counts of `learned`.
    pub fn new(rng: Rng, learned: &Learned) -> Urw {
        Urw { rng, left: learned.steps.clone() }
    }

    fn weight(&self, actor: &str) -> u64 {
        self.left.iter().find(|(name, _)| name == actor).map_or(1, |(_, left)| (*left).max(1))
    }
}

/// How likely one run has a given order, in words.
pub(super) fn guarantee(learned: &Learned) -> String {
    let log_factorial = |n: u64| (2..=n).map(|k| (k as f64).log10()).sum::<f64>();
    let all: u64 = learned.steps.iter().map(|(_, count)| count).sum();
    let same: f64 = learned.steps.iter().map(|(_, count)| log_factorial(*count)).sum();
    let orders = (log_factorial(all) - same).max(0.0);
    format!(
        "URW, {} tasks, {all} steps: each of about 10^{orders:.0} orders of them is equally likely, as far as the steps \
         of QEMU's own run are those of all",
        learned.steps.len()
    )
}

impl Strategy for Urw {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let actors: Vec<_> = (0..point.alternatives.len()).map(|index| point.actor(index)).collect();
        let weights: Vec<u64> = actors.iter().map(|actor| self.weight(actor)).collect();
        let mut pick = self.rng.below(weights.iter().sum());
        let mut taken = 0;
        for (index, weight) in weights.iter().enumerate() {
            if pick < *weight {
                taken = index;
                break;
            }
            pick -= weight;
        }
        if let Some((_, left)) = self.left.iter_mut().find(|(name, _)| **name == *actors[taken]) {
            *left = left.saturating_sub(1);
        }
        taken
    }
}
