//! A search on several threads, each run on one.
//!
//! Threads take blocks of runs in ascending order; what they have seen is put together in that order too. So the
//! result is what one thread would have counted, however many there are, and what is done at any moment is all
//! runs below a certain number: that is what a checkpoint keeps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::memory::SharedMemory;
use super::run::Setup;
use super::search::{Plan, Seeded, Tally};
use crate::workers::spawn;

/// Makes the setup inside a thread, since a case can't be sent there.
pub type MakeSetup<'a> = &'a (dyn Fn() -> Setup + Sync);

/// Numbers of runs in a block: enough that threads seldom meet, few enough that little is lost or waited for.
const BLOCK: u64 = 32;
/// The same where most runs are only remembered, which takes no time.
const LONG_BLOCK: u64 = 4096;

/// How often whoever looks on is told, while nothing else happens.
const LOOK: Duration = Duration::from_millis(200);

/// What is common to the threads.
struct Common<'a> {
    plan: &'a Plan,
    memory: &'a SharedMemory,
    /// The first run that nobody has taken.
    next: AtomicU64,
    /// The first run of the lowest block with a failure; those behind it need not be made.
    failed: AtomicU64,
    go_on: &'a (dyn Fn() -> bool + Sync),
}

/// Goes on with the plan from `begun` on `threads` threads, which fill the same memory. `go_on` is asked between runs; `look` sees what is
/// done so far, several times a second.
pub fn search_on(
    threads: u64,
    make: MakeSetup<'_>,
    plan: &Plan,
    memory: &SharedMemory,
    begun: Tally,
    go_on: &(dyn Fn() -> bool + Sync),
    look: &mut dyn FnMut(&Tally),
) -> Tally {
    if begun.failure.is_some() || begun.next >= plan.end {
        return begun;
    }
    let first = begun.next;
    let common = Common { plan, memory, next: AtomicU64::new(first), failed: AtomicU64::new(u64::MAX), go_on };
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let common = &common;
        for _ in 0..threads.max(1) {
            let sender = sender.clone();
            spawn(scope, move || work(common, make, &sender));
        }
        // The channel ends when the last thread does.
        drop(sender);
        collect(first, begun, &receiver, look)
    })
}

/// A block that was made: its first run, the one behind its last, and what was seen.
type Block = (u64, u64, Tally);

/// One thread: block after block.
fn work(common: &Common<'_>, make: MakeSetup<'_>, sender: &Sender<Block>) {
    let setup = make();
    let seeded = Seeded::sharing(&setup, common.plan, common.memory);
    loop {
        let length = if seeded.is_mostly_remembered() { LONG_BLOCK } else { BLOCK };
        let begin = common.next.fetch_add(length, Ordering::Relaxed);
        if begin >= common.plan.end || begin > common.failed.load(Ordering::Relaxed) || !(common.go_on)() {
            return;
        }
        let end = begin + length;
        let tally = seeded.stretch(begin..end, |_| (common.go_on)());
        if tally.failure.is_some() {
            common.failed.fetch_min(begin, Ordering::Relaxed);
        }
        if sender.send((begin, end, tally)).is_err() {
            return;
        }
    }
}

/// Puts blocks together in their order; stops at the first that has a failure or was broken off.
fn collect(first: u64, begun: Tally, receiver: &Receiver<Block>, look: &mut dyn FnMut(&Tally)) -> Tally {
    let mut all = Tally { complete: true, ..begun };
    let mut next = first;
    let mut early: BTreeMap<u64, (u64, Tally)> = BTreeMap::new();
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok((begin, end, tally)) => {
                early.insert(begin, (end, tally));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return all,
        }
        while let Some((end, tally)) = early.remove(&next).filter(|_| all.complete) {
            all.append(tally);
            next = end;
        }
        look(&all);
    }
}
