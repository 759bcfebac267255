//! What happened in a run as Chrome trace-event JSON, which ui.perfetto.dev opens.
//!
//! Each case is a process; its lanes are threads: the scenario's steps, the monitor, one lane a job, one a
//! node (several where its requests overlap). Virtual nanoseconds are shown as microseconds with three
//! decimals, the format's unit. Must never depend on anything but the events.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::sim::Nanos;
use crate::sim::trace::{Stamped, TraceEvent};

/// The file as far as it has been written.
#[derive(Debug, Default)]
pub struct ChromeTrace {
    body: String,
    cases: u32,
}

impl ChromeTrace {
    /// Adds the events of a case.
    pub fn case(&mut self, name: &str, events: &[Stamped]) {
        self.cases += 1;
        let mut lanes = Lanes { trace: self, names: BTreeMap::new() };
        lanes.process(name);
        lanes.events(events);
    }

    /// The whole file.
    pub fn finish(self) -> String {
        format!("{{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n{}\n]}}\n", self.body)
    }

    fn push(&mut self, event: &Value) {
        if !self.body.is_empty() {
            self.body.push_str(",\n");
        }
        // Writing to a string can't fail.
        let _ = write!(self.body, "{event}");
    }
}

/// The kinds of lanes, in the order they are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Steps,
    Monitor,
    Job(String),
    /// The second number tells apart lanes of the same node that overlap.
    Node(String, u32),
}

/// One case on its way into the file.
struct Lanes<'a> {
    trace: &'a mut ChromeTrace,
    /// The thread number of each lane.
    names: BTreeMap<Lane, u32>,
}

/// A request that has not ended yet.
struct Open {
    begin: Nanos,
    lane: Lane,
    name: &'static str,
    details: Value,
}

impl Lanes<'_> {
    fn process(&mut self, name: &str) {
        let pid = self.trace.cases;
        self.trace.push(&json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}));
        let order = json!({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}});
        self.trace.push(&order);
    }

    /// The thread number of `lane`, with its name told at its first use.
    fn lane(&mut self, lane: Lane) -> u32 {
        if let Some(tid) = self.names.get(&lane) {
            return *tid;
        }
        let tid = u32::try_from(self.names.len()).unwrap_or(u32::MAX - 1) + 1;
        let (group, name) = match &lane {
            Lane::Steps => (0, "steps".to_owned()),
            Lane::Monitor => (1, "monitor".to_owned()),
            Lane::Job(id) => (2, format!("job {id}")),
            Lane::Node(node, 0) => (3, format!("node {node}")),
            Lane::Node(node, more) => (3, format!("node {node} ({})", more + 1)),
        };
        let pid = self.trace.cases;
        self.trace.push(&json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}));
        // Lanes of a group stay together, in the order of their first events.
        let index = group * 1_000_000 + tid;
        let order =
            json!({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": index}});
        self.trace.push(&order);
        self.names.insert(lane, tid);
        tid
    }

    /// A stretch of time with a name.
    fn span(&mut self, lane: Lane, name: &str, begin: Nanos, end: Nanos, details: &Value) {
        let (pid, tid) = (self.trace.cases, self.lane(lane));
        let (ts, dur) = (microseconds(begin), microseconds(end.saturating_sub(begin)));
        let event = json!({"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": details});
        self.trace.push(&event);
    }

    /// A moment with a name.
    fn instant(&mut self, lane: Lane, name: &str, time: Nanos, details: &Value) {
        let (pid, tid) = (self.trace.cases, self.lane(lane));
        let ts = microseconds(time);
        let event = json!({"ph": "i", "s": "t", "name": name, "pid": pid, "tid": tid, "ts": ts, "args": details});
        self.trace.push(&event);
    }

    fn events(&mut self, events: &[Stamped]) {
        let end = events.last().map_or(0, |event| event.time);
        let mut requests: BTreeMap<u64, Open> = BTreeMap::new();
        // What each lane of states shows now, and since when.
        let mut steps: Option<(String, Nanos, Value)> = None;
        let mut jobs: BTreeMap<String, (&'static str, Nanos)> = BTreeMap::new();
        for Stamped { time, task, event } in events {
            let task = task.as_deref();
            match event {
                TraceEvent::RequestBegin { id, node, operation, offset, bytes } => {
                    let lane = free_lane(&requests, node);
                    let details = json!({"offset": offset, "bytes": bytes, "task": task});
                    requests.insert(*id, Open { begin: *time, lane, name: operation, details });
                }
                TraceEvent::RequestEnd { id, error } => {
                    let Some(mut open) = requests.remove(id) else { continue };
                    if *error != 0 {
                        open.details["error"] = json!(error);
                    }
                    self.span(open.lane, open.name, open.begin, *time, &open.details);
                }
                TraceEvent::JobStatus { id, status } => {
                    if let Some((status, begin)) = jobs.insert(id.to_string(), (status, *time)) {
                        self.span(Lane::Job(id.to_string()), status, begin, *time, &json!({}));
                    }
                }
                TraceEvent::QmpEvent { name } => {
                    self.instant(Lane::Monitor, name, *time, &json!({"task": task}));
                }
                TraceEvent::Step { line, text } => {
                    let next = (text.to_string(), *time, json!({"line": line, "task": task}));
                    if let Some((text, begin, details)) = steps.replace(next) {
                        self.span(Lane::Steps, &text, begin, *time, &details);
                    }
                }
                TraceEvent::Blkdebug { node, event } => {
                    self.instant(Lane::Node(node.to_string(), 0), event, *time, &json!({"task": task}));
                }
            }
        }
        if let Some((text, begin, details)) = steps {
            self.span(Lane::Steps, &text, begin, end, &details);
        }
        for (id, (status, begin)) in jobs {
            self.span(Lane::Job(id), status, begin, end, &json!({}));
        }
        for (_, mut open) in requests {
            open.details["unfinished"] = json!(true);
            self.span(open.lane, open.name, open.begin, end, &open.details);
        }
    }
}

/// The first lane of `node` on which no request is open: spans of one lane must not overlap.
fn free_lane(requests: &BTreeMap<u64, Open>, node: &str) -> Lane {
    let mut number = 0;
    loop {
        let lane = Lane::Node(node.to_owned(), number);
        if !requests.values().any(|open| open.lane == lane) {
            return lane;
        }
        number += 1;
    }
}

/// Nanoseconds as the format's unit, exactly up to 104 days.
fn microseconds(time: Nanos) -> Value {
    if time % 1000 == 0 { json!(time / 1000) } else { json!(time as f64 / 1000.0) }
}
