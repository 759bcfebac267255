//! Several pieces of work at a time, their results in order.
//!
//! Each piece stays on one thread from beginning to end, so that a run is as deterministic as on one thread.
//! Must never let the number of threads be seen in what comes out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};

/// The stack of a thread that makes runs, bytes. A request goes down a chain of images one frame a layer, and a graph may be
/// as deep as it has nodes (`block::MOST_NODES`); what is not used costs addresses only.
const STACK_BYTES: usize = 64 << 20;

/// Does `work` on a thread with a stack for the deepest graph; a panic in it goes on here.
///
/// # Panics
/// If the host gives no thread.
pub fn on_deep_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| spawn(scope, work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A thread of `scope` with a stack for the deepest graph.
///
/// # Panics
/// If the host gives no thread, as that of the standard library does.
pub fn spawn<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> R + Send + 'scope,
) -> ScopedJoinHandle<'scope, R> {
    let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
    builder.spawn_scoped(scope, work).expect("the host gives a thread")
}

/// How many pieces this machine does at once without one waiting for another.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for 0 to `count` on up to `jobs` threads and gives the results to `take` in that order. Ends early
/// with the first error of `take`.
pub fn in_order<R: Send, E>(
    count: u64,
    jobs: usize,
    work: impl Fn(u64) -> R + Sync,
    mut take: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let threads = usize::try_from(count).unwrap_or(usize::MAX).min(jobs).max(1);
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, stop, work) = (&next, &stop, &work);
            spawn(scope, move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more once taking has failed.
                    if index >= count || sender.send((index, work(index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut wanted = 0;
        for (index, result) in results {
            early.insert(index, result);
            while let Some(result) = early.remove(&wanted) {
                wanted += 1;
                take(result).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Every third piece takes longer than the others.
    fn slow(index: u64) -> u64 {
        std::thread::sleep(Duration::from_millis(if index.is_multiple_of(3) { 5 } else { 0 }));
        index
    }

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        for jobs in [0, 1, 3, 100] {
            let mut got = Vec::new();
            let all = in_order(20, jobs, slow, |index| {
                got.push(index);
                Ok::<(), ()>(())
            });
            assert_eq!((all, got), (Ok(()), (0..20).collect()));
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let mut got = Vec::new();
        let ended = in_order(1 << 40, 2, slow, |index| {
            got.push(index);
            if index < 9 { Ok(()) } else { Err("enough") }
        });
        assert_eq!((ended, got), (Err("enough"), (0..10).collect()));
    }

    #[test]
    fn no_work_is_no_trouble() {
        assert_eq!(in_order(0, 4, slow, |_| Err("nothing to take")), Ok(()));
    }
}
