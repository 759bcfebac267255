//! Rows: neighbouring chunks of zeros that are copied at once, where nobody can tell.
//!
//! A chunk of zeros whose L2 table is cached is copied without a yield, by a worker that ends as soon as it is
//! started. So is the next, and nothing else can run between them: doing the whole row in one go is the same run,
//! for a thirtieth of the work on an empty disk. A row must never hold a chunk of which that is not certain; such a
//! chunk goes the usual way, in `call.rs`.

use std::rc::Rc;

use crate::block::flags::{ReqFlags, StatusFlags};
use crate::block::graph::Block;
use crate::sim::access::Mode;

use super::call::{Call, Pool};
use super::task::Task;
use super::{BlockCopy, MAX_MEMORY, Method};

impl BlockCopy {
    /// How far to ask the source about a task's chunk: further than the chunk where the answer may serve a row.
    pub(super) fn looks_ahead(&self, block: &Block, task: &Task, end: u64) -> u64 {
        let (chunk, left) = (task.request.bytes.get(), end - task.request.offset);
        let may_row = left >= 2 * chunk
            && !block.sim.is_watched()
            && self.write_flags.get() == ReqFlags::NONE
            && self.method.get() == Method::ReadWrite
            && !self.discard_source
            && self.limit.is_unlimited()
            && block.status_is_plain(self.source);
        if may_row { left } else { chunk }
    }

    /// Copies the task's chunk and those behind it as a row; tells where the row ends. The source has said that
    /// `known` bytes from the task's start are alike, and nothing has run since.
    pub(super) fn copy_row(
        &self,
        block: &Rc<Block>,
        call: &Call,
        pool: Option<&Rc<Pool>>,
        task: &Task,
        (flags, known): (StatusFlags, u64),
    ) -> Option<u64> {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        // The last chunk ends the call's pass, and may be shorter: it goes the usual way.
        if !flags.contains(StatusFlags::ZERO) || known < 2 * chunk {
            return None;
        }
        if self.skip_unallocated.get() && !flags.contains(StatusFlags::ALLOCATED) {
            return None;
        }
        let may_start = pool.is_none_or(|pool| pool.has_room(call.options.max_workers));
        if !may_start || self.memory_taken.get() + chunk > MAX_MEMORY / 2 {
            return None;
        }
        let rest = (offset + chunk, known - chunk);
        let dirty = self.with_bits(block, rest, Mode::Read, |copy| {
            let clean = copy.next_zero(rest.0, rest.1).unwrap_or(rest.0 + rest.1);
            clean.min(copy.size()) - offset
        });
        let done = block.zero_row(self.target, offset, dirty, chunk);
        if done == 0 {
            return None;
        }
        self.with_bits(block, (offset, done), Mode::Write, |copy| copy.reset(offset, done));
        let progress = self.progress.borrow().clone();
        if let Some(progress) = progress {
            progress.work_done(done);
        }
        self.end_task(block, task, true);
        Some(offset + done)
    }
}
