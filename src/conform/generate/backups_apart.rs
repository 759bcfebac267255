//! Phases of the family `backups` in which something is refused, or which go a way of their own.
//!
//! Must never follow a job that was refused.

use super::backup::{Backup, End, job_command};
use super::disks::{Target, Wish, image_step, path};
use super::guest::Mix;
use super::model::Format;
use super::world::{World, action, transaction};
use super::yaml::{Args, Step, args};

/// Backups with wrong arguments; none of them starts, in either version.
pub(super) fn wrong_arguments(world: &mut World) {
    world.headline("Wrong arguments");
    let bitmap = world.recording_bitmap(0).unwrap_or_else(|| "bitmap0".to_string());
    let size = world.disks[0].size;
    let target = world.target(size, false);
    let device = world.disks[0].node.clone();
    let base = || args().set("device", &device).set("target", &target.node);
    let mut list = wrong(&device, &target, &bitmap);
    list.push(base().set("sync", "full"));
    list.push(args().set("job-id", "wrong").set("device", &device).set("sync", "full"));
    let count = world.rng.between(3, 8) as usize;
    for arguments in world.some_of(&list, count) {
        world.execute("blockdev-backup", arguments);
    }
    if world.one_in(3) {
        world.query_events();
    }
    world.query_jobs();
}

fn wrong(device: &str, target: &Target, bitmap: &str) -> Vec<Args> {
    let base = || args().set("job-id", "wrong").set("device", device).set("target", &target.node);
    let full = || base().set("sync", "full");
    let perf = |key: &str, value: i64| full().set("x-perf", args().set(key, value));
    let with =
        |sync: &str, bitmap: &str, mode: &str| base().set("sync", sync).set("bitmap", bitmap).set("bitmap-mode", mode);
    vec![
        base(),
        base().set("sync", "bitmap"),
        base().set("sync", "incremental"),
        base().set("sync", "most"),
        base().set("sync", "bitmap").set("bitmap-mode", "always"),
        base().set("sync", "bitmap").set("bitmap", bitmap),
        base().set("sync", "full").set("bitmap", bitmap),
        base().set("sync", "top").set("bitmap", bitmap),
        base().set("sync", "full").set("bitmap-mode", "never"),
        base().set("sync", "none").set("bitmap-mode", "always"),
        with("incremental", bitmap, "always"),
        with("incremental", bitmap, "never"),
        with("none", bitmap, "always"),
        with("none", bitmap, "on-success"),
        with("full", bitmap, "never"),
        with("top", bitmap, "never"),
        with("bitmap", "bitmap404", "always"),
        with("bitmap", "", "always"),
        with("full", bitmap, "sometimes"),
        perf("max-workers", 0),
        perf("max-workers", -1),
        perf("max-workers", 1 << 31),
        perf("max-chunk", -1),
        perf("max-chunk", 4096),
        perf("max-chunk", 65535),
        perf("workers", 1),
        perf("min-cluster-size", 3000),
        full().set("x-perf", args().set("use-copy-range", "yes")),
        full().set("speed", -1_i64),
        full().set("speed", "fast"),
        full().set("discard-source", "yes"),
        full().set("on-source-error", "panic"),
        full().set("on-target-error", ""),
        full().set("compress", "no"),
        full().set("filter-node-name", device),
        full().set("filter-node-name", "-"),
        full().set("filter-node-name", ""),
        full().set("filter-node-name", "a-name-that-is-longer-than-31-bytes"),
        full().set("bogus", 1_u64),
        args().set("job-id", "wrong").set("device", device).set("target", "nowhere").set("sync", "full"),
        args().set("job-id", "wrong").set("device", "nothing").set("target", &target.node).set("sync", "full"),
        args().set("job-id", "wrong").set("device", device).set("target", device).set("sync", "full"),
        args().set("job-id", "1wrong").set("device", device).set("target", &target.node).set("sync", "full"),
        args().set("job-id", "").set("device", device).set("target", &target.node).set("sync", "full"),
    ]
}

/// Targets of the wrong size, and one that is written already.
pub(super) fn wrong_targets(world: &mut World) {
    world.headline("Targets");
    let size = world.disks[0].size;
    for _ in 0..world.rng.between(1, 3) {
        let other = world.pick(&[size + 512, size + (1 << 20), size * 2, size + 65536, size - 512]);
        let target = world.target(other.max(512), false);
        if other == size {
            continue;
        }
        let mut backup = world.backup(0, &target);
        (backup.auto_finalize, backup.auto_dismiss, backup.filter) = (true, true, None);
        world.start(&backup);
    }
    let target = world.target(size, true);
    let mut backup = world.backup(0, &target);
    (backup.auto_finalize, backup.filter) = (false, Some("backup-top".to_string()));
    let version = world.disks[0].changes;
    world.start(&backup);
    let second = world.backup(0, &target);
    let pending = world.inside(|world| {
        world.guest(0, "backup-top", 2, Mix::All);
        let refused = Backup { auto_finalize: true, auto_dismiss: true, filter: None, ..second };
        world.start(&refused);
        if world.one_in(3) {
            let resize = args().set("node-name", &target.node).set("size", size + (1 << 20));
            world.execute("block_resize", resize);
        }
    });
    world.step(backup.run_job().inside("pre-finalize", pending));
    world.verify_full(0, &backup, &target, version);
}

/// Things that a pending job keeps others from.
pub(super) fn already_in_use(world: &mut World) {
    world.headline("Already in use");
    let Some(bitmap) = world.recording_bitmap(0) else {
        return;
    };
    let size = world.disks[0].size;
    let (target, other) = (world.target(size, true), world.target(size, false));
    let mut backup = world.backup(0, &target);
    backup.auto_finalize = false;
    backup.auto_dismiss = true;
    backup.filter = Some("backup-top".to_string());
    (backup.sync, backup.bitmap) = ("bitmap", Some(bitmap.clone()));
    backup.mode = Some(world.pick(&["always", "on-success", "never"]));
    let before = world.owned(0, &backup);
    world.start(&backup);
    world.wait_status(&backup.job, "pending", false);
    let device = world.disks[0].node.clone();
    let new = |job: &str, device: &str, target: &str| Backup::new(job.to_string(), device, target);
    let mut again = new("second", &device, &other.node);
    (again.bitmap, again.mode) = (Some(bitmap.clone()), Some("on-success"));
    again.sync = "bitmap";
    let mut twin = new("second", &device, &other.node);
    twin.filter = backup.filter.clone();
    let node = |name: &str| args().set("node-name", name);
    let refused = [
        ("blockdev-backup", new(&backup.job, &device, &other.node).arguments()),
        ("blockdev-backup", twin.arguments()),
        ("blockdev-backup", again.arguments()),
        ("blockdev-backup", new("second", &device, &target.node).arguments()),
        ("blockdev-backup", new("second", "backup-top", &other.node).arguments()),
        ("blockdev-backup", new("second", &target.node, &other.node).arguments()),
        ("blockdev-backup", new("second", &other.node, &device).arguments()),
        ("blockdev-del", node(&device)),
        ("blockdev-del", node("backup-top")),
        ("blockdev-del", node(&target.node)),
        ("block_resize", node(&device).set("size", size + 65536)),
        ("block_resize", node(&target.node).set("size", size + 65536)),
        ("block-dirty-bitmap-remove", args().set("node", &device).set("name", &bitmap)),
    ];
    let count = world.rng.between(2, 6) as usize;
    for (command, arguments) in world.some_of(&refused, count) {
        world.execute(command, arguments);
    }
    if world.one_in(3) {
        let write = Step::new("qemu-io", &device).with("command", "write -P 1 0 512");
        world.step(write.with("output", true));
    }
    let cancel = world.one_in(4);
    let command = if cancel { "job-cancel" } else { world.pick(&["job-finalize", "block-job-finalize"]) };
    world.step(job_command(command, &backup.job));
    world.wait_status(&backup.job, "null", false);
    world.settle(0, &backup, before, if cancel { End::Cancelled } else { End::Success });
    world.expect_bitmap(0, &bitmap);
}

/// A backup to a file that QEMU itself creates or opens.
pub(super) fn drive_backup(world: &mut World) {
    world.headline("drive-backup");
    let image = format!("db{}", world.new_image());
    let format = world.weighted(&[(3, Format::Qcow2), (1, Format::Raw)]);
    let size = world.disks[0].size;
    let existing = world.one_in(3);
    if existing {
        world.step(image_step(&image, format, size, None));
    }
    if world.one_in(4) {
        let wrong = args().set("job-id", "drive-wrong").set("device", "nothing").set("target", path("none"));
        world.execute("drive-backup", wrong.set("sync", "full").set("format", "qcow2"));
    }
    let target = Target { node: path(&image), file_node: None, image: Some(image), format, cluster: 65536 };
    let mut backup = world.backup(0, &target);
    backup.job = format!("drive-{}", backup.job);
    backup.sync = world.weighted(&[(4, "full"), (1, "top")]);
    let mode = if existing { Some("existing") } else { world.maybe(2, "absolute-paths") };
    let version = world.disks[0].changes;
    let arguments = backup.arguments().set("format", format.driver()).maybe("mode", mode);
    world.execute("drive-backup", arguments);
    if world.follow(0, &backup) == End::Success && !world.disks[0].backed {
        world.verify_full(0, &backup, &target, version);
    }
}

/// Two backups in one transaction: both start, or none does.
pub(super) fn two_in_a_transaction(world: &mut World) {
    world.headline("Transaction of two backups");
    let second = world.new_disk(Wish::qcow2(8 << 20));
    let mut actions = Vec::new();
    let mut backups = Vec::new();
    let grouped = world.one_in(3);
    let finalize = world.coin();
    for disk in [0, second] {
        let size = world.disks[disk].size;
        let target = world.target(size, true);
        let mut backup = world.backup(disk, &target);
        backup.filter = world.maybe(1, format!("{}-top", world.disks[disk].node));
        (backup.workers, backup.auto_finalize, backup.auto_dismiss) = (Some(1), finalize, true);
        if let (true, Some(bitmap)) = (world.one_in(3), world.recording_bitmap(disk)) {
            backup.bitmap = Some(bitmap);
            backup.mode = Some(world.pick(&["on-success", "always"]));
        }
        actions.push(action("blockdev-backup", backup.arguments()));
        backups.push((disk, backup, target));
    }
    let fails = world.one_in(2);
    let extra = extra_action(world, fails);
    if !grouped || fails {
        // QEMU 7.2 hangs when it rolls back two grouped backups: each waits for the other one to run.
        let places = if grouped { 2 } else { 3 };
        let at = world.rng.below(places) as usize;
        actions.insert(at, extra);
    }
    let mode = if grouped { Some("grouped") } else { world.maybe(2, "individual") };
    world.step(transaction(mode, actions));
    if !fails {
        follow_both(world, &backups, grouped);
    } else {
        // Rolled back, an `always` backup leaves all bits set.
        for (disk, backup, _) in &backups {
            world.settle(*disk, backup, Vec::new(), End::Failed);
        }
    }
    world.query_bitmaps();
    if fails || world.coin() {
        world.query_jobs();
    }
}

/// An action beside the two backups; one that fails if `fails`.
fn extra_action(world: &mut World, fails: bool) -> Args {
    let node = world.disks[0].node.clone();
    if !fails {
        let name = format!("extra{}", world.new_image());
        return action("block-dirty-bitmap-add", args().set("node", node).set("name", name));
    }
    match world.rng.below(4) {
        0 => action("abort", args()),
        1 => action("block-dirty-bitmap-add", args().set("node", "drive9").set("name", "inc-0")),
        2 => action("block-dirty-bitmap-clear", args().set("node", node).set("name", "bitmap404")),
        _ => {
            let bad = Backup::new(world.new_job(), &node, "nowhere");
            action("blockdev-backup", bad.arguments())
        }
    }
}

fn follow_both(world: &mut World, backups: &[(usize, Backup, Target)], grouped: bool) {
    let before: Vec<Vec<bool>> = backups.iter().map(|(disk, backup, _)| world.owned(*disk, backup)).collect();
    let versions: Vec<u64> = backups.iter().map(|(disk, ..)| world.disks[*disk].changes).collect();
    if grouped {
        for (_, backup, _) in backups {
            let state = if backup.auto_finalize { "null" } else { "pending" };
            world.wait_status(&backup.job, state, false);
        }
        if !backups[0].1.auto_finalize {
            world.step(job_command("job-finalize", &backups[0].1.job));
            world.query_jobs();
        }
    } else {
        for (_, backup, _) in backups {
            world.step(backup.run_job());
        }
    }
    for (((disk, backup, target), before), version) in backups.iter().zip(before).zip(versions) {
        world.settle(*disk, backup, before, End::Success);
        world.verify_full(*disk, backup, target, version);
    }
}
