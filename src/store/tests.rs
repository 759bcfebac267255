//! Both homes of bytes against the plainest model of a file there is: an array of bytes and an
//! array of flags.

use super::file::FileStore;
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<(u8, u64)>),
    Zeroes(u64, u64, bool),
    Discard(u64, u64),
    Read(u64, u64),
    Truncate(u64),
    Fork,
}

const SPAN: u64 = 14 * BLOCK;

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0..SPAN,
        2 => (0..SPAN / BLOCK).prop_map(|block| block * BLOCK),
        1 => (0..SPAN / 512).prop_map(|sector| sector * 512),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0u64..40, 2 => 0..3 * BLOCK, 1 => Just(BLOCK), 1 => Just(2 * BLOCK)]
}

/// Pieces: kinds 0..=2 repeat that byte, others are mixed bytes.
fn op() -> impl Strategy<Value = Op> {
    let pieces = || prop::collection::vec((0u8..5, length()), 0..4);
    prop_oneof![
        8 => (edge(), pieces()).prop_map(|(off, p)| Op::Write(off, p)),
        3 => (edge(), length(), any::<bool>()).prop_map(|(o, l, u)| Op::Zeroes(o, l, u)),
        3 => (edge(), length()).prop_map(|(off, len)| Op::Discard(off, len)),
        2 => (edge(), length()).prop_map(|(off, len)| Op::Read(off, len)),
        2 => edge().prop_map(Op::Truncate),
        1 => Just(Op::Fork),
    ]
}

fn content_of(pieces: &[(u8, u64)]) -> Content {
    let mixed = |kind: u8, len: u64| -> Vec<u8> { (0..len).map(|i| (i as u8).wrapping_mul(kind)).collect() };
    let content = |&(kind, len): &(u8, u64)| match kind {
        0..=2 => Content::pattern(kind, len),
        _ => Content::from_bytes(mixed(kind, len)),
    };
    pieces.iter().map(content).collect()
}

#[derive(Default)]
struct Naive {
    bytes: Vec<u8>,
    data: Vec<bool>,
    /// Data, or zeroed without `unmap`.
    taken: Vec<bool>,
}

impl Naive {
    fn write(&mut self, off: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = off as usize + bytes.len();
        self.truncate(self.bytes.len().max(end) as u64);
        self.bytes[off as usize..end].copy_from_slice(bytes);
        self.data[off as usize / 4096..end.div_ceil(4096)].fill(true);
        self.take(off, bytes.len() as u64);
    }

    fn take(&mut self, off: u64, len: u64) {
        if len > 0 {
            self.taken[off as usize / 4096..(off + len).div_ceil(4096) as usize].fill(true);
        }
    }

    fn punch(&mut self, off: u64, len: u64) {
        let size = self.bytes.len();
        let (off, end) = ((off as usize).min(size), ((off + len) as usize).min(size));
        self.bytes[off..end].fill(0);
        for (i, (data, taken)) in self.data.iter_mut().zip(&mut self.taken).enumerate() {
            let (start, stop) = (i * 4096, (i * 4096 + 4096).min(size));
            if off < end && off <= start && stop <= end {
                (*data, *taken) = (false, false);
            }
        }
    }

    fn truncate(&mut self, len: u64) {
        self.bytes.resize(len as usize, 0);
        self.data.resize((len as usize).div_ceil(4096), false);
        self.taken.resize((len as usize).div_ceil(4096), false);
    }

    fn cache(&mut self, off: u64, len: u64) {
        let end = (off + len).min(self.bytes.len() as u64);
        if off < end {
            for block in off as usize / 4096..end.div_ceil(4096) as usize {
                self.data[block] |= self.taken[block];
            }
        }
    }

    /// Blocks on the disk, with one for more extents than four.
    fn taken_blocks(&self) -> u64 {
        let kind = |i: usize| self.taken[i].then_some(self.data[i]);
        let begins = |&i: &usize| kind(i).is_some() && (i == 0 || kind(i - 1) != kind(i));
        let extents = (0..self.taken.len()).filter(begins).count();
        self.taken.iter().filter(|&&taken| taken).count() as u64 + u64::from(extents > 4)
    }

    fn extent(&self, off: u64, len: u64) -> Extent {
        let end = (off + len).min(self.bytes.len() as u64);
        if off >= end {
            return Extent { data: false, len };
        }
        let block = off as usize / 4096;
        let data = self.data[block];
        let same = self.data[block..].iter().take_while(|&&other| other == data).count();
        Extent { data, len: ((block + same) as u64 * BLOCK).min(end) - off }
    }
}

fn apply(op: &Op, naive: &mut Naive, stores: &mut [Store; 2]) {
    match op {
        Op::Write(off, pieces) => {
            let content = content_of(pieces);
            naive.write(*off, &content.to_vec());
            stores.iter().for_each(|store| store.write(*off, &content).unwrap());
        }
        Op::Zeroes(off, len, unmap) => {
            if *len > 0 {
                naive.truncate((off + len).max(naive.bytes.len() as u64));
            }
            naive.punch(*off, *len);
            if !unmap {
                naive.take(*off, *len);
            }
            stores.iter().for_each(|store| store.write_zeroes(*off, *len, *unmap).unwrap());
        }
        Op::Discard(off, len) => {
            naive.punch(*off, *len);
            stores.iter().for_each(|store| store.discard(*off, *len).unwrap());
        }
        Op::Read(off, len) => {
            naive.cache(*off, *len);
            stores.iter().for_each(|store| _ = store.read(*off, *len).unwrap());
        }
        Op::Truncate(len) => {
            naive.truncate(*len);
            stores.iter().for_each(|store| store.truncate(*len).unwrap());
        }
        // What a fork leaves shared has to be copied by the next write.
        Op::Fork => stores[0] = stores[0].fork().unwrap(),
    }
}

fn check_content(store: &Store, naive: &Naive, probe: u64, len: u64) -> Result<(), TestCaseError> {
    let all = Content::from_bytes(naive.bytes.as_slice());
    prop_assert_eq!(store.read(0, all.len()).unwrap().first_difference(&all), None);
    let want = all.slice(probe, len);
    let want = want.clone().concat(Content::zeros(len - want.len()));
    prop_assert_eq!(store.read(probe, len).unwrap().first_difference(&want), None);
    Ok(())
}

proptest! {
    #[test]
    fn both_homes_behave_like_an_array(ops in prop::collection::vec(op(), 0..40), probe in edge(), len in length()) {
        let dir = tempfile::tempdir().unwrap();
        let file = FileStore::create(&dir.path().join("f")).unwrap();
        let mut stores = [Store::memory(), Store::file(file)];
        let mut naive = Naive::default();
        let mut parents = Vec::new();
        for op in &ops {
            if matches!(op, Op::Fork) {
                parents.push((stores[0].fork().unwrap(), naive.bytes.clone()));
            }
            apply(op, &mut naive, &mut stores);
            let size = naive.bytes.len() as u64;
            for store in &stores {
                prop_assert_eq!(store.len(), size);
                for off in (0..size + BLOCK).step_by(1024).chain([probe]) {
                    prop_assert_eq!(store.extent(off, len), naive.extent(off, len), "{}", off);
                    prop_assert_eq!(store.extent(off, SPAN), naive.extent(off, SPAN), "{}", off);
                }
                prop_assert_eq!(store.allocated_bytes(), naive.taken_blocks() * BLOCK);
            }
            // A read changes what is data, so it is a copy that is read on the way.
            check_content(&stores[0].fork().unwrap(), &naive, probe, len)?;
        }
        for store in &stores {
            check_content(store, &naive, probe, len)?;
        }
        for (fork, bytes) in parents {
            let kept = fork.read(0, bytes.len() as u64).unwrap();
            prop_assert_eq!(kept.first_difference(&Content::from_bytes(bytes)), None);
        }
    }
}

#[test]
fn ranges_out_of_reach_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = FileStore::create(&dir.path().join("f")).unwrap();
    for store in [Store::memory(), Store::file(file)] {
        let one = Content::pattern(1, 1);
        assert_eq!(store.write(u64::MAX, &one), Err(Errno::EFBIG));
        assert_eq!(store.write(MAX_LEN, &one), Err(Errno::EFBIG));
        assert_eq!(store.write_zeroes(1, u64::MAX, true), Err(Errno::EFBIG));
        assert_eq!(store.discard(u64::MAX, 2), Err(Errno::EFBIG));
        assert_eq!(store.truncate(MAX_LEN + 1), Err(Errno::EFBIG));
        assert_eq!(store.read(u64::MAX, 2).err(), Some(Errno::EINVAL));
        assert_eq!(store.read(u64::MAX - 2, 2).unwrap(), Content::zeros(2));
        assert_eq!(store.extent(u64::MAX, 9), Extent { data: false, len: 9 });
        assert_eq!(store.len(), 0);
    }
}

#[test]
fn a_big_sparse_file_costs_nothing() {
    let store = Store::memory();
    store.truncate(MAX_LEN).unwrap();
    store.write(MAX_LEN - 1, &Content::pattern(1, 1)).unwrap();
    assert_eq!(store.extent(0, u64::MAX), Extent { data: false, len: MAX_LEN - BLOCK });
    assert_eq!(store.read(0, MAX_LEN).unwrap().first_not(0), Some(MAX_LEN - 1));
    store.discard(0, MAX_LEN).unwrap();
    assert_eq!(store.allocated_bytes(), 0);
}

#[test]
fn a_punched_real_file_gives_its_space_back() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let store = Store::file(FileStore::create(&path).unwrap());
    store.write(0, &Content::pattern(1, 1 << 20)).unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    store.discard(0, 1 << 20).unwrap();
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}
