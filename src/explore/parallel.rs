//! A search on several threads, each run on one.
//!
//! Threads take blocks of runs in ascending order; what they have seen is put together in that order too. So the
//! result is what one thread would have counted, however many there are, and what is done at any moment is all
//! runs below a certain number: that is what a checkpoint keeps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::run::Setup;
use super::search::{Plan, Seeded, Tally};
use crate::workers::spawn;

/// Makes the setup inside a thread, since a case can't be sent there.
pub type MakeSetup<'a> = &'a (dyn Fn() -> Setup + Sync);

/// Numbers of runs in a block: enough that threads seldom meet, few enough that little is lost or waited for.
const BLOCK: u64 = 32;

/// How often whoever looks on is told, while nothing else happens.
const LOOK: Duration = Duration::from_millis(200);

/// What is common to the threads.
struct Common<'a> {
    plan: &'a Plan,
    /// The next block that nobody has taken.
    block: AtomicU64,
    /// The lowest block with a failure; those behind it need not be made.
    failed: AtomicU64,
    go_on: &'a (dyn Fn() -> bool + Sync),
}

/// Goes on with the plan from `begun` on `threads` threads. `go_on` is asked between runs; `look` sees what is
/// done so far, several times a second.
pub fn search_on(
    threads: u64,
    make: MakeSetup<'_>,
    plan: &Plan,
    begun: Tally,
    go_on: &(dyn Fn() -> bool + Sync),
    look: &mut dyn FnMut(&Tally),
) -> Tally {
    if begun.failure.is_some() || begun.next >= plan.end {
        return begun;
    }
    let first = begun.next / BLOCK;
    let common = Common { plan, block: AtomicU64::new(first), failed: AtomicU64::new(u64::MAX), go_on };
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let (common, begun_at) = (&common, begun.next);
        for _ in 0..threads.max(1) {
            let sender = sender.clone();
            spawn(scope, move || work(common, make, begun_at, &sender));
        }
        // The channel ends when the last thread does.
        drop(sender);
        collect(first, begun, &receiver, look)
    })
}

/// One thread: block after block.
fn work(common: &Common<'_>, make: MakeSetup<'_>, begun_at: u64, sender: &Sender<(u64, Tally)>) {
    let setup = make();
    let seeded = Seeded::new(&setup, common.plan);
    loop {
        let block = common.block.fetch_add(1, Ordering::Relaxed);
        if block * BLOCK >= common.plan.end || block > common.failed.load(Ordering::Relaxed) || !(common.go_on)() {
            return;
        }
        let numbers = (block * BLOCK).max(begun_at)..(block + 1) * BLOCK;
        let tally = seeded.stretch(numbers, |_| (common.go_on)());
        if tally.failure.is_some() {
            common.failed.fetch_min(block, Ordering::Relaxed);
        }
        if sender.send((block, tally)).is_err() {
            return;
        }
    }
}

/// Puts blocks together in their order; stops at the first that has a failure or was broken off.
fn collect(first: u64, begun: Tally, receiver: &Receiver<(u64, Tally)>, look: &mut dyn FnMut(&Tally)) -> Tally {
    let mut all = Tally { complete: true, ..begun };
    let mut next = first;
    let mut early: BTreeMap<u64, Tally> = BTreeMap::new();
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok((block, tally)) => {
                early.insert(block, tally);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return all,
        }
        while let Some(tally) = early.remove(&next).filter(|_| all.complete) {
            all.append(tally);
            next += 1;
        }
        look(&all);
    }
}
