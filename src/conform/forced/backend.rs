//! A real QEMU whose actors and devices are made to move as a plan says.
//!
//! Outside `concurrently` it is the real QEMU as it is. Inside, each actor goes on when its move comes, and each
//! request that a breakpoint holds is let go when its move comes. Must never call a move forced that came by
//! itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::scenario::ast::{FaultSpec, Workload};
use crate::scenario::backend::{
    Actor, Backend, Event, ImageSpec, QemuImgOutput, QemuIoReply, RunError, StepPosition, WorkloadSummary,
};

use super::super::guests::{Guests, asynchronous, result_of, turn};
use super::super::real::RealQemu;
use super::holds::Holds;
use super::plan::{Plan, What};

/// How long an answer that the plan expects by now may take.
const TO_ANSWER: Duration = Duration::from_millis(500);
/// How long actors may take to end when nothing is held any more.
const TO_END: Duration = Duration::from_secs(10);

/// How far a plan was forced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forced {
    /// Moves of actors.
    pub actors: usize,
    /// Answers of devices that were held back and let go in their turn.
    pub held: usize,
    /// Answers that could not be held and have no other place in the plan than the one that they took.
    pub in_place: usize,
    /// Moves that may have come at another time than in the plan, in words.
    pub free: Vec<String>,
}

/// What is to be forced, and where.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The moves.
    pub plan: Plan,
    /// The blkdebug node above each file node.
    pub points: BTreeMap<String, String>,
    /// The nodes that have guests.
    pub nodes: BTreeSet<Rc<str>>,
}

/// A real QEMU under a plan. A handle: clones mean the same machine.
#[derive(Clone)]
pub struct ForcedQemu(Rc<Shared>);

struct Shared {
    real: RealQemu,
    setting: Setting,
    holds: RefCell<Option<Holds>>,
    guests: Guests,
    forced: RefCell<Forced>,
    used: Cell<bool>,
}

/// What QEMU has done looks like this once `look` gives something; tried for `patience`.
fn soon<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl ForcedQemu {
    /// `real`, made to do what `setting` says.
    pub fn new(real: RealQemu, setting: Setting) -> ForcedQemu {
        ForcedQemu(Rc::new(Shared {
            guests: Guests::new(&real),
            real,
            setting,
            holds: RefCell::default(),
            forced: RefCell::default(),
            used: Cell::new(false),
        }))
    }

    /// How far the plan was forced up to now.
    pub fn forced(&self) -> Forced {
        self.0.forced.borrow().clone()
    }

    fn is_concurrent(&self) -> bool {
        self.0.holds.borrow().is_some()
    }

    /// Takes the breakpoints out while work is done with them; the actors that run meanwhile don't need them.
    async fn with_holds<T>(&self, work: impl AsyncFnOnce(&mut Holds) -> Result<T, RunError>) -> Result<T, RunError> {
        let mut holds = self.0.holds.borrow_mut().take().ok_or_else(|| RunError::machine("no breakpoint is set"))?;
        let result = work(&mut holds).await;
        *self.0.holds.borrow_mut() = Some(holds);
        result
    }

    /// A guest's request, which other moves may come before the end of.
    async fn guest_request(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        let backend = self.0.guests.drive(node)?;
        let from = self.with_holds(async |holds| Ok(holds.printed_bytes())).await?;
        let Some((request, offset)) = asynchronous(command) else {
            let reply = self.0.guests.monitor(&format!("qemu-io {backend} \"{command}\""))?;
            turn().await;
            return Ok(QemuIoReply { output: String::new().into(), reply });
        };
        let reply = self.0.guests.monitor(&format!("qemu-io {backend} \"{request}\""))?;
        loop {
            turn().await;
            let look = || {
                let mut holds = self.0.holds.borrow_mut();
                result_of(holds.as_mut()?.printed(from), offset)
                    .map(|line| format!("{}\n", line.trim_start_matches("aio_")))
            };
            if let Some(output) = soon(TO_ANSWER, look) {
                return Ok(QemuIoReply { output: output.into(), reply });
            }
        }
    }

    /// Does the moves of the plan, then lets everything go.
    async fn follow(&self, actors: &mut BTreeMap<String, Option<Actor>>) -> Result<(), RunError> {
        let plan = &self.0.setting.plan;
        for (place, one) in plan.moves.iter().enumerate() {
            match &one.what {
                What::Actor(name) => {
                    self.0.forced.borrow_mut().actors += 1;
                    poll_actor(actors.get_mut(&**name))?;
                }
                What::Done(request) => self.done(*request, place).await?,
                What::Own(what) => self.free(format!("move {}: {what}, which only QEMU decides about", place + 1)),
            }
            let begins: Vec<_> = one.begins.iter().map(|number| (*number, &plan.requests[*number])).collect();
            if !begins.is_empty() {
                self.with_holds(async |holds| holds.catch(&begins).await).await?;
            }
        }
        self.with_holds(async |holds| holds.release().await).await?;
        let deadline = Instant::now() + TO_END;
        while actors.values().any(Option::is_some) {
            for actor in actors.values_mut() {
                poll_actor(Some(actor))?;
            }
            if Instant::now() >= deadline {
                return Err(RunError::failed("the actors do not end, though nothing is held any more"));
            }
        }
        Ok(())
    }

    fn free(&self, what: String) {
        self.0.forced.borrow_mut().free.push(what);
    }

    /// The device answers: the request is let go, or it has gone on long ago.
    async fn done(&self, request: usize, place: usize) -> Result<(), RunError> {
        let is_held = self.0.holds.borrow().as_ref().is_some_and(|holds| holds.holds(request));
        if is_held {
            self.0.forced.borrow_mut().held += 1;
            return self.with_holds(async |holds| holds.let_go(request).await).await;
        }
        // One that goes on at once is where it should be if nothing else comes between.
        let began = self.0.setting.plan.moves.iter().position(|one| one.begins.contains(&request));
        let own = &self.0.setting.plan.moves[began.map_or(0, |began| began + 1)..place];
        let others_only = |what: &What| matches!(what, What::Done(other) if !self.0.holds.borrow().as_ref().is_some_and(|holds| holds.holds(*other)));
        if own.iter().all(|one| others_only(&one.what)) {
            self.0.forced.borrow_mut().in_place += 1;
        } else {
            self.free(format!(
                "move {}: {}, which no breakpoint held",
                place + 1,
                self.0.setting.plan.requests[request]
            ));
        }
        Ok(())
    }
}

/// Lets an actor go on to its next wait.
fn poll_actor(actor: Option<&mut Option<Actor>>) -> Result<(), RunError> {
    let Some(slot) = actor else { return Ok(()) };
    let Some(running) = slot else { return Ok(()) };
    match running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => Ok(()),
        Poll::Ready(result) => {
            *slot = None;
            result
        }
    }
}

impl Backend for ForcedQemu {
    async fn image(&self, spec: &ImageSpec) -> Result<(), RunError> {
        self.0.real.image(spec).await
    }

    async fn launch(&self) -> Result<(), RunError> {
        self.0.real.launch().await
    }

    async fn shutdown(&self) -> Result<(), RunError> {
        self.0.real.shutdown().await
    }

    async fn kill(&self) -> Result<(), RunError> {
        self.0.real.kill().await
    }

    async fn execute(&self, command: &str, arguments: &Map<String, Value>) -> Result<Value, RunError> {
        let reply = self.0.real.execute(command, arguments).await?;
        if self.is_concurrent() {
            turn().await;
        }
        Ok(reply)
    }

    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        if self.is_concurrent() {
            self.guest_request(node, command).await
        } else {
            self.0.real.qemu_io(node, command).await
        }
    }

    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        self.0.real.qemu_img(args).await
    }

    fn event(&self, index: usize) -> Option<Event> {
        self.0.real.event(index)
    }

    async fn wait_event(&self, index: usize, timeout_ns: u64) -> Result<bool, RunError> {
        if !self.is_concurrent() {
            return self.0.real.wait_event(index, timeout_ns).await;
        }
        let deadline = Instant::now() + Duration::from_nanos(timeout_ns);
        while Instant::now() < deadline {
            if soon(TO_ANSWER / 5, || self.event(index)).is_some() {
                return Ok(true);
            }
            turn().await;
        }
        Ok(false)
    }

    fn now(&self) -> u64 {
        self.0.real.now()
    }

    async fn sleep(&self, ns: u64) -> Result<(), RunError> {
        self.0.real.sleep(ns).await
    }

    async fn add_fault(&self, spec: &FaultSpec) -> Result<(), RunError> {
        self.0.real.add_fault(spec).await
    }

    async fn workload(&self, spec: &Workload) -> Result<WorkloadSummary, RunError> {
        self.0.real.workload(spec).await
    }

    async fn concurrently(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError> {
        if self.0.used.replace(true) {
            return Err(RunError::machine("a schedule is carried over for one `concurrently` step, not for two"));
        }
        self.0.guests.add(&self.0.setting.nodes)?;
        let holds = Holds::set(&self.0.real, &self.0.setting.points).await?;
        *self.0.holds.borrow_mut() = Some(holds);
        let mut actors: BTreeMap<String, Option<Actor>> =
            actors.into_iter().map(|(name, actor)| (name, Some(actor))).collect();
        let result = self.follow(&mut actors).await;
        drop(actors);
        *self.0.holds.borrow_mut() = None;
        result?;
        self.0.guests.remove()
    }

    fn set_position(&self, step: &StepPosition<'_>) {
        self.0.real.set_position(step);
    }
}
