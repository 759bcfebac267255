//! An L2 table, or a slice of one, in memory: 64-bit entries in host order.
//!
//! Tables of large disks hold few different entries (nothing, zeros, here and there a cluster of data), so a new table is a
//! short list of runs of equal entries, and becomes a plain array when there are many. Which of the two it is must never be
//! seen from outside.

use super::layout::{ENTRY_BYTES, L2E_OFFSET_MASK};
use super::table::{SharedEntries, Table, entries_of, entry_bytes, prefix_content};
use crate::store::Content;

/// With more runs than this the entries are kept one by one.
const MAX_RUNS: usize = 16;
/// Runs of so many zeros are written as such, shorter ones as bytes unless they are the last.
const WORTH_A_HOLE: usize = 16;
/// Runs of at least one part of so many of a table are written as bytes that all tables share.
const WORTH_SHARING: usize = 4;

/// Equal entries, up to the index `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: usize,
    entry: u64,
}

#[derive(Clone)]
enum Entries {
    /// Runs in order; neighbours differ.
    Runs(Vec<Run>),
    Each(Vec<u64>),
}

/// An L2 table or a slice of one.
#[derive(Clone)]
pub(super) struct L2Table {
    entries: Entries,
    /// What all entries behind those are.
    rest: u64,
}

impl Default for L2Table {
    fn default() -> L2Table {
        L2Table { entries: Entries::Runs(Vec::new()), rest: 0 }
    }
}

/// The runs of a table one by one, the endless one last.
fn and_rest(runs: &[Run], rest: u64) -> impl Iterator<Item = Run> {
    runs.iter().copied().chain([Run { end: usize::MAX, entry: rest }])
}

/// Adds a run up to `end`, unless that is where the last one ends.
fn push(runs: &mut Vec<Run>, end: usize, entry: u64) {
    match runs.last_mut() {
        Some(last) if end <= last.end => {}
        Some(last) if last.entry == entry => last.end = end,
        None if end == 0 => {}
        _ => runs.push(Run { end, entry }),
    }
}

impl L2Table {
    /// The entry at `index`; 0 if it was never set.
    #[inline]
    pub(super) fn get(&self, index: usize) -> u64 {
        match &self.entries {
            Entries::Each(entries) => entries.get(index).copied().unwrap_or(self.rest),
            Entries::Runs(runs) => runs.iter().find(|run| index < run.end).map_or(self.rest, |run| run.entry),
        }
    }

    /// Sets an entry.
    #[inline]
    pub(super) fn set(&mut self, index: usize, entry: u64) {
        if let Entries::Each(entries) = &mut self.entries
            && let Some(place) = entries.get_mut(index)
        {
            *place = entry;
            return;
        }
        self.change(index, index + 1, |_| entry);
    }

    /// Makes `change` of each entry from `first` to `end`.
    fn change(&mut self, first: usize, end: usize, change: impl Fn(u64) -> u64) {
        match &mut self.entries {
            Entries::Each(entries) => {
                if end > entries.len() {
                    let room = end.next_power_of_two();
                    entries.reserve_exact(room - entries.len());
                    entries.resize(end, self.rest);
                }
                entries[first..end].iter_mut().for_each(|entry| *entry = change(*entry));
            }
            Entries::Runs(runs) => {
                let mut changed = Vec::with_capacity(runs.len() + 2);
                for run in and_rest(runs, self.rest) {
                    push(&mut changed, run.end.min(first), run.entry);
                    if run.end > first {
                        push(&mut changed, run.end.min(end), change(run.entry));
                        push(&mut changed, run.end, run.entry);
                    }
                }
                self.rest = changed.pop().map_or(0, |run| run.entry);
                *runs = changed;
                self.expand_many();
            }
        }
    }

    /// Goes over to an array if there are many runs.
    fn expand_many(&mut self) {
        let Entries::Runs(runs) = &self.entries else { return };
        let Some(last) = runs.last().filter(|_| runs.len() > MAX_RUNS) else { return };
        let mut entries = Vec::with_capacity(last.end.next_power_of_two());
        runs.iter().for_each(|run| entries.resize(run.end, run.entry));
        self.entries = Entries::Each(entries);
    }

    /// How many entries from `first` on, at most `limit`, satisfy `same`.
    #[inline]
    pub(super) fn count_while(&self, first: usize, limit: usize, same: impl Fn(u64) -> bool) -> usize {
        match &self.entries {
            Entries::Each(entries) => {
                let set = entries.get(first..).unwrap_or(&[]);
                let set = &set[..set.len().min(limit)];
                let counted = set.iter().take_while(|entry| same(**entry)).count();
                if counted < set.len() || counted == limit || !same(self.rest) { counted } else { limit }
            }
            Entries::Runs(runs) => {
                let stop = first.saturating_add(limit);
                let stops_it = |run: &Run| run.end > first && !same(run.entry);
                let mut before = first;
                for run in and_rest(runs, self.rest) {
                    if before >= stop || stops_it(&run) {
                        break;
                    }
                    before = before.max(run.end);
                }
                before.min(stop) - first
            }
        }
    }

    /// How many entries from `first` on, at most `limit`, satisfy `same` and point to one host cluster after the other,
    /// from `host` on.
    #[inline]
    pub(super) fn count_contiguous(
        &self,
        first: usize,
        limit: usize,
        host: u64,
        cluster_size: u64,
        same: impl Fn(u64) -> bool,
    ) -> usize {
        let mut expected = host;
        let mut continues = |entry: u64| {
            let continues = same(entry) && entry & L2E_OFFSET_MASK == expected;
            expected = expected.wrapping_add(cluster_size);
            continues
        };
        match &self.entries {
            Entries::Each(entries) => {
                let set = entries.get(first..).unwrap_or(&[]);
                set.iter().take(limit).take_while(|entry| continues(**entry)).count()
            }
            Entries::Runs(_) => (first..).take(limit).take_while(|index| continues(self.get(*index))).count(),
        }
    }

    /// How many entries from `first` on, at most `limit`, are the same as `entry` in the bits of `mask`.
    pub(super) fn count_equal(&self, first: usize, limit: usize, entry: u64, mask: u64) -> usize {
        /// Entries that are compared at once, without a branch for each.
        const GROUP: usize = 16;
        let set = match &self.entries {
            Entries::Each(entries) => entries.get(first..).unwrap_or(&[]),
            Entries::Runs(_) => &[],
        };
        let set = &set[..set.len().min(limit)];
        let is_alike =
            |group: &&[u64; GROUP]| group.iter().fold(0, |differs, other| differs | (other ^ entry)) & mask == 0;
        let counted = set.as_chunks().0.iter().take_while(is_alike).count() * GROUP;
        counted + self.count_while(first + counted, limit - counted, |other| (other ^ entry) & mask == 0)
    }

    /// Sets bits of each entry from `first` to `end`, of `all` entries that the table has; tells whether that changed
    /// anything.
    pub(super) fn set_bits(&mut self, first: usize, end: usize, all: usize, bits: u64) -> bool {
        let changed = match &self.entries {
            // Without a branch for each: a disk of a terabyte has 16 million entries.
            Entries::Each(entries) => {
                let set = entries.get(first..end.min(entries.len())).unwrap_or(&[]);
                let rest = if end > entries.len() { self.rest } else { u64::MAX };
                set.iter().fold(rest, |common, entry| common & entry) & bits != bits
            }
            Entries::Runs(_) => self.count_while(first, end - first, |entry| entry & bits == bits) < end - first,
        };
        let is_last = end == all && matches!(self.entries, Entries::Runs(_));
        if changed {
            self.change(first, if is_last { usize::MAX } else { end }, |entry| entry | bits);
        }
        changed
    }

    /// Makes of each entry from `first` to `end` what `new` says, up to the first that changes and of which `new` says,
    /// too, that it is to be the last. Tells whether anything changed, and the last one's index and what it was.
    pub(super) fn rewrite(
        &mut self,
        first: usize,
        end: usize,
        new: impl Fn(u64) -> (u64, bool),
    ) -> (bool, Option<(usize, u64)>) {
        let is_last = |entry: u64| {
            let (new, last) = new(entry);
            last && new != entry
        };
        let before = self.count_while(first, end - first, |entry| !is_last(entry));
        let last = (before < end - first).then(|| (first + before, self.get(first + before)));
        let end = last.map_or(end, |(index, _)| index + 1);
        let changed = self.count_while(first, end - first, |entry| new(entry).0 == entry) < end - first;
        if changed {
            self.change(first, end, |entry| new(entry).0);
        }
        (changed, last)
    }
}

impl Table for L2Table {
    fn decode(bytes: Vec<u8>) -> L2Table {
        L2Table { entries: Entries::Each(entries_of(&bytes)), rest: 0 }
    }

    fn content(&self, offset: u64, bytes: u64, shared: &SharedEntries) -> Content {
        let all = (bytes / ENTRY_BYTES) as usize;
        let (mut content, mut at, runs) = match &self.entries {
            Entries::Runs(runs) => (Content::new(), 0, &runs[..]),
            Entries::Each(entries) => {
                let set = &entries[..entries.len().min(all)];
                let content = prefix_content(entry_bytes(set), set.len() as u64 * ENTRY_BYTES);
                (content, set.len(), &[][..])
            }
        };
        // Runs that follow each other and are worth nothing better.
        let mut plain = Vec::new();
        for run in and_rest(runs, self.rest) {
            let count = run.end.min(all) - at;
            let (offset, len) = (offset + at as u64 * ENTRY_BYTES, count as u64 * ENTRY_BYTES);
            at += count;
            let better = match run.entry {
                0 if count >= WORTH_A_HOLE || at == all => Content::zeros(len),
                entry if entry != 0 && count >= all / WORTH_SHARING => shared.repeat(entry, offset, len, bytes),
                entry => {
                    plain.extend_from_slice(&entry.to_be_bytes().repeat(count));
                    continue;
                }
            };
            if !plain.is_empty() {
                content.push(Content::from_bytes(std::mem::take(&mut plain)));
            }
            content.push(better);
        }
        if !plain.is_empty() {
            content.push(Content::from_bytes(plain));
        }
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries as the file has them.
    fn written(table: &L2Table, entries: usize) -> Vec<u64> {
        let bytes = entries as u64 * ENTRY_BYTES;
        entries_of(&table.content(bytes * 3, bytes, &SharedEntries::default()).to_vec())
    }

    #[test]
    fn runs_go_on_into_the_unset_part() {
        let mut table = L2Table::default();
        table.set(2, 7);
        assert_eq!(table.count_while(0, 100, |e| e == 0), 2);
        assert_eq!(table.count_while(3, 100, |e| e == 0), 100);
        assert_eq!(table.count_while(2, 100, |e| e == 7), 1);
        assert_eq!(table.count_while(0, 2, |e| e == 0), 2);
    }

    #[test]
    fn equal_entries_are_counted_over_groups_and_their_rest() {
        for different in [1, 20] {
            let mut table = L2Table::default();
            // Many different ones far behind make an array of the table.
            (0..different).for_each(|index| table.set(2000 + index, index as u64));
            (3..50).for_each(|index| table.set(index, 1));
            assert_eq!(table.count_equal(3, 1000, 1, u64::MAX), 47);
            assert_eq!(table.count_equal(3, 20, 1, u64::MAX), 20);
            assert_eq!(table.count_equal(0, 1000, 0, u64::MAX), 3);
            assert_eq!(table.count_equal(50, 1000, 0, u64::MAX), 1000, "what was never set is 0");
            table.set(30, 2);
            assert_eq!(table.count_equal(3, 1000, 1, u64::MAX), 27);
            assert_eq!(table.count_equal(3, 1000, 1, 4), 1000, "no other bit is looked at");
        }
    }

    #[test]
    fn bits_are_set_in_entries_that_were_never_set_too() {
        let mut table = L2Table::default();
        table.set(2, 6);
        assert!(table.set_bits(1, 4, 8, 1));
        assert_eq!([0, 1, 2, 3, 4].map(|index| table.get(index)), [0, 1, 7, 1, 0]);
        assert!(!table.set_bits(1, 4, 8, 1), "nothing is left to change");
        assert!(table.set_bits(1, 4, 8, 2), "in two of them it was missing");
    }

    #[test]
    fn a_table_that_is_all_the_same_is_kept_as_one_entry() {
        let mut table = L2Table::default();
        assert!(table.set_bits(0, 8, 8, 1));
        assert!(!table.set_bits(0, 8, 8, 1));
        assert!(matches!(&table.entries, Entries::Runs(runs) if runs.is_empty()) && table.rest == 1);
        table.set(2, 7);
        assert_eq!(written(&table, 8), [1, 1, 7, 1, 1, 1, 1, 1]);
        table.set(2, 1);
        assert!(matches!(&table.entries, Entries::Runs(runs) if runs.is_empty()) && table.rest == 1);
    }

    #[test]
    fn rewriting_stops_at_the_entry_that_asks_for_it() {
        let mut table = L2Table::default();
        (2..6).for_each(|index| table.set(index, 8));
        table.set(4, 9);
        let rewrite = |table: &mut L2Table| table.rewrite(1, 7, |old| (old | 1, old == 8));
        assert_eq!(rewrite(&mut table), (true, Some((2, 8))));
        assert_eq!(written(&table, 8), [0, 1, 9, 8, 9, 8, 0, 0]);
        assert_eq!(rewrite(&mut table), (true, Some((3, 8))));
        assert_eq!(rewrite(&mut table), (true, Some((5, 8))));
        assert_eq!(rewrite(&mut table), (true, None));
        assert_eq!(rewrite(&mut table), (false, None));
        assert_eq!(written(&table, 8), [0, 1, 9, 9, 9, 9, 1, 0]);
    }

    #[test]
    fn shared_entries_know_the_size_of_their_table() {
        let shared = SharedEntries::default();
        let mut table = L2Table::default();
        table.set_bits(0, 64, 64, 1);
        assert_eq!(table.content(512, 512, &shared).to_vec(), 1u64.to_be_bytes().repeat(64));
        let large = 2 << 20;
        assert_eq!(table.content(large, large, &shared).len(), large);
        // What is shared is what was asked for last.
        let mut other = L2Table::default();
        other.set_bits(0, 64, 64, 9);
        assert_eq!(other.content(512, 512, &shared).to_vec(), 9u64.to_be_bytes().repeat(64));
    }

    #[test]
    fn a_table_survives_a_round_trip() {
        let mut table = L2Table::default();
        table.set(5, 0x8000_0000_0005_0000);
        let bytes = table.content(0, 4096, &SharedEntries::default()).to_vec();
        let again = L2Table::decode(bytes);
        assert_eq!(again.get(5), 0x8000_0000_0005_0000);
        assert_eq!(again.get(6), 0);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        const ALL: usize = 64;

        #[derive(Clone, Debug)]
        enum Change {
            Set(usize, u64),
            SetBits(usize, usize, u64),
            Rewrite(usize, usize),
            Reread,
        }

        fn change() -> impl Strategy<Value = Change> {
            let range = || (0..ALL).prop_flat_map(|first| (Just(first), first + 1..=ALL));
            prop_oneof![
                (0..ALL, 0..5u64).prop_map(|(index, entry)| Change::Set(index, entry)),
                (range(), 1..3u64).prop_map(|((first, end), bits)| Change::SetBits(first, end, bits)),
                range().prop_map(|(first, end)| Change::Rewrite(first, end)),
                Just(Change::Reread),
            ]
        }

        /// What a rewrite makes of an entry, and whether it stops there.
        fn rewritten(old: u64) -> (u64, bool) {
            (old | 4, old == 2)
        }

        proptest! {
            #[test]
            fn a_table_is_what_an_array_would_be(changes in prop::collection::vec(change(), 0..60)) {
                let (mut table, mut model) = (L2Table::default(), [0u64; ALL]);
                for change in changes {
                    match change {
                        Change::Set(index, entry) => {
                            table.set(index, entry);
                            model[index] = entry;
                        }
                        Change::SetBits(first, end, bits) => {
                            let changes = model[first..end].iter().any(|entry| entry & bits != bits);
                            prop_assert_eq!(table.set_bits(first, end, ALL, bits), changes);
                            model[first..end].iter_mut().for_each(|entry| *entry |= bits);
                        }
                        Change::Rewrite(first, end) => {
                            let (mut changed, mut last) = (false, None);
                            for (index, entry) in model.iter_mut().enumerate().take(end).skip(first) {
                                let old = std::mem::replace(entry, rewritten(*entry).0);
                                changed |= *entry != old;
                                if rewritten(old).1 && *entry != old {
                                    last = Some((index, old));
                                    break;
                                }
                            }
                            prop_assert_eq!(table.rewrite(first, end, rewritten), (changed, last));
                        }
                        Change::Reread => {
                            let bytes = entry_bytes(&written(&table, ALL));
                            table = L2Table::decode(bytes);
                        }
                    }
                    prop_assert_eq!(written(&table, ALL), model);
                    for first in [0, 7, 40] {
                        let alike = model[first..].iter().take_while(|entry| **entry == model[first]).count();
                        prop_assert_eq!(table.count_equal(first, ALL - first, model[first], u64::MAX), alike);
                        let odd = model[first..].iter().take_while(|entry| **entry & 1 == 1).count();
                        prop_assert_eq!(table.count_while(first, ALL - first, |entry| entry & 1 == 1), odd);
                        prop_assert_eq!(table.get(first), model[first]);
                    }
                }
            }
        }
    }
}
