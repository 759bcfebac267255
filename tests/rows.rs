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
    backup_meets(disk, (target, ""), prepare, arguments, "write -P 9 90M 1M, write -P 8 199M 64k")
}

/// A backup whose target has a cache of its own size, and what a guest does meanwhile.
fn backup_meets(disk: &str, (target, cache): (&str, &str), prepare: &str, arguments: &str, guest: &str) -> String {
    format!(
        "steps:
  - {{image: base, size: 200M}}
  - {{image: disk, size: 200M, {disk}}}
  - {{image: target, size: 200M, {target}}}
  - vm: launch
  - execute: blockdev-add
    arguments: {{node-name: disk, driver: qcow2, file: {{driver: file, filename: TEST_DIR/PID-disk}}}}
  - execute: blockdev-add
    arguments: {{node-name: target, driver: qcow2, {cache}file: {{node-name: target-file, driver: file, filename: TEST_DIR/PID-target}}}}
  - qemu-io: disk
    commands: [write -P 1 0 64k, write -z 7M 3M, write -P 2 31M 2M, write -P 3 65M 1k, write -P 4 130M 20M, discard 140M 5M]
{prepare}
  - execute: blockdev-backup
    arguments: {{job-id: backup, device: disk, target: target, {arguments}}}
  - execute: query-jobs
  - qemu-io: disk
    commands: [{guest}]
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
        (PLAIN, PLAIN, "", "sync: full"),
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

const PLAIN: &str = "options: {cluster_size: 65536}";

/// Writes that wait for chunks which themselves wait for the target's lock, not in their order.
const GUESTS: &str = "aio_write -P 1 70M 64k, aio_write -P 2 20M 64k, aio_write -P 3 71M 2M, aio_write -P 4 3M 64k, \
                      aio_write -z 21M 128k, aio_write -P 5 66M 64k, aio_flush";

#[test]
fn who_waits_for_a_row_goes_on_in_the_same_order() {
    for arguments in ["sync: full", "sync: full, x-perf: {max-workers: 7}", "sync: full, x-perf: {max-chunk: 131072}"] {
        assert_same(&backup_meets(PLAIN, (PLAIN, ""), "", arguments, GUESTS), arguments);
    }
}

#[test]
fn a_row_whose_tables_have_left_the_cache_goes_on_as_single_chunks() {
    for cache in ["l2-cache-size: 8192, ", "l2-cache-size: 131072, l2-cache-entry-size: 65536, "] {
        let text = backup_meets(PLAIN, (PLAIN, cache), "", "sync: full", GUESTS);
        assert_same(&text, cache);
    }
    // An L2 table maps two chunks: a row ends where the next table must be allocated.
    assert_same(&backup_meets(PLAIN, ("options: {cluster_size: 4096}", ""), "", "sync: full", GUESTS), "small tables");
    let small = "options: {cluster_size: 512}";
    assert_same(
        &backup_meets(PLAIN, (small, "l2-cache-size: 4096, "), "", "sync: full", GUESTS),
        "a cache of eight slices",
    );
}

#[test]
fn a_row_behind_an_allocation_that_fails_goes_on_as_single_chunks() {
    for (after, times) in [(0, 1), (1, 1), (3, 1), (5, 2), (9, 40), (0, 1000)] {
        for policy in ["report", "ignore", "stop"] {
            let ends = if policy == "ignore" && times > 100 { 60 } else { times };
            let fault = format!(
                "  - fault: {{node: target-file, on: write, error: ENOSPC, after: {after}, times: {ends}}}
  - fault: {{node: target-file, on: flush, error: EIO, after: {after}, times: {ends}}}"
            );
            let arguments = format!("sync: full, on-target-error: {policy}");
            let resume = if policy == "stop" { "write -P 1 20M 64k" } else { GUESTS };
            let text = backup_meets(PLAIN, (PLAIN, ""), &fault, &arguments, resume);
            assert_same(&text, &format!("{arguments}, {times} errors after {after}"));
        }
    }
}
