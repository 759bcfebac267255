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

const PLAIN: &str = "options: {cluster_size: 65536}";

/// A backup of a disk with scattered data, and what may be special about it, as YAML.
struct Backup<'a> {
    disk: &'a str,
    /// Options of the blkdebug node below the disk.
    rules: &'a str,
    target: &'a str,
    /// Options of the target's node.
    cache: &'a str,
    /// Steps before the job.
    prepare: &'a str,
    arguments: &'a str,
    /// What the guest does while it runs.
    guest: &'a str,
}

impl Default for Backup<'_> {
    fn default() -> Self {
        Backup {
            disk: PLAIN,
            rules: "",
            target: PLAIN,
            cache: "",
            prepare: "",
            arguments: "sync: full",
            guest: "write -P 9 90M 1M, write -P 8 199M 64k",
        }
    }
}

impl Backup<'_> {
    fn text(&self) -> String {
        let Backup { disk, rules, target, cache, prepare, arguments, guest } = self;
        format!(
            "steps:
  - {{image: base, size: 200M}}
  - {{image: disk, size: 200M, {disk}}}
  - {{image: target, size: 200M, {target}}}
  - vm: launch
  - execute: blockdev-add
    arguments:
      {{node-name: disk, driver: qcow2, file: {{driver: blkdebug, {rules}image: {{driver: file, filename: TEST_DIR/PID-disk}}}}}}
  - execute: blockdev-add
    arguments:
      {{node-name: target, driver: qcow2, {cache}file: {{node-name: target-file, driver: file, filename: TEST_DIR/PID-target}}}}
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

    fn assert_same(&self) {
        assert_same(&self.text(), &self.text());
    }
}

#[test]
fn disks_of_all_kinds_leave_the_same() {
    let busy = "  - {qemu-io: target, commands: [write -P 5 40M 3M, write -z 100M 9M, write -c -P 6 60M 64k, write -c -P 7 180M 64k]}";
    let cases = [
        (PLAIN, PLAIN, "", "sync: full"),
        (PLAIN, PLAIN, busy, "sync: full"),
        ("options: {cluster_size: 4096}", "options: {cluster_size: 512}", "", "sync: full"),
        (PLAIN, "options: {cluster_size: 2097152}", "", "sync: full"),
        (PLAIN, "options: {compat: '0.10'}", "", "sync: full"),
        ("backing: base", PLAIN, busy, "sync: full, x-perf: {max-workers: 1}"),
        ("backing: base", PLAIN, "", "sync: top"),
        (PLAIN, PLAIN, busy, "sync: full, speed: 50000000"),
        (PLAIN, PLAIN, busy, "sync: full, compress: true"),
        (PLAIN, PLAIN, "", "sync: full, x-perf: {max-chunk: 131072}"),
    ];
    for (disk, target, prepare, arguments) in cases {
        Backup { disk, target, prepare, arguments, ..Backup::default() }.assert_same();
    }
}

/// Writes that wait for chunks which themselves wait for the target's lock, not in their order.
const GUESTS: &str = "aio_write -P 1 70M 64k, aio_write -P 2 20M 64k, aio_write -P 3 71M 2M, aio_write -P 4 3M 64k, \
                      aio_write -z 21M 128k, aio_write -P 5 66M 64k, aio_flush";

#[test]
fn who_waits_for_a_row_goes_on_in_the_same_order() {
    for arguments in ["sync: full", "sync: full, x-perf: {max-workers: 7}", "sync: full, x-perf: {max-chunk: 131072}"] {
        Backup { arguments, guest: GUESTS, ..Backup::default() }.assert_same();
    }
}

#[test]
fn a_row_whose_tables_have_left_the_cache_goes_on_as_single_chunks() {
    for cache in ["l2-cache-size: 8192, ", "l2-cache-size: 131072, l2-cache-entry-size: 65536, "] {
        Backup { cache, guest: GUESTS, ..Backup::default() }.assert_same();
    }
    // An L2 table maps two chunks: a row ends where the next table must be allocated.
    Backup { target: "options: {cluster_size: 4096}", guest: GUESTS, ..Backup::default() }.assert_same();
    let target = "options: {cluster_size: 512}";
    Backup { target, cache: "l2-cache-size: 4096, ", guest: GUESTS, ..Backup::default() }.assert_same();
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
            let guest = if policy == "stop" { "write -P 1 20M 64k" } else { GUESTS };
            Backup { prepare: &fault, arguments: &arguments, guest, ..Backup::default() }.assert_same();
        }
    }
}

#[test]
fn a_fault_rule_of_the_source_strikes_the_same() {
    let rule = |rule: &str| format!("inject-error: [{{{rule}}}], ");
    for rules in [
        rule("event: read_aio, once: true"),
        rule("event: none, iotype: read, sector: 65536"),
        rule("event: none, iotype: block-status, sector: 4096"),
        rule("event: none, iotype: block-status, once: true"),
        rule("event: none, sector: 65536"),
    ] {
        let arguments = "sync: full, on-source-error: ignore";
        Backup { rules: &rules, arguments, ..Backup::default() }.assert_same();
    }
}
