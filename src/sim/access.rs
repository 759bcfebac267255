//! What a step touches, written down while it runs.
//!
//! Two steps whose order cannot matter are *independent*; partial-order reduction needs to know which are. A
//! guess made before a step runs would have to be so coarse that nothing is independent, so the steps are
//! watched instead: every mutable thing of the model lives in a [`super::shared`] cell, which reports here,
//! and the kernel reports its queues and tasks itself. What is pending has a footprint too once it has run
//! from the same state in another run, which is all that sleep sets and source sets ask for.
//!
//! Nothing is recorded unless an exploration has asked for it; recording must never change a run.

use std::cell::{Cell, RefCell};

/// How a step uses a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It looks.
    Read,
    /// It looks at a count that it has waited for to be zero.
    Await,
    /// It changes the thing in a way that does not depend on others who do the same, nor they on it: adding
    /// to a counter that nobody looks at, setting bits.
    Add,
    /// The same, of a count that goes down.
    Sub,
    /// It changes it.
    Write,
}

impl Mode {
    fn commutes(self, other: Mode) -> bool {
        let reads = |mode| matches!(mode, Mode::Read | Mode::Await);
        reads(self) && reads(other) || self.counts() && other.counts()
    }

    fn counts(self) -> bool {
        matches!(self, Mode::Add | Mode::Sub)
    }
}

/// One thing that a step has used, or a range of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// Which thing.
    pub object: u64,
    /// Start of the range.
    pub begin: u64,
    /// Its end; the whole thing ends at `u64::MAX`.
    pub end: u64,
    /// How.
    pub mode: Mode,
}

/// Everything that one step has used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// Whether it may have used anything at all.
    pub everything: bool,
    /// Sorted, without duplicates.
    list: Vec<Access>,
}

impl Accesses {
    /// Of a step that depends on all others.
    pub fn everything() -> Accesses {
        Accesses { everything: true, list: Vec::new() }
    }

    /// Whether the order of the two steps may matter.
    pub fn conflict(&self, other: &Accesses) -> bool {
        self.everything || other.everything || self.common(other).is_some()
    }

    /// Whether the other step has waited for a count to be zero that this one has lowered: it can't come before.
    pub fn is_awaited_by(&self, other: &Accesses) -> bool {
        let awaits = |access: &&Access| access.mode == Mode::Await;
        other
            .list
            .iter()
            .filter(awaits)
            .any(|await_| self.list.iter().any(|access| access.object == await_.object && access.mode == Mode::Sub))
    }

    /// The first thing over which two steps conflict.
    pub fn common(&self, other: &Accesses) -> Option<Access> {
        self.pair(other, |a, b| !a.commutes(b))
    }

    /// Whether both change a count that one of them lowers: what waits for it to be zero may need both.
    pub fn count_together(&self, other: &Accesses) -> bool {
        let lowers = |a: Mode, b: Mode| a.counts() && b.counts() && (a == Mode::Sub || b == Mode::Sub);
        self.pair(other, lowers).is_some()
    }

    /// The first of these uses for which the other step has one of the same thing so that both are like this.
    fn pair(&self, other: &Accesses, are: impl Fn(Mode, Mode) -> bool) -> Option<Access> {
        let (mut left, mut right) = (self.list.as_slice(), other.list.as_slice());
        while let (Some(a), Some(b)) = (left.first(), right.first()) {
            if a.object < b.object {
                left = &left[1..];
            } else if b.object < a.object {
                right = &right[1..];
            } else {
                let of_object = |list: &[Access]| list.iter().take_while(|access| access.object == a.object).count();
                let (own, theirs) = (of_object(left), of_object(right));
                for a in &left[..own] {
                    let clash =
                        right[..theirs].iter().any(|b| are(a.mode, b.mode) && a.begin < b.end && b.begin < a.end);
                    if clash {
                        return Some(*a);
                    }
                }
                (left, right) = (&left[own..], &right[theirs..]);
            }
        }
        None
    }

    /// Whether the step has looked at the main context's bottom halves, and at the monitor's queue.
    pub fn uses_queues(&self) -> (bool, bool) {
        let uses = |queue| self.everything || self.list.iter().any(|access| access.object == queue);
        (uses(BOTTOM_HALVES), uses(MONITOR))
    }

    /// A number for the whole.
    pub fn digest(&self) -> u64 {
        self.list.iter().fold(u64::from(self.everything), |sum, access| {
            mix(mix(sum, access.object), mix(access.begin, access.end ^ access.mode as u64))
        })
    }

    /// What was used, sorted.
    pub fn list(&self) -> &[Access] {
        &self.list
    }
}

/// Stands for everything there is.
const EVERYTHING: u64 = 0;
/// The main context's bottom halves. The kernel's own things have small numbers, all others are drawn.
pub(super) const BOTTOM_HALVES: u64 = 1;
/// The monitor's queue.
pub(super) const MONITOR: u64 = 2;
/// The loop itself: its own events are in one order.
pub(super) const LOOP: u64 = 3;
/// The virtual clock.
pub(super) const CLOCK: u64 = 4;
/// Sets the numbers of things apart from those of events.
const THINGS: u64 = 1 << 62;

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    static EVENT: Cell<u64> = const { Cell::new(0) };
    static MADE: Cell<u64> = const { Cell::new(0) };
    static AWAITING: Cell<bool> = const { Cell::new(false) };
    static LOG: RefCell<Vec<Access>> = const { RefCell::new(Vec::new()) };
}

/// What a run that is made side by side with others takes along from one of its events to the next: whether it is
/// recorded, and how far the numbers of things have come. Nothing has been made at first.
#[derive(Default)]
pub struct Recorder {
    recording: bool,
    event: u64,
    made: u64,
    log: Vec<Access>,
}

impl Recorder {
    /// Takes the place of the thread's own, and gives it back at the next call.
    pub fn exchange(&mut self) {
        self.recording = RECORDING.replace(self.recording);
        self.event = EVENT.replace(self.event);
        self.made = MADE.replace(self.made);
        LOG.with_borrow_mut(|log| std::mem::swap(log, &mut self.log));
    }
}

/// Begins or ends recording. What was recorded and not taken is forgotten.
pub fn record(recording: bool) {
    RECORDING.set(recording);
    LOG.with_borrow_mut(Vec::clear);
}

/// The event of this name begins.
pub(super) fn begin_event(event: u64) {
    EVENT.set(event);
    MADE.set(0);
}

/// A number for a new thing. It is made of the event that makes it, and so is the same in all runs that differ in the
/// order of independent events only.
pub(super) fn new_object() -> u64 {
    let made = MADE.get() + 1;
    MADE.set(made);
    mix(EVENT.get() ^ THINGS, made)
}

/// Mixes two numbers into one that stands for both.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(23) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// The next condition that is looked at has been waited for.
pub(super) fn await_next(awaiting: bool) {
    AWAITING.set(awaiting);
}

/// Looks at a condition; what it finds to be zero has been waited for if [`await_next`] said so.
pub(super) fn look<T>(condition: impl FnOnce() -> T) -> T {
    let value = condition();
    AWAITING.set(false);
    value
}

/// How somebody looks at a count.
pub(super) fn look_mode(is_zero: bool) -> Mode {
    if is_zero && AWAITING.get() { Mode::Await } else { Mode::Read }
}

/// Notes the use of a thing.
#[inline]
pub(super) fn touch(object: u64, mode: Mode) {
    touch_range(object, 0, u64::MAX, mode);
}

/// Notes the use of a part of a thing.
#[inline]
pub(super) fn touch_range(object: u64, begin: u64, end: u64, mode: Mode) {
    if RECORDING.get() {
        LOG.with_borrow_mut(|log| log.push(Access { object, begin, end, mode }));
    }
}

/// Says that the step may have used anything.
pub(super) fn touch_everything() {
    touch(EVERYTHING, Mode::Write);
}

/// What was used since the last call.
pub(super) fn take() -> Accesses {
    LOG.with_borrow_mut(|log| {
        log.sort_unstable();
        log.dedup();
        let everything = log.first().is_some_and(|access| access.object == EVERYTHING);
        let accesses = Accesses { everything, list: log.clone() };
        log.clear();
        accesses
    })
}

/// Does something that is no part of the run: a witness that only looks.
pub fn unseen<T>(f: impl FnOnce() -> T) -> T {
    let recording = RECORDING.replace(false);
    let value = f();
    RECORDING.set(recording);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(u64, u64, u64, Mode)]) -> Accesses {
        let access = |&(object, begin, end, mode): &(u64, u64, u64, Mode)| Access { object, begin, end, mode };
        let mut list: Vec<Access> = list.iter().map(access).collect();
        list.sort_unstable();
        Accesses { everything: false, list }
    }

    #[test]
    fn steps_conflict_where_they_share_a_range_and_do_not_commute() {
        let write = of(&[(5, 0, 10, Mode::Write), (7, 0, 1, Mode::Read)]);
        assert!(write.conflict(&of(&[(5, 9, 20, Mode::Read)])));
        assert!(!write.conflict(&of(&[(5, 10, 20, Mode::Write)])), "ranges that only touch");
        assert!(!write.conflict(&of(&[(6, 0, 10, Mode::Write), (7, 0, 1, Mode::Read)])), "reads commute");
        assert!(write.conflict(&Accesses::everything()));
    }

    #[test]
    fn who_waits_for_zero_comes_after_who_counts_down() {
        let (down, zero) = (of(&[(5, 0, 10, Mode::Sub)]), of(&[(5, 0, 10, Mode::Await)]));
        assert!(down.conflict(&zero) && down.is_awaited_by(&zero));
        assert!(!of(&[(5, 0, 10, Mode::Add)]).is_awaited_by(&zero));
        assert!(!down.is_awaited_by(&of(&[(5, 0, 10, Mode::Read)])));
    }

    #[test]
    fn who_lowers_a_count_does_not_stand_apart_from_who_changes_it() {
        let of_mode = |mode| of(&[(5, 0, 10, mode)]);
        let (add, sub) = (of_mode(Mode::Add), of_mode(Mode::Sub));
        assert!(
            !sub.conflict(&sub) && sub.count_together(&sub) && sub.count_together(&add) && add.count_together(&sub)
        );
        assert!(!add.count_together(&add) && !sub.count_together(&of(&[(6, 0, 10, Mode::Sub)])));
        assert!(!sub.count_together(&of_mode(Mode::Read)) && !sub.count_together(&of_mode(Mode::Write)));
    }

    #[test]
    fn additions_commute_with_each_other_only() {
        let add = of(&[(5, 0, 10, Mode::Add)]);
        assert!(!add.conflict(&add));
        assert!(add.conflict(&of(&[(5, 0, 10, Mode::Read)])));
        assert!(add.conflict(&of(&[(5, 0, 10, Mode::Write)])));
    }
}
