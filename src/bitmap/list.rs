//! The dirty bitmaps of one node: their order, who records, and the successor's three moves.
//!
//! Must never answer in any other order than QEMU's: a new bitmap goes to the head, and listings
//! run from there. An id that is not (or no longer) in the list is an error, never a panic.

use std::fmt;

use super::BitmapFault;
use super::dirty::DirtyBitmap;

/// Names a bitmap within the list of its node for as long as it lives; never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitmapId(pub u32);

impl fmt::Display for BitmapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The bitmaps of one node, newest first.
#[derive(Clone, Debug, Default)]
pub struct BitmapList {
    /// Oldest first, so that a new one is a push; every walk goes backwards.
    bitmaps: Vec<(BitmapId, DirtyBitmap)>,
    next_id: u32,
}

impl BitmapList {
    /// A node without bitmaps.
    pub fn new() -> BitmapList {
        BitmapList::default()
    }

    /// Puts a new clean enabled bitmap at the head. Whether the name is taken is for the caller to
    /// check; errors as [`DirtyBitmap::new`].
    pub fn create(&mut self, size: u64, granularity: u64, name: Option<&str>) -> Result<BitmapId, BitmapFault> {
        let bitmap = DirtyBitmap::new(size, granularity, name)?;
        Ok(self.push(bitmap))
    }

    fn push(&mut self, bitmap: DirtyBitmap) -> BitmapId {
        let id = BitmapId(self.next_id);
        self.next_id += 1;
        self.bitmaps.push((id, bitmap));
        id
    }

    /// The bitmap of that name. Anonymous ones have no name to be found by.
    pub fn find(&self, name: &str) -> Option<BitmapId> {
        self.iter().find(|(_, bitmap)| bitmap.name.as_deref() == Some(name)).map(|(id, _)| id)
    }

    /// The bitmap `id`.
    pub fn get(&self, id: BitmapId) -> Option<&DirtyBitmap> {
        self.iter().find(|(other, _)| *other == id).map(|(_, bitmap)| bitmap)
    }

    /// The bitmap `id`, for changing.
    pub fn get_mut(&mut self, id: BitmapId) -> Option<&mut DirtyBitmap> {
        self.bitmaps.iter_mut().find(|(other, _)| *other == id).map(|(_, bitmap)| bitmap)
    }

    /// All bitmaps from the head on, newest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (BitmapId, &DirtyBitmap)> {
        self.bitmaps.iter().rev().map(|(id, bitmap)| (*id, bitmap))
    }

    /// Whether the node has no bitmap at all.
    pub fn is_empty(&self) -> bool {
        self.bitmaps.is_empty()
    }

    /// Number of bitmaps, named and anonymous.
    pub fn len(&self) -> usize {
        self.bitmaps.len()
    }

    /// Takes a bitmap out of the list; `None` if it is not there.
    pub fn release(&mut self, id: BitmapId) -> Option<DirtyBitmap> {
        let at = self.bitmaps.iter().position(|(other, _)| *other == id)?;
        Some(self.bitmaps.remove(at).1)
    }

    /// What `recording` shows of a bitmap: it is enabled, or has a successor that is.
    pub fn recording(&self, id: BitmapId) -> bool {
        let Some(bitmap) = self.get(id) else {
            return false;
        };
        let successor = bitmap.successor.and_then(|id| self.get(id));
        bitmap.enabled() || successor.is_some_and(DirtyBitmap::enabled)
    }

    /// Whether a bitmap forbids writes to the node (they end in `EPERM`).
    pub fn any_readonly(&self) -> bool {
        self.iter().any(|(_, bitmap)| bitmap.readonly)
    }

    /// A write to the node touched [offset, offset + bytes): every enabled bitmap notes it.
    pub fn mark_dirty(&mut self, offset: u64, bytes: u64) {
        for (_, bitmap) in &mut self.bitmaps {
            if bitmap.enabled() {
                bitmap.set(offset, bytes);
            }
        }
    }

    /// Whether every bitmap can cover a node of that size, bytes. [`BitmapFault::TooBig`] if not.
    pub fn check_size(&self, size: u64) -> Result<(), BitmapFault> {
        match self.iter().all(|(_, bitmap)| bitmap.fits(size)) {
            true => Ok(()),
            false => Err(BitmapFault::TooBig),
        }
    }

    /// The node has a new size in bytes; all bitmaps follow, what is new is clean.
    ///
    /// [`BitmapFault::TooBig`] if one cannot; none has changed then.
    pub fn truncate(&mut self, size: u64) -> Result<(), BitmapFault> {
        self.check_size(size)?;
        self.bitmaps.iter_mut().try_for_each(|(_, bitmap)| bitmap.truncate(size))
    }

    /// Merges bitmap `source` of this list into `target`; for two nodes there is
    /// [`DirtyBitmap::merge_from`]. Merging a bitmap into itself changes nothing.
    pub fn merge(&mut self, target: BitmapId, source: BitmapId) -> Result<(), BitmapFault> {
        if target == source {
            return self.get(target).map(|_| ()).ok_or(BitmapFault::Unknown(target));
        }
        let from = self.get(source).ok_or(BitmapFault::Unknown(source))?.clone();
        self.get_mut(target).ok_or(BitmapFault::Unknown(target))?.merge_from(&from)
    }

    /// Lets an operation use `id`: from now on a new anonymous bitmap at the head records in its
    /// place, if it recorded, and `id` is busy. `size`: of the node, bytes; older bitmaps may not have followed it.
    ///
    /// [`BitmapFault::State`] if it is busy already, [`BitmapFault::Successor`] if it has one.
    pub fn create_successor(&mut self, id: BitmapId, size: u64) -> Result<BitmapId, BitmapFault> {
        let parent = self.get_mut(id).ok_or(BitmapFault::Unknown(id))?;
        parent.check(super::Allow { busy: false, readonly: true, inconsistent: true })?;
        if parent.successor.is_some() {
            return Err(BitmapFault::Successor);
        }
        let mut child = DirtyBitmap::new(size, parent.granularity(), None)?;
        child.disabled = parent.disabled;
        let child = self.push(child);
        // The push has moved nothing but may have moved memory: look the parent up again.
        let parent = self.get_mut(id).ok_or(BitmapFault::Unknown(id))?;
        parent.disabled = true;
        parent.busy = true;
        parent.successor = Some(child);
        Ok(child)
    }

    /// The operation has synchronised `id`: its successor takes its name and its place in the
    /// image, keeps its own position in the list and its own state, and `id` is gone.
    ///
    /// Returns what used to be the successor; [`BitmapFault::NoSuccessor`] if there is none.
    pub fn abdicate(&mut self, id: BitmapId) -> Result<BitmapId, BitmapFault> {
        let heir = self.successor_of(id)?;
        let parent = self.release(id).ok_or(BitmapFault::Unknown(id))?;
        let child = self.get_mut(heir).ok_or(BitmapFault::Unknown(heir))?;
        child.name = parent.name;
        child.persistent = parent.persistent;
        Ok(heir)
    }

    /// The operation has not synchronised `id`: what its successor recorded is added to it, it
    /// records again if the successor did, is no longer busy, and the successor is gone.
    ///
    /// [`BitmapFault::NoSuccessor`] if there is none; [`BitmapFault::Sizes`] cannot happen, since a
    /// resize reaches both.
    pub fn reclaim(&mut self, id: BitmapId) -> Result<(), BitmapFault> {
        let successor = self.successor_of(id)?;
        let child = self.get(successor).ok_or(BitmapFault::Unknown(successor))?.clone();
        let parent = self.get_mut(id).ok_or(BitmapFault::Unknown(id))?;
        parent.merge_from(&child)?;
        parent.disabled = child.disabled;
        parent.busy = false;
        parent.successor = None;
        self.release(successor);
        Ok(())
    }

    fn successor_of(&self, id: BitmapId) -> Result<BitmapId, BitmapFault> {
        let bitmap = self.get(id).ok_or(BitmapFault::Unknown(id))?;
        bitmap.successor.ok_or(BitmapFault::NoSuccessor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const G: u64 = 65536;

    fn list() -> (BitmapList, BitmapId, BitmapId) {
        let mut list = BitmapList::new();
        let a = list.create(SIZE, G, Some("a")).unwrap();
        let b = list.create(SIZE, G, Some("b")).unwrap();
        (list, a, b)
    }

    fn names(list: &BitmapList) -> Vec<String> {
        list.iter().map(|(_, b)| b.name.as_deref().unwrap_or("-").to_string()).collect()
    }

    #[test]
    fn the_newest_comes_first_and_ids_are_not_reused() {
        let (mut list, a, b) = list();
        assert_eq!(names(&list), ["b", "a"]);
        assert_eq!(list.find("a"), Some(a));
        assert_eq!(list.find("x"), None);
        assert!(list.release(b).is_some());
        assert!(list.release(b).is_none());
        assert_ne!(list.create(SIZE, G, Some("b")).unwrap(), b);
    }

    #[test]
    fn only_enabled_bitmaps_record() {
        let (mut list, a, b) = list();
        list.get_mut(a).unwrap().disabled = true;
        list.mark_dirty(G - 1, 2);
        assert_eq!(list.get(a).unwrap().count_bytes(), 0);
        assert_eq!(list.get(b).unwrap().count_bytes(), 2 * G);
        assert!(!list.recording(a) && list.recording(b));
    }

    #[test]
    fn a_successor_records_in_its_parents_place() {
        let (mut list, a, _) = list();
        list.mark_dirty(0, 1);
        let s = list.create_successor(a, SIZE).unwrap();
        assert_eq!(names(&list), ["-", "b", "a"]);
        list.mark_dirty(G, 1);
        let (parent, child) = (list.get(a).unwrap(), list.get(s).unwrap());
        assert_eq!((parent.count_bytes(), child.count_bytes()), (G, G));
        assert!(parent.busy && parent.disabled && !child.busy && child.enabled());
        assert!(list.recording(a) && list.recording(s));
        assert!(matches!(list.create_successor(a, SIZE), Err(BitmapFault::State { .. })));
    }

    #[test]
    fn abdication_keeps_the_successors_position() {
        let (mut list, a, _) = list();
        list.get_mut(a).unwrap().persistent = true;
        list.mark_dirty(0, 1);
        let s = list.create_successor(a, SIZE).unwrap();
        list.mark_dirty(G, 1);
        assert!(!list.get(s).unwrap().persistent);
        assert_eq!(list.abdicate(a), Ok(s));
        assert_eq!(names(&list), ["a", "b"]);
        let heir = list.get(s).unwrap();
        assert!(heir.persistent && !heir.busy && heir.enabled());
        assert_eq!(heir.next_dirty(0, SIZE), Some(G));
        assert_eq!(list.abdicate(s), Err(BitmapFault::NoSuccessor));
        assert_eq!(list.abdicate(a), Err(BitmapFault::Unknown(a)));
    }

    #[test]
    fn reclaiming_keeps_the_parents_position_and_both_contents() {
        let (mut list, a, _) = list();
        list.mark_dirty(0, 1);
        list.create_successor(a, SIZE).unwrap();
        list.mark_dirty(G, 1);
        list.reclaim(a).unwrap();
        assert_eq!(names(&list), ["b", "a"]);
        let parent = list.get(a).unwrap();
        assert!(!parent.busy && parent.enabled() && parent.successor().is_none());
        assert_eq!(parent.count_bytes(), 2 * G);
        assert_eq!(list.reclaim(a), Err(BitmapFault::NoSuccessor));
    }

    #[test]
    fn a_disabled_bitmap_stays_disabled_and_misses_writes() {
        for abdicates in [false, true] {
            let (mut list, a, _) = list();
            list.get_mut(a).unwrap().disabled = true;
            let s = list.create_successor(a, SIZE).unwrap();
            list.mark_dirty(0, 1);
            assert!(!list.recording(a) && !list.recording(s));
            let id = if abdicates { list.abdicate(a).unwrap() } else { a };
            if !abdicates {
                list.reclaim(a).unwrap();
            }
            let left = list.get(id).unwrap();
            assert!(left.disabled && left.count_bytes() == 0);
        }
    }

    #[test]
    fn a_resize_reaches_every_bitmap_or_none() {
        let (mut list, a, _) = list();
        let fine = list.create(SIZE, 512, None).unwrap();
        list.create_successor(a, SIZE).unwrap();
        assert_eq!(list.truncate(1 << 50), Err(BitmapFault::TooBig));
        assert_eq!(list.get(fine).unwrap().size(), SIZE);
        list.truncate(2 * SIZE).unwrap();
        assert!(list.iter().all(|(_, bitmap)| bitmap.size() == 2 * SIZE));
        list.reclaim(a).unwrap();
    }

    #[test]
    fn merging_into_itself_is_fine() {
        let (mut list, a, b) = list();
        list.get_mut(a).unwrap().set(0, 1);
        list.merge(a, a).unwrap();
        list.merge(b, a).unwrap();
        assert_eq!(list.get(b).unwrap().count_bytes(), G);
        assert_eq!(list.merge(b, BitmapId(99)), Err(BitmapFault::Unknown(BitmapId(99))));
    }
}
