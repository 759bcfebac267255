//! Tasks: one area of the disk on its way from source to target.
//!
//! The bits of a task's area are cleared when the task is made, before any I/O, and set again only when
//! it fails or is undone; its range is in the list of requests all that time. Bookkeeping here never yields.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::access::Mode;
use crate::sim::shared::Cell;
use crate::sim::{WaitQueue, access};

use crate::block::flags::{ReqFlags, StatusFlags};
use crate::block::graph::Block;

use super::call::Call;
use super::{BlockCopy, MAX_MEMORY, Method};

/// A range in flight, and who waits for it.
pub(super) struct Request {
    pub(super) offset: u64,
    pub(super) bytes: Cell<u64>,
    pub(super) waiters: WaitQueue,
}

impl Request {
    pub(super) fn new(offset: u64, bytes: u64) -> Request {
        Request { offset, bytes: Cell::new(bytes), waiters: WaitQueue::default() }
    }

    /// What matters here the list of requests notes by its range.
    fn overlaps(&self, offset: u64, bytes: u64) -> bool {
        self.offset < offset + bytes && offset < self.offset + self.bytes.peek()
    }
}

/// A task; see the module's text.
pub(super) struct Task {
    pub(super) request: Rc<Request>,
    pub(super) method: Method,
}

impl Task {
    pub(super) fn end(&self) -> u64 {
        self.request.offset + self.request.bytes.get()
    }
}

impl BlockCopy {
    /// Takes the next dirty area of `pos..end` out of the copy bitmap.
    pub(super) fn create_task(&self, block: &Block, call: &Call, pos: u64, end: u64) -> Option<Task> {
        let mut chunk = self.chunk_size();
        if call.options.max_chunk > 0 {
            chunk = chunk.min(call.options.max_chunk);
        }
        let area = self.with_bits(block, (pos, 0), Mode::Read, |copy| copy.next_dirty_area(pos, end, chunk));
        let looked_at = area.map_or(end, |(offset, bytes)| offset + bytes);
        self.with_bits(block, (pos, looked_at - pos), Mode::Read, |_| ());
        let (offset, bytes) = area?;
        let bytes = bytes.next_multiple_of(self.cluster_size);
        if !block.quirks.defects.copy_bit_cleared_late {
            self.with_bits(block, (offset, bytes), Mode::Write, |copy| copy.reset(offset, bytes));
            block.witness_copy_bits(self.bitmap().0, offset, bytes, false);
        }
        debug_assert!(
            block.quirks.defects.copy_bit_cleared_late
                || !self.requests.borrow_part().iter().any(|r| r.overlaps(offset, bytes)),
            "a dirty range never overlaps one in flight"
        );
        self.in_flight.add(bytes);
        let request = Rc::new(Request::new(offset, bytes));
        self.requests.note(offset, offset + bytes, Mode::Write);
        self.requests.note_order(Mode::Write);
        self.requests.borrow_part_mut().insert(0, request.clone());
        Some(Task { request, method: self.method.get() })
    }

    /// Gives the tail of a task back.
    pub(super) fn shrink_task(&self, block: &Block, task: &Task, bytes: u64) {
        let old = task.request.bytes.get();
        if bytes >= old {
            return;
        }
        let (tail, rest) = (task.request.offset + bytes, old - bytes);
        self.in_flight.sub(rest);
        self.with_bits(block, (tail, rest), Mode::Write, |copy| copy.set(tail, rest));
        self.requests.note(task.request.offset, tail + rest, Mode::Write);
        task.request.bytes.set(bytes);
        task.request.waiters.wake_all(&block.sim);
    }

    /// Ends a task; unless it succeeded, its area is dirty again.
    pub(super) fn end_task(&self, block: &Block, task: &Task, success: bool) {
        let (offset, bytes) = (task.request.offset, task.request.bytes.get());
        self.in_flight.sub(bytes);
        if !success {
            self.with_bits(block, (offset, bytes), Mode::Write, |copy| copy.set(offset, bytes));
            block.witness_copy_bits(self.bitmap().0, offset, bytes, true);
        } else if block.quirks.defects.copy_bit_cleared_late {
            self.with_bits(block, (offset, bytes), Mode::Write, |copy| copy.reset(offset, bytes));
            block.witness_copy_bits(self.bitmap().0, offset, bytes, false);
        }
        self.update_progress(block);
        self.requests.note(offset, offset + bytes, Mode::Write);
        self.requests.borrow_part_mut().retain(|r| !Rc::ptr_eq(r, &task.request));
        task.request.waiters.wake_all(&block.sim);
    }

    /// The newest range in flight that overlaps.
    pub(super) fn conflict(&self, offset: u64, bytes: u64) -> Option<Rc<Request>> {
        self.requests.note(offset, offset + bytes, Mode::Read);
        let requests = self.requests.borrow_part();
        let mut overlapping = requests.iter().filter(|request| request.overlaps(offset, bytes));
        let newest = overlapping.next().cloned();
        if overlapping.next().is_some() {
            self.requests.note_order(Mode::Read);
        }
        newest
    }

    /// What the source knows about a range: flags, and of how many bytes it knows them.
    pub(super) async fn source_status(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> (StatusFlags, u64) {
        let base = if self.skip_unallocated.get() { block.backing_chain_next(self.source()) } else { None };
        let result = block.co_block_status_above(self.source(), base, offset, bytes, true).await;
        match result {
            Ok(answer) if answer.status.bytes >= self.cluster_size => (answer.status.flags, answer.status.bytes),
            // An error, or an answer for less than a cluster: one cluster of data, whatever it is.
            _ => (StatusFlags::DATA | StatusFlags::ALLOCATED, self.cluster_size),
        }
    }

    /// The `bytes` from `offset` on that are known, in whole clusters.
    pub(super) fn whole_clusters(&self, offset: u64, bytes: u64) -> u64 {
        if offset + bytes == self.length {
            return bytes.next_multiple_of(self.cluster_size);
        }
        bytes - bytes % self.cluster_size
    }

    /// Moves the task's data; tells whether a failure was the source's.
    pub(super) async fn copy(&self, block: &Rc<Block>, task: &Task) -> Result<Method, (Errno, bool)> {
        let offset = task.request.offset;
        let bytes = task.request.bytes.get().min(self.length - offset);
        let flags = self.write_flags.get();
        let mut method = task.method;
        if method == Method::WriteZeroes {
            let flags = flags.without(ReqFlags::COMPRESSED);
            return match block.co_pwrite_zeroes(self.target(), offset, bytes, flags).await {
                Ok(()) => Ok(method),
                Err(error) => Err((error, false)),
            };
        }
        if matches!(method, Method::RangeSmall | Method::RangeFull) {
            if self.copy_range(block, offset, bytes).await.is_ok() {
                return Ok(Method::RangeFull);
            }
            method = Method::ReadWrite;
        }
        let content = block.co_pread(self.source(), offset, bytes, ReqFlags::NONE).await.map_err(|e| (e, true))?;
        block.co_pwrite(self.target(), offset, content, flags).await.map_err(|e| (e, false))?;
        Ok(method)
    }

    /// Copies inside the host where both ends can.
    async fn copy_range(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Res<()> {
        block.co_copy_range(self.source(), self.target(), offset, bytes, self.write_flags.get()).await
    }

    /// A worker: copies, accounts, ends the task.
    pub(super) async fn run_task(self: &Rc<Self>, block: &Rc<Block>, call: &Call, task: Task) -> Res<()> {
        let copied = self.copy(block, &task).await;
        self.task_done(block, call, task, copied).await
    }

    /// Accounts for a task whose data have been moved, or could not be, and ends it.
    pub(super) async fn task_done(
        self: &Rc<Self>,
        block: &Rc<Block>,
        call: &Call,
        task: Task,
        result: Result<Method, (Errno, bool)>,
    ) -> Res<()> {
        let bytes = task.request.bytes.get();
        match &result {
            Ok(method) => {
                let learned = task.method != *method && task.method != Method::WriteZeroes;
                if learned && self.method.get() == task.method {
                    self.method.set(*method);
                }
                self.work_done(bytes);
            }
            Err((error, is_read)) => {
                if self.method.get() == task.method && matches!(task.method, Method::RangeSmall | Method::RangeFull) {
                    self.method.set(Method::ReadWrite);
                }
                call.note_failure(*error, *is_read);
                self.failed.set((task.request.offset, bytes));
            }
        }
        self.give_memory(block, bytes);
        self.end_task(block, &task, result.is_ok() || block.quirks.defects.failed_copy_loses_bits);
        if self.discard_source && result.is_ok() {
            let bytes = bytes.min(self.length - task.request.offset);
            // The copy is safe; failing to free its source hurts nobody.
            let _ = block.co_pdiscard(self.source(), task.request.offset, bytes).await;
        }
        result.map(|_| ()).map_err(|(error, _)| error)
    }

    /// Takes memory for data in flight, waiting for it if need be.
    pub(super) async fn take_memory(&self, block: &Block, bytes: u64) {
        // Far from the limit nobody's share decides about another's: no step takes or gives half of the memory.
        let plenty = |state: &BlockCopy| state.memory_taken.get() + bytes <= MAX_MEMORY / 2;
        while !access::unseen(|| plenty(self)) && MAX_MEMORY - self.memory_taken.get() < bytes {
            self.memory_waiters.wait(&block.sim, "memory for block-copy").await;
        }
        self.memory_taken.add(bytes);
    }

    pub(super) fn give_memory(&self, block: &Block, bytes: u64) {
        self.memory_taken.sub(bytes);
        self.memory_waiters.wake_all(&block.sim);
    }
}
