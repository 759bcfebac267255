//! Coverage guidance: what led to something new is varied, in the hope of more.
//! Must never look at what a run is about, only at which abstract states it went through.

use std::collections::BTreeSet;

use crate::sim::rng::{Rng, Stream};

/// Departures from QEMU's own order, by the number of the choice and of the alternative.
pub type Departures = Vec<(u64, u32)>;

/// Runs that went through an abstract state for the first time, and their variations.
///
/// A variation adds a departure, adds a few in a row (a slow device), takes one out, moves one, or joins the beginning
/// of one run to the end of another. Guarantees nothing; where a defect needs several rare steps one after the other,
/// each of them is kept once it was found (the idea of American Fuzzy Lop, Zalewski 2013; for schedules: Wolff et al.,
/// "Greybox fuzzing for concurrency testing", ASPLOS 2024).
pub struct Corpus {
    rng: Rng,
    kept: Vec<Departures>,
    seen: BTreeSet<u64>,
    points: u64,
}

impl Corpus {
    /// Knows only QEMU's own order, which has about so many choices.
    pub fn new(seed: u64, points: u64) -> Corpus {
        let rng = Rng::new(seed, Stream::Schedule);
        Corpus { rng, kept: vec![Vec::new()], seen: BTreeSet::new(), points: points.max(1) }
    }

    /// The departures to try next.
    pub fn next_schedule(&mut self) -> Departures {
        let mut departures = self.pick();
        for _ in 0..=self.rng.below(2) {
            self.vary(&mut departures);
        }
        departures.sort_unstable();
        departures.dedup_by_key(|(at, _)| *at);
        departures
    }

    /// A run with these departures went through those states.
    pub fn has_run(&mut self, departures: Departures, coverage: impl Iterator<Item = u64>) {
        let before = self.seen.len();
        self.seen.extend(coverage);
        if self.seen.len() > before {
            self.kept.push(departures);
        }
    }

    /// Half of the time one of the newest, else any.
    fn pick(&mut self) -> Departures {
        const NEWEST: u64 = 8;
        let all = self.kept.len() as u64;
        let from = if self.rng.one_in(2) { all.min(NEWEST) } else { all };
        self.kept[(all - 1 - self.rng.below(from)) as usize].clone()
    }

    fn vary(&mut self, departures: &mut Departures) {
        let place = self.rng.below(self.points + self.points / 4 + 1);
        let some = self.rng.below(departures.len().max(1) as u64) as usize;
        match self.rng.below(8) {
            0..=2 => departures.push((place, 1 + self.rng.below(3) as u32)),
            3 | 4 => {
                let length = 2 + self.rng.below(20);
                departures.extend((place..place + length).map(|at| (at, 1)));
            }
            5 if !departures.is_empty() => {
                departures.remove(some);
            }
            6 if !departures.is_empty() => departures[some].0 = place,
            _ => {
                let other = self.pick();
                departures.retain(|(at, _)| *at < place);
                departures.extend(other.into_iter().filter(|(at, _)| *at >= place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_new_and_varies_it() {
        let mut corpus = Corpus::new(1, 10);
        corpus.has_run(vec![(3, 1)], [7].into_iter());
        corpus.has_run(vec![(4, 1)], [7].into_iter());
        assert_eq!(corpus.kept, [vec![], vec![(3, 1)]]);
        let tried: BTreeSet<Departures> = (0..100).map(|_| corpus.next_schedule()).collect();
        assert!(tried.len() > 50, "only {} of 100 differ", tried.len());
        assert!(tried.iter().any(|departures| departures.len() > 1 && departures.contains(&(3, 1))));
    }
}
