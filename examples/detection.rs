//! How soon each strategy finds the named defects: the table in docs/exploration.md.
//!
//!     cargo run --release --example detection [-- SEEDS [SCHEDULES [PART OF A DEFECT'S NAME]]]
//!
//! Prints the median number of schedules to the first violation, over the seeds, in Markdown.

use std::path::Path;

use backsim::explore::auto::search_auto;
use backsim::explore::exhaustive::search_exhaustively;
use backsim::explore::search::{Tally, search, search_bounded, search_covering};
use backsim::explore::strategy::{Reduction, Selection};
use backsim::explore::{Kind, Plan, Setup};
use backsim::scenario;

#[path = "../tests/common/places.rs"]
mod places;

/// A way to search.
enum How {
    Seeded(Kind),
    /// The same for all seeds.
    Bounded(usize),
    Coverage,
    /// One of each class, as far as the schedules suffice; the same for all seeds.
    Exhaustive,
    /// As the command does by default.
    Auto,
}

const COLUMNS: &[(&str, How)] = &[
    ("random", How::Seeded(Kind::Random)),
    ("pct 3", How::Seeded(Kind::Pct(3))),
    ("pos", How::Seeded(Kind::Pos)),
    ("urw", How::Seeded(Kind::Urw)),
    ("surw", How::Seeded(Kind::Surw(Selection::AnyCluster))),
    ("delays 2", How::Seeded(Kind::Delays(2))),
    ("bounded 2", How::Bounded(2)),
    ("coverage", How::Coverage),
    ("exhaustive", How::Exhaustive),
    ("auto", How::Auto),
];

fn setup(defect: &str, file: &str, name: &str) -> Setup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/explore/{file}.yaml"));
    let cases = scenario::load(&path).and_then(|loaded| loaded.cases()).expect("a scenario of this project");
    let case = cases.into_iter().find(|case| case.name == name).expect("a case of this project");
    Setup::new(case, vec![defect.to_owned()])
}

fn first(setup: &Setup, how: &How, seed: u64, schedules: u64) -> Option<u64> {
    let plan = |kind| Plan::new(kind, seed, schedules);
    let tally: Tally = match how {
        How::Seeded(kind) => search(setup, &plan(*kind), |_| true),
        How::Bounded(bound) => search_bounded(setup, &plan(Kind::Auto), *bound, |_| true),
        How::Coverage => search_covering(setup, &plan(Kind::Auto), |_| true),
        How::Exhaustive => search_exhaustively(setup, &plan(Kind::Auto), Reduction::SourceSets, |_| true),
        How::Auto => search_auto(setup, &plan(Kind::Auto), |_| true),
    };
    tally.failure.map(|failure| failure.index + 1)
}

/// The median, or that it is above the limit.
fn median(setup: &Setup, how: &How, seeds: u64, schedules: u64) -> String {
    let seeds = if matches!(how, How::Bounded(_) | How::Exhaustive) { 1 } else { seeds };
    let mut found = Vec::new();
    let mut missed = 0;
    for seed in 0..seeds {
        match first(setup, how, seed, schedules) {
            Some(index) => found.push(index),
            None => missed += 1,
        }
        if missed * 2 > seeds {
            return format!("> {schedules}");
        }
    }
    found.sort_unstable();
    found.get(seeds as usize / 2).map_or_else(|| format!("> {schedules}"), u64::to_string)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| args.get(index).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (seeds, schedules) = (number(0, 20).max(1), number(1, 1000));
    let part = args.get(2).map_or("", String::as_str);
    let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
    println!("| defect | {} |", names.join(" | "));
    println!("| --- |{}", " ---: |".repeat(names.len()));
    for (defect, file, name) in places::PLACES.iter().filter(|(defect, ..)| defect.contains(part)) {
        let setup = setup(defect, file, name);
        let cells: Vec<String> = COLUMNS.iter().map(|(_, how)| median(&setup, how, seeds, schedules)).collect();
        println!("| `{defect}` | {} |", cells.join(" | "));
    }
}
