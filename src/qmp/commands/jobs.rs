//! Job control: the job-* and block-job-* families, and the job queries (`job-qmp.c`, `blockdev.c`).

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::Preallocation;
use crate::block::qcow2::Qcow2CreateOptions;
use crate::job::{CreateOptions, IoStatus, Job, JobKind, start_create};
use crate::qmp::args::Args;
use crate::qmp::error::{ErrorClass, QmpError, QmpResult};
use crate::qmp::machine::Machine;

use super::blockdev::is_driver;

/// `JobType` of QAPI.
const JOB_TYPES: [(&str, &str); 9] = [
    ("commit", "commit"),
    ("stream", "stream"),
    ("mirror", "mirror"),
    ("backup", "backup"),
    ("create", "create"),
    ("amend", "amend"),
    ("snapshot-load", "snapshot-load"),
    ("snapshot-save", "snapshot-save"),
    ("snapshot-delete", "snapshot-delete"),
];

impl Machine {
    fn find_job(&self, id: &str) -> Result<Rc<Job>, QmpError> {
        self.jobs.find(id).ok_or_else(|| "Job not found".into())
    }

    fn find_block_job(&self, id: &str) -> Result<Rc<Job>, QmpError> {
        let job = self.jobs.find(id).filter(|job| job.kind != JobKind::Create);
        job.ok_or_else(|| QmpError::new(ErrorClass::DeviceNotActive, format!("Block job '{id}' not found")))
    }

    /// job-pause, -resume, -cancel, -complete, -finalize and -dismiss (`job-qmp.c`).
    pub(in crate::qmp) async fn job_command(&self, command: &str, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let id = args.str("id")?;
        args.finish()?;
        let job = self.find_job(id)?;
        match command {
            "job-pause" => job.user_pause()?,
            "job-resume" => job.user_resume()?,
            "job-cancel" => job.user_cancel().await?,
            "job-complete" => job.user_complete()?,
            "job-finalize" => job.user_finalize().await?,
            _ => job.user_dismiss().await?,
        }
        Ok(json!({}))
    }

    /// block-job-pause, -resume, -cancel, -complete, -finalize, -dismiss, -set-speed and -change (`blockdev.c`).
    pub(in crate::qmp) async fn block_job_command(&self, command: &str, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        match command {
            "block-job-set-speed" => {
                let (device, speed) = (args.str("device")?, args.int("speed")?);
                args.finish()?;
                self.find_block_job(device)?.set_speed(speed)?;
            }
            "block-job-cancel" => {
                let (device, force) = (args.str("device")?, args.opt_bool("force")?.unwrap_or(false));
                args.finish()?;
                self.find_block_job(device)?.block_job_cancel(force).await?;
            }
            "block-job-change" => {
                let id = args.str("id")?;
                if args.enumeration("type", &JOB_TYPES)? == "mirror" {
                    args.enumeration("copy-mode", &[("background", ()), ("write-blocking", ())])?;
                }
                args.finish()?;
                self.find_block_job(id)?.user_change()?;
            }
            "block-job-finalize" | "block-job-dismiss" => {
                let id = args.str("id")?;
                args.finish()?;
                let job = self.find_block_job(id)?;
                if command.ends_with("finalize") { job.user_finalize().await? } else { job.user_dismiss().await? }
            }
            _ => {
                let device = args.str("device")?;
                args.finish()?;
                let job = self.find_block_job(device)?;
                match command {
                    "block-job-pause" => job.user_pause()?,
                    "block-job-resume" => job.user_resume()?,
                    _ => job.user_complete()?,
                }
            }
        }
        Ok(json!({}))
    }

    /// query-jobs (`job-qmp.c`).
    pub(in crate::qmp) fn query_jobs(&self) -> QmpResult {
        let jobs = self.jobs.all();
        Ok(jobs
            .iter()
            .map(|job| {
                let mut info = json!({
                    "id": &*job.id,
                    "type": job.kind.name(),
                    "status": job.status().name(),
                    "current-progress": job.progress.current.get(),
                    "total-progress": job.progress.total.get(),
                });
                if let Some(error) = job.error() {
                    info["error"] = error.into();
                }
                info
            })
            .collect())
    }

    /// query-block-jobs (`qmp_query_block_jobs` in `blockdev.c`).
    pub(in crate::qmp) fn query_block_jobs(&self) -> QmpResult {
        let jobs = self.jobs.all();
        Ok(jobs.iter().filter(|job| job.kind != JobKind::Create).map(|job| block_job_info(job)).collect())
    }

    /// blockdev-create (`qmp_blockdev_create` in `block/create.c`).
    pub(in crate::qmp) fn blockdev_create(&self, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let job_id = args.str("job-id")?;
        let options = args.object("options")?;
        let driver = options.str("driver")?;
        let create = match driver {
            "file" => {
                let (filename, size) = (options.str("filename")?.to_owned(), options.size("size")?);
                let preallocation = options.opt_enum("preallocation", &preallocation_modes())?.unwrap_or_default();
                options.opt_bool("nocow")?;
                options.opt_size("extent-size-hint")?;
                CreateOptions::File { filename, size, preallocation }
            }
            "qcow2" => self.parse_qcow2_create(&options)?,
            "luks" | "nfs" | "parallels" | "qcow" | "qed" | "rbd" | "ssh" | "vdi" | "vhdx" | "vmdk" | "vpc" => {
                return Err(format!("not modelled: blockdev-create of '{driver}'; there are file and qcow2").into());
            }
            other if is_driver(other) => {
                options.finish()?;
                args.finish()?;
                return Err("Driver does not support blockdev-create".into());
            }
            other => return Err(options.bad_value("driver", other)),
        };
        options.finish()?;
        args.finish()?;
        start_create(&self.jobs, job_id, create)?;
        Ok(json!({}))
    }
}

/// `PreallocMode` of QAPI.
fn preallocation_modes() -> [(&'static str, Preallocation); 4] {
    Preallocation::ALL.map(|mode| (mode.name(), mode))
}

fn block_job_info(job: &Job) -> Value {
    let io_status = match job.io_status() {
        IoStatus::Ok => "ok",
        IoStatus::Failed => "failed",
        IoStatus::Nospace => "nospace",
    };
    let mut info = json!({
        "type": job.kind.name(),
        "device": &*job.id,
        "len": job.progress.total.get(),
        "offset": job.progress.current.get(),
        "busy": job.is_busy(),
        "paused": job.should_pause(),
        "speed": job.speed(),
        "io-status": io_status,
        "ready": false,
        "status": job.status().name(),
        "auto-finalize": job.auto_finalize,
        "auto-dismiss": job.auto_dismiss,
    });
    if let Some(error) = job.block_job_error() {
        info["error"] = error.into();
    }
    info
}

impl Machine {
    fn parse_qcow2_create(&self, options: &Args<'_>) -> Result<CreateOptions, QmpError> {
        let file = self.parse_child(options, "file")?;
        if options.has("encrypt") {
            return Err("not modelled: option 'encrypt' of blockdev-create".into());
        }
        let data_file = match options.any("data-file") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err("not modelled: blockdev-create with an inline 'data-file'".into()),
        };
        let data_file_raw = options.opt_bool("data-file-raw")?.unwrap_or(false);
        let extended_l2 = options.opt_bool("extended-l2")?.unwrap_or(false);
        let size = options.size("size")?;
        let version = options.opt_enum("version", &[("v2", 2), ("v3", 3)])?.unwrap_or(3);
        let backing_file = options.opt_str("backing-file")?.map(str::to_owned);
        let backing_format = options.opt_str("backing-fmt")?.map(str::to_owned);
        if let Some(format) = backing_format.as_deref().filter(|format| !is_driver(format)) {
            return Err(options.bad_value("backing-fmt", format));
        }
        let cluster_size = options.opt_size("cluster-size")?;
        let preallocation = options.opt_enum("preallocation", &preallocation_modes())?.unwrap_or_default();
        let lazy_refcounts = options.opt_bool("lazy-refcounts")?.unwrap_or(false);
        let refcount_bits = options.opt_int("refcount-bits")?;
        let zstd = options.opt_enum("compression-type", &[("zlib", false), ("zstd", true)])?.unwrap_or(false);
        let options = Qcow2CreateOptions {
            size,
            version,
            backing_file,
            backing_format,
            cluster_size: cluster_size.unwrap_or(65536),
            preallocation,
            lazy_refcounts,
            refcount_bits: refcount_bits.map_or(16, i64::unsigned_abs),
            extended_l2,
            zstd,
        };
        Ok(CreateOptions::Qcow2 { file, data_file, data_file_raw, options })
    }
}
