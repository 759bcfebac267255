//! A run step by step: what each step did, in words and as a footprint.
//!
//! A story is recorded from the trace while a run is made by name; nothing here runs anything or knows what was
//! broken. Words are for people: clusters instead of bytes, the command instead of the wake-up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::errno::Errno;
use crate::sim::trace::Stamped;
use crate::sim::{ChoicePoint, Strategy, TraceEvent};

use super::run::{Listener, RunReport, Setup, run_in_detail};
use super::schedule::{Record, Scribe, StepName, short};

/// One step of a run: an arrival, or an event of the loop before which something else could have come.
#[derive(Clone, Debug, Default)]
pub struct StoryStep {
    /// The arrival; none for an event of the loop.
    pub name: Option<StepName>,
    /// Whether QEMU's own order has another step here.
    pub departs: bool,
    /// What it did: on whose behalf, and what the trace said.
    pub events: Vec<(Option<Rc<str>>, TraceEvent)>,
    /// How many invariants were broken by its end.
    pub broken: usize,
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Its steps in order.
    pub steps: Vec<StoryStep>,
}

/// Begins a step in the story wherever the strategy behind it is asked.
struct Teller<S> {
    inner: S,
    record: Rc<RefCell<Record>>,
    story: Rc<RefCell<Story>>,
}

impl<S> Teller<S> {
    fn begin(&self) {
        self.story.borrow_mut().steps.push(StoryStep::default());
    }

    /// The scribe has just written the arrival down, if it was one.
    fn name(&self, before: usize) {
        if let Some((name, departs)) = self.record.borrow().arrivals.get(before)
            && let Some(step) = self.story.borrow_mut().steps.last_mut()
        {
            (step.name, step.departs) = (Some(name.clone()), *departs);
        }
    }
}

impl<S: Strategy> Strategy for Teller<S> {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        self.begin();
        let before = self.record.borrow().arrivals.len();
        let taken = self.inner.next_step(point);
        self.name(before);
        taken
    }

    fn forced_step(&mut self, point: &ChoicePoint<'_>) {
        self.begin();
        let before = self.record.borrow().arrivals.len();
        self.inner.forced_step(point);
        self.name(before);
    }

    fn pick(&mut self, n: usize, what: &'static str) -> usize {
        self.inner.pick(n, what)
    }
}

/// Makes a run and tells it.
pub fn tell(setup: &Setup, strategy: Box<dyn Strategy>) -> (RunReport, Record, Story) {
    let story: Rc<RefCell<Story>> = Rc::default();
    let (scribe, record) = Scribe::new(strategy);
    let teller = Teller { inner: scribe, record: record.clone(), story: story.clone() };
    let pages = story.clone();
    let listener: Listener = Box::new(move |stamped: &Stamped, broken| {
        if let Some(step) = pages.borrow_mut().steps.last_mut() {
            step.events.push((stamped.owner.clone(), stamped.event.clone()));
            step.broken = broken;
        }
    });
    let report = run_in_detail(setup, Box::new(teller), Some(listener));
    let mut story = story.take();
    let mut broken = 0;
    for step in &mut story.steps {
        broken = broken.max(step.broken);
        step.broken = broken;
    }
    (report, record.take(), story)
}

/// Says what events are, in clusters of the job's size; follows requests from their beginning to their end.
#[derive(Clone, Debug)]
pub struct Words {
    cluster: u64,
    requests: BTreeMap<u64, (Rc<str>, &'static str, u64, u64)>,
}

impl Words {
    /// For this run.
    pub fn new(story: &Story) -> Words {
        let events = story.steps.iter().flat_map(|step| &step.events);
        let cluster = events.into_iter().find_map(|(_, event)| match event {
            TraceEvent::BackupCreated(created) => Some(created.cluster),
            _ => None,
        });
        Words { cluster: cluster.unwrap_or(64 << 10).max(1), requests: BTreeMap::new() }
    }

    /// A range of bytes: `cluster 1`, `clusters 0-3`, or bytes inside of a cluster.
    pub fn range(&self, offset: u64, bytes: u64) -> String {
        if bytes == 0 {
            return format!("byte {offset}");
        }
        let (first, last) = (offset / self.cluster, (offset + bytes - 1) / self.cluster);
        if first != last {
            return format!("clusters {first}-{last}");
        }
        if offset % self.cluster == 0 && bytes == self.cluster {
            return format!("cluster {first}");
        }
        format!("{}+{} in cluster {first}", short(offset), short(bytes))
    }

    /// What an arrival is.
    pub fn arrival(&self, name: &StepName) -> String {
        let parts: Vec<&str> = name.step.split(' ').collect();
        let [what @ ("read" | "write" | "discard"), object, range] = parts[..] else { return name.step.clone() };
        let Some((offset, bytes)) = range.split_once('+') else { return name.step.clone() };
        let number = |text: &str| crate::units::parse_size(text).unwrap_or(0);
        let done = match what {
            "read" => "has read",
            "write" => "has written",
            _ => "has discarded",
        };
        format!("{done} {} of {object}", self.range(number(offset), number(bytes)))
    }

    /// What an event says, if a reader of a report wants to know it.
    pub fn event(&mut self, event: &TraceEvent) -> Option<String> {
        Some(match event {
            TraceEvent::RequestBegin { id, node, operation, offset, bytes, .. } => {
                self.requests.insert(*id, (node.clone(), operation, *offset, *bytes));
                return None;
            }
            TraceEvent::RequestEnd { id, error } => {
                let (node, operation, offset, bytes) = self.requests.remove(id)?;
                if *error == 0 || node.starts_with('#') {
                    return None;
                }
                format!("{operation} of {node} fails: {}, {}", Errno(*error), self.range(offset, bytes))
            }
            TraceEvent::Bits { bitmap, offset, bytes, set, .. } => {
                let change = if *set { "set" } else { "cleared" };
                format!("{bitmap}: {} {change}", self.range(*offset, *bytes))
            }
            TraceEvent::BackupCreated(created) => format!("{}: point in time of {}", created.job, created.source),
            TraceEvent::BackupSettled { job, success, bitmap } => {
                let how = if *success { "success" } else { "failure" };
                let left = bitmap.as_ref().map(|dump| {
                    let areas: Vec<String> = dump.dirty.iter().map(|(at, bytes)| self.range(*at, *bytes)).collect();
                    let areas = if areas.is_empty() { "nothing".to_owned() } else { areas.join(", ") };
                    format!("; {} holds {areas}", dump.name)
                });
                format!("{job} settles: {how}{}", left.unwrap_or_default())
            }
            TraceEvent::SnapshotOpened { source, .. } => format!("snapshot of {source} begins"),
            TraceEvent::SnapshotRead { offset, content, .. } => {
                let bytes = content.iter().map(|(bytes, _)| bytes).sum();
                format!("reader gets {}", self.range(*offset, bytes))
            }
            TraceEvent::JobEnded { id, cancelled, failed, .. } => {
                let how = match (cancelled, failed) {
                    (true, _) => "is cancelled",
                    (_, true) => "has failed",
                    _ => "has completed",
                };
                format!("{id} {how}")
            }
            TraceEvent::JobStatus { id, status } => format!("{id} {status}"),
            TraceEvent::GuestEnd { error, .. } if *error != 0 => format!("guest gets {}", Errno(*error)),
            TraceEvent::Killed => "the machine is killed".to_owned(),
            _ => return None,
        })
    }
}

/// Something that a step touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    /// A disk, a bitmap, a job.
    pub what: String,
    /// First byte.
    pub start: u64,
    /// Behind the last byte; equal to the first where bytes make no sense.
    pub end: u64,
    /// Whether it was changed.
    pub writes: bool,
}

/// What a step touched, as far as the trace tells.
pub fn footprint(step: &StoryStep) -> Vec<Touch> {
    let mut touched = Vec::new();
    let mut touch = |what: String, offset: u64, bytes: u64, writes: bool| {
        // Nodes that nobody has named stand for those below them.
        if what.starts_with('#') {
            return;
        }
        touched.push(Touch { what, start: offset, end: offset.saturating_add(bytes), writes });
    };
    if let Some(name) = &step.name {
        let parts: Vec<&str> = name.step.split(' ').collect();
        if let ["fault:", _, "of", node, "fails"] = parts[..] {
            touch(node.to_owned(), 0, u64::MAX, true);
        }
        if let [what @ ("read" | "write" | "discard"), object, range] = parts[..]
            && let Some((offset, bytes)) = range.split_once('+')
            && let (Ok(offset), Ok(bytes)) = (crate::units::parse_size(offset), crate::units::parse_size(bytes))
        {
            touch(object.to_owned(), offset, bytes, what != "read");
        }
    }
    for (_, event) in &step.events {
        match event {
            TraceEvent::RequestBegin { node, operation, offset, bytes, .. } => {
                touch(node.to_string(), *offset, *bytes, *operation != "read");
            }
            TraceEvent::Bits { node, bitmap, offset, bytes, .. } => {
                touch(format!("{bitmap} of {node}"), *offset, *bytes, true);
            }
            TraceEvent::JobStatus { id, .. } | TraceEvent::JobEnded { id, .. } => {
                touch(format!("job {id}"), 0, 0, true);
            }
            TraceEvent::BackupCreated(created) => {
                touch(format!("job {}", created.job), 0, 0, true);
                touch(created.source.to_string(), 0, created.length, false);
            }
            TraceEvent::BackupSettled { job, bitmap, .. } => {
                touch(format!("job {job}"), 0, 0, true);
                if let Some(dump) = bitmap {
                    touch(format!("{} of {}", dump.name, dump.node), 0, u64::MAX, true);
                }
            }
            TraceEvent::SnapshotOpened { source, .. } => touch(source.to_string(), 0, u64::MAX, false),
            _ => {}
        }
    }
    touched.sort();
    touched.dedup();
    touched
}

/// What both footprints have, where at least one changes it.
pub fn common(one: &[Touch], other: &[Touch]) -> Vec<Touch> {
    let mut found = Vec::new();
    for own in one {
        for theirs in other.iter().filter(|theirs| theirs.what == own.what && (theirs.writes || own.writes)) {
            let (start, end) = (own.start.max(theirs.start), own.end.min(theirs.end));
            if start < end || own.start == own.end && theirs.start == theirs.end {
                found.push(Touch { what: own.what.clone(), start, end: end.max(start), writes: true });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}
