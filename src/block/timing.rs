//! What device operations cost on the virtual clock.
//!
//! Costs are durations or ranges to draw from; without a scenario's `timing:` everything takes 0 ns,
//! which still yields. No draw happens where a range is a single value.

use std::collections::BTreeMap;

use crate::sim::Nanos;
use crate::sim::rng::{Rng, Stream};
use crate::sim::shared::RefCell;

/// A cost, ns: at least, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// At least.
    pub min: Nanos,
    /// At most.
    pub max: Nanos,
}

/// The costs of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Costs {
    /// Of a read.
    pub read: Cost,
    /// Of a write or zero write.
    pub write: Cost,
    /// Of a flush.
    pub flush: Cost,
    /// Of a discard.
    pub discard: Cost,
}

/// Which of a device's costs applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading.
    Read,
    /// Writing, also of zeros.
    Write,
    /// Flushing.
    Flush,
    /// Discarding.
    Discard,
}

/// Costs by node-name, with a default.
pub struct Timing {
    default: Costs,
    nodes: BTreeMap<String, Costs>,
    rng: RefCell<Rng>,
}

impl Timing {
    /// Costs by node-name; `default` for the others; ranges are drawn from `seed`.
    pub fn new(default: Costs, nodes: BTreeMap<String, Costs>, seed: u64) -> Timing {
        Timing { default, nodes, rng: RefCell::new(Rng::new(seed, Stream::Timing)) }
    }

    /// Everything takes 0 ns.
    pub fn instant() -> Timing {
        Timing::new(Costs::default(), BTreeMap::new(), 0)
    }

    /// What this operation costs on the node called `node`.
    pub fn cost(&self, node: &str, operation: Operation) -> Nanos {
        let costs = if self.nodes.is_empty() { &self.default } else { self.nodes.get(node).unwrap_or(&self.default) };
        let cost = match operation {
            Operation::Read => costs.read,
            Operation::Write => costs.write,
            Operation::Flush => costs.flush,
            Operation::Discard => costs.discard,
        };
        if cost.max <= cost.min { cost.min } else { self.rng.borrow_mut().between(cost.min, cost.max) }
    }
}
