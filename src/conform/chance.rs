//! A real QEMU whose actors go on as chance has it.
//!
//! Outside `concurrently` it is the real QEMU as it is. Inside, one of the actors goes on to its next wait at a time, drawn
//! anew each time, and guests' requests are under way meanwhile. Must never be taken for one that does the same twice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::scenario::ast::{FaultSpec, Workload};
use crate::scenario::backend::{
    Actor, Backend, Event, ImageSpec, QemuImgOutput, QemuIoReply, RunError, StepPosition, WorkloadSummary,
};
use crate::sim::rng::{Rng, Stream};

use super::guests::{Guests, asynchronous, result_of, said, turn};
use super::real::RealQemu;

/// The longest pause between two turns, microseconds: about as long as a few requests of a disk take.
const LONGEST_PAUSE: u64 = 300;
/// How long a request is under way at most, as far as can be told.
const TO_ANSWER: Duration = Duration::from_millis(500);
/// How long the actors may take together.
const TO_END: Duration = Duration::from_secs(20);

/// Seeds each run with a number of its own.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// A real QEMU with guests. A handle: clones mean the same machine.
#[derive(Clone)]
pub struct ChanceQemu(Rc<Shared>);

struct Shared {
    real: RealQemu,
    /// The nodes that have guests.
    nodes: BTreeSet<Rc<str>>,
    guests: Guests,
    is_concurrent: Cell<bool>,
    /// What QEMU has printed about guests' requests and no guest has read yet.
    printed: RefCell<String>,
    rng: RefCell<Rng>,
}

impl ChanceQemu {
    /// `real`, with guests at `nodes` while actors are at work.
    pub fn new(real: RealQemu, nodes: BTreeSet<Rc<str>>) -> ChanceQemu {
        let seed = RUNS.fetch_add(1, Ordering::Relaxed);
        ChanceQemu(Rc::new(Shared {
            guests: Guests::new(&real),
            real,
            nodes,
            is_concurrent: Cell::new(false),
            printed: RefCell::default(),
            rng: RefCell::new(Rng::new(seed, Stream::Schedule)),
        }))
    }

    async fn guest_request(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        let drive = self.0.guests.drive(node)?;
        let Some((request, offset)) = asynchronous(command) else {
            let reply = self.0.guests.monitor(&format!("qemu-io {drive} \"{command}\""))?;
            turn().await;
            return Ok(QemuIoReply { output: String::new().into(), reply });
        };
        let reply = self.0.guests.monitor(&format!("qemu-io {drive} \"{request}\""))?;
        if !said(&reply).is_empty() {
            // Refused at once.
            turn().await;
            return Ok(QemuIoReply { output: String::new().into(), reply });
        }
        let begin = Instant::now();
        loop {
            turn().await;
            // A failure says nothing of its place: another request may have taken it for its own, and left this one its line.
            let place = (begin.elapsed() < TO_ANSWER).then_some(offset);
            if let Some(line) = self.take_result(place) {
                return Ok(QemuIoReply { output: format!("{}\n", line.trim_start_matches("aio_")).into(), reply });
            }
        }
    }

    /// What QEMU has said of the end of a request, at this place or at any; each line is for one of them.
    fn take_result(&self, offset: Option<u64>) -> Option<String> {
        let mut printed = self.0.printed.borrow_mut();
        printed.push_str(&self.0.real.new_output());
        let line = match offset {
            Some(offset) => result_of(&printed, offset)?.to_owned(),
            None => printed.lines().find(|line| line.contains(" bytes at offset "))?.to_owned(),
        };
        *printed = printed.replacen(&line, "", 1);
        // Which request found another pattern than it expected is not said.
        let is_failure = |text: &&str| text.starts_with("Pattern verification failed");
        let failures: Vec<String> = printed.lines().filter(is_failure).map(str::to_owned).collect();
        for failure in &failures {
            *printed = printed.replacen(failure, "", 1);
        }
        Some(failures.into_iter().map(|failure| failure + "\n").collect::<String>() + &line)
    }

    fn pause(&self) {
        let microseconds = self.0.rng.borrow_mut().below(LONGEST_PAUSE);
        std::thread::sleep(Duration::from_micros(microseconds));
    }

    /// Lets one actor after the other go on until all have ended.
    fn take_turns(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError> {
        let mut actors: Vec<Actor> = actors.into_iter().map(|(_, actor)| actor).collect();
        let deadline = Instant::now() + TO_END;
        while !actors.is_empty() {
            self.pause();
            let next = self.0.rng.borrow_mut().below(actors.len() as u64) as usize;
            if let Poll::Ready(result) = actors[next].as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                drop(actors.remove(next));
                result?;
            }
            if Instant::now() >= deadline {
                return Err(RunError::failed("the actors do not end"));
            }
        }
        Ok(())
    }
}

impl Backend for ChanceQemu {
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
        if self.0.is_concurrent.get() {
            turn().await;
        }
        Ok(reply)
    }

    async fn qemu_io(&self, node: &str, command: &str) -> Result<QemuIoReply, RunError> {
        match self.0.is_concurrent.get() {
            true => self.guest_request(node, command).await,
            false => self.0.real.qemu_io(node, command).await,
        }
    }

    async fn qemu_img(&self, args: &[String]) -> Result<QemuImgOutput, RunError> {
        self.0.real.qemu_img(args).await
    }

    fn event(&self, index: usize) -> Option<Event> {
        self.0.real.event(index)
    }

    async fn wait_event(&self, index: usize, timeout_ns: u64) -> Result<bool, RunError> {
        if !self.0.is_concurrent.get() {
            return self.0.real.wait_event(index, timeout_ns).await;
        }
        let deadline = Instant::now() + Duration::from_nanos(timeout_ns);
        while self.event(index).is_none() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            turn().await;
        }
        Ok(true)
    }

    fn now(&self) -> u64 {
        self.0.real.now()
    }

    async fn sleep(&self, ns: u64) -> Result<(), RunError> {
        if !self.0.is_concurrent.get() {
            return self.0.real.sleep(ns).await;
        }
        let until = Instant::now() + Duration::from_nanos(ns);
        while Instant::now() < until {
            turn().await;
        }
        Ok(())
    }

    async fn add_fault(&self, spec: &FaultSpec) -> Result<(), RunError> {
        self.0.real.add_fault(spec).await
    }

    async fn workload(&self, spec: &Workload) -> Result<WorkloadSummary, RunError> {
        self.0.real.workload(spec).await
    }

    async fn concurrently(&self, actors: Vec<(String, Actor)>) -> Result<(), RunError> {
        if self.0.is_concurrent.replace(true) {
            return Err(RunError::machine("actors of actors are not run on a real QEMU"));
        }
        self.0.guests.add(&self.0.nodes)?;
        let ended = self.take_turns(actors);
        self.0.is_concurrent.set(false);
        ended?;
        self.0.guests.remove()?;
        // Nobody asks for the rest.
        self.0.real.new_output();
        self.0.printed.take();
        Ok(())
    }

    fn set_position(&self, step: &StepPosition<'_>) {
        self.0.real.set_position(step);
    }
}
