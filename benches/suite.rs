//! What the users of backsim wait for: the 257 suite, a backup of a huge disk, a busy guest.
//!
//! Everything goes through scenario text and the same run function as the command line.

use std::hint::black_box;

use backsim::cli::engine::{RunOptions, simulated};
use backsim::scenario::run::Ending;
use backsim::scenario::{Case, parse};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SYNC: &str = include_str!("../scenarios/257-bitmap-sync.yaml");
const API: &str = include_str!("../scenarios/257-api-failures.yaml");

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

criterion_group!(benches, suite, huge, guest);
criterion_main!(benches);
