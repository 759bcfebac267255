//! A request to a node, as the trace tells it.

use std::rc::Rc;

use crate::sim::Nanos;

/// A request to some node under way.
pub struct Request {
    /// Its number.
    pub id: u64,
    /// The node.
    pub node: Rc<str>,
    /// `read`, `write`, …
    pub operation: &'static str,
    /// First byte.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Who is behind it.
    pub owner: Option<Rc<str>>,
    /// Its node is a device, or plays one.
    pub device: bool,
    /// Reads that had failed when it began.
    pub failed_reads: u64,
    /// When it began, as snapshots count.
    pub begun: u64,
    /// The same in virtual time.
    pub since: Nanos,
    /// An overlay was being taken away from its users when it began.
    pub adrift: bool,
}

impl Request {
    /// Whether it leaves data behind.
    pub fn writes(&self) -> bool {
        matches!(self.operation, "write" | "write-zeroes")
    }

    /// Whether there are data behind it: what the host copies by itself, too.
    pub fn fills(&self) -> bool {
        self.writes() || self.operation == "copy-range"
    }

    /// Whether it is part of copying data from disk to disk.
    pub fn copies(&self) -> bool {
        self.operation == "read" || self.writes()
    }

    /// Whether the disk may be another one after it.
    pub fn changes(&self) -> bool {
        self.fills() || self.operation == "discard"
    }

    /// Whether a job is behind it.
    pub fn is_a_jobs(&self) -> bool {
        self.owner.as_deref().is_some_and(|owner| owner.starts_with("job "))
    }

    /// A flush of a node, for tests to make something of.
    #[cfg(test)]
    pub fn of(node: &str) -> Request {
        Request {
            id: 0,
            node: node.into(),
            operation: "flush",
            offset: 0,
            bytes: 0,
            owner: None,
            device: false,
            failed_reads: 0,
            begun: 0,
            since: 0,
            adrift: false,
        }
    }
}
