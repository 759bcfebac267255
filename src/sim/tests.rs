//! The order in which the loop by itself takes what comes from outside.

use std::rc::Rc;

use super::access::Accesses;
use super::shared::{Cell, RefCell};
use super::{ChoicePoint, Choices, Footprint, Sim, Strategy, Stuck};

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

/// Takes the loop's own event wherever there is one, and notes whether those were more than a look.
struct Onlooker(Rc<RefCell<Vec<bool>>>, bool);

impl Strategy for Onlooker {
    fn next_step(&mut self, point: &ChoicePoint<'_>) -> usize {
        self.1 = point.alternatives[0].is_loop();
        0
    }

    fn observes(&self) -> bool {
        true
    }

    fn has_run(&mut self, _: Accesses, changed: bool) {
        if std::mem::take(&mut self.1) {
            self.0.borrow_mut().push(changed);
        }
    }
}

#[test]
fn a_frame_that_goes_on_to_its_next_condition_has_done_more_than_to_look() {
    let looks: Rc<RefCell<Vec<bool>>> = Rc::default();
    let sim = Sim::new(Choices::with(Box::new(Onlooker(looks.clone(), false))));
    let passed: Rc<Cell<u32>> = Rc::default();
    for latency in [1, 2] {
        let (kernel, passed) = (sim.clone(), passed.clone());
        sim.spawn("request", async move {
            kernel.device(latency, Footprint::named("request")).await;
            passed.set(passed.get() + 1);
        });
    }
    let kernel = sim.clone();
    sim.bh_frame("command", async move {
        kernel.poll_until("the first", || passed.get() >= 1).await;
        kernel.poll_until("the second", || passed.get() >= 2).await;
    });
    while sim.step().is_ok() {}
    // The command begins; looks in vain; goes on, though it has to wait again; ends.
    assert_eq!(*looks.borrow(), [true, false, true, true]);
}
