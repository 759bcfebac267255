//! The bits of a dirty bitmap: one flat array, with a summary that makes sparse maps of big disks
//! cheap to search.
//!
//! Counts in bits; what a bit stands for is the business of [`super::DirtyBitmap`]. Must never let
//! a bit beyond the length be set: counts, checksums and stored bitmaps all rely on it.

use bitvec::order::Lsb0;
use bitvec::vec::BitVec;

use super::summary::{Summary, low_bits, masks};
use crate::errno::{Errno, Res};

/// Most bits in one map; 2 GiB of them (a disk of 1 PiB at 64 KiB granularity).
pub const MAX_BITS: u64 = 1 << 34;

/// An array of bits with a cached count; both set and clear bits are found in a few steps.
#[derive(Clone, Debug)]
pub struct Bits {
    /// Whole words, each to be XORed with `flip` to get its bits; those bits of the last one that
    /// are beyond `len` are clear then.
    words: BitVec<u64, Lsb0>,
    flip: u64,
    len: u64,
    count: u64,
    /// Words with a set bit.
    some: Summary,
    /// Words with a clear bit.
    gaps: Summary,
}

impl Bits {
    /// `len` bits, all clear. `ENOMEM` above [`MAX_BITS`].
    pub fn new(len: u64) -> Res<Bits> {
        Bits::filled(len, false)
    }

    /// `len` bits, all set or all clear. `ENOMEM` above [`MAX_BITS`].
    pub fn filled(len: u64, set: bool) -> Res<Bits> {
        if len > MAX_BITS {
            return Err(Errno::ENOMEM);
        }
        Ok(Bits::fresh(len, set))
    }

    /// A map whose length has been checked.
    ///
    /// The array is zeros from the allocator either way: a map that is all set or all clear costs
    /// no more than its address range until bits change.
    fn fresh(len: u64, set: bool) -> Bits {
        let bits = len as usize;
        let size = bits.div_ceil(64);
        let flip = if set { u64::MAX } else { 0 };
        let mut words = vec![0; size];
        if let Some(last) = words.last_mut() {
            *last = flip & !low_bits((bits - 1) % 64 + 1);
        }
        Bits {
            words: BitVec::from_vec(words),
            flip,
            len,
            count: if set { len } else { 0 },
            some: Summary::new(size, set),
            gaps: Summary::new(size, !set),
        }
    }

    /// Number of bits, set or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether bit `at` is set; false beyond the end.
    pub fn get(&self, at: u64) -> bool {
        at < self.len && self.word(at as usize / 64) >> (at % 64) & 1 != 0
    }

    /// Sets `len` bits from `first` on; what lies beyond the end is ignored.
    pub fn set_range(&mut self, first: u64, len: u64) {
        let (first, end) = self.clip(first, len);
        self.assign(first, end, true);
    }

    /// Clears `len` bits from `first` on; what lies beyond the end is ignored.
    pub fn clear_range(&mut self, first: u64, len: u64) {
        let (first, end) = self.clip(first, len);
        self.assign(first, end, false);
    }

    /// Sets or clears every bit.
    pub fn fill(&mut self, set: bool) {
        if self.count != if set { self.len } else { 0 } {
            *self = Bits::fresh(self.len, set);
        }
    }

    /// The first set bit at or after `from`.
    pub fn next_one(&self, from: u64) -> Option<u64> {
        self.search(from, &self.some, |word| word)
    }

    /// The first clear bit at or after `from`.
    pub fn next_zero(&self, from: u64) -> Option<u64> {
        self.search(from, &self.gaps, |word| !word)
    }

    /// The first run of set bits that begins in [from, end): its first bit and its length, cut at
    /// `end` and at `max_len`. `None` if there is none, or `max_len` is 0.
    pub fn next_area(&self, from: u64, end: u64, max_len: u64) -> Option<(u64, u64)> {
        let end = end.min(self.len);
        let first = self.next_one(from).filter(|&first| first < end && max_len > 0)?;
        let limit = end.min(first.saturating_add(max_len));
        let stop = self.next_zero(first).unwrap_or(limit).min(limit);
        Some((first, stop - first))
    }

    /// All runs of set bits, first bit and length, in ascending order.
    pub fn areas(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (first, len) = self.next_area(from, self.len, u64::MAX)?;
            from = first + len;
            Some((first, len))
        })
    }

    /// Sets every bit that is set in `other`; what is beyond this map's end is ignored.
    pub fn or_assign(&mut self, other: &Bits) {
        let mut i = 0;
        while let Some(at) = other.some.next(i).filter(|&at| at < self.size()) {
            let new = other.word(at) & self.valid(at);
            self.change(at, |word| word | new);
            i = at + 1;
        }
    }

    /// Changes the number of bits; new ones are clear. `ENOMEM` above [`MAX_BITS`].
    pub fn resize(&mut self, len: u64) -> Res<()> {
        let mut new = Bits::new(len)?;
        new.or_assign(self);
        *self = new;
        Ok(())
    }

    /// Length in bytes of the whole map as it is stored and hashed: little-endian 64-bit words,
    /// at least one.
    pub fn byte_len(&self) -> u64 {
        self.len.div_ceil(64).max(1) * 8
    }

    /// The bytes [off, off + len) of the stored form, at most to [`Bits::byte_len`].
    pub fn to_le_bytes(&self, off: u64, len: u64) -> Vec<u8> {
        let end = off.saturating_add(len).min(self.byte_len());
        if off >= end {
            return Vec::new();
        }
        // An empty map has no word, but its stored form has one.
        let word = |i: u64| {
            if i < self.size() as u64 { self.word(i as usize) } else { 0 }
        };
        let (first, last) = (off / 8, end.div_ceil(8));
        let mut out: Vec<u8> = (first..last).flat_map(|i| word(i).to_le_bytes()).collect();
        out.truncate((end - first * 8) as usize);
        out.drain(..(off - first * 8) as usize);
        out
    }

    /// Sets every bit that is set in `bytes`, which are the stored form from byte `off` on; bits
    /// beyond the end are ignored, as are the words' bytes that stand for none.
    pub fn or_le_bytes(&mut self, off: u64, bytes: &[u8]) {
        for (at, &byte) in (off..self.len.div_ceil(8)).zip(bytes) {
            if byte != 0 {
                let i = (at / 8) as usize;
                let new = u64::from(byte) << (at % 8 * 8) & self.valid(i);
                self.change(i, |word| word | new);
            }
        }
    }

    /// Number of words.
    fn size(&self) -> usize {
        self.words.as_raw_slice().len()
    }

    fn word(&self, i: usize) -> u64 {
        self.words.as_raw_slice()[i] ^ self.flip
    }

    /// The bits of word `i` that are within the length.
    fn valid(&self, i: usize) -> u64 {
        low_bits((self.len as usize).saturating_sub(i * 64))
    }

    /// A range of bits, cut to the length.
    fn clip(&self, first: u64, len: u64) -> (usize, usize) {
        let end = first.saturating_add(len).min(self.len);
        (first.min(end) as usize, end as usize)
    }

    /// Changes word `i` and everything derived from it.
    fn change(&mut self, i: usize, with: impl FnOnce(u64) -> u64) {
        let full = self.valid(i);
        let word = &mut self.words.as_raw_mut_slice()[i];
        let old = *word ^ self.flip;
        let new = with(old);
        *word = new ^ self.flip;
        self.count = self.count + u64::from(new.count_ones()) - u64::from(old.count_ones());
        if (old == 0) != (new == 0) {
            self.some.put(i, new != 0);
        }
        if (old == full) != (new == full) {
            self.gaps.put(i, new != full);
        }
    }

    /// Sets or clears [first, end), which is within the length.
    fn assign(&mut self, first: usize, end: usize, set: bool) {
        if first >= end {
            return;
        }
        if end - first == self.len as usize {
            return self.fill(set);
        }
        if first / 64 == (end - 1) / 64 {
            let mask = low_bits((end - 1) % 64 + 1) & !low_bits(first % 64);
            return self.change(first / 64, |word| if set { word | mask } else { word & !mask });
        }
        // Words that are covered whole, the last one also if only its valid bits are.
        let inner = first.div_ceil(64);
        let inner_end = if end as u64 == self.len { end.div_ceil(64) } else { end / 64 };
        if inner_end < inner + 2 {
            for (i, mask) in masks(first, end) {
                self.change(i, |word| if set { word | mask } else { word & !mask });
            }
            return;
        }
        self.assign(first, inner * 64, set);
        self.assign(inner_end * 64, end, set);
        self.assign_words(inner, inner_end, set);
    }

    /// Sets or clears whole words at once.
    fn assign_words(&mut self, first: usize, end: usize, set: bool) {
        let last_valid = self.valid(end - 1);
        let flip = self.flip;
        let words = &mut self.words.as_raw_mut_slice()[first..end];
        let before: u64 = words.iter().map(|word| u64::from((word ^ flip).count_ones())).sum();
        let (all, last) = if set { (u64::MAX, last_valid) } else { (0, 0) };
        words.fill(all ^ flip);
        words[end - first - 1] = last ^ flip;
        let bits = (end - first - 1) as u64 * 64 + u64::from(last_valid.count_ones());
        self.count = self.count - before + if set { bits } else { 0 };
        self.some.put_range(first, end, set);
        self.gaps.put_range(first, end, !set);
    }

    /// The first bit at or after `from` that is set in its word as `view` shows it; `index` lists
    /// the words that have such a bit.
    fn search(&self, from: u64, index: &Summary, view: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let mut i = from as usize / 64;
        let mut word = view(self.word(i)) & self.valid(i) & !low_bits(from as usize % 64);
        if word == 0 {
            i = index.next(i + 1)?;
            word = view(self.word(i)) & self.valid(i);
        }
        Some(i as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

impl PartialEq for Bits {
    /// Same length, same bits.
    fn eq(&self, other: &Bits) -> bool {
        let same_words = || (0..self.size()).all(|i| self.word(i) == other.word(i));
        self.len == other.len && self.count == other.count && same_words()
    }
}

impl Eq for Bits {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_map_still_has_one_word() {
        let bits = Bits::filled(0, true).unwrap();
        assert_eq!(bits.to_le_bytes(0, u64::MAX), [0; 8]);
        assert_eq!(bits.next_one(0), None);
        assert_eq!(bits.next_zero(0), None);
    }

    #[test]
    fn too_big_a_map_is_refused() {
        assert_eq!(Bits::new(MAX_BITS + 1).map(|_| ()), Err(Errno::ENOMEM));
        assert_eq!(Bits::filled(u64::MAX, true).map(|_| ()), Err(Errno::ENOMEM));
    }

    #[test]
    fn offsets_out_of_reach_do_nothing() {
        let mut bits = Bits::new(100).unwrap();
        bits.set_range(u64::MAX, u64::MAX);
        bits.set_range(200, 5);
        assert!(bits.is_empty());
        bits.set_range(99, u64::MAX);
        assert_eq!(bits.count(), 1);
        bits.or_le_bytes(u64::MAX - 1, &[255; 9]);
        bits.or_le_bytes(12, &[255; 9]);
        assert_eq!(bits.count(), 4);
        assert_eq!(bits.to_le_bytes(u64::MAX, 5), Vec::<u8>::new());
        assert!(!bits.get(u64::MAX));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64, u64),
        Clear(u64, u64),
        Fill(bool),
        Or(Vec<(u64, u64)>),
        Resize(u64),
        Reload,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let len = || prop_oneof![0u64..70, 0u64..6000];
        let at = || 0u64..6000;
        let op = prop_oneof![
            4 => (at(), len()).prop_map(|(a, l)| Op::Set(a, l)),
            4 => (at(), len()).prop_map(|(a, l)| Op::Clear(a, l)),
            1 => any::<bool>().prop_map(Op::Fill),
            1 => prop::collection::vec((at(), len()), 0..4).prop_map(Op::Or),
            1 => at().prop_map(Op::Resize),
            1 => Just(Op::Reload),
        ];
        prop::collection::vec(op, 0..25)
    }

    fn paint(naive: &mut [bool], first: u64, len: u64, set: bool) {
        naive.iter_mut().skip(first as usize).take(len as usize).for_each(|bit| *bit = set);
    }

    fn check(bits: &Bits, naive: &[bool], at: u64) -> Result<(), TestCaseError> {
        prop_assert_eq!(bits.len(), naive.len() as u64);
        prop_assert_eq!(bits.count(), naive.iter().filter(|&&bit| bit).count() as u64);
        let find = |from: u64, set: bool| (from..naive.len() as u64).find(|&i| naive[i as usize] == set);
        for from in [0, at, at + 63] {
            prop_assert_eq!(bits.next_one(from), find(from, true));
            prop_assert_eq!(bits.next_zero(from), find(from, false));
            prop_assert_eq!(bits.get(from), naive.get(from as usize).copied().unwrap_or(false));
            let end = (from + 500).min(naive.len() as u64);
            let area = find(from, true).filter(|&first| first < end).map(|first| {
                let stop = find(first, false).unwrap_or(end).min(end).min(first + 100);
                (first, stop - first)
            });
            prop_assert_eq!(bits.next_area(from, end, 100), area);
        }
        let mut painted = vec![false; naive.len()];
        bits.areas().for_each(|(first, len)| paint(&mut painted, first, len, true));
        prop_assert_eq!(&painted, naive);
        Ok(())
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_of_booleans(size in 0u64..6000, all in any::<bool>(), ops in ops()) {
            let mut bits = Bits::filled(size, all).unwrap();
            let mut naive = vec![all; size as usize];
            for op in ops {
                let mut at = 0;
                match op {
                    Op::Set(first, len) => {
                        bits.set_range(first, len);
                        paint(&mut naive, first, len, true);
                        at = first + len;
                    }
                    Op::Clear(first, len) => {
                        bits.clear_range(first, len);
                        paint(&mut naive, first, len, false);
                        at = first + len;
                    }
                    Op::Fill(set) => {
                        bits.fill(set);
                        naive.fill(set);
                    }
                    Op::Or(areas) => {
                        let mut other = Bits::new(5000).unwrap();
                        for (first, len) in areas {
                            other.set_range(first, len);
                            paint(&mut naive, first, len.min(5000u64.saturating_sub(first)), true);
                        }
                        bits.or_assign(&other);
                    }
                    Op::Resize(len) => {
                        bits.resize(len).unwrap();
                        naive.resize(len as usize, false);
                    }
                    Op::Reload => {
                        let mut copy = Bits::new(bits.len()).unwrap();
                        let half = bits.byte_len() / 3;
                        copy.or_le_bytes(half, &bits.to_le_bytes(half, u64::MAX));
                        copy.or_le_bytes(0, &bits.to_le_bytes(0, half));
                        prop_assert_eq!(&copy, &bits);
                    }
                }
                check(&bits, &naive, at)?;
            }
        }
    }
}
