//! QEMU's event loop: bottom halves, nested polls, the two contexts, arrivals.
//!
//! The rules (QEMU's `util/async.c`, `util/aio-posix.c`, `util/main-loop.c`):
//! a turn of the main loop dispatches the main context once, then the monitor's context once; a poll
//! takes all pending bottom halves as one slice and runs the newest first; what they schedule
//! belongs to the next poll; a nested poll first finishes what is left of the outer slices. Arrivals
//! (device completions, timers, actors) come only when nothing else can run, completions before
//! timers before actors at the same time: an idle QEMU answers faster than disks, disks faster than
//! clients. A strategy may let an arrival come earlier, at a *poll point*: where the loop looks for what is
//! ready (`ppoll`), that is once in a turn and once in each nested poll, after the slice of bottom halves and
//! before the monitor or the condition. Nothing can come between two bottom halves of one slice.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use smallvec::SmallVec;

use super::Nanos;
use super::access::{self, Mode};
use super::arrivals::{Arrival, ArrivalKey, Arrivals, Arrives, Class};
use super::choices::{Alternative, ChoicePoint, Footprint};
use super::executor::{Sim, TaskId};
use super::shared::Cell;

/// As many rounds of other requests take as long as a flush. Measured: with more than five, or with no limit, jobs that
/// copy dozens of chunks end too early beside one that flushes.
const FLUSH_ROUNDS: u64 = 2;

/// Why [`Sim::step`] could not step.
pub(super) enum Stop {
    /// Nothing is pending anywhere.
    Idle,
    /// The step limit is reached.
    Limit,
}

enum BottomHalf {
    Call(Box<dyn FnOnce()>),
    /// Main-loop code that may poll: its name, on whose behalf, what it does.
    Frame(Rc<str>, Rc<str>, Pin<Box<dyn Future<Output = ()>>>),
    /// Runs all coroutines scheduled so far, oldest first.
    ScheduledCoroutines,
}

/// What comes next at a poll point.
enum Next {
    /// An arrival, and whether the loop had nothing else to do.
    Arrival(ArrivalKey, bool),
    /// The loop's own next event, or the end.
    Loop,
    /// The strategy has seen enough of this run.
    Abandoned,
}

/// Mixes two numbers into one that stands for both.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(23) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// Where the outermost loop is within its turn.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    #[default]
    Main,
    Monitor,
}

#[derive(Default)]
pub(super) struct EventLoop {
    pending: Vec<BottomHalf>,
    slices: VecDeque<Vec<BottomHalf>>,
    scheduled: VecDeque<TaskId>,
    monitor_pending: VecDeque<BottomHalf>,
    monitor_slice: VecDeque<BottomHalf>,
    arrivals: Arrivals,
    sequence: u64,
    /// Rounds of completions that have begun to be delivered.
    round: u64,
    /// Frames that poll, innermost last.
    frames: Vec<TaskId>,
    /// The innermost frame has looked at its condition since anything last happened.
    looked: bool,
    /// The innermost frame is in a bare poll, in which nothing has happened yet: it goes on in any case.
    bare: bool,
    turn: Turn,
    /// The event under way, and how many arrivals and actors it has made: together they name each of those.
    event: u64,
    made: u64,
    /// Events of the loop itself.
    loops: u64,
    /// The event under way has turned out to be a mere look at a condition that does not hold.
    idle_look: bool,
}

impl EventLoop {
    pub(super) fn schedule_coroutine(&mut self, id: TaskId) {
        if self.scheduled.is_empty() {
            self.pending.push(BottomHalf::ScheduledCoroutines);
        }
        access::touch(access::BOTTOM_HALVES, Mode::Write);
        self.scheduled.push_back(id);
    }

    pub(super) fn arrive_actor(&mut self, at: Nanos, id: TaskId, footprint: Footprint, event: u64) {
        self.arrive_as(at, Class::Actor, Arrives::Actor(id), footprint, event);
    }

    fn arrive(&mut self, at: Nanos, class: Class, what: Arrives, footprint: Footprint) -> ArrivalKey {
        let event = self.next_identity();
        self.arrive_as(at, class, what, footprint, event)
    }

    fn arrive_as(&mut self, at: Nanos, class: Class, what: Arrives, footprint: Footprint, event: u64) -> ArrivalKey {
        let key = self.next_key(at, class);
        self.sequence = key.sequence;
        self.arrivals.insert(key, Arrival { what, footprint, event });
        key
    }

    /// The key of the next arrival.
    fn next_key(&self, at: Nanos, class: Class) -> ArrivalKey {
        let sequence = self.sequence + 1;
        let (round, place) = match class {
            Class::Completion => (self.round, u64::MAX - sequence),
            Class::Durable => (self.round + FLUSH_ROUNDS, sequence),
            Class::Timer | Class::Actor | Class::Patience => (0, sequence),
        };
        ArrivalKey { at, class, round, place, sequence }
    }

    /// Whether there is nothing for the loop to do but to wait.
    fn has_only_arrivals(&self) -> bool {
        let main = self.pending.is_empty() && self.slices.is_empty() && self.frames.is_empty();
        main && self.monitor_pending.is_empty() && self.monitor_slice.is_empty()
    }

    /// Names what the event under way makes, by who makes it: the same in all runs that differ in the order of
    /// independent events only.
    pub(super) fn next_identity(&mut self) -> u64 {
        self.made += 1;
        mix(self.event, self.made)
    }

    fn begin_event(&mut self, event: u64) {
        (self.event, self.made, self.idle_look) = (event, 0, false);
    }

    /// The event under way is over; tells whether it was a mere look, which does not count.
    fn end_event(&mut self) -> bool {
        let idle_look = std::mem::take(&mut self.idle_look);
        self.loops -= u64::from(idle_look);
        idle_look
    }

    /// The loop does something by itself; its events are in one order.
    fn begin_own_event(&mut self) {
        self.loops += 1;
        self.begin_event(mix(access::LOOP, self.loops));
        access::touch(access::LOOP, Mode::Write);
    }

    /// Whether no bottom half waits for the next slice.
    fn no_bottom_half(&self) -> bool {
        access::touch(access::BOTTOM_HALVES, Mode::Read);
        self.pending.is_empty()
    }

    /// What frames wait for may have come.
    fn something_happens(&mut self) {
        self.looked = false;
        self.bare = false;
    }

    /// Whether nothing waits for the next dispatch of the monitor's context.
    fn monitor_is_quiet(&self) -> bool {
        access::touch(access::MONITOR, Mode::Read);
        self.monitor_pending.is_empty()
    }

    /// Whether all that the loop can do by itself is to look at the innermost frame's condition.
    fn can_only_look(&self) -> bool {
        !self.frames.is_empty() && self.no_bottom_half()
    }

    /// Whether the loop is where QEMU's looks for what is ready.
    fn is_poll_point(&self) -> bool {
        self.slices.is_empty() && (!self.frames.is_empty() || self.turn == Turn::Main || self.is_idle())
    }

    fn take_slice(&mut self) -> bool {
        if self.no_bottom_half() {
            return false;
        }
        access::touch(access::BOTTOM_HALVES, Mode::Write);
        let slice = std::mem::take(&mut self.pending);
        self.slices.push_back(slice);
        true
    }

    fn next_in_slices(&mut self) -> Option<BottomHalf> {
        while let Some(slice) = self.slices.front_mut() {
            if let Some(newest) = slice.pop() {
                if slice.is_empty() {
                    self.pop_empty_slice();
                }
                return Some(newest);
            }
            self.pop_empty_slice();
        }
        None
    }

    /// Keeps the emptied slice's memory for the next one.
    fn pop_empty_slice(&mut self) {
        if let Some(slice) = self.slices.pop_front()
            && self.pending.capacity() == 0
        {
            self.pending = slice;
        }
    }

    pub(super) fn forget_process(&mut self) {
        self.pending.clear();
        self.slices.clear();
        self.scheduled.clear();
        self.monitor_pending.clear();
        self.monitor_slice.clear();
        self.frames.clear();
        self.looked = false;
        self.turn = Turn::Main;
        self.arrivals.keep_actors();
    }

    fn is_idle(&self) -> bool {
        // Each queue is looked at only where it decides.
        let rest_idle = if self.frames.is_empty() { self.monitor_slice.is_empty() } else { self.looked && !self.bare };
        let own_idle = self.slices.is_empty() && rest_idle && self.no_bottom_half();
        // Inside a frame's poll the monitor's context does not run.
        own_idle && (!self.frames.is_empty() || self.monitor_is_quiet())
    }
}

impl Sim {
    /// Schedules a bottom half in the main context (`aio_bh_schedule_oneshot`).
    pub fn bh(&self, f: impl FnOnce() + 'static) {
        access::touch(access::BOTTOM_HALVES, Mode::Write);
        self.0.events.borrow_mut().pending.push(BottomHalf::Call(Box::new(f)));
    }

    /// Schedules a bottom half that may poll.
    pub fn bh_frame(&self, name: impl Into<Rc<str>>, f: impl Future<Output = ()> + 'static) {
        access::touch(access::BOTTOM_HALVES, Mode::Write);
        let frame = self.frame(name.into(), f);
        self.0.events.borrow_mut().pending.push(frame);
    }

    /// Schedules work for the next dispatch of the monitor's context.
    pub fn monitor(&self, f: impl FnOnce() + 'static) {
        access::touch(access::MONITOR, Mode::Write);
        self.0.events.borrow_mut().monitor_pending.push_back(BottomHalf::Call(Box::new(f)));
    }

    /// Like [`Sim::monitor`], for a command handler, which may poll.
    pub fn monitor_frame(&self, name: impl Into<Rc<str>>, f: impl Future<Output = ()> + 'static) {
        access::touch(access::MONITOR, Mode::Write);
        let frame = self.frame(name.into(), f);
        self.0.events.borrow_mut().monitor_pending.push_back(frame);
    }

    fn frame(&self, name: Rc<str>, f: impl Future<Output = ()> + 'static) -> BottomHalf {
        let owner = self.current_owner().unwrap_or_else(|| name.clone());
        BottomHalf::Frame(name, owner, Box::pin(f))
    }

    /// Yields until a device has done something that takes `latency` ns.
    pub async fn device(&self, latency: Nanos, footprint: Footprint) {
        self.completion(Class::Completion, latency, footprint).await;
    }

    /// Yields until a device has made durable what it holds, which takes `latency` ns. A real disk takes longer for that
    /// than a client for its next command: of what is due at the same time it comes last, but not after more than a
    /// few rounds of other requests.
    pub async fn device_sync(&self, latency: Nanos, footprint: Footprint) {
        self.completion(Class::Durable, latency, footprint).await;
    }

    async fn completion(&self, class: Class, latency: Nanos, mut footprint: Footprint) {
        let Some(me) = self.current() else { return };
        footprint.task = Some(me);
        let at = self.now().saturating_add(latency);
        if self.comes_at_once(me, at, class) {
            return;
        }
        self.0.events.borrow_mut().arrive(at, class, Arrives::Wake(me), footprint);
        self.park("the device").await;
    }

    /// Spares a coroutine the way to the loop and back where the loop could do nothing but to come back with what is
    /// asked for here: nothing else is pending, or not before it, and nobody but the loop waits for the coroutine to
    /// yield. Whoever watches a run sees the loop do it.
    fn comes_at_once(&self, me: TaskId, at: Nanos, class: Class) -> bool {
        // The monitor's turn, then the arrival.
        let steps = self.0.steps.get() + 2;
        let goes_to_loop = self.0.from_loop.get() == Some(me) && !self.has_woken(me);
        if !goes_to_loop || steps > self.0.step_limit.get() || self.is_watched() {
            return false;
        }
        let mut events = self.0.events.borrow_mut();
        let key = events.next_key(at, class);
        if !events.has_only_arrivals() || events.arrivals.first().is_some_and(|first| first < key) {
            return false;
        }
        events.sequence = key.sequence;
        let event = events.next_identity();
        self.0.steps.set(steps);
        self.0.work.set(0);
        self.begin_arrival(&mut events, key, event);
        true
    }

    /// Runs `f` from the loop at time `at` (a timer's callback).
    pub fn timer(&self, at: Nanos, f: impl FnOnce() + 'static) {
        let what = Arrives::Call(Box::new(f));
        self.0.events.borrow_mut().arrive(at.max(self.now()), Class::Timer, what, Footprint::named("timer"));
    }

    /// Like [`Sim::timer`], for the patience of a client: exploration never lets it run out while anything
    /// else can still happen.
    pub fn patience(&self, at: Nanos, f: impl FnOnce() + 'static) {
        let what = Arrives::Call(Box::new(f));
        self.0.events.borrow_mut().arrive(at.max(self.now()), Class::Patience, what, Footprint::named("patience"));
    }

    /// Sleeps on the virtual clock.
    pub async fn sleep(&self, ns: Nanos) {
        Sleeper::default().sleep(self, ns).await;
    }

    /// In a frame: polls the main context until `condition` holds (`AIO_WAIT_WHILE`). The condition
    /// is looked at before the first poll and after each.
    pub fn poll_until<F: FnMut() -> bool>(&self, what: &'static str, condition: F) -> PollUntil<'_, F> {
        PollUntil { sim: self, what, condition }
    }

    /// One bare poll of the main context's bottom halves (`aio_bh_poll`), from a frame.
    pub async fn poll_bottom_halves(&self) {
        let done = Cell::new(false);
        // What is left of the slice that this frame is in is run first, even if nothing is new. When exploring, a request may
        // be found complete here: that is a bottom half too (`thread_pool_completion_bh`), and what it schedules waits.
        let explores = self.0.choices.borrow().explores();
        let is_over = || {
            let mut events = self.0.events.borrow_mut();
            let begins = !done.replace(true);
            events.bare = begins && explores;
            // Who waits next has not looked yet.
            events.looked = false;
            !begins || !explores && events.no_bottom_half() && events.slices.is_empty()
        };
        self.poll_until("one poll", is_over).await;
    }

    /// Runs `future` in a coroutine and polls until it has ended; inside a coroutine it is simply
    /// awaited (QEMU's generated wrappers of coroutine functions do the same).
    pub async fn run_coroutine<T: 'static>(&self, name: &'static str, future: impl Future<Output = T> + 'static) -> T {
        // On the heap, so that it is not moved again and not kept twice.
        let future = Box::pin(future);
        if self.in_coroutine() {
            return future.await;
        }
        let slot: Rc<Cell<Option<T>>> = Rc::new(Cell::new(None));
        let result = slot.clone();
        self.spawn(name, async move { result.set(Some(future.await)) });
        let mut value = None;
        self.poll_until(name, || {
            value = slot.take();
            value.is_some()
        })
        .await;
        value.expect("the poll ended because the value was there")
    }

    /// Executes one event of the loop.
    pub(super) fn step(&self) -> Result<(), Stop> {
        let steps = self.0.steps.get() + 1;
        self.0.steps.set(steps);
        self.0.work.set(0);
        if steps > self.0.step_limit.get() {
            return Err(Stop::Limit);
        }
        if self.0.choices.borrow().explores() && self.0.events.borrow().is_poll_point() {
            match self.choose_next() {
                Next::Loop => {}
                Next::Abandoned => return Err(Stop::Limit),
                Next::Arrival(key, was_idle) => {
                    self.deliver(key);
                    let mut events = self.0.events.borrow_mut();
                    if was_idle && events.frames.is_empty() {
                        events.turn = Turn::Main;
                    }
                    return Ok(());
                }
            }
        }
        let bottom_half = self.0.events.borrow_mut().next_in_slices();
        if let Some(bottom_half) = bottom_half {
            self.run_bottom_half(bottom_half);
            return Ok(());
        }
        let innermost = self.0.events.borrow().frames.last().copied();
        match innermost {
            Some(frame) => self.continue_frame(frame),
            None => self.continue_turn(),
        }
    }

    /// The innermost frame has done one poll: look at its condition, else begin the next poll.
    fn continue_frame(&self, frame: TaskId) -> Result<(), Stop> {
        access::await_next(true);
        self.run_woken(frame);
        access::await_next(false);
        if !self.is_alive(frame) {
            self.0.events.borrow_mut().frames.retain(|f| *f != frame);
            return Ok(());
        }
        {
            let mut events = self.0.events.borrow_mut();
            if events.frames.last() != Some(&frame) || events.take_slice() || events.bare {
                return Ok(());
            }
            // When exploring, the strategy is asked which arrival ends the wait.
            if !std::mem::replace(&mut events.looked, true) && self.0.choices.borrow().explores() {
                events.idle_look = true;
                return Ok(());
            }
        }
        self.deliver_next()
    }

    fn continue_turn(&self) -> Result<(), Stop> {
        let mut events = self.0.events.borrow_mut();
        if events.turn == Turn::Main {
            events.turn = Turn::Monitor;
            if !events.monitor_is_quiet() {
                access::touch(access::MONITOR, Mode::Write);
            }
            events.monitor_slice = std::mem::take(&mut events.monitor_pending);
            return Ok(());
        }
        if let Some(next) = events.monitor_slice.pop_front() {
            drop(events);
            self.run_bottom_half(next);
            return Ok(());
        }
        let more = events.take_slice() || !events.monitor_is_quiet();
        if more {
            events.turn = Turn::Main;
            return Ok(());
        }
        drop(events);
        self.deliver_next()?;
        // What the arrival left in the main context waits for the next turn; the monitor comes first.
        self.0.events.borrow_mut().turn = Turn::Main;
        Ok(())
    }

    fn run_bottom_half(&self, bottom_half: BottomHalf) {
        self.0.events.borrow_mut().something_happens();
        match bottom_half {
            BottomHalf::Call(f) => f(),
            BottomHalf::Frame(name, owner, future) => {
                let frame = self.insert_frame(name, owner, future);
                self.run_woken(frame);
                if self.is_alive(frame) {
                    let mut events = self.0.events.borrow_mut();
                    events.frames.push(frame);
                    events.take_slice();
                }
            }
            BottomHalf::ScheduledCoroutines => {
                access::touch(access::BOTTOM_HALVES, Mode::Write);
                let scheduled = std::mem::take(&mut self.0.events.borrow_mut().scheduled);
                for id in scheduled {
                    self.enter(id);
                }
            }
        }
    }

    /// Polls a frame or an actor; neither is a coroutine, so nothing lands on its wake list.
    fn run_woken(&self, id: TaskId) {
        let woken = self.poll_task(id);
        debug_assert!(woken.is_empty(), "only coroutines have wake lists");
    }

    fn deliver_next(&self) -> Result<(), Stop> {
        let key = self.0.events.borrow().arrivals.first();
        match key {
            None => Err(Stop::Idle),
            Some(key) => {
                if key.class == Class::Patience {
                    // It comes only because nothing else could.
                    access::touch_everything();
                }
                self.deliver(key);
                Ok(())
            }
        }
    }

    fn deliver(&self, key: ArrivalKey) {
        let arrival = self.0.events.borrow_mut().arrivals.remove(&key);
        let Some(arrival) = arrival else { return };
        // The later of two times is the same in either order.
        access::touch(access::CLOCK, Mode::Add);
        self.begin_arrival(&mut self.0.events.borrow_mut(), key, arrival.event);
        match arrival.what {
            Arrives::Wake(id) => {
                self.0.from_loop.set(Some(id));
                self.enter(id);
                self.0.from_loop.set(None);
            }
            Arrives::Actor(id) => self.enter(id),
            Arrives::Call(f) => f(),
        }
    }

    fn begin_arrival(&self, events: &mut EventLoop, key: ArrivalKey, event: u64) {
        self.0.now.set(self.now().max(key.at));
        events.something_happens();
        if key.class == Class::Completion {
            events.round = events.round.max(key.round + 1);
            let round = events.round;
            events.arrivals.promote(round);
        }
        events.begin_event(event);
    }

    /// Asks the strategy what comes next at a poll point.
    fn choose_next(&self) -> Next {
        let idle_look = self.0.events.borrow_mut().end_event();
        let mut choices = self.0.choices.borrow_mut();
        if choices.observes() {
            choices.has_run(access::take(), !idle_look);
        }
        let mut keys: SmallVec<[Option<ArrivalKey>; 16]> = SmallVec::new();
        let mut alternatives: SmallVec<[Alternative; 16]> = SmallVec::new();
        // The loop's looks at its own queues here belong to no event.
        access::unseen(|| {
            let events = self.0.events.borrow();
            if !events.is_idle() {
                keys.push(None);
                let footprint = Footprint { writes: !events.can_only_look(), ..Footprint::named("loop") };
                alternatives.push(Alternative { footprint, sequence: 0, event: 0 });
            }
            for (key, arrival) in events.arrivals.iter() {
                let is_request = matches!(key.class, Class::Completion | Class::Durable);
                if key.class != Class::Patience && (is_request || !events.bare) {
                    keys.push(Some(*key));
                    let Arrival { footprint, event, .. } = *arrival;
                    alternatives.push(Alternative { footprint, sequence: key.sequence, event });
                }
            }
        });
        let has_loop = alternatives.first().is_some_and(Alternative::is_loop);
        let point = ChoicePoint { step: self.steps(), alternatives: &alternatives, sim: Some(self) };
        let taken = match keys.len() {
            0 => return Next::Loop,
            1 if has_loop => choices.only_loop(&point),
            _ => choices.next_step(&point),
        };
        drop(choices);
        let Some(taken) = taken else { return Next::Abandoned };
        match keys.get(taken).copied().flatten() {
            Some(key) => Next::Arrival(key, !has_loop),
            None => {
                self.0.events.borrow_mut().begin_own_event();
                Next::Loop
            }
        }
    }
}

/// The future of [`Sim::poll_until`].
pub struct PollUntil<'a, F> {
    sim: &'a Sim,
    what: &'static str,
    condition: F,
}

impl<F: FnMut() -> bool + Unpin> Future for PollUntil<'_, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        debug_assert!(!self.sim.in_coroutine(), "a coroutine must not poll: {}", self.what);
        if access::look(|| (self.condition)()) {
            return Poll::Ready(());
        }
        self.sim.note_wait(self.what);
        Poll::Pending
    }
}

/// A sleep that somebody else can end early (`QemuCoSleep`).
#[derive(Default)]
pub struct Sleeper {
    sleeping: Cell<Option<(ArrivalKey, TaskId)>>,
}

impl Sleeper {
    /// Sleeps `ns`, or until [`Sleeper::wake`].
    pub async fn sleep(&self, sim: &Sim, ns: Nanos) {
        let Some(me) = sim.current() else { return };
        let at = sim.now().saturating_add(ns);
        let mut footprint = Footprint::named("timer");
        footprint.task = Some(me);
        let key = sim.0.events.borrow_mut().arrive(at, Class::Timer, Arrives::Wake(me), footprint);
        self.sleeping.set(Some((key, me)));
        sim.park("a timer").await;
        self.sleeping.set(None);
    }

    /// Ends the sleep now; false if nobody sleeps.
    pub fn wake(&self, sim: &Sim) -> bool {
        let Some((key, task)) = self.sleeping.take() else { return false };
        // Without its arrival the sleep has ended already and the task is on its way.
        if sim.0.events.borrow_mut().arrivals.remove(&key).is_none() {
            return false;
        }
        sim.wake(task);
        true
    }
}
