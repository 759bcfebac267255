//! A search on several threads, each run on one.
//!
//! Threads share nothing but a counter and a flag: thread `t` of `n` takes every n-th run of its share. What is
//! reported is the failing run with the lowest number, so the verdict does not depend on the number of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use super::run::Setup;
use super::search::{Plan, Tally, search};

/// Makes the setup inside a thread, since a case can't be sent there.
pub type MakeSetup<'a> = &'a (dyn Fn() -> Setup + Sync);

/// Runs the plan on `threads` threads; `go_on` is asked between runs with the number of runs so far.
pub fn search_on(threads: u64, make: MakeSetup<'_>, plan: &Plan, go_on: &(dyn Fn(u64) -> bool + Sync)) -> Tally {
    let runs = AtomicU64::new(0);
    // The lowest number of a failing run so far; runs behind it need not be made.
    let failed = AtomicU64::new(u64::MAX);
    let threads = threads.max(1);
    let share = |thread: u64| {
        let setup = make();
        let own = Plan { first: plan.first + thread * plan.stride, stride: plan.stride * threads, ..plan.clone() };
        let mut index = own.first;
        let tally = search(&setup, &own, |_| {
            let wanted = index <= failed.load(Ordering::Relaxed);
            index += own.stride;
            wanted && go_on(runs.fetch_add(1, Ordering::Relaxed))
        });
        if let Some(failure) = &tally.failure {
            failed.fetch_min(failure.index, Ordering::Relaxed);
        }
        tally
    };
    if threads == 1 {
        return share(0);
    }
    let share = &share;
    let tallies = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        started.into_iter().map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    let mut all = Tally { complete: true, ..Tally::default() };
    for tally in tallies {
        all.merge(tally);
    }
    all
}
