//! The metadata cache: which tables are in memory, which of them are dirty, which one makes room.
//!
//! Only the book-keeping; reading and writing tables is in `cache_io.rs`. Places and victims are
//! those of QEMU's `block/qcow2-cache.c`, since they decide in which order tables reach the file:
//! a lookup walks from a start that depends on the offset, and a miss takes the entry that was
//! released longest ago. Must only be used under the image's lock.

use std::collections::BTreeSet;

use super::place_index::PlaceIndex;
use super::release_order::ReleaseOrder;
use super::table::{SharedEntries, Table};
use crate::sim::shared::{Cell, RefCell};
use crate::store::Content;

/// Which tables a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheKind {
    /// L2 tables, or slices of them.
    L2,
    /// Refcount blocks.
    Refcount,
}

#[derive(Clone, Default)]
struct Entry<T> {
    /// Host offset; 0 for an empty entry.
    offset: u64,
    dirty: bool,
    refs: u32,
    table: T,
}

#[derive(Clone)]
struct State<T> {
    entries: Vec<Entry<T>>,
    /// For lookups that do not hit at once.
    index: PlaceIndex,
    /// Entries that hold a table which was ever released.
    released: ReleaseOrder,
    /// Entries that differ from the file.
    dirty: BTreeSet<usize>,
    empty: usize,
}

impl<T: Table> State<T> {
    fn empty(entries: usize) -> State<T> {
        State {
            entries: vec![Entry::default(); entries],
            index: PlaceIndex::new(entries),
            released: ReleaseOrder::new(entries),
            dirty: BTreeSet::new(),
            empty: entries,
        }
    }

    #[inline]
    fn mark_dirty(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.offset != 0 && !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.insert(index);
        }
    }
}

/// A cache of tables of one kind.
pub(super) struct Cache<T> {
    /// What it holds.
    pub(super) kind: CacheKind,
    entry_bytes: Cell<u64>,
    state: RefCell<State<T>>,
    shared: SharedEntries,
    /// The other cache must be durable before anything of this one is written.
    pub(super) depends: Cell<bool>,
    /// What was written to the file so far must be durable before anything of this one is written.
    pub(super) depends_on_flush: Cell<bool>,
}

/// Beyond so many steps of the walk a lookup asks the index.
const WALK_STEPS: usize = 4;

impl<T: Table> Cache<T> {
    /// An empty cache of `entries` tables.
    pub(super) fn new(kind: CacheKind, entries: usize, entry_bytes: u64) -> Cache<T> {
        let state = State::empty(entries);
        Cache {
            kind,
            entry_bytes: Cell::new(entry_bytes),
            state: RefCell::new(state),
            shared: SharedEntries::default(),
            depends: Cell::new(false),
            depends_on_flush: Cell::new(false),
        }
    }

    /// Bytes of one entry.
    #[inline]
    pub(super) fn entry_bytes(&self) -> u64 {
        self.entry_bytes.get()
    }

    /// Forgets all tables, which must be clean and unused, and takes another shape.
    pub(super) fn reshape(&self, entries: usize, entry_bytes: u64) {
        *self.state.borrow_mut() = State::empty(entries);
        self.entry_bytes.set(entry_bytes);
    }

    fn start(&self, offset: u64, entries: usize) -> usize {
        (self.number(offset).wrapping_mul(4) % entries as u64) as usize
    }

    /// Which table of the file is at `offset`.
    fn number(&self, offset: u64) -> u64 {
        offset / self.entry_bytes.get()
    }

    fn find(&self, state: &State<T>, offset: u64) -> Option<usize> {
        state.index.find(self.number(offset), |index| state.entries[index].offset == offset)
    }

    /// Takes a reference on the table at `offset`, if it is cached.
    #[inline]
    pub(super) fn lookup(&self, offset: u64) -> Option<TableRef<'_, T>> {
        let mut state = self.state.borrow_mut();
        let entries = state.entries.len();
        let start = self.start(offset, entries);
        let mut index = start;
        for _ in 0..WALK_STEPS.min(entries) {
            if state.entries[index].offset == offset {
                state.entries[index].refs += 1;
                return Some(TableRef { cache: self, index });
            }
            index = if index + 1 == entries { 0 } else { index + 1 };
        }
        let index = self.find(&state, offset)?;
        state.entries[index].refs += 1;
        Some(TableRef { cache: self, index })
    }

    /// The entry that makes room for a table at `offset`: the first empty one of the walk, else the
    /// one released longest ago. `None` if all are in use.
    pub(super) fn victim(&self, offset: u64) -> Option<usize> {
        let state = self.state.borrow();
        let entries = state.entries.len();
        if state.empty > 0 {
            let start = self.start(offset, entries);
            let walk = (start..entries).chain(0..start);
            if let Some(index) = walk.into_iter().find(|i| state.entries[*i].offset == 0 && state.entries[*i].refs == 0)
            {
                return Some(index);
            }
        }
        state.released.iter().find(|index| state.entries[*index].refs == 0)
    }

    /// Empties an entry without writing it.
    pub(super) fn forget(&self, index: usize) {
        let mut state = self.state.borrow_mut();
        let offset = std::mem::take(&mut state.entries[index].offset);
        if offset != 0 {
            state.index.remove(self.number(offset), index);
            state.empty += 1;
        }
        state.dirty.remove(&index);
        state.released.remove(index);
        let entry = &mut state.entries[index];
        (entry.dirty, entry.table) = (false, T::default());
    }

    /// Puts a table into an empty entry and takes a reference on it.
    pub(super) fn fill(&self, index: usize, offset: u64, table: T) -> TableRef<'_, T> {
        let mut state = self.state.borrow_mut();
        if offset != 0 {
            // Who is there holds nothing as far as `forget` goes, and would be in the index twice.
            state.index.insert(self.number(offset), index);
        }
        state.empty -= 1;
        let entry = &mut state.entries[index];
        (entry.offset, entry.table) = (offset, table);
        entry.refs += 1;
        TableRef { cache: self, index }
    }

    /// Drops the table at `offset` unwritten, if it is cached (its cluster was freed).
    pub(super) fn discard(&self, offset: u64) {
        let index = self.find(&self.state.borrow(), offset);
        if let Some(index) = index {
            self.forget(index);
        }
    }

    /// Offset and dirtiness of an entry; offset 0 if it is empty.
    pub(super) fn entry(&self, index: usize) -> (u64, bool) {
        let state = self.state.borrow();
        (state.entries[index].offset, state.entries[index].dirty)
    }

    /// The table in an entry as the file is to have it.
    pub(super) fn content(&self, index: usize) -> Content {
        let state = self.state.borrow();
        let entry = &state.entries[index];
        entry.table.content(entry.offset, self.entry_bytes(), &self.shared)
    }

    /// The first dirty entry at or after `from`, in index order.
    pub(super) fn next_dirty(&self, from: usize) -> Option<usize> {
        self.state.borrow().dirty.range(from..).next().copied()
    }

    /// The table in an entry has reached the file.
    pub(super) fn set_clean(&self, index: usize) {
        let mut state = self.state.borrow_mut();
        state.entries[index].dirty = false;
        state.dirty.remove(&index);
    }
}

/// A table in use: its entry cannot be taken for another table while this lives.
pub(super) struct TableRef<'a, T: Table> {
    cache: &'a Cache<T>,
    index: usize,
}

impl<T: Table> TableRef<'_, T> {
    /// Looks at the table.
    #[inline]
    pub(super) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.cache.state.borrow().entries[self.index].table)
    }

    /// Changes the table, which has to reach the file some time after.
    #[inline]
    pub(super) fn update<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut state = self.cache.state.borrow_mut();
        state.mark_dirty(self.index);
        f(&mut state.entries[self.index].table)
    }

    /// Runs `f`, which tells whether it has changed the table, and returns its other answer.
    #[inline]
    pub(super) fn update_if<R>(&self, f: impl FnOnce(&mut T) -> (bool, R)) -> R {
        let mut state = self.cache.state.borrow_mut();
        let (changed, answer) = f(&mut state.entries[self.index].table);
        if changed {
            state.mark_dirty(self.index);
        }
        answer
    }
}

impl<T: Table> Drop for TableRef<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let mut state = self.cache.state.borrow_mut();
        let state = &mut *state;
        let entry = &mut state.entries[self.index];
        entry.refs -= 1;
        if entry.refs == 0 && entry.offset != 0 {
            state.released.touch(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::l2_table::L2Table;
    use super::*;

    fn load(cache: &Cache<L2Table>, offset: u64) -> usize {
        if let Some(table) = cache.lookup(offset) {
            return table.index;
        }
        let index = cache.victim(offset).expect("nothing is in use");
        cache.forget(index);
        cache.fill(index, offset, L2Table::default()).index
    }

    #[test]
    fn places_follow_the_offset_and_victims_the_time_of_release() {
        let cache = Cache::new(CacheKind::L2, 4, 0x10000);
        // 4 entries: every walk starts at 0.
        assert_eq!([1, 2, 3, 4].map(|n| load(&cache, n << 16)), [0, 1, 2, 3]);
        assert_eq!(load(&cache, 1 << 16), 0);
        assert_eq!(load(&cache, 5 << 16), 1, "the table at 2 was released longest ago");
        assert!(cache.lookup(2 << 16).is_none());
        let held = cache.lookup(3 << 16).expect("cached");
        assert_eq!(load(&cache, 6 << 16), 3, "a table in use stays");
        drop(held);
        assert_eq!(load(&cache, 7 << 16), 0);
    }

    #[test]
    fn discarded_tables_make_room_first() {
        let cache = Cache::new(CacheKind::L2, 3, 0x10000);
        for n in 1..=3 {
            load(&cache, n << 16);
        }
        cache.lookup(2 << 16).expect("cached").update(|t| t.set(0, 1));
        assert_eq!(cache.next_dirty(0), Some(load(&cache, 2 << 16)));
        let place = load(&cache, 2 << 16);
        cache.discard(2 << 16);
        assert_eq!(cache.next_dirty(0), None);
        assert_eq!(load(&cache, 9 << 16), place);
    }
}
