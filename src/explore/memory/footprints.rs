//! What remembered events have touched, each list kept once, and which pairs of them conflict.
//!
//! Most events touch the same things in every run, so there are few lists, and their pairs are compared once. Must
//! never guess: what was not recorded has no number here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sim::access::Accesses;

/// Pairs of lists up to this number are remembered; those of later lists are compared each time.
const PAIRS: usize = 4096;

/// What two events have to do with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pair {
    /// Neither has to do with the other.
    Apart,
    /// Their order does not matter, but something may need both.
    Together,
    /// Their order may matter.
    Conflict,
}

/// A pair that may have been compared already. Threads that compare it at the same time come to the same.
#[derive(Default)]
struct Compared(AtomicU8);

impl Compared {
    fn get(&self) -> Option<Pair> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Pair::Apart),
            2 => Some(Pair::Together),
            _ => Some(Pair::Conflict),
        }
    }

    fn set(&self, pair: Pair) {
        let number = match pair {
            Pair::Apart => 1,
            Pair::Together => 2,
            Pair::Conflict => 3,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}

/// All lists, by number.
#[derive(Default)]
pub(super) struct Footprints {
    lists: Vec<Accesses>,
    numbers: BTreeMap<u64, Vec<u32>>,
    /// For each list those with a lower number and itself.
    pairs: Vec<Box<[Compared]>>,
}

impl Footprints {
    /// The list with a number.
    pub(super) fn list(&self, number: u32) -> &Accesses {
        &self.lists[number as usize]
    }

    /// The number of a list.
    pub(super) fn number(&mut self, touched: Accesses) -> u32 {
        let same = self.numbers.entry(touched.digest()).or_default();
        if let Some(number) = same.iter().find(|number| self.lists[**number as usize] == touched) {
            return *number;
        }
        let number = self.lists.len() as u32;
        same.push(number);
        self.lists.push(touched);
        if self.lists.len() <= PAIRS {
            self.pairs.push(self.lists.iter().map(|_| Compared::default()).collect());
        }
        number
    }

    /// What two events with these lists have to do with each other.
    pub(super) fn pair(&self, one: u32, other: u32) -> Pair {
        let (low, high) = (one.min(other) as usize, one.max(other) as usize);
        let kept = self.pairs.get(high).map(|row| &row[low]);
        if let Some(known) = kept.and_then(Compared::get) {
            return known;
        }
        let (left, right) = (&self.lists[low], &self.lists[high]);
        let pair = match left.conflict(right) {
            true => Pair::Conflict,
            false if left.count_together(right) => Pair::Together,
            false => Pair::Apart,
        };
        if let Some(kept) = kept {
            kept.set(pair);
        }
        pair
    }
}
