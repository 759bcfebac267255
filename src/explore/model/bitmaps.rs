//! What each named bitmap must have set, and what it may have set at most.
//!
//! `must` is what was changed for certain, `may` what somebody tried to; a bit stands for all of its bytes. Only
//! what the user asked for, and the end of a job, may change a bitmap otherwise. Bits are worked out here from
//! byte ranges alone.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::sim::BitmapDump;

use super::asked::{Asked, Change, Undone};
use super::disks::Image;
use super::ranges::Ranges;
use super::violation::{Breach, Violation};

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

    /// The same where what may be set is so in whole bits of so many bytes, on a disk of `length` bytes.
    pub fn in_bits(mut self, granularity: u64, length: u64) -> Bounds {
        for run in self.may.clone().within(0, length).filter(|run| run.value) {
            let start = run.start - run.start % granularity;
            self.may.set(start, run.end.next_multiple_of(granularity) - start, true);
        }
        self
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
    /// What was changed for certain when the last command had ended, or when all nodes were drained since.
    sure: Ranges<bool>,
    /// Whether writes reach it.
    pub recording: bool,
    /// A job uses it.
    pub busy: bool,
    /// To be found in the image again.
    pub persistent: bool,
    /// Whether writes will reach it when it comes from the image again: it may be switched on and off while its disk
    /// is read-only, which the image never learns.
    recording_in_image: bool,
    /// Bytes of a bit.
    granularity: u64,
    /// Nobody may believe it.
    pub inconsistent: bool,
    /// It was in the image when the machine began to use that.
    stored: bool,
    /// The disk when the bitmap was last looked at: what differs from it later and is clean here is lost.
    pub seen: Image,
}

/// A bitmap that is only in an image now.
struct Stored {
    followed: Followed,
    /// The machine died while it used the image.
    killed: bool,
}

impl Followed {
    /// A transaction that failed has done something to the bitmap and undone it: nothing may be lost by that, though
    /// QEMU itself loses what was both begun and ended meanwhile. What was sure before is no part of it.
    fn judge_meanwhile(&self, dump: &BitmapDump, undone: Undone, found: &mut Vec<Violation>) {
        if first_missing(dump, &self.sure, dump.size).is_none()
            && let Some(at) = first_missing(dump, &self.bounds.must, dump.size)
        {
            let (breach, did) = match undone {
                Undone::Switched => (Breach::BitLostByUnswitching, "switched it off"),
                Undone::Cleared => (Breach::BitLostByUnclearing, "cleared it"),
                Undone::Merged => (Breach::BitLostByUnmerging, "merged into it"),
            };
            found.push(lost(breach, dump, at, &format!("while a transaction that failed had {did}")));
        }
    }

    /// The disk ends at `size` now, or goes on there with zeros: what was behind is nobody's business any more. The
    /// granule in which it ends stays as it was.
    fn cut(&mut self, size: u64) {
        let behind = size.next_multiple_of(self.granularity);
        self.bounds.may.set(behind, u64::MAX - behind, false);
        self.bounds.must.set(size, u64::MAX - size, false);
        self.sure.set(size, u64::MAX - size, false);
        self.seen.set(size, u64::MAX - size, None);
    }

    /// A command has switched recording off or on, or a transaction that failed has put old contents back. What ends
    /// while it runs may come before or after that: only what the bitmap shows, and what was sure before, is demanded
    /// from now on.
    fn settle(&mut self, dump: &BitmapDump, seen: Image) {
        let shown = Ranges::of(&dump.dirty);
        let changed = std::mem::replace(&mut self.bounds.must, self.sure.clone());
        for (start, end) in granules(dump, dump.size) {
            if shown.at(start) && changed.any(start, end, true) {
                self.bounds.must.set(start, end - start, true);
            }
        }
        self.seen = seen;
    }
}

/// All bitmaps.
#[derive(Default)]
pub struct Bitmaps {
    all: BTreeMap<Key, Followed>,
    stored: BTreeMap<Key, Stored>,
}

fn key_of(dump: &BitmapDump) -> Key {
    (dump.node.clone(), dump.name.clone())
}

fn lost(breach: Breach, dump: &BitmapDump, at: u64, when: &str) -> Violation {
    wrong(breach, dump, &format!("lost cluster {} {when}", at / dump.granularity))
}

fn wrong(breach: Breach, dump: &BitmapDump, what: &str) -> Violation {
    Violation::new(breach, &dump.name, format!("bitmap {} of disk {} {what}", dump.name, dump.node))
}

impl Bitmaps {
    /// The bitmaps are as a command left them, which `asked` for these changes. A busy one is its job's
    /// business. `image` tells what a disk must hold now; `trusted` is false if devices failed.
    pub fn adopt(
        &mut self,
        list: &[BitmapDump],
        asked: &Asked,
        image: impl Fn(&str) -> Image,
        trusted: bool,
        found: &mut Vec<Violation>,
    ) {
        self.all.retain(|key, followed| {
            let here = list.iter().any(|dump| key_of(dump) == *key);
            if !here && followed.persistent && !asked.removes(key) {
                let kept = Stored { followed: followed.clone(), killed: false };
                self.stored.insert(key.clone(), kept);
            } else if !here && !asked.removes(key) && !asked.may_close {
                let text = format!("bitmap {} of disk {} is gone, though nobody removed it", key.1, key.0);
                found.push(Violation::new(Breach::BitmapGone, &key.1, text));
            }
            here
        });
        if let Some((disk, size)) = &asked.resized {
            let own = self.all.iter_mut().filter(|(key, _)| *key.0 == **disk);
            own.for_each(|(_, followed)| followed.cut(*size));
        }
        for dump in list {
            let key = key_of(dump);
            let (seen, change) = (image(&dump.node), asked.change(&key, list));
            if asked.alone && change.as_ref().is_some_and(|change| change.fresh) && !dump.dirty.is_empty() {
                found.push(wrong(
                    Breach::BitFromNowhere,
                    dump,
                    "is not clean, though it has just been added or cleared",
                ));
            }
            if change.as_ref().is_some_and(|change| change.unequal) {
                found.push(wrong(Breach::MergedUnequal, dump, "took in one of another length"));
            }
            match self.all.get_mut(&key) {
                None => {
                    let stored = self.stored.remove(&key);
                    if change.is_none() {
                        self.judge_come(dump, stored.as_ref(), trusted, found);
                    }
                    self.put(key, dump, seen, change.is_none());
                }
                Some(followed) if dump.busy && change.is_none() => followed.busy = true,
                Some(followed) => {
                    if let Some(undone) = asked.undone(&key).filter(|_| followed.recording && !dump.busy) {
                        followed.judge_meanwhile(dump, undone, found);
                        followed.settle(dump, seen.clone());
                    }
                    judge_change(dump, followed, change.as_ref(), found);
                    if change.as_ref().is_some_and(|change| change.switched) {
                        followed.settle(dump, seen.clone());
                    }
                    if change.as_ref().is_some_and(|change| change.fresh) {
                        followed.bounds = Bounds::exactly(dump);
                        followed.seen = seen;
                    } else {
                        followed.bounds.add(&change.map_or_else(Bounds::none, |change| change.merged), dump.size);
                    }
                    (followed.recording, followed.busy) = (dump.recording && !dump.inconsistent, dump.busy);
                    followed.persistent = dump.persistent;
                    if dump.readonly {
                        // What becomes read-only is stored before.
                        followed.stored |= dump.persistent;
                    } else {
                        followed.recording_in_image = followed.recording;
                    }
                    followed.sure = followed.bounds.must.clone();
                }
            }
        }
    }

    /// Judges a bitmap that is there though no command has added it: it has to come from an image.
    fn judge_come(&self, dump: &BitmapDump, stored: Option<&Stored>, trusted: bool, found: &mut Vec<Violation>) {
        // An image may have been opened under another name, or twice.
        let namesake = || self.stored.keys().chain(self.all.keys()).any(|key| key.1 == dump.name);
        let come = |what: &str| wrong(Breach::BitmapFromNowhere, dump, what);
        match stored {
            Some(stored) if trusted => judge_loaded(dump, stored, found),
            Some(_) => {}
            None if !dump.persistent => found.push(come("is there, though nobody has added it")),
            None if trusted && !namesake() => found.push(come("is in the image, though nobody has stored it")),
            None => {}
        }
    }

    fn put(&mut self, key: Key, dump: &BitmapDump, seen: Image, stored: bool) {
        let bounds = Bounds::exactly(dump);
        let recording = dump.recording && !dump.inconsistent;
        let before = self.all.get(&key).filter(|_| dump.readonly);
        let followed = Followed {
            sure: bounds.must.clone(),
            bounds,
            recording,
            recording_in_image: before.map_or(recording, |before| before.recording_in_image),
            busy: dump.busy,
            persistent: dump.persistent,
            granularity: dump.granularity,
            inconsistent: dump.inconsistent,
            stored,
            seen,
        };
        self.all.insert(key, followed);
    }

    /// A job has given the bitmap back like this; `coming` is what requests under way will still change.
    pub fn give_back(&mut self, dump: &BitmapDump, coming: &Bounds, seen: Image, found: &mut Vec<Violation>) {
        let key = key_of(dump);
        if let Some(followed) = self.all.get(&key) {
            judge_kind(dump, followed, found);
        }
        let stored = self.all.get(&key).is_some_and(|followed| followed.stored);
        self.put(key.clone(), dump, seen, stored);
        if let Some(followed) = self.all.get_mut(&key) {
            followed.busy = false;
            if followed.recording {
                followed.bounds.add(coming, dump.size);
            }
        }
    }

    /// What a bitmap should hold.
    pub fn get(&self, node: &str, name: &str) -> Option<&Followed> {
        self.all.iter().find(|(key, _)| &*key.0 == node && &*key.1 == name).map(|(_, followed)| followed)
    }

    /// Somebody tries to change a range.
    pub fn attempt(&mut self, disk: &str, offset: u64, bytes: u64) {
        for followed in self.recording(disk) {
            followed.bounds.may.set(offset, bytes, true);
        }
    }

    /// Somebody has changed a range.
    pub fn change(&mut self, disk: &str, offset: u64, bytes: u64) {
        for followed in self.recording(disk) {
            followed.bounds.must.set(offset, bytes, true);
        }
    }

    /// All nodes are drained: what has been changed so far is in the bitmaps.
    pub fn drained(&mut self) {
        for followed in self.all.values_mut() {
            followed.sure = followed.bounds.must.clone();
        }
    }

    fn recording<'a>(&'a mut self, disk: &'a str) -> impl Iterator<Item = &'a mut Followed> {
        let all = self.all.iter_mut();
        all.filter(move |(key, followed)| &*key.0 == disk && followed.recording).map(|(_, followed)| followed)
    }

    /// The process ended, in order or not.
    pub fn end_process(&mut self, killed: bool) {
        // What was never stored is gone with a process that was killed.
        let kept = std::mem::take(&mut self.all).into_iter().filter(|(_, followed)| followed.persistent);
        let kept = kept.filter(|(_, followed)| followed.stored || !killed);
        self.stored.extend(kept.map(|(key, followed)| (key, Stored { followed, killed })));
    }

    /// Somebody else may have changed the images.
    pub fn forget_stored(&mut self) {
        self.stored.clear();
    }
}

/// A bitmap that nobody asked to change has not; a changed one is as asked.
fn judge_change(dump: &BitmapDump, followed: &Followed, change: Option<&Change>, found: &mut Vec<Violation>) {
    let mut bounds = followed.bounds.clone();
    if let Some(change) = change {
        if change.fresh {
            return;
        }
        if change.switched {
            bounds.must = followed.sure.clone();
        }
        bounds.add(&change.merged, dump.size);
    }
    if let Some(at) = first_missing(dump, &bounds.must, dump.size) {
        found.push(lost(Breach::BitLost, dump, at, "in a command that did not clear it"));
    } else if let Some(at) = first_surplus(dump, &bounds.may, dump.size) {
        let what = format!("has cluster {}, which nobody wrote", at / dump.granularity);
        found.push(wrong(Breach::BitFromNowhere, dump, &what));
    }
    if change.is_none_or(|change| !change.switched) {
        judge_kind(dump, followed, found);
    }
}

/// What nobody asked to change about a bitmap beside its content has not changed either.
fn judge_kind(dump: &BitmapDump, followed: &Followed, found: &mut Vec<Violation>) {
    let others = [
        (!followed.inconsistent && followed.recording != dump.recording, "records or not"),
        (followed.persistent != dump.persistent, "is to be stored or not"),
        (followed.granularity != dump.granularity, "has a granularity"),
    ];
    for (_, what) in others.iter().filter(|(changed, _)| *changed) {
        let text = format!("{what}, other than before, though nobody asked for that");
        found.push(wrong(Breach::BitmapChanged, dump, &text));
    }
}

/// A bitmap comes back from its image.
fn judge_loaded(dump: &BitmapDump, stored: &Stored, found: &mut Vec<Violation>) {
    let followed = &stored.followed;
    match (stored.killed || followed.inconsistent, dump.inconsistent) {
        (true, false) => {
            let what = "is believed, though it was in use when the machine died";
            found.push(wrong(Breach::StaleBelieved, dump, what));
        }
        (false, true) => {
            let what = "is inconsistent, though its image was closed in order";
            found.push(wrong(Breach::NotBelieved, dump, what));
        }
        (false, false) => {
            if let Some(at) = first_missing(dump, &followed.bounds.must, dump.size) {
                found.push(lost(Breach::BitLostInImage, dump, at, "on its way through the image"));
            } else if let Some(at) = first_surplus(dump, &followed.bounds.may, dump.size) {
                let what = format!("came back with cluster {}", at / dump.granularity);
                found.push(wrong(Breach::BitFromNowhere, dump, &what));
            }
            if followed.recording_in_image != dump.recording {
                found.push(wrong(Breach::BitmapChanged, dump, "came back otherwise enabled than it was"));
            }
            if followed.granularity != dump.granularity {
                found.push(wrong(Breach::BitmapChanged, dump, "came back with another granularity"));
            }
        }
        (true, true) => {}
    }
}

fn granules(dump: &BitmapDump, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let size = dump.granularity;
    (0..length.div_ceil(size)).map(move |index| (index * size, ((index + 1) * size).min(length)))
}

/// The first bitmap of a disk of `size` bytes that is not as long.
pub fn first_of_wrong_length(list: &[BitmapDump], disk: &str, size: u64) -> Option<Violation> {
    let dump = list.iter().find(|dump| *dump.node == *disk && dump.size != size)?;
    let text = format!("bitmap {} of disk {disk} covers {} bytes of {size}", dump.name, dump.size);
    Some(Violation::new(Breach::WrongLength, &dump.name, text))
}

/// The first bit that is clear though some byte of it is in `must`, as byte offset.
pub fn first_missing(dump: &BitmapDump, must: &Ranges<bool>, length: u64) -> Option<u64> {
    let (set, size) = (Ranges::of(&dump.dirty), dump.granularity);
    must.within(0, length).filter(|run| run.value).find_map(|run| {
        let clear = set.within(run.start - run.start % size, run.end).filter(|run| !run.value);
        // A bit that is set to the end of the disk is one, though the disk may end within it.
        let mut bits = clear.map(|run| (run.start.next_multiple_of(size), run.end));
        bits.find(|(bit, end)| bit < end).map(|(bit, _)| bit)
    })
}

/// The first bit that is set though no byte of it is in `may`, as byte offset.
pub fn first_surplus(dump: &BitmapDump, may: &Ranges<bool>, length: u64) -> Option<u64> {
    let (set, size) = (Ranges::of(&dump.dirty), dump.granularity);
    set.within(0, length).filter(|run| run.value).find_map(|run| {
        let mut bits = (run.start.div_ceil(size)..run.end.div_ceil(size)).map(|index| index * size);
        bits.find(|bit| !may.any(*bit, (bit + size).min(length), true))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::{Rng, Stream};

    /// The same, bit by bit.
    fn plain(dump: &BitmapDump, ranges: &Ranges<bool>, length: u64, is_set: bool) -> Option<u64> {
        let set = Ranges::of(&dump.dirty);
        let wrong = |(start, end): &(u64, u64)| set.at(*start) == is_set && ranges.any(*start, *end, true) != is_set;
        granules(dump, length).find(wrong).map(|(start, _)| start)
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_found_as_bit_by_bit() {
        let mut rng = Rng::new(7, Stream::Workload);
        let mut found = [0; 2];
        for _ in 0..2000 {
            let length = 1 + rng.below(200);
            let granularity = 1 << rng.below(5);
            let bits = length.div_ceil(granularity);
            let mut set = Ranges::all(false);
            for _ in 0..rng.below(4) {
                let from = rng.below(bits);
                let to = from + 1 + rng.below(bits - from);
                set.set(from * granularity, (to * granularity).min(length) - from * granularity, true);
            }
            let dirty =
                set.within(0, length).filter(|run| run.value).map(|run| (run.start, run.end - run.start)).collect();
            let dump = BitmapDump {
                node: Rc::from("disk"),
                name: Rc::from("bitmap"),
                granularity,
                recording: true,
                busy: false,
                inconsistent: false,
                persistent: false,
                readonly: false,
                size: length,
                dirty,
            };
            // Now and then all that is set, so that nothing is missing.
            let mut ranges = if rng.below(2) == 0 { set } else { Ranges::all(false) };
            for _ in 0..rng.below(4) {
                let offset = rng.below(length);
                ranges.set(offset, 1 + rng.below(length - offset), rng.below(2) == 0);
            }
            let missing = first_missing(&dump, &ranges, length);
            let surplus = first_surplus(&dump, &ranges, length);
            assert_eq!(missing, plain(&dump, &ranges, length, false));
            assert_eq!(surplus, plain(&dump, &ranges, length, true));
            found[0] += u32::from(missing.is_some());
            found[1] += u32::from(surplus.is_some());
        }
        assert!(found.iter().all(|found| (200..1800).contains(found)), "{found:?}");
    }
}
