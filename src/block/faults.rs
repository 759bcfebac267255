//! Faults beyond blkdebug's: a scenario's `fault:` step.
//!
//! A fault strikes requests on a node by kind and range, after a number of them, a number of times;
//! it may delay them too. blkdebug itself is a node and lives in `blkdebug.rs`.

use crate::sim::shared::RefCell;

use crate::errno::Errno;
use crate::sim::Nanos;

use super::timing::Operation;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Node-name.
    pub node: String,
    /// Which requests; none: all kinds.
    pub on: Option<Operation>,
    /// Byte range; none: the whole node.
    pub range: Option<(u64, u64)>,
    /// What they fail with; none: they are only delayed.
    pub error: Option<Errno>,
    /// This many matching requests pass first.
    pub after: u64,
    /// How many are struck; none: all that follow.
    pub times: Option<u64>,
    /// Extra time of a struck request, ns.
    pub latency: Nanos,
}

impl Fault {
    /// Whether a request is one of those that it counts.
    fn matches(&self, node: &str, operation: Operation, offset: u64, bytes: u64) -> bool {
        let hits_range = self.range.is_none_or(|(start, length)| {
            offset < start.saturating_add(length) && start < offset.saturating_add(bytes.max(1))
        });
        self.node == node && self.on.is_none_or(|on| on == operation) && hits_range
    }
}

/// The faults of a machine.
#[derive(Default)]
pub struct Faults {
    faults: RefCell<Vec<Fault>>,
}

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Strike {
    /// Extra time, ns.
    pub latency: Nanos,
    /// The error that it ends with.
    pub error: Option<Errno>,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.faults.borrow_mut().push(fault);
    }

    /// Whether there is none, so that the hot path need not look.
    pub fn is_empty(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    /// What a request meets; counts it against every fault that it matches.
    pub fn strike(&self, node: &str, operation: Operation, offset: u64, bytes: u64) -> Strike {
        let mut strike = Strike::default();
        let is_meant = |fault: &Fault| fault.matches(node, operation, offset, bytes);
        if !self.faults.borrow().iter().any(is_meant) {
            return strike;
        }
        for fault in self.faults.borrow_mut().iter_mut().filter(|fault| is_meant(fault)) {
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            match &mut fault.times {
                Some(0) => continue,
                Some(times) => *times -= 1,
                None => {}
            }
            strike.latency = strike.latency.saturating_add(fault.latency);
            strike.error = strike.error.or(fault.error);
        }
        strike
    }
}
