//! blockdev-backup and drive-backup: arguments, and their life as actions of a transaction.
//!
//! The checks behind the arguments are the job layer's. A plain command is a transaction with one action,
//! as in QEMU (`blockdev.c`).

use std::rc::Rc;

use crate::block::DetectZeroes;
use crate::block::open::{CommonOptions, OpenOptions};
use crate::block::qcow2::Qcow2CreateOptions;
use crate::block::{Block, Node};
use crate::job::backup::{BackupOptions, BitmapMode, SyncMode, create_backup, start_backup};
use crate::job::{Job, JobTxn, OnError};
use crate::qmp::args::Args;
use crate::qmp::error::QmpError;
use crate::qmp::machine::Machine;

use super::blockdev::unknown_format;

/// Arguments of a backup.
#[derive(Clone, Debug)]
pub(super) struct BackupArgs {
    device: String,
    target: String,
    options: BackupOptions,
    /// drive-backup only.
    drive: Option<DriveArgs>,
}

#[derive(Clone, Debug)]
struct DriveArgs {
    format: Option<String>,
    existing: bool,
}

/// A backup between prepare and clean.
pub(super) struct BackupAction {
    source: Rc<Node>,
    job: Option<Rc<Job>>,
}

const ON_ERROR: [(&str, OnError); 5] = [
    ("report", OnError::Report),
    ("ignore", OnError::Ignore),
    ("enospc", OnError::Enospc),
    ("stop", OnError::Stop),
    ("auto", OnError::Auto),
];
const SYNC: [(&str, SyncMode); 5] = [
    ("top", SyncMode::Top),
    ("full", SyncMode::Full),
    ("none", SyncMode::None),
    ("incremental", SyncMode::Incremental),
    ("bitmap", SyncMode::Bitmap),
];
const MODES: [(&str, BitmapMode); 3] =
    [("on-success", BitmapMode::OnSuccess), ("never", BitmapMode::Never), ("always", BitmapMode::Always)];

impl BackupArgs {
    /// Reads the arguments in the schema's order: the common part, then those of the command.
    pub(super) fn parse(args: &Args<'_>, is_drive: bool, since_9: bool) -> Result<BackupArgs, QmpError> {
        let job_id = args.opt_str("job-id")?.map(str::to_owned);
        let device = args.str("device")?.to_owned();
        let sync = args.enumeration("sync", &SYNC)?;
        let speed = args.opt_int("speed")?.unwrap_or(0);
        let bitmap = args.opt_str("bitmap")?.map(str::to_owned);
        let bitmap_mode = args.opt_enum("bitmap-mode", &MODES)?;
        let compress = args.opt_bool("compress")?.unwrap_or(false);
        let on_source_error = args.opt_enum("on-source-error", &ON_ERROR)?.unwrap_or_default();
        let on_target_error = args.opt_enum("on-target-error", &ON_ERROR)?.unwrap_or_default();
        let auto_finalize = args.opt_bool("auto-finalize")?.unwrap_or(true);
        let auto_dismiss = args.opt_bool("auto-dismiss")?.unwrap_or(true);
        let filter_node_name = args.opt_str("filter-node-name")?.map(str::to_owned);
        let discard_source = since_9 && args.opt_bool("discard-source")?.unwrap_or(false);
        let mut options = BackupOptions {
            job_id,
            sync,
            bitmap,
            bitmap_mode,
            compress,
            on_source_error,
            on_target_error,
            speed,
            auto_finalize,
            auto_dismiss,
            filter_node_name,
            discard_source,
            use_copy_range: false,
            max_workers: 64,
            max_chunk: 0,
            min_cluster_size: 0,
        };
        if let Some(perf) = args.opt_object("x-perf")? {
            options.use_copy_range = perf.opt_bool("use-copy-range")?.unwrap_or(false);
            options.max_workers = perf.opt_int("max-workers")?.unwrap_or(64);
            options.max_chunk = perf.opt_int("max-chunk")?.unwrap_or(0);
            if since_9 {
                options.min_cluster_size = perf.opt_size("min-cluster-size")?.unwrap_or(0);
            }
            perf.finish()?;
        }
        let target = args.str("target")?.to_owned();
        let drive = if is_drive {
            let format = args.opt_str("format")?.map(str::to_owned);
            let existing = args.opt_enum("mode", &[("existing", true), ("absolute-paths", false)])?.unwrap_or(false);
            Some(DriveArgs { format, existing })
        } else {
            None
        };
        args.finish()?;
        Ok(BackupArgs { device, target, options, drive })
    }
}

impl Machine {
    /// Checks everything and makes the job; the source stays drained until
    /// [`Machine::backup_clean`], also after a failure.
    pub(super) async fn backup_prepare(
        &self,
        args: &BackupArgs,
        txn: Option<Rc<JobTxn>>,
    ) -> (Option<BackupAction>, Result<(), QmpError>) {
        let block = &self.block;
        let source = match block.lookup(Some(&args.device), Some(&args.device)) {
            Ok(source) => source,
            Err(reason) => return (None, Err(reason.into())),
        };
        let mut options = args.options.clone();
        let target = match &args.drive {
            None => match block.lookup(Some(&args.target), Some(&args.target)) {
                Ok(target) => match block.drained_begin_unheld(source.id).await.and(block.still_there(target.id)) {
                    Ok(()) => target,
                    Err(gone) => return (None, Err(gone.into())),
                },
                Err(reason) => return (None, Err(reason.into())),
            },
            Some(drive) => {
                if let Err(gone) = block.drained_begin_unheld(source.id).await {
                    return (None, Err(gone.into()));
                }
                match self.make_drive_target(&source, &args.target, drive, &mut options).await {
                    Ok(target) => target,
                    Err(error) => return (Some(BackupAction { source, job: None }), Err(error)),
                }
            }
        };
        let made = create_backup(&self.jobs, &source, &target, txn, &options).await;
        if args.drive.is_some() {
            // From here on the job's edges own the target.
            block.unref(target.id).await;
        }
        match made {
            Ok(job) => (Some(BackupAction { source, job: Some(job) }), Ok(())),
            Err(reason) => (Some(BackupAction { source, job: None }), Err(reason.into())),
        }
    }

    /// Starts the job.
    pub(super) fn backup_commit(&self, action: &BackupAction) {
        if let Some(job) = &action.job {
            start_backup(job);
        }
    }

    /// Undoes what prepare has done.
    pub(super) async fn backup_abort(&self, action: &BackupAction) {
        if let Some(job) = &action.job {
            job.cancel().await;
        }
    }

    /// Lets the source go on.
    pub(super) fn backup_clean(&self, action: &BackupAction) {
        self.block.drained_end(action.source.id);
    }

    /// drive-backup's target: created unless it exists, then opened (`drive_backup_prepare`).
    async fn make_drive_target(
        &self,
        source: &Rc<Node>,
        filename: &str,
        drive: &DriveArgs,
        options: &mut BackupOptions,
    ) -> Result<Rc<Node>, QmpError> {
        let block = &self.block;
        if !Machine::has_driver(source) {
            return Err("Device has no medium".into());
        }
        block.check_op_blocker(source)?;
        let below = block.node(block.skip_filters(source.id));
        let backing = below.backing();
        if options.sync == SyncMode::Top && backing.is_none() {
            options.sync = SyncMode::Full;
        }
        let format = match (&drive.format, drive.existing) {
            (Some(format), _) => Some(format.clone()),
            (None, true) => None,
            (None, false) => source.driver_name().map(str::to_owned),
        };
        let backing = match options.sync {
            SyncMode::None => Some(source.clone()),
            SyncMode::Top => backing.map(|id| block.node(id)),
            _ => None,
        };
        if !drive.existing {
            let format = format.as_deref().unwrap_or("raw");
            self.create_target(filename, format, self.block.length(source), backing.as_deref()).await?;
        }
        let mut open = block.options_for(filename, format.as_deref())?;
        open.common = CommonOptions {
            discard_unmap: Some(true),
            detect_zeroes: DetectZeroes::Unmap,
            read_only: Some(false),
            ..CommonOptions::default()
        };
        let shared = options.sync != SyncMode::None || share_backing(&mut open, source);
        let target = block.open(&open).await?;
        if shared {
            return Ok(target);
        }
        let driver = target.driver_name().unwrap_or_default();
        let refusal = format!("Driver '{driver}' of node '{}' does not support backing files", target.name);
        block.unref(target.id).await;
        Err(refusal.into())
    }

    async fn create_target(
        &self,
        filename: &str,
        format: &str,
        size: u64,
        backing: Option<&Node>,
    ) -> Result<(), QmpError> {
        let block: &Rc<Block> = &self.block;
        let backing = backing.map(|node| {
            let format = node.driver_name().unwrap_or("raw").to_owned();
            (block.filename(node.id), format)
        });
        // A protocol makes files as well as `raw` does; without `format` the target gets the source's driver.
        if !matches!(format, "qcow2" | "raw" | "file") {
            return Err(unknown_format(format));
        }
        if format != "qcow2" && backing.is_some() {
            return Err(format!("Backing file not supported for file format '{format}'").into());
        }
        block.print(formatting_line(filename, format, size, backing.as_ref()));
        let (backing_file, backing_format) = backing.unzip();
        let options = Qcow2CreateOptions { size, backing_file, backing_format, ..Qcow2CreateOptions::default() };
        let (block_of_job, filename, is_qcow2) = (block.clone(), filename.to_owned(), format == "qcow2");
        let made = async move { crate::job::create_image(&block_of_job, &filename, is_qcow2, &options).await };
        block.sim.run_coroutine("create image", made).await.map_err(QmpError::from)
    }
}

/// A fleecing target reads from the source node itself, not from its file. False: its format has no backing files.
fn share_backing(open: &mut OpenOptions, source: &Node) -> bool {
    use crate::block::open::{BackingRef, ChildRef, DriverOptions};
    match &mut open.driver {
        DriverOptions::Qcow2 { backing, .. } => {
            *backing = BackingRef::Given(ChildRef::Name(source.name.to_string()));
            true
        }
        _ => false,
    }
}

/// What creating an image says on QEMU's standard output (`bdrv_img_create`).
pub(super) fn formatting_line(filename: &str, format: &str, size: u64, backing: Option<&(String, String)>) -> String {
    let mut line = format!("Formatting '{filename}', fmt={format}");
    if format == "qcow2" {
        line.push_str(" cluster_size=65536 extended_l2=off compression_type=zlib");
    }
    line.push_str(&format!(" size={size}"));
    if let Some((file, format)) = backing {
        // As in an option's value, a comma is written twice.
        let file = file.replace(',', ",,");
        line.push_str(&format!(" backing_file={file} backing_fmt={format}"));
    }
    if format == "qcow2" {
        line.push_str(" lazy_refcounts=off refcount_bits=16");
    }
    line.push('\n');
    line
}
