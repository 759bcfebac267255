//! Which events of a run come before which in every equivalent schedule.
//!
//! An event comes after the one that has made it, after everything before that, and after whatever it conflicts
//! with. This is the order that a class of equivalent schedules has in common. Nothing here may look at time.

use crate::sim::access::mix;

use super::exhaustive::Node;

/// A set of points of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Before(Vec<u64>);

impl Before {
    pub(super) fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Adds a point and all that come before it.
    fn add(&mut self, index: usize, path: &[Node]) {
        let words = (index / 64 + 1).max(path[index].before.0.len());
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
        for (own, theirs) in self.0.iter_mut().zip(&path[index].before.0) {
            *own |= theirs;
        }
    }

    /// What comes before the event at a point, and the points of the events that it races with: those that it
    /// follows for no other reason than a conflict, and that it has not waited for.
    pub(super) fn of(path: &[Node], index: usize) -> (Before, Vec<usize>) {
        let mut before = Before::default();
        if let Some(cause) = cause(path, index) {
            before.add(cause, path);
        }
        let mut races = Vec::new();
        for earlier in (0..index).rev() {
            let node = &path[earlier];
            if node.changed && !before.contains(earlier) && node.touched.conflict(&path[index].touched) {
                before.add(earlier, path);
                if !node.touched.is_awaited_by(&path[index].touched) {
                    races.push(open(path, earlier, path[index].taken));
                }
            }
        }
        (before, races)
    }
}

/// Where the event could have come instead of the one at `point`, if it was pending there: what can't come while the loop is
/// in a bare poll comes before that, or after.
fn open(path: &[Node], point: usize, event: u64) -> usize {
    if !path[point].closed || path[point].enabled.contains(&event) {
        return point;
    }
    (0..point).rev().find(|earlier| path[*earlier].changed && !path[*earlier].closed).unwrap_or(point)
}

/// The event without which the one at this point could not be: the one that has made it, or the loop's last.
fn cause(path: &[Node], index: usize) -> Option<usize> {
    let event = path[index].taken;
    if event == 0 {
        return (0..index).rev().find(|earlier| path[*earlier].taken == 0 && path[*earlier].changed);
    }
    // At a closed point it may be pending and not be among what could come.
    let is_there = |at: &usize| path[*at].enabled.contains(&event);
    let first = (0..=index).rev().take_while(|at| is_there(at) || path[*at].closed).filter(is_there).last()?;
    (0..first).rev().find(|earlier| path[*earlier].changed)
}

/// A number for the class of a run: equal if the runs have the same events, and those that conflict in the same
/// order.
pub(super) fn class_of(path: &[Node]) -> u64 {
    let mut loops = 0;
    let mut names: Vec<(u64, &Node)> = Vec::new();
    for node in path.iter().filter(|node| node.changed) {
        loops += u64::from(node.taken == 0);
        names.push((if node.taken == 0 { loops } else { node.taken }, node));
    }
    let mut class = 0u64;
    for (index, (name, node)) in names.iter().enumerate() {
        class = class.wrapping_add(mix(*name, 0));
        for (earlier, other) in &names[..index] {
            if other.touched.conflict(&node.touched) {
                class = class.wrapping_add(mix(*earlier, *name));
            }
        }
    }
    class
}
