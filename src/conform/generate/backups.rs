//! The family `backups`: every sync and bitmap mode, chains of incremental backups, all kinds of targets, and what
//! goes wrong around them.
//!
//! Must never start a backup that a scenario then waits for in vain: what is refused stands in phases that expect it.

use super::backup::{Backup, End, job_command};
use super::backups_apart as apart;
use super::disks::{Target, Wish, qemu_img};
use super::guest::Mix;
use super::model::{Disk, Format};
use super::pick::size_value;
use super::world::{Check, Level, World};
use super::yaml::{Script, Step, args};

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    if world.one_in(8) {
        return super::tables::backups(world, name, description);
    }
    world.vm("launch");
    let limit = if world.one_in(3) { 64 << 20 } else { 8 << 20 };
    world.new_disk(Wish { limit, any_format: world.level > Level::Easy, backing: true });
    let (phases, all): (u64, &[Phase]) = match world.level {
        Level::Easy => (1, &EASY),
        Level::Medium => (world.rng.between(2, 3), &ALL),
        Level::Hard => (world.rng.between(3, 5), &ALL),
    };
    for phase in world.some_of(all, phases as usize) {
        phase(&mut world);
    }
    finish(&mut world);
    world.script(name, description)
}

type Phase = fn(&mut World);

const EASY: [Phase; 4] = [bitmap_backups, chain, plain, apart::wrong_arguments];

const ALL: [Phase; 14] = [
    bitmap_backups,
    bitmap_backups,
    chain,
    plain,
    paused_and_resumed,
    cancelled_while_running,
    copy_before_write_only,
    compressed,
    apart::wrong_arguments,
    apart::wrong_targets,
    apart::already_in_use,
    apart::drive_backup,
    apart::two_in_a_transaction,
    super::fleecing::around_a_backup,
];

/// Ends the machine and looks at what the backups hold.
fn finish(world: &mut World) {
    let images: Vec<String> = world.disks.iter().filter_map(|disk| disk.image.clone()).collect();
    let checks = world.checks();
    world.vm("shutdown");
    world.headline("Verification");
    checks.into_iter().for_each(|step| world.step(step));
    if let (true, Some(image)) = (world.one_in(8), images.first()) {
        let command = world.pick(&["check", "map", "info"]);
        world.step(qemu_img(command, image));
    }
}

impl World {
    /// Remembers to compare a full backup of `disk`, taken at its `version`, when the machine is down.
    pub(super) fn verify_full(&mut self, disk: usize, backup: &Backup, target: &Target, version: u64) {
        let (Some(image), Some(source)) = (target.image.clone(), self.disks[disk].image.clone()) else {
            return;
        };
        let whole = backup.sync == "full" || !self.disks[disk].backed;
        let compare = Step::new("compare", vec![image.clone(), source]);
        self.verification.push(Check::compare(compare, disk, whole.then_some(version)));
        if backup.workers == Some(1) && target.format == Format::Qcow2 && self.one_in(4) {
            let command = self.pick(&["check", "check", "map"]);
            self.verification.push(Check::plain(qemu_img(command, &image)));
        }
    }

    /// A bitmap of `disk` that records.
    pub(super) fn recording_bitmap(&mut self, disk: usize) -> Option<String> {
        let usable = |disk: &Disk| {
            let fine = disk.bitmaps.iter().filter(|bitmap| bitmap.enabled && !bitmap.busy && !bitmap.inconsistent);
            fine.map(|bitmap| bitmap.name.clone()).collect::<Vec<_>>()
        };
        let names = usable(&self.disks[disk]);
        if names.is_empty() || self.one_in(3) {
            return self.add_bitmap(disk, true).or_else(|| names.first().cloned());
        }
        Some(self.pick(&names))
    }
}

/// Backups with a bitmap, one after the other, in all modes.
fn bitmap_backups(world: &mut World) {
    world.headline("Bitmap backup");
    let Some(bitmap) = world.recording_bitmap(0) else {
        return;
    };
    world.guest_at(0, 4, Mix::Writes);
    for _ in 0..world.rng.between(1, 3) {
        let size = world.disks[0].size;
        let target = world.target(size, false);
        let mut backup = world.backup(0, &target);
        backup.bitmap = Some(bitmap.clone());
        backup.sync = world.weighted(&[(4, "bitmap"), (3, "incremental"), (2, "full"), (2, "top")]);
        backup.mode = match backup.sync {
            "incremental" => world.maybe(3, "on-success"),
            "bitmap" => Some(world.pick(&["on-success", "never", "always"])),
            _ => Some(world.pick(&["on-success", "always"])),
        };
        let version = world.disks[0].changes;
        world.start(&backup);
        let end = world.follow(0, &backup);
        if end == End::Success && matches!(backup.sync, "full" | "top") {
            world.verify_full(0, &backup, &target, version);
        }
        if world.one_in(4) {
            world.step(Step::new("query-events", args()).with("match", args().set("device", &backup.job)));
        }
        world.expect_bitmap(0, &bitmap);
        if world.coin() {
            world.guest_at(0, 2, Mix::Writes);
            world.expect_bitmap(0, &bitmap);
        }
    }
}

/// A full backup and incremental ones on top of it, compared as a chain.
fn chain(world: &mut World) {
    world.headline("Chain");
    let Some(bitmap) = world.recording_bitmap(0) else {
        return;
    };
    let size = world.disks[0].size;
    let linked = world.coin();
    let mut below: Option<Target> = None;
    for link in 0..world.rng.between(2, 4) {
        let node = world.new_target();
        let target = match &below {
            Some(base) if linked => backed_target(world, node, base),
            _ => world.qcow2_target(node, size, Some(65536)),
        };
        let mut backup = world.backup(0, &target);
        (backup.auto_finalize, backup.auto_dismiss) = (true, true);
        backup.bitmap = Some(bitmap.clone());
        (backup.sync, backup.mode) = match link {
            0 => ("full", Some("on-success")),
            _ => ("incremental", None),
        };
        let version = world.disks[0].changes;
        world.start(&backup);
        world.follow(0, &backup);
        world.expect_bitmap(0, &bitmap);
        if linked || world.coin() {
            world.remove_target(&target);
        }
        verify_link(world, &target, below.as_ref().filter(|_| !linked), version);
        below = Some(target);
        if !world.one_in(4) {
            world.guest_at(0, 3, Mix::Writes);
        }
    }
}

/// A target on top of the one before, as incremental backups like it.
fn backed_target(world: &mut World, node: String, base: &Target) -> Target {
    let image = format!("{node}-img");
    let backing = base.image.clone().unwrap_or_default();
    world.step(Step::new("image", &image).with("cluster-size", size_value(65536)).with("backing", backing));
    let file_node = world.open(&node, Format::Qcow2, &image, false);
    Target { node, file_node, image: Some(image), format: Format::Qcow2, cluster: 65536 }
}

/// Remembers to compare a link of a chain, put upon the one before, with the source.
fn verify_link(world: &mut World, target: &Target, backing: Option<&Target>, version: u64) {
    let (Some(image), Some(source)) = (target.image.clone(), world.disks[0].image.clone()) else {
        return;
    };
    let below = backing.and_then(|target| target.image.clone());
    let step = Step::new("compare", vec![image, source]);
    let step = match below {
        Some(below) => step.with("backing", below),
        None => step,
    };
    world.verification.push(Check::compare(step, 0, Some(version)));
}

/// Full and top backups without a bitmap.
fn plain(world: &mut World) {
    world.headline("Whole disk");
    for _ in 0..world.rng.between(1, 2) {
        let size = world.disks[0].size;
        let target = world.target(size, false);
        let mut backup = world.backup(0, &target);
        backup.sync = world.weighted(&[(3, "full"), (2, "top")]);
        let version = world.disks[0].changes;
        world.start(&backup);
        if world.follow(0, &backup) == End::Success {
            world.verify_full(0, &backup, &target, version);
        }
        if world.one_in(3) {
            world.guest_at(0, 2, Mix::Writes);
        }
    }
}

/// A backup that is held by its speed limit, paused, resumed, and let go.
fn paused_and_resumed(world: &mut World) {
    world.headline("Paused and resumed");
    let size = world.disks[0].size;
    let Some(target) = world.slow_target(size) else { return };
    let mut backup = world.backup(0, &target);
    backup.chunk = Some(65536.max(target.cluster));
    world.hold(&mut backup);
    let version = world.disks[0].changes;
    world.start(&backup);
    world.at_work(&backup.job);
    let pause = world.pick(&["job-pause", "block-job-pause"]);
    world.step(job_command(pause, &backup.job));
    let log = world.coin();
    world.wait_status(&backup.job, "paused", log);
    world.query_jobs();
    let let_go = args().set("device", &backup.job).set("speed", 0_u64);
    let before = world.coin();
    if before {
        world.execute("block-job-set-speed", let_go.clone());
    }
    let resume = world.pick(&["job-resume", "block-job-resume"]);
    world.step(job_command(resume, &backup.job));
    if !before {
        world.wait_status(&backup.job, "running", false);
        if world.one_in(4) {
            world.execute("block-job-set-speed", args().set("device", "nojob").set("speed", 0_u64));
        }
        world.execute("block-job-set-speed", let_go);
    }
    if world.follow(0, &backup) == End::Success {
        world.verify_full(0, &backup, &target, version);
    }
}

/// A backup that is held by its speed limit and cancelled.
fn cancelled_while_running(world: &mut World) {
    world.headline("Cancelled while running");
    let size = world.disks[0].size;
    let Some(target) = world.slow_target(size) else { return };
    let mut backup = world.backup(0, &target);
    backup.chunk = Some(65536.max(target.cluster));
    (backup.auto_finalize, backup.auto_dismiss) = (true, true);
    world.hold(&mut backup);
    if let (true, Some(bitmap)) = (world.one_in(3), world.recording_bitmap(0)) {
        backup.bitmap = Some(bitmap);
        backup.mode = Some(world.pick(&["on-success", "always"]));
    }
    let before = world.owned(0, &backup);
    world.start(&backup);
    world.at_work(&backup.job);
    world.query_jobs();
    let cancel = world.pick(&["job-cancel", "block-job-cancel"]);
    world.step(job_command(cancel, &backup.job));
    world.wait_event("BLOCK_JOB_CANCELLED", &backup.job);
    world.wait_status(&backup.job, "null", false);
    world.query_jobs();
    world.settle(0, &backup, before, End::Failed);
    if let Some(bitmap) = &backup.bitmap {
        world.expect_bitmap(0, bitmap);
    }
}

/// A job that copies only what the guest is about to overwrite.
fn copy_before_write_only(world: &mut World) {
    world.headline("Copy before write only");
    let size = world.disks[0].size;
    let target = world.target(size, false);
    let mut backup = world.backup(0, &target);
    backup.sync = "none";
    backup.filter = Some("backup-top".to_string());
    (backup.auto_finalize, backup.auto_dismiss) = (true, true);
    world.start(&backup);
    world.guest(0, "backup-top", 3, Mix::All);
    world.query_jobs();
    if world.coin() {
        world.guest(0, "backup-top", 3, Mix::All);
        world.query_bitmaps();
    }
    let cancel = world.pick(&["job-cancel", "block-job-cancel"]);
    world.step(job_command(cancel, &backup.job));
    world.step(backup.run_job());
    if let (Some(image), Format::Qcow2, true) = (&target.image, target.format, world.one_in(3)) {
        world.verification.push(Check::plain(qemu_img("check", image)));
    }
}

/// A backup whose clusters are compressed.
fn compressed(world: &mut World) {
    world.headline("Compressed");
    let size = world.disks[0].size;
    let node = world.new_target();
    let cluster = world.cluster_size(size);
    let target = world.qcow2_target(node, size, cluster);
    let mut backup = world.backup(0, &target);
    backup.compress = true;
    backup.workers = Some(1);
    backup.sync = world.weighted(&[(3, "full"), (1, "top")]);
    let version = world.disks[0].changes;
    world.start(&backup);
    if world.follow(0, &backup) == End::Success {
        world.verify_full(0, &backup, &target, version);
    }
}
