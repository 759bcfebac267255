//! What the metadata tables that are cached have in common, and the refcount block; L2 tables are in `l2_table.rs`.
//!
//! A table costs what it holds: most tables of most images are nearly empty, or all zeros. Refcounts stay in the packed form
//! of the file, since they are narrow, and only up to the last that was ever set.

use super::layout::{ENTRY_BYTES, be_at};
use crate::sim::shared::RefCell;
use crate::store::Content;

/// A table that a [`super::cache::Cache`] can hold.
pub(super) trait Table: Default + Clone {
    /// Takes over what was read from the image: its bytes without the zeros at the end.
    fn decode(bytes: Vec<u8>) -> Self;
    /// The table, of `bytes` bytes, as it is to be at `offset` of the file.
    fn content(&self, offset: u64, bytes: u64, shared: &SharedEntries) -> Content;
}

/// Bytes of one entry, over and over, for all tables that hold it in many places: a zeroed disk of a terabyte has tens of
/// thousands of them, and those that follow each other in the file become one run there.
#[derive(Default)]
pub(super) struct SharedEntries(RefCell<Option<(u64, Content)>>);

impl SharedEntries {
    /// Bytes that are shared, at least.
    const BYTES: u64 = 64 << 10;

    /// `bytes` bytes of `entry` for `offset` of the file, out of those of a table of `table_bytes` bytes. Only the last
    /// entry that was asked for is kept.
    pub(super) fn repeat(&self, entry: u64, offset: u64, bytes: u64, table_bytes: u64) -> Content {
        let mut last = self.0.borrow_mut();
        let shared = match &*last {
            Some((same, content)) if *same == entry && content.len() >= table_bytes => content,
            _ => {
                let entries = table_bytes.max(Self::BYTES) / ENTRY_BYTES;
                &last.insert((entry, Content::from_bytes(entry.to_be_bytes().repeat(entries as usize)))).1
            }
        };
        // A table begins at a multiple of its size, so that a part of it does not reach beyond the end.
        shared.slice(offset % shared.len(), bytes)
    }
}

/// `prefix` followed by zeros up to `bytes` bytes.
pub(super) fn prefix_content(mut prefix: Vec<u8>, bytes: u64) -> Content {
    prefix.truncate(used_bytes(&prefix));
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
    bytes.truncate(used_bytes(&bytes));
    bytes
}

/// Bytes up to the last that is not 0.
fn used_bytes(bytes: &[u8]) -> usize {
    // Zeros in groups: tables are mostly zeros.
    let (rest, groups) = bytes.as_rchunks::<64>();
    let zeros = groups.iter().rev().take_while(|group| **group == [0; 64]).count();
    let used = &bytes[..rest.len() + (groups.len() - zeros) * 64];
    used.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
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
    entries.iter().map(|entry| entry.to_be_bytes()).collect::<Vec<_>>().into_flattened()
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

    fn content(&self, _offset: u64, bytes: u64, _shared: &SharedEntries) -> Content {
        prefix_content(self.bytes.clone(), bytes)
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
        assert_eq!(block.bytes[0], 0x0f);
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
        assert_eq!(block.bytes[..4], [0, 0, 1, 2]);
    }

    #[test]
    fn zeros_at_the_end_are_not_used() {
        for used in [0, 1, 63, 64, 65, 128, 200] {
            let mut bytes = vec![0; 200];
            bytes[..used].fill(1);
            assert_eq!(used_bytes(&bytes), used);
        }
        assert_eq!(used_bytes(&[]), 0);
    }
}
