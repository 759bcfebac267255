//! What happened in a run as Chrome trace-event JSON, which ui.perfetto.dev opens.
//!
//! Each case is a process; its lanes are threads: the scenario's steps, the monitor, one lane a job, one a
//! node (several where its requests overlap). Virtual time stands still while nothing waits for a device, so
//! events of one moment are shown a nanosecond apart, in their order; `time` has the true one. Must never
//! depend on anything but the events.

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
    /// A part of a file in which so many cases come before.
    pub fn after(cases: u32) -> ChromeTrace {
        ChromeTrace { body: String::new(), cases }
    }

    /// Adds what was made apart by [`ChromeTrace::after`].
    pub fn append(&mut self, part: &ChromeTrace) {
        if !self.body.is_empty() && !part.body.is_empty() {
            self.body.push_str(",\n");
        }
        self.body.push_str(&part.body);
        self.cases = part.cases;
    }

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

/// Something that has begun and not ended yet.
struct Open {
    lane: Lane,
    name: String,
    /// Where it is shown to begin, ns.
    begin: Nanos,
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

    /// Something that lasted until it was shown to end at `end`.
    fn span(&mut self, open: Open, end: Nanos) {
        let Open { lane, name, begin, details } = open;
        let (pid, tid) = (self.trace.cases, self.lane(lane));
        let (ts, dur) = (microseconds(begin), microseconds(end - begin));
        let event = json!({"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": details});
        self.trace.push(&event);
    }

    /// A moment with a name, shown at `at`.
    fn instant(&mut self, lane: Lane, name: &str, at: Nanos, details: &Value) {
        let (pid, tid) = (self.trace.cases, self.lane(lane));
        let ts = microseconds(at);
        let event = json!({"ph": "i", "s": "t", "name": name, "pid": pid, "tid": tid, "ts": ts, "args": details});
        self.trace.push(&event);
    }

    fn events(&mut self, events: &[Stamped]) {
        let mut requests: BTreeMap<u64, Open> = BTreeMap::new();
        // What the lanes that always show a state show now: the steps, and each job.
        let mut states: BTreeMap<Lane, Open> = BTreeMap::new();
        let mut at = 0;
        for (index, Stamped { time, task, event, .. }) in events.iter().enumerate() {
            at = if index == 0 { *time } else { (*time).max(at + 1) };
            let (time, task) = (*time, task.as_deref());
            match event {
                TraceEvent::RequestBegin { id, node, operation, offset, bytes, .. } => {
                    let lane = free_lane(&requests, node);
                    let details = json!({"time": time, "offset": offset, "bytes": bytes, "task": task});
                    let name = (*operation).to_owned();
                    requests.insert(*id, Open { lane, name, begin: at, details });
                }
                TraceEvent::RequestEnd { id, error } => {
                    let Some(mut open) = requests.remove(id) else { continue };
                    if *error != 0 {
                        open.details["error"] = json!(error);
                    }
                    self.span(open, at);
                }
                TraceEvent::JobStatus { id, status } => {
                    let lane = Lane::Job(id.to_string());
                    let name = (*status).to_owned();
                    self.state(&mut states, Open { lane, name, begin: at, details: json!({"time": time}) });
                }
                TraceEvent::Step { line, text } => {
                    let details = json!({"time": time, "line": line, "task": task});
                    self.state(&mut states, Open { lane: Lane::Steps, name: text.to_string(), begin: at, details });
                }
                TraceEvent::QmpEvent { name } => {
                    self.instant(Lane::Monitor, name, at, &json!({"time": time, "task": task}));
                }
                TraceEvent::Blkdebug { node, event } => {
                    let lane = Lane::Node(node.to_string(), 0);
                    self.instant(lane, event, at, &json!({"time": time, "task": task}));
                }
                // What only checkers of a run need.
                _ => {}
            }
        }
        for open in states.into_values() {
            self.span(open, at);
        }
        for mut open in requests.into_values() {
            open.details["unfinished"] = json!(true);
            self.span(open, at);
        }
    }

    /// Ends the state that the lane of `next` shows, and begins `next`.
    fn state(&mut self, states: &mut BTreeMap<Lane, Open>, next: Open) {
        let begin = next.begin;
        // The lane gets its place when it is first heard of, not when its first state ends.
        self.lane(next.lane.clone());
        if let Some(last) = states.insert(next.lane.clone(), next) {
            self.span(last, begin);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: Nanos, event: TraceEvent) -> Stamped {
        Stamped { time, task: Some("guest".into()), owner: None, event }
    }

    #[test]
    fn a_run_is_shown_in_lanes() {
        let begin = |id, offset| TraceEvent::RequestBegin {
            id,
            node: "drive0".into(),
            operation: "write",
            offset,
            bytes: 512,
            device: true,
        };
        let job = |status| TraceEvent::JobStatus { id: "backup".into(), status };
        let events = [
            at(0, TraceEvent::Step { line: 3, text: "execute".into() }),
            at(0, begin(0, 0)),
            at(0, begin(1, 4096)),
            at(0, job("created")),
            at(2500, TraceEvent::RequestEnd { id: 0, error: 5 }),
            at(2500, job("running")),
            at(2500, TraceEvent::QmpEvent { name: "JOB_STATUS_CHANGE" }),
        ];
        let mut trace = ChromeTrace::default();
        trace.case("a", &events);
        let text = trace.finish();
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        assert_eq!(text, include_str!("chrome_trace_golden.json"), "\n{text}");
    }
}
