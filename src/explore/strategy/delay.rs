//! Delay bounding: few departures from QEMU's own order.

use crate::sim::rng::Rng;
use crate::sim::{ChoicePoint, Strategy};

/// Takes given alternatives at given choices, counted from 0, and the default everywhere else.
pub struct Sparse {
    departures: Vec<(u64, u32)>,
    at: u64,
}

impl Sparse {
    /// These departures: which choice, which alternative; ascending.
    pub fn new(departures: Vec<(u64, u32)>) -> Sparse {
        Sparse { departures, at: 0 }
    }
}

impl Strategy for Sparse {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let here = self.departures.iter().find(|(at, _)| *at == self.at);
        let taken = here.map_or(0, |(_, taken)| *taken as usize);
        self.at += 1;
        if taken < point.alternatives.len() { taken } else { 0 }
    }
}

/// A few departures at random places, to random alternatives.
///
/// Samples what [`DelayBounded`] enumerates; guarantees nothing, but most concurrency bugs need only one or two
/// departures (Emmi, Qadeer, Rakamarić, "Delay-bounded scheduling", POPL 2011).
pub struct SampledDelays {
    rng: Rng,
    places: Vec<u64>,
    at: u64,
    /// For how many more choices the step that was passed over stays passed over.
    starving: Option<(u64, u64)>,
}

impl SampledDelays {
    /// One to `most` departures among about `points` choices.
    pub fn new(mut rng: Rng, most: u32, points: u64) -> SampledDelays {
        let count = 1 + rng.below(u64::from(most.max(1)));
        let places = (0..count).map(|_| rng.below(points.max(1))).collect();
        SampledDelays { rng, places, at: 0, starving: None }
    }
}

impl Strategy for SampledDelays {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let at = self.at;
        self.at += 1;
        if self.places.contains(&at) {
            // Half of the departures hold the default step back for a while, as a slow device does.
            let default = point.alternatives[0].event;
            if default != 0 && self.rng.one_in(2) {
                self.starving = Some((default, at + 1 + self.rng.below(40)));
            }
            return 1 + self.rng.below(point.alternatives.len() as u64 - 1) as usize;
        }
        match self.starving {
            Some((held, until)) if at < until => {
                point.alternatives.iter().position(|alternative| alternative.event != held).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

/// A schedule that was run, whose extensions are still to come.
struct Frame {
    departures: Vec<(u64, u32)>,
    /// Alternatives at each choice of the run.
    widths: Vec<u32>,
    /// The next departure to add.
    next: (u64, u32),
}

/// Every schedule with at most `bound` departures from QEMU's own order, once each.
///
/// There are at most C(k·w, d) of them for k choices of width w, however many tasks there are (after Emmi,
/// Qadeer, Rakamarić, POPL 2011; here every departure costs one, whatever it skips). When it ends, no bug that
/// needs at most `bound` departures is left in the scenario.
pub struct DelayBounded {
    bound: usize,
    stack: Vec<Frame>,
    running: Vec<(u64, u32)>,
    started: bool,
}

impl DelayBounded {
    /// All schedules with at most `bound` departures.
    pub fn new(bound: usize) -> DelayBounded {
        DelayBounded { bound, stack: Vec::new(), running: Vec::new(), started: false }
    }

    /// The departures of the next schedule; none when all were run.
    pub fn next_schedule(&mut self) -> Option<Vec<(u64, u32)>> {
        if !self.started {
            self.started = true;
            return Some(Vec::new());
        }
        while let Some(frame) = self.stack.last_mut() {
            let (at, alternative) = frame.next;
            let Some(width) = frame.widths.get(at as usize) else {
                self.stack.pop();
                continue;
            };
            if alternative >= *width {
                frame.next = (at + 1, 1);
                continue;
            }
            frame.next = (at, alternative + 1);
            let mut departures = frame.departures.clone();
            departures.push((at, alternative));
            self.running = departures.clone();
            return Some(departures);
        }
        None
    }

    /// The schedule has been run; at each choice there were so many alternatives.
    pub fn has_run(&mut self, widths: Vec<u32>) {
        let departures = std::mem::take(&mut self.running);
        if departures.len() < self.bound {
            let first = departures.last().map_or(0, |(at, _)| at + 1);
            self.stack.push(Frame { departures, widths, next: (first, 1) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerates_each_schedule_once() {
        let mut search = DelayBounded::new(2);
        let mut seen = Vec::new();
        while let Some(schedule) = search.next_schedule() {
            seen.push(schedule);
            search.has_run(vec![2, 3, 2]);
        }
        // 1 without, 1 + 2 + 1 with one departure, 1·2 + 1·1 + 2·1 with two.
        assert_eq!(seen.len(), 1 + 4 + 5);
        let mut unique = seen.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), seen.len());
    }
}
