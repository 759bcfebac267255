//! What readers of snapshots have given up, by discarding it.
//!
//! Whoever reads there afterwards is refused; whoever reads while it is being given up gets anything. Nothing here
//! knows what a snapshot holds.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::disks::Image;
use super::ranges::Ranges;

/// A discard, and the reads of the same node that it may have overtaken.
struct Discard {
    node: Rc<str>,
    start: u64,
    end: u64,
    /// Its request, while that is under way.
    under_way: Option<u64>,
    reads: BTreeSet<u64>,
}

/// See the module's text.
pub struct GivenUp {
    ranges: Ranges<bool>,
    discards: Vec<Discard>,
}

impl Default for GivenUp {
    fn default() -> GivenUp {
        GivenUp::new()
    }
}

impl GivenUp {
    /// Nothing yet.
    pub fn new() -> GivenUp {
        GivenUp { ranges: Ranges::all(false), discards: Vec::new() }
    }

    /// A discard of `start..end` begins, while these reads of the same range are under way.
    pub fn discard(&mut self, id: u64, node: &Rc<str>, (start, end): (u64, u64), reads: BTreeSet<u64>) {
        self.ranges.set(start, end - start, true);
        self.discards.push(Discard { node: node.clone(), start, end, under_way: Some(id), reads });
    }

    /// A read of `start..end` begins.
    pub fn read(&mut self, id: u64, node: &str, (start, end): (u64, u64)) {
        let open = self.discards.iter_mut().filter(|discard| *discard.node == *node && discard.under_way.is_some());
        for discard in open.filter(|discard| discard.start < end && start < discard.end) {
            discard.reads.insert(id);
        }
    }

    /// A request has ended.
    pub fn ended(&mut self, id: u64) {
        for discard in &mut self.discards {
            discard.under_way = discard.under_way.filter(|own| *own != id);
            discard.reads.remove(&id);
        }
        self.discards.retain(|discard| discard.under_way.is_some() || !discard.reads.is_empty());
    }

    /// Whether anything of `start..end` has been given up.
    pub fn has(&self, start: u64, end: u64) -> bool {
        self.ranges.any(start, end, true)
    }

    /// Takes out of a snapshot what a read under way may get anything of.
    pub fn blur(&self, image: &mut Image) {
        for discard in &self.discards {
            image.set(discard.start, discard.end - discard.start, None);
        }
    }

    /// Whether no read races with a discard.
    pub fn is_quiet(&self) -> bool {
        self.discards.is_empty()
    }
}
