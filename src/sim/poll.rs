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

use super::Nanos;
use super::access::{self, Mode, mix};
use super::arrivals::{Arrival, ArrivalKey, Arrivals, Arrives, Class};
use super::choices::{Footprint, Queues};
use super::choose::Next;
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
    /// The frame that is in a bare poll: it goes on after that in any case.
    bare: Option<TaskId>,
    turn: Turn,
    /// The event under way, and how many arrivals and actors it has made: together they name each of those.
    event: u64,
    made: u64,
    /// Events of the loop itself.
    loops: u64,
    /// The event under way has turned out to be a mere look at a condition that does not hold.
    idle_look: bool,
    /// A frame has found that its condition holds, and gone on, since this was last asked.
    went_on: bool,
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

    pub(super) fn arrive(&mut self, at: Nanos, class: Class, what: Arrives, footprint: Footprint) -> ArrivalKey {
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

    /// What may be delivered at this poll point, in the order in which the loop would take it by itself.
    pub(super) fn possible(&self) -> impl Iterator<Item = &(ArrivalKey, Arrival)> {
        self.arrivals.iter().filter(|(key, _)| self.may_come(key))
    }

    fn may_come(&self, key: &ArrivalKey) -> bool {
        let is_request = matches!(key.class, Class::Completion | Class::Durable);
        key.class != Class::Patience && (is_request || !self.is_bare())
    }

    /// The same as [`EventLoop::due`] of all that can't be delivered at this poll point, in its order.
    pub(super) fn due_later(&self, now: Nanos) -> u64 {
        let later = self.arrivals.iter().filter(|(key, _)| !self.may_come(key));
        later.fold(0, |sum, (key, arrival)| mix(mix(sum, arrival.event), self.due(key, now)))
    }

    /// See [`super::Alternative::due`].
    pub(super) fn due(&self, key: &ArrivalKey, now: Nanos) -> u64 {
        let rounds = self.round.wrapping_sub(key.round) << 8;
        mix(key.at.wrapping_sub(now), rounds | key.class as u64)
    }

    /// Makes its own arrival the next one, without the way through the loop, if it would be that.
    pub(super) fn take_at_once(&mut self, at: Nanos, class: Class) -> Option<(ArrivalKey, u64)> {
        let key = self.next_key(at, class);
        if !self.has_only_arrivals() || self.arrivals.first().is_some_and(|first| first < key) {
            return None;
        }
        self.sequence = key.sequence;
        Some((key, self.next_identity()))
    }

    /// Takes back what was to come; false if it has come already.
    pub(super) fn take_back(&mut self, key: &ArrivalKey) -> bool {
        self.arrivals.remove(key).is_some()
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
        access::begin_event(event);
    }

    /// The event under way is over; tells whether it was a mere look, which does not count.
    pub(super) fn end_event(&mut self) -> bool {
        let idle_look = std::mem::take(&mut self.idle_look);
        self.loops -= u64::from(idle_look);
        idle_look
    }

    /// The loop does something by itself; its events are in one order.
    pub(super) fn begin_own_event(&mut self) {
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
    }

    /// Whether nothing waits for the next dispatch of the monitor's context.
    fn monitor_is_quiet(&self) -> bool {
        access::touch(access::MONITOR, Mode::Read);
        self.monitor_pending.is_empty()
    }

    /// Whether all that the loop can do by itself is to look at the innermost frame's condition.
    pub(super) fn can_only_look(&self) -> bool {
        !self.frames.is_empty() && self.no_bottom_half() && !self.is_bare()
    }

    /// Whether the innermost frame is in a bare poll.
    pub(super) fn is_bare(&self) -> bool {
        self.bare.is_some() && self.bare == self.frames.last().copied()
    }

    /// What there is for the loop to do by itself.
    pub(super) fn queues(&self) -> Queues {
        Queues {
            framed: !self.frames.is_empty(),
            looked: self.looked,
            bottom_halves: !self.pending.is_empty(),
            monitor: !self.monitor_pending.is_empty(),
        }
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
        self.bare = None;
        self.looked = false;
        self.turn = Turn::Main;
        self.arrivals.keep_actors();
    }

    pub(super) fn is_idle(&self) -> bool {
        // Each queue is looked at only where it decides.
        let rest_idle =
            if self.frames.is_empty() { self.monitor_slice.is_empty() } else { self.looked && !self.is_bare() };
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
            events.bare = self.current().filter(|_| begins && explores);
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
        self.0.events.borrow_mut().went_on = false;
        access::await_next(true);
        self.run_woken(frame);
        access::await_next(false);
        if !self.is_alive(frame) {
            self.0.events.borrow_mut().frames.retain(|f| *f != frame);
            return Ok(());
        }
        {
            let mut events = self.0.events.borrow_mut();
            if events.frames.last() != Some(&frame) || events.take_slice() || events.is_bare() {
                return Ok(());
            }
            // When exploring, the strategy is asked which arrival ends the wait.
            if !std::mem::replace(&mut events.looked, true) && self.0.choices.borrow().explores() {
                // A frame that has gone on to its next condition has done more than to look.
                events.idle_look = !events.went_on;
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

    pub(super) fn begin_arrival(&self, events: &mut EventLoop, key: ArrivalKey, event: u64) {
        self.0.now.set(self.now().max(key.at));
        events.something_happens();
        if key.class == Class::Completion {
            events.round = events.round.max(key.round + 1);
            let round = events.round;
            events.arrivals.promote(round);
        }
        events.begin_event(event);
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
            self.sim.0.events.borrow_mut().went_on = true;
            return Poll::Ready(());
        }
        self.sim.note_wait(self.what);
        Poll::Pending
    }
}
