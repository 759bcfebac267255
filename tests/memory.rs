//! What a search remembers never changes what it says: each search is made with and without a memory.

use std::path::Path;

use backsim::explore::memory::Memory;
use backsim::explore::search::{Seeded, Tally};
use backsim::explore::{Kind, Plan, Setup};
use backsim::quirks::Compat;
use backsim::scenario;

/// Small ones and large ones, guests and commands, failures, a machine that is killed, nodes that leave.
const SCENARIOS: &[&str] = &[
    "small",
    "below",
    "blocks",
    "cancel",
    "commands",
    "fine-source",
    "fleecing-backup",
    "group",
    "heirs",
    "leaving",
    "overlays",
    "persistent",
    "shutdown",
    "sixty-four",
    "stop",
    "writers-qcow2",
];

fn setups(name: &str, compat: Compat) -> Vec<Setup> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/explore/{name}.yaml"));
    let scenario = scenario::load(&path).unwrap_or_else(|problems| panic!("{problems:?}"));
    let cases = scenario.cases().unwrap_or_else(|problems| panic!("{problems:?}"));
    let setup = |case| Setup { compat: Some(compat), ..Setup::new(case, Vec::new()) };
    cases.into_iter().take(2).map(setup).collect()
}

/// All that a search says.
fn said(tally: &Tally) -> String {
    let Tally { runs, next, coverage, states, cells, known, failure, .. } = tally;
    format!("{runs} {next} {known:?} {failure:?}\n{states:?}\n{cells:?}\n{coverage:?}")
}

fn compare(setup: &Setup, kind: Kind, seed: u64, schedules: u64) {
    let plan = Plan::new(kind, seed, schedules);
    let search = |memory| Seeded::new(setup, &plan).with_memory(memory).stretch(0..schedules, |_| true);
    let (plain, remembering) = (search(None), search(Some(Memory::checking(kind.looks_at_order()))));
    let name = (&setup.case.name, setup.version().name(), kind.name());
    assert!(plain.runs > 1, "{name:?} has no runs to compare");
    assert_eq!(said(&plain), said(&remembering), "{name:?}");
}

#[test]
fn a_search_that_remembers_says_the_same_as_7_2() {
    for setup in SCENARIOS.iter().flat_map(|name| setups(name, Compat::Qemu72)) {
        compare(&setup, Kind::Random, 3, 40);
        compare(&setup, Kind::Auto, 3, 40);
    }
}

#[test]
fn a_search_that_remembers_says_the_same_as_10_0() {
    for setup in SCENARIOS.iter().flat_map(|name| setups(name, Compat::Qemu100)) {
        compare(&setup, Kind::Random, 4, 40);
        compare(&setup, Kind::Auto, 4, 40);
    }
}

#[test]
fn who_overlaps_two_ranges_in_flight_sees_which_is_the_newer_one() {
    // Run 573 once met them in the other order, of which no footprint told.
    compare(&setups("wide-failures", Compat::Qemu72)[0], Kind::Random, 1, 600);
}

#[test]
fn who_serialises_against_two_requests_sees_which_is_the_newer_one() {
    // The same of run 574.
    compare(&setups("serialising", Compat::Qemu100)[0], Kind::Random, 107, 600);
}

#[test]
fn most_runs_of_a_small_scenario_are_remembered_in_the_end() {
    let setup = &setups("small", Compat::Qemu72)[0];
    let plan = Plan::new(Kind::Random, 5, 15_000);
    let search = Seeded::new(setup, &plan);
    search.stretch(0..16, |_| true);
    assert!(!search.is_mostly_remembered());
    let tally = search.stretch(16..15_000, |_| true);
    assert!(search.is_mostly_remembered() && tally.failure.is_none());
}

#[test]
fn where_runs_are_seldom_alike_nothing_is_remembered() {
    let setup = &setups("sixty-four", Compat::Qemu72)[0];
    let plan = Plan::new(Kind::Random, 6, 1000);
    let search = Seeded::new(setup, &plan);
    search.stretch(0..8, |_| true);
    assert!(search.remembers());
    search.stretch(8..1000, |_| true);
    assert!(!search.remembers(), "it costs more than it spares there");
}
