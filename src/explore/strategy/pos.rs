//! Partial order sampling: random priorities for steps, drawn anew where steps race.
//! Must never prefer one task to another beyond that.

use crate::sim::rng::Rng;
use crate::sim::{Alternative, ChoicePoint, Footprint, Strategy};

/// A random priority for each pending step, drawn again for those that race with the step that runs.
///
/// Samples partial orders instead of interleavings: exponentially better than a random walk in its worst cases
/// (Yuan, Yang, Gu, "Partial order aware concurrency sampling", CAV 2018). Steps that announce no range race
/// with everything.
pub struct Pos {
    rng: Rng,
    priorities: Vec<(u64, u64)>,
}

impl Pos {
    /// A sampler.
    pub fn new(rng: Rng) -> Pos {
        Pos { rng, priorities: Vec::new() }
    }

    fn priority(&mut self, of: &Alternative) -> u64 {
        if let Some((_, priority)) = self.priorities.iter().find(|(event, _)| *event == of.event) {
            return *priority;
        }
        let priority = self.rng.bits();
        self.priorities.push((of.event, priority));
        priority
    }
}

/// Whether the order of two announced steps may matter.
pub(crate) fn races(a: &Footprint, b: &Footprint) -> bool {
    let ranged = a.bytes > 0 && b.bytes > 0;
    if !ranged {
        return true;
    }
    let overlap = a.object == b.object && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
    overlap && (a.writes || b.writes)
}

impl Strategy for Pos {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let mut best = (0, 0);
        for (index, alternative) in point.alternatives.iter().enumerate() {
            let priority = self.priority(alternative);
            if priority > best.1 {
                best = (index, priority);
            }
        }
        let taken = &point.alternatives[best.0];
        let racing = point.alternatives.iter().filter(|other| races(&taken.footprint, &other.footprint));
        let again: Vec<u64> = racing.map(|other| other.event).collect();
        self.priorities.retain(|(event, _)| *event != taken.event && !again.contains(event));
        best.0
    }
}
