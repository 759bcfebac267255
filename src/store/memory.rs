//! Memory storage: a host file as a sorted map of runs.
//!
//! What was never written, or was punched out, has no run; its cost is nothing. Which 4 KiB blocks
//! the simulated ext4 would call data is not kept anywhere else: a block is data exactly if some run
//! touches it, and a write of zeros therefore leaves a run of zeros. Must never let the number of
//! runs grow with the number of writes where the content does not ask for it: neighbours join, and
//! small writes are packed into buffers.

use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::content::{Content, Fill, Run, to_usize};
use super::{BLOCK, Extent, block_ceil, block_floor};

/// Largest buffer that small writes are packed into, in bytes.
const PACKED: u64 = 64 << 10;
/// Longest run that is copied in order to join it to the buffer before it, in bytes. A slice of an L2 table is longer:
/// it stays the shared buffer that it is.
const SMALL: u64 = 2 << 10;
/// Longest run of one repeated byte that is given up to become part of a buffer, in bytes.
const TINY: u64 = 512;

/// The bytes of one host file in memory. A clone shares every buffer, and whoever writes first
/// copies the piece that it changes.
#[derive(Clone, Default)]
pub(super) struct Image {
    len: u64,
    /// Start of a run, and the run. Runs are not empty, do not overlap and end at or before `len`.
    runs: BTreeMap<u64, Run>,
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The caller has checked that `off + len` fits.
    pub(super) fn read(&self, off: u64, len: u64) -> Content {
        let end = off + len;
        let mut out = Content::new();
        let mut pos = off;
        let first = self.start_of_run_at(off).unwrap_or(off);
        for (&start, run) in self.runs.range(first..end) {
            let (from, to) = (start.max(off), (start + run.len).min(end));
            out.push_run(Run { len: from - pos, fill: Fill::Zero });
            out.push_run(run.part(from - start, to - from));
            pos = to;
        }
        out.push_run(Run { len: end - pos, fill: Fill::Zero });
        out
    }

    /// The caller has checked that the end fits.
    pub(super) fn write(&mut self, off: u64, content: &Content) {
        let mut pos = off;
        for run in content.runs() {
            self.put(pos, run);
            pos += run.len;
        }
        if !content.is_empty() {
            self.len = self.len.max(pos);
        }
    }

    /// Makes holes of the whole blocks of [off, end) and zeroes the rest of it. A last block that
    /// the file does not fill is whole.
    pub(super) fn punch(&mut self, off: u64, end: u64) {
        let end = end.min(self.len);
        if off >= end {
            return;
        }
        let last = if end == self.len { end } else { block_floor(end) };
        let first = block_ceil(off).min(end);
        self.zero_within_block(off, first);
        self.carve(first, last);
        self.zero_within_block(last.max(first), end);
    }

    /// Zeroes a piece of one block, which stays what it was, hole or data.
    fn zero_within_block(&mut self, off: u64, end: u64) {
        if off < end && self.is_data(block_floor(off)) {
            self.put(off, &Run { len: end - off, fill: Fill::Zero });
        }
    }

    pub(super) fn truncate(&mut self, len: u64) {
        if len < self.len {
            let block = block_floor(len);
            let was_data = self.is_data(block);
            self.carve(len, self.len);
            if was_data && len > block && !self.is_data(block) {
                self.put(block, &Run { len: len - block, fill: Fill::Zero });
            }
        }
        self.len = len;
    }

    pub(super) fn extent(&self, off: u64, len: u64) -> Extent {
        if off >= self.len || len == 0 {
            return Extent { data: false, len };
        }
        let stop = off.saturating_add(len).min(self.len);
        let block = block_floor(off);
        let Some((start, run)) = self.last_run_touching(block) else {
            let next = self.runs.range(block + BLOCK..).next().map(|(&s, _)| block_floor(s));
            return Extent { data: false, len: next.unwrap_or(stop).min(stop) - off };
        };
        let mut end = block_ceil(start + run.len);
        for (&start, run) in self.runs.range(start + 1..) {
            if block_floor(start) > end || end >= stop {
                break;
            }
            end = block_ceil(start + run.len);
        }
        Extent { data: true, len: end.min(stop) - off }
    }

    /// How many runs the file is made of; the measure of what it costs.
    #[cfg(test)]
    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    fn is_data(&self, block: u64) -> bool {
        self.last_run_touching(block).is_some()
    }

    fn last_run_touching(&self, block: u64) -> Option<(u64, &Run)> {
        let (&start, run) = self.runs.range(..block + BLOCK).next_back()?;
        (start + run.len > block).then_some((start, run))
    }

    /// Where the run that holds the byte at `off` begins.
    fn start_of_run_at(&self, off: u64) -> Option<u64> {
        let (&start, run) = self.runs.range(..=off).next_back()?;
        (start + run.len > off).then_some(start)
    }

    /// Lays one run over whatever is there. One descent into the map finds all that it touches; what has to
    /// change in the map costs one more each.
    fn put(&mut self, off: u64, run: &Run) {
        let end = off + run.len;
        let mut covered: SmallVec<[u64; 8]> = SmallVec::new();
        let mut right_may_join = false;
        let mut tail = None;
        let mut at = off;
        for (&start, old) in self.runs.range_mut(..=end).rev() {
            let stop = start + old.len;
            if start == end {
                right_may_join = may_join(run, old);
                continue;
            }
            if stop < off {
                break;
            }
            if start <= off && stop >= end && patch(old, off - start, run) {
                return;
            }
            if stop > end {
                tail = Some(old.part(end - start, stop - end));
            }
            if start >= off {
                covered.push(start);
                continue;
            }
            old.len = off - start;
            if join(old, run) {
                at = start;
            }
            break;
        }
        for start in covered {
            // Whatever begins at `off` itself is replaced, not taken out.
            if start != off || at != off {
                self.runs.remove(&start);
            }
        }
        if at == off {
            self.runs.insert(off, run.clone());
        }
        if let Some(tail) = tail {
            right_may_join = may_join(run, &tail);
            self.runs.insert(end, tail);
        }
        if right_may_join {
            self.join_after(at, end);
        }
    }

    /// Takes every run out of [off, end); those that cross an edge keep what is outside.
    fn carve(&mut self, off: u64, end: u64) {
        if off >= end {
            return;
        }
        let mut tail = None;
        if let Some((&start, run)) = self.runs.range_mut(..off).next_back() {
            let stop = start + run.len;
            if stop > end {
                tail = Some(run.part(end - start, stop - end));
            }
            if stop > off {
                run.len = off - start;
            }
        }
        while let Some((&start, _)) = self.runs.range(off..end).next() {
            if let Some(run) = self.runs.remove(&start) {
                let stop = start + run.len;
                if stop > end {
                    tail = Some(run.part(end - start, stop - end));
                }
            }
        }
        if let Some(run) = tail {
            self.runs.insert(end, run);
        }
    }

    /// Takes the run that begins at `end` into the one before it, which begins at `at`.
    fn join_after(&mut self, at: u64, end: u64) {
        let Some(right) = self.runs.get(&end).cloned() else {
            return;
        };
        if let Some(left) = self.runs.get_mut(&at)
            && join(left, &right)
        {
            self.runs.remove(&end);
        }
    }
}

/// Lays `new` into `old`, which covers it from index `at` on, if that changes no boundary: nothing to change,
/// or a few bytes of a buffer. Returns false if the map has to change.
fn patch(old: &mut Run, at: u64, new: &Run) -> bool {
    if new.fill.repeated().is_some() && new.fill.repeated() == old.fill.repeated() {
        return true;
    }
    let small = new.len <= SMALL && new.len < old.len;
    small && patch_buffer(old, at, new)
}

/// Whether it is worth trying to join `right` to `run` or to what `run` was joined to; the quick look that spares
/// the most frequent case, neighbours of other bytes, a search for both.
fn may_join(run: &Run, right: &Run) -> bool {
    let repeated = right.fill.repeated();
    repeated.is_none() || repeated == run.fill.repeated() || right.len <= SMALL
}

/// Makes one run of two neighbours if that is free, or cheap and bounded.
fn join(left: &mut Run, right: &Run) -> bool {
    if left.extend(right) {
        return true;
    }
    let fits = left.len + right.len <= PACKED && right.len <= SMALL;
    let packs = |run: &Run| run.fill.repeated().is_none() || run.len <= TINY;
    let one_has_bytes = left.fill.repeated().is_none() || right.fill.repeated().is_none();
    if !(fits && one_has_bytes && packs(left) && packs(right)) {
        return false;
    }
    let old_len = to_usize(left.len);
    let (buffer, start) = own_buffer(left);
    buffer.truncate(start + old_len);
    buffer.resize(start + old_len + to_usize(right.len), 0);
    right.copy_to(&mut buffer[start + old_len..]);
    left.len += right.len;
    true
}

/// Overwrites bytes of `old` from index `at` on. Refuses a run that is not bytes, and a big one
/// whose buffer somebody else holds too: that is better split than copied.
fn patch_buffer(old: &mut Run, at: u64, new: &Run) -> bool {
    let Fill::Bytes { data, .. } = &old.fill else {
        return false;
    };
    if Rc::strong_count(data) > 1 && old.len > PACKED {
        return false;
    }
    let (buffer, start) = own_buffer(old);
    new.copy_to(&mut buffer[start + to_usize(at)..]);
    true
}

/// The buffer of `run` for changing, and the run's place in it; a copy of the run's own window if
/// the buffer is shared or there is none.
fn own_buffer(run: &mut Run) -> (&mut Vec<u8>, usize) {
    let owned = match &mut run.fill {
        Fill::Bytes { data, .. } => Rc::get_mut(data).is_some(),
        _ => false,
    };
    if !owned {
        let mut bytes = vec![0; to_usize(run.len)];
        run.copy_to(&mut bytes);
        run.fill = Fill::Bytes { data: Rc::new(bytes), start: 0 };
    }
    match &mut run.fill {
        Fill::Bytes { data, start } => (Rc::make_mut(data), *start),
        _ => unreachable!("a run without bytes was given some above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(writes: &[(u64, Content)]) -> Image {
        let mut image = Image::default();
        for (off, content) in writes {
            image.write(*off, content);
        }
        image
    }

    #[test]
    fn adjacent_patterns_become_one_run_in_any_order() {
        let mut image = Image::default();
        for i in (0..10_000u64).map(|i| i * 7919 % 10_000) {
            image.write(i << 16, &Content::pattern(0x49, 65536));
        }
        assert_eq!(image.run_count(), 1);
        for i in (0..10_000u64).map(|i| i * 7919 % 10_000) {
            image.write(i << 16, &Content::pattern(0x50, 65536));
        }
        assert_eq!(image.run_count(), 1);
        assert_eq!(image.read(0, image.len()).as_pattern(), Some(0x50));
    }

    #[test]
    fn small_writes_are_packed_into_buffers() {
        let mut image = Image::default();
        for i in 0..65536u64 {
            image.write(i * 8, &Content::from_bytes(i.to_be_bytes().as_slice()));
        }
        assert_eq!(image.run_count(), 8);
        for i in (0..65536u64).rev() {
            image.write(i * 8, &Content::from_bytes((!i).to_be_bytes().as_slice()));
        }
        image.write(4096, &Content::zeros(16));
        assert_eq!(image.run_count(), 8);
        assert_eq!(image.read(8 * 700, 8), Content::from_bytes((!700u64).to_be_bytes().as_slice()));
        assert!(image.read(4096, 16).is_zero());
    }

    #[test]
    fn a_clone_keeps_what_it_held() {
        let mut image = image(&[(0, Content::from_bytes(vec![1; 4096]))]);
        let before = image.clone();
        let held = image.read(0, 4096);
        image.write(10, &Content::from_bytes(vec![2]));
        assert_eq!(before.read(0, 4096).first_not(1), None);
        assert_eq!(held.first_not(1), None);
        assert_eq!(image.read(0, 4096).first_not(1), Some(10));
    }

    #[test]
    fn a_block_is_data_once_written_even_with_zeros() {
        let mut image = image(&[(5000, Content::zeros(1))]);
        image.truncate(20_000);
        assert_eq!(image.extent(0, 20_000), Extent { data: false, len: 4096 });
        assert_eq!(image.extent(4096, 20_000), Extent { data: true, len: 4096 });
        assert_eq!(image.extent(8192, 20_000), Extent { data: false, len: 20_000 - 8192 });
    }

    #[test]
    fn punching_leaves_partial_blocks_what_they_were() {
        let mut image = image(&[(0, Content::pattern(1, 4 * BLOCK))]);
        image.truncate(8 * BLOCK);
        image.punch(100, 3 * BLOCK + 5);
        assert_eq!(image.extent(0, u64::MAX), Extent { data: true, len: BLOCK });
        assert_eq!(image.extent(BLOCK, u64::MAX), Extent { data: false, len: 2 * BLOCK });
        assert_eq!(image.extent(3 * BLOCK, u64::MAX), Extent { data: true, len: BLOCK });
        assert_eq!(image.read(0, 4 * BLOCK).slice(100, 3 * BLOCK - 95).first_not(0), None);
        image.punch(4 * BLOCK + 1, 4 * BLOCK + 9);
        assert_eq!(image.extent(4 * BLOCK, 9), Extent { data: false, len: 9 });
    }

    #[test]
    fn a_cut_block_stays_data() {
        let mut image = image(&[(3000, Content::pattern(1, 1))]);
        image.truncate(100);
        assert_eq!(image.extent(0, 100), Extent { data: true, len: 100 });
        image.truncate(0);
        image.truncate(100);
        assert_eq!(image.extent(0, 100), Extent { data: false, len: 100 });
    }
}
