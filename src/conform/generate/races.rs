//! The family `races`: commands come while short jobs run, and nobody waits for anything.
//!
//! Real QEMU takes the way that its host's speed decides; each way must be the model's in some order (`conform --orders`). Each
//! job has one worker, and few chunks: with more of both there are more ways than can be looked through.

use super::disks::{file, path};
use super::world::{Level, World, action, transaction};
use super::yaml::{Args, Script, Step, Yaml, args};

/// Chunks of the disk.
const CHUNKS: [u64; 3] = [1, 1, 3];
/// Bytes of a chunk.
const CHUNK: u64 = 65536;

struct Stage {
    bytes: u64,
    /// The disk's nodes from the top down, and what stands on them.
    nodes: Vec<&'static str>,
    jobs: Vec<String>,
    filters: Vec<String>,
    targets: Vec<String>,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    let mut stage = build(&mut world);
    let most = match world.level {
        Level::Easy => 1,
        Level::Medium => 2,
        Level::Hard => 3,
    };
    start(&mut world, &mut stage);
    for _ in 0..world.rng.between(1, most) {
        command(&mut world, &mut stage);
    }
    world.sleep(300);
    world.query_jobs();
    world.query_bitmaps();
    world.execute("query-named-block-nodes", args().set("flat", true));
    guest(&mut world, "disk", stage.bytes);
    world.query_events();
    world.vm("shutdown");
    world.script(name, description)
}

/// A disk of two nodes with a bitmap and data, and what jobs and snapshots may need.
fn build(world: &mut World) -> Stage {
    let bytes = CHUNK * world.pick(&CHUNKS);
    let is_raw = world.coin();
    let format = if is_raw { "raw" } else { "qcow2" };
    world.step(Step::new("image", "disk").with("format", format).with("size", bytes));
    for target in ["target0", "target1"] {
        world.step(Step::new("image", target).with("format", "raw").with("size", bytes));
    }
    world.step(Step::new("image", "overlay").with("size", bytes));
    world.vm("launch");
    let add = |node: &str, driver: &str| args().set("driver", driver).set("node-name", node);
    world.execute_silently("blockdev-add", add("file", "file").set("filename", path("disk")));
    world.execute_silently("blockdev-add", add("disk", format).set("file", "file"));
    for target in ["target0", "target1"] {
        world.execute_silently("blockdev-add", add(target, "file").set("filename", path(target)));
    }
    let options = add("overlay", "qcow2").set("backing", Yaml::Null).set("file", file("overlay"));
    world.execute_silently("blockdev-add", options);
    // With a qcow2 disk the file is what the image lies in; a copy of that is another size.
    let nodes = if is_raw { vec!["disk", "file"] } else { vec!["disk"] };
    let mut stage = Stage { bytes, nodes, jobs: Vec::new(), filters: Vec::new(), targets: Vec::new() };
    let node = stage.node(world);
    world.execute_silently("block-dirty-bitmap-add", args().set("node", node).set("name", "bitmap0"));
    let fill = format!("write -P 1 0 {bytes}");
    world.step(Step::new("qemu-io", "disk").with("command", fill).with("log", "none"));
    stage.targets = vec!["target0".to_owned(), "target1".to_owned()];
    stage
}

impl Stage {
    fn node(&self, world: &mut World) -> String {
        world.pick(&self.nodes).to_owned()
    }

    /// A node of the disk, a filter, or a target.
    fn any(&self, world: &mut World) -> String {
        let filters = self.filters.len().min(2) as u64;
        match world.rng.below(4 + 3 * filters) {
            0..=2 => self.node(world),
            3 => world.pick(&["target0", "target1"]).to_owned(),
            _ => world.pick(&self.filters),
        }
    }

    fn job(&self, world: &mut World) -> String {
        world.pick(&self.jobs)
    }
}

/// One or two backups begin.
fn start(world: &mut World, stage: &mut Stage) {
    let two = world.one_in(3);
    let first = backup(world, stage, true);
    if !two {
        return world.execute("blockdev-backup", first);
    }
    let second = backup(world, stage, true);
    if world.coin() {
        world.execute("blockdev-backup", first);
        return world.execute("blockdev-backup", second);
    }
    let mode = world.maybe(3, "grouped");
    world.step(transaction(mode, vec![action("blockdev-backup", first), action("blockdev-backup", second)]));
}

/// The arguments of a backup: of a node of the disk, or of anything.
fn backup(world: &mut World, stage: &mut Stage, of_disk: bool) -> Args {
    let device = if of_disk { stage.node(world) } else { stage.any(world) };
    let target = stage.targets.pop().unwrap_or_else(|| "target0".to_owned());
    let sync = world.pick(&["full", "full", "none", "bitmap"]);
    let job = world.new_job();
    let filter = format!("filter-{job}");
    let arguments = args().set("job-id", &job).set("device", device).set("target", target).set("sync", sync);
    let mode = (sync == "bitmap").then(|| world.pick(&["always", "on-success", "never"]));
    let arguments = arguments.maybe("bitmap", mode.map(|_| "bitmap0")).maybe("bitmap-mode", mode);
    let arguments = arguments.maybe("auto-finalize", world.maybe(4, false));
    let arguments = arguments.maybe("auto-dismiss", world.maybe(5, false));
    stage.jobs.push(job);
    stage.filters.push(filter.clone());
    let perf = args().set("max-workers", 1_u64).set("max-chunk", CHUNK);
    arguments.set("filter-node-name", filter).set("x-perf", perf)
}

fn command(world: &mut World, stage: &mut Stage) {
    match world.rng.below(20) {
        0..=4 => job_command(world, stage),
        5 | 6 => {
            let arguments = backup(world, stage, false);
            world.execute("blockdev-backup", arguments);
        }
        7 => snapshot(world, stage),
        8 | 9 => group(world, stage),
        10 | 11 => {
            let node = stage.any(world);
            guest(world, &node, stage.bytes);
        }
        12 => {
            let command = world.pick(&["clear", "disable", "enable", "remove"]);
            let arguments = args().set("node", stage.node(world)).set("name", "bitmap0");
            world.execute(&format!("block-dirty-bitmap-{command}"), arguments);
        }
        13 => {
            let node = stage.any(world);
            world.execute("block-dirty-bitmap-add", args().set("node", node).set("name", "bitmap1"));
        }
        14 => {
            let size = world.pick(&[stage.bytes, stage.bytes + CHUNK]);
            let node = stage.any(world);
            world.execute("block_resize", args().set("node-name", node).set("size", size));
        }
        15 => {
            let node = stage.any(world);
            world.execute("blockdev-del", args().set("node-name", node));
        }
        16 => above(world, stage),
        17 => reopen(world, stage),
        18 => export(world, stage),
        _ => world.execute("query-named-block-nodes", args().set("flat", true)),
    }
}

fn job_command(world: &mut World, stage: &Stage) {
    let job = stage.job(world);
    match world
        .pick(&["cancel", "cancel", "pause", "resume", "complete", "finalize", "dismiss", "speed", "old", "query"])
    {
        "speed" => {
            let speed = world.pick(&[0_u64, 1, CHUNK]);
            world.execute("block-job-set-speed", args().set("device", job).set("speed", speed));
        }
        "old" => {
            let force = world.maybe(2, true);
            world.execute("block-job-cancel", args().set("device", job).maybe("force", force));
        }
        "query" => world.execute("query-block-jobs", args()),
        "pause" => {
            world.execute("job-pause", args().set("id", &job));
            if world.coin() {
                world.execute("job-resume", args().set("id", job));
            }
        }
        verb => world.execute(&format!("job-{verb}"), args().set("id", job)),
    }
}

fn snapshot(world: &mut World, stage: &Stage) {
    let node = stage.any(world);
    if world.coin() {
        return world.execute("blockdev-snapshot", args().set("node", node).set("overlay", "overlay"));
    }
    let new = args().set("node-name", node).set("snapshot-file", path("new")).set("snapshot-node-name", "new");
    world.execute("blockdev-snapshot-sync", new);
}

fn group(world: &mut World, stage: &mut Stage) {
    let count = world.rng.between(1, 3);
    let mut actions: Vec<Args> = Vec::new();
    for number in 0..count {
        let name = format!("group{number}");
        actions.push(match world.rng.below(6) {
            0 | 1 => action("block-dirty-bitmap-add", args().set("node", stage.any(world)).set("name", name)),
            2 => action("block-dirty-bitmap-clear", args().set("node", stage.node(world)).set("name", "bitmap0")),
            3 => action("block-dirty-bitmap-disable", args().set("node", stage.node(world)).set("name", "bitmap0")),
            4 => action("blockdev-snapshot", args().set("node", stage.any(world)).set("overlay", "overlay")),
            _ => action("blockdev-backup", backup(world, stage, false)),
        });
    }
    if world.one_in(3) {
        actions.push(action("abort", args()));
    }
    world.step(transaction(None, actions));
}

/// Something new on a node.
fn above(world: &mut World, stage: &Stage) {
    let options = args().set("node-name", "above");
    let below = stage.any(world);
    let options = match world.pick(&["raw", "blkdebug", "copy-before-write", "snapshot-access"]) {
        "blkdebug" => options.set("driver", "blkdebug").set("image", below),
        "copy-before-write" => options.set("driver", "copy-before-write").set("file", below).set("target", "target1"),
        driver => options.set("driver", driver).set("file", below),
    };
    world.execute("blockdev-add", options);
}

fn reopen(world: &mut World, stage: &Stage) {
    let node = stage.any(world);
    let options = match &*node {
        "disk" if stage.nodes.len() > 1 => args().set("driver", "raw").set("file", stage.any(world)),
        "disk" => args().set("driver", "qcow2").set("file", "file"),
        "file" | "target0" | "target1" => {
            let image = if node == "file" { "disk" } else { &*node };
            args().set("driver", "file").set("filename", path(image))
        }
        _ => args().set("driver", "copy-before-write").set("file", "file").set("target", "target0"),
    };
    world.execute("blockdev-reopen", args().set("options", vec![options.set("node-name", node)]));
}

fn export(world: &mut World, stage: &Stage) {
    let address = args().set("type", "unix").set("data", args().set("path", path("sock")));
    world.execute("nbd-server-start", args().set("addr", address));
    let node = stage.any(world);
    let writable = world.maybe(2, true);
    let arguments = args().set("id", "export0").set("type", "nbd").set("node-name", node).maybe("writable", writable);
    world.execute("block-export-add", arguments);
    if world.coin() {
        world.execute("block-export-del", args().set("id", "export0"));
    }
}

fn guest(world: &mut World, node: &str, bytes: u64) {
    let pattern = world.pattern();
    let command = match world.rng.below(5) {
        0 => format!("read 0 {bytes}"),
        1 => format!("discard 0 {bytes}"),
        2 => format!("write -z 0 {bytes}"),
        _ => format!("write -P {pattern} 0 {bytes}"),
    };
    world.step(Step::new("qemu-io", node).with("command", command));
}
