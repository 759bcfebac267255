//! A row of zero chunks that is copied in one go leaves what the chunks would leave one by one.
//!
//! A run with a reader of its trace makes no rows; so each case is run with one and without, and transcripts and
//! image files are compared.

use std::cell::RefCell;
use std::rc::Rc;

use backsim::scenario::simulate::{SimOptions, simulate};
use backsim::scenario::{Case, parse};
use backsim::store::Content;

/// Transcript, events of the loop, and every file of the host.
type Left = (String, u64, Vec<(String, Content)>);

fn left_by(case: &Case, watched: bool) -> Left {
    let files: Rc<RefCell<Vec<(String, Content)>>> = Rc::default();
    let slot = files.clone();
    let run = simulate(
        case,
        SimOptions {
            observe: Some(Box::new(move |sim| {
                if watched {
                    sim.trace().subscribe(|_| ());
                }
            })),
            inspect_files: Some(Box::new(move |host| {
                let read = |name: String| {
                    let store = host.open(&name).expect("it is in the list");
                    (name, store.read(0, store.len()).expect("memory can be read"))
                };
                *slot.borrow_mut() = host.names().into_iter().map(read).collect();
            })),
            ..SimOptions::default()
        },
    );
    let run = run.expect("images are in memory");
    (run.outcome.transcript.text().to_owned(), run.steps, files.take())
}

fn assert_same(text: &str, name: &str) {
    for case in parse(name, text).expect("no mistakes").cases().expect("no mistakes") {
        let (fast, slow) = (left_by(&case, false), left_by(&case, true));
        assert_eq!(fast.0, slow.0, "the transcript of {name}");
        assert_eq!(fast.1, slow.1, "the steps of {name}");
        let names = |left: &Left| left.2.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&fast), names(&slow), "the files of {name}");
        for ((file, fast), (_, slow)) in fast.2.iter().zip(&slow.2) {
            assert_eq!((fast.len(), fast.first_difference(slow)), (slow.len(), None), "{file} of {name}");
        }
    }
}

#[test]
fn the_257_suite_leaves_the_same() {
    assert_same(include_str!("../scenarios/257-bitmap-sync.yaml"), "257");
}

/// A disk with scattered data, snapshots of other layers and a target that is not empty.
fn backup(disk: &str, target: &str, prepare: &str, arguments: &str) -> String {
    format!(
        "steps:
  - {{image: base, size: 200M}}
  - {{image: disk, size: 200M, {disk}}}
  - {{image: target, size: 200M, {target}}}
  - vm: launch
  - execute: blockdev-add
    arguments: {{node-name: disk, driver: qcow2, file: {{driver: file, filename: TEST_DIR/PID-disk}}}}
  - execute: blockdev-add
    arguments: {{node-name: target, driver: qcow2, file: {{driver: file, filename: TEST_DIR/PID-target}}}}
  - qemu-io: disk
    commands: [write -P 1 0 64k, write -z 7M 3M, write -P 2 31M 2M, write -P 3 65M 1k, write -P 4 130M 20M, discard 140M 5M]
{prepare}
  - execute: blockdev-backup
    arguments: {{job-id: backup, device: disk, target: target, {arguments}}}
  - execute: query-jobs
  - qemu-io: disk
    commands: [write -P 9 90M 1M, write -P 8 199M 64k]
  - run-job: backup
    auto-dismiss: true
  - vm: shutdown
  - {{qemu-img: [check, TEST_DIR/PID-target]}}
  - {{qemu-img: [map, TEST_DIR/PID-target]}}
"
    )
}

#[test]
fn disks_of_all_kinds_leave_the_same() {
    let busy = "  - {qemu-io: target, commands: [write -P 5 40M 3M, write -z 100M 9M, write -c -P 6 60M 64k, write -c -P 7 180M 64k]}";
    let cases = [
        ("options: {cluster_size: 65536}", "options: {cluster_size: 65536}", "", "sync: full"),
        ("options: {cluster_size: 65536}", "options: {cluster_size: 65536}", busy, "sync: full"),
        ("options: {cluster_size: 4096}", "options: {cluster_size: 512}", "", "sync: full"),
        ("options: {cluster_size: 65536}", "options: {cluster_size: 2097152}", "", "sync: full"),
        ("options: {cluster_size: 65536}", "options: {compat: '0.10'}", "", "sync: full"),
        ("backing: base", "options: {cluster_size: 65536}", busy, "sync: full, x-perf: {max-workers: 1}"),
        ("backing: base", "options: {cluster_size: 65536}", "", "sync: top"),
        ("options: {cluster_size: 65536}", "options: {cluster_size: 65536}", busy, "sync: full, speed: 50000000"),
        ("options: {cluster_size: 65536}", "options: {cluster_size: 65536}", busy, "sync: full, compress: true"),
        (
            "options: {cluster_size: 65536}",
            "options: {cluster_size: 65536}",
            "",
            "sync: full, x-perf: {max-chunk: 131072}",
        ),
    ];
    for (disk, target, prepare, arguments) in cases {
        let text = backup(disk, target, prepare, arguments);
        assert_same(&text, &format!("{disk} to {target}, {arguments}"));
    }
}
