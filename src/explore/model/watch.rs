//! The reader of the trace: feeds the reference models and collects what breaks an invariant.
//!
//! It only listens. Judgement that needs content waits for [`Watch::finish`].

mod requests;

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::sim::trace::Stamped;
use crate::sim::{BackupCreated, BitmapDump, Nanos, Runs, TraceEvent};

use super::asked::Asked;
use super::bitmaps::{Bitmaps, Bounds, first_of_wrong_length};
use super::conduct::{Conduct, OwnRequest};
use super::disks::{Disks, Image};
use super::drained::Drained;
use super::given_up::GivenUp;
use super::hash::Fnv;
use super::jobs::{BackupRecord, Settled};
use super::ranges::Ranges;
use super::request::Request;
use super::sightings::{Mark, Sightings, States, ranges_summand, state_number, state_summand};
use super::snapshots::Snapshots;
use super::violation::{Breach, Violation};

/// Everything known about a run; see the module's text.
pub struct Watch {
    pub(super) disks: Disks,
    pub(super) bitmaps: Bitmaps,
    pub(super) jobs: Vec<BackupRecord>,
    snapshots: Snapshots,
    /// In the order in which they began.
    requests: Vec<Request>,
    /// Error numbers that devices gave.
    pub(super) device_errors: BTreeSet<i32>,
    /// Guests' writes of compressed clusters under way, by number.
    compressed: BTreeSet<u64>,
    /// Guests' requests that failed: disk, operation, offset, errno.
    pub(super) guest_errors: Vec<(Rc<str>, &'static str, u64, i32)>,
    pub(super) found: Vec<Violation>,
    /// What the run has reached.
    pub seen: Sightings,
    pub(super) killed: bool,
    /// Machines that have ended.
    pub(super) machine: u32,
    /// The machine ended in order and none was started since.
    pub(super) closed: bool,
    /// Only machines change the images.
    pub(super) own_images: bool,
    /// Some filter keeps, or kept, a snapshot.
    pub(super) opened_snapshot: bool,
    /// How each job goes about its work.
    pub(super) conduct: Vec<Conduct>,
    drained: Drained,
    /// Reads that have failed so far.
    pub(super) failed_reads: u64,
    /// What readers of snapshots have given up.
    given_up: GivenUp,
    /// All snapshots keep all of their disks.
    pub(super) all_whole: bool,
    /// Writes beneath which one has failed, so that they must fail too.
    must_fail: BTreeSet<u64>,
    /// A failure went by without notice, so that clusters may be lost.
    pub(super) may_leak: bool,
    /// The virtual time.
    now: Nanos,
    /// Some request took so long that a filter may have stopped waiting for it.
    took_long: bool,
    /// A write failed, and whoever had asked for it was not told.
    pub(super) failed_unnoticed: bool,
}

/// One second.
const TIME_LIMIT: Nanos = 1_000_000_000;
const NOT_PERMITTED: i32 = 1;
const IO_ERROR: i32 = 5;
const NO_ACCESS: i32 = 13;
const BUSY: i32 = 16;
const NO_MEDIUM: i32 = 123;

impl Watch {
    /// Nothing seen yet; whether only machines change images.
    pub fn new(own_images: bool) -> Watch {
        Watch {
            disks: Disks::default(),
            bitmaps: Bitmaps::default(),
            jobs: Vec::new(),
            snapshots: Snapshots::default(),
            requests: Vec::new(),
            device_errors: BTreeSet::new(),
            compressed: BTreeSet::new(),
            guest_errors: Vec::new(),
            found: Vec::new(),
            seen: Sightings::default(),
            killed: false,
            machine: 0,
            closed: false,
            own_images,
            opened_snapshot: false,
            conduct: Vec::new(),
            drained: Drained::default(),
            failed_reads: 0,
            given_up: GivenUp::new(),
            all_whole: true,
            must_fail: BTreeSet::new(),
            may_leak: false,
            now: 0,
            took_long: false,
            failed_unnoticed: false,
        }
    }

    /// Takes an event in.
    pub fn see(&mut self, stamped: &Stamped) {
        self.now = stamped.time;
        match &stamped.event {
            TraceEvent::GuestBegin {
                id,
                guest,
                disk,
                place,
                operation,
                offset,
                bytes,
                content,
                durable,
                compressed,
            } => {
                let range = (*offset, *bytes);
                match guest {
                    Some(guest) => self.disks.is_guests(guest, disk, place, &mut self.found),
                    None => self.disks.lies_at(disk, place),
                }
                if *compressed {
                    self.compressed.insert(*id);
                }
                self.guest_begins((*id, guest.as_ref()), disk, operation, range, (content, *durable));
            }
            TraceEvent::GuestMoved { guest, disk, place } => {
                self.disks.moves(guest, disk, place, &mut self.found);
            }
            TraceEvent::TakenBack { overlay, begins } => self.disks.guests.take_back(overlay, *begins),
            TraceEvent::GuestEnd { id, error, content } => self.guest_ends(*id, *error, content),
            TraceEvent::RequestBegin { id, node, operation, offset, bytes, device } => {
                let (node, owner) = (node.clone(), stamped.owner.clone());
                let (offset, bytes, failed_reads) = (*offset, *bytes, self.failed_reads);
                let begun = self.snapshots.moment();
                let (device, since, adrift) = (*device, stamped.time, self.disks.guests.is_any_adrift());
                let request = Request {
                    id: *id,
                    node,
                    offset,
                    bytes,
                    operation,
                    owner,
                    device,
                    failed_reads,
                    begun,
                    since,
                    adrift,
                };
                self.request_begins(request, stamped.time);
            }
            TraceEvent::RequestEnd { id, error } => self.request_ends(*id, *error),
            TraceEvent::FileCreated { file } | TraceEvent::FileFormatted { file } => self.disks.is_new(file),
            TraceEvent::FileResized { file, outside: true, .. } => self.disks.changes_from_outside(file),
            TraceEvent::FileResized { file, size, outside: false } => self.disks.cut_file(file, *size),
            TraceEvent::SnapshotOpened { filter, source, place, target, whole, kept } => {
                self.all_whole &= whole;
                self.disks.lies_at(source, place);
                self.disks.is_target(target);
                self.snapshot_opens(filter, source, *kept);
            }
            TraceEvent::SnapshotRead { filter, offset, content } => {
                self.snapshot_read(filter, &stamped.owner, *offset, content);
            }
            TraceEvent::BackupCreated(created) => self.backup_created(created, stamped.time),
            TraceEvent::BackupSettled { job, success, bitmap } => self.backup_settled(job, *success, bitmap),
            TraceEvent::JobStatus { id, status } => self.job_status(id, status),
            TraceEvent::JobEnded { id, len, offset, cancelled, failed } => {
                let found = &mut self.found;
                if let Some(job) = live(&mut self.jobs, id) {
                    job.end(*len, *offset, !cancelled && !failed, found);
                }
            }
            TraceEvent::Bitmaps { command, arguments, succeeded, list } => {
                let asked = Asked::read(command, arguments, *succeeded);
                if let Some((disk, size)) = &asked.resized {
                    self.disks.cut(disk, *size);
                    self.found.extend(first_of_wrong_length(list, disk, *size).filter(|_| *succeeded));
                }
                asked.moved.iter().for_each(|disk| self.disks.forget_whole(&disk.as_str().into()));
                let (disks, trusted) = (&self.disks, self.own_images && self.device_errors.is_empty());
                self.bitmaps.adopt(list, &asked, |disk| disks.settled_image(disk), trusted, &mut self.found);
            }
            TraceEvent::JobCommand { command, id, speed, succeeded } => {
                self.job_command(command, id, (*speed, *succeeded), stamped.time);
            }
            TraceEvent::JobAskedToPause { id } => {
                if let Some(conduct) = conduct_of(&mut self.conduct, id) {
                    conduct.asked_to_pause();
                }
            }
            TraceEvent::Drained { node, begins } => self.drain(node.as_ref(), *begins, &stamped.owner),
            TraceEvent::Killed => self.killed(),
            TraceEvent::ShutDown => self.shut_down(),
            TraceEvent::QmpEvent { .. }
            | TraceEvent::Step { .. }
            | TraceEvent::Bits { .. }
            | TraceEvent::Blkdebug { .. } => {}
        }
    }

    fn guest_begins(
        &mut self,
        id: (u64, Option<&Rc<str>>),
        disk: &Rc<str>,
        operation: &'static str,
        range: (u64, u64),
        content: (&Runs, bool),
    ) {
        self.found.extend(self.drained.judge_guest(disk, operation));
        if operation != "read" && operation != "flush" {
            for job in self.jobs.iter_mut().filter(|job| job.created.target == *disk) {
                job.used.set(range.0, range.1, true);
            }
        }
        self.disks.begin(id, disk, operation, range, content);
    }

    fn guest_ends(&mut self, id: u64, error: i32, content: &Runs) {
        let is_compressed = self.compressed.remove(&id);
        let Some(request) = self.disks.end(id, error, content, &mut self.found) else { return };
        if request.changes() {
            // A discard may have been dropped above the filter, which has kept nothing then.
            let is_kept = error == 0 && request.operation != "discard";
            self.snapshots.write(&request.disk, (request.offset, request.end), is_kept);
        }
        if error != 0 {
            for settled in self.jobs.iter_mut().filter_map(|job| job.settled.as_mut()) {
                for (_, (start, end)) in settled.open.iter().filter(|(open, _)| *open == id) {
                    settled.failed.set(*start, end - start, true);
                }
            }
            self.judge_refusal(&request.disk, request.operation, (request.offset, request.end), error);
            // A compressed cluster can't be written where there is something already.
            if !(is_compressed && error == IO_ERROR) {
                self.guest_errors.push((request.disk.clone(), request.operation, request.offset, error));
            }
        }
        self.cover(1);
    }

    /// Whether a request has taken as long as the shortest time limit that a filter can have.
    fn takes_long(&self, request: &Request) -> bool {
        self.now - request.since >= TIME_LIMIT
    }

    /// A reader of a snapshot is refused only what some reader has given up, unless the snapshot is broken.
    fn judge_refusal(&mut self, disk: &Rc<str>, operation: &str, (start, end): (u64, u64), error: i32) {
        let is_snapshot = self.opened_snapshot && self.all_whole && !self.disks.is_written(disk);
        let is_late = self.took_long || self.requests.iter().any(|request| self.takes_long(request));
        let may_be_broken = is_late || self.device_errors.iter().any(|error| *error != NO_ACCESS);
        if (operation, error) != ("read", NO_ACCESS) || !is_snapshot || may_be_broken {
            return;
        }
        if !self.given_up.has(start, end) {
            let text = format!("a reader of {disk} is refused bytes {start} to {end}, which nobody has given up");
            self.found.push(Violation::new(Breach::SnapshotRefused, disk, text));
        }
    }

    /// A drained section of a node, or of all, has begun or is about to end.
    fn drain(&mut self, node: Option<&Rc<str>>, begins: bool, owner: &Option<Rc<str>>) {
        match node {
            Some(node) if begins => self.found.extend(self.drained.begins(node, owner, &self.requests)),
            Some(node) => self.drained.ends(node),
            None => {
                if begins {
                    self.bitmaps.drained();
                }
                self.drained.all(begins);
            }
        }
    }

    fn job_command(
        &mut self,
        command: &'static str,
        id: &str,
        (speed, succeeded): (Option<u64>, Option<bool>),
        now: Nanos,
    ) {
        let Some(conduct) = conduct_of(&mut self.conduct, id) else { return };
        conduct.command(command, speed, succeeded, now);
        let group = conduct.group();
        for other in self.conduct.iter_mut().filter(|other| other.group() == group && !other.is_of(id)) {
            other.command_of_group(command);
        }
    }

    fn snapshot_opens(&mut self, filter: &Rc<str>, source: &Rc<str>, kept: bool) {
        let mut image = if kept { self.disks.image(source) } else { Image::all(None) };
        for request in self.disks.changing(source) {
            image.set(request.offset, request.end - request.offset, None);
        }
        self.opened_snapshot = true;
        self.snapshots.open(filter, source, image);
    }

    /// The snapshot was read for the request of the same owner at the same place.
    fn snapshot_read(&mut self, filter: &Rc<str>, owner: &Option<Rc<str>>, offset: u64, content: &Runs) {
        let is_own = |one: &&Request| one.operation == "read" && one.owner == *owner && one.offset == offset;
        let begun = self.requests.iter().filter(is_own).map(|request| request.begun).min().unwrap_or(u64::MAX);
        let found = self.snapshots.judge(filter, begun, (offset, content), &self.given_up, &self.disks);
        self.found.extend(found);
    }

    fn backup_created(&mut self, created: &Rc<BackupCreated>, now: Nanos) {
        self.conduct.push(Conduct::new(created.clone(), now));
        self.disks.lies_at(&created.source, &created.place);
        let disk = self.disks.known_as(&created.source, &created.place);
        self.disks.forget(&created.target);
        self.disks.is_target(&created.target_place);
        for earlier in self.jobs.iter_mut().filter(|job| job.created.target == created.target) {
            earlier.overwritten = true;
        }
        let dump = created.bitmap.as_ref();
        let followed = dump.and_then(|dump| self.bitmaps.get(&dump.node, &dump.name));
        let base = dump.map(|dump| {
            let bytes = followed.map_or_else(|| Bounds::exactly(dump), |followed| followed.bounds.clone());
            bytes.in_bits(dump.granularity, created.length)
        });
        self.jobs.push(BackupRecord {
            created: created.clone(),
            point: self.point_in_time(created, &disk),
            disk: disk.clone(),
            base,
            recording: dump.is_some_and(|dump| dump.recording),
            written: self.disks.written(&disk),
            since: Bounds::none(),
            copied: Ranges::all(false),
            settled: None,
            succeeded: None,
            started: false,
            states: vec!["created"],
            overwritten: false,
            used: Ranges::all(false),
            adrift: Ranges::all(false),
            machine: self.machine,
        });
    }

    /// What the job is to copy: the disk as it is, or what a snapshot shows of it.
    fn point_in_time(&self, created: &BackupCreated, disk: &str) -> Image {
        match &created.snapshot {
            None => self.disks.image(disk),
            Some(filter) => self.snapshots.image(filter).cloned().unwrap_or_else(|| Image::all(None)),
        }
    }

    fn backup_settled(&mut self, id: &str, success: bool, bitmap: &Option<Rc<BitmapDump>>) {
        let Some(job) = live(&mut self.jobs, id) else { return };
        let (since, copied) = (job.since.clone(), job.copied.clone());
        let open = self.disks.open_changes(&job.disk);
        let failed = Ranges::all(false);
        job.settled = Some(Settled { success, dump: bitmap.clone(), since, copied, open, failed });
        if let Some(dump) = bitmap {
            // Requests under way have not reached the bitmap yet, but will.
            let mut coming = Bounds::none();
            for request in self.requests.iter().filter(|one| one.changes() && one.node == job.created.source) {
                coming.may.set(request.offset, request.bytes, true);
            }
            let seen = self.disks.settled_image(&job.created.source);
            self.bitmaps.give_back(dump, &coming, seen, &mut self.found);
        }
    }

    fn job_status(&mut self, id: &str, status: &'static str) {
        let found = &mut self.found;
        if let Some(conduct) = conduct_of(&mut self.conduct, id) {
            conduct.go_to(status, found);
        }
        if let Some(job) = live(&mut self.jobs, id)
            && status != "created"
        {
            job.go_to(status, found);
            let copying = self.requests.iter().any(|one| job.copies_with(&one.node, &one.owner));
            if job.is_at_rest() && copying {
                let text = format!("job {id} is {status} while it still copies");
                found.push(Violation::new(Breach::CopiesAtRest, id, text));
            }
            if status == "concluded" && job.succeeded.is_none() {
                // It never ran, so nobody was told of its end.
                job.succeeded = Some(false);
            }
        }
        self.cover(2);
    }

    fn killed(&mut self) {
        self.killed = true;
        self.disks.die();
        self.end_process(true);
    }

    fn shut_down(&mut self) {
        self.end_process(false);
        self.closed = true;
    }

    fn end_process(&mut self, killed: bool) {
        self.machine += 1;
        self.disks.guests.clear();
        self.conduct.iter_mut().for_each(Conduct::machine_ended);
        self.drained = Drained::default();
        self.bitmaps.end_process(killed);
        if !self.own_images {
            self.bitmaps.forget_stored();
        }
        self.requests.clear();
        self.snapshots.clear();
        if !killed {
            return;
        }
        for job in &mut self.jobs {
            job.overwritten = true;
            job.states.push("null");
        }
    }

    /// The state of each job.
    fn states(&self) -> States {
        self.jobs.iter().map(|job| job.states.last().map_or(0, |state| state_number(state))).collect()
    }

    /// Notes in which state each job is when a request ends, well or not: a place where a fault can strike.
    fn cover_operation(&mut self, done: &Request, error: i32) {
        let mut hash = Fnv::new(u64::from(error != 0));
        done.node.bytes().chain(done.operation.bytes()).for_each(|byte| hash.add(u64::from(byte)));
        self.seen.operation(hash.0, self.states());
    }

    /// Notes the abstract state that the run is in, and on what occasion.
    fn cover(&mut self, occasion: u64) {
        let sum = self.mark().sum;
        self.seen.state(occasion, sum);
    }

    /// Where the run stands: the states of the jobs, what they have copied, what guests have written since, and how many
    /// requests that change something are under way.
    pub fn mark(&self) -> Mark {
        let jobs = self.states();
        let mut sum = 0u64;
        for ((number, job), state) in self.jobs.iter().enumerate().zip(&jobs) {
            let (length, salt) = (job.created.length, number as u64 * 2 + 2);
            sum = sum
                .wrapping_add(state_summand(number, *state))
                .wrapping_add(ranges_summand(&job.copied, length, salt))
                .wrapping_add(ranges_summand(&job.since.must, length, salt + 1));
        }
        let changing = self.requests.iter().filter(|request| request.changes()).count() as u64;
        Mark { sum: sum.wrapping_add(changing << 32), jobs }
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
}

/// The newest job called `id`, unless it is gone.
fn live<'a>(jobs: &'a mut [BackupRecord], id: &str) -> Option<&'a mut BackupRecord> {
    jobs.iter_mut().rev().find(|job| &*job.created.job == id && job.states.last() != Some(&"null"))
}

/// The conduct of the newest job called `id`, unless it is gone.
fn conduct_of<'a>(conduct: &'a mut [Conduct], id: &str) -> Option<&'a mut Conduct> {
    conduct.iter_mut().rev().find(|conduct| conduct.is_of(id) && conduct.is_live())
}

/// The jobs on `disk` that have not yet given up their bitmap.
fn unsettled<'a>(jobs: &'a mut [BackupRecord], disk: &'a str) -> impl Iterator<Item = &'a mut BackupRecord> {
    jobs.iter_mut().filter(move |job| &*job.created.source == disk && job.settled.is_none())
}
