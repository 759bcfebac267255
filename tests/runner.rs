//! What each verb asks of a backend and writes, line by line: the runner on a backend that follows a script.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use backsim::scenario::ast::{FaultSpec, Workload};
use backsim::scenario::backend::{
    Actor, Backend, Event, ImageSpec, QemuImgOutput, QemuIoReply, RunError, WorkloadSummary,
};
use backsim::scenario::run::{CaseOutcome, Ending, run_case};
use backsim::scenario::{Case, parse};
use serde_json::{Map, Value, json};

/// Gives replies and events in the order of the script and notes what it was asked for.
#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

#[derive(Default)]
struct Script {
    replies: VecDeque<Value>,
    images: VecDeque<QemuImgOutput>,
    events: Vec<Event>,
    /// Events that come only when somebody waits.
    later: VecDeque<Event>,
    asked: Vec<String>,
}

fn event(name: &str, data: Value) -> Event {
    Event { name: name.to_owned().into(), data: data.into() }
}

fn status(id: &str, status: &str) -> Event {
    event("JOB_STATUS_CHANGE", json!({"id": id, "status": status}))
}

impl Scripted {
    fn replies(replies: impl IntoIterator<Item = Value>) -> Scripted {
        let script = Scripted::default();
        script.0.borrow_mut().replies.extend(replies);
        script
    }

    fn later(self, events: impl IntoIterator<Item = Event>) -> Scripted {
        self.0.borrow_mut().later.extend(events);
        self
    }

    fn images(self, outputs: impl IntoIterator<Item = QemuImgOutput>) -> Scripted {
        self.0.borrow_mut().images.extend(outputs);
        self
    }

    fn note(&self, asked: impl Into<String>) {
        self.0.borrow_mut().asked.push(asked.into());
    }

    fn asked(&self) -> Vec<String> {
        self.0.borrow().asked.clone()
    }

    fn reply(&self) -> Value {
        self.0.borrow_mut().replies.pop_front().unwrap_or_else(|| json!({"return": {}}))
    }
}

impl Backend for Scripted {
    async fn image(&self, spec: &ImageSpec) -> Result<(), RunError> {
        self.note(format!("image {} {} {:?} {:?}", spec.file, spec.format.word(), spec.size, spec.backing));
        Ok(())
    }
    async fn launch(&self) -> Result<(), RunError> {
        self.0.borrow_mut().events.clear();
        self.note("launch");
        Ok(())
    }
    async fn shutdown(&self) -> Result<(), RunError> {
        self.note("shutdown");
        Ok(())
    }
    async fn kill(&self) -> Result<(), RunError> {
        self.note("kill");
        Ok(())
    }
    async fn execute(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError> {
        self.note(format!("{command} {}", Value::Object(arguments.clone())));
        Ok(self.reply())
    }
    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        self.note(format!("{node}: {command}"));
        let output = "wrote 512/512 bytes at offset 0\n512 bytes, 1 ops; 00.00 sec (1 MiB/sec)\n";
        Ok(QemuIoReply { output: output.to_owned().into(), reply: json!({"return": ""}) })
    }
    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        self.note(format!("qemu-img {}", args.join(" ")));
        Ok(self.0.borrow_mut().images.pop_front().unwrap_or_default())
    }
    fn event(&self, index: usize) -> Option<Event> {
        self.0.borrow().events.get(index).cloned()
    }
    async fn wait_event(&self, index: usize, _timeout_ns: u64) -> Result<bool, RunError> {
        let mut script = self.0.borrow_mut();
        let next = script.later.pop_front();
        script.events.extend(next);
        Ok(script.events.len() > index)
    }
    fn now(&self) -> u64 {
        0
    }
    async fn sleep(&self, ns: u64) -> Result<(), RunError> {
        self.note(format!("sleep {ns}"));
        Ok(())
    }
    async fn add_fault(&self, spec: &FaultSpec) -> Result<(), RunError> {
        self.note(format!("fault {} {}", &*spec.node, spec.on.word()));
        Ok(())
    }
    async fn workload(&self, spec: &Workload) -> Result<WorkloadSummary, RunError> {
        Ok(WorkloadSummary { requests: spec.ops, ..WorkloadSummary::default() })
    }
    async fn concurrently(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError> {
        for (name, actor) in actors {
            self.note(format!("actor {name}"));
            actor.await?;
        }
        Ok(())
    }
}

/// Runs a future that never has to wait.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the scripted backend never makes anybody wait"),
    }
}

fn case(text: &str) -> Case {
    let cases = parse("test.yaml", text).and_then(|scenario| scenario.cases());
    match cases {
        Ok(mut cases) if cases.len() == 1 => cases.remove(0),
        Ok(cases) => panic!("{} cases", cases.len()),
        Err(mistakes) => panic!("{mistakes}"),
    }
}

fn run(backend: &Scripted, text: &str) -> CaseOutcome {
    finish(run_case(backend, &case(text)))
}

/// The transcript of `text`, which must pass.
fn transcript(backend: &Scripted, text: &str) -> String {
    let outcome = run(backend, text);
    assert_eq!(outcome.ending, Ending::Passed);
    outcome.transcript.text().to_owned()
}

const EVENT_TAIL: &str = r#""timestamp": {"microseconds": "USECS", "seconds": "SECS"}}"#;

#[test]
fn log_image_vm_sleep_and_fault() {
    let backend = Scripted::default();
    let text = "
steps:
  - log: one
  - log: ''
  - log: 5
  - image: img
    size: 1M
  - image: top
    backing: img
    backing-format: raw
  - vm: launch
  - sleep: 50us
  - fault: {node: drive0, on: write, error: EIO}
  - vm: shutdown
";
    assert_eq!(transcript(&backend, text), "one\n\n5\n");
    let asked = [
        "image TEST_DIR/PID-img qcow2 Some(1048576) None",
        "image TEST_DIR/PID-top qcow2 None Some((\"TEST_DIR/PID-img\", Raw))",
        "launch",
        "sleep 50000",
        "fault drive0 write",
        "shutdown",
    ];
    assert_eq!(backend.asked(), asked);
}

#[test]
fn execute_in_its_log_modes() {
    let error = json!({"error": {"class": "GenericError", "desc": "no"}});
    let replies = [json!({"return": {}}), json!({"return": {"b": 1, "a": []}}), error, json!({"return": 1})];
    let backend = Scripted::replies(replies);
    let text = "
steps:
  - execute: blockdev-add
    arguments: {node-name: n, x_y: [{new_state: 0x10}]}
  - {\"execute\": \"query-x\", \"log\": \"reply\", \"indent\": 2}
  - execute: bad
    log: reply
  - execute: hidden
    log: none
";
    let wanted = r#"{"execute": "blockdev-add", "arguments": {"node-name": "n", "x-y": [{"new-state": 16}]}}
{"return": {}}
{
  "a": [],
  "b": 1
}
{"error": {"class": "GenericError", "desc": "no"}}
"#;
    assert_eq!(transcript(&backend, text), wanted);
    assert_eq!(backend.asked()[0], r#"blockdev-add {"node-name":"n","x_y":[{"new_state":16}]}"#);
}

#[test]
fn qemu_io_with_and_without_its_output() {
    let backend = Scripted::default();
    let text = "
steps:
  - qemu-io: n
    commands: [write 0 512, flush]
  - qemu-io: n
    command: write 0 512
    output: true
  - qemu-io: n
    command: flush
    log: reply
  - qemu-io: n
    command: flush
    log: none
";
    let wanted = r#"write 0 512
{"return": ""}
flush
{"return": ""}
write 0 512
wrote 512/512 bytes at offset 0
{"return": ""}
{"return": ""}
"#;
    assert_eq!(transcript(&backend, text), wanted);
}

#[test]
fn run_job_reacts_to_each_status() {
    let backend = Scripted::default().later([
        status("j", "created"),
        status("other", "null"),
        status("j", "pending"),
        event("BLOCK_JOB_PENDING", json!({"id": "j", "type": "backup"})),
        status("j", "concluded"),
        status("j", "null"),
    ]);
    let text = "
steps:
  - run-job: j
    auto-finalize: false
    cancel: true
    pre-finalize:
      - log: now
";
    let wanted = format!(
        "now\n{}\n{}\n{}\n",
        r#"{"execute": "job-cancel", "arguments": {"id": "j"}}"#.to_owned() + "\n{\"return\": {}}",
        r#"{"data": {"id": "j", "type": "backup"}, "event": "BLOCK_JOB_PENDING", "#.to_owned() + EVENT_TAIL,
        r#"{"execute": "job-dismiss", "arguments": {"id": "j"}}"#.to_owned() + "\n{\"return\": {}}",
    );
    assert_eq!(transcript(&backend, text), wanted);
}

#[test]
fn run_job_tells_why_a_listed_job_failed() {
    let jobs = json!({"return": [{"id": "j", "error": "Input/output error"}, {"id": "k"}]});
    let events = [status("j", "aborting"), status("j", "null")];
    let backend = Scripted::replies([jobs]).later(events);
    assert_eq!(transcript(&backend, "steps: [{run-job: j}]"), "Job failed: Input/output error\n");
}

#[test]
fn events_wait_in_one_queue_and_are_shown_in_another_list() {
    let backend = Scripted::default().later([
        status("a", "created"),
        event("RESUME", json!({})),
        status("b", "created"),
        status("b", "running"),
    ]);
    let text = "
steps:
  - wait-event: JOB_STATUS_CHANGE
    match: {id: b}
    log: none
  - wait-event: JOB_STATUS_CHANGE
  - query-events: {}
    match: {id: b}
  - wait-event: JOB_STATUS_CHANGE
    match: {status: running}
    log: none
  - query-events: {}
  - query-events: {}
";
    let line = |id: &str, status: &str| {
        let data = format!(r#"{{"data": {{"id": "{id}", "status": "{status}"}}, "event": "JOB_STATUS_CHANGE", "#);
        data + EVENT_TAIL + "\n"
    };
    let wanted = line("a", "created") + &line("b", "created") + &line("b", "running");
    assert_eq!(transcript(&backend, text), wanted);
}

#[test]
fn a_wait_without_an_answer_ends_the_run() {
    let text = "
steps:
  - log: before
  - wait-event: STOP
    match: {a: 1}
    timeout: 200ms
  - log: after
";
    let outcome = run(&Scripted::default(), text);
    assert_eq!(outcome.transcript.text(), "before\n");
    let Ending::Failed { line, why, .. } = outcome.ending else {
        panic!("nothing came");
    };
    assert_eq!((line, why.as_str()), (4, r#"no event STOP with {"a": 1} within 200ms"#));
}

fn nodes(bitmaps: Value) -> Value {
    json!({"return": [{"node-name": "n", "dirty-bitmaps": bitmaps}, {"node-name": "bare"}]})
}

#[test]
fn bitmaps_are_listed_and_counted() {
    let bitmaps = json!([
        {"count": 0, "granularity": 65536, "recording": false},
        {"count": 131072, "granularity": 65536, "recording": true},
        {"name": "b", "count": 65536, "granularity": 65536, "recording": true},
    ]);
    let backend = Scripted::replies([json!({"return": []}), nodes(bitmaps.clone()), nodes(bitmaps)]);
    let text = "
steps:
  - query-bitmaps: {}
  - expect-bitmap: n
    name: b
    clusters: 2
  - expect-bitmap: n
    recording: true
    clusters: 2
";
    let wanted = "{\n  \"bitmaps\": {}\n}\n= Checking Bitmap b =\nexpecting 2 dirty sectors; have 1. ERROR!\n\n\
                  = Checking Bitmap (anonymous) =\nexpecting 2 dirty sectors; have 2. OK!\n\n";
    assert_eq!(transcript(&backend, text), wanted);
    let missing = run(&Scripted::replies([nodes(json!([]))]), "steps: [{expect-bitmap: n, name: x, clusters: 1}]");
    let Ending::Failed { why, .. } = missing.ending else {
        panic!("there is no such bitmap");
    };
    assert_eq!(why, "node 'n' has no bitmap 'x'");
}

#[test]
fn compare_and_qemu_img() {
    let output = |stdout: &str, stderr: &str, status| QemuImgOutput {
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
        status,
    };
    let outputs = [
        output("", "", 0),
        output("", "", 1),
        output("", "", 1),
        output("disk size: 196 KiB\n\n", "warning\n", 3),
        output("quiet\n", "", 0),
    ];
    let backend = Scripted::default().images(outputs);
    let text = "
steps:
  - compare: [a, b]
    backing: base
    expect: mismatch
  - compare: [a, b]
  - qemu-img: [info, TEST_DIR/PID-a]
  - qemu-img: [map, TEST_DIR/PID-a]
    log: reply
";
    let wanted = r#"qemu_img compare "TEST_DIR/PID-a" "TEST_DIR/PID-b" ==> Mismatch, OK!
qemu_img compare "TEST_DIR/PID-a" "TEST_DIR/PID-b" ==> Mismatch, ERROR!
qemu-img info TEST_DIR/PID-a
warning
disk size: SIZE
exit status 3
quiet
"#;
    assert_eq!(transcript(&backend, text), wanted);
    assert_eq!(backend.asked()[0], "qemu-img rebase -u -b TEST_DIR/PID-base -F qcow2 TEST_DIR/PID-a");
}

#[test]
fn actors_and_workloads() {
    let text = "
steps:
  - concurrently:
      one: [{log: 1}]
      two: [{log: 2}, {workload: n, ops: 3}, {workload: n, ops: 3, log: none}]
";
    let backend = Scripted::default();
    let wanted = "1\n2\nworkload n: 3 requests, 0 failed, 0 bytes written, 0 bytes read, 0 mismatches\n";
    assert_eq!(transcript(&backend, text), wanted);
    assert_eq!(backend.asked(), ["actor one", "actor two"]);
}

#[test]
fn every_line_knows_the_step_that_wrote_it() {
    let text = "procedures:\n  p:\n    steps:\n      - log: inner\nsteps:\n  - log: a\n  - use: p\n  - log: b\n";
    let outcome = run(&Scripted::default(), text);
    let origins: Vec<Option<u32>> = (1..=3).map(|line| outcome.transcript.origin(line)).collect();
    assert_eq!(origins, [Some(6), Some(4), Some(8)]);
    let inner = &case(text).steps[1];
    assert_eq!((inner.line, &*inner.via), (4, &[7][..]));
}
