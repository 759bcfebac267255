//! The model in other orders than QEMU's own.
//!
//! A real QEMU takes the way that its host's speed decides: a client's next command may come before or after the end of a
//! request. The model's own order is one of these ways; which others it knows is found out as exploration does. Must never
//! depend on anything but the case and the number of orders asked for.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::explore::Setup;
use crate::explore::search::learn;
use crate::explore::strategy::{DelayBounded, Kind, Sparse};
use crate::scenario::Case;
use crate::scenario::simulate::{InspectFiles, SimOptions, simulate};
use crate::sim::{Choices, Strategy};

use super::guests::concurrent;
use super::left::{of_host, without_requests};
use super::verdict::Side;

/// Departures from QEMU's own order in those orders that are tried one by one; the others are drawn.
const DEPARTURES: usize = 2;
/// Seeds the drawn ones.
const SEED: u64 = 0;
/// Events of a run; one that goes on longer is no way that QEMU takes.
const STEP_LIMIT: u64 = 1_000_000;

/// Shows what the model makes of `case` in up to `most` orders, until `see` gives false: by turns one with few departures
/// from QEMU's own, all of which there are in the end, and a drawn one.
pub(super) fn each_order(case: &Case, most: u64, see: &mut dyn FnMut(Side) -> bool) {
    let (learned, _) = learn(&Setup::new(case.clone(), Vec::new()));
    let has_actors = concurrent(&case.steps).next().is_some();
    let mut bounded = DelayBounded::new(DEPARTURES);
    for index in 0..most {
        let departures = if index % 2 == 0 { bounded.next_schedule() } else { None };
        let is_bounded = departures.is_some();
        let strategy: Box<dyn Strategy> = match departures {
            Some(departures) => Box::new(Sparse::new(departures)),
            None => Kind::Auto.strategy(SEED, index, &learned),
        };
        let left: Rc<RefCell<String>> = Rc::default();
        let slot = left.clone();
        let look: InspectFiles = Box::new(move |host| *slot.borrow_mut() = of_host(host));
        let options = SimOptions {
            choices: Choices::with(strategy),
            step_limit: Some(STEP_LIMIT),
            inspect_files: has_actors.then_some(look),
            ..SimOptions::default()
        };
        // A model that panics is a way that no QEMU takes.
        let Ok(Ok(run)) = catch_unwind(AssertUnwindSafe(|| simulate(case, options))) else { continue };
        if is_bounded {
            let widths = run.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.n);
            bounded.has_run(widths.collect());
        }
        let mut side = Side::from(run.outcome);
        if has_actors {
            side.transcript = without_requests(&side.transcript) + &left.borrow();
        }
        if !see(side) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;
    use crate::scenario::run::Ending;

    const CASE: &str = "\
name: leaving
steps:
  - {image: disk, format: raw, size: 64k}
  - {image: target, format: raw, size: 64k}
  - vm: launch
  - {execute: blockdev-add, arguments: {driver: file, node-name: disk, filename: TEST_DIR/PID-disk}}
  - {execute: blockdev-add, arguments: {driver: file, node-name: target, filename: TEST_DIR/PID-target}}
  - {qemu-io: disk, command: write 0 64k}
  - execute: blockdev-backup
    arguments: {job-id: job0, device: disk, target: target, sync: full, filter-node-name: filter}
  - {execute: block-dirty-bitmap-add, arguments: {node: filter, name: bitmap}}
";

    fn sides(most: u64) -> Vec<Side> {
        let case = parse("leaving.yaml", CASE).and_then(|scenario| scenario.cases()).expect("no mistakes").remove(0);
        let mut sides = Vec::new();
        each_order(&case, most, &mut |side| {
            sides.push(side);
            true
        });
        sides
    }

    #[test]
    fn the_first_order_is_qemus_own_and_others_follow() {
        let sides = sides(40);
        assert_eq!(sides.len(), 40);
        assert!(sides.iter().all(|side| side.ending == Ending::Passed));
        let finds_filter = |side: &Side| !side.transcript.contains("Cannot find");
        assert!(!finds_filter(&sides[0]), "{}", sides[0].transcript);
        assert!(sides.iter().any(finds_filter));
    }

    #[test]
    fn orders_are_the_same_each_time_and_end_when_enough_is_seen() {
        assert_eq!(sides(20), sides(40)[..20]);
        let case = parse("leaving.yaml", CASE).and_then(|scenario| scenario.cases()).expect("no mistakes").remove(0);
        let mut seen = 0;
        each_order(&case, 40, &mut |_| {
            seen += 1;
            seen < 3
        });
        assert_eq!(seen, 3);
    }
}
