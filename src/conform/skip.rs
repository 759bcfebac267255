//! Which cases can't be compared with a real QEMU, and why.
//!
//! What is named here depends on chance, on the clock or on abilities that only the model has. Must never
//! name a case only because it is known to differ.

use std::time::Duration;

use crate::scenario::Case;
use crate::scenario::ast::{Step, Verb};
use crate::units::format_duration;

/// The longest that the steps of a case may sleep in real time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why `case` is not run on a real QEMU; `None` if it is. `in_any_order`: the model is asked in other orders than QEMU's own, so
/// that actors may come in any.
pub fn reason(case: &Case, in_any_order: bool) -> Option<String> {
    let settings = &case.settings;
    if settings.schedule.strategy != "qemu" {
        let strategy = settings.schedule.strategy;
        return Some(format!("schedule `{strategy}`: a real QEMU keeps to its own order"));
    }
    if settings.timing != Default::default() {
        return Some("`timing`: a real device takes the time it takes".to_owned());
    }
    if let Some(defect) = settings.defects.first() {
        return Some(format!("defect `{}` is in the model only", defect.0));
    }
    let mut slept = 0;
    let reason = of_steps(&case.steps, in_any_order, &mut slept);
    let longest = u64::try_from(LONGEST_SLEEP.as_nanos()).unwrap_or(u64::MAX);
    match reason {
        None if slept > longest => {
            let slept = format_duration(slept);
            Some(format!("it sleeps {slept} of real time; at most {} are waited for", format_duration(longest)))
        }
        reason => reason,
    }
}

fn of_steps(steps: &[Step], in_any_order: bool, slept: &mut u64) -> Option<String> {
    steps.iter().find_map(|step| {
        let why = match &*step.verb {
            Verb::Concurrently(step) if in_any_order => {
                let mut actors = step.actors.iter();
                return actors.find_map(|(_, steps)| of_actor(&steps.0, slept));
            }
            Verb::Concurrently(_) => "the order of actors is the schedule's",
            Verb::Fault(_) => "a fault of the model, not of blkdebug",
            Verb::Workload(_) => "requests and their order come from the seed",
            Verb::Sleep(sleep) => {
                *slept = slept.saturating_add(sleep.sleep.0);
                return None;
            }
            Verb::RunJob(job) => return of_steps(&job.pre_finalize.0, in_any_order, slept),
            _ => return None,
        };
        Some(format!("step `{}` at line {}: {why}", step.verb.key(), step.line))
    })
}

/// Why an actor's steps are not run on a real QEMU.
fn of_actor(steps: &[Step], slept: &mut u64) -> Option<String> {
    let ends = steps.iter().find(|step| matches!(*step.verb, Verb::Vm(_)));
    let why =
        ends.map(|step| format!("step `vm` at line {}: a machine that ends takes the actors' guests along", step.line));
    why.or_else(|| of_steps(steps, false, slept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    fn reason_of(text: &str) -> Option<String> {
        let scenario = parse("t.yaml", text).expect("a scenario");
        let cases = scenario.cases().expect("cases");
        reason(&cases[0], false)
    }

    #[test]
    fn what_depends_on_the_model_is_named_with_its_line() {
        let inside = "steps:\n  - run-job: j\n    auto-finalize: false\n    pre-finalize:\n      - workload: n\n        ops: 1\n";
        assert!(reason_of(inside).is_some_and(|why| why.starts_with("step `workload` at line 5")));
        assert!(reason_of("steps:\n  - sleep: 7200s\n").is_some_and(|why| why.contains("sleeps")));
        assert!(reason_of("timing: {read: 1ms}\nsteps: []\n").is_some_and(|why| why.starts_with("`timing`")));
        assert!(reason_of("schedule: {strategy: random}\nsteps: []\n").is_some_and(|why| why.contains("random")));
        assert_eq!(reason_of("steps:\n  - sleep: 1s\n  - log: x\n"), None);
    }

    #[test]
    fn actors_are_run_where_any_order_will_do() {
        let with = |step: &str| {
            let text = format!("steps:\n  - concurrently:\n      one:\n        - {step}\n");
            parse("t.yaml", &text).and_then(|scenario| scenario.cases()).expect("cases").remove(0)
        };
        assert!(reason(&with("sleep: 1s"), false).is_some_and(|why| why.contains("`concurrently`")));
        assert_eq!(reason(&with("sleep: 1s"), true), None);
        assert!(reason(&with("vm: kill"), true).is_some_and(|why| why.contains("`vm` at line 4")));
        assert!(
            reason(&with("fault: {node: x, on: write, error: EIO}"), true).is_some_and(|why| why.contains("`fault`"))
        );
    }
}
