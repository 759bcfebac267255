//! Where an assertion of QEMU fails, the simulated machine ends at the same step.
//!
//! Such scenarios end differently in each version, so they have no place among those that `check` replays.

use backsim::quirks::Compat;
use backsim::scenario::parse;
use backsim::scenario::run::Ending;
use backsim::scenario::simulate::{SimOptions, simulate};

fn ending(text: &str, compat: Compat) -> Ending {
    let cases = parse("aborts.yaml", text).expect("no mistakes").cases().expect("no mistakes");
    let options = SimOptions { compat: Some(compat), ..SimOptions::default() };
    simulate(&cases[0], options).expect("images are in memory").outcome.ending
}

#[test]
fn a_fleecing_target_that_forgets_zeros_ends_10_0_only() {
    let text = include_str!("aborts/fleecing-target-forgets-zeros.yaml");
    assert_eq!(ending(text, Compat::Qemu72), Ending::Passed);
    let Ending::Failed { line, why, .. } = ending(text, Compat::Qemu100) else { panic!("it passed") };
    let backup = text.lines().position(|line| line.contains("blockdev-backup")).expect("the backup");
    assert_eq!(line as usize, backup + 1);
    assert!(why.starts_with("QEMU ended by itself: signal 6 (SIGABRT"), "{why}");
}
