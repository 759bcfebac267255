//! What snapshots of disks show their readers.
//!
//! A snapshot is the disk as it was when its filter came. A reader that gets what was written while it read, and one that
//! gets what the disk holds now because its read begins where that has changed and ends behind, are told apart
//! from one that gets anything else. Nothing else here knows how a filter keeps the snapshot.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::sim::Runs;

use super::disks::{Difference, Disks, Image, differences};
use super::given_up::GivenUp;
use super::ranges::Ranges;
use super::violation::{Breach, Violation};

struct Snapshot {
    filter: Rc<str>,
    source: Rc<str>,
    image: Image,
    /// When the first change of the disk in the cluster of each byte was answered; the end of time where none was.
    kept: Ranges<u64>,
}

/// A filter keeps clusters that are at least as long, so that no piece of one which a guest has changed is left.
const CLUSTER: u64 = 65536;

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
        self.all.push(Snapshot { filter: filter.clone(), source: source.clone(), image, kept: Ranges::all(u64::MAX) });
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

    /// A guest's change of `start..end` of a disk is answered; what was there before has certainly been kept, or not.
    pub fn write(&mut self, disk: &Rc<str>, (start, end): (u64, u64), is_kept: bool) {
        if self.all.iter().any(|snapshot| snapshot.source == *disk) {
            let now = self.moment();
            self.written.entry(disk.clone()).or_insert_with(|| Ranges::all(0)).set(start, end - start, now);
        }
        let now = self.now;
        for snapshot in self.all.iter_mut().filter(|snapshot| is_kept && snapshot.source == *disk) {
            let (start, end) = (start / CLUSTER * CLUSTER, end.next_multiple_of(CLUSTER));
            let fresh: Vec<_> = snapshot.kept.within(start, end).filter(|run| run.value == u64::MAX).collect();
            for run in fresh {
                snapshot.kept.set(run.start, run.end - run.start, now);
            }
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
        let Snapshot { source, image, kept, .. } = self.all.iter().find(|snapshot| *snapshot.filter == *filter)?;
        let blurred = (!given_up.is_quiet()).then(|| {
            let mut image = image.clone();
            given_up.blur(&mut image);
            image
        });
        let edge = edge(kept, begun, (offset, offset + content.iter().map(|(bytes, _)| bytes).sum::<u64>()));
        let overtaken = |found: &Difference| {
            let was_written = self.written.get(source).is_some_and(|written| written.at(found.at) > begun);
            was_written || disks.changing(source).any(|request| (request.offset..request.end).contains(&found.at))
        };
        // What the disk holds, or held when it was read.
        let holds = |found: &Difference| {
            let now = disks.image(source).at(found.at);
            now.is_none_or(|now| now == found.found) || overtaken(found)
        };
        let straddles = |found: &Difference| found.at < edge && holds(found);
        let image = blurred.as_ref().unwrap_or(image);
        let plain = differences(image, offset, content).find(|found| !straddles(found));
        let difference = plain.or_else(|| differences(image, offset, content).next())?;
        let overtaken = overtaken(&difference);
        let breach = match (plain.is_none(), overtaken) {
            (true, _) => Breach::SnapshotStraddled,
            (false, true) => Breach::SnapshotOvertaken,
            (false, false) => Breach::SnapshotDiffers,
        };
        let behind = if plain.is_none() { ", by a read that ends behind what was kept" } else { "" };
        let when = if overtaken { ", written while it read" } else { "" };
        let text = format!("a reader of the snapshot of disk {source} got {difference}{behind}{when}");
        Some(Violation::new(breach, source, text))
    }

    /// The machine has ended, and all snapshots with it.
    pub fn clear(&mut self) {
        self.all.clear();
        self.written.clear();
    }
}

/// Where the last cluster of `start..end` begins that no guest had certainly changed before the moment `begun`: what lies in
/// front of it a read may straddle.
fn edge(kept: &Ranges<u64>, begun: u64, (start, end): (u64, u64)) -> u64 {
    kept.within(start, end).filter(|run| run.value >= begun).last().map_or(0, |run| (run.end - 1) / CLUSTER * CLUSTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: u64 = 65536;

    /// What a reader of 256 KiB of zeros, whose first cluster a guest has overwritten with 0x11, is said to have got wrong.
    fn judged(offset: u64, content: &Runs) -> Option<Breach> {
        let (disk, filter) = (Rc::from("disk"), Rc::from("cbw"));
        let (mut disks, mut snapshots) = (Disks::default(), Snapshots::default());
        snapshots.open(&filter, &disk, disks.image(&disk));
        disks.begin((1, None), &disk, "write", (0, K64), (&vec![(K64, 0x11)], false));
        disks.end(1, 0, &Runs::new(), &mut Vec::new());
        snapshots.write(&disk, (0, K64), true);
        let begun = snapshots.moment();
        let found = snapshots.judge(&filter, begun, (offset, content), &GivenUp::new(), &disks);
        found.map(|violation| violation.breach)
    }

    #[test]
    fn only_what_the_disk_holds_in_front_of_what_was_not_kept_is_straddled() {
        let content = |first: u8, second: u8| vec![(K64, first), (K64, second)];
        assert_eq!(judged(0, &content(0, 0)), None);
        assert_eq!(judged(0, &content(0x11, 0)), Some(Breach::SnapshotStraddled));
        assert_eq!(judged(0, &content(0x12, 0)), Some(Breach::SnapshotDiffers), "the disk holds something else");
        assert_eq!(judged(0, &content(0x11, 0x11)), Some(Breach::SnapshotDiffers), "nothing behind it was kept");
        assert_eq!(judged(0, &vec![(K64, 0x11)]), Some(Breach::SnapshotDiffers), "the read ends with the cluster");
    }
}
