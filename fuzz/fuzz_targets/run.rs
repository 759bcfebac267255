//! Any scenario, run with tiny limits: every run ends, without a panic, and twice the same.
#![no_main]

use backsim::scenario::simulate::{SimOptions, simulate};
use backsim::scenario::{Case, parse};
use libfuzzer_sys::fuzz_target;

/// Cases and steps beyond these make a run longer and no more surprising.
const CASES: usize = 3;
const STEPS: usize = 60;
/// Steps of the event loop.
const LIMIT: u64 = 20_000;

fuzz_target!(|text: &str| {
    let Ok(cases) = parse("fuzz.yaml", text).and_then(|scenario| scenario.cases()) else { return };
    for case in cases.iter().take(CASES).filter(|case| case.steps.len() <= STEPS) {
        assert_eq!(run(case), run(case), "a run is a function of its case");
    }
});

fn run(case: &Case) -> String {
    let options = SimOptions { step_limit: Some(LIMIT), ..SimOptions::default() };
    let run = simulate(case, options).expect("images are in memory");
    format!("{}{:?}", run.outcome.transcript.text(), run.outcome.ending)
}
