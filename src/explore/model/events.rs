//! The events that a client of the machine has seen, job by job, against QEMU's order.
//!
//! Order and content are judged from the events alone; a job's options are known from its creation.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::Value;

use super::jobs::{BackupRecord, may_follow};
use super::violation::{Breach, Violation};

/// What the events have told about one job so far.
struct Seen {
    state: String,
    /// Its BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED.
    ended: bool,
    aborted: bool,
    ran: bool,
    told_pending: bool,
    /// A BLOCK_JOB_ERROR said that it pauses.
    pauses: bool,
}

impl Seen {
    fn created() -> Seen {
        Seen {
            state: "created".to_owned(),
            ended: false,
            aborted: false,
            ran: false,
            told_pending: false,
            pauses: false,
        }
    }
}

/// Judges all events of a machine's life; `jobs` are its backups, `errors` the numbers of those that devices gave.
pub fn judge_events(
    events: &[(&'static str, Rc<Value>)],
    jobs: &[BackupRecord],
    errors: &BTreeSet<i32>,
    found: &mut Vec<Violation>,
) {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    for (name, data) in events {
        let key = if matches!(*name, "JOB_STATUS_CHANGE" | "BLOCK_JOB_PENDING") { "id" } else { "device" };
        let Some(id) = data[key].as_str().filter(|_| name.contains("JOB")) else { continue };
        let wrong = match *name {
            "JOB_STATUS_CHANGE" => status(&mut seen, id, data["status"].as_str().unwrap_or_default(), jobs),
            "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" => ended(&mut seen, id, name, data, errors),
            "BLOCK_JOB_PENDING" => pending(&mut seen, id, jobs),
            "BLOCK_JOB_ERROR" => error(&mut seen, id, data, jobs, errors),
            _ => None,
        };
        if let Some(wrong) = wrong {
            found.push(Violation::new(Breach::WrongEvent, id, format!("job {id}: {wrong}")));
        }
    }
}

/// The newest backup of that name, if it is the only one: its options count for all events then.
fn options<'a>(jobs: &'a [BackupRecord], id: &str) -> Option<&'a BackupRecord> {
    let mut own = jobs.iter().filter(|job| &*job.created.job == id);
    own.next().filter(|_| own.next().is_none())
}

fn status(seen: &mut BTreeMap<String, Seen>, id: &str, next: &str, jobs: &[BackupRecord]) -> Option<String> {
    if next == "created" {
        seen.insert(id.to_owned(), Seen::created());
        return None;
    }
    let job = seen.get_mut(id)?;
    let last = std::mem::replace(&mut job.state, next.to_owned());
    job.ran |= next == "running";
    job.aborted |= next == "aborting";
    let options = options(jobs, id);
    let paused_late = std::mem::take(&mut job.pauses) && !matches!(next, "paused" | "aborting");
    if !may_follow(&last, next) {
        Some(format!("event {next} after event {last}"))
    } else if paused_late {
        Some(format!("an error should pause it, but it went from {last} to {next}"))
    } else if next == "concluded" && job.ran && !job.ended && options.is_some() {
        Some("concluded before it was said how it ended".to_owned())
    } else if last == "pending"
        && next == "concluded"
        && !job.told_pending
        && options.is_some_and(|options| !options.created.auto_finalize)
    {
        Some("finalized without BLOCK_JOB_PENDING, though its user wanted to be asked".to_owned())
    } else {
        None
    }
}

/// ENOSPC.
const NO_SPACE: i32 = 28;

/// What the C library says of an errno, of those that devices give here.
fn text_of(error: i32) -> Option<&'static str> {
    let texts = [(5, "Input/output error"), (28, "No space left on device"), (125, "Operation canceled")];
    texts.iter().find(|(number, _)| *number == error).map(|(_, text)| *text)
}

fn ended(
    seen: &mut BTreeMap<String, Seen>,
    id: &str,
    name: &str,
    data: &Value,
    errors: &BTreeSet<i32>,
) -> Option<String> {
    let job = seen.get_mut(id)?;
    let failed = data.get("error").is_some();
    if std::mem::replace(&mut job.ended, true) {
        return Some(format!("a second {name}"));
    }
    if !matches!(job.state.as_str(), "pending" | "aborting") {
        return Some(format!("{name} in state {}", job.state));
    }
    if data["offset"].as_u64() > data["len"].as_u64() {
        return Some("its last event says that more was copied than there is".to_owned());
    }
    let told = data["error"].as_str().unwrap_or_default();
    let texts: Vec<Option<&str>> = errors.iter().chain([&125]).map(|error| text_of(*error)).collect();
    if failed && texts.iter().all(Option::is_some) && !texts.contains(&Some(told)) {
        return Some(format!("it failed for '{told}', which no device gave"));
    }
    match (name, job.aborted, failed) {
        ("BLOCK_JOB_CANCELLED", false, _) => Some("cancelled without aborting".to_owned()),
        ("BLOCK_JOB_COMPLETED", true, false) => Some("aborted, but completed without an error".to_owned()),
        ("BLOCK_JOB_COMPLETED", false, true) => Some("completed with an error, but never aborted".to_owned()),
        _ => None,
    }
}

fn pending(seen: &mut BTreeMap<String, Seen>, id: &str, jobs: &[BackupRecord]) -> Option<String> {
    let job = seen.get_mut(id)?;
    if std::mem::replace(&mut job.told_pending, true) {
        return Some("a second BLOCK_JOB_PENDING".to_owned());
    }
    if job.state != "pending" {
        return Some(format!("BLOCK_JOB_PENDING in state {}", job.state));
    }
    let automatic = options(jobs, id).is_some_and(|options| options.created.auto_finalize);
    automatic.then(|| "BLOCK_JOB_PENDING, though it finalizes by itself".to_owned())
}

fn error(
    seen: &mut BTreeMap<String, Seen>,
    id: &str,
    data: &Value,
    jobs: &[BackupRecord],
    errors: &BTreeSet<i32>,
) -> Option<String> {
    let job = seen.get_mut(id)?;
    let action = data["action"].as_str().unwrap_or_default();
    if job.state != "running" {
        return Some(format!("BLOCK_JOB_ERROR in state {}", job.state));
    }
    job.pauses = action == "stop";
    let created = &options(jobs, id)?.created;
    let is_read = data["operation"].as_str() == Some("read");
    let policy = if is_read { created.on_source_error } else { created.on_target_error };
    let agrees = match policy {
        // Only a full disk stops the job; which of several errors it was nobody can know.
        "enospc" | "auto" => match (errors.contains(&NO_SPACE), errors.len()) {
            (true, 1) => action == "stop",
            (true, _) => action == "stop" || action == "report",
            (false, _) => action == "report",
        },
        other => action == other,
    };
    (!agrees).then(|| format!("an error was met with {action}, its policy is {policy}"))
}
