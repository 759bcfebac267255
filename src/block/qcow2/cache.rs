//! The metadata cache: which tables are in memory, which of them are dirty, which one makes room.
//!
//! Only the book-keeping; reading and writing tables is in `cache_io.rs`. Places and victims are
//! those of QEMU's `block/qcow2-cache.c`, since they decide in which order tables reach the file:
//! a lookup walks from a start that depends on the offset, and a miss takes the entry that was
//! released longest ago. Must only be used under the image's lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::table::Table;
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
    /// When the last user released it; 0 if it holds nothing.
    released: u64,
    /// It has a (possibly outdated) place in `State::oldest`.
    queued: bool,
    table: T,
}

#[derive(Clone)]
struct State<T> {
    entries: Vec<Entry<T>>,
    /// Offset to entry, for lookups that do not hit at once.
    index: BTreeMap<u64, usize>,
    /// Entries by the time of release; a time may be too old, never too new.
    oldest: BinaryHeap<Reverse<(u64, usize)>>,
    /// Entries that differ from the file.
    dirty: BTreeSet<usize>,
    empty: usize,
    clock: u64,
}

impl<T: Table> State<T> {
    fn empty(entries: usize) -> State<T> {
        State {
            entries: vec![Entry::default(); entries],
            index: BTreeMap::new(),
            oldest: BinaryHeap::new(),
            dirty: BTreeSet::new(),
            empty: entries,
            clock: 0,
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
    /// The last table that was written and whose entries were all the same: the entry, the bytes.
    uniform: RefCell<Option<(u64, Content)>>,
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
            uniform: RefCell::default(),
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
        self.uniform.take();
        self.entry_bytes.set(entry_bytes);
    }

    fn start(&self, offset: u64, entries: usize) -> usize {
        ((offset / self.entry_bytes.get()).wrapping_mul(4) % entries as u64) as usize
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
        let index = *state.index.get(&offset)?;
        state.entries[index].refs += 1;
        Some(TableRef { cache: self, index })
    }

    /// The entry that makes room for a table at `offset`: the first empty one of the walk, else the
    /// one released longest ago. `None` if all are in use.
    pub(super) fn victim(&self, offset: u64) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let entries = state.entries.len();
        if state.empty > 0 {
            let start = self.start(offset, entries);
            let walk = (start..entries).chain(0..start);
            if let Some(index) = walk.into_iter().find(|i| state.entries[*i].offset == 0 && state.entries[*i].refs == 0)
            {
                return Some(index);
            }
        }
        let mut busy = Vec::new();
        let mut found = None;
        while let Some(Reverse((released, index))) = state.oldest.pop() {
            let entry = &mut state.entries[index];
            if entry.offset == 0 {
                entry.queued = false;
            } else if entry.released > released {
                state.oldest.push(Reverse((entry.released, index)));
            } else {
                busy.push(Reverse((released, index)));
                if entry.refs == 0 {
                    found = Some(index);
                    break;
                }
            }
        }
        state.oldest.extend(busy);
        found
    }

    /// Empties an entry without writing it.
    pub(super) fn forget(&self, index: usize) {
        let mut state = self.state.borrow_mut();
        let offset = std::mem::take(&mut state.entries[index].offset);
        if offset != 0 {
            state.index.remove(&offset);
            state.empty += 1;
        }
        state.dirty.remove(&index);
        let entry = &mut state.entries[index];
        (entry.dirty, entry.released) = (false, 0);
        entry.table = T::default();
    }

    /// Puts a table into an empty entry and takes a reference on it.
    pub(super) fn fill(&self, index: usize, offset: u64, table: T) -> TableRef<'_, T> {
        let mut state = self.state.borrow_mut();
        state.index.insert(offset, index);
        state.empty -= 1;
        let entry = &mut state.entries[index];
        (entry.offset, entry.table) = (offset, table);
        entry.refs += 1;
        if !std::mem::replace(&mut entry.queued, true) {
            let released = entry.released;
            state.oldest.push(Reverse((released, index)));
        }
        TableRef { cache: self, index }
    }

    /// Drops the table at `offset` unwritten, if it is cached (its cluster was freed).
    pub(super) fn discard(&self, offset: u64) {
        let index = self.state.borrow().index.get(&offset).copied();
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
        let table = &state.entries[index].table;
        let Some(entry) = table.uniform(self.entry_bytes()) else { return table.to_content(self.entry_bytes()) };
        let mut last = self.uniform.borrow_mut();
        match &*last {
            Some((same, content)) if *same == entry => content.clone(),
            _ => last.insert((entry, table.to_content(self.entry_bytes()))).1.clone(),
        }
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
        if entry.refs == 0 {
            state.clock += 1;
            entry.released = if entry.offset == 0 { 0 } else { state.clock };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::L2Table;
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
