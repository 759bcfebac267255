//! Probabilistic concurrency testing: random priorities for tasks, lowered at a few random steps.
//! Must never look at what a step does, only at whose it is.

use crate::sim::rng::Rng;
use crate::sim::{Alternative, ChoicePoint, Strategy};

use super::Learned;

/// Who is given a priority: a task, the event loop, or an arrival without a task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    Loop,
    Task(u64),
    Arrival(u64),
}

fn chain(alternative: &Alternative) -> Chain {
    match alternative.footprint.task {
        _ if alternative.is_loop() => Chain::Loop,
        Some(task) => Chain::Task(task.number()),
        None => Chain::Arrival(alternative.event),
    }
}

/// Random priorities, and `depth - 1` moments at which the leader falls behind everybody.
///
/// Finds a bug of depth d among n tasks and k steps with probability at least 1 / (n k^(d-1)) in each run
/// (Burckhardt, Kothari, Musuvathi, Nagarakatte, "A randomized scheduler with probabilistic guarantees of
/// finding bugs", ASPLOS 2010). k counts only the places where there is a choice, as far as the run in QEMU's
/// own order has them.
pub struct Pct {
    rng: Rng,
    priorities: Vec<(Chain, u64)>,
    /// Steps at which the leader falls behind, ascending.
    changes: Vec<u64>,
    steps: u64,
    depth: u32,
}

impl Pct {
    /// For bugs of this depth in runs with about `points` choices.
    pub fn new(mut rng: Rng, depth: u32, points: u64) -> Pct {
        let mut changes: Vec<u64> = (1..depth).map(|_| rng.below(points.max(1))).collect();
        changes.sort_unstable();
        Pct { rng, priorities: Vec::new(), changes, steps: 0, depth }
    }

    fn priority(&mut self, of: Chain) -> u64 {
        if let Some((_, priority)) = self.priorities.iter().find(|(chain, _)| *chain == of) {
            return *priority;
        }
        let priority = u64::from(self.depth) + self.rng.bits() / 2;
        self.priorities.push((of, priority));
        priority
    }

    fn leader(&mut self, point: &ChoicePoint<'_>) -> usize {
        let mut best = (0, 0);
        for (index, alternative) in point.alternatives.iter().enumerate() {
            let priority = self.priority(chain(alternative));
            if priority >= best.1 && (index == 0 || priority > best.1) {
                best = (index, priority);
            }
        }
        best.0
    }
}

impl Strategy for Pct {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let mut leader = self.leader(point);
        while self.changes.first() == Some(&self.steps) {
            self.changes.remove(0);
            let lowest = self.changes.len() as u64;
            let fallen = chain(&point.alternatives[leader]);
            if let Some(entry) = self.priorities.iter_mut().find(|(chain, _)| *chain == fallen) {
                entry.1 = lowest;
            }
            leader = self.leader(point);
        }
        self.steps += 1;
        leader
    }
}

/// The bound on missing a bug of that depth, in words.
pub(super) fn guarantee(depth: u32, runs: u64, learned: &Learned) -> String {
    let (n, k) = (learned.steps.len().max(1) as f64, learned.points.max(1) as f64);
    let hit = 1.0 / (n * k.powi(depth as i32 - 1));
    let missed = (1.0 - hit).powf(runs as f64) * 100.0;
    format!(
        "PCT, depth {depth}, {n} tasks, {k} choices: a bug of this depth is missed with probability below {missed:.1} %"
    )
}
