//! The pieces of one guest request that run beside each other.
//!
//! A request that falls into several host-contiguous runs starts a coroutine for each, at most
//! eight at a time, and waits for all. QEMU's source: `block/aio_task.c`.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::shared::Cell;
use crate::sim::{LocalFuture, Sim, WaitQueue};

/// Pieces of a request that may run at once (`QCOW2_MAX_WORKERS`).
const MAX_WORKERS: usize = 8;

/// Runs pieces and remembers the first error.
#[derive(Default)]
pub(super) struct TaskPool {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    busy: Cell<usize>,
    failed: Cell<Option<Errno>>,
    /// Where the request waits for a piece to end.
    waiting: WaitQueue,
}

impl TaskPool {
    /// Starts a piece; sleeps before that while too many run. On the heap, it is not moved again.
    pub(super) async fn start(&self, sim: &Sim, piece: LocalFuture<Res<()>>) {
        while self.shared.busy.get() >= MAX_WORKERS {
            self.wait_one(sim).await;
        }
        self.shared.busy.set(self.shared.busy.get() + 1);
        let shared = self.shared.clone();
        let kernel = sim.clone();
        sim.spawn("qcow2 piece", async move {
            let result = piece.await;
            shared.busy.set(shared.busy.get() - 1);
            if let (Err(error), None) = (result, shared.failed.get()) {
                shared.failed.set(Some(error));
            }
            shared.waiting.wake_one(&kernel);
        });
    }

    async fn wait_one(&self, sim: &Sim) {
        self.shared.waiting.wait(sim, "a piece of a qcow2 request").await;
    }

    /// Whether a piece has failed already, so that no more should be started.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.get().is_some()
    }

    /// Waits for all pieces; their first error.
    pub(super) async fn finish(&self, sim: &Sim) -> Res<()> {
        while self.shared.busy.get() > 0 {
            self.wait_one(sim).await;
        }
        self.shared.failed.get().map_or(Ok(()), Err)
    }
}
