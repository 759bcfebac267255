//! Rows: neighbouring chunks of zeros that are copied at once, where nobody can tell.
//!
//! A chunk of zeros whose L2 table is cached is copied without a yield, by a worker that ends as soon as it is
//! started. So is the next, and nothing else can run between them: doing the whole row in one go is the same run,
//! for a thirtieth of the work on an empty disk. While the target's image is locked (an L2 table is allocated) the
//! workers queue for it, and follow each other when it is free: a row waits as one worker. A row must never hold a
//! chunk of which that is not certain; such a chunk goes the usual way, in `call.rs`.

use std::rc::Rc;

use crate::block::flags::{ReqFlags, StatusFlags};
use crate::block::graph::Block;
use crate::block::zero_row::{Row, Turn, Waiter};
use crate::sim::access::Mode;

use super::call::{Call, Pool};
use super::task::{Request, Task};
use super::{BlockCopy, MAX_MEMORY, Method};

/// A row that one worker has taken over.
struct Queued {
    row: Row,
    call: Rc<Call>,
    pool: Rc<Pool>,
    /// The range of each chunk, oldest first.
    requests: Vec<Rc<Request>>,
}

impl BlockCopy {
    /// Whether the task's chunk, if it holds zeros, and those behind it, up to `end`, may be copied by workers that end
    /// at once.
    pub(super) fn may_row(&self, block: &Block, call: &Call, pool: Option<&Rc<Pool>>, task: &Task, end: u64) -> bool {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        let is_plain = self.write_flags.get() == ReqFlags::NONE && self.method.get() == Method::ReadWrite;
        let is_looked_at = block.sim.is_watched() || block.quirks.defects.copy_bit_cleared_late;
        let has_duties = self.discard_source || !self.limit.is_unlimited() || is_looked_at;
        let may_start = pool.is_none_or(|pool| pool.room(call.options.max_workers) > 0);
        let has_memory = self.memory_taken.get() + chunk <= MAX_MEMORY / 2;
        let is_long = end - offset >= 2 * chunk;
        is_plain && !has_duties && may_start && has_memory && is_long && block.tells_at_once(self.source())
    }

    /// Copies the task's chunk and those behind it as a row, or starts a worker that does; tells where the row ends, if
    /// there is one. The source has said `flags` of `known` bytes from the chunk on, and nothing has run since.
    pub(super) fn row(
        self: &Rc<Self>,
        block: &Rc<Block>,
        call: &Rc<Call>,
        pool: Option<&Rc<Pool>>,
        task: &Task,
        (flags, known): (StatusFlags, u64),
    ) -> Option<u64> {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        let is_left_out = self.skip_unallocated.get() && !flags.contains(StatusFlags::ALLOCATED);
        // The source may have waited for a table, and others have run.
        let may = flags.contains(StatusFlags::ZERO) && self.may_row(block, call, pool, task, offset + known);
        if is_left_out || !may {
            return None;
        }
        let turn = block.turn_of_zeroes(self.target())?;
        let most = match turn {
            Turn::Now => known,
            Turn::Queued => self.room(call, pool?, chunk).min(known),
        };
        let most = self.whole_clusters(offset, most);
        if most < 2 * chunk {
            return None;
        }
        let rest = (offset + chunk, most - chunk);
        let dirty = self.with_bits(block, rest, Mode::Read, |copy| {
            let clean = copy.next_zero(rest.0, rest.1).unwrap_or(rest.0 + rest.1);
            clean.min(copy.size()) - offset
        });
        match (turn, pool) {
            (Turn::Queued, Some(pool)) => self.queue_row(block, call, pool, task, dirty),
            _ => self.copy_row(block, task, dirty),
        }
    }

    /// Copies a row of `bytes` at most, now.
    fn copy_row(&self, block: &Rc<Block>, task: &Task, bytes: u64) -> Option<u64> {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        let done = block.zero_row(self.target(), offset, bytes, chunk);
        if done == 0 {
            return None;
        }
        self.with_bits(block, (offset, done), Mode::Write, |copy| copy.reset(offset, done));
        self.work_done(done);
        self.end_task(block, task, true);
        Some(offset + done)
    }

    /// Bytes of as many chunks as workers could be started for without waiting for one, or for memory.
    fn room(&self, call: &Call, pool: &Pool, chunk: u64) -> u64 {
        let workers = u64::from(pool.room(call.options.max_workers));
        let memory = (MAX_MEMORY / 2).saturating_sub(self.memory_taken.get()) / chunk;
        workers.min(memory) * chunk
    }

    /// Starts a worker for a row of `bytes` at most whose chunks wait for the target's lock.
    fn queue_row(
        self: &Rc<Self>,
        block: &Rc<Block>,
        call: &Rc<Call>,
        pool: &Rc<Pool>,
        task: &Task,
        bytes: u64,
    ) -> Option<u64> {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        let fits = bytes.min(block.node(self.target()).length.get().saturating_sub(offset));
        let count = (fits / chunk) as usize;
        if count < 2 {
            return None;
        }
        let row = Row { node: self.target(), offset, chunk, count };
        let (rest, bytes) = (row.start(count) - row.start(1), row.start(count) - offset);
        self.with_bits(block, (row.start(1), rest), Mode::Write, |copy| copy.reset(row.start(1), rest));
        self.in_flight.add(rest);
        self.memory_taken.add(bytes);
        pool.take(count as u32);
        let mut requests = vec![task.request.clone()];
        requests.extend((1..count).map(|n| Rc::new(Request::new(row.start(n), chunk))));
        self.requests.note(row.start(1), row.start(count), Mode::Write);
        self.requests.note_order(Mode::Write);
        self.requests.borrow_part_mut().splice(0..0, requests[1..].iter().rev().cloned());
        let queued = Queued { row, call: call.clone(), pool: pool.clone(), requests };
        let (state, block_of_worker) = (self.clone(), block.clone());
        block.sim.spawn("copy worker", async move { state.run_queued(&block_of_worker, queued).await });
        Some(row.start(count))
    }

    /// The worker of a row.
    async fn run_queued(self: &Rc<Self>, block: &Rc<Block>, queued: Queued) {
        let Queued { row, call, pool, requests } = queued;
        let task = |n: usize| Task { request: requests[n].clone(), method: Method::WriteZeroes };
        let start = |waiter: Waiter| {
            let (state, block_of_worker, task) = (self.clone(), block.clone(), task(waiter.number));
            let (call, pool) = (call.clone(), pool.clone());
            block.sim.spawn("copy worker", async move {
                let copied = block_of_worker.zero_waiter(waiter).await;
                let copied = copied.map(|()| Method::WriteZeroes).map_err(|error| (error, false));
                let result = state.task_done(&block_of_worker, &call, task, copied).await;
                pool.worker_ended(&block_of_worker.sim, result);
            });
        };
        let mut ended = 0;
        let end = |n: usize| {
            ended += 1;
            if n == 0 {
                self.give_memory(block, ended * row.chunk);
            }
            requests[n].waiters.wake_all(&block.sim);
        };
        block.zero_queued_row(row, start, end).await;
        // Those who are woken run after this task.
        if ended > 0 {
            self.end_row(block, row.offset, ended * row.chunk);
            pool.give(&block.sim, ended as u32);
        }
    }

    /// Accounts for the tasks of a range, all of which have ended well.
    fn end_row(&self, block: &Block, offset: u64, bytes: u64) {
        let end = offset + bytes;
        self.in_flight.sub(bytes);
        self.work_done(bytes);
        self.update_progress(block);
        self.requests.note(offset, end, Mode::Write);
        self.requests.borrow_part_mut().retain(|request| request.offset < offset || request.offset >= end);
    }
}
