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

/// In which way an invariant was broken: what must have gone wrong, whomever it befell and wherever it was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// A target does not hold the point in time.
    TargetDiffers,
    /// A target lacks what its job copied when a snapshot was being taken back.
    TargetUndone,
    /// A target over its chain does not.
    ChainDiffers,
    /// A bitmap has lost a bit while no job had it.
    BitLost,
    /// A transaction that failed had switched a bitmap off, and a bit is missing.
    BitLostByUnswitching,
    /// It had cleared the bitmap.
    BitLostByUnclearing,
    /// It had merged into the bitmap.
    BitLostByUnmerging,
    /// A bit got lost on its way through an image.
    BitLostInImage,
    /// A job's bitmap lacks what a guest wrote meanwhile.
    BitLostByJob,
    /// A bitmap is not as long as its disk.
    WrongLength,
    /// A job's bitmap lacks what its mode keeps.
    BitForgotten,
    /// A job's bitmap has what its mode clears.
    BitKept,
    /// A job's bitmap lacks what a guest's request was to copy, which failed after the job had given the bitmap back.
    BitLostByLateFailure,
    /// A bitmap has what nobody has written.
    BitFromNowhere,
    /// A bitmap is gone.
    BitmapGone,
    /// A bitmap has come from nowhere.
    BitmapFromNowhere,
    /// A bitmap is of another kind than before.
    BitmapChanged,
    /// Bitmaps of unequal length were merged.
    MergedUnequal,
    /// A reader of a snapshot got other data.
    SnapshotDiffers,
    /// A reader of a snapshot got what was written while it read.
    SnapshotOvertaken,
    /// A reader of a snapshot got what the disk holds now, by a read that begins where that had changed and ends behind.
    SnapshotStraddled,
    /// A reader of a snapshot was refused.
    SnapshotRefused,
    /// A disk does not hold what its guest wrote.
    DataDiffers,
    /// A disk does not hold the zeros that a guest wrote while another wrote a piece of them.
    ZerosUndone,
    /// A guest read or wrote elsewhere when a snapshot was being taken back.
    SnapshotUndone,
    /// A guest's request failed, and no device had.
    ErrorFromNowhere,
    /// A request was under way in a drained section.
    NotDrained,
    /// A job went to a state that may not follow.
    Transition,
    /// A job's figures are not what it copied.
    WrongOffset,
    /// A job's events are out of order, or say something else than what happened.
    WrongEvent,
    /// A job copied when it was at rest.
    CopiesAtRest,
    /// A job gave up at its source what has not arrived at its target.
    GivenUpUncopied,
    /// A job went on after it was told to stop, or had failed.
    GoesOn,
    /// A job took more workers, larger chunks or a higher speed than it was given.
    LimitBroken,
    /// A job was finalized or dismissed unasked.
    Unasked,
    /// A job stays where it should not.
    WrongRest,
    /// A group did not end alike.
    GroupDiffers,
    /// Something of a job is left though it is gone.
    LeftBehind,
    /// An image refers to a cluster twice, or to one that counts as free.
    Corrupt,
    /// An image that was left by a kill refers to a cluster that counts as free, and a write to it had failed before of which
    /// nobody was told.
    CorruptUnnoticed,
    /// An image has lost clusters.
    Leak,
    /// A bitmap that was in use counts as consistent.
    StaleBelieved,
    /// A bitmap that was closed in order counts as inconsistent.
    NotBelieved,
    /// The machine crashed.
    Crash,
    /// QEMU ended by itself.
    Aborted,
    /// The run went on for ever, or nothing was left that could happen.
    Stuck,
    /// A job or a request did not end.
    Unended,
    /// The scenario went otherwise than it says.
    Unexpected,
    /// A line of the transcript says that something is wrong.
    WrongOutput,
}

/// Each breach, the invariant that it breaks, and its name in files.
const BREACHES: &[(Breach, Invariant, &str)] = &[
    (Breach::TargetDiffers, Invariant::PointInTime, "target-differs"),
    (Breach::TargetUndone, Invariant::PointInTime, "target-undone"),
    (Breach::ChainDiffers, Invariant::RestoreChain, "chain-differs"),
    (Breach::BitLost, Invariant::NoLostWrite, "bit-lost"),
    (Breach::BitLostByUnswitching, Invariant::NoLostWrite, "bit-lost-by-unswitching"),
    (Breach::BitLostByUnclearing, Invariant::NoLostWrite, "bit-lost-by-unclearing"),
    (Breach::BitLostByUnmerging, Invariant::NoLostWrite, "bit-lost-by-unmerging"),
    (Breach::BitLostInImage, Invariant::NoLostWrite, "bit-lost-in-image"),
    (Breach::BitLostByJob, Invariant::NoLostWrite, "bit-lost-by-job"),
    (Breach::WrongLength, Invariant::NoLostWrite, "wrong-length"),
    (Breach::BitForgotten, Invariant::ModePromise, "bit-forgotten"),
    (Breach::BitKept, Invariant::ModePromise, "bit-kept"),
    (Breach::BitLostByLateFailure, Invariant::ModePromise, "bit-lost-by-late-failure"),
    (Breach::BitFromNowhere, Invariant::ModePromise, "bit-from-nowhere"),
    (Breach::BitmapGone, Invariant::ModePromise, "bitmap-gone"),
    (Breach::BitmapFromNowhere, Invariant::ModePromise, "bitmap-from-nowhere"),
    (Breach::BitmapChanged, Invariant::ModePromise, "bitmap-changed"),
    (Breach::MergedUnequal, Invariant::ModePromise, "merged-unequal"),
    (Breach::SnapshotDiffers, Invariant::Fleecing, "snapshot-differs"),
    (Breach::SnapshotOvertaken, Invariant::Fleecing, "snapshot-overtaken"),
    (Breach::SnapshotStraddled, Invariant::Fleecing, "snapshot-straddled"),
    (Breach::SnapshotRefused, Invariant::Fleecing, "snapshot-refused"),
    (Breach::DataDiffers, Invariant::Guest, "data-differs"),
    (Breach::ZerosUndone, Invariant::Guest, "zeros-undone"),
    (Breach::SnapshotUndone, Invariant::Guest, "snapshot-undone"),
    (Breach::ErrorFromNowhere, Invariant::Guest, "error-from-nowhere"),
    (Breach::NotDrained, Invariant::Guest, "not-drained"),
    (Breach::Transition, Invariant::LifeCycle, "transition"),
    (Breach::WrongOffset, Invariant::LifeCycle, "wrong-offset"),
    (Breach::WrongEvent, Invariant::LifeCycle, "wrong-event"),
    (Breach::CopiesAtRest, Invariant::LifeCycle, "copies-at-rest"),
    (Breach::GivenUpUncopied, Invariant::PointInTime, "given-up-uncopied"),
    (Breach::GoesOn, Invariant::LifeCycle, "goes-on"),
    (Breach::LimitBroken, Invariant::LifeCycle, "limit-broken"),
    (Breach::Unasked, Invariant::LifeCycle, "unasked"),
    (Breach::WrongRest, Invariant::LifeCycle, "wrong-rest"),
    (Breach::GroupDiffers, Invariant::LifeCycle, "group-differs"),
    (Breach::LeftBehind, Invariant::LifeCycle, "left-behind"),
    (Breach::Corrupt, Invariant::Image, "corrupt"),
    (Breach::CorruptUnnoticed, Invariant::Image, "corrupt-unnoticed"),
    (Breach::Leak, Invariant::Image, "leak"),
    (Breach::StaleBelieved, Invariant::Image, "stale-believed"),
    (Breach::NotBelieved, Invariant::Image, "not-believed"),
    (Breach::Crash, Invariant::Progress, "crash"),
    (Breach::Aborted, Invariant::Progress, "aborted"),
    (Breach::Stuck, Invariant::Progress, "stuck"),
    (Breach::Unended, Invariant::Progress, "unended"),
    (Breach::Unexpected, Invariant::Expectation, "unexpected"),
    (Breach::WrongOutput, Invariant::Expectation, "wrong-output"),
];

impl Breach {
    fn row(self) -> (Invariant, &'static str) {
        let row = BREACHES.iter().find(|(breach, ..)| *breach == self);
        row.map_or((Invariant::Expectation, "?"), |(_, invariant, name)| (*invariant, name))
    }

    /// The invariant that it breaks.
    pub fn invariant(self) -> Invariant {
        self.row().0
    }

    /// Its name in files.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The breach of that name.
    pub fn from_name(name: &str) -> Option<Breach> {
        BREACHES.iter().find(|(_, _, own)| *own == name).map(|(breach, ..)| *breach)
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What broke, and in which way; shrinking keeps to it.
    pub breach: Breach,
    /// The job, bitmap or disk that it is about, or what is said instead of what was expected; shrinking keeps to it.
    pub subject: String,
    /// All of it in words, clusters named.
    pub text: String,
}

impl Violation {
    /// A violation.
    pub fn new(breach: Breach, subject: &str, text: String) -> Violation {
        Violation { breach, subject: subject.into(), text }
    }

    /// Which invariant it is that broke.
    pub fn invariant(&self) -> Invariant {
        self.breach.invariant()
    }

    /// Whether it is that a run goes on for ever.
    pub fn is_livelock(&self) -> bool {
        self.breach == Breach::Stuck && self.text.contains("livelock?")
    }

    /// Whether two violations are the same one for a shrinker: the same thing went wrong with the same job, bitmap
    /// or disk, at whatever place and time.
    pub fn is_like(&self, other: &Violation) -> bool {
        self.breach == other.breach && self.subject == other.subject
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant().name(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_breach_has_a_name_of_its_own_and_every_invariant_a_breach() {
        for (breach, invariant, name) in BREACHES {
            assert_eq!((breach.invariant(), breach.name()), (*invariant, *name));
            assert_eq!(Breach::from_name(name), Some(*breach));
        }
        // The last one declared has the highest number.
        assert_eq!(BREACHES.len(), Breach::WrongOutput as usize + 1);
        for invariant in Invariant::ALL {
            assert!(BREACHES.iter().any(|(_, own, _)| *own == invariant), "{}", invariant.name());
        }
    }
}
