//! How many references a check has found to each cluster of the file.
//!
//! A damaged image may name a place far away, and a repair makes the file that long: what is counted costs memory
//! by what is there, never by how long the file is. QEMU's source: the in-memory refcount table of
//! `block/qcow2-refcount.c`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::errno::{Errno, Res};

/// Clusters whose counts are kept together.
const GROUP: u64 = 512;
/// QEMU asks its host for an array, and a host refuses one that is too large; this one refuses more bytes.
const MOST_BYTES: u128 = 16 << 30;

/// References by cluster.
pub(super) struct References {
    clusters: u64,
    order: u32,
    groups: BTreeMap<u64, Box<[u32; GROUP as usize]>>,
}

impl References {
    /// No cluster is looked at yet; `order` says how wide QEMU's counts are, 2 to this power in bits.
    pub(super) fn new(order: u32) -> References {
        References { clusters: 0, order, groups: BTreeMap::new() }
    }

    /// Clusters that are looked at.
    pub(super) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Looks at so many clusters at least.
    ///
    /// # Errors
    ///
    /// `ENOMEM` where QEMU's host would not have the memory.
    pub(super) fn grow(&mut self, clusters: u64) -> Res<()> {
        if clusters > self.clusters {
            if (u128::from(clusters) << self.order) / 8 > MOST_BYTES {
                return Err(Errno::ENOMEM);
            }
            self.clusters = clusters;
        }
        Ok(())
    }

    /// References to one cluster; 0 outside of the file.
    pub(super) fn get(&self, cluster: u64) -> u32 {
        self.groups.get(&(cluster / GROUP)).map_or(0, |group| group[(cluster % GROUP) as usize])
    }

    /// Says how many references there are to one cluster, which is one of those looked at.
    pub(super) fn set(&mut self, cluster: u64, count: u32) {
        if count != 0 || self.groups.contains_key(&(cluster / GROUP)) {
            let group = self.groups.entry(cluster / GROUP).or_insert_with(|| Box::new([0; GROUP as usize]));
            group[(cluster % GROUP) as usize] = count;
        }
    }

    /// Says so of clusters in a row.
    pub(super) fn fill(&mut self, clusters: Range<u64>, count: u32) {
        clusters.for_each(|cluster| self.set(cluster, count));
    }

    /// Forgets all references, but not how many clusters there are.
    pub(super) fn clear(&mut self) {
        self.groups.clear();
    }

    /// The first cluster from `from` on with a reference.
    pub(super) fn next_used(&self, from: u64) -> Option<u64> {
        self.groups.range(from / GROUP..).find_map(|(group, counts)| {
            let first = group * GROUP;
            let skipped = from.saturating_sub(first) as usize;
            let used = counts[skipped..].iter().position(|count| *count != 0)?;
            Some(first + (skipped + used) as u64)
        })
    }

    /// Where, from `from` on, the first `count` clusters in a row without a reference begin.
    pub(super) fn first_free(&self, from: u64, count: u64) -> u64 {
        let mut first = from;
        while let Some(used) = self.next_used(first).filter(|used| *used < first + count) {
            first = used + 1;
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_far_away_costs_nothing_in_between() {
        let mut references = References::new(4);
        references.grow(1 << 32).unwrap();
        references.set((1 << 32) - 1, 3);
        references.fill(2..5, 1);
        assert_eq!((references.get((1 << 32) - 1), references.get(3), references.get(5)), (3, 1, 0));
        assert_eq!(references.next_used(0), Some(2));
        assert_eq!(references.next_used(5), Some((1 << 32) - 1));
        assert_eq!((references.first_free(0, 2), references.first_free(0, 3)), (0, 5));
        references.clear();
        assert_eq!((references.next_used(0), references.clusters()), (None, 1 << 32));
    }

    #[test]
    fn what_no_host_has_memory_for_is_refused() {
        let mut references = References::new(4);
        references.grow(1 << 32).unwrap();
        assert_eq!(references.grow(1 << 34).err(), Some(Errno::ENOMEM));
        assert_eq!(references.clusters(), 1 << 32);
    }
}
