//! The reader of the trace: feeds the reference models and collects what breaks an invariant.
//!
//! It only listens. Judgement that needs content waits for [`Watch::finish`].

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::sim::trace::Stamped;
use crate::sim::{BackupCreated, BitmapDump, Runs, TraceEvent};

use super::bitmaps::{Bitmaps, Bounds, first_missing};
use super::disks::{Disks, Image, first_difference};
use super::final_state::FinalState;
use super::jobs::{BackupRecord, Settled, judge_groups};
use super::ranges::Ranges;
use super::violation::{Invariant, Violation};

/// A write to some node under way.
struct Writing {
    node: Rc<str>,
    operation: &'static str,
    offset: u64,
    bytes: u64,
    writes: bool,
}

/// A snapshot that a filter keeps.
struct Snapshot {
    filter: Rc<str>,
    source: Rc<str>,
    image: Image,
}

/// Everything known about a run; see the module's text.
pub struct Watch {
    disks: Disks,
    bitmaps: Bitmaps,
    jobs: Vec<BackupRecord>,
    snapshots: Vec<Snapshot>,
    writing: BTreeMap<u64, Writing>,
    /// Error numbers that devices gave.
    device_errors: BTreeSet<i32>,
    /// Guests' requests that failed: disk, operation, offset, errno.
    guest_errors: Vec<(Rc<str>, &'static str, u64, i32)>,
    found: Vec<Violation>,
    /// Abstract states that the run went through.
    pub coverage: BTreeSet<u64>,
    /// Pairs of a job's state (highest byte) and a device operation that ended in it (the rest).
    pub cells: BTreeSet<u64>,
    killed: bool,
}

impl Watch {
    /// Nothing seen yet; whether fresh disks read as zeros.
    pub fn new(begin_as_zeros: bool) -> Watch {
        Watch {
            disks: Disks::new(begin_as_zeros),
            bitmaps: Bitmaps::default(),
            jobs: Vec::new(),
            snapshots: Vec::new(),
            writing: BTreeMap::new(),
            device_errors: BTreeSet::new(),
            guest_errors: Vec::new(),
            found: Vec::new(),
            coverage: BTreeSet::new(),
            cells: BTreeSet::new(),
            killed: false,
        }
    }

    /// Takes an event in.
    pub fn see(&mut self, stamped: &Stamped) {
        match &stamped.event {
            TraceEvent::GuestBegin { id, disk, operation, offset, bytes, content } => {
                self.guest_begins(*id, disk, operation, (*offset, *bytes), content);
            }
            TraceEvent::GuestEnd { id, error, content } => self.guest_ends(*id, *error, content),
            TraceEvent::RequestBegin { id, node, operation, offset, bytes } => {
                let writes = matches!(*operation, "write" | "write-zeroes");
                let writing = Writing { node: node.clone(), operation, offset: *offset, bytes: *bytes, writes };
                self.writing.insert(*id, writing);
            }
            TraceEvent::RequestEnd { id, error } => self.request_ends(*id, *error),
            TraceEvent::SnapshotOpened { filter, source } => self.snapshot_opens(filter, source),
            TraceEvent::SnapshotRead { filter, offset, content } => self.snapshot_read(filter, *offset, content),
            TraceEvent::BackupCreated(created) => self.backup_created(created),
            TraceEvent::BackupSettled { job, success, bitmap } => self.backup_settled(job, *success, bitmap),
            TraceEvent::JobStatus { id, status } => self.job_status(id, status),
            TraceEvent::JobEnded { id, len, offset, cancelled, failed } => {
                let found = &mut self.found;
                if let Some(job) = live(&mut self.jobs, id) {
                    job.end(*len, *offset, !cancelled && !failed, found);
                }
            }
            TraceEvent::Bitmaps { list, .. } => self.bitmaps.adopt(list),
            TraceEvent::Killed => self.killed(),
            TraceEvent::QmpEvent { .. }
            | TraceEvent::Step { .. }
            | TraceEvent::Bits { .. }
            | TraceEvent::Blkdebug { .. } => {}
        }
    }

    fn guest_begins(&mut self, id: u64, disk: &Rc<str>, operation: &'static str, range: (u64, u64), content: &Runs) {
        self.disks.begin(id, disk, operation, range, content);
        if matches!(operation, "write" | "write-zeroes" | "discard") {
            let (offset, bytes) = range;
            self.bitmaps.attempt(disk, offset, bytes);
            for job in unsettled(&mut self.jobs, disk) {
                job.since.may.set(offset, bytes, true);
            }
        }
    }

    fn guest_ends(&mut self, id: u64, error: i32, content: &Runs) {
        let Some(request) = self.disks.end(id, error, content, &mut self.found) else { return };
        if error != 0 {
            self.guest_errors.push((request.disk.clone(), request.operation, request.offset, error));
        }
        // A discard may be ignored, so it only may set bits.
        if error == 0 && matches!(request.operation, "write" | "write-zeroes") {
            let (offset, bytes) = (request.offset, request.end - request.offset);
            self.bitmaps.change(&request.disk, offset, bytes);
            for job in unsettled(&mut self.jobs, &request.disk) {
                job.since.must.set(offset, bytes, true);
            }
        }
        self.cover(1);
    }

    fn request_ends(&mut self, id: u64, error: i32) {
        let Some(done) = self.writing.remove(&id) else { return };
        self.cover_operation(&done, error);
        if error != 0 {
            if !self.snapshots.iter().any(|snapshot| snapshot.filter == done.node) {
                self.device_errors.insert(error);
            }
        } else if done.writes {
            let jobs = self.jobs.iter_mut().filter(|job| job.created.target == done.node && !job.overwritten);
            for job in jobs {
                job.copied.set(done.offset, done.bytes, true);
            }
        }
    }

    fn snapshot_opens(&mut self, filter: &Rc<str>, source: &Rc<str>) {
        let mut image = self.disks.image(source);
        for request in self.disks.changing(source) {
            image.set(request.offset, request.end - request.offset, None);
        }
        self.snapshots.retain(|snapshot| snapshot.filter != *filter);
        self.snapshots.push(Snapshot { filter: filter.clone(), source: source.clone(), image });
    }

    fn snapshot_read(&mut self, filter: &Rc<str>, offset: u64, content: &Runs) {
        let Some(snapshot) = self.snapshots.iter().find(|snapshot| snapshot.filter == *filter) else { return };
        if let Some(difference) = first_difference(&snapshot.image, offset, content) {
            let text = format!("a reader of the snapshot of disk {} got {difference}", snapshot.source);
            self.found.push(Violation::new(Invariant::Fleecing, &snapshot.source, text));
        }
    }

    fn backup_created(&mut self, created: &Rc<BackupCreated>) {
        for earlier in self.jobs.iter_mut().filter(|job| job.created.target == created.target) {
            earlier.overwritten = true;
        }
        let dump = created.bitmap.as_ref();
        let followed = dump.and_then(|dump| self.bitmaps.get(&dump.node, &dump.name));
        let base = dump.map(|dump| followed.map_or_else(|| Bounds::exactly(dump), |followed| followed.bounds.clone()));
        self.jobs.push(BackupRecord {
            created: created.clone(),
            point: self.disks.image(&created.source),
            base,
            recording: dump.is_some_and(|dump| dump.recording),
            since: Bounds::none(),
            copied: Ranges::all(false),
            settled: None,
            succeeded: None,
            started: false,
            states: vec!["created"],
            overwritten: false,
        });
    }

    fn backup_settled(&mut self, id: &str, success: bool, bitmap: &Option<Rc<BitmapDump>>) {
        let Some(job) = live(&mut self.jobs, id) else { return };
        let (since, copied) = (job.since.clone(), job.copied.clone());
        job.settled = Some(Settled { success, dump: bitmap.clone(), since, copied });
        if let Some(dump) = bitmap {
            // Requests under way have not reached the bitmap yet, but will.
            let mut coming = Bounds::none();
            for request in self.disks.changing(&job.created.source) {
                coming.may.set(request.offset, request.end - request.offset, true);
            }
            self.bitmaps.give_back(dump, &coming, job.created.length);
        }
    }

    fn job_status(&mut self, id: &str, status: &'static str) {
        let found = &mut self.found;
        if let Some(job) = live(&mut self.jobs, id)
            && status != "created"
        {
            job.go_to(status, found);
            if status == "concluded" && job.succeeded.is_none() {
                // It never ran, so nobody was told of its end.
                job.succeeded = Some(false);
            }
        }
        self.cover(2);
    }

    fn killed(&mut self) {
        self.killed = true;
        self.disks.forget();
        self.bitmaps.forget();
        self.writing.clear();
        self.snapshots.clear();
        for job in &mut self.jobs {
            job.overwritten = true;
            job.states.push("null");
        }
    }

    /// Notes in which state each job is when a request ends, well or not: a place where a fault can strike.
    fn cover_operation(&mut self, done: &Writing, error: i32) {
        let mut hash = Fnv::new(u64::from(error != 0));
        done.node.bytes().chain(done.operation.bytes()).for_each(|byte| hash.add(u64::from(byte)));
        let states = self.jobs.iter().filter_map(|job| job.states.last()).filter(|state| **state != "null");
        for state in states {
            let number = state.len() as u64 * 8 + u64::from(state.as_bytes()[0]) % 8;
            self.cells.insert(number << 56 | hash.0 >> 8);
        }
    }

    /// Notes the abstract state that the run is in.
    fn cover(&mut self, salt: u64) {
        let mut hash = Fnv::new(salt);
        for job in &self.jobs {
            hash.add(job.states.last().map_or(0, |state| state.len() as u64 * 31 + u64::from(state.as_bytes()[0])));
            for run in job.copied.within(0, job.created.length).filter(|run| run.value) {
                hash.add(run.start);
                hash.add(run.end);
            }
            for run in job.since.must.within(0, job.created.length).filter(|run| run.value) {
                hash.add(run.start ^ run.end << 32);
            }
        }
        hash.add(self.writing.len() as u64);
        self.coverage.insert(hash.0);
    }

    /// How many invariants are broken so far.
    pub fn broken(&self) -> usize {
        self.found.len()
    }

    /// The nodes whose content is judged at the end.
    pub fn wanted(&self) -> Vec<Rc<str>> {
        let disks = self.disks.all().map(|(name, _)| name.clone());
        let targets = self.jobs.iter().map(|job| job.created.target.clone());
        let names: BTreeSet<Rc<str>> = disks.chain(targets).collect();
        names.into_iter().collect()
    }

    /// Judges the whole run; `state` is what the machine left, if it still ran.
    pub fn finish(&mut self, state: Option<&FinalState>) -> Vec<Violation> {
        let mut found = std::mem::take(&mut self.found);
        for job in &self.jobs {
            job.judge_bitmap(&mut found);
        }
        judge_groups(&self.jobs, &mut found);
        self.judge_guests(&mut found);
        if let Some(state) = state {
            self.judge_targets(state, &mut found);
            self.judge_disks(state, &mut found);
            self.judge_bitmaps(state, &mut found);
            self.judge_leftovers(state, &mut found);
        }
        found
    }

    fn judge_guests(&self, found: &mut Vec<Violation>) {
        for (disk, operation, offset, error) in &self.guest_errors {
            if !self.device_errors.contains(error) && !self.killed {
                let text = format!(
                    "a guest's {operation} of disk {disk} at byte {offset} failed with errno {error}, which no device gave"
                );
                found.push(Violation::new(Invariant::Guest, disk, text));
            }
        }
    }

    fn judge_targets(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for job in &self.jobs {
            let (Some(expected), Some(content)) = (job.expected_target(), state.content.get(&job.created.target))
            else {
                continue;
            };
            let created = &job.created;
            if let Some(difference) = first_difference(&expected, 0, content) {
                let text = format!(
                    "job {} (sync {}) succeeded, but cluster {} of target {} holds {difference}",
                    created.job,
                    created.sync,
                    difference.at / created.cluster,
                    created.target
                );
                found.push(Violation::new(Invariant::PointInTime, &created.job, text));
            } else if self.chain_is_complete(job, state)
                && let Some(difference) = first_difference(&job.point, 0, content)
            {
                let text = format!(
                    "target {} over its chain holds {difference}, so job {} can't be restored",
                    created.target, created.job
                );
                found.push(Violation::new(Invariant::RestoreChain, &created.job, text));
            }
        }
    }

    /// Whether the target's backing file is a successful backup of the same disk, and the job's bitmap had to
    /// hold everything that changed since: then the two together must restore the disk.
    fn chain_is_complete(&self, job: &BackupRecord, state: &FinalState) -> bool {
        let (Some(base), Some(below)) = (&job.base, state.backing.get(&job.created.target)) else { return false };
        let earlier = self.jobs.iter().find(|other| {
            other.created.target == *below && other.created.source == job.created.source && !other.overwritten
        });
        let Some(earlier) = earlier.filter(|earlier| earlier.succeeded == Some(true)) else { return false };
        let is_whole = earlier.created.sync == "full" || self.chain_is_complete(earlier, state);
        let length = job.created.length;
        is_whole
            && job.point.within(0, length).all(|run| {
                let changed = |old: super::ranges::Stretch<Option<u8>>| old.value != run.value;
                let mut old = earlier.point.within(run.start, run.end);
                old.all(|old| !changed(old) || base.must.has_all(old.start, old.end, true))
            })
    }

    fn judge_disks(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for (disk, image) in self.disks.all().filter(|(disk, _)| self.disks.is_quiet(disk)) {
            let Some(content) = state.content.get(disk) else { continue };
            if let Some(difference) = first_difference(image, 0, content) {
                let text = format!("disk {disk} holds {difference} though its guest was told otherwise");
                found.push(Violation::new(Invariant::Guest, disk, text));
            }
        }
    }

    fn judge_bitmaps(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for dump in &state.bitmaps {
            let Some(followed) = self.bitmaps.get(&dump.node, &dump.name) else { continue };
            let length = dump.dirty.iter().map(|(offset, bytes)| offset + bytes).max().unwrap_or(0);
            let written = followed.bounds.must.within(0, u64::MAX).filter(|run| run.value).map(|run| run.end).max();
            let length = length.max(written.unwrap_or(0));
            if let Some(at) = first_missing(dump, &followed.bounds.must, length)
                && followed.recording
                && !dump.busy
            {
                let cluster = at / dump.granularity;
                let text =
                    format!("bitmap {} of disk {} lacks cluster {cluster}, which was written", dump.name, dump.node);
                found.push(Violation::new(Invariant::NoLostWrite, &dump.name, text));
            }
        }
    }

    fn judge_leftovers(&self, state: &FinalState, found: &mut Vec<Violation>) {
        if !state.jobs.is_empty() {
            return;
        }
        let busy = state.bitmaps.iter().filter(|dump| dump.busy).map(|dump| ("a busy bitmap", &dump.name));
        let filters = state.stray_filters.iter().map(|name| ("the filter", name));
        let blocked = state.blocked.iter().map(|name| ("an operation blocker on", name));
        let anonymous = state.stray_bitmaps.iter().map(|name| ("an anonymous bitmap of", name));
        for (what, name) in busy.chain(filters).chain(blocked).chain(anonymous) {
            let text = format!("no job is left, but {what} {name} is");
            found.push(Violation::new(Invariant::LifeCycle, name, text));
        }
    }
}

/// The newest job called `id`, unless it is gone.
fn live<'a>(jobs: &'a mut [BackupRecord], id: &str) -> Option<&'a mut BackupRecord> {
    jobs.iter_mut().rev().find(|job| &*job.created.job == id && job.states.last() != Some(&"null"))
}

/// The jobs on `disk` that have not yet given up their bitmap.
fn unsettled<'a>(jobs: &'a mut [BackupRecord], disk: &'a str) -> impl Iterator<Item = &'a mut BackupRecord> {
    jobs.iter_mut().filter(move |job| &*job.created.source == disk && job.settled.is_none())
}

/// A small hash with fixed values, for abstract states.
pub struct Fnv(pub u64);

impl Fnv {
    /// A hash that begins with `salt`.
    pub fn new(salt: u64) -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325 ^ salt)
    }

    /// Adds a number.
    pub fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }
}
