//! A value for every byte of a disk, kept as runs: the reference models' only data structure.
//!
//! It is written for being obviously right, since it judges the machine; it must share nothing with the
//! machine's own stores and bitmaps.

/// A value for every byte from 0 on; see the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<T> {
    /// Where each run starts, ascending, the first at 0; a run ends where the next one starts.
    runs: Vec<(u64, T)>,
}

/// A stretch of equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<T> {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Value of all of them.
    pub value: T,
}

impl<T: Copy + Eq> Ranges<T> {
    /// `value` everywhere.
    pub fn all(value: T) -> Ranges<T> {
        Ranges { runs: vec![(0, value)] }
    }

    /// The run that holds byte `at`.
    fn run_of(&self, at: u64) -> usize {
        self.runs.partition_point(|(start, _)| *start <= at) - 1
    }

    /// The value of byte `at`.
    pub fn at(&self, at: u64) -> T {
        self.runs[self.run_of(at)].1
    }

    /// Sets `offset..offset + bytes`.
    pub fn set(&mut self, offset: u64, bytes: u64, value: T) {
        if bytes == 0 {
            return;
        }
        let end = offset.saturating_add(bytes);
        if self.has_all(offset, end, value) {
            return;
        }
        let behind = self.at(end);
        let from = self.runs.partition_point(|(start, _)| *start < offset);
        let to = self.runs.partition_point(|(start, _)| *start <= end);
        // A run goes on where the one before has the same value.
        let begins = (from == 0 || self.runs[from - 1].1 != value).then_some((offset, value));
        let goes_on = (behind != value).then_some((end, behind));
        self.runs.splice(from..to, begins.into_iter().chain(goes_on));
    }

    /// The runs within `offset..end`, clipped.
    pub fn within(&self, offset: u64, end: u64) -> impl Iterator<Item = Stretch<T>> {
        let first = self.run_of(offset);
        (first..self.runs.len()).map_while(move |index| {
            let (start, value) = self.runs[index];
            let next = self.runs.get(index + 1).map_or(u64::MAX, |run| run.0);
            let stretch = Stretch { start: start.max(offset), end: next.min(end), value };
            (stretch.start < stretch.end).then_some(stretch)
        })
    }

    /// Whether any byte of `offset..end` has `value`.
    pub fn any(&self, offset: u64, end: u64, value: T) -> bool {
        self.within(offset, end).any(|run| run.value == value)
    }

    /// Whether all bytes of `offset..end` have `value`.
    pub fn has_all(&self, offset: u64, end: u64, value: T) -> bool {
        self.within(offset, end).all(|run| run.value == value)
    }
}

impl Ranges<bool> {
    /// Adds what `other` has, up to `end`.
    pub fn add(&mut self, other: &Ranges<bool>, end: u64) {
        for run in other.within(0, end).filter(|run| run.value) {
            self.set(run.start, run.end - run.start, true);
        }
    }

    /// These areas and nothing else.
    pub fn of(areas: &[(u64, u64)]) -> Ranges<bool> {
        let mut ranges = Ranges::all(false);
        for (offset, bytes) in areas {
            ranges.set(*offset, *bytes, true);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_split_and_join_runs() {
        let mut ranges = Ranges::all(0u8);
        ranges.set(10, 10, 1);
        ranges.set(15, 10, 2);
        ranges.set(0, 12, 0);
        let runs: Vec<_> = ranges.within(0, 30).map(|r| (r.start, r.end, r.value)).collect();
        assert_eq!(runs, [(0, 12, 0), (12, 15, 1), (15, 25, 2), (25, 30, 0)]);
        ranges.set(12, 13, 0);
        assert_eq!(ranges, Ranges::all(0));
    }

    #[test]
    fn agrees_with_an_array() {
        let mut state = 7u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        let (mut ranges, mut array) = (Ranges::all(0u8), [0u8; 64]);
        for _ in 0..500 {
            let offset = next(64);
            let bytes = next(64 - offset + 1);
            let value = next(3) as u8;
            ranges.set(offset, bytes, value);
            array[offset as usize..(offset + bytes) as usize].fill(value);
            assert!((0..64).all(|at| ranges.at(at) == array[at as usize]));
        }
    }
}
