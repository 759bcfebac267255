//! Work done by a few threads, its results taken in order.
//!
//! Must never let the number of threads show in what comes out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

/// Does `work` for 0 to `count` with `jobs` threads and gives the results to `take` in that order, until
/// it answers false.
pub(super) fn in_order<T: Send>(
    count: u64,
    jobs: usize,
    work: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(T) -> bool,
) {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let sender = sender.clone();
            let (next, stop, work) = (&next, &stop, &work);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || sender.send((index, work(index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut wanted = 0;
        for (index, result) in results {
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(&wanted) {
                wanted += 1;
                if !stop.load(Ordering::Relaxed) && !take(result) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_come_in_order() {
        let mut got = Vec::new();
        let work = |index: u64| {
            std::thread::sleep(Duration::from_millis(if index.is_multiple_of(3) { 5 } else { 0 }));
            index
        };
        in_order(20, 3, work, |index| {
            got.push(index);
            index < 9
        });
        assert_eq!(got, (0..10).collect::<Vec<u64>>());
    }
}
