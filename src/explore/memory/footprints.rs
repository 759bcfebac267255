//! What remembered events have touched, each list kept once, and which pairs of them conflict.
//!
//! Most events touch the same things in every run, so there are few lists, and their pairs are compared once. Must
//! never guess: what was not recorded has no number here.

use std::collections::BTreeMap;

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

/// All lists, by number.
#[derive(Default)]
pub(super) struct Footprints {
    lists: Vec<Accesses>,
    numbers: BTreeMap<u64, Vec<u32>>,
    /// For each list those with a lower number and itself.
    pairs: Vec<Vec<Option<Pair>>>,
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
            self.pairs.push(vec![None; self.lists.len()]);
        }
        number
    }

    /// What two events with these lists have to do with each other.
    pub(super) fn pair(&mut self, one: u32, other: u32) -> Pair {
        let (low, high) = (one.min(other) as usize, one.max(other) as usize);
        if let Some(known) = self.pairs.get(high).and_then(|row| row[low]) {
            return known;
        }
        let (left, right) = (&self.lists[low], &self.lists[high]);
        let pair = match left.conflict(right) {
            true => Pair::Conflict,
            false if left.count_together(right) => Pair::Together,
            false => Pair::Apart,
        };
        if let Some(row) = self.pairs.get_mut(high) {
            row[low] = Some(pair);
        }
        pair
    }
}
