//! Phases of the family `jobs` with more than one job, with jobs that are no backups, and with a machine that ends.
//!
//! Must never let two jobs end by themselves side by side: which is first then depends on the host.

use super::backup::{Backup, job_command};
use super::jobs::At;
use super::world::{World, action, transaction};
use super::yaml::{Args, Step, args};

/// Two disks for two jobs.
fn two_disks(world: &mut World) -> [usize; 2] {
    let first = world.job_disk();
    let second = world.job_disk();
    if first != second {
        return [first, second];
    }
    let size = world.pick(&[2_u64 << 20, 4 << 20, 8 << 20]);
    let image = format!("img{}", world.new_image());
    let wish = super::disks::Wish::qcow2(size);
    let second = world.disk_of(wish, &image, super::model::Format::Qcow2, size);
    world.guest_at(second, 5, super::guest::Mix::Writes);
    [first, second]
}

/// One job is pending, the other one at work.
pub(super) fn two_jobs(world: &mut World) {
    world.headline("Two jobs");
    let [first, second] = two_disks(world);
    let mut one = world.held_backup(first);
    one.auto_finalize = false;
    world.start(&one);
    world.at_work(&one.job);
    world.let_go(&one.job);
    world.wait_status(&one.job, "pending", false);
    let mut other = world.held_backup(second);
    if other.filter == one.filter {
        other.filter = Some(format!("{}-top", world.disks[second].node));
    }
    world.start(&other);
    world.at_work(&other.job);
    world.query_events();
    world.execute("query-jobs", args());
    if world.coin() {
        world.execute("query-block-jobs", args());
    }
    let both = if world.coin() { [&one, &other] } else { [&other, &one] };
    for backup in both {
        if world.one_in(3) {
            let at = if backup.job == one.job { At::Pending } else { At::Work };
            world.refused(&backup.job, at, 2);
        }
        let command = if backup.job == one.job && world.coin() {
            world.pick(&["job-finalize", "block-job-finalize"])
        } else {
            world.pick(&["job-cancel", "block-job-cancel"])
        };
        world.step(job_command(command, &backup.job));
        world.wait_status(&backup.job, backup.last_state(), false);
        world.query_events();
        world.execute("query-jobs", args());
    }
    for backup in both {
        if !backup.auto_dismiss {
            world.either(["job-dismiss", "block-job-dismiss"], &backup.job);
        }
    }
    world.query_events();
}

/// Two jobs of one transaction: the first waits for the second, which is held.
pub(super) fn in_a_transaction(world: &mut World) {
    let mode = world.pick(&["grouped", "grouped", "individual"]);
    world.headline(&format!("Transaction, {mode} completion mode"));
    let disks = two_disks(world);
    let (dismiss, finalize) = (world.coin(), world.coin());
    let mut backups = disks.map(|disk| {
        let mut backup = world.held_backup(disk);
        backup.filter = Some(format!("{}-top", world.disks[disk].node));
        (backup.auto_dismiss, backup.auto_finalize) = (dismiss, finalize);
        backup
    });
    backups[0].speed = None;
    let actions = backups.iter().map(|backup| action("blockdev-backup", backup.arguments())).collect();
    world.step(transaction(Some(mode), actions));
    let [first, second] = &backups;
    let state = match mode {
        "grouped" => "waiting",
        _ if finalize => first.last_state(),
        _ => "pending",
    };
    world.wait_status(&first.job, state, false);
    world.sleep(200);
    world.query_events();
    world.execute("query-jobs", args());
    if mode == "grouped" {
        world.refused(&first.job, At::Waiting, 3);
        grouped_end(world, first, second);
    } else {
        individual_end(world, first, second);
    }
    world.query_events();
    world.execute("query-jobs", args());
    if !dismiss {
        for backup in [first, second] {
            world.either(["job-dismiss", "block-job-dismiss"], &backup.job);
        }
        world.query_events();
    }
    if world.one_in(3) {
        disks.iter().for_each(|disk| {
            let node = world.disks[*disk].node.clone();
            world.execute("blockdev-del", args().set("node-name", node));
        });
        world.vm("shutdown");
        world.vm("launch");
    }
}

fn grouped_end(world: &mut World, first: &Backup, second: &Backup) {
    match world.rng.below(3) {
        0 => world.either(["job-cancel", "block-job-cancel"], &first.job),
        1 => world.either(["job-cancel", "block-job-cancel"], &second.job),
        _ => {
            world.let_go(&second.job);
            if !first.auto_finalize {
                world.wait_status(&first.job, "pending", false);
                world.wait_status(&second.job, "pending", false);
                world.query_events();
                world.execute("query-jobs", args());
                let any = world.pick(&[&first.job, &second.job]);
                world.either(["job-finalize", "job-cancel"], any);
            }
        }
    }
    for backup in [second, first] {
        world.wait_status(&backup.job, backup.last_state(), false);
    }
}

fn individual_end(world: &mut World, first: &Backup, second: &Backup) {
    if world.coin() {
        world.either(["job-cancel", "block-job-cancel"], &second.job);
    } else {
        world.let_go(&second.job);
        if !second.auto_finalize {
            world.wait_status(&second.job, "pending", false);
            world.either(["job-finalize", "block-job-finalize"], &second.job);
        }
    }
    world.wait_status(&second.job, second.last_state(), false);
    if !first.auto_finalize {
        world.either(["job-finalize", "job-cancel"], &first.job);
        world.wait_status(&first.job, first.last_state(), false);
    }
}

/// Jobs that create images, some of which can't.
pub(super) fn create_jobs(world: &mut World) {
    world.headline("Create jobs");
    let number = world.new_image();
    let (image, node) = (format!("new{number}"), format!("newfile{number}"));
    let path = super::disks::path(&image);
    let first = format!("c{number}");
    let size = world.pick(&[0_u64, 65536, 1 << 20]);
    let file = args().set("driver", "file").set("filename", &path).set("size", size);
    world.execute("blockdev-create", args().set("job-id", &first).set("options", file));
    world.step(Step::new("run-job", &first));
    world.query_events();
    world.execute("blockdev-add", args().set("node-name", &node).set("driver", "file").set("filename", &path));
    let count = world.rng.between(2, 4) as usize;
    let mut bad = Vec::new();
    for options in world.some_of(&bad_options(&node), count) {
        let job = format!("bad{number}-{}", bad.len());
        world.execute("blockdev-create", args().set("job-id", &job).set("options", options));
        // How long creating takes is the host's business.
        world.wait_status(&job, "concluded", false);
        bad.push(job);
    }
    world.execute("query-jobs", args());
    for job in &bad {
        world.step(job_command("job-dismiss", job));
    }
    world.query_events();
    refused_at_once(world, &node);
    let last = format!("d{number}");
    let cluster = world.pick(&[None, Some(4096_u64), Some(65536), Some(2 << 20)]);
    let version = world.pick(&[None, None, Some("v2"), Some("v3")]);
    let size = world.pick(&[1_u64 << 20, 4 << 20]);
    let format = args().set("driver", "qcow2").set("file", &node).set("size", size);
    let format = format.maybe("cluster-size", cluster).maybe("version", version);
    world.execute("blockdev-create", args().set("job-id", &last).set("options", format));
    world.step(Step::new("run-job", &last));
    world.query_events();
    world.refused(&last, At::Gone, 3);
    world.execute("blockdev-del", args().set("node-name", &node));
    if world.coin() {
        world.step(super::disks::qemu_img("info", &image));
    }
}

/// Options with which a qcow2 image can't be created; the job fails.
fn bad_options(node: &str) -> Vec<Args> {
    let base = |size: i64| args().set("driver", "qcow2").set("file", node).set("size", size);
    let good = || base(1 << 20);
    vec![
        good().set("data-file", "nofile"),
        good().set("cluster-size", 4_u64 << 20),
        good().set("cluster-size", 3000_u64),
        good().set("cluster-size", 256_u64),
        args().set("driver", "qcow2").set("file", "nofile").set("size", 1_u64 << 20),
        good().set("extended-l2", true).set("cluster-size", 4096_u64),
        good().set("lazy-refcounts", true).set("version", "v2"),
        good().set("refcount-bits", 3_u64),
        good().set("refcount-bits", 128_u64),
        good().set("refcount-bits", 64_u64).set("version", "v2"),
        good().set("backing-fmt", "qcow2"),
        good().set("backing-file", "TEST_DIR/PID-nothing").set("backing-fmt", "bochs"),
        base(1000),
        base(-1),
        good().set("data-file-raw", true),
    ]
}

/// Create commands that are refused before there is a job.
fn refused_at_once(world: &mut World, node: &str) {
    if !world.one_in(3) {
        return;
    }
    let options = || args().set("driver", "qcow2").set("file", node).set("size", 1_u64 << 20);
    let raw = args().set("driver", "raw").set("file", node).set("size", 1_u64 << 20);
    let list = [
        args().set("job-id", "1st").set("options", options()),
        args().set("job-id", "").set("options", options()),
        args().set("options", options()),
        args().set("job-id", "raw").set("options", raw),
        args().set("job-id", "bogus").set("options", options().set("bogus", 1_u64)),
        args().set("job-id", "less").set("options", args().set("driver", "qcow2").set("file", node)),
    ];
    let arguments = world.pick(&list);
    world.execute("blockdev-create", arguments);
}

/// The machine ends while a job is at work or pending.
pub(super) fn the_machine_ends(world: &mut World) {
    world.headline("The machine ends under a job");
    let disk = world.job_disk();
    let mut backup = world.held_backup(disk);
    let pending = world.coin();
    if pending {
        backup.auto_finalize = false;
    }
    world.start(&backup);
    world.at_work(&backup.job);
    if pending {
        world.let_go(&backup.job);
        world.wait_status(&backup.job, "pending", false);
    }
    world.query_events();
    world.query_jobs();
    world.vm("shutdown");
    world.query_events();
    world.vm("launch");
    world.query_jobs();
}
