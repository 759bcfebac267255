//! The family `fleecing`: a snapshot of a disk that is in use, kept by copy-before-write, read and backed up.
//!
//! Must never discard through a snapshot but whole clusters of a disk that consists of whole clusters: QEMU 7.2
//! does not survive anything else.

use super::backup::{Backup, job_command};
use super::disks::{Target, Wish, image_step, qemu_img};
use super::faults::{inject, target_with_rules};
use super::guest::Mix;
use super::model::{Disk, Format};
use super::world::{Level, World};
use super::yaml::{Args, Script, Step, args};

/// A snapshot: the filter and the node that shows it.
struct Snapshot {
    /// The disk below.
    disk: usize,
    /// The disk as it was: the place of its model.
    frozen: usize,
    /// Bytes in which it is copied.
    cluster: u64,
    /// Whether a discard through it has an effect.
    unmap: bool,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    world.vm("launch");
    let rounds = match world.level {
        Level::Easy => 1,
        Level::Medium => 2,
        Level::Hard => 3,
    };
    world.new_disk(Wish { limit: 16 << 20, any_format: true, backing: true });
    for _ in 0..rounds {
        match world.rng.below(10) {
            0 | 1 => target_as_snapshot(&mut world),
            2 => wrong_filters(&mut world),
            _ => snapshot(&mut world),
        }
    }
    let image = world.disks[0].image.clone();
    if world.coin() {
        world.vm("shutdown");
        if let (Some(image), true) = (image, world.disks.is_empty()) {
            let command = world.pick(&["check", "info"]);
            world.step(qemu_img(command, &image));
        }
    }
    world.script(name, description)
}

/// A snapshot with reads, writes and discards around it.
fn snapshot(world: &mut World) {
    world.headline("Fleecing");
    let size = world.disks[0].size;
    let bitmap = if world.one_in(3) { world.recording_bitmap(0) } else { None };
    if bitmap.is_some() {
        world.guest_at(0, 3, Mix::Writes);
    }
    let broken = world.one_in(5);
    let target = if broken {
        let errno = world.pick(&[5, 28]);
        let event = world.pick(&["write_aio", "cluster_alloc", "pwritev"]);
        target_with_rules(world, size, Some(65536), Vec::new(), vec![inject(event, errno).set("once", true)])
    } else {
        world.target(size, false)
    };
    let one = add_snapshot(world, 0, &target, bitmap);
    for _ in 0..world.rng.between(3, 8) {
        act(world, &one);
    }
    if world.one_in(3) && !broken {
        back_up_snapshot(world, size);
        read(world, &one);
    }
    remove_snapshot(world, &one);
    if world.coin() {
        world.remove_target(&target);
    }
}

/// Puts a filter and a snapshot above `disk`.
fn add_snapshot(world: &mut World, disk: usize, target: &Target, bitmap: Option<String>) -> Snapshot {
    let node = world.disks[disk].node.clone();
    let on_error = world.pick(&[None, Some("break-guest-write"), Some("break-snapshot")]);
    // In 7.2 most time-outs are far shorter than they say; these are long enough all the same.
    let timeout = world.pick(&[None, None, None, Some(0_u64), Some(10), Some(30)]);
    let bitmap = bitmap.map(|name| args().set("node", &node).set("name", name));
    let filter = args().set("node-name", "cbw").set("driver", "copy-before-write").set("file", &node);
    let filter = filter.set("target", &target.node).maybe("bitmap", bitmap).maybe("on-cbw-error", on_error);
    world.execute("blockdev-add", filter.maybe("cbw-timeout", timeout));
    let unmap = world.coin();
    let access = args().set("node-name", "access").set("driver", "snapshot-access").set("file", "cbw");
    world.execute("blockdev-add", access.maybe("discard", unmap.then_some("unmap")));
    let frozen = world.disks.len();
    world.disks.push(Disk { node: "access".to_string(), bitmaps: Vec::new(), ..world.disks[disk].clone() });
    Snapshot { disk, frozen, cluster: target.cluster, unmap }
}

fn remove_snapshot(world: &mut World, one: &Snapshot) {
    if world.one_in(4) {
        world.execute("blockdev-del", args().set("node-name", "cbw"));
    }
    if world.one_in(4) {
        let node = world.disks[one.disk].node.clone();
        world.execute("blockdev-del", args().set("node-name", node));
    }
    world.execute("blockdev-del", args().set("node-name", "access"));
    world.execute("blockdev-del", args().set("node-name", "cbw"));
    world.disks.truncate(one.frozen);
}

/// One thing that happens while there is a snapshot.
fn act(world: &mut World, one: &Snapshot) {
    match world.rng.below(16) {
        0..=5 => world.guest(one.disk, "cbw", 3, Mix::All),
        6..=10 => read(world, one),
        11 => discard(world, one),
        12 => {
            let command = world.pick(&["write -P 1 0 64k", "write -z 0 64k", "flush", "map", "length"]);
            let step = Step::new("qemu-io", "access").with("command", command);
            world.step(step.with("output", true));
        }
        13 => {
            let node = world.disks[one.disk].node.clone();
            let (offset, bytes) = world.place(world.disks[one.disk].size);
            let read = world.read_command(one.disk, offset, bytes);
            world.guest_commands(&node, vec![read]);
        }
        14 => {
            let node = world.disks[one.disk].node.clone();
            let write = Step::new("qemu-io", node).with("command", "write -P 9 0 512");
            world.step(write.with("output", true));
        }
        _ => world.query_bitmaps(),
    }
}

/// Reads of the snapshot; what they should find is what the disk held.
fn read(world: &mut World, one: &Snapshot) {
    let count = world.rng.between(1, 3);
    let mut commands = Vec::new();
    for _ in 0..count {
        let (offset, bytes) = world.place(world.disks[one.frozen].size);
        commands.push(world.read_command(one.frozen, offset, bytes));
    }
    world.guest_commands("access", commands);
}

/// A discard of whole clusters of the snapshot: what is not needed any more.
fn discard(world: &mut World, one: &Snapshot) {
    let size = world.disks[one.frozen].size;
    let clusters = size / one.cluster;
    if (one.unmap && !size.is_multiple_of(one.cluster)) || clusters == 0 {
        return world.query_bitmaps();
    }
    let first = world.rng.below(clusters);
    let count = world.rng.between(1, (clusters - first).min(4));
    let (offset, bytes) = (world.number(first * one.cluster), world.number(count * one.cluster));
    let step = Step::new("qemu-io", "access").with("command", format!("discard {offset} {bytes}"));
    world.step(step.with("output", true));
    if world.coin() {
        world.query_bitmaps();
    }
}

/// A backup of the snapshot, while the disk goes on.
fn back_up_snapshot(world: &mut World, size: u64) {
    let target = world.target(size, true);
    let mut backup = Backup::new("fleece".to_string(), "access", &target.node);
    backup.job = format!("fleece-{}", world.new_job());
    world.start(&backup);
    world.step(backup.run_job());
}

/// The phase of the family `backups`.
pub(super) fn around_a_backup(world: &mut World) {
    world.headline("Fleecing");
    let size = world.disks[0].size;
    let target = world.target(size, false);
    let one = add_snapshot(world, 0, &target, None);
    world.guest(0, "cbw", 3, Mix::All);
    read(world, &one);
    back_up_snapshot(world, size);
    if world.coin() {
        read(world, &one);
    }
    world.execute("blockdev-del", args().set("node-name", "access"));
    world.execute("blockdev-del", args().set("node-name", "cbw"));
    world.disks.truncate(one.frozen);
}

/// The phase of the family `faults`.
pub(super) fn with_errors(world: &mut World) {
    world.headline("Fleecing with errors");
    let size = world.pick(&[4 << 20, 8 << 20]);
    let disk = world.disk_of(Wish::qcow2(size), "src", Format::Qcow2, size);
    world.guest_at(disk, 5, Mix::Writes);
    let event = world.pick(&["write_aio", "l2_update", "cluster_alloc", "pwritev"]);
    let errno = world.pick(&[5, 28]);
    let rule = inject(event, errno).set("once", !world.one_in(4));
    let target = target_with_rules(world, size, Some(65536), Vec::new(), vec![rule]);
    let one = add_snapshot(world, disk, &target, None);
    for _ in 0..world.rng.between(2, 4) {
        world.guest(disk, "cbw", 2, Mix::Data);
        read(world, &one);
    }
    remove_snapshot(world, &one);
}

/// The older way: a job that copies before writes to a target whose backing is the disk itself.
fn target_as_snapshot(world: &mut World) {
    world.headline("The target as snapshot");
    let size = world.disks[0].size;
    let node = world.new_target();
    let image = format!("{node}-img");
    world.step(image_step(&image, Format::Qcow2, size, None));
    let source = world.disks[0].node.clone();
    let top = args().set("node-name", &node).set("driver", "qcow2").set("file", super::disks::file(&image));
    world.execute("blockdev-add", top.set("backing", &source));
    let mut backup = Backup::new(world.new_job(), &source, &node);
    (backup.sync, backup.filter) = ("none", Some("fleecing".to_string()));
    world.start(&backup);
    let frozen = world.disks.len();
    world.disks.push(Disk { node: node.clone(), bitmaps: Vec::new(), ..world.disks[0].clone() });
    for _ in 0..world.rng.between(2, 5) {
        if world.coin() {
            world.guest(0, "fleecing", 2, Mix::All);
        }
        let (offset, bytes) = world.place(size);
        let read = world.read_command(frozen, offset, bytes);
        world.guest_commands(&node, vec![read]);
    }
    world.query_jobs();
    let cancel = world.pick(&["job-cancel", "block-job-cancel"]);
    world.step(job_command(cancel, &backup.job));
    world.step(backup.run_job());
    world.disks.truncate(frozen);
    world.execute("blockdev-del", args().set("node-name", node));
}

/// Filters and snapshots that can't be.
fn wrong_filters(world: &mut World) {
    world.headline("Wrong filters");
    let node = world.disks[0].node.clone();
    let size = world.disks[0].size;
    let target = world.target(size, false);
    let filter = || args().set("node-name", "cbw").set("driver", "copy-before-write");
    let whole = || filter().set("file", &node).set("target", &target.node);
    let bitmap = |node: &str| args().set("node", node).set("name", "bitmap404");
    let access = |file: &str| args().set("node-name", "access").set("driver", "snapshot-access").set("file", file);
    let list: Vec<Args> = vec![
        filter().set("file", &node),
        filter().set("target", &target.node),
        filter().set("file", &node).set("target", "nowhere"),
        filter().set("file", "nothing").set("target", &target.node),
        whole().set("bitmap", bitmap(&node)),
        whole().set("bitmap", bitmap("nothing")),
        whole().set("on-cbw-error", "ignore"),
        whole().set("cbw-timeout", "long"),
        whole().set("min-cluster-size", 3000_u64),
        access("nothing"),
    ];
    let count = world.rng.between(2, 5) as usize;
    for arguments in world.some_of(&list, count) {
        world.execute("blockdev-add", arguments);
    }
    if world.coin() {
        // A node without snapshots opens well, and fails later.
        world.execute("blockdev-add", access(&node));
        let read = Step::new("qemu-io", "access").with("command", "read 0 64k").with("output", true);
        world.step(read);
        world.execute("blockdev-del", args().set("node-name", "access"));
    }
}
