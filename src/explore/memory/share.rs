//! A memory that several threads fill, whether it is worth its cost, and each thread's part in it: what it has told of
//! it, and what it calls things.
//!
//! A thread's part may not be needed by another one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};

use super::super::model::{Mark, Seen};
use super::Memory;

/// Runs after which it is seen whether remembering is worth its cost, for the first time, and again after twice, four
/// times as many and so on.
const TRIAL: u64 = 64;

/// How often a lock is tried before a thread lets itself be put to sleep.
const PATIENCE: u32 = 1000;

/// A memory for all threads of a search, and what their runs have come to with it.
#[derive(Clone)]
pub struct SharedMemory {
    memory: Arc<RwLock<Memory>>,
    course: Arc<Course>,
}

impl SharedMemory {
    /// Gives it to whoever asks.
    pub fn new(memory: Memory) -> SharedMemory {
        SharedMemory { memory: Arc::new(RwLock::new(memory)), course: Arc::default() }
    }

    /// A thread that panics has ended its search; what it had remembered until then is whole, step by step.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Memory> {
        match patiently(|| self.memory.try_read()) {
            Some(guard) => guard,
            None => self.memory.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        match patiently(|| self.memory.try_write()) {
            Some(guard) => guard,
            None => self.memory.write().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// A lock that is taken is free again after some microseconds: less than it takes to be put to sleep and woken.
fn patiently<G>(attempt: impl Fn() -> TryLockResult<G>) -> Option<G> {
    for _ in 0..PATIENCE {
        match attempt() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

/// See the module's text.
pub struct Share {
    pub(super) memory: SharedMemory,
    /// The memory's names of actors, as far as they were needed here.
    names: RefCell<Vec<Rc<str>>>,
    /// The count under way.
    count: Cell<u32>,
    /// For each step the count in which what was seen in it has been told last.
    told: RefCell<Vec<u32>>,
}

/// What the runs have come to. Threads that end a run at the same moment may count it a little wrong: no verdict depends
/// on it.
#[derive(Default)]
struct Course {
    useless: AtomicBool,
    runs: AtomicU64,
    /// Since the last decision, of those that were made: their steps, and those that were new.
    steps: AtomicU64,
    new: AtomicU64,
    /// The share of runs without a new step, of 65,536; the last hundred count most.
    known: AtomicU32,
}

impl Share {
    /// A part in a memory.
    pub fn new(memory: SharedMemory) -> Share {
        Share { memory, names: RefCell::default(), count: Cell::new(0), told: RefCell::default() }
    }

    /// A new count begins: what is seen in it for the first time is told again.
    pub fn begin_count(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// Whether remembering is still worth its cost.
    pub fn is_useful(&self) -> bool {
        !self.memory.course.useless.load(Relaxed)
    }

    /// Whether most runs have their end remembered by now.
    pub fn knows_most(&self) -> bool {
        self.memory.course.known.load(Relaxed) > 1 << 15
    }

    /// A run that has had `steps`, `new` of them, is over. Now and then it is decided whether to go on: where many steps
    /// of the runs that had to be made are new, others will seldom come to the same places either.
    pub(super) fn has_run(&self, steps: u64, new: u64) {
        let course = &*self.memory.course;
        let known = course.known.load(Relaxed);
        course.known.store(known - known / 64 + if new == 0 { 1024 } else { 0 }, Relaxed);
        if new > 0 {
            course.steps.fetch_add(steps, Relaxed);
            course.new.fetch_add(new, Relaxed);
        }
        let runs = course.runs.fetch_add(1, Relaxed) + 1;
        if runs >= TRIAL && runs.is_power_of_two() {
            let (steps, new) = (course.steps.swap(0, Relaxed), course.new.swap(0, Relaxed));
            // A new step costs several that are only made; at first more of them are new.
            let most = match runs / TRIAL {
                1 => steps * 5 / 8,
                2..8 => steps / 2,
                _ => steps / 3,
            };
            if new > most && !self.memory.read().checks {
                course.useless.store(true, Relaxed);
            }
        }
    }

    /// What was seen in these steps and has not been told in this count.
    pub(super) fn tell(&self, memory: &Memory, steps: &[u32], mut to: impl FnMut(&Seen, &Mark)) {
        let mut told = self.told.borrow_mut();
        if told.len() < memory.steps.len() {
            told.resize(memory.steps.len(), 0);
        }
        for step in steps {
            if std::mem::replace(&mut told[*step as usize], self.count.get()) != self.count.get() {
                let (seen, mark) = memory.seen_in(*step);
                to(seen, mark);
            }
        }
    }

    /// This thread's copies of the memory's names.
    pub(super) fn names(&self, memory: &Memory) -> std::cell::Ref<'_, [Rc<str>]> {
        let has = self.names.borrow().len();
        if has < memory.names.len() {
            self.names.borrow_mut().extend(memory.names[has..].iter().map(|name| Rc::from(&**name)));
        }
        std::cell::Ref::map(self.names.borrow(), |names| &**names)
    }
}
