//! The order in which the loop by itself takes what comes from outside.

use std::rc::Rc;

use super::shared::RefCell;
use super::{Choices, Footprint, Sim, Stuck};

#[test]
fn requests_found_complete_together_are_told_newest_first() {
    let sim = Sim::new(Choices::qemu());
    let told: Rc<RefCell<Vec<&'static str>>> = Rc::default();
    for names in [["first", "first again"], ["second", "second again"], ["third", "third again"]] {
        let (told, kernel) = (told.clone(), sim.clone());
        sim.spawn("request", async move {
            for name in names {
                kernel.device(0, Footprint::named(name)).await;
                told.borrow_mut().push(name);
            }
        });
    }
    while sim.step().is_ok() {}
    // What the first round has led to is the next round.
    assert_eq!(*told.borrow(), ["third", "second", "first", "first again", "second again", "third again"]);
}

#[test]
#[should_panic(expected = "no end of one event")]
fn an_event_without_end_is_told_before_memory_ends() {
    let sim = Sim::new(Choices::qemu());
    sim.set_step_limit(1000);
    let kernel = sim.clone();
    sim.spawn("endless", async move {
        loop {
            kernel.spawn("a request", async {});
        }
    });
}

#[test]
fn a_run_that_is_given_up_ends_before_its_next_step() {
    let sim = Sim::new(Choices::qemu());
    let kernel = sim.clone();
    let ended = sim.run("round and round", async move {
        for round in 0_u32.. {
            kernel.sleep(1).await;
            if round == 10 {
                kernel.give_up();
            }
        }
    });
    assert!(matches!(ended, Err(Stuck::StepLimit(steps, _)) if steps < 30), "{ended:?}");
}
