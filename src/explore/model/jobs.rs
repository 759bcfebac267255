//! What each backup job promises, and whether it kept it.
//!
//! A job is judged when it has ended: its bitmap against bounds worked out from what was dirty at its start,
//! what guests wrote since, and what really reached its target. The target's content is judged at the end of
//! the run, when it can be read.

use std::rc::Rc;

use crate::sim::{BackupCreated, BitmapDump};

use super::bitmaps::{Bounds, first_missing, first_surplus};
use super::disks::Image;
use super::ranges::Ranges;
use super::violation::{Breach, Violation};

/// The bitmap as the job left it, and what guests had written by then.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Whether the machine took the job for successful.
    pub success: bool,
    /// The bitmap.
    pub dump: Option<Rc<BitmapDump>>,
    /// Written between the job's start and this moment.
    pub since: Bounds,
    /// What was in the target at this moment.
    pub copied: Ranges<bool>,
    /// Guests' changes of the disk under way at this moment, and their ranges.
    pub open: Vec<(u64, (u64, u64))>,
    /// What of those has failed since, and with it perhaps the copy before it.
    pub failed: Ranges<bool>,
}

/// A job from its creation to its end.
#[derive(Clone, Debug)]
pub struct BackupRecord {
    /// What it was asked to do.
    pub created: Rc<BackupCreated>,
    /// The disk that it copies, by the name that guests know it by.
    pub disk: Rc<str>,
    /// The disk at its point in time.
    pub point: Image,
    /// The sync bitmap at its start.
    pub base: Option<Bounds>,
    /// Whether guests' writes reach the sync bitmap.
    pub recording: bool,
    /// What guests had put into the source's top layer at its start.
    pub written: Ranges<bool>,
    /// Written by guests since the start.
    pub since: Bounds,
    /// What has reached the target.
    pub copied: Ranges<bool>,
    /// How it left its bitmap.
    pub settled: Option<Settled>,
    /// Whether it ended well.
    pub succeeded: Option<bool>,
    /// Whether it ever ran.
    pub started: bool,
    /// Its states so far.
    pub states: Vec<&'static str>,
    /// A job that used the same target later.
    pub overwritten: bool,
    /// In the how-manieth machine it was made: another one numbers its groups anew.
    pub machine: u32,
    /// Where guests have changed the target since.
    pub used: Ranges<bool>,
    /// What it has copied while an overlay was being taken away from its users.
    pub adrift: Ranges<bool>,
}

/// The states that a job may go to (QEMU's table of transitions, written down again).
pub(super) fn may_follow(state: &str, next: &str) -> bool {
    let legal: &[&str] = match state {
        "created" => &["running", "aborting", "null"],
        "running" => &["paused", "waiting", "aborting"],
        "paused" => &["running"],
        "waiting" => &["pending", "aborting"],
        "pending" => &["concluded", "aborting"],
        "aborting" => &["concluded"],
        "concluded" => &["null"],
        _ => &[],
    };
    legal.contains(&next)
}

impl BackupRecord {
    fn job(&self) -> &str {
        &self.created.job
    }

    /// The job goes to another state.
    pub fn go_to(&mut self, next: &'static str, found: &mut Vec<Violation>) {
        if let Some(last) = self.states.last()
            && !may_follow(last, next)
        {
            let text = format!("job {} went from {last} to {next}", self.job());
            found.push(Violation::new(Breach::Transition, &self.created.job, text));
        }
        self.started |= next == "running";
        self.states.push(next);
    }

    /// Whether it must not copy at the moment.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.states.last(), Some(&("paused" | "waiting" | "pending" | "concluded")))
    }

    /// Whether this owner of a request is the job.
    pub fn is_by(&self, owner: &Option<Rc<str>>) -> bool {
        owner.as_deref().and_then(|owner| owner.strip_prefix("job ")) == Some(self.job())
    }

    /// Whether a request to `node` of this owner is a copy that the job itself makes.
    pub fn copies_with(&self, node: &str, owner: &Option<Rc<str>>) -> bool {
        self.is_by(owner) && (*node == *self.created.target || *node == *self.created.source)
    }

    /// The job sent its last event.
    pub fn end(&mut self, len: u64, offset: u64, succeeded: bool, found: &mut Vec<Violation>) {
        self.succeeded = Some(succeeded);
        let wrong = if offset > len {
            Some("copied more than there was")
        } else if offset > self.most() {
            Some("copied some cluster twice")
        } else if succeeded && (offset < len || offset < self.least()) {
            Some("succeeded without having copied all")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let text = format!("job {} {wrong}: offset {offset}, len {len}", self.job());
            found.push(Violation::new(Breach::WrongOffset, &self.created.job, text));
        }
    }

    /// Bytes that the job can copy if it copies each cluster once.
    fn most(&self) -> u64 {
        self.bytes_of(|base| &base.may)
    }

    /// Bytes that the job has to copy.
    fn least(&self) -> u64 {
        if matches!(self.created.sync, "top" | "none") { 0 } else { self.bytes_of(|base| &base.must) }
    }

    /// Bytes of the clusters that are dirty in this bound of the bitmap, if that decides; else of all.
    fn bytes_of(&self, bound: impl Fn(&Bounds) -> &Ranges<bool>) -> u64 {
        let by_bitmap = matches!(self.created.sync, "incremental" | "bitmap");
        let wanted = |(start, end): &(u64, u64)| match &self.base {
            Some(base) if by_bitmap => bound(base).any(*start, *end, true),
            _ => true,
        };
        self.clusters().filter(wanted).count() as u64 * self.created.cluster
    }

    /// The clusters of the disk: start and end, the last one clipped.
    fn clusters(&self) -> impl Iterator<Item = (u64, u64)> {
        let (size, length) = (self.created.cluster, self.created.length);
        (0..length.div_ceil(size)).map(move |index| (index * size, ((index + 1) * size).min(length)))
    }

    /// The clusters of `wanted` that are not wholly in `copied`.
    fn uncopied(&self, wanted: &Ranges<bool>, copied: &Ranges<bool>) -> Ranges<bool> {
        let mut left = Ranges::all(false);
        for (start, end) in self.clusters() {
            if wanted.any(start, end, true) && !copied.has_all(start, end, true) {
                left.set(start, end - start, true);
            }
        }
        left
    }

    /// What the bitmap must and may hold after the job, by its mode and the outcome.
    fn promised(&self, base: &Bounds, settled: &Settled, succeeded: bool) -> Bounds {
        let length = self.created.length;
        let mut promised = Bounds::none();
        if self.recording {
            promised.add(&settled.since, length);
        }
        match (self.created.mode, succeeded) {
            ("on-success" | "always", true) => {}
            ("always", false) => {
                let everything = Bounds { must: Ranges::of(&[(0, length)]), may: Ranges::of(&[(0, length)]) };
                // A job that never ran has not looked at its bitmap: it may call everything uncopied.
                let wanted = match self.created.sync {
                    "full" => everything,
                    "top" => Bounds { must: base.must.clone(), may: everything.may },
                    _ if !self.started => Bounds { must: base.must.clone(), may: everything.may },
                    _ => base.clone(),
                };
                // The copies under way when the bitmap was settled may succeed or fail later.
                promised.must.add(&self.uncopied(&wanted.must, &self.copied), length);
                promised.may.add(&self.uncopied(&wanted.may, &settled.copied), length);
            }
            _ => promised.add(base, length),
        }
        promised
    }

    /// Judges the bitmap that the job has left.
    pub fn judge_bitmap(&self, found: &mut Vec<Violation>) {
        let (Some(settled), Some(base)) = (&self.settled, &self.base) else { return };
        let Some(dump) = &settled.dump else { return };
        // Without an end there is no outcome to judge by.
        let Some(succeeded) = self.succeeded else { return };
        let promised = self.promised(base, settled, succeeded);
        let length = self.created.length;
        let (mode, ended) = (self.created.mode, if succeeded { "success" } else { "failure or cancel" });
        let at_end = format!("after {ended} of job {} (sync {}, mode {mode})", self.job(), self.created.sync);
        if let Some(at) = first_missing(dump, &promised.must, length) {
            let written = self.recording && settled.since.must.any(at, (at + dump.granularity).min(length), true);
            let cluster = at - at % self.created.cluster;
            let failed_late = settled.failed.any(cluster, cluster + self.created.cluster, true);
            let why = if written {
                "a guest wrote there during the job"
            } else if failed_late {
                "a guest's request there was under way when the job gave the bitmap back, and failed"
            } else if base.must.any(at, (at + dump.granularity).min(length), true) {
                "it was dirty before the job"
            } else {
                "the job did not copy it"
            };
            let text = format!("bitmap {} lacks cluster {} {at_end}: {why}", dump.name, at / dump.granularity);
            let breach = match (written || succeeded, failed_late) {
                (true, _) => Breach::BitLostByJob,
                (false, true) => Breach::BitLostByLateFailure,
                (false, false) => Breach::BitForgotten,
            };
            found.push(Violation::new(breach, &dump.name, text));
        } else if let Some(at) = first_surplus(dump, &promised.may, length) {
            let text = format!(
                "bitmap {} still has cluster {} {at_end}, which no guest wrote since and the mode does not keep",
                dump.name,
                at / dump.granularity
            );
            found.push(Violation::new(Breach::BitKept, &dump.name, text));
        }
    }

    /// The bytes of the point in time that the target itself must hold; the rest is unknown.
    pub fn expected_target(&self) -> Option<Image> {
        if self.succeeded != Some(true) || self.overwritten {
            return None;
        }
        let mut expected = match (self.created.sync, &self.base) {
            ("full", _) => self.point.clone(),
            ("incremental" | "bitmap", Some(base)) => self.point_within(&base.must),
            ("top", _) if self.created.snapshot.is_none() => self.point_within(&self.written),
            _ => return None,
        };
        for run in self.used.within(0, self.created.length).filter(|run| run.value) {
            expected.set(run.start, run.end - run.start, None);
        }
        Some(expected)
    }

    /// Whether the target is as the job has left it.
    pub fn is_untouched(&self) -> bool {
        !self.overwritten && !self.used.any(0, self.created.length, true)
    }

    /// The point in time where `wanted` is set; the rest is unknown.
    fn point_within(&self, wanted: &Ranges<bool>) -> Image {
        let mut expected = Image::all(None);
        for run in wanted.within(0, self.created.length).filter(|run| run.value) {
            for piece in self.point.within(run.start, run.end) {
                expected.set(piece.start, piece.end - piece.start, piece.value);
            }
        }
        expected
    }
}

/// Grouped jobs end alike.
pub fn judge_groups(jobs: &[BackupRecord], found: &mut Vec<Violation>) {
    for (index, job) in jobs.iter().enumerate() {
        let Some(group) = job.created.group.filter(|_| job.succeeded == Some(true)) else { continue };
        let others = jobs.iter().enumerate().filter(|(at, other)| *at != index && other.machine == job.machine);
        let failed = others
            .map(|(_, other)| other)
            .find(|other| other.created.group == Some(group) && other.succeeded == Some(false));
        if let Some(failed) = failed {
            let text = format!(
                "job {} succeeded though job {} of the same group did not",
                job.created.job, failed.created.job
            );
            found.push(Violation::new(Breach::GroupDiffers, &job.created.job, text));
        }
    }
}
