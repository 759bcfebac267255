//! Content: an immutable piece of what a disk holds, as runs.
//!
//! A run is so many bytes of zero, of one repeated byte, or of a window into shared bytes; a copied
//! cluster is therefore a run moved, not a buffer copied. Must never materialise a run of zeros or
//! of one byte unless a caller asks for plain bytes, and must never let two equal contents compare
//! unequal because they were cut into runs differently.

use std::fmt;
use std::rc::Rc;

use smallvec::SmallVec;

/// What the bytes of a [`Run`] are.
#[derive(Clone)]
pub enum Fill {
    /// Zeros.
    Zero,
    /// One byte, repeated; never 0, which is [`Fill::Zero`].
    Byte(u8),
    /// A window into shared bytes; it begins at `start` and is as long as its run.
    Bytes {
        /// The shared bytes. A `Vec` and not a slice, so that a store that owns it alone can extend
        /// it in place.
        data: Rc<Vec<u8>>,
        /// Index in `data` of the run's first byte.
        start: usize,
    },
}

impl Fill {
    /// The fill that repeats `byte`.
    pub fn pattern(byte: u8) -> Fill {
        if byte == 0 { Fill::Zero } else { Fill::Byte(byte) }
    }

    /// The byte that this fill repeats, `None` for [`Fill::Bytes`] whatever these hold.
    pub fn repeated(&self) -> Option<u8> {
        match self {
            Fill::Zero => Some(0),
            Fill::Byte(b) => Some(*b),
            Fill::Bytes { .. } => None,
        }
    }
}

/// A stretch of `len` bytes (never 0 inside a [`Content`]) with one [`Fill`].
#[derive(Clone)]
pub struct Run {
    /// Length in bytes. A run of [`Fill::Bytes`] never reaches beyond its data.
    pub len: u64,
    /// What the bytes are.
    pub fill: Fill,
}

impl Run {
    /// The run's bytes, if it has any of its own ([`Fill::Bytes`]).
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.fill {
            Fill::Bytes { data, start } => {
                let end = start.saturating_add(to_usize(self.len)).min(data.len());
                data.get(*start..end)
            }
            _ => None,
        }
    }

    /// The part [off, off + len) of this run; the caller keeps it inside.
    pub(super) fn part(&self, off: u64, len: u64) -> Run {
        debug_assert!(off + len <= self.len, "a part lies inside its run");
        let fill = match &self.fill {
            Fill::Bytes { data, start } => Fill::Bytes { data: Rc::clone(data), start: start + to_usize(off) },
            plain => plain.clone(),
        };
        Run { len, fill }
    }

    /// Takes `next` into this run if that needs no copying: the same repeated byte, or the window
    /// that follows in the same data.
    pub(super) fn extend(&mut self, next: &Run) -> bool {
        let joins = match (&self.fill, &next.fill) {
            (Fill::Zero, Fill::Zero) => true,
            (Fill::Byte(a), Fill::Byte(b)) => a == b,
            (Fill::Bytes { data: a, start: from }, Fill::Bytes { data: b, start: to }) => {
                Rc::ptr_eq(a, b) && from + to_usize(self.len) == *to
            }
            _ => false,
        };
        if joins {
            self.len += next.len;
        }
        joins
    }

    /// Writes the run's bytes over the beginning of `out`, which is at least as long.
    pub(super) fn copy_to(&self, out: &mut [u8]) {
        let out = &mut out[..to_usize(self.len)];
        match self.bytes() {
            Some(bytes) => out.copy_from_slice(bytes),
            None => out.fill(self.fill.repeated().unwrap_or(0)),
        }
    }

    /// Index of the first byte that is not `byte`.
    fn first_not(&self, byte: u8) -> Option<u64> {
        match self.bytes() {
            Some(bytes) => first_not(bytes, byte),
            None => (self.fill.repeated() != Some(byte)).then_some(0),
        }
    }

    /// Index of the first byte in which this run differs from `other`, which is as long.
    fn first_difference(&self, other: &Run) -> Option<u64> {
        match (self.bytes(), other.bytes()) {
            (Some(a), Some(b)) => first_difference(a, b),
            (Some(a), None) => first_not(a, other.fill.repeated()?),
            (None, Some(b)) => first_not(b, self.fill.repeated()?),
            (None, None) => (self.fill.repeated() != other.fill.repeated()).then_some(0),
        }
    }
}

/// An immutable piece of disk content; cheap to clone, to cut and to join.
///
/// Its length is at most `u64::MAX` bytes: what is pushed beyond that is dropped.
#[derive(Clone, Default)]
pub struct Content {
    len: u64,
    /// One run is the hot case (a guest's write of a pattern) and needs no allocation.
    runs: SmallVec<[Run; 1]>,
}

impl Content {
    /// No bytes at all.
    pub fn new() -> Content {
        Content::default()
    }

    /// `len` bytes of zero.
    pub fn zeros(len: u64) -> Content {
        Content::pattern(0, len)
    }

    /// `len` times `byte`.
    pub fn pattern(byte: u8, len: u64) -> Content {
        let mut content = Content::new();
        content.push_run(Run { len, fill: Fill::pattern(byte) });
        content
    }

    /// These bytes. A `Vec` is taken over, a slice is copied.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Content {
        let data: Vec<u8> = bytes.into();
        let len = data.len() as u64;
        let mut content = Content::new();
        content.push_run(Run { len, fill: Fill::Bytes { data: Rc::new(data), start: 0 } });
        content
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The content as lengths of one byte value each.
    pub fn fills(&self) -> Vec<(u64, u8)> {
        let mut fills: Vec<(u64, u8)> = Vec::new();
        let mut push = |len: u64, byte: u8| match fills.last_mut() {
            Some(last) if last.1 == byte => last.0 += len,
            _ => fills.push((len, byte)),
        };
        for run in self.runs() {
            match (run.fill.repeated(), run.bytes()) {
                (Some(byte), _) => push(run.len, byte),
                (None, Some(bytes)) => bytes.iter().for_each(|byte| push(1, *byte)),
                (None, None) => {}
            }
        }
        fills
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every byte is zero; bytes are looked at, not only runs. True of an empty content.
    pub fn is_zero(&self) -> bool {
        self.first_not(0).is_none()
    }

    /// The byte that fills the whole content, if one does and the runs tell it without a look at
    /// plain bytes. `None` also for an empty content.
    pub fn as_pattern(&self) -> Option<u8> {
        match self.runs.as_slice() {
            [run] => run.fill.repeated(),
            _ => None,
        }
    }

    /// The runs from front to back; none is empty, and neighbours that could be one are one.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = &Run> {
        self.runs.iter()
    }

    /// The bytes [off, off + len), without copying any; what lies outside is left out.
    pub fn slice(&self, off: u64, len: u64) -> Content {
        let end = off.saturating_add(len).min(self.len);
        if off == 0 && end == self.len {
            return self.clone();
        }
        let mut out = Content::new();
        let mut pos = 0;
        for run in &self.runs {
            let (from, to) = (off.max(pos), end.min(pos + run.len));
            if from < to {
                out.push_run(run.part(from - pos, to - from));
            }
            pos += run.len;
            if pos >= end {
                break;
            }
        }
        out
    }

    /// Appends `more`.
    pub fn push(&mut self, more: Content) {
        for run in more.runs {
            self.push_run(run);
        }
    }

    /// Appends one run, joining it to the last where that needs no copying.
    pub(super) fn push_run(&mut self, mut run: Run) {
        run.len = run.len.min(u64::MAX - self.len);
        if run.len == 0 {
            return;
        }
        self.len += run.len;
        if let Some(last) = self.runs.last_mut()
            && last.extend(&run)
        {
            return;
        }
        self.runs.push(run);
    }

    /// This content followed by `more`.
    #[must_use]
    pub fn concat(mut self, more: Content) -> Content {
        self.push(more);
        self
    }

    /// This content with `patch` over [off, off + patch.len()); the length stays, what would lie
    /// outside is left out. Read-modify-write of an unaligned request is made of this.
    #[must_use]
    pub fn overlaid(&self, off: u64, patch: &Content) -> Content {
        let off = off.min(self.len);
        let patch = patch.slice(0, self.len - off);
        let after = off + patch.len;
        self.slice(0, off).concat(patch).concat(self.slice(after, self.len - after))
    }

    /// All bytes, materialised: only for contents that are known to be small.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; to_usize(self.len)];
        self.copy_to(&mut out);
        out
    }

    /// Copies the bytes to `out`; the shorter of the two limits how many. Returns that number.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let mut pos = 0;
        for run in &self.runs {
            let room = out.len() - pos;
            if room == 0 {
                break;
            }
            let len = run.len.min(room as u64);
            run.part(0, len).copy_to(&mut out[pos..]);
            pos += to_usize(len);
        }
        pos
    }

    /// The byte at `off`, `None` beyond the end.
    pub fn byte_at(&self, off: u64) -> Option<u8> {
        let mut left = off;
        for run in &self.runs {
            if left < run.len {
                return match run.bytes() {
                    Some(bytes) => bytes.get(to_usize(left)).copied(),
                    None => run.fill.repeated(),
                };
            }
            left -= run.len;
        }
        None
    }

    /// Index of the first byte that is not `byte`, `None` if all are.
    pub fn first_not(&self, byte: u8) -> Option<u64> {
        let mut pos = 0;
        for run in &self.runs {
            if let Some(at) = run.first_not(byte) {
                return Some(pos + at);
            }
            pos += run.len;
        }
        None
    }

    /// Index of the first byte in which the two differ; where one is only longer, the length of the
    /// shorter. `None` if they are equal.
    pub fn first_difference(&self, other: &Content) -> Option<u64> {
        let (mut a, mut b) = (Cursor::new(self), Cursor::new(other));
        let common = self.len.min(other.len);
        let mut pos = 0;
        while pos < common {
            let len = a.left().min(b.left());
            let (left, right) = (a.take(len), b.take(len));
            if let Some(at) = left.first_difference(&right) {
                return Some(pos + at);
            }
            pos += len;
        }
        (self.len != other.len).then_some(common)
    }
}

/// Walks the runs of a content in pieces of the walker's choice.
struct Cursor<'a> {
    runs: &'a [Run],
    used: u64,
}

impl<'a> Cursor<'a> {
    fn new(content: &'a Content) -> Cursor<'a> {
        Cursor { runs: &content.runs, used: 0 }
    }

    /// Bytes left in the current run, 0 at the end.
    fn left(&self) -> u64 {
        self.runs.first().map_or(0, |run| run.len - self.used)
    }

    /// The next `len` bytes, at most what [`Cursor::left`] says.
    fn take(&mut self, len: u64) -> Run {
        let Some((run, rest)) = self.runs.split_first() else {
            return Run { len: 0, fill: Fill::Zero };
        };
        let part = run.part(self.used, len);
        self.used += len;
        if self.used == run.len {
            self.runs = rest;
            self.used = 0;
        }
        part
    }
}

impl PartialEq for Content {
    /// Equal bytes, however they are cut into runs.
    fn eq(&self, other: &Content) -> bool {
        self.len == other.len && self.first_difference(other).is_none()
    }
}

impl Eq for Content {}

impl FromIterator<Content> for Content {
    fn from_iter<I: IntoIterator<Item = Content>>(parts: I) -> Content {
        parts.into_iter().fold(Content::new(), Content::concat)
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() {
            Some(bytes) if bytes.len() <= 16 => write!(f, "{bytes:02x?}"),
            Some(bytes) => write!(f, "{:02x?}.. {} bytes", &bytes[..16], bytes.len()),
            None => write!(f, "{:#04x} x {}", self.fill.repeated().unwrap_or(0), self.len),
        }
    }
}

impl fmt::Debug for Content {
    /// A line a test failure can show: long bytes are shortened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.runs).finish()
    }
}

/// Saturating on hosts with small addresses, where no such buffer could exist anyway.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Bytes compared at once: long enough for vector instructions, short enough to end early.
const STRIDE: usize = 64;

fn first_not(bytes: &[u8], byte: u8) -> Option<u64> {
    let differs = |chunk: &[u8]| chunk.iter().fold(0, |acc, b| acc | (b ^ byte)) != 0;
    let stride = bytes.chunks(STRIDE).position(differs)? * STRIDE;
    let at = bytes[stride..].iter().position(|&b| b != byte)?;
    Some((stride + at) as u64)
}

/// Of two slices of one length.
fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if std::ptr::eq(a, b) {
        return None;
    }
    let stride = a.chunks(STRIDE).zip(b.chunks(STRIDE)).position(|(x, y)| x != y)? * STRIDE;
    let at = a[stride..].iter().zip(&b[stride..]).position(|(x, y)| x != y)?;
    Some((stride + at) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(parts: &[(u8, Vec<u8>)]) -> Content {
        parts
            .iter()
            .map(|(kind, bytes)| match kind {
                0 => Content::zeros(bytes.len() as u64),
                1 => Content::pattern(7, bytes.len() as u64),
                _ => Content::from_bytes(bytes.as_slice()),
            })
            .collect()
    }

    fn parts() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((0u8..3, prop::collection::vec(prop_oneof![0u8..2, 7u8..8], 0..200)), 0..6)
    }

    #[test]
    fn neighbours_that_repeat_one_byte_become_one_run() {
        let joined: Content = (0..1000).map(|_| Content::pattern(0x49, 65536)).collect();
        assert_eq!(joined.runs().len(), 1);
        assert_eq!(joined.as_pattern(), Some(0x49));
        assert_eq!(Content::pattern(0, 5).concat(Content::zeros(3)).runs().len(), 1);
    }

    #[test]
    fn the_halves_of_one_buffer_join_again_without_a_copy() {
        let whole = Content::from_bytes(vec![1, 2, 3, 4, 5]);
        let joined = whole.slice(0, 2).concat(whole.slice(2, 3));
        assert_eq!(joined.runs().len(), 1);
        assert_eq!(joined, whole);
    }

    #[test]
    fn equality_looks_at_bytes_and_never_materialises() {
        let huge = Content::pattern(9, u64::MAX);
        assert_eq!(huge, Content::pattern(9, u64::MAX));
        assert_eq!(huge.first_difference(&Content::pattern(9, 12)), Some(12));
        assert_eq!(Content::from_bytes(vec![9; 70]), Content::pattern(9, 70));
        assert_ne!(Content::from_bytes(vec![9; 70]), Content::pattern(9, 71));
        assert!(Content::from_bytes(vec![0; 4096]).is_zero());
        assert!(Content::new().is_zero());
    }

    #[test]
    fn lengths_and_offsets_out_of_reach_are_cut() {
        let mut c = Content::zeros(u64::MAX);
        c.push(Content::pattern(1, 5));
        assert_eq!(c.len(), u64::MAX);
        assert!(Content::zeros(5).slice(9, u64::MAX).is_empty());
        assert_eq!(Content::zeros(5).byte_at(5), None);
    }

    proptest! {
        #[test]
        fn behaves_like_plain_bytes(p in parts(), q in parts(), off in 0u64..700, len in 0u64..700) {
            let (c, d) = (content(&p), content(&q));
            let (v, w) = (c.to_vec(), d.to_vec());
            let cut = |v: &[u8]| -> Vec<u8> {
                v.iter().copied().skip(off as usize).take(len as usize).collect()
            };
            prop_assert_eq!(c.len(), v.len() as u64);
            prop_assert_eq!(c.slice(off, len).to_vec(), cut(&v));
            prop_assert_eq!(c.byte_at(off), v.get(off as usize).copied());
            prop_assert_eq!(c == d, v == w);
            prop_assert_eq!(c.clone(), Content::from_bytes(v.clone()));
            let differ = v.iter().zip(&w).position(|(a, b)| a != b)
                .or((v.len() != w.len()).then_some(v.len().min(w.len())));
            prop_assert_eq!(c.first_difference(&d), differ.map(|at| at as u64));
            for byte in [0, 1, 7] {
                let at = v.iter().position(|&b| b != byte).map(|at| at as u64);
                prop_assert_eq!(c.first_not(byte), at);
            }
            prop_assert_eq!(c.is_zero(), v.iter().all(|&b| b == 0));
            let mut laid = v.clone();
            for (slot, byte) in laid.iter_mut().skip(off as usize).zip(&w) {
                *slot = *byte;
            }
            prop_assert_eq!(c.overlaid(off, &d).to_vec(), laid);
            let mut short = vec![0xff; len as usize];
            let n = c.copy_to(&mut short);
            prop_assert_eq!(&short[..n], &v[..n]);
        }
    }
}
