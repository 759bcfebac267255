//! Calls: one caller's wish that a range be copied, by as many tasks at once as it allows.
//!
//! A call copies what is dirty, waits for what others have in flight, and starts over until nothing of
//! the range is left. It tells its caller only about failures of its own tasks.

use std::rc::Rc;

use crate::block::flags::StatusFlags;
use crate::block::graph::Block;
use crate::errno::{Errno, Res};
use crate::sim::access::Mode;
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{Sim, Sleeper, TaskId};

use super::{BlockCopy, Method};

/// What a call is to do.
#[derive(Clone, Copy, Debug)]
pub struct CallOptions {
    /// Start, bytes, a multiple of the cluster.
    pub offset: u64,
    /// Length, bytes, a multiple of the cluster.
    pub bytes: u64,
    /// Tasks at once.
    pub max_workers: u32,
    /// Bytes of a task at most; 0: no limit of the call's own.
    pub max_chunk: u64,
    /// Whether the call never sleeps for the rate limit.
    pub ignore_limit: bool,
}

/// A call (`BlockCopyCallState`).
pub struct Call {
    pub(super) options: CallOptions,
    cancelled: Cell<bool>,
    finished: Cell<bool>,
    /// The first failure in time, and whether it was a read.
    failure: Cell<Option<(Errno, bool)>>,
    sleeper: Sleeper,
    callback: RefCell<Option<Box<dyn FnOnce()>>>,
}

/// The workers of one pass (`AioTaskPool`).
#[derive(Default)]
pub(super) struct Pool {
    busy: Cell<u32>,
    failure: Cell<Option<Errno>>,
    waiting: Cell<Option<TaskId>>,
}

impl Call {
    fn new(options: CallOptions) -> Rc<Call> {
        Rc::new(Call {
            options,
            cancelled: Cell::new(false),
            finished: Cell::new(false),
            failure: Cell::new(None),
            sleeper: Sleeper::default(),
            callback: RefCell::default(),
        })
    }

    pub(super) fn note_failure(&self, error: Errno, is_read: bool) {
        if self.failure.get().is_none() {
            self.failure.set(Some((error, is_read)));
        }
    }

    /// Stops the call at its next loop head, waking it from a rate-limit sleep.
    pub fn cancel(&self, sim: &Sim) {
        self.cancelled.set(true);
        self.kick(sim);
    }

    /// Lets a call that sleeps for the rate limit look at it again.
    pub fn kick(&self, sim: &Sim) {
        self.sleeper.wake(sim);
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    /// Whether it was told to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// The first failure, and whether it was the source's (`block_copy_call_status`).
    pub fn failure(&self) -> Option<(Errno, bool)> {
        self.failure.get()
    }
}

impl BlockCopy {
    /// Copies a range inside the caller's coroutine (`block_copy` without a time-out).
    pub async fn run(self: &Rc<Self>, block: &Rc<Block>, options: CallOptions) -> Res<()> {
        let call = Call::new(options);
        self.run_call(block, &call).await;
        call.failure().map_or(Ok(()), |(error, _)| Err(error))
    }

    /// Starts a call in a coroutine of its own, on top of the caller (`block_copy_async`);
    /// `callback` runs when it has finished.
    pub fn start(
        self: &Rc<Self>,
        block: &Rc<Block>,
        options: CallOptions,
        callback: impl FnOnce() + 'static,
    ) -> Rc<Call> {
        let call = Call::new(options);
        *call.callback.borrow_mut() = Some(Box::new(callback));
        let (state, block_of_call, started) = (self.clone(), block.clone(), call.clone());
        block.sim.spawn("block-copy", async move {
            let _reader = block_of_call.graph_read_lock().await;
            state.run_call(&block_of_call, &started).await;
        });
        call
    }

    async fn run_call(self: &Rc<Self>, block: &Rc<Block>, call: &Rc<Call>) {
        // Calls do not mind each other; a change of speed minds them all.
        self.calls.note(0, u64::MAX, Mode::Add);
        self.calls.borrow_part_mut().insert(0, call.clone());
        let (offset, bytes) = (call.options.offset, call.options.bytes);
        loop {
            block.sim.count_work();
            let mut again = match self.pass(block, call).await {
                Ok(found) => found,
                Err(error) => {
                    call.note_failure(error, false);
                    break;
                }
            };
            if !again && !call.cancelled.get() {
                // Only calls of guests' writes ignore the limit.
                let ignores = call.options.ignore_limit && block.quirks.defects.cbw_ignores_in_flight;
                if let Some(request) = self.conflict(offset, bytes).filter(|_| !ignores) {
                    request.waiters.wait(&block.sim, "a range that is being copied").await;
                    again = true;
                } else {
                    // A task of somebody else may have failed meanwhile and left its bits.
                    again = self
                        .with_bits(block, (offset, bytes), Mode::Read, |copy| copy.next_dirty(offset, bytes).is_some());
                }
            }
            if !again || call.cancelled.get() {
                break;
            }
        }
        call.finished.set(true);
        let callback = call.callback.borrow_mut().take();
        if let Some(callback) = callback {
            callback();
        }
        self.calls.note(0, u64::MAX, Mode::Add);
        self.calls.borrow_part_mut().retain(|other| !Rc::ptr_eq(other, call));
    }

    /// Copies what is dirty in the range once; tells whether anything was.
    async fn pass(self: &Rc<Self>, block: &Rc<Block>, call: &Rc<Call>) -> Res<bool> {
        let end = call.options.offset + call.options.bytes;
        let mut pos = call.options.offset;
        let mut found = false;
        // Zeros come in rows: behind some, the source is asked about more than a chunk.
        let mut is_zero = false;
        let mut pool: Option<Rc<Pool>> = None;
        let mut result = Ok(());
        while pos < end && !call.cancelled.get() && pool.as_ref().is_none_or(|p| p.failure.get().is_none()) {
            let Some(mut task) = self.create_task(block, call, pos, end) else { break };
            found = true;
            let (offset, chunk) = (task.request.offset, task.request.bytes.get());
            let asks_for_row = is_zero && self.may_row(block, call, pool.as_ref(), &task, end);
            let asked = if asks_for_row { end - offset } else { chunk };
            let (flags, known) = self.source_status(block, offset, asked).await;
            is_zero = flags.contains(StatusFlags::ZERO);
            if asks_for_row && let Some(row_end) = self.row(block, call, pool.as_ref(), &task, (flags, known)) {
                pos = row_end;
                continue;
            }
            self.shrink_task(block, &task, self.whole_clusters(offset, known.min(chunk)));
            if self.skip_unallocated.get() && !flags.contains(StatusFlags::ALLOCATED) {
                self.end_task(block, &task, true);
                pos = task.end();
                continue;
            }
            if flags.contains(StatusFlags::ZERO) {
                task.method = Method::WriteZeroes;
            }
            let bytes = task.request.bytes.get();
            if !call.options.ignore_limit {
                let delay = self.limit.delay(|| block.sim.now_decides(), 0);
                if delay > 0 {
                    self.end_task(block, &task, false);
                    call.sleeper.sleep(&block.sim, delay).await;
                    continue;
                }
            }
            self.limit.delay(|| block.sim.now_decides(), bytes);
            self.take_memory(block, bytes).await;
            pos = task.end();
            if pool.is_none() && pos < end {
                pool = Some(Rc::default());
            }
            result = match &pool {
                None => self.run_task(block, call, task).await,
                Some(pool) => self.start_worker(block, call, pool, task).await,
            };
            if result.is_err() {
                break;
            }
        }
        if let Some(pool) = pool {
            while pool.busy.get() > 0 {
                pool.wait_one(&block.sim).await;
            }
            result = result.and(pool.failure.get().map_or(Ok(()), Err));
        }
        result.map(|()| found)
    }

    /// Waits for a free worker and starts the task in a coroutine of its own.
    async fn start_worker(
        self: &Rc<Self>,
        block: &Rc<Block>,
        call: &Rc<Call>,
        pool: &Rc<Pool>,
        task: super::task::Task,
    ) -> Res<()> {
        if pool.busy.get() >= call.options.max_workers {
            pool.wait_one(&block.sim).await;
        }
        if pool.failure.get().is_some() {
            self.give_memory(block, task.request.bytes.get());
            self.end_task(block, &task, false);
            return Err(Errno::ECANCELED);
        }
        pool.take(1);
        let (state, call, pool, block_of_worker) = (self.clone(), call.clone(), pool.clone(), block.clone());
        block.sim.spawn("copy worker", async move {
            let result = state.run_task(&block_of_worker, &call, task).await;
            pool.worker_ended(&block_of_worker.sim, result);
        });
        Ok(())
    }
}

impl Pool {
    /// How many more workers may start at once.
    pub(super) fn room(&self, max_workers: u32) -> u32 {
        if self.failure.get().is_some() { 0 } else { max_workers.saturating_sub(self.busy.get()) }
    }

    /// So many more workers are busy.
    pub(super) fn take(&self, workers: u32) {
        self.busy.set(self.busy.get() + workers);
    }

    /// So many workers have ended well.
    pub(super) fn give(&self, sim: &Sim, workers: u32) {
        if workers > 0 {
            self.busy.set(self.busy.get() - workers);
            self.wake(sim);
        }
    }

    fn wake(&self, sim: &Sim) {
        if let Some(waiting) = self.waiting.take() {
            sim.wake(waiting);
        }
    }

    /// Sleeps until some worker has ended.
    async fn wait_one(&self, sim: &Sim) {
        self.waiting.set(sim.current());
        sim.park("a copy worker").await;
    }

    pub(super) fn worker_ended(&self, sim: &Sim, result: Res<()>) {
        self.busy.set(self.busy.get() - 1);
        if let Err(error) = result
            && self.failure.get().is_none()
        {
            self.failure.set(Some(error));
        }
        self.wake(sim);
    }
}
