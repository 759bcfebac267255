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
    /// Whether the task's chunk, of which the source says `flags`, would be copied by a worker that ends at once, and
    /// the next one too.
    pub(super) fn may_row(
        &self,
        block: &Block,
        call: &Call,
        pool: Option<&Rc<Pool>>,
        task: &Task,
        flags: StatusFlags,
    ) -> bool {
        let is_plain = self.write_flags.get() == ReqFlags::NONE && self.method.get() == Method::ReadWrite;
        let has_duties = self.discard_source || !self.limit.is_unlimited() || block.sim.is_watched();
        let is_left_out = self.skip_unallocated.get() && !flags.contains(StatusFlags::ALLOCATED);
        let may_start = pool.is_none_or(|pool| pool.has_room(call.options.max_workers));
        let has_memory = self.memory_taken.get() + task.request.bytes.get() <= MAX_MEMORY / 2;
        is_plain && !has_duties && !is_left_out && may_start && has_memory
    }

    /// Copies the task's chunk and those behind it, up to `end`, as a row; tells where the row ends, if there is one.
    /// The source has said that the chunk is zero, and nothing has run since.
    pub(super) async fn copy_row(&self, block: &Rc<Block>, task: &Task, end: u64) -> Option<u64> {
        let (offset, chunk) = (task.request.offset, task.request.bytes.get());
        if end - offset < 2 * chunk || !block.zeroes_at_once(self.target) || !block.tells_at_once(self.source) {
            return None;
        }
        // The tables that this looks at are those of the chunk, so that it does not wait for anything either.
        let (flags, known) = self.source_status(block, offset, end - offset).await;
        if !flags.contains(StatusFlags::ZERO) || known < 2 * chunk {
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
