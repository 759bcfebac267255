//! `blockdev-create`: a job that makes an image (QEMU's `block/create.c`).
//!
//! It is a job without block-job events; the image itself is the format driver's work.

use std::rc::Rc;

use crate::block::qcow2::{Qcow2, Qcow2CreateOptions};
use crate::block::{Block, Operation};
use crate::errno::Errno;
use crate::sim::Footprint;

use super::job::{Job, JobConfig, JobKind, Jobs};

/// What to create.
#[derive(Clone, Debug)]
pub enum CreateOptions {
    /// A file of the host.
    File {
        /// Its name.
        filename: String,
        /// Its length, bytes.
        size: u64,
    },
    /// A qcow2 image in an existing node.
    Qcow2 {
        /// The node.
        file: String,
        /// Everything else.
        options: Qcow2CreateOptions,
    },
}

/// Makes and starts the job (`qmp_blockdev_create`).
pub fn start_create(jobs: &Rc<Jobs>, id: &str, options: CreateOptions) -> Result<Rc<Job>, String> {
    let config = JobConfig {
        id: id.to_owned(),
        kind: JobKind::Create,
        txn: None,
        auto_finalize: true,
        auto_dismiss: false,
    };
    let job = jobs.create(config)?;
    let (block, running) = (jobs.block.clone(), job.clone());
    job.start(async move {
        running.progress.set_remaining(1);
        let result = create(&block, options).await;
        running.progress.work_done(1);
        result
    });
    Ok(job)
}

async fn create(block: &Rc<Block>, options: CreateOptions) -> Result<(), (Errno, Option<String>)> {
    let failed = |text: String| (Errno::EINVAL, Some(text));
    match options {
        CreateOptions::File { filename, size } => create_file(block, &filename, size).await.map_err(failed),
        CreateOptions::Qcow2 { file, options } => {
            let node = block.lookup(Some(&file), Some(&file)).map_err(failed)?;
            block.reference(&node);
            let result = Qcow2::create(block, node.id, &options).await;
            // Only the reference that was taken above; the node has others.
            node.references.set(node.references.get().saturating_sub(1));
            for _ in 0..if block.quirks.graph_lock { 14 } else { 0 } {
                drain_from_coroutine(block).await;
            }
            result.map_err(failed)
        }
    }
}

/// Creating opens and closes the image several times; QEMU 10 drains everything each time.
async fn drain_from_coroutine(block: &Rc<Block>) {
    let Some(me) = block.sim.current() else { return };
    let (in_frame, sim) = (block.clone(), block.sim.clone());
    block.sim.bh_frame("graph lock", async move {
        in_frame.graph_write_section().await;
        sim.wake(me);
    });
    block.sim.park("the graph lock").await;
}

/// Makes a file, empty or of zeros.
pub async fn create_file(block: &Rc<Block>, filename: &str, size: u64) -> Result<(), String> {
    let store = block.host.create(filename).map_err(|error| format!("Could not create '{filename}': {error}"))?;
    let latency = block.timing.cost(filename, Operation::Write);
    block.sim.device(latency, Footprint::named("create")).await;
    store.truncate(size.next_multiple_of(512)).map_err(|error| format!("Could not resize file: {error}"))
}
