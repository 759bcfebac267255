//! Random walk: the baseline of every comparison between strategies.
//! Must never remember anything from one step to the next.

use crate::sim::rng::Rng;
use crate::sim::{ChoicePoint, Strategy};

/// Takes each possible step with the same probability.
///
/// Guarantees nothing in the worst case, and is hard to beat in practice (Thomson, Donaldson, Betts,
/// "Concurrency testing using schedule bounding: an empirical study", PPoPP 2014), so it is the baseline of every
/// comparison. Every other run lets the event loop finish what it has before the next arrival: then the walk is
/// over orders of arrivals only. What is drawn is a place in the order of the events' names, which is the same
/// whatever order independent events have come in.
pub struct RandomWalk {
    rng: Rng,
    loop_first: bool,
}

impl RandomWalk {
    /// A walk; `loop_first`: arrivals come only when the loop is idle.
    pub fn new(rng: Rng, loop_first: bool) -> RandomWalk {
        RandomWalk { rng, loop_first }
    }
}

impl Strategy for RandomWalk {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        if self.loop_first && point.alternatives[0].is_loop() {
            return 0;
        }
        let place = self.rng.below(point.alternatives.len() as u64) as usize;
        let names = || point.alternatives.iter().map(|alternative| alternative.event);
        // They are few.
        let is_at_place = |name: &u64| names().filter(|other| other < name).count() == place;
        names().position(|name| is_at_place(&name)).unwrap_or(0)
    }
}
