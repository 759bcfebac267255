//! Guarding metadata: no write may hit a structure that it is not meant for.
//!
//! Before every write to the file the range is compared with all known metadata (QEMU's
//! `overlap-check=cached`). A hit, or nonsense in the tables, marks the image as corrupt: the
//! header's bit is set, the driver is detached from its node, and all later requests fail.
//! QEMU's source: `qcow2_check_metadata_overlap` and `qcow2_signal_corruption`.

use std::rc::Rc;

use crate::block::{Block, BoxFuture, Driver, Notice};
use crate::errno::{Errno, Res};

use super::Qcow2;
use super::header::{AUTOCLEAR_BITMAPS, INCOMPAT_CORRUPT};
use super::layout::{ENTRY_BYTES, L1E_OFFSET_MASK, REFT_OFFSET_MASK};

/// A kind of metadata that a write can hit (`QCow2MetadataOverlap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// The first cluster.
    Header,
    /// The active L1 table.
    ActiveL1,
    /// L2 tables of the active L1 table.
    ActiveL2,
    /// The refcount table.
    RefcountTable,
    /// Refcount blocks.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// L1 tables of snapshots.
    InactiveL1,
    /// The bitmap directory.
    BitmapDirectory,
}

impl Area {
    fn name(self) -> &'static str {
        match self {
            Area::Header => "qcow2_header",
            Area::ActiveL1 => "active L1 table",
            Area::ActiveL2 => "active L2 table",
            Area::RefcountTable => "refcount table",
            Area::RefcountBlock => "refcount block",
            Area::SnapshotTable => "snapshot table",
            Area::InactiveL1 => "inactive L1 table",
            Area::BitmapDirectory => "bitmap directory",
        }
    }
}

/// Where a range is and how long.
type Range = (u64, u64);

/// Where clusters of one kind lie at most: the quick look that spares most writes to a large image one at its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Host offset of the first of them.
    first: u64,
    /// Host offset of the last one.
    last: u64,
}

impl Span {
    /// The span of the clusters at these offsets; 0 is none.
    pub(super) fn of(offsets: impl Iterator<Item = u64>) -> Span {
        offsets.fold(Span { first: u64::MAX, last: 0 }, Span::with)
    }

    /// The span with one more cluster.
    pub(super) fn with(self, offset: u64) -> Span {
        if offset == 0 {
            return self;
        }
        Span { first: self.first.min(offset), last: self.last.max(offset) }
    }

    /// Whether one of them may hit a range.
    fn may_hit(self, range: Range, cluster: u64) -> bool {
        self.first <= self.last && overlaps(range, (self.first, (self.last - self.first).saturating_add(cluster)))
    }
}

fn overlaps((start, bytes): Range, (offset, size): Range) -> bool {
    start < offset.saturating_add(size) && offset < start.saturating_add(bytes)
}

impl Qcow2 {
    /// The first kind of metadata, other than `own`, that a write to the range would hit.
    fn overlapping(&self, own: Option<Area>, offset: u64, bytes: u64) -> Option<Area> {
        if bytes == 0 {
            return None;
        }
        let cluster = self.geo.cluster_size();
        let own = |area: Area| own == Some(area);
        if !own(Area::Header) && offset < cluster {
            return Some(Area::Header);
        }
        // Whole clusters are compared from here on.
        let start = self.geo.cluster_start(offset);
        let stop = offset.saturating_add(bytes).saturating_add(cluster - 1) & !(cluster - 1);
        let range = (start, stop - start);
        let hit = |at: u64, size: u64| size > 0 && overlaps(range, (at, size));
        let one_cluster = |entries: &[u64], mask: u64| {
            let first = start.saturating_sub(cluster - 1).max(1);
            let hits = |entry: u64| (entry & mask).wrapping_sub(first) < stop - first;
            // Groups, without a branch for each entry: every write to a large image looks at all of its tables.
            let (groups, rest) = entries.as_chunks::<16>();
            groups.iter().any(|group| group.iter().fold(false, |hit, entry| hit | hits(*entry)))
                || rest.iter().any(|entry| hits(*entry))
        };
        let l1 = self.l1.borrow();
        if !own(Area::ActiveL1) && hit(self.l1_offset.get(), l1.len() as u64 * ENTRY_BYTES) {
            return Some(Area::ActiveL1);
        }
        let may_hit = self.l2_span.get().may_hit(range, cluster);
        if !own(Area::ActiveL2) && may_hit && one_cluster(&l1, L1E_OFFSET_MASK) {
            return Some(Area::ActiveL2);
        }
        drop(l1);
        let reftable = self.reftable.borrow();
        if !own(Area::RefcountTable) && hit(reftable.offset, reftable.len * ENTRY_BYTES) {
            return Some(Area::RefcountTable);
        }
        if !own(Area::RefcountBlock) && one_cluster(&reftable.entries, REFT_OFFSET_MASK) {
            return Some(Area::RefcountBlock);
        }
        let snapshots = self.snapshots.borrow();
        if !own(Area::SnapshotTable) && hit(snapshots.offset, snapshots.bytes) {
            return Some(Area::SnapshotTable);
        }
        let l1_of = |s: &super::snapshot::Snapshot| (s.l1_table_offset, u64::from(s.l1_size) * ENTRY_BYTES);
        if !own(Area::InactiveL1) && snapshots.list.iter().map(l1_of).any(|(at, size)| hit(at, size)) {
            return Some(Area::InactiveL1);
        }
        let bitmaps = self.extras.borrow().bitmaps;
        let holds = self.header.borrow().autoclear & AUTOCLEAR_BITMAPS != 0;
        // A damaged header tells of bitmaps and has no directory: by QEMU's arithmetic one of no bytes is everywhere.
        let nowhere = bitmaps.directory_size == 0;
        if !own(Area::BitmapDirectory) && holds && (nowhere || hit(bitmaps.directory_offset, bitmaps.directory_size)) {
            return Some(Area::BitmapDirectory);
        }
        None
    }

    /// EIO, and the image marked as corrupt, if a write to the range would hit metadata other than
    /// `own`.
    #[inline]
    pub(super) async fn check_overlap(&self, block: &Rc<Block>, own: Option<Area>, offset: u64, bytes: u64) -> Res<()> {
        match self.overlapping(own, offset, bytes) {
            None => Ok(()),
            Some(area) => self.prevented(block, area, offset, bytes).await,
        }
    }

    fn prevented<'a>(&'a self, block: &'a Rc<Block>, area: Area, offset: u64, bytes: u64) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            let message = format!("Preventing invalid write on metadata (overlaps with {})", area.name());
            self.signal_corruption(block, true, Some((offset, bytes)), message).await;
            Err(Errno::EIO)
        })
    }

    /// Tells the world that the image is corrupt; a fatal finding on a writable node also sets the
    /// header's corrupt bit and detaches the driver.
    pub(super) fn signal_corruption<'a>(
        &'a self,
        block: &'a Rc<Block>,
        fatal: bool,
        range: Option<(u64, u64)>,
        message: String,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let fatal = fatal && !self.read_only.get();
            let marked = self.header.borrow().incompatible & INCOMPAT_CORRUPT != 0;
            if self.signaled_corruption.get() && (!fatal || marked) {
                return;
            }
            let line = if fatal {
                format!("qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed")
            } else {
                format!("qcow2: Image is corrupt: {message}; further non-fatal corruption events will be suppressed")
            };
            block.report_stderr(line);
            let node = block.node(self.node);
            block.notices.borrow_mut().push(Notice::ImageCorrupted { node: node.name.clone(), message, range, fatal });
            if fatal {
                self.header.borrow_mut().incompatible |= INCOMPAT_CORRUPT;
                // The image is beyond saving if even this fails; the requests that follow fail anyway.
                let _ = self.update_header(block).await;
                self.ejected.set(true);
                node.ejected.set(true);
                *node.driver.borrow_mut() = Driver::None;
            }
            self.signaled_corruption.set(true);
        })
    }
}
