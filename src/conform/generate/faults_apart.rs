//! Phases of the family `faults` in which it is not the background copy that fails first.
//!
//! Must never wait for a job's error here: guest requests fail, and the job prints nothing.

use super::backup::{Backup, job_command};
use super::disks::{Target, Wish};
use super::faults::{inject, target_with_rules};
use super::guest::Mix;
use super::model::Format;
use super::world::{World, action, transaction};
use super::yaml::{Step, args};

/// The guest's write fails because its copy can't be made.
pub(super) fn copy_before_write_fails(world: &mut World) {
    world.headline("Copy before write fails");
    let size = world.pick(&[4 << 20, 8 << 20]);
    let disk = world.disk_of(Wish::qcow2(size), "src", Format::Qcow2, size);
    world.guest_at(disk, 5, Mix::Writes);
    let errno = world.pick(&[5, 28]);
    let event = world.pick(&["write_aio", "write_aio", "cluster_alloc", "l2_update"]);
    let rule = inject(event, errno).set("once", true);
    let target = target_with_rules(world, size, Some(65536), Vec::new(), vec![rule]);
    let mut backup = world.backup(disk, &target);
    (backup.sync, backup.filter) = ("none", Some("backup-top".to_string()));
    (backup.auto_finalize, backup.auto_dismiss) = (true, true);
    world.start(&backup);
    for _ in 0..2 {
        let commands: Vec<String> = (0..world.rng.between(1, 3)).map(|_| one_write(world, disk)).collect();
        let step = Step::new("qemu-io", "backup-top").with("commands", commands);
        world.step(step.with("output", true));
        world.query_jobs();
    }
    world.step(Step::new("query-events", args()).with("match", args().set("device", &backup.job)));
    world.either(["job-cancel", "block-job-cancel"], &backup.job);
    world.step(backup.run_job());
    let (offset, bytes) = world.place(size);
    let read = format!("read -P0x0 {} {}", world.number(offset), world.number(bytes));
    world.step(Step::new("qemu-io", &target.node).with("command", read).with("output", true));
    if world.one_in(3) {
        world.recovery(disk, None);
    }
}

fn one_write(world: &mut World, disk: usize) -> String {
    let (offset, bytes) = world.place(world.disks[disk].size);
    if world.one_in(4) { world.read_command(disk, offset, bytes) } else { world.write_command(disk, offset, bytes) }
}

/// Requests of the guest fail; its bitmap counts them all the same.
pub(super) fn guest_fails(world: &mut World) {
    world.headline("The guest's own I/O fails");
    let size = world.pick(&[4 << 20, 8 << 20]);
    let disk = world.disk_of(Wish::qcow2(size), "src", Format::Qcow2, size);
    world.guest_at(disk, 5, Mix::Writes);
    let event = world.pick(&["write_aio", "write_aio", "read_aio", "l2_update", "cluster_alloc", "flush_to_disk"]);
    let errno = world.pick(&[5, 28]);
    let once = !world.one_in(6);
    world.reopen_with_rules(disk, Vec::new(), vec![inject(event, errno).set("once", once)]);
    let node = world.disks[disk].node.clone();
    let granularity = world.granularity();
    let arguments = args().set("node", &node).set("name", "weekly").maybe("granularity", granularity);
    world.execute("block-dirty-bitmap-add", arguments);
    let mut commands: Vec<String> = (0..world.rng.between(2, 4)).map(|_| one_write(world, disk)).collect();
    if world.one_in(3) {
        commands.push("flush".to_string());
    }
    world.step(Step::new("qemu-io", &node).with("commands", commands).with("output", true));
    world.query_bitmaps();
    if !once {
        return;
    }
    let target = world.target(size, false);
    let mut backup = world.backup(disk, &target);
    (backup.sync, backup.bitmap) = ("bitmap", Some("weekly".to_string()));
    backup.mode = Some(world.pick(&["never", "on-success", "always"]));
    backup.workers = Some(1);
    world.start(&backup);
    world.step(backup.run_job());
    world.query_bitmaps();
}

/// Two backups in one transaction, of which the second, held back until the first has ended, fails.
pub(super) fn one_of_two_fails(world: &mut World) {
    let mode = world.pick(&["grouped", "grouped", "individual"]);
    world.headline(&format!("A transaction in which one backup fails ({mode})"));
    let sizes: [u64; 2] = [1 << 20, 4 << 20];
    for (index, size) in sizes.into_iter().enumerate() {
        let disk = world.disk_of(Wish::qcow2(size), &format!("src{index}"), Format::Qcow2, size);
        world.guest_at(disk, 5, Mix::Writes);
    }
    for disk in 0..2 {
        let node = world.disks[disk].node.clone();
        let arguments = args().set("node", node).set("name", "bitmap0").set("granularity", 65536_u64);
        world.execute("block-dirty-bitmap-add", arguments);
        world.guest_at(disk, 2, Mix::Writes);
    }
    let node = world.new_target();
    let good = world.qcow2_target(node, sizes[0], None);
    let node = world.new_target();
    let cluster = world.pick(&[None, Some(65536)]);
    let below = world.qcow2_target(node, sizes[1], cluster);
    // Not in the first chunk, which is copied before the job is held.
    let sector = world.rng.between(4096, sizes[1] / 512 - 1);
    let rule = args().set("event", "none").set("sector", sector).set("errno", world.pick(&[5_u64, 28]));
    let bad = args().set("node-name", "bad-target").set("driver", "blkdebug").set("image", &below.node);
    world.execute("blockdev-add", bad.set("inject-error", vec![rule]));
    let bad = Target { node: "bad-target".to_string(), ..below };
    let [first, second] = two_backups(world, &good, &bad);
    let actions = [&first, &second].map(|backup| action("blockdev-backup", backup.arguments()));
    world.step(transaction(Some(mode), actions.to_vec()));
    let state = match mode {
        "grouped" => "waiting",
        _ => first.last_state(),
    };
    world.wait_status(&first.job, state, false);
    world.sleep(200);
    world.query_jobs();
    world.step(Step::new("query-events", args()).with("match", args().set("id", &first.job)));
    world.execute("block-job-set-speed", args().set("device", &second.job).set("speed", 0_u64));
    world.wait_status(&second.job, second.last_state(), false);
    if mode == "grouped" {
        world.wait_status(&first.job, first.last_state(), false);
    }
    world.query_events();
    world.query_jobs();
    if !first.auto_dismiss {
        world.step(job_command("job-dismiss", &first.job));
        world.step(job_command("job-dismiss", &second.job));
    }
    world.query_bitmaps();
}

/// The two: one that is done at once, one that waits for its speed limit after 64 KiB.
fn two_backups(world: &mut World, good: &Target, bad: &Target) -> [Backup; 2] {
    let dismiss = world.coin();
    let mut both = [(0, good), (1, bad)].map(|(disk, target)| {
        let mut backup = Backup::new(world.new_job(), &world.disks[disk].node.clone(), &target.node);
        backup.auto_dismiss = dismiss;
        backup.bitmap = Some("bitmap0".to_string());
        backup.mode = Some(world.pick(&["on-success", "always"]));
        backup.chunk = world.pick(&[None, Some(65536)]);
        backup
    });
    if world.coin() {
        (both[0].sync, both[0].mode) = ("bitmap", Some(world.pick(&["never", "on-success", "always"])));
    }
    (both[1].speed, both[1].chunk) = (Some(1), Some(65536));
    both
}
