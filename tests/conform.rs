//! Runs on a real QEMU: that it is driven rightly, and that it is gone whatever happens.
//!
//! Without qemu-system and qemu-img (`QEMU_PROG`, `QEMU_IMG_PROG`, or in `PATH`) these tests say so and pass.

use std::path::Path;
use std::time::Duration;

use backsim::conform::forced::force;
use backsim::conform::real::{RealOptions, TroubleKind};
use backsim::conform::{Qemu, QemuError, RealRun, Repeat, Side, Trial, Verdict, run_real};
use backsim::explore::file::{NamedDeparture, ReplayFile};
use backsim::explore::search::{learn, transcribe};
use backsim::explore::{Kind, Setup};
use backsim::scenario::run::Ending;
use backsim::scenario::{Case, parse};

/// The QEMU of this machine, if it has one.
fn qemu() -> Option<Qemu> {
    match Qemu::find(None, None, Duration::from_secs(20)) {
        Ok(qemu) => Some(qemu),
        Err(error @ QemuError::Missing { .. }) => {
            eprintln!("SKIPPED, nothing was compared with real QEMU: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn case(text: &str) -> Case {
    let scenario = parse("test.yaml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    scenario.cases().unwrap_or_else(|mistakes| panic!("{mistakes}")).remove(0)
}

fn run(options: &RealOptions, text: &str) -> RealRun {
    run_real(options, &case(text), None)
}

const ROUND: &str = r#"
steps:
  - image: base
    format: raw
    size: 1M
  - image: img
    backing: base
    backing-format: raw
    cluster-size: 4K
  - vm: launch
  - execute: blockdev-add
    arguments: {node-name: n, driver: qcow2, file: {driver: file, filename: TEST_DIR/PID-img}}
  - qemu-io: n
    command: write -P1 0 4k
    output: true
  - execute: blockdev-add
    arguments: {node-name: none, driver: file, filename: TEST_DIR/PID-none}
  - execute: blockdev-create
    arguments: {job-id: j, options: {driver: file, filename: TEST_DIR/PID-new, size: 0}}
    log: reply
  - run-job: j
  - vm: shutdown
  - query-events: {}
    match: {reason: host-qmp-quit}
  - qemu-img: [map, TEST_DIR/PID-img]
"#;

const ROUND_WRITES: &str = r#"{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": {"driver": "file", "filename": "TEST_DIR/PID-img"}, "node-name": "n"}}
{"return": {}}
write -P1 0 4k
wrote 4096/4096 bytes at offset 0
{"return": ""}
{"execute": "blockdev-add", "arguments": {"driver": "file", "filename": "TEST_DIR/PID-none", "node-name": "none"}}
{"error": {"class": "GenericError", "desc": "Could not open 'TEST_DIR/PID-none': No such file or directory"}}
{}
{"execute": "job-dismiss", "arguments": {"id": "j"}}
{"return": {}}
{"data": {"guest": false, "reason": "host-qmp-quit"}, "event": "SHUTDOWN", "timestamp": {"microseconds": "USECS", "seconds": "SECS"}}
qemu-img map TEST_DIR/PID-img
Offset          Length          Mapped to       File
"#;

#[test]
fn a_scenario_runs_and_no_path_shows() {
    let Some(qemu) = qemu() else { return };
    let run = run(&qemu.options, ROUND);
    assert_eq!(run.trouble, None);
    assert_eq!(run.outcome.ending, Ending::Passed);
    let text = run.outcome.transcript.text();
    // Where qcow2 puts the data is not what is tested here.
    let map = text.strip_prefix(ROUND_WRITES).unwrap_or_else(|| panic!("not as expected:\n{text}"));
    assert!(map.starts_with("0               0x1000 ") && map.ends_with("TEST_DIR/PID-img\n"), "{map}");
}

/// qemu-io has a command that aborts the process it runs in.
const ABORT: &str = "steps:
  - vm: launch
  - execute: blockdev-add
    arguments: {node-name: n, driver: null-co, size: 65536}
  - qemu-io: n
    command: abort
";

#[test]
fn a_qemu_that_dies_is_a_result_with_its_output() {
    let Some(qemu) = qemu() else { return };
    let run = run(&qemu.options, ABORT);
    let trouble = run.trouble.expect("it died");
    assert!(matches!(&trouble.kind, TroubleKind::Died(how) if how.contains("SIGABRT")), "{trouble:?}");
    assert!(matches!(run.outcome.ending, Ending::Failed { line: 5, .. }), "{:?}", run.outcome.ending);
}

#[test]
fn a_qemu_that_hangs_is_ended() {
    let Some(qemu) = qemu() else { return };
    let options = RealOptions { patience: Duration::from_secs(1), ..qemu.options };
    let run = run(&options, &ABORT.replace("abort", "sleep 600000"));
    let trouble = run.trouble.expect("it hangs");
    assert!(matches!(&trouble.kind, TroubleKind::Hung { seconds: 1, .. }), "{trouble:?}");
}

#[test]
fn a_wait_in_vain_is_a_failed_run_and_no_trouble() {
    let Some(qemu) = qemu() else { return };
    let run = run(&qemu.options, "steps:\n  - vm: launch\n  - wait-event: JOB_STATUS_CHANGE\n    timeout: 50ms\n");
    assert_eq!(run.trouble, None);
    assert!(matches!(run.outcome.ending, Ending::Failed { line: 3, .. }), "{:?}", run.outcome.ending);
}

#[test]
fn a_program_that_is_no_qemu_is_told_as_such() {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = |name: &str, script: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made a program");
        path
    };
    let img = fake("img", "echo qemu-img version 0");
    let dies = fake("dies", "echo no such machine >&2; exit 3");
    let error = Qemu::find(Some(&dies), Some(&img), Duration::from_secs(5)).expect_err("it dies").to_string();
    assert!(error.contains("exit status 3") && error.contains("no such machine"), "{error}");
    let hangs = fake("hangs", "exec sleep 600");
    let error = Qemu::find(Some(&hangs), Some(&img), Duration::from_millis(200)).expect_err("it hangs").to_string();
    assert!(error.contains("does not open its monitor"), "{error}");
    let error = Qemu::find(Some(&dies), Some(Path::new("/nowhere/img")), Duration::from_secs(1)).expect_err("missing");
    assert!(error.to_string().contains("--qemu-img"), "{error}");
}

#[test]
fn files_are_kept_where_one_asks_for_it() {
    let Some(qemu) = qemu() else { return };
    let keep = tempfile::tempdir().expect("a directory");
    let run = run_real(&qemu.options, &case(ROUND), Some(keep.path()));
    let kept = run.kept.expect("kept");
    for file in ["PID-img", "PID-new", "qemu-0.out", "qemu-0.err"] {
        assert!(kept.join(file).is_file(), "{file} is not in {}", kept.display());
    }
}

#[test]
fn the_verdict_comes_from_both_sides() {
    let Some(qemu) = qemu() else { return };
    let text = "steps:\n  - log: a\n  - vm: launch\n  - vm: kill\n  - log: b\n";
    let verdict = |transcript: &str| {
        let model = |_: &Case| Side { transcript: transcript.to_owned(), ending: Ending::Passed };
        let repeat = Repeat { runs: 2, only_if_different: false };
        Trial { qemu: &qemu, model: &model, repeat, orders: 0, keep: None }.case(&case(text)).verdict
    };
    assert_eq!(verdict("a\nb\n"), Verdict::Same);
    assert!(matches!(verdict("a\nc\n"), Verdict::Different(_)));
    let panics = |_: &Case| -> Side { panic!("no such thing") };
    let repeat = Repeat { runs: 1, only_if_different: true };
    let report = Trial { qemu: &qemu, model: &panics, repeat, orders: 0, keep: None }.case(&case(text));
    let why = report.verdict.difference().map(|difference| difference.model.text()).unwrap_or_default();
    assert!(why.contains("the model panicked: no such thing"), "{why}");
}

/// The schedule of the run with number `index`, as `explore --save` keeps one.
fn random_schedule(scenario: &str, index: u64) -> ReplayFile {
    let setup = Setup::new(case(scenario), Vec::new());
    let (learned, _) = learn(&setup);
    let (_, record) = transcribe(&setup, Kind::Random.strategy(0, index, &learned));
    ReplayFile {
        backsim: env!("CARGO_PKG_VERSION").to_owned(),
        invariant: "point-in-time".to_owned(),
        breach: "target-differs".to_owned(),
        violation: String::new(),
        case: setup.case.name.clone(),
        compat: None,
        defects: Vec::new(),
        departures: record.departures.iter().map(NamedDeparture::from).collect(),
        scenario_name: "held.yaml".to_owned(),
        scenario: scenario.to_owned(),
    }
}

#[test]
fn schedules_are_carried_over_by_breakpoints() {
    let Some(qemu) = qemu() else { return };
    let text = include_str!("../scenarios/explore/held.yaml");
    let (mut held, mut complete) = (0, 0);
    for index in 1..=8 {
        let report = force(&qemu, &random_schedule(text, index)).expect("requests of this scenario can be held");
        assert!(report.is_same() || !report.is_complete(), "schedule {index}: {report:#?}");
        held += report.forced.held;
        complete += u32::from(report.is_complete());
    }
    assert!(held > 0 && complete > 0, "{held} answers were held back, {complete} schedules were forced as a whole");
}

#[test]
fn a_schedule_without_a_place_to_hold_requests_is_refused() {
    let Some(qemu) = qemu() else { return };
    let text = include_str!("../scenarios/explore/writers.yaml");
    let refused = force(&qemu, &random_schedule(text, 1)).expect_err("there is no blkdebug");
    assert!(refused.starts_with("no request of it can be held"), "{refused}");
}
