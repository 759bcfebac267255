//! How each backup job goes about its work: what it was asked to do and when, how fast, with how many hands.
//!
//! Judged by the requests that the job itself makes and by its events. A request is the job's own when its owner is,
//! so what guests copy before they write never counts.

use std::collections::BTreeSet;
use std::rc::Rc;

use serde_json::Value;

use crate::sim::{BackupCreated, Nanos};

use super::violation::{Breach, Violation};

/// What a request of a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRequest {
    /// Its number.
    pub id: u64,
    /// It is the first of a cluster's copy: reads the source, or zeroes the target at once.
    pub begins_copy: bool,
    /// Its length, bytes.
    pub bytes: u64,
}

/// Why a job must come to a stop, and how many copies it has begun since.
#[derive(Clone, Copy, Debug)]
struct Stop {
    why: &'static str,
    begun: u32,
}

/// The conduct of one job.
#[derive(Clone, Debug)]
pub struct Conduct {
    created: Rc<BackupCreated>,
    /// Bytes per second; 0: unlimited.
    speed: u64,
    /// What it was before the command that is being carried out.
    old_speed: u64,
    /// When that speed was set, and what the job has begun to copy since.
    since: (Nanos, u64),
    /// The largest request, bytes.
    largest: u64,
    /// Requests under way.
    under_way: u32,
    asked: Option<Stop>,
    failed: Option<Stop>,
    /// It is paused on its user's wish, as far as that is known.
    user_paused: bool,
    /// Somebody may finalize it.
    may_finalize: bool,
    /// Somebody may make it go.
    may_go: bool,
    /// Directions in which its own requests have failed: true is reading.
    failures: BTreeSet<bool>,
    /// Copies that it has begun since it was last asked to pause. That ends the call that is under way, and whatever
    /// fails in it is then tried again.
    begun: u32,
    /// Its requests under way whose failure counts: those of the call after.
    counting: Vec<u64>,
    /// One of those has failed since.
    must_tell: bool,
    /// It went on though its user had paused it: only right when it is cancelled, or the machine ends.
    went_on: bool,
    state: &'static str,
    /// It left the machine though nobody made it go: only right when the machine ends.
    went_unasked: bool,
}

/// Copies that a job may still begin when it has been told to stop: one was decided upon.
const DECIDED: u32 = 1;
/// ENOSPC.
const NO_SPACE: i32 = 28;
/// A slice of the rate limit, ns (`BLOCK_JOB_SLICE_TIME`).
const SLICE: u128 = 100_000_000;

/// The speed that the limit really has, bytes per second: a slice lets one byte pass at least.
fn at_least_a_byte(speed: u64) -> u64 {
    speed.max((1_000_000_000 / SLICE) as u64)
}

impl Conduct {
    /// A job that has just been made.
    pub fn new(created: Rc<BackupCreated>, now: Nanos) -> Conduct {
        Conduct {
            speed: created.speed,
            old_speed: created.speed,
            since: (now, 0),
            created,
            largest: 0,
            under_way: 0,
            asked: None,
            failed: None,
            user_paused: false,
            may_finalize: false,
            may_go: false,
            failures: BTreeSet::new(),
            begun: DECIDED,
            counting: Vec::new(),
            must_tell: false,
            went_on: false,
            state: "created",
            went_unasked: false,
        }
    }

    fn violation(&self, breach: Breach, text: &str) -> Violation {
        let job = &self.created.job;
        Violation::new(breach, job, format!("job {job} {text}"))
    }

    /// Whether it is so slow that it may still copy after this time.
    pub fn may_take(&self, time: Nanos) -> bool {
        let most = u128::from(at_least_a_byte(self.speed)) * u128::from(time) / 1_000_000_000;
        self.speed > 0 && u128::from(self.created.length) > most
    }

    /// Whether the job is there.
    pub fn is_live(&self) -> bool {
        self.state != "null"
    }

    /// Whether it is that job.
    pub fn is_of(&self, id: &str) -> bool {
        *self.created.job == *id
    }

    /// The user wants something of it, or got it.
    pub fn command(&mut self, command: &'static str, speed: Option<u64>, succeeded: Option<bool>, now: Nanos) {
        match (command, succeeded) {
            // While it is carried out, either speed may count already.
            ("job-set-speed", None) => {
                let (old, new) = (self.speed, speed.unwrap_or(self.speed));
                self.old_speed = old;
                self.speed = if old == 0 || new == 0 { 0 } else { old.max(new) };
            }
            ("job-set-speed", Some(succeeded)) => {
                let new = speed.filter(|_| succeeded).unwrap_or(self.old_speed);
                (self.speed, self.since) = (new, (now, 0));
            }
            ("job-finalize", None) => self.may_finalize = true,
            ("job-dismiss", None) => self.may_go = true,
            ("job-cancel", None) => (self.may_finalize, self.may_go, self.user_paused) = (true, true, false),
            ("job-resume", None) => (self.asked, self.user_paused) = (None, false),
            ("job-pause" | "job-cancel", Some(true)) if self.asked.is_none() || command == "job-cancel" => {
                self.user_paused = command == "job-pause";
                self.asked = Some(Stop { why: command, begun: 0 });
            }
            _ => {}
        }
    }

    /// A member of its group may be finalized, or is cancelled: so is this job.
    pub fn command_of_group(&mut self, command: &str) {
        self.may_finalize |= matches!(command, "job-finalize" | "job-cancel");
        if command == "job-cancel" {
            (self.asked, self.user_paused) = (None, false);
        }
    }

    /// It is asked to pause, by whomever.
    pub fn asked_to_pause(&mut self) {
        self.counting.clear();
        (self.failed, self.begun, self.must_tell) = (None, 0, false);
    }

    /// The job goes to another state.
    pub fn go_to(&mut self, next: &'static str, found: &mut Vec<Violation>) {
        let last = std::mem::replace(&mut self.state, next);
        self.went_on |= (last, next) == ("paused", "running") && self.user_paused;
        match next {
            "paused" => self.asked_to_pause(),
            "aborting" => self.went_on = false,
            "waiting" => {
                self.judge_going_on(found);
                self.went_on = false;
            }
            _ => {}
        }
        if (last, next) == ("pending", "concluded") && !self.created.auto_finalize && !self.may_finalize {
            found.push(self.violation(Breach::Unasked, "was finalized though nobody asked for that"));
        }
        let was_started = matches!(last, "concluded") && !self.created.auto_dismiss;
        self.went_unasked |= was_started && next == "null" && !self.may_go;
    }

    fn judge_going_on(&self, found: &mut Vec<Violation>) {
        if self.went_on {
            found.push(self.violation(Breach::Unasked, "went on though its user had paused it"));
        }
    }

    /// One of its own requests begins.
    pub fn begins(&mut self, request: OwnRequest, now: Nanos, found: &mut Vec<Violation>) {
        self.under_way += 1;
        self.largest = self.largest.max(request.bytes);
        self.begun = self.begun.saturating_add(u32::from(request.begins_copy));
        if self.begun > DECIDED {
            self.counting.push(request.id);
        }
        let created = self.created.clone();
        if self.under_way > created.workers {
            let text =
                format!("copies {} areas at once, though it may have {} workers", self.under_way, created.workers);
            found.push(self.violation(Breach::LimitBroken, &text));
        }
        if created.max_chunk > 0 && request.bytes > created.max_chunk.next_multiple_of(created.cluster) {
            let text = format!("copies {} bytes at once, its max-chunk is {}", request.bytes, created.max_chunk);
            found.push(self.violation(Breach::LimitBroken, &text));
        }
        if !request.begins_copy {
            return;
        }
        for stop in [self.asked.as_mut(), self.failed.as_mut()].into_iter().flatten() {
            stop.begun += 1;
            if stop.begun == DECIDED + 1 {
                let text = format!("job {} goes on to copy after {}", created.job, stop.why);
                found.push(Violation::new(Breach::GoesOn, &created.job, text));
            }
        }
        self.since.1 += request.bytes;
        self.judge_speed(now, found);
    }

    /// No window of time has room for more than its share, an overdrawn slice at either end, and what was decided
    /// upon at these.
    fn judge_speed(&mut self, now: Nanos, found: &mut Vec<Violation>) {
        if self.speed == 0 {
            return;
        }
        let (start, bytes) = self.since;
        let share = |time: u128| u128::from(at_least_a_byte(self.speed)) * time / 1_000_000_000;
        let most = share(u128::from(now - start)) + 2 * share(SLICE) + 4 * u128::from(self.largest);
        if u128::from(bytes) > most {
            let text = format!("copies {bytes} bytes in {} ms, its speed is {}", (now - start) / 1_000_000, self.speed);
            found.push(self.violation(Breach::LimitBroken, &text));
            self.since = (now, 0);
        }
    }

    /// One of its own requests has ended, and failed or not.
    pub fn ends(&mut self, id: u64, reads: bool, error: i32) {
        self.under_way = self.under_way.saturating_sub(1);
        let place = self.counting.iter().position(|other| *other == id);
        let counts = place.map(|place| self.counting.swap_remove(place)).is_some();
        if error == 0 {
            return;
        }
        self.failures.insert(reads);
        let policy = if reads { self.created.on_source_error } else { self.created.on_target_error };
        self.must_tell |= counts;
        if counts && self.failed.is_none() {
            let stops = policy == "stop" || matches!(policy, "enospc" | "auto") && error == NO_SPACE;
            let why = if stops { "a failure that should stop it" } else { "a failure that its policy reports" };
            self.failed = (policy != "ignore").then_some(Stop { why, begun: 0 });
        }
    }

    /// Reading failed above the disk itself.
    pub fn reading_failed(&mut self) {
        self.failures.insert(true);
    }

    /// Judges what it has told of its failures; `events` are all of the machine's, `ended` is how it ended.
    pub fn judge_told(&self, events: &[(&'static str, Rc<Value>)], ended: Option<bool>, found: &mut Vec<Violation>) {
        let is_own = |(name, data): &&(&str, Rc<Value>)| {
            *name == "BLOCK_JOB_ERROR" && data["device"].as_str() == Some(&self.created.job)
        };
        let mut told = events.iter().filter(is_own).peekable();
        if ended == Some(true) && self.must_tell && told.peek().is_none() {
            found.push(self.violation(Breach::WrongEvent, "told nobody that its copying failed"));
        }
        for (_, data) in told {
            let reads = data["operation"].as_str() == Some("read");
            if !self.failures.contains(&reads) {
                let what = if reads { "reading" } else { "writing" };
                found.push(self.violation(Breach::WrongEvent, &format!("told that {what} failed, which it did not")));
            }
        }
    }

    /// Judges where it stands when it had all the time of the world; `group` are the states of the other members.
    pub fn judge_rest(&self, state: &str, group: &[&str], found: &mut Vec<Violation>) {
        if self.user_paused && !matches!(state, "paused" | "concluded" | "waiting" | "pending") {
            found.push(self.violation(Breach::WrongRest, &format!("was told to pause, and is {state}")));
        }
        let works = |other: &&str| matches!(*other, "created" | "running" | "paused");
        if state == "waiting" && !group.iter().any(works) {
            found.push(self.violation(Breach::WrongRest, "waits, though all of its group are done"));
        }
        if state == "pending" && self.created.auto_finalize && group.is_empty() {
            found.push(self.violation(Breach::WrongRest, "is pending, though it finalizes by itself"));
        }
    }

    /// Whether it belongs to a group.
    pub fn group(&self) -> Option<u64> {
        self.created.group
    }

    /// It went though nobody made it go, and the machine did not end.
    pub fn judge_end(&self, found: &mut Vec<Violation>) {
        self.judge_going_on(found);
        if self.went_unasked {
            found.push(self.violation(Breach::Unasked, "was dismissed though nobody asked for that"));
        }
    }

    /// The machine ended: jobs go with it.
    pub fn machine_ended(&mut self) {
        (self.went_unasked, self.went_on) = (false, false);
        self.state = "null";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::DiskPlace;

    const CLUSTER: u64 = 65536;
    const SECOND: Nanos = 1_000_000_000;

    fn conduct(speed: u64) -> Conduct {
        let created = BackupCreated {
            read_at: "disk".into(),
            place: DiskPlace::default(),
            target_place: DiskPlace::default(),
            job: "job0".into(),
            source: "disk".into(),
            target: "target".into(),
            sync: "full",
            mode: "never",
            bitmap: None,
            snapshot: None,
            cluster: CLUSTER,
            length: 64 * CLUSTER,
            group: None,
            on_source_error: "report",
            on_target_error: "report",
            auto_finalize: false,
            auto_dismiss: false,
            speed,
            workers: 1,
            max_chunk: CLUSTER,
        };
        let mut conduct = Conduct::new(Rc::new(created), 0);
        conduct.go_to("running", &mut Vec::new());
        conduct
    }

    /// Copies a cluster at each of these times, ns; how often that was wrong.
    fn copies(conduct: &mut Conduct, times: impl Iterator<Item = Nanos>) -> usize {
        let mut found = Vec::new();
        for now in times {
            conduct.begins(OwnRequest { id: now, begins_copy: true, bytes: CLUSTER }, now, &mut found);
            conduct.ends(now, true, 0);
        }
        found.len()
    }

    #[test]
    fn a_job_is_as_fast_as_it_may_be() {
        assert_eq!(copies(&mut conduct(CLUSTER), (0..20).map(|second| second * SECOND)), 0);
        assert_eq!(copies(&mut conduct(0), (0..20).map(|_| 0)), 0);
        assert!(copies(&mut conduct(CLUSTER), (0..20).map(|_| 0)) > 0);
    }

    #[test]
    fn a_job_that_is_told_to_stop_begins_one_more_copy_at_most() {
        for command in ["job-pause", "job-cancel"] {
            let mut job = conduct(0);
            job.command(command, None, None, 0);
            job.command(command, None, Some(true), 0);
            assert_eq!(copies(&mut job, std::iter::once(1)), 0);
            assert_eq!(copies(&mut job, std::iter::once(2)), 1, "{command}");
        }
        let mut resumed = conduct(0);
        resumed.command("job-pause", None, Some(true), 0);
        resumed.command("job-resume", None, None, 0);
        assert_eq!(copies(&mut resumed, 0..9), 0);
    }

    #[test]
    fn a_job_waits_until_it_is_asked() {
        for asks in [false, true] {
            let (mut job, mut found) = (conduct(0), Vec::new());
            if asks {
                job.command("job-finalize", None, None, 0);
                job.command("job-dismiss", None, None, 0);
            }
            for state in ["waiting", "pending", "concluded", "null"] {
                job.go_to(state, &mut found);
            }
            job.judge_end(&mut found);
            assert_eq!(found.len(), if asks { 0 } else { 2 }, "{found:?}");
        }
    }

    #[test]
    fn a_job_stops_at_a_failure_unless_it_was_asked_to_pause_meanwhile() {
        for asked in [false, true] {
            let (mut job, mut found) = (conduct(0), Vec::new());
            job.begins(OwnRequest { id: 1, begins_copy: true, bytes: CLUSTER }, 0, &mut found);
            if asked {
                job.asked_to_pause();
            }
            job.ends(1, true, 5);
            assert_eq!(copies(&mut job, 2..9), usize::from(!asked));
        }
    }

    #[test]
    fn a_job_that_its_user_has_paused_does_not_go_on() {
        for resumed in [false, true] {
            let (mut job, mut found) = (conduct(0), Vec::new());
            job.command("job-pause", None, Some(true), 0);
            if resumed {
                job.command("job-resume", None, None, 0);
            }
            for state in ["paused", "running", "waiting"] {
                job.go_to(state, &mut found);
            }
            assert_eq!(found.len(), usize::from(!resumed), "{found:?}");
        }
    }

    #[test]
    fn a_failure_of_its_own_is_told() {
        let (mut job, mut found) = (conduct(0), Vec::new());
        copies(&mut job, std::iter::once(0));
        job.begins(OwnRequest { id: 1, begins_copy: false, bytes: CLUSTER }, 0, &mut found);
        job.ends(1, false, 5);
        let told = |operation: &str| {
            let data = serde_json::json!({"device": "job0", "operation": operation, "action": "report"});
            [("BLOCK_JOB_ERROR", Rc::new(data))]
        };
        job.judge_told(&told("write"), Some(true), &mut found);
        assert!(found.is_empty(), "{found:?}");
        job.judge_told(&told("read"), Some(true), &mut found);
        job.judge_told(&[], Some(true), &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
