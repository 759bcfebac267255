//! The copying of `qemu-img convert`: what is read, what is written, what stays a hole.
//!
//! The source is walked in runs of one block status, each at most the buffer long; data are searched for zeros, which
//! a new image need not be told. Several workers do so at a time, which shows where reading fails. QEMU's source:
//! `convert_co_do_copy` and what it calls in `qemu-img.c`.

use std::rc::Rc;

use crate::block::{Block, NodeId, ReqFlags, StatusFlags};
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{CoMutex, TaskId};
use crate::store::Content;

/// The buffer, bytes.
const BUFFER_BYTES: u64 = 2 << 20;

/// What is copied where.
pub(super) struct Copy {
    pub(super) block: Rc<Block>,
    pub(super) source: NodeId,
    pub(super) target: NodeId,
    /// Length of both, bytes.
    pub(super) bytes: u64,
    /// A cluster of the source, bytes.
    pub(super) source_unit: u64,
    /// Compressed clusters are written, of so many bytes.
    pub(super) compress_unit: Option<u64>,
    /// Zeros are left out where so many bytes of them stand together; 0: never.
    pub(super) sparse: u64,
    /// What the source's top layer has nothing of is left to the target's backing file.
    pub(super) backed: bool,
    /// That file's length, bytes, if there is one.
    pub(super) backing_bytes: Option<u64>,
    /// The target reads as zeros where nothing is written.
    pub(super) zeroed: bool,
    /// How many workers copy (`-m`).
    pub(super) workers: usize,
    /// They write in the order of the image (not with `-W`).
    pub(super) in_order: bool,
}

/// What is to be done with a run of the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Data,
    Zero,
    /// The backing file has it already.
    Backing,
}

/// Where the workers are.
#[derive(Default)]
struct Progress {
    /// Who looks for the next run holds this.
    looking: CoMutex,
    /// Where that begins.
    next: Cell<u64>,
    /// What stands there, up to which offset, as far as the source has been asked.
    known: Cell<Option<(Run, u64)>>,
    /// Up to where everything has been written.
    written: Cell<u64>,
    /// Workers that have read and wait for their turn to write, and where that begins.
    waiting: RefCell<Vec<(u64, TaskId)>>,
    failed: Cell<bool>,
    /// Workers that have not ended.
    left: Cell<usize>,
}

/// Copies everything, from the main loop; what goes wrong is told at once. Whether all went well.
pub(super) async fn copy(work: Copy) -> bool {
    let sim = work.block.sim.clone();
    let (work, progress) = (Rc::new(work), Rc::new(Progress::default()));
    progress.left.set(work.workers);
    for _ in 0..work.workers {
        let (work, progress) = (work.clone(), progress.clone());
        sim.spawn("qemu-img", async move {
            worker(&work, &progress).await;
            progress.left.set(progress.left.get() - 1);
        });
    }
    sim.poll_until("copying", || progress.left.get() == 0).await;
    if work.compress_unit.is_some() && !progress.failed.get() {
        // Nothing more comes: the driver makes the file end with a sector.
        let last = work.clone();
        let ended = sim.run_coroutine("qemu-img", async move { write_empty(&last).await }).await;
        tell(&work, &progress, ended);
    }
    !progress.failed.get()
}

/// Tells what went wrong, and that the others need not go on.
fn tell(work: &Copy, progress: &Progress, result: Result<(), String>) {
    if let Err(text) = result {
        work.block.report_stderr(format!("qemu-img: {text}"));
        progress.failed.set(true);
    }
}

/// Copies one run after the other. Several workers read at a time; they write in the order of the image.
async fn worker(work: &Copy, progress: &Progress) {
    while let Some((at, run, bytes)) = take_run(work, progress).await {
        let mut content = None;
        if run == Run::Data {
            let read = work.block.co_pread(work.source, at, bytes, ReqFlags::NONE).await;
            let read = read.map_err(|error| format!("error while reading at byte {at}: {error}"));
            content = read.map_err(|text| tell(work, progress, Err(text))).ok();
        }
        let sim = &work.block.sim;
        while work.in_order && progress.written.get() != at && !progress.failed.get() {
            let Some(me) = sim.current() else { break };
            progress.waiting.borrow_mut().push((at, me));
            sim.park("its turn to write").await;
        }
        if !progress.failed.get() {
            let written = write_run(work, at, run, bytes, content).await;
            tell(work, progress, written);
        }
        progress.written.set(at + bytes);
        let next = {
            let mut waiting = progress.waiting.borrow_mut();
            let place = waiting.iter().position(|(start, _)| *start == at + bytes);
            place.map(|place| waiting.remove(place).1)
        };
        if let Some(next) = next {
            sim.enter(next);
        }
    }
}

/// The next run that nobody has taken, if there is one and nothing has failed.
async fn take_run(work: &Copy, progress: &Progress) -> Option<(u64, Run, u64)> {
    let _looking = progress.looking.lock(&work.block.sim, "another worker").await;
    let at = progress.next.get();
    if progress.failed.get() || at >= work.bytes {
        return None;
    }
    let (run, bytes) = next_run(work, progress, at).await.map_err(|text| tell(work, progress, Err(text))).ok()?;
    progress.next.set(at + bytes);
    Some((at, run, bytes))
}

async fn write_run(work: &Copy, at: u64, run: Run, bytes: u64, content: Option<Content>) -> Result<(), String> {
    match (run, content) {
        (Run::Data, Some(content)) => write_data(work, at, content).await,
        (Run::Zero, _) if work.sparse == 0 => write_data(work, at, Content::zeros(bytes)).await,
        (Run::Zero, _) if !work.zeroed => write_zeroes(work, at, bytes).await,
        _ => Ok(()),
    }
}

async fn write_empty(work: &Copy) -> Result<(), String> {
    let written = work.block.co_pwrite(work.target, 0, Content::zeros(0), ReqFlags::COMPRESSED).await;
    written.map_err(|error| write_error(0, error))
}

/// What stands at `at`, and for how many bytes (`convert_iteration_sectors`).
async fn next_run(work: &Copy, progress: &Progress, at: u64) -> Result<(Run, u64), String> {
    let (run, end) = match progress.known.get() {
        Some((run, end)) if end > at => (run, end),
        _ => look(work, at).await?,
    };
    progress.known.set(Some((run, end)));
    let mut bytes = end - at;
    if run == Run::Data || (run == Run::Zero && work.sparse == 0) {
        bytes = bytes.min(BUFFER_BYTES);
    }
    match work.compress_unit {
        // Compressed clusters are written whole.
        Some(unit) if bytes < unit => {
            progress.known.set(Some((Run::Data, end)));
            Ok((Run::Data, unit.min(work.bytes - at)))
        }
        Some(unit) => Ok((run, bytes - bytes % unit)),
        None => Ok((run, bytes)),
    }
}

/// Asks the source what stands at `at`, and where that ends.
async fn look(work: &Copy, at: u64) -> Result<(Run, u64), String> {
    let failed = |error| format!("error while reading block status at offset {at}: {error}");
    // Below the layer that the new backing file stands for nothing is looked at.
    let base = if work.backed { work.block.node(work.source).backing() } else { None };
    let answer =
        work.block.co_block_status_above(work.source, base, at, work.bytes - at, true).await.map_err(failed)?;
    let (flags, mut bytes) = (answer.status.flags, answer.status.bytes.clamp(1, work.bytes - at));
    // The next question is to begin with a cluster of the source.
    let tail = (at + bytes) % work.source_unit;
    if bytes > tail {
        bytes -= tail;
    }
    // Behind its end the backing file reads as zeros.
    let behind = work.backing_bytes.is_some_and(|end| at >= end);
    if let Some(end) = work.backing_bytes.filter(|end| at < *end) {
        bytes = bytes.min(end - at);
    }
    let run = if flags.contains(StatusFlags::ZERO) {
        if behind { Run::Backing } else { Run::Zero }
    } else if flags.contains(StatusFlags::DATA) {
        Run::Data
    } else if work.backed {
        Run::Backing
    } else {
        Run::Data
    };
    Ok((run, at + bytes))
}

async fn write_data(work: &Copy, start: u64, content: Content) -> Result<(), String> {
    if let Some(unit) = work.compress_unit {
        return write_compressed(work, start, content, unit).await;
    }
    let mut done = 0;
    while done < content.len() {
        let (is_data, bytes) = piece(&content, done, start, work.sparse);
        if is_data {
            write(work, start + done, content.slice(done, bytes)).await?;
        } else if !work.zeroed {
            write_zeroes(work, start + done, bytes).await?;
        }
        done += bytes;
    }
    Ok(())
}

async fn write_compressed(work: &Copy, start: u64, content: Content, unit: u64) -> Result<(), String> {
    let mut done = 0;
    while done < content.len() {
        let cluster = content.slice(done, unit.min(content.len() - done));
        let bytes = cluster.len();
        if !cluster.is_zero() || work.sparse == 0 {
            let written = work.block.co_pwrite(work.target, start + done, cluster, ReqFlags::COMPRESSED).await;
            written.map_err(|error| write_error(start + done, error))?;
        } else if !work.zeroed {
            write_zeroes(work, start + done, bytes).await?;
        }
        done += bytes;
    }
    Ok(())
}

async fn write(work: &Copy, at: u64, content: Content) -> Result<(), String> {
    work.block.co_pwrite(work.target, at, content, ReqFlags::NONE).await.map_err(|error| write_error(at, error))
}

async fn write_zeroes(work: &Copy, at: u64, bytes: u64) -> Result<(), String> {
    let written = work.block.co_pwrite_zeroes(work.target, at, bytes, ReqFlags::MAY_UNMAP).await;
    written.map_err(|error| write_error(at, error))
}

fn write_error(at: u64, error: crate::errno::Errno) -> String {
    format!("error while writing at byte {at}: {error}")
}

/// Whether the content from `from` on is to be written, and for how many bytes that holds: runs of zeros shorter than
/// `sparse` are data, and the ends of all others lie on multiples of it in the image.
fn piece(content: &Content, from: u64, start: u64, sparse: u64) -> (bool, u64) {
    let total = content.len();
    if sparse == 0 {
        return (true, total - from);
    }
    let is_zero = |at: u64| {
        let end = ((start + at) / sparse * sparse + sparse - start).min(total);
        (content.slice(at, end - at).is_zero(), end)
    };
    let (zero, mut end) = is_zero(from);
    while end < total {
        let (next, next_end) = is_zero(end);
        if next != zero {
            break;
        }
        end = next_end;
    }
    (!zero, end - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_cut_out_in_whole_blocks_of_the_image() {
        let content = Content::zeros(10_000).concat(Content::pattern(1, 10)).concat(Content::zeros(10_000));
        assert_eq!(piece(&content, 0, 0, 4096), (false, 8192));
        assert_eq!(piece(&content, 8192, 0, 4096), (true, 4096));
        assert_eq!(piece(&content, 12_288, 0, 4096), (false, 20_010 - 12_288));
        assert_eq!(piece(&content, 0, 1024, 4096), (false, 7168));
        assert_eq!(piece(&content, 0, 0, 0), (true, 20_010));
    }
}
