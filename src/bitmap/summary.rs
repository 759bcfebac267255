//! A pyramid of bits that finds the next set one in a few steps, however big and sparse the lowest
//! level is.
//!
//! Bit `i` of the bottom says something of word `i` of a bitmap, each bit above says whether the
//! word below it has any bit. Must never be the truth about anything: it is rebuilt from, and kept
//! in step with, the words that it summarises.

/// Which words have a property, and where the next one that has it stands.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// From the bottom to the one word at the top; empty if there are no words.
    levels: Vec<Vec<u64>>,
}

impl Summary {
    /// The summary of `words` words, all with or all without the property.
    pub(super) fn new(words: usize, all: bool) -> Summary {
        let mut levels = Vec::new();
        let mut bits = words;
        while bits > 0 {
            let mut level = vec![if all { u64::MAX } else { 0 }; bits.div_ceil(64)];
            if all && let Some(last) = level.last_mut() {
                *last = low_bits((bits - 1) % 64 + 1);
            }
            bits = if level.len() == 1 { 0 } else { level.len() };
            levels.push(level);
        }
        Summary { levels }
    }

    /// Notes whether word `i` has the property.
    pub(super) fn put(&mut self, i: usize, has: bool) {
        let mut bit = i;
        let mut has = has;
        for level in &mut self.levels {
            let word = &mut level[bit / 64];
            let before = *word;
            let mask = 1 << (bit % 64);
            *word = if has { before | mask } else { before & !mask };
            has = *word != 0;
            if has == (before != 0) {
                return;
            }
            bit /= 64;
        }
    }

    /// Notes the same of all words [first, end).
    pub(super) fn put_range(&mut self, first: usize, end: usize, has: bool) {
        let (mut first, mut end) = (first, end);
        if first >= end {
            return;
        }
        if let Some(bottom) = self.levels.first_mut() {
            fill(bottom, first, end, has);
        }
        for upper in 1..self.levels.len() {
            (first, end) = (first / 64, end.div_ceil(64));
            let (below, above) = self.levels.split_at_mut(upper);
            let words = &below[upper - 1][first..end];
            for (bit, word) in (first..).zip(words) {
                fill(&mut above[0], bit, bit + 1, *word != 0);
            }
        }
    }

    /// The first word at or after `from` that has the property.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut bit = from;
        for (height, level) in self.levels.iter().enumerate() {
            let word = *level.get(bit / 64)?;
            let rest = word & !low_bits(bit % 64);
            if rest != 0 {
                return Some(self.descend(height, bit / 64 * 64 + rest.trailing_zeros() as usize));
            }
            bit = bit / 64 + 1;
        }
        None
    }

    /// The lowest bottom bit below the set bit `bit` of level `height`.
    fn descend(&self, height: usize, bit: usize) -> usize {
        self.levels[..height].iter().rev().fold(bit, |bit, level| bit * 64 + level[bit].trailing_zeros() as usize)
    }
}

/// The lowest `n` bits, at most 64.
pub(super) fn low_bits(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Each word that [first, end) touches, with the mask of the bits meant in it.
pub(super) fn masks(first: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..end.div_ceil(64)).map(move |word| {
        let base = word * 64;
        (word, low_bits(end - base) & !low_bits(first.saturating_sub(base)))
    })
}

/// Sets or clears the bits [first, end) of `words`.
fn fill(words: &mut [u64], first: usize, end: usize, set: bool) {
    for (i, mask) in masks(first, end) {
        if set {
            words[i] |= mask;
        } else {
            words[i] &= !mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            words in 0usize..9000,
            all in any::<bool>(),
            ops in prop::collection::vec((any::<u16>(), any::<u16>(), any::<bool>()), 0..30),
        ) {
            let mut summary = Summary::new(words, all);
            let mut naive = vec![all; words];
            for (at, len, has) in ops {
                let first = (at as usize).min(words);
                let end = (first + len as usize % 5000).min(words);
                if len % 3 == 0 && first < words {
                    summary.put(first, has);
                    naive[first] = has;
                } else {
                    summary.put_range(first, end, has);
                    naive[first..end].fill(has);
                }
                for from in [0, first, end, words] {
                    let want = (from..words).find(|&i| naive[i]);
                    prop_assert_eq!(summary.next(from), want);
                }
            }
        }
    }
}
