//! What remembered events have touched, each list kept once, and which pairs of them conflict.
//!
//! Most events touch the same things in every run, so there are few lists, and their pairs are compared once. Must
//! never guess: what was not recorded has no number here.

use std::collections::BTreeMap;

use crate::sim::access::Accesses;

/// Pairs of lists up to this number are remembered; those of later lists are compared each time.
const PAIRS: usize = 4096;

/// What is known about a pair.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Pair {
    #[default]
    Unknown,
    Apart,
    Conflict,
}

/// All lists, by number.
#[derive(Default)]
pub(super) struct Footprints {
    lists: Vec<Accesses>,
    numbers: BTreeMap<u64, Vec<u32>>,
    /// For each list those with a lower number and itself.
    pairs: Vec<Vec<Pair>>,
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
            self.pairs.push(vec![Pair::Unknown; self.lists.len()]);
        }
        number
    }

    /// Whether the order of two events with these lists may matter.
    pub(super) fn conflict(&mut self, one: u32, other: u32) -> bool {
        let (low, high) = (one.min(other) as usize, one.max(other) as usize);
        let known = self.pairs.get(high).map_or(Pair::Unknown, |row| row[low]);
        if known != Pair::Unknown {
            return known == Pair::Conflict;
        }
        let conflict = self.lists[low].conflict(&self.lists[high]);
        if let Some(row) = self.pairs.get_mut(high) {
            row[low] = if conflict { Pair::Conflict } else { Pair::Apart };
        }
        conflict
    }
}
