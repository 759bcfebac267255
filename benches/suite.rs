//! What the users of backsim wait for: the 257 suite, a backup of a huge disk, a busy guest, exploration.
//!
//! Everything goes through scenario text and the same functions as the command line. `docs/speed.md` has the
//! targets and the figures.

use std::hint::black_box;

use backsim::cli::engine::{RunOptions, simulated};
use backsim::explore::parallel::search_on;
use backsim::explore::{Kind, Plan, Setup, Tally};
use backsim::scenario::run::Ending;
use backsim::scenario::{Case, parse};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SYNC: &str = include_str!("../scenarios/257-bitmap-sync.yaml");
const API: &str = include_str!("../scenarios/257-api-failures.yaml");
const WRITERS: &str = include_str!("../scenarios/explore/writers.yaml");
const SMALL: &str = include_str!("../scenarios/explore/small.yaml");
const WIDE: &str = include_str!("../scenarios/explore/sixty-four.yaml");

fn cases(text: &str) -> Vec<Case> {
    let scenario = parse("bench.yaml", text).expect("the scenario has no mistakes");
    scenario.cases().expect("the scenario's cases have no mistakes")
}

fn run(cases: &[Case]) -> usize {
    let mut bytes = 0;
    for case in cases {
        let run = simulated(case, &RunOptions::default()).expect("images are in memory");
        assert_eq!(run.outcome.ending, Ending::Passed, "{}", run.outcome.transcript.text());
        bytes += run.outcome.transcript.text().len();
    }
    bytes
}

/// All 22 cases: reading the files, running, transcripts.
fn suite(c: &mut Criterion) {
    let mut group = c.benchmark_group("257");
    group.bench_function("read", |b| b.iter(|| black_box(cases(SYNC).len() + cases(API).len())));
    group.bench_function("whole", |b| b.iter(|| run(&cases(SYNC)) + run(&cases(API))));
    group.finish();
}

const DISK_AND_TARGET: &str = "
  - image: disk
    size: SIZE
  - image: backup
    size: SIZE
  - vm: launch
  - execute: blockdev-add
    arguments: {node-name: drive0, driver: qcow2, file: {driver: file, filename: TEST_DIR/PID-disk}}
  - execute: blockdev-add
    arguments: {node-name: target0, driver: qcow2, file: {driver: file, filename: TEST_DIR/PID-backup}}
";

fn begin(size: &str) -> String {
    format!("steps:{}", DISK_AND_TARGET.replace("SIZE", size))
}

/// 1 TiB with 1,000 written clusters, spread evenly.
fn huge_disk() -> String {
    let writes: Vec<String> = (0..1000_u64).map(|n| format!("write -P {} {} 64k", n % 255 + 1, n << 30)).collect();
    format!(
        "{}
  - qemu-io: drive0
    log: none
    commands: [{}]
  - execute: blockdev-backup
    arguments: {{job-id: backup, device: drive0, target: target0, sync: full}}
  - run-job: backup
    auto-dismiss: true
",
        begin("1T"),
        writes.join(", ")
    )
}

fn huge(c: &mut Criterion) {
    let cases = cases(&huge_disk());
    let mut group = c.benchmark_group("1 TiB");
    group.sample_size(10);
    group.bench_function("full backup of 1,000 clusters", |b| b.iter(|| run(&cases)));
    group.finish();
}

/// A guest that writes while a backup runs.
fn busy_guest(writes: u64) -> String {
    format!(
        "{}
  - execute: blockdev-backup
    arguments: {{job-id: backup, device: drive0, target: target0, sync: none}}
  - workload: drive0
    ops: {writes}
    mix: {{write: 1, zeroes: 0, discard: 0, read: 0, flush: 0}}
  - execute: job-cancel
    arguments: {{id: backup}}
  - run-job: backup
    auto-dismiss: true
",
        begin("1G")
    )
}

/// The cost of one operation must not depend on how many there are.
fn guest(c: &mut Criterion) {
    let mut group = c.benchmark_group("guest writes with a backup running");
    group.sample_size(10);
    for writes in [10_000, 100_000, 1_000_000] {
        let cases = cases(&busy_guest(writes));
        group.throughput(Throughput::Elements(writes));
        group.bench_with_input(BenchmarkId::from_parameter(writes), &cases, |b, cases| b.iter(|| run(cases)));
    }
    group.finish();
}

/// Three guests write to a disk of 64 clusters while four workers copy it, each cluster by itself.
const CLUSTERWISE: &str = "
steps:
  - {image: disk, format: raw, size: 4M}
  - {image: target, format: raw, size: 4M}
  - vm: launch
  - execute: blockdev-add
    arguments: {driver: file, node-name: disk, filename: TEST_DIR/PID-disk}
    log: none
  - execute: blockdev-add
    arguments: {driver: file, node-name: target, filename: TEST_DIR/PID-target}
    log: none
  - {qemu-io: disk, command: write -P 1 0 4M, log: none}
  - concurrently:
      client:
        - execute: blockdev-backup
          arguments: {job-id: job0, device: disk, target: target, sync: full, x-perf: {max-workers: 4, max-chunk: 65536}}
          log: none
        - {wait-event: JOB_STATUS_CHANGE, match: {id: job0, status: 'null'}, log: none}
      guest1: [{qemu-io: disk, commands: [write -P 2 0 64k, write -P 3 2M 64k], log: none}]
      guest2: [{qemu-io: disk, commands: [write -P 4 1M 64k, write -P 5 3M 64k], log: none}]
      guest3: [{qemu-io: disk, commands: [write -P 6 64k 64k, write -P 7 4032k 64k], log: none}]
";

/// Schedules a second by random walk: searches that make all their runs, and some that are long for their scenario, where most
/// are only remembered. A search makes one run more than it counts: the one in QEMU's own order.
fn exploration(c: &mut Criterion) {
    let mut group = c.benchmark_group("exploration");
    group.sample_size(10);
    for (name, text, schedules, threads) in [
        ("4 clusters", WRITERS, 200, 1),
        ("4 clusters, 2 threads", WRITERS, 400, 2),
        ("64 clusters", WIDE, 5_000, 1),
        ("64 clusters, 2 threads", WIDE, 10_000, 2),
        ("64 clusters, each by itself", CLUSTERWISE, 2_000, 1),
        ("small", SMALL, 100_000, 1),
        ("small, 2 threads", SMALL, 100_000, 2),
        ("small, long", SMALL, 1_000_000, 1),
        ("small, long, 2 threads", SMALL, 1_000_000, 2),
    ] {
        let plan = Plan::new(Kind::Random, 0, schedules);
        let make = || Setup::new(cases(text).swap_remove(0), Vec::new());
        group.throughput(Throughput::Elements(schedules));
        group.bench_function(name, |b| {
            b.iter(|| {
                let tally = search_on(threads, &make, &plan, &plan.memory(), Tally::default(), &|| true, &mut |_| {});
                assert_eq!(tally.runs, schedules, "a violation ended the search");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, suite, huge, guest, exploration);
criterion_main!(benches);
