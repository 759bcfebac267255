//! Several pieces of work at a time, their results in order.
//!
//! Each piece stays on one thread from beginning to end. Must never let the number of threads be seen in
//! what comes out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Does `work` for each of `items` on up to `jobs` threads, and shows each result to `take` in the order of
/// the items. Ends early with the first error of `take`.
pub fn in_order<I, R, E>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> R + Sync,
    mut take: impl FnMut(&I, R) -> Result<(), E>,
) -> Result<(), E>
where
    I: Sync,
    R: Send,
{
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    // Nobody listens any more once taking has failed.
                    if sender.send((index, work(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let mut taken = 0;
        for (index, result) in receiver {
            early[index] = Some(result);
            while let Some(result) = early.get_mut(taken).and_then(Option::take) {
                take(&items[taken], result)?;
                taken += 1;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        let items: Vec<u64> = (0..50).collect();
        for jobs in [1, 2, 7, 100] {
            let mut seen = Vec::new();
            let slow_first = |n: &u64| {
                std::thread::sleep(std::time::Duration::from_micros(50 - n));
                n * n
            };
            let done: Result<(), ()> = in_order(&items, jobs, slow_first, |item, result| {
                seen.push((*item, result));
                Ok(())
            });
            assert_eq!(done, Ok(()));
            assert_eq!(seen, items.iter().map(|n| (*n, n * n)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let items: Vec<u64> = (0..50).collect();
        let done = in_order(&items, 2, |n| *n, |_, n| if n == 3 { Err(n) } else { Ok(()) });
        assert_eq!(done, Err(3));
    }
}
