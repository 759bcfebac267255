//! A set of blocks of a file: those of a real file that count as data on the simulated host, or those that are
//! taken without being data.
//!
//! The former are kept beside the file because a real file system answers as it likes: it may have larger blocks,
//! allocate ahead, or know no holes at all. Must never look at the file itself.

use std::collections::BTreeMap;

use super::{BLOCK, Extent};

/// A set of block numbers, as ranges that neither overlap nor touch.
#[derive(Clone, Default)]
pub(super) struct BlockMap {
    /// First block of a range, and the one after its last.
    ranges: BTreeMap<u64, u64>,
}

impl BlockMap {
    /// Whether no block is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds every block that bytes [off, end) touch.
    pub(super) fn add(&mut self, off: u64, end: u64) {
        if off >= end {
            return;
        }
        let (mut first, mut stop) = (off / BLOCK, end.div_ceil(BLOCK));
        while let Some((&start, &to)) = self.ranges.range(..=stop).next_back() {
            if to < first {
                break;
            }
            self.ranges.remove(&start);
            first = first.min(start);
            stop = stop.max(to);
        }
        self.ranges.insert(first, stop);
    }

    /// Takes out every block that bytes [off, end) touch.
    pub(super) fn remove(&mut self, off: u64, end: u64) {
        let (first, stop) = (off / BLOCK, end.div_ceil(BLOCK));
        if first >= stop {
            return;
        }
        while let Some((&start, &to)) = self.ranges.range(..stop).next_back() {
            if to <= first {
                break;
            }
            self.ranges.remove(&start);
            if start < first {
                self.ranges.insert(start, first);
            }
            if to > stop {
                self.ranges.insert(stop, to);
            }
        }
    }

    /// Whether the block that holds the byte at `off` is data.
    pub(super) fn is_data(&self, off: u64) -> bool {
        self.extent(off, off + 1).data
    }

    /// Data or hole at `off`, and for how long that holds before `end`, which lies behind `off`.
    pub(super) fn extent(&self, off: u64, end: u64) -> Extent {
        let block = off / BLOCK;
        let here = self.ranges.range(..=block).next_back().filter(|&(_, &to)| to > block);
        let next = self.ranges.range(block + 1..).next();
        let (data, stop) = match (here, next) {
            (Some((_, &to)), _) => (true, to * BLOCK),
            (None, Some((&start, _))) => (false, start * BLOCK),
            (None, None) => (false, end),
        };
        Extent { data, len: stop.min(end) - off }
    }

    /// Bytes in all blocks of the set.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, to)| (to - start) * BLOCK).sum()
    }
}
