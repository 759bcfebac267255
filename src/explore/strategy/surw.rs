//! Selectively uniform random walk: uniform over the interleavings of the events that matter.
//! Must never hold back an event that was not selected.

use std::rc::Rc;

use crate::sim::rng::Rng;
use crate::sim::{ChoicePoint, Footprint, Strategy};

use super::Learned;

/// The unit of [`Selection::Cluster`], bytes.
const CLUSTER: u64 = 65536;

/// Which events matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those on one 64 KiB cluster of any disk, another one in each run.
    AnyCluster,
    /// Those on this cluster, from 0.
    Cluster(u64),
    /// Those of jobs and their copying.
    Job,
}

impl Selection {
    /// What `--select` says: `job`, or `cluster:N`.
    pub fn from_name(name: &str) -> Option<Selection> {
        match name.split_once(':') {
            None if name == "job" => Some(Selection::Job),
            Some(("cluster", number)) => number.parse().ok().map(Selection::Cluster),
            _ => None,
        }
    }

    fn matches(self, actor: &str, offset: u64, bytes: u64) -> bool {
        match self {
            Selection::AnyCluster => false,
            Selection::Cluster(number) => offset / CLUSTER <= number && number * CLUSTER < offset + bytes,
            Selection::Job => actor.starts_with("job ") || matches!(actor, "block-copy" | "copy worker"),
        }
    }
}

/// Before each event that matters it is drawn whose that will be, by how many each task has left; the others' wait.
///
/// With exact counts every interleaving of the selected events is equally likely, however many others there are
/// between them (Zhao et al., "Selectively uniform concurrency testing", ASPLOS 2025). The counts are those of the run
/// in QEMU's own order.
pub struct Surw {
    rng: Rng,
    selection: Selection,
    left: Vec<(Rc<str>, u64)>,
    /// Whose event that matters comes next.
    intended: Option<Rc<str>>,
}

impl Surw {
    /// A walk with what `learned` has counted.
    pub fn new(mut rng: Rng, selection: Selection, learned: &Learned) -> Surw {
        let clusters = learned.ranges.iter().map(|(_, offset, bytes)| (offset + bytes).div_ceil(CLUSTER)).max();
        let selection = match selection {
            Selection::AnyCluster => Selection::Cluster(rng.below(clusters.unwrap_or(1).max(1))),
            chosen => chosen,
        };
        let mut left: Vec<(Rc<str>, u64)> = Vec::new();
        for (actor, offset, bytes) in &learned.ranges {
            if selection.matches(actor, *offset, *bytes) {
                match left.iter_mut().find(|(name, _)| name == actor) {
                    Some((_, count)) => *count += 1,
                    None => left.push((actor.clone(), 1)),
                }
            }
        }
        let mut walk = Surw { rng, selection, left, intended: None };
        walk.intend();
        walk
    }

    /// Draws whose event that matters comes next.
    fn intend(&mut self) {
        let all: u64 = self.left.iter().map(|(_, left)| left).sum();
        let mut pick = self.rng.below(all.max(1));
        self.intended = self.left.iter().find_map(|(name, left)| {
            let hit = pick < *left;
            pick = pick.saturating_sub(*left);
            hit.then(|| name.clone())
        });
    }

    fn is_selected(&self, actor: &str, footprint: &Footprint) -> bool {
        footprint.bytes > 0 && self.selection.matches(actor, footprint.offset, footprint.bytes)
    }
}

impl Strategy for Surw {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        let actors: Vec<_> = (0..point.alternatives.len()).map(|index| point.actor(index)).collect();
        let waits = |index: &usize| {
            let selected = self.is_selected(&actors[*index], &point.alternatives[*index].footprint);
            selected && self.intended.as_ref() != Some(&actors[*index])
        };
        let mut possible: Vec<usize> = (0..actors.len()).filter(|index| !waits(index)).collect();
        if possible.is_empty() {
            // The intended one is not there: QEMU's own order has counted events that this run does not have.
            possible.extend(0..actors.len());
        }
        let taken = possible[self.rng.below(possible.len() as u64) as usize];
        if self.is_selected(&actors[taken], &point.alternatives[taken].footprint) {
            if let Some((_, left)) = self.left.iter_mut().find(|(name, _)| *name == actors[taken]) {
                *left = left.saturating_sub(1);
            }
            self.intend();
        }
        taken
    }
}
