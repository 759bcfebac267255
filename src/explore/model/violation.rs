//! What a run did that no run may do.

use std::fmt;

/// The invariants (see the list in `docs/exploration.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A successful backup holds the disk as it was when the job started.
    PointInTime,
    /// Data changed since a recording bitmap's last sync point has its bit set.
    NoLostWrite,
    /// After a job the bitmap is what on-success, always or never says.
    ModePromise,
    /// The newest backup over its chain is the disk as it was.
    RestoreChain,
    /// A snapshot reader gets the disk as it was, or an error.
    Fleecing,
    /// A guest reads what it wrote, and its requests fail only when a device does.
    Guest,
    /// Legal job transitions, `offset` never above `len`, groups end alike, nothing is left over.
    LifeCycle,
    /// Refcounts match references, nothing overlaps; after a power cut at most clusters leak.
    Image,
    /// No deadlock, no livelock, no crash.
    Progress,
    /// What the scenario itself expects.
    Expectation,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 10] = [
        Invariant::PointInTime,
        Invariant::NoLostWrite,
        Invariant::ModePromise,
        Invariant::RestoreChain,
        Invariant::Fleecing,
        Invariant::Guest,
        Invariant::LifeCycle,
        Invariant::Image,
        Invariant::Progress,
        Invariant::Expectation,
    ];

    /// Its name in reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Invariant::PointInTime => "point-in-time",
            Invariant::NoLostWrite => "no-lost-write",
            Invariant::ModePromise => "mode-promise",
            Invariant::RestoreChain => "restore-chain",
            Invariant::Fleecing => "fleecing",
            Invariant::Guest => "guest",
            Invariant::LifeCycle => "life-cycle",
            Invariant::Image => "image",
            Invariant::Progress => "progress",
            Invariant::Expectation => "expectation",
        }
    }

    /// The invariant of that name.
    pub fn from_name(name: &str) -> Option<Invariant> {
        Invariant::ALL.into_iter().find(|invariant| invariant.name() == name)
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// The job, bitmap or disk that it is about; shrinking keeps to it.
    pub subject: String,
    /// All of it in words, clusters named.
    pub text: String,
}

impl Violation {
    /// A violation.
    pub fn new(invariant: Invariant, subject: &str, text: String) -> Violation {
        Violation { invariant, subject: subject.into(), text }
    }

    /// Whether it is that a run goes on for ever.
    pub fn is_livelock(&self) -> bool {
        self.invariant == Invariant::Progress && self.text.contains("livelock?")
    }

    /// Whether two violations are the same one for a shrinker.
    pub fn is_like(&self, other: &Violation) -> bool {
        self.invariant == other.invariant && self.subject == other.subject
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.text)
    }
}
