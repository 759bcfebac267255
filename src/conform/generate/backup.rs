//! One backup: its arguments, its start, how a scenario follows it to its end, and what that does to the bitmap.
//!
//! Must never look at a running job that is neither held by its speed limit nor stopped: what it shows then
//! depends on the host.

use super::disks::Target;
use super::guest::Mix;
use super::world::{World, command_step};
use super::yaml::{Args, Procedure, Step, args};

/// The arguments of a backup.
#[derive(Clone, Debug)]
pub(super) struct Backup {
    /// The job.
    pub(super) job: String,
    /// The node that is backed up.
    pub(super) device: String,
    /// The node that is written.
    pub(super) target: String,
    /// What is copied.
    pub(super) sync: &'static str,
    /// The bitmap.
    pub(super) bitmap: Option<String>,
    /// What becomes of it.
    pub(super) mode: Option<&'static str>,
    /// Whether clusters are compressed.
    pub(super) compress: bool,
    /// What an error of the source does.
    pub(super) on_source_error: Option<&'static str>,
    /// What an error of the target does.
    pub(super) on_target_error: Option<&'static str>,
    /// Bytes per second.
    pub(super) speed: Option<u64>,
    /// Whether the job ends by itself.
    pub(super) auto_finalize: bool,
    /// Whether the job goes by itself.
    pub(super) auto_dismiss: bool,
    /// The name of the filter.
    pub(super) filter: Option<String>,
    /// Requests at once.
    pub(super) workers: Option<u64>,
    /// Bytes of a request.
    pub(super) chunk: Option<u64>,
    /// Whether the host copies.
    pub(super) copy_range: Option<bool>,
}

impl Backup {
    /// A full backup with one worker.
    pub(super) fn new(job: String, device: &str, target: &str) -> Backup {
        Backup {
            job,
            device: device.to_string(),
            target: target.to_string(),
            sync: "full",
            bitmap: None,
            mode: None,
            compress: false,
            on_source_error: None,
            on_target_error: None,
            speed: None,
            auto_finalize: true,
            auto_dismiss: true,
            filter: None,
            workers: Some(1),
            chunk: None,
            copy_range: None,
        }
    }

    /// The arguments as they are sent.
    pub(super) fn arguments(&self) -> Args {
        let perf = args().maybe("max-workers", self.workers).maybe("max-chunk", self.chunk);
        let perf = perf.maybe("use-copy-range", self.copy_range);
        args()
            .set("job-id", &self.job)
            .set("device", &self.device)
            .set("target", &self.target)
            .set("sync", self.sync)
            .maybe("bitmap", self.bitmap.as_ref())
            .maybe("bitmap-mode", self.mode)
            .maybe("compress", self.compress.then_some(true))
            .maybe("on-source-error", self.on_source_error)
            .maybe("on-target-error", self.on_target_error)
            .maybe("speed", self.speed)
            .maybe("auto-finalize", (!self.auto_finalize).then_some(false))
            .maybe("auto-dismiss", (!self.auto_dismiss).then_some(false))
            .maybe("filter-node-name", self.filter.as_ref())
            .maybe("x-perf", (!perf.is_empty()).then_some(perf))
    }

    /// The last state that the job is in.
    pub(super) fn last_state(&self) -> &'static str {
        if self.auto_dismiss { "null" } else { "concluded" }
    }

    /// The step that follows the job to its end.
    pub(super) fn run_job(&self) -> Step {
        Step::new("run-job", &self.job).with_if(!self.auto_finalize, "auto-finalize", false).with_if(
            self.auto_dismiss,
            "auto-dismiss",
            true,
        )
    }
}

/// What a job has done to the disk's bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All was copied.
    Success,
    /// It was cancelled when all was copied.
    Cancelled,
    /// It failed, nobody knows where.
    Failed,
}

impl World {
    /// A full backup of `disk` to `target` whose other arguments are left to chance.
    pub(super) fn backup(&mut self, disk: usize, target: &Target) -> Backup {
        let mut backup = Backup::new(self.new_job(), &self.disks[disk].node.clone(), &target.node);
        backup.filter = self.filter_name(disk);
        backup.auto_finalize = !self.one_in(3);
        backup.auto_dismiss = !self.one_in(4);
        if self.one_in(8) {
            backup.workers = self.pick(&[None, Some(2), Some(64)]);
        }
        if self.one_in(3) {
            let chunks = [65536, 65536, 131_072, 262_144, 1 << 20, 2 << 20, 4 << 20];
            let cluster = target.cluster;
            let fitting: Vec<u64> = chunks.into_iter().filter(|chunk| *chunk >= cluster).collect();
            backup.chunk = Some(self.pick(&fitting));
        }
        let copy_range = self.coin();
        backup.copy_range = self.maybe(10, copy_range);
        backup
    }

    /// A name for the filter of a backup of `disk`.
    pub(super) fn filter_name(&mut self, disk: usize) -> Option<String> {
        let own = format!("{}-top", self.disks[disk].node);
        self.weighted(&[(3, Some("backup-top".to_string())), (3, Some(own)), (1, None)])
    }

    /// Sends `blockdev-backup`.
    pub(super) fn start(&mut self, backup: &Backup) {
        self.execute("blockdev-backup", backup.arguments());
    }

    /// Makes `backup` one that copies a single chunk and then waits for its speed limit.
    pub(super) fn hold(&mut self, backup: &mut Backup) {
        backup.speed = Some(self.weighted(&[(6, 1), (1, 100), (1, 4096)]));
        backup.workers = Some(1);
        backup.chunk = Some(backup.chunk.unwrap_or(65536).clamp(65536, 2 << 20));
    }

    /// Waits until a job that is held by its speed limit has copied its one chunk.
    pub(super) fn at_work(&mut self, job: &str) {
        self.started(job);
        self.sleep(200);
    }

    /// Takes the events of a job's start.
    pub(super) fn started(&mut self, job: &str) {
        self.call(at_work(), args().set("job", job));
    }

    /// Follows `backup` to its end; while it is pending, things may happen at its filter. Tells how it ends.
    pub(super) fn follow(&mut self, disk: usize, backup: &Backup) -> End {
        let before = self.owned(disk, backup);
        let mut step = backup.run_job();
        let mut end = End::Success;
        if !backup.auto_finalize {
            if self.one_in(4) {
                end = End::Cancelled;
                step = step.with("cancel", true);
            }
            let pending = self.inside(|world| world.while_pending(disk, backup));
            step = step.inside("pre-finalize", pending);
        }
        self.step(step);
        self.settle(disk, backup, before, end);
        end
    }

    /// What happens while a job is pending.
    fn while_pending(&mut self, disk: usize, backup: &Backup) {
        if let Some(filter) = &backup.filter
            && !self.one_in(4)
        {
            self.guest(disk, filter, 3, Mix::All);
        }
        if self.one_in(4) {
            self.query_jobs();
        }
        if self.one_in(4) {
            self.query_bitmaps();
        }
        if self.one_in(8) {
            self.touch_busy(disk, backup);
        }
    }

    /// A command that a running backup forbids.
    fn touch_busy(&mut self, disk: usize, backup: &Backup) {
        let node = self.disks[disk].node.clone();
        let bitmap = |name: &String| args().set("node", &node).set("name", name);
        match (&backup.bitmap, self.rng.below(5)) {
            (Some(name), 0) => self.execute("block-dirty-bitmap-clear", bitmap(name)),
            (Some(name), 1) => self.execute("block-dirty-bitmap-remove", bitmap(name)),
            (Some(name), 2) => self.execute("block-dirty-bitmap-enable", bitmap(name)),
            (_, 3) => self.execute("blockdev-del", args().set("node-name", &backup.target)),
            _ => self.execute("blockdev-del", args().set("node-name", &node)),
        }
    }

    /// Takes the bits of a backup's bitmap away, as its successor has none; what they were.
    pub(super) fn owned(&mut self, disk: usize, backup: &Backup) -> Vec<bool> {
        let name = backup.bitmap.clone().unwrap_or_default();
        let bitmap = self.disks[disk].bitmap_mut(&name);
        bitmap.map(|bitmap| bitmap.clear()).unwrap_or_default()
    }

    /// Does to a backup's bitmap what its end does.
    pub(super) fn settle(&mut self, disk: usize, backup: &Backup, before: Vec<bool>, end: End) {
        let name = backup.bitmap.clone().unwrap_or_default();
        let Some(bitmap) = self.disks[disk].bitmap_mut(&name) else {
            return;
        };
        let mode = backup.mode.unwrap_or("on-success");
        match (mode, end) {
            ("always", End::Failed) => bitmap.known = false,
            ("always", _) | ("on-success", End::Success) => {}
            _ => bitmap.restore(&before),
        }
    }
}

/// The procedure that takes the events of a job's start.
fn at_work() -> Procedure {
    let wait = |status: &str| {
        let event = args().set("id", "{{ job }}").set("status", status);
        Step::new("wait-event", "JOB_STATUS_CHANGE").with("match", event).with("log", "none")
    };
    Procedure { name: "at-work", params: vec!["job"], steps: vec![wait("running"), wait("paused"), wait("running")] }
}

/// `command` for the job `id`, with the argument that it wants.
pub(super) fn job_command(command: &str, id: &str) -> Step {
    let key = match command {
        "block-job-finalize" | "block-job-dismiss" => "id",
        name if name.starts_with("job-") => "id",
        _ => "device",
    };
    command_step(command, args().set(key, id))
}
