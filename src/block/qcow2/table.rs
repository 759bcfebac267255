//! The two kinds of metadata tables that are cached: L2 tables and refcount blocks.
//!
//! Both keep only the part up to the last entry that was ever set: most tables of most images are
//! nearly empty, or all zeros, and a table costs what it holds. L2 entries are in host order; refcounts stay in
//! the packed form of the file, since they are narrow.

use super::layout::{ENTRY_BYTES, be_at};
use crate::store::Content;

/// A table that a [`super::cache::Cache`] can hold.
pub(super) trait Table: Default + Clone {
    /// Takes over what was read from the image: its bytes without the zeros at the end.
    fn decode(bytes: Vec<u8>) -> Self;
    /// The bytes, of `bytes` in all, up to the last that is not 0 (or some zeros more).
    fn encode(&self, bytes: u64) -> Vec<u8>;

    /// The entry that fills a whole table of `bytes` bytes, if one does: such tables share their
    /// bytes, as a zeroed disk of a terabyte has tens of thousands of them.
    fn uniform(&self, _bytes: u64) -> Option<u64> {
        None
    }

    /// The table as content of `bytes` bytes.
    fn to_content(&self, bytes: u64) -> Content {
        prefix_content(self.encode(bytes), bytes)
    }
}

/// `prefix` followed by zeros up to `bytes` bytes.
pub(super) fn prefix_content(mut prefix: Vec<u8>, bytes: u64) -> Content {
    let used = prefix.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    prefix.truncate(used);
    let rest = bytes.saturating_sub(prefix.len() as u64);
    Content::from_bytes(prefix).concat(Content::zeros(rest))
}

/// The bytes of `content` without the zeros at its end, which are never materialised.
pub(super) fn content_prefix(content: &Content) -> Vec<u8> {
    let (mut end, mut used) = (0, 0);
    for run in content.runs() {
        end += run.len;
        if run.fill.repeated() != Some(0) {
            used = end;
        }
    }
    let mut bytes = content.slice(0, used).to_vec();
    bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
    bytes
}

/// The big-endian table entries in `bytes`, the last one filled up with zeros.
pub(super) fn entries_of(bytes: &[u8]) -> Vec<u64> {
    let (whole, rest) = bytes.as_chunks::<{ ENTRY_BYTES as usize }>();
    let mut entries = Vec::with_capacity(whole.len() + 1);
    entries.extend(whole.iter().map(|entry| u64::from_be_bytes(*entry)));
    if !rest.is_empty() {
        entries.push(be_at(rest, 0, ENTRY_BYTES as usize));
    }
    entries
}

/// Table entries as the file has them.
pub(super) fn entry_bytes(entries: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES as usize);
    for entry in entries {
        bytes.extend_from_slice(&entry.to_be_bytes());
    }
    bytes
}

/// An L2 table or a slice of one.
#[derive(Clone, Default)]
pub(super) struct L2Table {
    entries: Vec<u64>,
    /// What all entries behind those are.
    rest: u64,
}

impl L2Table {
    /// The entry at `index`; 0 if it was never set.
    #[inline]
    pub(super) fn get(&self, index: usize) -> u64 {
        self.entries.get(index).copied().unwrap_or(self.rest)
    }

    /// Sets an entry.
    #[inline]
    pub(super) fn set(&mut self, index: usize, entry: u64) {
        if index >= self.entries.len() {
            self.reserve(index + 1);
        }
        self.entries[index] = entry;
    }

    /// Makes sure that `entries_mut` covers the first `len` entries.
    fn reserve(&mut self, len: usize) {
        if len > self.entries.len() {
            let room = len.next_power_of_two().max(64);
            self.entries.reserve_exact(room - self.entries.len());
            self.entries.resize(len, self.rest);
        }
    }

    /// The entries from `first` to `end`, to be changed.
    #[inline]
    pub(super) fn range_mut(&mut self, first: usize, end: usize) -> &mut [u64] {
        self.reserve(end);
        &mut self.entries[first..end]
    }

    /// How many entries from `first` on, at most `limit`, satisfy `same`; those never set are 0, or what all were made.
    #[inline]
    pub(super) fn count_while(&self, first: usize, limit: usize, mut same: impl FnMut(u64) -> bool) -> usize {
        let set = self.entries.get(first..).unwrap_or(&[]);
        let set = &set[..set.len().min(limit)];
        let counted = set.iter().take_while(|entry| same(**entry)).count();
        if counted < set.len() || counted == limit || !same(self.rest) {
            return counted;
        }
        limit
    }

    /// How many entries from `first` on, at most `limit`, are the same as `entry` in the bits of `mask`.
    pub(super) fn count_equal(&self, first: usize, limit: usize, entry: u64, mask: u64) -> usize {
        /// Entries that are compared at once, without a branch for each.
        const GROUP: usize = 16;
        let set = self.entries.get(first..).unwrap_or(&[]);
        let set = &set[..set.len().min(limit)];
        let is_alike =
            |group: &&[u64; GROUP]| group.iter().fold(0, |differs, other| differs | (other ^ entry)) & mask == 0;
        let counted = set.as_chunks().0.iter().take_while(is_alike).count() * GROUP;
        counted + self.count_while(first + counted, limit - counted, |other| (other ^ entry) & mask == 0)
    }

    /// Sets bits of each entry from `first` to `end`, of `all` entries that the table has; tells whether that changed
    /// anything.
    pub(super) fn set_bits(&mut self, first: usize, end: usize, all: usize, bits: u64) -> bool {
        if self.entries.is_empty() && (first, end) == (0, all) {
            let changed = self.rest & bits != bits;
            self.rest |= bits;
            return changed;
        }
        let entries = self.range_mut(first, end);
        // Without a branch for each: a disk of a terabyte has 16 million entries.
        let common = entries.iter().fold(u64::MAX, |common, entry| common & entry);
        entries.iter_mut().for_each(|entry| *entry |= bits);
        common & bits != bits
    }

    /// Those of the `count` entries from `first` on that were ever set by themselves; the others have no host cluster.
    pub(super) fn slice(&self, first: usize, count: usize) -> &[u64] {
        let set = self.entries.get(first..).unwrap_or(&[]);
        &set[..set.len().min(count)]
    }
}

impl Table for L2Table {
    fn decode(bytes: Vec<u8>) -> L2Table {
        L2Table { entries: entries_of(&bytes), rest: 0 }
    }

    fn encode(&self, bytes: u64) -> Vec<u8> {
        let mut encoded = entry_bytes(&self.entries);
        if self.rest != 0 {
            let missing = (bytes as usize).saturating_sub(encoded.len()) / ENTRY_BYTES as usize;
            encoded.extend(std::iter::repeat_n(self.rest.to_be_bytes(), missing).flatten());
        }
        encoded
    }

    fn uniform(&self, bytes: u64) -> Option<u64> {
        if self.entries.is_empty() && self.rest != 0 {
            return Some(self.rest);
        }
        let first = *self.entries.first()?;
        let full = self.entries.len() as u64 * ENTRY_BYTES == bytes;
        (full && self.entries.iter().all(|entry| *entry == first)).then_some(first)
    }
}

/// A refcount block.
#[derive(Clone, Default)]
pub(super) struct Refblock {
    bytes: Vec<u8>,
}

impl Refblock {
    /// The refcount at `index`; `order` is log2 of its width in bits.
    #[inline]
    pub(super) fn get(&self, order: u32, index: usize) -> u64 {
        if order < 3 {
            let (byte, shift, mask) = narrow(order, index);
            return u64::from(self.bytes.get(byte).copied().unwrap_or(0) >> shift & mask);
        }
        let width = 1usize << (order - 3);
        be_at(&self.bytes, index * width, width)
    }

    /// Sets a refcount, which must fit into its width.
    #[inline]
    pub(super) fn set(&mut self, order: u32, index: usize, value: u64) {
        if order < 3 {
            let (byte, shift, mask) = narrow(order, index);
            self.reserve(byte + 1);
            let old = self.bytes[byte] & !(mask << shift);
            self.bytes[byte] = old | (value as u8 & mask) << shift;
            return;
        }
        let width = 1usize << (order - 3);
        let start = index * width;
        self.reserve(start + width);
        self.bytes[start..start + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }

    /// Whether every refcount is 0.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0)
    }

    fn reserve(&mut self, len: usize) {
        if len > self.bytes.len() {
            self.bytes.resize(len.next_power_of_two().max(64), 0);
        }
    }
}

/// Byte, shift and mask of an entry narrower than a byte; the lowest bits come first.
fn narrow(order: u32, index: usize) -> (usize, u32, u8) {
    let per_byte = 8usize >> order;
    let bits = 1u32 << order;
    (index / per_byte, bits * (index % per_byte) as u32, ((1u16 << bits) - 1) as u8)
}

impl Table for Refblock {
    fn decode(bytes: Vec<u8>) -> Refblock {
        Refblock { bytes }
    }

    fn encode(&self, _bytes: u64) -> Vec<u8> {
        self.bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_refcounts_start_at_the_lowest_bit() {
        let mut block = Refblock::default();
        for index in 0..4 {
            block.set(0, index, 1);
        }
        assert_eq!(block.encode(64)[0], 0x0f);
        assert_eq!((block.get(0, 3), block.get(0, 4)), (1, 0));
    }

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let max = if order == 6 { u64::MAX } else { (1 << (1u64 << order)) - 1 };
            let mut block = Refblock::default();
            block.set(order, 4, max);
            block.set(order, 5, 0);
            block.set(order, 6, max);
            assert_eq!([3, 4, 5, 6, 7].map(|i| block.get(order, i)), [0, max, 0, max, 0], "order {order}");
        }
    }

    #[test]
    fn sixteen_bit_refcounts_are_big_endian() {
        let mut block = Refblock::default();
        block.set(4, 1, 0x102);
        assert_eq!(&block.encode(64)[..4], [0, 0, 1, 2]);
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
        let mut table = L2Table::default();
        (3..50).for_each(|index| table.set(index, 1));
        assert_eq!(table.count_equal(3, 1000, 1, u64::MAX), 47);
        assert_eq!(table.count_equal(3, 20, 1, u64::MAX), 20);
        assert_eq!(table.count_equal(0, 1000, 0, u64::MAX), 3);
        assert_eq!(table.count_equal(50, 1000, 0, u64::MAX), 1000, "what was never set is 0");
        table.set(30, 2);
        assert_eq!(table.count_equal(3, 1000, 1, u64::MAX), 27);
        assert_eq!(table.count_equal(3, 1000, 1, 4), 1000, "no other bit is looked at");
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
        assert!(!table.set_bits(0, 8, 8, 1) && table.entries.is_empty());
        assert_eq!(table.uniform(64), Some(1));
        assert_eq!(
            (table.get(7), table.count_equal(2, 6, 1, u64::MAX), table.count_while(0, 8, |e| e == 0)),
            (1, 6, 0)
        );
        table.set(2, 7);
        assert_eq!([0, 1, 2, 3, 7].map(|index| table.get(index)), [1, 1, 7, 1, 1]);
        assert_eq!(entries_of(&table.encode(64)), [1, 1, 7, 1, 1, 1, 1, 1]);
        assert_eq!(table.uniform(64), None);
        table.set(2, 1);
        assert_eq!((table.uniform(64), table.count_equal(0, 8, 1, u64::MAX)), (None, 8));
    }

    #[test]
    fn a_table_survives_a_round_trip() {
        let mut table = L2Table::default();
        table.set(5, 0x8000_0000_0005_0000);
        let again = L2Table::decode(table.encode(4096));
        assert_eq!(again.get(5), 0x8000_0000_0005_0000);
        assert_eq!(again.get(6), 0);
    }
}
