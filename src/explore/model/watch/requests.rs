//! What requests between nodes mean for bitmaps, jobs and snapshots.
//!
//! Guests' requests to their disks are another matter: what a disk must hold follows from those alone.

use crate::sim::Nanos;
use crate::sim::trace::TOOL;

use super::{
    BUSY, BackupRecord, Breach, IO_ERROR, NO_MEDIUM, NOT_PERMITTED, OwnRequest, Request, Violation, Watch, conduct_of,
    unsettled,
};

impl Watch {
    pub(super) fn request_begins(&mut self, request: Request, now: Nanos) {
        let id = request.id;
        if request.changes() {
            self.closed = false;
            if let Some(file) = request.node.strip_prefix(TOOL) {
                self.disks.filled_from_outside(&file.into());
            }
            self.bitmaps.attempt(&request.node, request.offset, request.bytes);
            for job in unsettled(&mut self.jobs, &request.node) {
                job.since.may.set(request.offset, request.bytes, true);
            }
        }
        let copies =
            |job: &&BackupRecord| request.operation != "flush" && job.copies_with(&request.node, &request.owner);
        for job in self.jobs.iter().filter(|job| job.is_at_rest()).filter(copies) {
            let state = job.states.last().copied().unwrap_or_default();
            let text = format!("job {} is {state}, but goes on to copy", job.created.job);
            self.found.push(Violation::new(Breach::CopiesAtRest, &job.created.job, text));
        }
        let own = self.jobs.iter().filter(|job| job.copies_with(&request.node, &request.owner));
        for job in own {
            let reads = request.operation == "read";
            let begins_copy = (reads && *request.node == *job.created.source) || request.operation == "write-zeroes";
            let own = OwnRequest { id, begins_copy, bytes: request.bytes };
            if let Some(conduct) = conduct_of(&mut self.conduct, &job.created.job).filter(|_| request.copies()) {
                conduct.begins(own, now, &mut self.found);
            }
        }
        let range = (request.offset, request.offset + request.bytes);
        let gives_up = |job: &&BackupRecord| {
            request.operation == "discard"
                && *request.node == *job.created.source
                && job.copies_with(&request.node, &request.owner)
                && !job.copied.has_all(range.0, range.1, true)
        };
        if let Some(job) = self.jobs.iter().find(gives_up) {
            let (id, source) = (&job.created.job, &job.created.source);
            let text = format!(
                "job {id} discards bytes {} to {} of {source}, not all of which it has copied",
                range.0, range.1
            );
            self.found.push(Violation::new(Breach::GivenUpUncopied, id, text));
        }
        if request.operation == "read" {
            self.given_up.read(id, &request.node, range);
        } else if request.operation == "discard" && !self.disks.is_written(&request.node) {
            let meets = |other: &Request| other.operation == "read" && other.node == request.node;
            let overlaps = |other: &Request| other.offset < range.1 && range.0 < other.offset + other.bytes;
            let open = self.requests.iter().filter(|other| meets(other) && overlaps(other));
            self.given_up.discard(id, &request.node, range, open.map(|other| other.id).collect());
        }
        self.found.extend(self.drained.judge(&request));
        self.requests.push(request);
    }

    /// Follows a failed write up to who has asked for it.
    fn follow_failure(&mut self, id: u64, done: &Request, error: i32) {
        if error == 0 {
            let unnoticed = self.must_fail.remove(&id);
            self.may_leak |= unnoticed;
            self.failed_unnoticed |= unnoticed;
            return;
        }
        let asked = self.must_fail.remove(&id);
        let above: Vec<u64> = self
            .requests
            .iter()
            .filter(|other| other.writes() && other.owner == done.owner)
            .map(|other| other.id)
            .collect();
        let is_flushed = || self.requests.iter().any(|one| one.operation == "flush" && one.owner == done.owner);
        let is_nobodys = above.is_empty() && !asked;
        self.failed_unnoticed |= done.writes() && is_nobodys && !is_flushed();
        self.may_leak |= !done.writes() || is_nobodys;
        self.must_fail.extend(above);
    }

    /// Whether a request that failed had come so far that the disk may be another one: it was neither refused
    /// beforehand, nor was it the reading of what is around it that failed, nor a piece of it that came before the rest.
    fn has_tried(&self, done: &Request, error: i32) -> bool {
        const BLOCK: u64 = 4096;
        let refused = matches!(error, NOT_PERMITTED | BUSY | NO_MEDIUM);
        let whole = done.operation != "write-zeroes" || (done.offset | done.bytes) % BLOCK == 0;
        !refused && whole && done.failed_reads == self.failed_reads
    }

    pub(super) fn request_ends(&mut self, id: u64, error: i32) {
        let Some(place) = self.requests.iter().position(|request| request.id == id) else { return };
        let done = self.requests.remove(place);
        self.given_up.ended(id);
        self.took_long |= self.takes_long(&done);
        self.failed_reads += u64::from(error != 0 && done.operation == "read");
        self.follow_failure(id, &done, error);
        self.cover_operation(&done, error);
        if done.changes() {
            // Bits are set when a request is over, also for one that failed half-way.
            self.bitmaps.attempt(&done.node, done.offset, done.bytes);
            for job in unsettled(&mut self.jobs, &done.node) {
                job.since.may.set(done.offset, done.bytes, true);
            }
            // A driver that has failed may have written all the same.
            if error == 0 || self.has_tried(&done, error) {
                self.bitmaps.change(&done.node, done.offset, done.bytes);
                for job in unsettled(&mut self.jobs, &done.node) {
                    job.since.must.set(done.offset, done.bytes, true);
                }
            }
        }
        for job in self.jobs.iter().filter(|job| done.copies() && job.copies_with(&done.node, &done.owner)) {
            if let Some(conduct) = conduct_of(&mut self.conduct, &job.created.job) {
                conduct.ends(id, done.operation == "read", error);
            }
        }
        if error != 0 && done.operation == "read" {
            let reads = |job: &&BackupRecord| job.created.read_at == done.node && job.is_by(&done.owner);
            for job in self.jobs.iter().filter(reads) {
                if let Some(conduct) = conduct_of(&mut self.conduct, &job.created.job) {
                    conduct.reading_failed();
                }
            }
        }
        if error != 0 {
            // Other drivers have errors of their own, but none of them gives EIO for nothing.
            let is_given = done.device || error != IO_ERROR;
            if is_given && self.snapshots.image(&done.node).is_none() {
                self.device_errors.insert(error);
            }
        } else if done.fills() {
            let jobs = self.jobs.iter_mut().filter(|job| job.created.target == done.node && !job.overwritten);
            for job in jobs {
                job.copied.set(done.offset, done.bytes, true);
                job.adrift.set(done.offset, done.bytes, done.adrift);
            }
        }
    }
}
