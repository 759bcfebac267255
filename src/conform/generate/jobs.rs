//! The family `jobs`: every command in every state, by both families of commands.
//!
//! Jobs are caught at work by a speed limit that lets one chunk pass. Must never send what takes a job on before
//! the scenario has seen that the last such command did its work.

use super::backup::{Backup, job_command};
use super::disks::{Wish, image_step};
use super::faults::Policy;
use super::guest::Mix;
use super::jobs_apart as apart;
use super::model::Format;
use super::world::{Level, World};
use super::yaml::{Script, Step, args};

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    if world.one_in(7) {
        return table(world, name, description);
    }
    world.vm("launch");
    let phases = match world.level {
        Level::Easy => world.rng.between(1, 2),
        Level::Medium => 2,
        Level::Hard => 3,
    };
    for _ in 0..phases {
        let phase = world.pick(&PHASES);
        phase(&mut world);
    }
    world.script(name, description)
}

type Phase = fn(&mut World);

const PHASES: [Phase; 8] = [
    stages,
    stages,
    stages,
    stopped_by_an_error,
    apart::two_jobs,
    apart::in_a_transaction,
    apart::create_jobs,
    apart::the_machine_ends,
];

/// All commands for jobs, but for those that need more than a name.
const COMMANDS: [&str; 13] = [
    "job-pause",
    "job-resume",
    "job-cancel",
    "job-complete",
    "job-finalize",
    "job-dismiss",
    "block-job-pause",
    "block-job-resume",
    "block-job-cancel",
    "block-job-complete",
    "block-job-finalize",
    "block-job-dismiss",
    "block-job-set-speed",
];

/// Where a job is, as far as wrong commands are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Copying, held by its speed limit.
    Work,
    /// Paused by the user or by an error.
    Pause,
    /// Waiting for its transaction.
    Waiting,
    /// Pending.
    Pending,
    /// Concluded.
    Concluded,
    /// Gone.
    Gone,
}

impl World {
    /// Up to `most` commands that a job refuses where it is.
    pub(super) fn refused(&mut self, job: &str, at: At, most: u64) {
        for _ in 0..self.rng.between(0, most) {
            let command = self.pick(&COMMANDS);
            let verb = command.trim_start_matches("block-").trim_start_matches("job-");
            let refused = match at {
                At::Work => matches!(verb, "resume" | "complete" | "finalize" | "dismiss"),
                At::Pause if command == "block-job-cancel" => true,
                At::Pause => matches!(verb, "pause" | "complete" | "finalize" | "dismiss"),
                At::Waiting | At::Pending => !matches!(verb, "cancel" | "finalize"),
                At::Concluded => verb != "dismiss",
                At::Gone => true,
            };
            if at == At::Waiting && verb == "finalize" || refused {
                self.wrong_command(command, job);
            }
        }
    }

    fn wrong_command(&mut self, command: &str, job: &str) {
        match command {
            "block-job-set-speed" if self.one_in(4) => {
                self.execute(command, args().set("device", job).set("speed", -1_i64));
            }
            "block-job-set-speed" if self.one_in(4) => {
                self.execute(command, args().set("id", job).set("speed", 1_u64));
            }
            "block-job-set-speed" => self.execute(command, args().set("device", job).set("speed", 1_u64)),
            _ if self.one_in(15) => self.step(job_command(command, "nojob")),
            _ => self.step(job_command(command, job)),
        }
    }

    /// A disk for jobs; one that is there already may do.
    pub(super) fn job_disk(&mut self) -> usize {
        let usable = |disk: &super::model::Disk| disk.node.starts_with("drive") && disk.size >= 2 << 20;
        match self.disks.iter().position(usable) {
            Some(disk) if self.coin() => disk,
            _ => {
                let size = self.pick(&[2 << 20, 4 << 20, 8 << 20]);
                let image = format!("img{}", self.new_image());
                let format = self.weighted(&[(3, Format::Qcow2), (3, Format::Raw)]);
                let disk = self.disk_of(Wish::qcow2(size), &image, format, size);
                let writes = self.rng.between(2, 5);
                self.guest_at(disk, writes, Mix::Writes);
                disk
            }
        }
    }

    /// A backup of `disk` to a new target that waits after 64 KiB.
    pub(super) fn held_backup(&mut self, disk: usize) -> Backup {
        let size = self.disks[disk].size;
        let target = if self.one_in(5) {
            let node = self.new_target();
            self.add_null(&node, size);
            node
        } else if self.coin() {
            let node = self.new_target();
            self.qcow2_target(node, size, Some(65536)).node
        } else {
            let node = self.new_target();
            let image = format!("{node}-img");
            self.step(image_step(&image, Format::Raw, size, None));
            self.open(&node, Format::Raw, &image, false);
            node
        };
        let mut backup = Backup::new(self.new_job(), &self.disks[disk].node.clone(), &target);
        (backup.speed, backup.chunk) = (Some(1), Some(65536));
        (backup.auto_finalize, backup.auto_dismiss) = (self.coin(), self.coin());
        backup.filter = self.filter_name(disk);
        backup
    }

    /// Lets a held job go.
    pub(super) fn let_go(&mut self, job: &str) {
        self.execute("block-job-set-speed", args().set("device", job).set("speed", 0_u64));
    }
}

/// A job on its whole way, with wrong commands in every state.
fn stages(world: &mut World) {
    world.headline("The stages of a job");
    let disk = world.job_disk();
    world.query_events();
    let backup = world.held_backup(disk);
    let job = backup.job.clone();
    world.start(&backup);
    world.at_work(&job);
    world.query_events();
    world.query_jobs();
    world.refused(&job, At::Work, 4);
    if world.coin() {
        pause(world, &job);
    }
    if world.one_in(4) {
        world.either(["job-cancel", "block-job-cancel"], &job);
    } else {
        world.let_go(&job);
        if !backup.auto_finalize {
            pending(world, disk, &backup);
        }
    }
    world.wait_status(&job, backup.last_state(), false);
    world.query_events();
    if !backup.auto_dismiss {
        world.query_jobs();
        world.refused(&job, At::Concluded, 3);
        world.either(["job-dismiss", "block-job-dismiss"], &job);
        world.wait_status(&job, "null", false);
        world.query_events();
    }
    world.refused(&job, At::Gone, 3);
    world.query_jobs();
}

fn pause(world: &mut World, job: &str) {
    world.either(["job-pause", "block-job-pause"], job);
    world.wait_status(job, "paused", false);
    world.query_jobs();
    world.refused(job, At::Pause, 3);
    if world.one_in(5) {
        let speed = world.pick(&[1_u64, 2, 1000]);
        world.execute("block-job-set-speed", args().set("device", job).set("speed", speed));
    }
    world.either(["job-resume", "block-job-resume"], job);
    world.wait_status(job, "running", false);
    world.query_events();
}

fn pending(world: &mut World, disk: usize, backup: &Backup) {
    let job = &backup.job;
    world.wait_status(job, "pending", false);
    world.query_events();
    world.query_jobs();
    world.refused(job, At::Pending, 4);
    if let (Some(filter), true) = (&backup.filter, world.coin()) {
        world.guest(disk, filter, 1, Mix::All);
    }
    if world.one_in(4) {
        world.either(["job-cancel", "block-job-cancel"], job);
    } else {
        world.either(["job-finalize", "block-job-finalize"], job);
    }
}

/// A job that an error stops, more than once if it is for good.
fn stopped_by_an_error(world: &mut World) {
    world.headline("Stopped by an error");
    let size = world.pick(&[2_u64 << 20, 4 << 20, 8 << 20]);
    let image = format!("img{}", world.new_image());
    let format = world.pick(&[Format::Qcow2, Format::Raw]);
    let disk = world.disk_of(Wish::qcow2(size), &image, format, size);
    world.guest_at(disk, 4, Mix::Writes);
    let node = world.new_target();
    let image = format!("{node}-img");
    world.step(image_step(&image, Format::Raw, size, None));
    world.open_as(&node, Format::Raw, &image, false, None);
    let once = world.coin();
    let policy = Policy { name: Some("stop"), errno: world.pick(&[5, 28]) };
    let sector = world.pick(&[0_u64, 100, 2000, 3000]);
    let rule = args().set("event", "none").set("sector", sector).set("errno", policy.errno).set("once", once);
    let bad_node = format!("bad-{node}");
    let bad = args().set("node-name", &bad_node).set("driver", "blkdebug").set("image", &node);
    world.execute("blockdev-add", bad.set("inject-error", vec![rule]));
    world.query_events();
    let mut backup = Backup::new(world.new_job(), &world.disks[disk].node.clone(), &bad_node);
    backup.on_target_error = policy.name;
    backup.chunk = Some(world.pick(&[65536, 131_072]));
    (backup.auto_dismiss, backup.auto_finalize) = (world.coin(), !world.one_in(4));
    backup.filter = world.filter_name(disk);
    let job = backup.job.clone();
    world.start(&backup);
    world.started(&job);
    world.stopped_again(&backup);
    world.query_events();
    world.query_jobs();
    world.refused(&job, At::Pause, 3);
    world.either(["job-resume", "block-job-resume"], &job);
    if !once {
        for _ in 0..world.rng.between(0, 2) {
            world.stopped_again(&backup);
            world.query_events();
            world.query_jobs();
            world.refused(&job, At::Pause, 2);
            world.either(["job-resume", "block-job-resume"], &job);
        }
        world.stopped_again(&backup);
        world.cancel_stopped(&backup);
    } else if !backup.auto_finalize {
        world.wait_status(&job, "pending", false);
        world.refused(&job, At::Pending, 2);
        world.either(["job-finalize", "job-cancel"], &job);
    }
    world.wait_status(&job, backup.last_state(), false);
    if !backup.auto_dismiss {
        world.query_jobs();
        world.either(["job-dismiss", "block-job-dismiss"], &job);
        world.wait_status(&job, "null", false);
    }
    world.query_events();
}

/// One command for a job in one state: a line for each command.
fn table(mut world: World, name: String, description: String) -> Script {
    let size: u64 = 4 << 20;
    let state = world.pick(&["pending", "concluded", "held"]);
    let headline = if state == "held" { "at work" } else { state };
    world.step(Step::new("log", format!("=== {{{{ command }}}} while {headline} ===")));
    world.step(Step::new("image", "img").with("size", "{{ size }}"));
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    world.step(Step::new("image", "target").with("size", "{{ size }}"));
    world.open_as("target", Format::Qcow2, "target", false, None);
    let mut backup = Backup::new("job0".to_string(), "drive0", "target");
    backup.auto_finalize = state == "concluded";
    backup.auto_dismiss = false;
    backup.chunk = Some(65536);
    if state == "held" {
        backup.speed = Some(1);
        world.start(&backup);
        world.at_work("job0");
    } else {
        world.start(&backup);
        world.wait_status("job0", state, false);
    }
    world.query_events();
    let command = Step::new("execute", "{{ command }}").with("arguments", "{{ {key: 'job0'} }}");
    world.step(command);
    world.sleep(100);
    world.query_events();
    world.execute("query-jobs", args());
    let lines = world.rng.between(2, 5) as usize;
    let line = |command: &str| {
        let key = match command {
            "block-job-finalize" | "block-job-dismiss" => "id",
            name if name.starts_with("job-") => "id",
            _ => "device",
        };
        args().set("command", command).set("key", key)
    };
    let cases = world.some_of(&COMMANDS[..12], lines).into_iter().map(line).collect();
    let vars = args().set("size", size);
    let case_name = Some("{{ command }}".to_string());
    Script { vars, cases, case_name, ..world.script(name, description) }
}
