//! A thread's part in a memory that several threads fill: what it has told of it, what it calls things, and whether
//! remembering is worth its cost to it.
//!
//! Nothing here may be needed by another thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::super::model::{Mark, Seen};
use super::Memory;

/// Runs after which it is seen whether remembering is worth its cost, for the first time, and again after twice, four
/// times as many and so on.
const TRIAL: u64 = 64;

/// A memory for all threads of a search.
#[derive(Clone)]
pub struct SharedMemory(Arc<RwLock<Memory>>);

impl SharedMemory {
    /// Gives it to whoever asks.
    pub fn new(memory: Memory) -> SharedMemory {
        SharedMemory(Arc::new(RwLock::new(memory)))
    }

    /// A thread that panics has ended its search; what it had remembered until then is whole, step by step.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
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
    course: RefCell<Course>,
}

/// What this thread's runs have come to.
struct Course {
    useful: bool,
    runs: u64,
    /// Since the last decision, of those that were made: their steps, and those that were new.
    steps: u64,
    new: u64,
    /// The share of runs without a new step, of 65,536; the last hundred count most.
    known: u32,
}

impl Share {
    /// A part in a memory.
    pub fn new(memory: SharedMemory) -> Share {
        Share {
            memory,
            names: RefCell::default(),
            count: Cell::new(0),
            told: RefCell::default(),
            course: RefCell::new(Course { useful: true, runs: 0, steps: 0, new: 0, known: 0 }),
        }
    }

    /// A new count begins: what is seen in it for the first time is told again.
    pub fn begin_count(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// Whether remembering is still worth its cost.
    pub fn is_useful(&self) -> bool {
        self.course.borrow().useful
    }

    /// Whether most runs have their end remembered by now.
    pub fn knows_most(&self) -> bool {
        self.course.borrow().known > 1 << 15
    }

    /// A run that has had `steps`, `new` of them, is over. Now and then it is decided whether to go on: where many steps
    /// of the runs that had to be made are new, others will seldom come to the same places either.
    pub(super) fn has_run(&self, steps: u64, new: u64) {
        let course = &mut *self.course.borrow_mut();
        course.known = course.known - course.known / 64 + if new == 0 { 1024 } else { 0 };
        course.runs += 1;
        if new > 0 {
            course.steps += steps;
            course.new += new;
        }
        if course.runs >= TRIAL && course.runs.is_power_of_two() {
            // A new step costs several that are only made; at first more of them are new.
            let most = match course.runs / TRIAL {
                1 => course.steps * 5 / 8,
                2..8 => course.steps / 2,
                _ => course.steps / 3,
            };
            course.useful = self.memory.read().checks || course.new <= most;
            (course.steps, course.new) = (0, 0);
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
