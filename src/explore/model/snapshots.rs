//! What snapshots of disks show their readers.
//!
//! A snapshot is the disk as it was when its filter came. A reader that gets what was written while it read is told apart
//! from one that gets anything else. Nothing here knows how a filter keeps the snapshot.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::sim::Runs;

use super::disks::{Disks, Image, first_difference};
use super::given_up::GivenUp;
use super::ranges::Ranges;
use super::violation::{Breach, Violation};

struct Snapshot {
    filter: Rc<str>,
    source: Rc<str>,
    image: Image,
}

/// All snapshots; see the module's text.
#[derive(Default)]
pub struct Snapshots {
    all: Vec<Snapshot>,
    /// Counts what happens.
    now: u64,
    /// When a guest's last change of each byte of a disk was answered.
    written: BTreeMap<Rc<str>, Ranges<u64>>,
}

impl Snapshots {
    /// From now on `filter` keeps `source` as `image`.
    pub fn open(&mut self, filter: &Rc<str>, source: &Rc<str>, image: Image) {
        self.all.retain(|snapshot| snapshot.filter != *filter);
        self.all.push(Snapshot { filter: filter.clone(), source: source.clone(), image });
    }

    /// What the snapshot of a filter shows, if that keeps one.
    pub fn image(&self, filter: &str) -> Option<&Image> {
        self.all.iter().find(|snapshot| *snapshot.filter == *filter).map(|snapshot| &snapshot.image)
    }

    /// A moment later than all before.
    pub fn moment(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A guest's change of `start..end` of a disk is answered.
    pub fn write(&mut self, disk: &Rc<str>, (start, end): (u64, u64)) {
        if self.all.iter().any(|snapshot| snapshot.source == *disk) {
            let now = self.moment();
            self.written.entry(disk.clone()).or_insert_with(|| Ranges::all(0)).set(start, end - start, now);
        }
    }

    /// Judges what a reader got at `offset`, whose read began at the moment `begun`; `disks` knows what is under way.
    pub fn judge(
        &self,
        filter: &str,
        begun: u64,
        (offset, content): (u64, &Runs),
        given_up: &GivenUp,
        disks: &Disks,
    ) -> Option<Violation> {
        let Snapshot { source, image, .. } = self.all.iter().find(|snapshot| *snapshot.filter == *filter)?;
        let blurred = (!given_up.is_quiet()).then(|| {
            let mut image = image.clone();
            given_up.blur(&mut image);
            image
        });
        let difference = first_difference(blurred.as_ref().unwrap_or(image), offset, content)?;
        let at = difference.at;
        let was_written = self.written.get(source).is_some_and(|written| written.at(at) > begun);
        let is_written = disks.changing(source).any(|request| (request.offset..request.end).contains(&at));
        let (breach, when) = match was_written || is_written {
            true => (Breach::SnapshotOvertaken, ", written while it read"),
            false => (Breach::SnapshotDiffers, ""),
        };
        let text = format!("a reader of the snapshot of disk {source} got {difference}{when}");
        Some(Violation::new(breach, source, text))
    }

    /// The machine has ended, and all snapshots with it.
    pub fn clear(&mut self) {
        self.all.clear();
        self.written.clear();
    }
}
