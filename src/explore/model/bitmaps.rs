//! What each named bitmap must have set, and what it may have set at most.
//!
//! `must` is what guests changed for certain, `may` what they tried to; a bit stands for all of its bytes.
//! Bits are worked out here from byte ranges alone.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::sim::BitmapDump;

use super::ranges::Ranges;

/// Node name and bitmap name.
pub type Key = (Rc<str>, Rc<str>);

/// Bounds on a bitmap's content, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Changed for certain.
    pub must: Ranges<bool>,
    /// Possibly changed.
    pub may: Ranges<bool>,
}

impl Bounds {
    /// Nothing.
    pub fn none() -> Bounds {
        Bounds { must: Ranges::all(false), may: Ranges::all(false) }
    }

    /// Exactly what a bitmap shows.
    pub fn exactly(dump: &BitmapDump) -> Bounds {
        let dirty = Ranges::of(&dump.dirty);
        Bounds { must: dirty.clone(), may: dirty }
    }

    /// Adds other bounds, up to `end`.
    pub fn add(&mut self, other: &Bounds, end: u64) {
        self.must.add(&other.must, end);
        self.may.add(&other.may, end);
    }
}

/// A bitmap whose content is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// What it holds.
    pub bounds: Bounds,
    /// Whether guests' writes reach it.
    pub recording: bool,
    /// A job uses it.
    pub busy: bool,
}

/// All bitmaps.
#[derive(Default)]
pub struct Bitmaps {
    all: BTreeMap<Key, Followed>,
}

impl Bitmaps {
    /// The bitmaps are as a command left them. A busy one is its job's business.
    pub fn adopt(&mut self, list: &[BitmapDump]) {
        let keys: Vec<Key> = list.iter().map(|dump| (dump.node.clone(), dump.name.clone())).collect();
        self.all.retain(|key, _| keys.contains(key));
        for (dump, key) in list.iter().zip(keys) {
            let is_new = !self.all.contains_key(&key);
            if is_new || !dump.busy {
                self.put(key, dump);
            }
        }
    }

    fn put(&mut self, key: Key, dump: &BitmapDump) {
        let recording = dump.recording && !dump.inconsistent;
        self.all.insert(key, Followed { bounds: Bounds::exactly(dump), recording, busy: dump.busy });
    }

    /// A job has given the bitmap back like this.
    pub fn give_back(&mut self, dump: &BitmapDump, since: &Bounds, end: u64) {
        let key = (dump.node.clone(), dump.name.clone());
        self.put(key.clone(), dump);
        if let Some(followed) = self.all.get_mut(&key) {
            followed.busy = false;
            if followed.recording {
                followed.bounds.add(since, end);
            }
        }
    }

    /// What a bitmap should hold.
    pub fn get(&self, node: &str, name: &str) -> Option<&Followed> {
        self.all.iter().find(|(key, _)| &*key.0 == node && &*key.1 == name).map(|(_, followed)| followed)
    }

    /// A guest tries to change a range.
    pub fn attempt(&mut self, disk: &str, offset: u64, bytes: u64) {
        for followed in self.recording(disk) {
            followed.bounds.may.set(offset, bytes, true);
        }
    }

    /// A guest has changed a range.
    pub fn change(&mut self, disk: &str, offset: u64, bytes: u64) {
        for followed in self.recording(disk) {
            followed.bounds.must.set(offset, bytes, true);
        }
    }

    fn recording<'a>(&'a mut self, disk: &'a str) -> impl Iterator<Item = &'a mut Followed> {
        let all = self.all.iter_mut();
        all.filter(move |(key, followed)| &*key.0 == disk && followed.recording).map(|(_, followed)| followed)
    }

    /// The process died.
    pub fn forget(&mut self) {
        self.all.clear();
    }
}

/// The first bit that is clear though some byte of it is in `must`, as byte offset.
pub fn first_missing(dump: &BitmapDump, must: &Ranges<bool>, length: u64) -> Option<u64> {
    let set = Ranges::of(&dump.dirty);
    let granules = 0..length.div_ceil(dump.granularity);
    let mut starts = granules.map(|granule| granule * dump.granularity);
    starts.find(|start| must.any(*start, (start + dump.granularity).min(length), true) && !set.at(*start))
}

/// The first bit that is set though no byte of it is in `may`, as byte offset.
pub fn first_surplus(dump: &BitmapDump, may: &Ranges<bool>, length: u64) -> Option<u64> {
    let set = Ranges::of(&dump.dirty);
    let granules = 0..length.div_ceil(dump.granularity);
    let mut starts = granules.map(|granule| granule * dump.granularity);
    starts.find(|start| set.at(*start) && !may.any(*start, (start + dump.granularity).min(length), true))
}
