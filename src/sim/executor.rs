//! Tasks: coroutines, frames and actors, and how one enters another.
//!
//! This file knows how control passes between tasks that are already chosen (entering, waking, wake
//! lists: rules E4 to E8 of QEMU's coroutine code); `poll.rs` decides which event of the loop comes
//! next. Neither may know what a task is for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Nanos;
use super::access::{self, Mode, mix};
use super::choices::{Choices, Footprint};
use super::poll::{EventLoop, Stop};
use super::trace::{Stamped, Trace, TraceEvent};

/// Names a task; a stale id (its task has ended) is harmless everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    index: u32,
    generation: u32,
    /// What stands for the task among the things that a step uses: the same in all runs that differ in the order of
    /// independent steps only, which the others need not be.
    object: u64,
}

impl TaskId {
    /// A number that names the task in all runs that differ in the order of independent steps only.
    pub fn number(self) -> u64 {
        self.object
    }
}

/// What a task stands for, which decides how it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// A coroutine: woken at once from outside coroutines, by wake list from inside one.
    Coroutine,
    /// Main-loop code (a bottom half, a command handler): resumes when the condition of its nested
    /// poll holds and it is the innermost frame.
    Frame,
    /// Something outside QEMU (a client, a guest): its wake-up is an arrival.
    Actor,
}

/// A future on the heap: what is large is moved there once, where it is made.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

type TaskFuture = LocalFuture<()>;

pub(super) struct Task {
    generation: u32,
    pub(super) kind: TaskKind,
    name: Rc<str>,
    /// On whose behalf it runs: the actor or job that started it, or itself.
    owner: Rc<str>,
    future: Option<TaskFuture>,
    alive: bool,
    /// Set by the waker, taken by the [`Park`] that the task sleeps in.
    resumed: bool,
    /// Coroutines woken from inside this one; they run when it next yields or ends.
    wake_list: Vec<TaskId>,
    waits_for: &'static str,
    /// As in its [`TaskId`].
    object: u64,
    /// Names an actor in the same way in all runs that differ in the order of independent steps only.
    identity: u64,
    /// Arrivals that the actor was given.
    arrivals: u64,
}

/// Why a run came to an end before its root actor did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing can happen any more; one line for each task that waits, with what it waits for.
    Deadlock(Vec<String>),
    /// The limit of steps was reached; the tasks that were alive then.
    StepLimit(u64, Vec<String>),
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = match self {
            Stuck::Deadlock(waiting) => {
                f.write_str("deadlock: nothing can run any more")?;
                waiting
            }
            Stuck::StepLimit(steps, waiting) => {
                write!(f, "no end after {steps} steps (livelock?)")?;
                waiting
            }
        };
        for line in waiting {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

pub(super) struct Core {
    pub(super) tasks: RefCell<Vec<Task>>,
    free: RefCell<Vec<u32>>,
    current: Cell<Option<TaskId>>,
    /// The coroutine that the loop has entered by itself and that has not yielded since: when it does, control is with
    /// the loop again.
    pub(super) from_loop: Cell<Option<TaskId>>,
    pub(super) now: Cell<Nanos>,
    pub(super) steps: Cell<u64>,
    pub(super) step_limit: Cell<u64>,
    /// Tasks entered and requests begun since the event under way began.
    pub(super) work: Cell<u64>,
    /// While tasks are being dropped, wake-ups out of their destructors go nowhere.
    dropping: Cell<bool>,
    deaths: Cell<u32>,
    pub(super) events: RefCell<EventLoop>,
    pub(super) choices: RefCell<Choices>,
    pub(super) trace: Trace,
    /// Names of the objects of footprints.
    objects: RefCell<BTreeMap<u32, Rc<str>>>,
    /// What each actor said that it does next.
    announced: RefCell<BTreeMap<Rc<str>, Rc<str>>>,
}

/// A handle on the kernel; clones are the same kernel.
#[derive(Clone)]
pub struct Sim(pub(super) Rc<Core>);

/// A run that goes on this long in virtual steps is taken for a livelock.
const DEFAULT_STEP_LIMIT: u64 = 2_000_000_000;

impl Sim {
    /// A kernel at time 0 that asks `choices`.
    pub fn new(choices: Choices) -> Sim {
        Sim(Rc::new(Core {
            tasks: RefCell::default(),
            free: RefCell::default(),
            current: Cell::new(None),
            from_loop: Cell::new(None),
            now: Cell::new(0),
            steps: Cell::new(0),
            step_limit: Cell::new(DEFAULT_STEP_LIMIT),
            work: Cell::new(0),
            dropping: Cell::new(false),
            deaths: Cell::new(0),
            events: RefCell::default(),
            choices: RefCell::new(choices),
            trace: Trace::default(),
            objects: RefCell::default(),
            announced: RefCell::default(),
        }))
    }

    /// Virtual time, ns since the start, for reports; see [`Sim::now_decides`].
    pub fn now(&self) -> Nanos {
        self.0.now.get()
    }

    /// Virtual time for somebody whose decision depends on it, and with it on every arrival before.
    pub fn now_decides(&self) -> Nanos {
        access::touch(access::CLOCK, Mode::Read);
        self.now()
    }

    /// Steps (events of the loop) executed so far.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// Ends the run as [`Stuck::StepLimit`] after this many steps.
    pub fn set_step_limit(&self, limit: u64) {
        self.0.step_limit.set(limit);
    }

    /// Ends the run as [`Stuck::StepLimit`] before its next step: somebody has seen that it goes round and round.
    pub fn give_up(&self) {
        self.0.step_limit.set(self.0.steps.get());
    }

    /// Counts a task entered or a request begun: an event that goes on for ever would never come to the limit of steps,
    /// only to the end of memory.
    ///
    /// # Panics
    ///
    /// When one event does more than a whole run may have steps.
    #[inline]
    pub fn count_work(&self) {
        let work = self.0.work.get() + 1;
        self.0.work.set(work);
        assert!(work <= self.0.step_limit.get(), "no end of one event after {work} requests and tasks (livelock?)");
    }

    /// The stream of trace events.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Whether somebody looks at a run closer than its transcript: a reader of the trace, or an exploration.
    pub fn is_watched(&self) -> bool {
        self.0.trace.is_read() || self.0.choices.borrow().explores()
    }

    /// Tells the trace's readers, with the time and the current task; `event` is only built when
    /// somebody reads.
    pub fn emit(&self, event: impl FnOnce() -> TraceEvent) {
        if self.0.trace.is_read() {
            let (task, owner) = self.current().map(|id| (self.task_name(id), self.owner_name(id))).unzip();
            // Who only looks on is no part of the run.
            access::unseen(|| self.0.trace.publish(Stamped { time: self.now(), task, owner, event: event() }));
        }
    }

    /// Like [`Sim::emit`], for what only somebody wants to know who tells a run step by step.
    pub fn emit_detail(&self, event: impl FnOnce() -> TraceEvent) {
        if self.0.trace.is_detailed() {
            self.emit(event);
        }
    }

    /// An actor says what it does when it next comes; kept only where steps are named.
    pub fn announce(&self, actor: &str, next: impl FnOnce() -> String) {
        if self.0.trace.is_detailed() {
            self.0.announced.borrow_mut().insert(actor.into(), next().into());
        }
    }

    /// What the actor has announced.
    pub fn announced(&self, actor: &str) -> Option<Rc<str>> {
        self.0.announced.borrow().get(actor).cloned()
    }

    /// Asks for a decision; see [`Choices::choose`].
    pub fn choose(&self, n: usize, what: &'static str) -> usize {
        self.0.choices.borrow_mut().choose(n, what)
    }

    /// The recorder of decisions.
    pub fn with_choices<T>(&self, f: impl FnOnce(&mut Choices) -> T) -> T {
        f(&mut self.0.choices.borrow_mut())
    }

    /// The task that runs now, if the caller is inside one.
    pub fn current(&self) -> Option<TaskId> {
        self.0.current.get()
    }

    /// Whether the caller runs inside a coroutine (and so must not poll).
    pub fn in_coroutine(&self) -> bool {
        self.current().is_some_and(|id| self.kind(id) == Some(TaskKind::Coroutine))
    }

    fn kind(&self, id: TaskId) -> Option<TaskKind> {
        let tasks = self.0.tasks.borrow();
        tasks.get(id.index as usize).filter(|t| t.generation == id.generation && t.alive).map(|t| t.kind)
    }

    /// The name that a task was given.
    pub fn task_name(&self, id: TaskId) -> Rc<str> {
        self.0.tasks.borrow()[id.index as usize].name.clone()
    }

    /// On whose behalf the task runs: the name of an actor or of a job, or its own where nobody started it.
    pub fn owner_name(&self, id: TaskId) -> Rc<str> {
        self.0.tasks.borrow()[id.index as usize].owner.clone()
    }

    /// Who is behind what the caller does now.
    pub(super) fn current_owner(&self) -> Option<Rc<str>> {
        self.current().map(|id| self.owner_name(id))
    }

    /// Says what footprints mean by `object`; kept only when exploring.
    pub fn name_object(&self, object: u32, name: &Rc<str>) {
        if self.0.choices.borrow().explores() {
            self.0.objects.borrow_mut().insert(object, name.clone());
        }
    }

    /// The name of an object of footprints.
    pub fn object_name(&self, object: u32) -> Option<Rc<str>> {
        self.0.objects.borrow().get(&object).cloned()
    }

    /// Whether the task has not ended yet.
    pub fn is_alive(&self, id: TaskId) -> bool {
        access::touch(id.object, Mode::Read);
        self.kind(id).is_some()
    }

    fn insert(&self, name: Rc<str>, owner: Rc<str>, kind: TaskKind, future: TaskFuture) -> TaskId {
        let mut tasks = self.0.tasks.borrow_mut();
        let object = access::new_object();
        if let Some(index) = self.0.free.borrow_mut().pop() {
            let slot = &mut tasks[index as usize];
            slot.generation = slot.generation.wrapping_add(1);
            (slot.kind, slot.name, slot.owner, slot.future) = (kind, name, owner, Some(future));
            (slot.alive, slot.resumed, slot.waits_for) = (true, false, "its first step");
            (slot.object, slot.identity, slot.arrivals) = (object, 0, 0);
            return TaskId { index, generation: slot.generation, object };
        }
        let index = tasks.len() as u32;
        tasks.push(Task {
            generation: 0,
            kind,
            name,
            owner,
            future: Some(future),
            alive: true,
            resumed: false,
            wake_list: Vec::new(),
            waits_for: "its first step",
            object,
            identity: 0,
            arrivals: 0,
        });
        TaskId { index, generation: 0, object }
    }

    /// Creates a coroutine and enters it at once, on top of the caller, until its first yield
    /// (`qemu_coroutine_create` + `qemu_coroutine_enter`).
    pub fn spawn(&self, name: impl Into<Rc<str>>, future: impl Future<Output = ()> + 'static) -> TaskId {
        let name = name.into();
        let owner = self.current_owner().unwrap_or_else(|| name.clone());
        let id = self.insert(name, owner, TaskKind::Coroutine, Box::pin(future));
        self.enter(id);
        id
    }

    /// Creates a coroutine without entering it; the first [`Sim::enter`] starts it. It runs on its own behalf.
    pub fn create(&self, name: impl Into<Rc<str>>, future: impl Future<Output = ()> + 'static) -> TaskId {
        let name = name.into();
        self.insert(name.clone(), name, TaskKind::Coroutine, Box::pin(future))
    }

    /// Creates an actor; its first step is an arrival like any other of its steps.
    pub fn spawn_actor(&self, name: impl Into<Rc<str>>, future: impl Future<Output = ()> + 'static) -> TaskId {
        let name = name.into();
        let id = self.insert(name.clone(), name, TaskKind::Actor, Box::pin(future));
        let identity = self.0.events.borrow_mut().next_identity();
        self.0.tasks.borrow_mut()[id.index as usize].identity = identity;
        self.wake(id);
        id
    }

    pub(super) fn insert_frame(&self, name: Rc<str>, owner: Rc<str>, future: TaskFuture) -> TaskId {
        self.insert(name, owner, TaskKind::Frame, future)
    }

    /// Runs the task now, on top of the caller, until it yields; then those that it woke, depth
    /// first (`qemu_aio_coroutine_enter`). A task that runs already, or has ended, is left alone.
    pub fn enter(&self, first: TaskId) {
        self.mark_resumed(first);
        let mut pending = VecDeque::new();
        let mut next = Some(first);
        while let Some(id) = next {
            for woken in self.poll_task(id).into_iter().rev() {
                pending.push_front(woken);
            }
            next = pending.pop_front();
        }
    }

    fn mark_resumed(&self, id: TaskId) {
        access::touch(id.object, Mode::Write);
        let mut tasks = self.0.tasks.borrow_mut();
        if let Some(task) = tasks.get_mut(id.index as usize)
            && task.generation == id.generation
        {
            task.resumed = true;
        }
    }

    /// Polls one task and returns its wake list.
    pub(super) fn poll_task(&self, id: TaskId) -> Vec<TaskId> {
        access::touch(id.object, Mode::Write);
        self.count_work();
        let future = {
            let mut tasks = self.0.tasks.borrow_mut();
            match tasks.get_mut(id.index as usize) {
                Some(task) if task.generation == id.generation && task.alive => task.future.take(),
                _ => None,
            }
        };
        let Some(mut future) = future else { return Vec::new() };
        let caller = self.0.current.replace(Some(id));
        let result = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        self.0.current.set(caller);
        if self.0.from_loop.get() == Some(id) {
            self.0.from_loop.set(None);
        }
        let mut tasks = self.0.tasks.borrow_mut();
        let task = &mut tasks[id.index as usize];
        let woken = std::mem::take(&mut task.wake_list);
        match result {
            Poll::Pending => task.future = Some(future),
            Poll::Ready(()) => {
                task.alive = false;
                self.0.free.borrow_mut().push(id.index);
                drop(tasks);
                drop(future);
            }
        }
        woken
    }

    /// Whether the task is to run others when it yields.
    pub(super) fn has_woken(&self, id: TaskId) -> bool {
        !self.0.tasks.borrow()[id.index as usize].wake_list.is_empty()
    }

    /// Wakes a task (`aio_co_wake`): at once on top of the caller outside of coroutines, on the
    /// current coroutine's wake list inside one; an actor by an arrival.
    pub fn wake(&self, id: TaskId) {
        if self.0.dropping.get() {
            return;
        }
        access::touch(id.object, Mode::Write);
        self.wake_unseen(id);
    }

    /// Wakes a task that many want to be woken, if the caller is the last of them: as far as the order of steps
    /// goes, all of them wake it.
    pub(super) fn wake_if(&self, id: TaskId, last: bool) {
        access::touch(id.object, Mode::Add);
        if last && !self.0.dropping.get() {
            self.wake_unseen(id);
        }
    }

    fn wake_unseen(&self, id: TaskId) {
        match self.kind(id) {
            None => {}
            Some(TaskKind::Actor) => {
                let event = {
                    let task = &mut self.0.tasks.borrow_mut()[id.index as usize];
                    task.arrivals += 1;
                    mix(task.identity, task.arrivals)
                };
                self.0.events.borrow_mut().arrive_actor(self.now(), id, Footprint::actor(id), event);
            }
            Some(TaskKind::Frame) => {}
            Some(TaskKind::Coroutine) => match self.current() {
                Some(me) if self.kind(me) == Some(TaskKind::Coroutine) => {
                    self.mark_resumed(id);
                    self.0.tasks.borrow_mut()[me.index as usize].wake_list.push(id);
                }
                _ => self.enter(id),
            },
        }
    }

    /// Yields until somebody wakes the current task; `what` is shown when nobody ever does.
    pub fn park(&self, what: &'static str) -> Park<'_> {
        Park { sim: self, what, parked: false }
    }

    /// Yields and is run again by the loop's next round of bottom halves, in order with others that
    /// do so (`aio_co_schedule`).
    pub async fn reschedule(&self, what: &'static str) {
        if let Some(me) = self.current() {
            self.0.events.borrow_mut().schedule_coroutine(me);
            self.park(what).await;
        }
    }

    /// Drops every coroutine and frame, every bottom half and arrival of theirs, as the death of
    /// the QEMU process does. Actors stay.
    pub fn kill(&self) {
        access::touch_everything();
        self.0.dropping.set(true);
        self.0.events.borrow_mut().forget_process();
        let mut doomed = Vec::new();
        for (index, task) in self.0.tasks.borrow_mut().iter_mut().enumerate() {
            if task.alive && task.kind != TaskKind::Actor && task.future.is_some() {
                task.alive = false;
                task.wake_list.clear();
                self.0.free.borrow_mut().push(index as u32);
                doomed.extend(task.future.take());
            }
        }
        drop(doomed);
        self.0.dropping.set(false);
        self.0.deaths.set(self.0.deaths.get() + 1);
        self.wake_actors();
    }

    /// How often the process has died: who waits for something in it looks at this too.
    pub fn deaths(&self) -> u32 {
        self.0.deaths.get()
    }

    /// Lets all actors but the current one see that the process has died.
    fn wake_actors(&self) {
        let ids: Vec<TaskId> = {
            let tasks = self.0.tasks.borrow();
            let actors = tasks.iter().enumerate().filter(|(_, t)| t.alive && t.kind == TaskKind::Actor);
            let id =
                |(index, t): (usize, &Task)| TaskId { index: index as u32, generation: t.generation, object: t.object };
            actors.map(id).collect()
        };
        for id in ids {
            if self.current() != Some(id) {
                self.wake(id);
            }
        }
    }

    /// Whether destructors run because of [`Sim::kill`] or the end of the run.
    pub fn is_dropping(&self) -> bool {
        self.0.dropping.get()
    }

    /// Runs `root` as an actor to its end and returns its value.
    pub fn run<T: 'static>(&self, name: &str, root: impl Future<Output = T> + 'static) -> Result<T, Stuck> {
        let mut run = self.begin(name, root);
        loop {
            if let Some(outcome) = run.step() {
                return outcome;
            }
        }
    }

    /// Makes `root` an actor, for somebody who takes the steps of its run one by one.
    pub fn begin<T: 'static>(&self, name: &str, root: impl Future<Output = T> + 'static) -> Running<T> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let (result, root) = (slot.clone(), Box::pin(root));
        self.spawn_actor(name, async move { *result.borrow_mut() = Some(root.await) });
        Running { sim: self.clone(), slot }
    }

    /// Drops all tasks, actors included; breaks the reference cycles between them and the kernel.
    pub fn drop_everything(&self) {
        self.kill();
        self.0.dropping.set(true);
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        self.0.free.borrow_mut().clear();
        self.0.dropping.set(false);
    }

    /// One line for each live task: its name and what it waits for.
    pub fn waiting(&self) -> Vec<String> {
        let tasks = self.0.tasks.borrow();
        tasks.iter().filter(|t| t.alive).map(|t| format!("{} waits for {}", t.name, t.waits_for)).collect()
    }

    pub(super) fn note_wait(&self, what: &'static str) {
        if let Some(me) = self.current() {
            self.0.tasks.borrow_mut()[me.index as usize].waits_for = what;
        }
    }

    fn take_resumed(&self) -> bool {
        let me = self.current().map(|id| id.index as usize);
        me.is_some_and(|me| std::mem::take(&mut self.0.tasks.borrow_mut()[me].resumed))
    }
}

/// A run that is taken step by step.
pub struct Running<T> {
    sim: Sim,
    slot: Rc<RefCell<Option<T>>>,
}

impl<T> Running<T> {
    /// Executes one event of the loop; at the end gives the root actor's value, or why it can have none.
    pub fn step(&mut self) -> Option<Result<T, Stuck>> {
        let stuck = match self.sim.step() {
            Ok(()) => return self.slot.borrow_mut().take().map(Ok),
            Err(Stop::Idle) => Stuck::Deadlock(self.sim.waiting()),
            Err(Stop::Limit) => Stuck::StepLimit(self.sim.steps(), self.sim.waiting()),
        };
        self.sim.drop_everything();
        Some(Err(stuck))
    }
}

/// The future of [`Sim::park`].
pub struct Park<'a> {
    sim: &'a Sim,
    what: &'static str,
    parked: bool,
}

impl Future for Park<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let resumed = self.sim.take_resumed();
        if self.parked && resumed {
            return Poll::Ready(());
        }
        self.parked = true;
        self.sim.note_wait(self.what);
        Poll::Pending
    }
}
