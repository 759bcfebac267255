//! Where in a cache the table at an offset is.
//!
//! Lists through the cache's own places, as many as there are places: the tables that are cached are spread over them by
//! their offsets. Only finds places; what is in one is told by whoever asks. Must never be gone through, as its order means
//! nothing.

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Places by the offset of the table that each holds.
#[derive(Clone)]
pub(super) struct PlaceIndex {
    heads: Vec<u32>,
    next: Vec<u32>,
}

impl PlaceIndex {
    /// None of `places` holds anything.
    pub(super) fn new(places: usize) -> PlaceIndex {
        PlaceIndex { heads: vec![NONE; places.next_power_of_two()], next: vec![NONE; places] }
    }

    /// Which list the `table`th table of the file belongs to.
    fn list(&self, table: u64) -> usize {
        // Tables that follow each other are in lists that do; the higher bits tell apart those of other stretches.
        let mixed = table ^ table >> 13;
        (mixed & (self.heads.len() as u64 - 1)) as usize
    }

    /// The place of which `holds` is true, among those that may hold the `table`th table of the file.
    #[inline]
    pub(super) fn find(&self, table: u64, holds: impl Fn(usize) -> bool) -> Option<usize> {
        let mut place = self.heads[self.list(table)];
        while place != NONE {
            if holds(place as usize) {
                return Some(place as usize);
            }
            place = self.next[place as usize];
        }
        None
    }

    /// The place, which held nothing, holds the `table`th table of the file from now on.
    pub(super) fn insert(&mut self, table: u64, place: usize) {
        let list = self.list(table);
        self.next[place] = std::mem::replace(&mut self.heads[list], place as u32);
    }

    /// The place holds the `table`th table of the file no longer.
    pub(super) fn remove(&mut self, table: u64, place: usize) {
        let list = self.list(table);
        let behind = std::mem::replace(&mut self.next[place], NONE);
        let mut at = self.heads[list];
        if at == place as u32 {
            self.heads[list] = behind;
            return;
        }
        while at != NONE {
            if self.next[at as usize] == place as u32 {
                self.next[at as usize] = behind;
                return;
            }
            at = self.next[at as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    use super::*;
    use crate::sim::rng::{Rng, Stream};

    #[test]
    fn finds_what_a_map_finds() {
        let mut rng = Rng::new(3, Stream::Workload);
        for places in [1, 3, 16] {
            let (mut index, mut map) = (PlaceIndex::new(places), BTreeMap::new());
            let mut held = vec![None; places];
            for _ in 0..2000 {
                let place = rng.below(places as u64) as usize;
                let table = rng.below(40) << (13 * rng.below(2));
                if let Some(old) = held[place].take() {
                    index.remove(old, place);
                    map.remove(&old);
                } else if let Entry::Vacant(vacant) = map.entry(table) {
                    held[place] = Some(table);
                    index.insert(table, place);
                    vacant.insert(place);
                }
                assert_eq!(index.find(table, |place| held[place] == Some(table)), map.get(&table).copied());
            }
        }
    }
}
