//! The verdict on a whole run: what it left, against what the reference models know must be there.
//!
//! [`super::watch`] has listened until now. Content, bitmaps, jobs and events of the final state are judged here, and
//! nothing else may look at them.

use crate::sim::Runs;

use super::bitmaps::first_missing;
use super::disks::{Image, first_difference};
use super::events::judge_events;
use super::final_state::{FinalState, REST};
use super::jobs::{BackupRecord, judge_groups};
use super::ranges::{Ranges, Stretch};
use super::violation::{Breach, Violation};
use super::watch::Watch;

/// ETIMEDOUT.
const TIMED_OUT: i32 = 110;
/// ENOMEDIUM.
const NO_MEDIUM: i32 = 123;

impl Watch {
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
            self.judge_progress(state, &mut found);
            judge_events(&state.events, &self.jobs, &self.device_errors, &mut found);
            self.judge_conduct(state, &mut found);
        }
        found
    }

    /// What jobs have told of themselves, where they stand, and whether they went by themselves.
    fn judge_conduct(&self, state: &FinalState, found: &mut Vec<Violation>) {
        let status = |id: &str| state.jobs.iter().find(|(job, _)| **job == *id).map(|(_, status)| *status);
        for (conduct, job) in self.conduct.iter().zip(&self.jobs) {
            conduct.judge_end(found);
            // The events are those of the last machine.
            let has_told = self.jobs.iter().filter(|other| other.machine == self.machine);
            let is_only = has_told.filter(|other| other.created.job == job.created.job).count() == 1;
            if is_only && !self.killed && job.machine == self.machine {
                conduct.judge_told(&state.events, job.succeeded, found);
            }
            if let Some(own) = status(&job.created.job).filter(|_| conduct.is_live()) {
                let members = self
                    .jobs
                    .iter()
                    .filter(|other| other.created.group == job.created.group && other.created.job != job.created.job);
                let group: Vec<&str> = members.filter_map(|other| status(&other.created.job)).collect();
                conduct.judge_rest(own, &group, found);
            }
        }
    }

    /// Whether images are closed in order, and nothing has failed before but writes that say so: they give back what
    /// they have taken. Whatever fails beneath something that goes on, such as freeing clusters, may lose them.
    pub fn is_closed(&self) -> bool {
        self.closed && !self.killed && self.failed_reads == 0 && !self.may_leak
    }

    /// Whether the last machine was killed, and a write had failed of which nobody was told: QEMU does not keep the order any
    /// more in which tables must be written (docs/findings.md).
    pub fn is_out_of_order(&self) -> bool {
        self.killed && self.failed_unnoticed
    }

    /// Whether a guest has written that file of the host as it is.
    pub fn is_tampered(&self, file: &str) -> bool {
        self.disks.places().is_tampered_file(file)
    }

    /// Jobs and requests that had all the time of the world and are not over.
    fn judge_progress(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for (id, status) in &state.jobs {
            let endless = self.jobs.iter().any(|job| job.created.job == *id && job.created.sync == "none");
            let slow = self.conduct.iter().any(|conduct| conduct.is_of(id) && conduct.may_take(REST));
            if matches!(*status, "created" | "running" | "aborting") && !endless && !slow {
                let text = format!("job {id} is {status} and nothing happens any more");
                found.push(Violation::new(Breach::Unended, id, text));
            }
        }
        for request in self.disks.unanswered() {
            let text = format!(
                "a guest's {} of disk {} at byte {} is never answered",
                request.operation, request.disk, request.offset
            );
            found.push(Violation::new(Breach::Unended, &request.disk, text));
        }
    }

    fn judge_guests(&self, found: &mut Vec<Violation>) {
        for (disk, operation, offset, error) in &self.guest_errors {
            // A filter with a time limit fails a write that had to wait too long.
            let timed_out = *error == TIMED_OUT && self.opened_snapshot;
            // Who has changed an image's file by hand gets what he asked for.
            let is_tampered = self.disks.places().is_tampered(disk);
            // A machine that was killed has taken its disks along.
            let is_gone = *error == NO_MEDIUM && self.killed;
            if !self.device_errors.contains(error) && !is_gone && !timed_out && !is_tampered {
                let text = format!(
                    "a guest's {operation} of disk {disk} at byte {offset} failed with errno {error}, which no device gave"
                );
                found.push(Violation::new(Breach::ErrorFromNowhere, disk, text));
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
                let breach = match job.adrift.at(difference.at) {
                    true => Breach::TargetUndone,
                    false => Breach::TargetDiffers,
                };
                found.push(Violation::new(breach, &created.job, text));
            } else if self.chain_is_complete(job, state)
                && let Some(difference) = first_difference(&job.point, 0, content)
            {
                let text = format!(
                    "target {} over its chain holds {difference}, so job {} can't be restored",
                    created.target, created.job
                );
                found.push(Violation::new(Breach::ChainDiffers, &created.job, text));
            }
        }
    }

    /// Whether the target's backing file is a successful backup of the same disk, and the job's bitmap had to
    /// hold everything that changed since: then the two together must restore the disk.
    fn chain_is_complete(&self, job: &BackupRecord, state: &FinalState) -> bool {
        let (Some(base), Some(below)) = (&job.base, state.backing.get(&job.created.target)) else { return false };
        let earlier = self.jobs.iter().find(|other| {
            other.created.target == *below && other.created.source == job.created.source && other.is_untouched()
        });
        let Some(earlier) = earlier.filter(|earlier| earlier.succeeded == Some(true)) else { return false };
        if !job.is_untouched() {
            return false;
        }
        let is_whole = earlier.created.sync == "full" || self.chain_is_complete(earlier, state);
        let length = job.created.length;
        is_whole
            && job.point.within(0, length).all(|run| {
                let changed = |old: Stretch<Option<u8>>| old.value != run.value;
                let mut old = earlier.point.within(run.start, run.end);
                old.all(|old| !changed(old) || base.must.has_all(old.start, old.end, true))
            })
    }

    fn judge_disks(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for (disk, image) in self.disks.all().filter(|(disk, _)| self.disks.is_quiet(disk)) {
            let Some(content) = state.content.get(disk) else { continue };
            if let Some(difference) = first_difference(image, 0, content) {
                let (breach, why) = self.disks.difference_at(disk, difference.at);
                let text = format!("disk {disk} holds {difference} though its guest was told otherwise{why}");
                found.push(Violation::new(breach, disk, text));
            }
        }
    }

    fn judge_bitmaps(&self, state: &FinalState, found: &mut Vec<Violation>) {
        for dump in &state.bitmaps {
            let Some(followed) = self.bitmaps.get(&dump.node, &dump.name) else { continue };
            if !followed.recording || dump.busy {
                continue;
            }
            let length =
                state.content.get(&dump.node).map(|content| content.iter().map(|(bytes, _)| bytes).sum::<u64>());
            if let Some(length) = length.filter(|length| *length != dump.size) {
                let text = format!("bitmap {} of disk {} covers {} bytes of {length}", dump.name, dump.node, dump.size);
                found.push(Violation::new(Breach::WrongLength, &dump.name, text));
            }
            let mut must = followed.bounds.must.clone();
            if let Some(content) = state.content.get(&dump.node) {
                must.add(&changed_bytes(&followed.seen, content), dump.size);
            }
            if let Some(at) = first_missing(dump, &must, dump.size) {
                let cluster = at / dump.granularity;
                let text =
                    format!("bitmap {} of disk {} lacks cluster {cluster}, which was written", dump.name, dump.node);
                found.push(Violation::new(Breach::BitLost, &dump.name, text));
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
            found.push(Violation::new(Breach::LeftBehind, name, text));
        }
    }
}

/// Where `content` is certainly not what `image` had.
fn changed_bytes(image: &Image, content: &Runs) -> Ranges<bool> {
    let mut changed = Ranges::all(false);
    let mut at = 0;
    for (bytes, found) in content {
        for run in image.within(at, at + bytes).filter(|run| run.value.is_some_and(|value| value != *found)) {
            changed.set(run.start, run.end - run.start, true);
        }
        at += bytes;
    }
    changed
}
