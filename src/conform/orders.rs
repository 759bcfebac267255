//! The model in other orders than QEMU's own.
//!
//! A real QEMU takes the way that its host's speed decides: a client's next command may come before or after the end of a
//! request. The model's own order is one of these ways; which others it knows is found out as exploration does. Must never
//! depend on anything but the case and the number of orders asked for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::explore::Setup;
use crate::explore::search::learn;
use crate::explore::strategy::{DelayBounded, Kind, Sparse};
use crate::scenario::Case;
use crate::scenario::simulate::{SimOptions, simulate};
use crate::sim::{Choices, Strategy};

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
    let mut bounded = DelayBounded::new(DEPARTURES);
    for index in 0..most {
        let departures = if index % 2 == 0 { bounded.next_schedule() } else { None };
        let is_bounded = departures.is_some();
        let strategy: Box<dyn Strategy> = match departures {
            Some(departures) => Box::new(Sparse::new(departures)),
            None => Kind::Auto.strategy(SEED, index, &learned),
        };
        let options =
            SimOptions { choices: Choices::with(strategy), step_limit: Some(STEP_LIMIT), ..SimOptions::default() };
        // A model that panics is a way that no QEMU takes.
        let Ok(Ok(run)) = catch_unwind(AssertUnwindSafe(|| simulate(case, options))) else { continue };
        if is_bounded {
            let widths = run.choices.iter().filter(|choice| choice.what == "step").map(|choice| choice.n);
            bounded.has_run(widths.collect());
        }
        if !see(run.outcome.into()) {
            break;
        }
    }
}
