//! The `workload` step: a seeded guest that checks what it reads.
//!
//! It keeps a model of the disk: what it has written, and what it has read before. Requests in flight at once
//! never overlap, so the model always knows what a read must give. After a failed write the range is unknown
//! until it is written again. A guest that never reads keeps no model.

use std::rc::Rc;

use crate::block::{Backend, Block, ReqFlags};
use crate::qmp::Machine;
use crate::sim::rng::{Rng, Stream};
use crate::sim::shared::RefCell;
use crate::store::{Content, Store};

use super::ast::Distribution;
use super::ast::Workload;
use super::backend::{RunError, WorkloadSummary};

/// Kinds of requests, in the order of the mix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Zeroes,
    Discard,
    Read,
    Flush,
}

/// The guest's state, shared by its requests in flight.
struct Guest {
    block: Rc<Block>,
    backend: Rc<Backend>,
    spec: Workload,
    first: u64,
    slots: u64,
    rng: RefCell<Rng>,
    left: crate::sim::shared::Cell<u64>,
    next_sequential: crate::sim::shared::Cell<u64>,
    /// What the disk must hold where `known` is not zero.
    content: Store,
    known: Store,
    in_flight: RefCell<Vec<(u64, u64)>>,
    summary: RefCell<WorkloadSummary>,
}

/// Runs the guest to its end.
pub(super) async fn run(machine: &Rc<Machine>, spec: &Workload, seed: u64) -> Result<WorkloadSummary, RunError> {
    let node_name = spec.workload.to_string();
    let backend = machine.guest(&node_name).await.map_err(RunError::failed)?;
    let length = backend.node(&machine.block).map_or(0, |node| machine.block.length(&node));
    let (first, bytes) = spec.range.map_or((0, length), |range| (range.offset, range.length));
    let align = spec.align.0.max(1);
    let end = first.saturating_add(bytes).min(length);
    if end <= first || (end - first) / align == 0 {
        return Err(RunError::failed(format!("the workload's range of '{node_name}' holds no aligned block")));
    }
    let guest = Rc::new(Guest {
        block: machine.block.clone(),
        backend,
        spec: spec.clone(),
        first,
        slots: (end - first) / align,
        rng: RefCell::new(Rng::new(seed, Stream::Workload)),
        left: crate::sim::shared::Cell::new(spec.ops),
        next_sequential: crate::sim::shared::Cell::new(0),
        content: Store::memory(),
        known: Store::memory(),
        in_flight: RefCell::default(),
        summary: RefCell::default(),
    });
    let sim = machine.block.sim.clone();
    let Some(me) = sim.current() else { return Ok(WorkloadSummary::default()) };
    let running = Rc::new(crate::sim::shared::Cell::new(spec.depth.clamp(1, 1024)));
    for _ in 0..running.get() {
        let (worker, running, waker) = (guest.clone(), running.clone(), sim.clone());
        sim.spawn("guest", async move {
            worker.work().await;
            running.set(running.get() - 1);
            if running.get() == 0 {
                waker.wake(me);
            }
        });
    }
    let deaths = sim.deaths();
    while running.get() > 0 && sim.deaths() == deaths {
        sim.park("the guest's requests").await;
    }
    let summary = *guest.summary.borrow();
    Ok(summary)
}

impl Guest {
    async fn work(&self) {
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            let Some((kind, offset, bytes)) = self.choose() else { continue };
            self.in_flight.borrow_mut().push((offset, bytes));
            self.request(kind, offset, bytes).await;
            self.in_flight.borrow_mut().retain(|range| *range != (offset, bytes));
        }
    }

    /// The next request; none if every place tried is busy.
    fn choose(&self) -> Option<(Kind, u64, u64)> {
        const TRIES: u32 = 16;
        let mut rng = self.rng.borrow_mut();
        let kind = self.choose_kind(&mut rng);
        if kind == Kind::Flush {
            return Some((kind, 0, 0));
        }
        let align = self.spec.align.0.max(1);
        for _ in 0..TRIES {
            let wanted = rng.between(self.spec.size.min, self.spec.size.max).div_ceil(align).max(1);
            let blocks = wanted.min(self.slots);
            let slot = self.choose_slot(&mut rng, blocks);
            let (offset, bytes) = (self.first + slot * align, blocks * align);
            let busy = |range: &(u64, u64)| range.0 < offset + bytes && offset < range.0 + range.1;
            if !self.in_flight.borrow().iter().any(busy) {
                return Some((kind, offset, bytes));
            }
        }
        None
    }

    fn choose_kind(&self, rng: &mut Rng) -> Kind {
        let mix = &self.spec.mix;
        let weights = [
            (Kind::Write, mix.write),
            (Kind::Zeroes, mix.zeroes),
            (Kind::Discard, mix.discard),
            (Kind::Read, mix.read),
            (Kind::Flush, mix.flush),
        ];
        let total = weights.iter().fold(0u64, |sum, (_, weight)| sum.saturating_add(*weight));
        let mut pick = rng.below(total);
        for (kind, weight) in weights {
            if pick < weight {
                return kind;
            }
            pick -= weight;
        }
        Kind::Write
    }

    /// Where a request of `blocks` blocks begins.
    fn choose_slot(&self, rng: &mut Rng, blocks: u64) -> u64 {
        let places = self.slots - blocks + 1;
        match self.spec.distribution {
            Distribution::Uniform => rng.below(places),
            Distribution::Sequential => {
                let slot = self.next_sequential.get() % self.slots;
                self.next_sequential.set(slot + blocks);
                slot.min(places - 1)
            }
            Distribution::Zipf => {
                // A random power of two of the places, then one of them: frequency falls as 1/rank, without
                // floating point, whose last digit differs between machines. Then the ranks are scattered.
                let levels = u64::from(u64::BITS - places.leading_zeros());
                let top = (1u64 << rng.below(levels.min(63) + 1)).min(places);
                let rank = rng.below(top);
                rank.wrapping_mul(0x9E37_79B9_7F4A_7C15) % places
            }
        }
    }

    async fn request(&self, kind: Kind, offset: u64, bytes: u64) {
        self.summary.borrow_mut().requests += 1;
        let (block, backend) = (&self.block, &self.backend);
        let written = match kind {
            Kind::Write => {
                let byte = 1 + self.rng.borrow_mut().below(255) as u8;
                let content = Content::pattern(byte, bytes);
                let result = block.backend_write(backend, offset, content.clone(), ReqFlags::NONE).await;
                result.map(|()| Some(content))
            }
            Kind::Zeroes => {
                let result = block.backend_write_zeroes(backend, offset, bytes, ReqFlags::NONE).await;
                result.map(|()| Some(Content::zeros(bytes)))
            }
            // What a discarded range reads as is the disk's business.
            Kind::Discard => block.backend_discard(backend, offset, bytes).await.map(|()| None),
            Kind::Flush => return self.note_failure(block.backend_flush(backend).await.is_err()),
            Kind::Read => return self.read(offset, bytes).await,
        };
        self.note_failure(written.is_err());
        match written {
            Ok(Some(content)) => {
                self.summary.borrow_mut().written += bytes;
                self.learn(offset, &content);
            }
            Ok(None) | Err(_) => self.forget(offset, bytes),
        }
    }

    fn note_failure(&self, failed: bool) {
        self.summary.borrow_mut().failed += u64::from(failed);
    }

    async fn read(&self, offset: u64, bytes: u64) {
        let result = self.block.backend_read(&self.backend, offset, bytes).await;
        self.note_failure(result.is_err());
        let Ok(content) = result else { return };
        self.summary.borrow_mut().read += bytes;
        if self.contradicts(offset, &content) {
            self.summary.borrow_mut().mismatches += 1;
        }
        self.learn(offset, &content);
    }

    /// Whether `content` differs from the model where the model knows.
    fn contradicts(&self, offset: u64, content: &Content) -> bool {
        let bytes = content.len();
        let (Ok(known), Ok(model)) = (self.known.read(offset, bytes), self.content.read(offset, bytes)) else {
            return false;
        };
        let mut at = 0;
        for run in known.runs() {
            let is_known = run.fill.repeated() != Some(0);
            if is_known && content.slice(at, run.len) != model.slice(at, run.len) {
                return true;
            }
            at += run.len;
        }
        false
    }

    /// The model is in memory; a write there fails only beyond any disk's length.
    fn learn(&self, offset: u64, content: &Content) {
        if self.spec.mix.read == 0 {
            return;
        }
        let _ = self.content.write(offset, content);
        let _ = self.known.write(offset, &Content::pattern(1, content.len()));
    }

    fn forget(&self, offset: u64, bytes: u64) {
        if self.spec.mix.read == 0 {
            return;
        }
        let _ = self.known.write(offset, &Content::zeros(bytes));
    }
}
