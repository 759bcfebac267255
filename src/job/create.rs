//! `blockdev-create`: a job that makes an image (QEMU's `block/create.c`).
//!
//! It is a job without block-job events; the image itself is the format driver's work.

use std::rc::Rc;

use crate::block::open::{ChildRef, DriverOptions, OpenOptions};
use crate::block::qcow2::{Qcow2, Qcow2CreateOptions};
use crate::block::{Block, NodeId, Operation, Perm, Preallocation, set_file_length};
use crate::errno::Errno;
use crate::sim::shared::Cell;
use crate::sim::{Footprint, TraceEvent};
use crate::store::Host;

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
        /// What to allocate at once.
        preallocation: Preallocation,
    },
    /// A qcow2 image in an existing node.
    Qcow2 {
        /// The node, by name or made for it.
        file: ChildRef,
        /// `data-file`, which is looked up and then refused.
        data_file: Option<String>,
        /// `data-file-raw`.
        data_file_raw: bool,
        /// Everything else.
        options: Qcow2CreateOptions,
    },
}

/// Makes and starts the job (`qmp_blockdev_create`).
pub fn start_create(jobs: &Rc<Jobs>, id: &str, options: CreateOptions) -> Result<Rc<Job>, String> {
    let config =
        JobConfig { id: id.to_owned(), kind: JobKind::Create, txn: None, auto_finalize: true, auto_dismiss: false };
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
        CreateOptions::File { filename, size, preallocation } => {
            create_file(block, &filename, size, preallocation).await.map_err(failed)
        }
        CreateOptions::Qcow2 { file, data_file, data_file_raw, options } => {
            let (node, is_own) = match file {
                ChildRef::Name(name) => (block.lookup(Some(&name), Some(&name)).map_err(failed)?, false),
                ChildRef::Inline(inline) => {
                    let id = open_in_main_loop(block, *inline).await.map_err(failed)?;
                    (block.node(id), true)
                }
            };
            block.reference(&node);
            let result = match data_file {
                Some(name) => match block.lookup(Some(&name), Some(&name)) {
                    Ok(_) => Err("not modelled: an external data file".to_owned()),
                    Err(reason) => Err(reason),
                },
                None if data_file_raw => Err("data-file-raw requires data-file".to_owned()),
                None => format(block, node.id, &options).await,
            };
            // Only the reference that was taken above; the node has others.
            node.references.set(node.references.get().saturating_sub(1));
            if is_own {
                close_in_main_loop(block, node.id).await;
            }
            result.map_err(failed)
        }
    }
}

/// Makes a file, empty or of zeros.
async fn create_file(block: &Rc<Block>, filename: &str, size: u64, preallocation: Preallocation) -> Result<(), String> {
    refuse_used(block, filename)?;
    let store = block.host.create(filename).map_err(|error| format!("Could not create '{filename}': {error}"))?;
    block.sim.emit(|| TraceEvent::FileCreated { file: Host::plain_name(filename).into() });
    let latency = block.timing.cost(filename, Operation::Write);
    block.sim.device(latency, Footprint::named("create")).await;
    if i64::try_from(size).is_err() {
        return Err(format!("Could not resize file: {}", Errno::EINVAL));
    }
    set_file_length(&store, size, preallocation)
}

/// A file that somebody uses is not emptied (`raw_co_create`).
fn refuse_used(block: &Block, filename: &str) -> Result<(), String> {
    let Ok(store) = block.host.open(filename) else { return Ok(()) };
    block.locks.check(&store, filename, None, Perm::WRITE | Perm::RESIZE, Perm::ALL.without(Perm::RESIZE))
}

/// Makes a whole image: a file, and in it a qcow2 image or just `size` bytes (`bdrv_img_create`).
pub async fn create_image(
    block: &Rc<Block>,
    filename: &str,
    is_qcow2: bool,
    options: &Qcow2CreateOptions,
) -> Result<(), String> {
    if !is_qcow2 {
        return create_file(block, filename, options.size, options.preallocation).await;
    }
    create_file(block, filename, 0, Preallocation::Off).await?;
    let spec = block.options_for(filename, Some("raw"))?;
    let DriverOptions::Raw { file: ChildRef::Inline(file), .. } = spec.driver else { return Ok(()) };
    let node = open_in_main_loop(block, *file).await?;
    let result = format(block, node, options).await;
    close_in_main_loop(block, node).await;
    if result.is_err() {
        // The file goes too, whatever stood there before; that it can't go is nobody's mistake.
        let _ = block.host.remove(filename);
    }
    result
}

/// Makes a node an empty qcow2 image.
async fn format(block: &Rc<Block>, node: NodeId, options: &Qcow2CreateOptions) -> Result<(), String> {
    Qcow2::create(block, node, options).await?;
    block.witness_format(node);
    Ok(())
}

/// Opens a node for a coroutine.
async fn open_in_main_loop(block: &Rc<Block>, options: OpenOptions) -> Result<NodeId, String> {
    let slot: Rc<Cell<Option<Result<NodeId, String>>>> = Rc::default();
    let (opened, opener) = (slot.clone(), block.clone());
    in_main_loop(block, async move { opened.set(Some(opener.open(&options).await.map(|node| node.id))) }).await;
    slot.take().unwrap_or_else(|| Err("the machine is gone".to_owned()))
}

async fn close_in_main_loop(block: &Rc<Block>, node: NodeId) {
    let closer = block.clone();
    in_main_loop(block, async move { closer.unref(node).await }).await;
}

/// Runs main-loop code for a coroutine and waits for it.
async fn in_main_loop(block: &Rc<Block>, work: impl Future<Output = ()> + 'static) {
    let Some(me) = block.sim.current() else { return };
    let sim = block.sim.clone();
    block.sim.bh_frame("main loop", async move {
        work.await;
        sim.wake(me);
    });
    block.sim.park("the main loop").await;
}
