//! Making a backup job: every check of its arguments, in QEMU's order, then filter and job.
//!
//! The order decides which error a user sees (`do_backup_common` in `blockdev.c`,
//! `backup_job_create` in `block/backup.c`). Whatever fails leaves graph and bitmap as they were.

use std::rc::Rc;

use crate::bitmap::{Allow, BitmapId};
use crate::block::{Block, CbwOptions, Driver, Node};
use crate::job::finish::JobTxn;
use crate::job::job::{Job, JobConfig, JobKind, Jobs};
use crate::sim::shared::{Cell, RefCell};
use crate::sim::{BackupCreated, TraceEvent};

use super::{Backup, BackupOptions, BitmapMode, SyncMode};

/// What the argument checks leave to be done.
struct Checked {
    sync: SyncMode,
    bitmap: Option<(BitmapId, BitmapMode)>,
}

/// Checks the arguments, inserts the filter and makes the job; the source is drained by the
/// caller.
pub async fn create_backup(
    jobs: &Rc<Jobs>,
    source: &Rc<Node>,
    target: &Rc<Node>,
    txn: Option<Rc<JobTxn>>,
    options: &BackupOptions,
) -> Result<Rc<Job>, String> {
    let block = &jobs.block;
    let checked = check_bitmap_arguments(source, options)?;
    check_nodes(block, source, target, options)?;
    check_numbers(options)?;
    if let Some((id, mode)) = checked.bitmap {
        if mode != BitmapMode::Never {
            let list = source.bitmaps.borrow();
            list.get(id).map_or(Ok(()), |bitmap| bitmap.check(Allow::NOTHING)).map_err(|fault| fault.to_string())?;
        }
        let size = block.length(source);
        source.bitmaps.borrow_mut().create_successor(id, size).map_err(|fault| fault.to_string())?;
    }
    let made = make_job(jobs, source, target, txn, options, &checked).await;
    if made.is_err()
        && let Some((id, _)) = checked.bitmap
    {
        let reclaimed = source.bitmaps.borrow_mut().reclaim(id);
        block.assert_merged(reclaimed);
    }
    made
}

/// Rows about bitmap, mode and sync.
fn check_bitmap_arguments(source: &Node, options: &BackupOptions) -> Result<Checked, String> {
    let mut mode = options.bitmap_mode;
    let mut sync = options.sync;
    if matches!(sync, SyncMode::Bitmap | SyncMode::Incremental) {
        if options.bitmap.is_none() {
            return Err(format!("must provide a valid bitmap name for '{}' sync mode", sync.name()));
        }
        if sync == SyncMode::Incremental {
            if mode.is_some_and(|mode| mode != BitmapMode::OnSuccess) {
                return Err("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'".to_owned());
            }
            mode = Some(BitmapMode::OnSuccess);
            sync = SyncMode::Bitmap;
        }
    }
    let bitmap = match &options.bitmap {
        Some(name) => {
            let list = source.bitmaps.borrow();
            let id = list.find(name).ok_or_else(|| format!("Bitmap '{name}' could not be found"))?;
            let mode = mode.ok_or("Bitmap sync mode must be given when providing a bitmap")?;
            let allowed = list.get(id).map_or(Ok(()), |bitmap| bitmap.check(Allow::READONLY));
            allowed.map_err(|fault| fault.to_string())?;
            if sync == SyncMode::None {
                return Err("sync mode 'none' does not produce meaningful bitmap outputs".to_owned());
            }
            if mode == BitmapMode::Never && sync != SyncMode::Bitmap {
                return Err(format!(
                    "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{}'",
                    sync.name()
                ));
            }
            Some((id, mode))
        }
        None if mode.is_some() => return Err("Cannot specify bitmap sync mode without a bitmap".to_owned()),
        None => None,
    };
    Ok(Checked { sync, bitmap })
}

/// Rows about the two nodes.
fn check_nodes(block: &Block, source: &Node, target: &Node, options: &BackupOptions) -> Result<(), String> {
    if source.id == target.id {
        return Err("Source and target cannot be the same".to_owned());
    }
    for node in [source, target] {
        if matches!(&*node.driver.borrow(), Driver::None) {
            return Err(format!("Device is not inserted: {}", block.device_name(node)));
        }
    }
    if options.compress && !can_compress(block, target) {
        return Err(format!("Compression is not supported for this drive {}", block.device_name(target)));
    }
    block.check_op_blocker(source)?;
    block.check_op_blocker(target)
}

/// Whether compressed writes reach a driver that stores them.
fn can_compress(block: &Block, node: &Node) -> bool {
    let below = block.node(block.skip_filters(node.id));
    below.qcow2().is_some()
}

/// Rows about numbers.
fn check_numbers(options: &BackupOptions) -> Result<(), String> {
    if options.max_workers < 1 || options.max_workers > i64::from(i32::MAX) {
        return Err(format!("max-workers must be between 1 and {}", i32::MAX));
    }
    if options.max_chunk < 0 {
        return Err("max-chunk must be zero (which means no limit) or positive".to_owned());
    }
    Ok(())
}

/// Rows from the lengths on: filter, job, its nodes, its speed.
async fn make_job(
    jobs: &Rc<Jobs>,
    source: &Rc<Node>,
    target: &Rc<Node>,
    txn: Option<Rc<JobTxn>>,
    options: &BackupOptions,
    checked: &Checked,
) -> Result<Rc<Job>, String> {
    let block = &jobs.block;
    if block.length(source) != block.length(target) {
        return Err("Source and target image have different sizes".to_owned());
    }
    if options.min_cluster_size > i64::MAX as u64 {
        return Err(format!("min-cluster-size too large: {} > {}", options.min_cluster_size, i64::MAX));
    }
    let cbw = CbwOptions {
        min_cluster_size: options.min_cluster_size,
        discard_source: options.discard_source,
        ..CbwOptions::default()
    };
    let filter = block.append_cbw(options.filter_node_name.as_deref(), source, target, cbw).await?;
    let made = make_job_on(jobs, &filter, source, target, txn, options, checked).await;
    if made.is_err() {
        block.drop_filter(&filter).await;
    }
    made
}

async fn make_job_on(
    jobs: &Rc<Jobs>,
    filter: &Rc<Node>,
    source: &Rc<Node>,
    target: &Rc<Node>,
    txn: Option<Rc<JobTxn>>,
    options: &BackupOptions,
    checked: &Checked,
) -> Result<Rc<Job>, String> {
    let block = &jobs.block;
    let copy = match &*filter.driver.borrow() {
        Driver::CopyBeforeWrite(cbw) => cbw.copy.clone(),
        _ => return Err("the filter has no copy-before-write state".to_owned()),
    };
    let max_chunk = options.max_chunk.unsigned_abs();
    if max_chunk > 0 && max_chunk < copy.cluster_size {
        return Err(format!(
            "Required max-chunk ({max_chunk}) is less than backup cluster size ({})",
            copy.cluster_size
        ));
    }
    let id = match &options.job_id {
        Some(id) => id.clone(),
        None => block.device_name(filter).to_string(),
    };
    let job = jobs.create(JobConfig {
        id,
        kind: JobKind::Backup,
        txn,
        auto_finalize: options.auto_finalize,
        auto_dismiss: options.auto_dismiss,
    })?;
    let prepared = job
        .add_node("main node", filter.id)
        .and_then(|()| if options.speed == 0 { Ok(()) } else { job.set_speed(options.speed) });
    if let Err(reason) = prepared {
        job.early_fail().await;
        return Err(reason);
    }
    copy.set_options(options.use_copy_range, options.compress);
    *copy.progress.borrow_mut() = Some(job.progress.clone());
    copy.set_speed(block, options.speed.unsigned_abs());
    job.add_node("target", target.id)?;
    block.graph_write_section().await;
    *job.backup.borrow_mut() = Some(Rc::new(Backup {
        block: block.clone(),
        filter: filter.clone(),
        source: source.id,
        copy,
        sync: checked.sync,
        bitmap: checked.bitmap.map(|(id, _)| id),
        bitmap_mode: checked.bitmap.map_or(BitmapMode::Never, |(_, mode)| mode),
        on_source_error: options.on_source_error,
        on_target_error: options.on_target_error,
        max_workers: options.max_workers.clamp(1, i64::from(i32::MAX)) as u32,
        max_chunk,
        length: block.length(source),
        call: RefCell::default(),
        waits: Cell::new(false),
    }));
    announce(&job, target, options);
    Ok(job)
}

/// Tells the trace what the job is to do, while its source is still drained.
fn announce(job: &Job, target: &Node, options: &BackupOptions) {
    let Some(backup) = job.backup.borrow().clone() else { return };
    let block = &backup.block;
    block.sim.emit(|| {
        TraceEvent::BackupCreated(Rc::new(BackupCreated {
            job: job.id.clone(),
            source: block.node(block.skip_filters(backup.source)).name.clone(),
            place: block.place_of(backup.source),
            read_at: block.node(backup.source).name.clone(),
            target: target.name.clone(),
            target_place: block.place_of(target.id),
            sync: options.sync.name(),
            mode: backup.bitmap_mode.name(),
            bitmap: backup.bitmap.and_then(|id| block.dump_bitmap(backup.source, id)),
            snapshot: block.snapshot_filter(backup.source).map(|filter| block.node(filter).name.clone()),
            cluster: backup.copy.cluster_size,
            length: backup.length,
            group: job.txn().group(),
            on_source_error: options.on_source_error.name(),
            on_target_error: options.on_target_error.name(),
            auto_finalize: options.auto_finalize,
            auto_dismiss: options.auto_dismiss,
            speed: options.speed.unsigned_abs(),
            workers: backup.max_workers,
            max_chunk: backup.max_chunk,
        }))
    });
}
