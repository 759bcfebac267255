//! The family `faults`: blkdebug beneath sources and targets, every error policy, resuming and recovering.
//!
//! Must never let a policy of `ignore` meet an error that does not go away: real QEMU would report it for ever.

use super::backup::{Backup, End, job_command};
use super::disks::{Target, Wish, file, image_step, qemu_img};
use super::faults_apart as apart;
use super::guest::Mix;
use super::model::{Bitmap, Disk, Format};
use super::pick::BITMAPS;
use super::world::{Level, World};
use super::yaml::{Args, Script, Step, args};

const KIB: u64 = 1 << 10;

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    if world.one_in(7) {
        return super::tables::faults(world, name, description);
    }
    world.vm("launch");
    let phases = match world.level {
        Level::Easy => world.rng.between(1, 2),
        Level::Medium => 2,
        Level::Hard => 3,
    };
    for phase in 0..phases {
        if phase > 0 {
            world.vm("shutdown");
            world.vm("launch");
        }
        let run = world.pick(&PHASES);
        run(&mut world);
    }
    world.script(name, description)
}

type Phase = fn(&mut World);

const PHASES: [Phase; 9] = [
    unreadable_source,
    unreadable_source,
    unwritable_target,
    metadata,
    bad_sector,
    apart::copy_before_write_fails,
    apart::guest_fails,
    apart::one_of_two_fails,
    super::fleecing::with_errors,
];

/// What an error does to a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The policy; none: the default.
    pub(super) name: Option<&'static str>,
    /// The error.
    pub(super) errno: u64,
}

impl Policy {
    /// Whether the job stops.
    pub(super) fn stops(self) -> bool {
        match self.name {
            Some("stop") => true,
            Some("enospc" | "auto") => self.errno == 28,
            _ => false,
        }
    }

    /// Whether the job goes on as if nothing had happened.
    pub(super) fn ignores(self) -> bool {
        self.name == Some("ignore")
    }
}

/// A rule that injects an error.
pub(super) fn inject(event: &str, errno: u64) -> Args {
    args().set("event", event).set("errno", errno)
}

/// A rule that changes the state.
fn set_state(event: &str, from: u64) -> Args {
    args().set("event", event).set("state", from).set("new_state", from + 1)
}

impl World {
    /// Any policy with any error.
    pub(super) fn policy(&mut self) -> Policy {
        let names = [None, Some("report"), Some("stop"), Some("stop"), Some("ignore"), Some("enospc"), Some("auto")];
        Policy { name: self.pick(&names), errno: self.pick(&[5, 5, 28, 28, 1, 22]) }
    }

    /// A disk called drive0 on the image `src`, with data in `count` clusters of 64 KiB.
    fn scattered_disk(&mut self, count: usize) -> usize {
        let size = self.pick(&[4 << 20, 8 << 20]);
        let disk = self.disk_of(Wish::qcow2(size), "src", Format::Qcow2, size);
        self.scatter(disk, count);
        disk
    }

    /// Writes to `count` different clusters of 64 KiB.
    fn scatter(&mut self, disk: usize, count: usize) {
        let clusters: Vec<u64> = (0..self.disks[disk].size / (64 * KIB)).collect();
        let mut commands = Vec::new();
        for cluster in self.some_of(&clusters, count) {
            let (within, bytes) = self.pick(&[(0, 65536), (0, 65536), (0, 512), (65024, 512), (61440, 4096)]);
            commands.push(self.write_command(disk, cluster * 64 * KIB + within, bytes));
        }
        let node = self.disks[disk].node.clone();
        self.guest_commands(&node, commands);
    }

    /// Removes the node of `disk` and opens its image again above a blkdebug node with the given rules.
    pub(super) fn reopen_with_rules(&mut self, at: usize, states: Vec<Args>, errors: Vec<Args>) {
        let disk = self.disks[at].clone();
        self.execute("blockdev-del", args().set("node-name", &disk.node));
        if let Some(name) = &disk.file_node {
            self.execute("blockdev-del", args().set("node-name", name));
        }
        let image = disk.image.unwrap_or_default();
        self.add_with_rules(&disk.node, disk.format, &image, states, errors);
        (self.disks[at].unmap, self.disks[at].file_node) = (false, None);
    }

    /// Opens `image` as `node` above a blkdebug node with the given rules.
    pub(super) fn add_with_rules(
        &mut self,
        node: &str,
        format: Format,
        image: &str,
        states: Vec<Args>,
        errors: Vec<Args>,
    ) {
        let rules = args().set("driver", "blkdebug").set("image", file(image));
        let rules = rules.maybe("set-state", (!states.is_empty()).then_some(states));
        let rules = rules.maybe("inject-error", (!errors.is_empty()).then_some(errors));
        let arguments = args().set("node-name", node).set("driver", format.driver()).set("file", rules);
        self.execute("blockdev-add", arguments);
    }

    /// Follows a job that an error stops.
    pub(super) fn stopped(&mut self, backup: &Backup) {
        self.started(&backup.job);
        self.stopped_again(backup);
        self.query_jobs();
    }

    /// Waits until an error has stopped the job once more.
    pub(super) fn stopped_again(&mut self, backup: &Backup) {
        self.wait_event("BLOCK_JOB_ERROR", &backup.job);
        self.wait_status(&backup.job, "paused", false);
    }

    /// Sends one of two commands for a job.
    pub(super) fn either(&mut self, commands: [&str; 2], job: &str) {
        let command = self.pick(&commands);
        self.step(job_command(command, job));
    }

    /// Cancels a job that an error has stopped.
    pub(super) fn cancel_stopped(&mut self, backup: &Backup) {
        if self.one_in(3) {
            self.step(job_command("block-job-cancel", &backup.job));
        }
        if self.coin() {
            self.step(job_command("job-cancel", &backup.job));
        } else {
            let force = args().set("device", &backup.job).set("force", true);
            self.execute("block-job-cancel", force);
        }
    }

    /// Follows a backup that meets one error to its end; tells how that is.
    pub(super) fn follow_failing(&mut self, disk: usize, backup: &Backup, policy: Policy) -> End {
        let mut end = if policy.ignores() { End::Success } else { End::Failed };
        if policy.stops() {
            self.stopped(backup);
            if let (Some(filter), true) = (&backup.filter, self.one_in(4)) {
                self.guest(disk, filter, 1, Mix::Data);
            }
            if self.one_in(4) {
                self.either(["job-pause", "block-job-pause"], &backup.job);
            }
            if self.one_in(4) {
                self.cancel_stopped(backup);
            } else {
                self.either(["job-resume", "block-job-resume"], &backup.job);
                end = End::Success;
            }
        }
        self.step(backup.run_job());
        end
    }

    /// Looks at what is left of a failed backup.
    pub(super) fn aftermath(&mut self, backup: &Backup) {
        if self.one_in(4) {
            self.step(Step::new("query-events", args()).with("match", args().set("device", &backup.job)));
        }
        if backup.bitmap.is_some() {
            self.query_bitmaps();
        } else if self.one_in(3) {
            self.query_jobs();
        }
    }

    /// A backup after the failed one, to a good target.
    pub(super) fn recovery(&mut self, disk: usize, bitmap: Option<String>) {
        self.headline("Recovery");
        let size = self.disks[disk].size;
        let target = self.target(size, true);
        let mut backup = self.backup(disk, &target);
        (backup.auto_finalize, backup.auto_dismiss) = (true, true);
        let whole = bitmap.is_none();
        if let Some(bitmap) = &bitmap {
            backup.bitmap = Some(bitmap.clone());
            (backup.sync, backup.mode) = ("bitmap", Some(self.pick(&["on-success", "always", "never"])));
        }
        self.start(&backup);
        self.follow(disk, &backup);
        if let Some(bitmap) = &bitmap {
            self.expect_bitmap(disk, bitmap);
        }
        if let (true, Some(image), Some(source)) = (whole, target.image, self.disks[disk].image.clone()) {
            self.vm("shutdown");
            self.step(Step::new("compare", vec![image, source]));
            self.vm("launch");
        }
    }
}

/// The backup's bitmap and modes: chance decides.
fn with_bitmap(world: &mut World, disk: usize, backup: &mut Backup, bitmap: Option<&String>) {
    let Some(name) = bitmap else { return };
    backup.bitmap = Some(name.clone());
    if world.one_in(3) {
        (backup.sync, backup.mode) = ("full", Some(world.pick(&["on-success", "always"])));
    } else {
        (backup.sync, backup.mode) = ("bitmap", Some(world.pick(&["on-success", "always", "never"])));
    }
    if let Some(bitmap) = world.disks[disk].bitmap_mut(name) {
        bitmap.known &= backup.mode != Some("always");
    }
}

/// Adds a bitmap to `disk` and writes to clusters that it then knows as dirty.
fn dirty_bitmap(world: &mut World, disk: usize, clusters: usize) -> String {
    let name = world.pick(&BITMAPS).to_string();
    let granularity = world.granularity().filter(|bytes| *bytes <= 2 << 20);
    let node = world.disks[disk].node.clone();
    let arguments = args().set("node", node).set("name", &name).maybe("granularity", granularity);
    world.execute("block-dirty-bitmap-add", arguments);
    let model = &mut world.disks[disk];
    let bitmap = Bitmap::new(&name, granularity.unwrap_or(model.default_granularity()), model.size);
    model.bitmaps.push(bitmap);
    world.scatter(disk, clusters);
    name
}

/// A backup with one worker that copies a cluster at a time.
pub(super) fn step_by_step(world: &mut World, disk: usize, target: &Target) -> Backup {
    let mut backup = world.backup(disk, target);
    (backup.workers, backup.chunk, backup.copy_range) = (Some(1), Some(65536.max(target.cluster)), None);
    backup
}

/// Some read of the source fails.
fn unreadable_source(world: &mut World) {
    world.headline("The source can't be read");
    let disk = world.scattered_disk(5);
    let policy = world.policy();
    // The read that fails is the first, second or third one; a flush may have to come before.
    let flush = world.one_in(3);
    let passing = world.rng.below(3);
    let mut states = Vec::new();
    if flush {
        states.push(set_state("flush_to_disk", 1));
    }
    let first = 1 + u64::from(flush);
    (0..passing).for_each(|read| states.push(set_state("read_aio", first + read)));
    let state = first + passing;
    let lasting = policy.stops() && world.one_in(4);
    let rule = inject("read_aio", policy.errno).maybe("state", (state > 1).then_some(state));
    let rule = rule.set("once", !lasting).set("immediately", world.coin());
    world.reopen_with_rules(disk, states, vec![rule]);
    let bitmap = if world.coin() { Some(dirty_bitmap(world, disk, 4)) } else { None };
    let node = world.new_target();
    let size = world.disks[disk].size;
    let cluster = world.pick(&[None, Some(65536), Some(4096)]);
    let target = if world.one_in(4) { world.slow_target(8 << 20) } else { None };
    let target = match target {
        Some(target) if size == 8 << 20 => target,
        _ => world.qcow2_target(node, size, cluster),
    };
    let mut backup = step_by_step(world, disk, &target);
    if backup.chunk != Some(65536) {
        backup.chunk = Some(target.cluster);
    }
    with_bitmap(world, disk, &mut backup, bitmap.as_ref());
    backup.on_source_error = policy.name;
    if flush {
        world.scatter(disk, 1);
        world.guest_commands(&world.disks[disk].node.clone(), vec!["flush".to_string()]);
    }
    let before = world.owned(disk, &backup);
    world.start(&backup);
    let end = if lasting { hopeless(world, &backup) } else { world.follow_failing(disk, &backup, policy) };
    world.settle(disk, &backup, before, end);
    world.aftermath(&backup);
    if !lasting && world.one_in(3) {
        world.recovery(disk, bitmap);
    }
}

/// A job that stops on an error which comes again whenever it is resumed.
fn hopeless(world: &mut World, backup: &Backup) -> End {
    world.stopped(backup);
    for _ in 0..world.rng.below(3) {
        world.either(["job-resume", "block-job-resume"], &backup.job);
        world.stopped_again(backup);
    }
    world.cancel_stopped(backup);
    world.step(backup.run_job());
    world.query_jobs();
    End::Failed
}

/// Some write of the target's data fails.
fn unwritable_target(world: &mut World) {
    world.headline("The target can't be written");
    let disk = if world.one_in(4) {
        let disk = world.disk_of(Wish::qcow2(4 << 20), "src", Format::Raw, 4 << 20);
        world.guest_at(disk, 5, Mix::Writes);
        disk
    } else {
        world.scattered_disk(4)
    };
    let bitmap = if world.coin() { Some(dirty_bitmap(world, disk, 4)) } else { None };
    if bitmap.is_none() {
        world.scatter(disk, 4);
    }
    let size = world.disks[disk].size;
    let policy = world.policy();
    let passing = world.rng.below(3);
    let states: Vec<Args> = (0..passing).map(|write| set_state("write_aio", 1 + write)).collect();
    let rule = inject("write_aio", policy.errno).set("once", true);
    let rule = rule.maybe("state", (passing > 0).then_some(1 + passing));
    let cluster = world.pick(&[None, Some(65536), Some(65536), Some(4096), Some(16384)]);
    let target = target_with_rules(world, size, cluster, states, vec![rule]);
    let mut backup = step_by_step(world, disk, &target);
    with_bitmap(world, disk, &mut backup, bitmap.as_ref());
    backup.on_target_error = policy.name;
    let before = world.owned(disk, &backup);
    world.start(&backup);
    let end = world.follow_failing(disk, &backup, policy);
    world.settle(disk, &backup, before, end);
    world.aftermath(&backup);
    if let (true, Some(image)) = (world.one_in(4), &target.image) {
        world.execute("blockdev-del", args().set("node-name", &target.node));
        world.step(qemu_img("check", image));
    }
    if world.one_in(3) {
        world.recovery(disk, bitmap);
    }
}

/// A new qcow2 target above a blkdebug node with the given rules.
pub(super) fn target_with_rules(
    world: &mut World,
    size: u64,
    cluster: Option<u64>,
    states: Vec<Args>,
    errors: Vec<Args>,
) -> Target {
    let node = world.new_target();
    let image = format!("{node}-img");
    world.step(image_step(&image, Format::Qcow2, size, cluster));
    world.add_with_rules(&node, Format::Qcow2, &image, states, errors);
    let cluster = cluster.unwrap_or(65536).max(65536);
    Target { node, file_node: None, image: Some(image), format: Format::Qcow2, cluster }
}

/// Some write of the target's metadata fails; the job may not even notice.
fn metadata(world: &mut World) {
    world.headline("The target's metadata");
    let size = world.pick(&[1 << 20, 4 << 20]);
    let disk = world.disk_of(Wish::qcow2(size), "src", Format::Qcow2, size);
    world.guest_at(disk, 5, Mix::Writes);
    let events = [
        "l2_load",
        "l2_update",
        "l2_alloc_write",
        "l1_update",
        "refblock_load",
        "refblock_alloc",
        "refblock_update_part",
        "cluster_alloc",
        "write_aio",
        "pwritev",
        "pwritev_done",
        "pwritev_zero",
        "flush_to_os",
        "flush_to_disk",
    ];
    let event = world.pick(&events);
    let policy = Policy { name: world.pick(&[None, Some("report"), Some("ignore")]), errno: world.pick(&[5, 28]) };
    let cluster = world.pick(&[None, Some(65536), Some(65536), Some(4096), Some(256 * KIB)]);
    let rule = inject(event, policy.errno).set("once", true);
    let target = target_with_rules(world, size, cluster, Vec::new(), vec![rule]);
    let mut backup = step_by_step(world, disk, &target);
    (backup.chunk, backup.auto_finalize) = (world.pick(&[None, backup.chunk, Some(4 << 20)]), true);
    backup.on_target_error = policy.name;
    world.start(&backup);
    world.step(backup.run_job());
    world.query_jobs();
    let mut commands = vec!["flush".to_string()];
    let other = world.disks.len();
    world.disks.push(Disk::new(&target.node, Format::Qcow2, size));
    let (offset, bytes) = world.place(size);
    let write = world.write_command(other, offset, bytes);
    world.disks.pop();
    let at = world.rng.below(2) as usize;
    commands.insert(at, write);
    world.step(Step::new("qemu-io", &target.node).with("commands", commands).with("output", true));
    world.execute("blockdev-del", args().set("node-name", &target.node));
    if let Some(image) = &target.image {
        world.step(qemu_img("check", image));
    }
    if world.coin() {
        world.recovery(disk, None);
    }
}

/// One sector of the source or the target is bad for good; the blkdebug node stands above the format.
fn bad_sector(world: &mut World) {
    let on_source = world.coin();
    world.headline(if on_source { "A bad sector on the source" } else { "A bad sector on the target" });
    let size = 4 << 20;
    let cluster = world.rng.below(size / (64 * KIB));
    let sector = cluster * 128 + world.rng.below(128);
    let names = [None, Some("report"), Some("stop"), Some("stop"), Some("enospc")];
    let policy = Policy { name: world.pick(&names), errno: world.pick(&[5, 28]) };
    let format = world.pick(&[Format::Qcow2, Format::Qcow2, Format::Raw]);
    let rule = |world: &mut World, side: &'static str| {
        let iotype = world.maybe(2, side);
        let rule = args().set("event", "none").maybe("iotype", iotype).set("sector", sector);
        vec![rule.set("errno", policy.errno)]
    };
    let disk = world.disk_of(Wish::qcow2(size), "src", format, size);
    world.guest_at(disk, 3, Mix::Writes);
    let write = world.write_command(disk, cluster * 64 * KIB, 64 * KIB);
    let format_node = world.disks[disk].node.clone();
    world.guest_commands(&format_node, vec![write]);
    let (device, target);
    if on_source {
        device = "bad-source".to_string();
        let arguments = args().set("node-name", &device).set("driver", "blkdebug").set("image", &format_node);
        let rules = rule(world, "read");
        world.execute("blockdev-add", arguments.set("inject-error", rules));
        target = world.target(size, true);
    } else {
        device = format_node.clone();
        let below = world.target(size, true);
        let arguments = args().set("node-name", "bad-target").set("driver", "blkdebug").set("image", &below.node);
        let rules = rule(world, "write");
        world.execute("blockdev-add", arguments.set("inject-error", rules));
        target = Target { node: "bad-target".to_string(), ..below };
    }
    let mut backup = step_by_step(world, disk, &target);
    backup.device = device;
    if backup.filter.as_deref() != Some("backup-top") {
        backup.filter = None;
    }
    let side = if on_source { &mut backup.on_source_error } else { &mut backup.on_target_error };
    *side = policy.name;
    world.start(&backup);
    if policy.stops() {
        hopeless(world, &backup);
    } else {
        world.step(backup.run_job());
        world.query_jobs();
    }
}
