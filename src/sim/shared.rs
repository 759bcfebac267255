//! Cells for the mutable state of the model, which report who uses them.
//!
//! They are the standard library's cells with the same methods; each use is told to [`super::access`], which
//! notes it when an exploration has asked. Whatever two tasks can both reach must live in one of these, or the
//! reduction of the exhaustive search would be unsound; `tests/tidy.rs` refuses the standard cells in the
//! layers above. A cell holds no lock and never yields.

use std::cell::{self, RefMut};

use super::access::{Mode, look_mode, new_object, touch, touch_range};

pub use std::cell::Ref;

/// For what is only told and decides nothing, such as a transcript: a cell that does not report.
pub type Unwatched<T> = cell::RefCell<T>;

/// A [`std::cell::Cell`] that reports.
pub struct Cell<T> {
    object: u64,
    inner: cell::Cell<T>,
}

impl<T> Cell<T> {
    /// A cell with this value.
    pub fn new(value: T) -> Cell<T> {
        Cell { object: new_object(), inner: cell::Cell::new(value) }
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: T) {
        touch(self.object, Mode::Write);
        self.inner.set(value);
    }

    /// Sets the value and returns the old one.
    pub fn replace(&self, value: T) -> T {
        touch(self.object, Mode::Write);
        self.inner.replace(value)
    }

    /// Takes the value and leaves the default.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.replace(T::default())
    }
}

impl<T: Copy> Cell<T> {
    /// The value, for a caller who says by other means what the use of it depends on.
    #[inline]
    pub fn peek(&self) -> T {
        self.inner.get()
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        touch(self.object, Mode::Read);
        self.inner.get()
    }
}

impl<T: Default> Default for Cell<T> {
    fn default() -> Cell<T> {
        Cell::new(T::default())
    }
}

impl<T: Copy> Clone for Cell<T> {
    fn clone(&self) -> Cell<T> {
        Cell::new(self.get())
    }
}

impl<T: Copy + std::fmt::Debug> std::fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// A [`std::cell::RefCell`] that reports.
pub struct RefCell<T> {
    object: u64,
    inner: cell::RefCell<T>,
}

impl<T> RefCell<T> {
    /// A cell with this value.
    pub fn new(value: T) -> RefCell<T> {
        RefCell { object: new_object(), inner: cell::RefCell::new(value) }
    }

    /// Looks at the value.
    #[inline]
    pub fn borrow(&self) -> Ref<'_, T> {
        touch(self.object, Mode::Read);
        self.inner.borrow()
    }

    /// Changes the value.
    #[inline]
    pub fn borrow_mut(&self) -> RefMut<'_, T> {
        touch(self.object, Mode::Write);
        self.inner.borrow_mut()
    }

    /// For a caller that says itself, by [`RefCell::note`], which part of the value it looks at.
    #[inline]
    pub fn borrow_part(&self) -> Ref<'_, T> {
        self.inner.borrow()
    }

    /// For a caller that says itself, by [`RefCell::note`], which part of the value it changes, and how.
    #[inline]
    pub fn borrow_part_mut(&self) -> RefMut<'_, T> {
        self.inner.borrow_mut()
    }

    /// Says that `begin..end` of the value is used so.
    #[inline]
    pub fn note(&self, begin: u64, end: u64, mode: Mode) {
        touch_range(self.object, begin, end, mode);
    }

    /// Says that the order of the value's parts is used so, of which [`RefCell::note`] says nothing: which of them came
    /// last matters only to who looks at several.
    #[inline]
    pub fn note_order(&self, mode: Mode) {
        self.note(u64::MAX - 1, u64::MAX, mode);
    }

    /// Sets the value and returns the old one.
    pub fn replace(&self, value: T) -> T {
        touch(self.object, Mode::Write);
        self.inner.replace(value)
    }

    /// Takes the value and leaves the default.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.replace(T::default())
    }

    /// The value, of a cell that nobody else has.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: Default> Default for RefCell<T> {
    fn default() -> RefCell<T> {
        RefCell::new(T::default())
    }
}

impl<T: Clone> Clone for RefCell<T> {
    fn clone(&self) -> RefCell<T> {
        RefCell::new(self.borrow().clone())
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for RefCell<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// A count of things under way. Counting up and down commutes; only who looks at the count depends on the order.
pub struct Counter<T> {
    object: u64,
    inner: cell::Cell<T>,
}

impl<T: Copy + Default + PartialEq + std::ops::Add<Output = T> + std::ops::Sub<Output = T>> Counter<T> {
    /// The count.
    pub fn get(&self) -> T {
        let count = self.inner.get();
        touch(self.object, look_mode(count == T::default()));
        count
    }

    /// The count, for somebody who waits for it to be zero and is only woken then.
    pub fn awaited(&self) -> T {
        let count = self.inner.get();
        touch(self.object, if count == T::default() { Mode::Await } else { Mode::Read });
        count
    }

    /// So many more.
    #[inline]
    pub fn add(&self, more: T) {
        touch(self.object, Mode::Add);
        self.inner.set(self.inner.get() + more);
    }

    /// So many more; returns the count before, which must only tell things apart.
    pub fn ticket(&self, more: T) -> T {
        let before = self.inner.get();
        self.add(more);
        before
    }

    /// Sets the count to what is known from elsewhere, as everybody does who changes what it is known from.
    pub fn refresh(&self, value: T) {
        touch(self.object, Mode::Add);
        self.inner.set(value);
    }

    /// So many fewer; tells whether it was the last. What follows must be the same whoever is the last.
    pub fn sub_to_zero(&self, fewer: T) -> bool {
        self.sub(fewer);
        self.inner.get() == T::default()
    }

    /// So many fewer.
    #[inline]
    pub fn sub(&self, fewer: T) {
        touch(self.object, Mode::Sub);
        self.inner.set(self.inner.get() - fewer);
    }
}

impl<T: Copy + std::fmt::Debug> std::fmt::Debug for Counter<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: Copy> Clone for Counter<T> {
    fn clone(&self) -> Counter<T> {
        touch(self.object, Mode::Read);
        Counter { object: new_object(), inner: self.inner.clone() }
    }
}

impl<T: Default> Default for Counter<T> {
    fn default() -> Counter<T> {
        Counter { object: new_object(), inner: cell::Cell::default() }
    }
}
