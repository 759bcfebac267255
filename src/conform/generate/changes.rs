//! The family `changes`: the graph is changed, rightly and wrongly, while a backup copies one chunk after the other.
//!
//! There is one command, and it comes while the target's first tables are flushed: real QEMU and the model are at the same
//! chunk then. Must never write a second one: by then the backup is over, or is not, as the host is fast or slow.

use super::disks::file;
use super::world::{Level, World, action, transaction};
use super::yaml::{Args, Script, Step, Yaml, args};

/// A disk of two layers, so large that no host copies it before the command comes.
const SIZE: &str = "128M";

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    world.vm("launch");
    stage(&mut world);
    let sync = world.weighted(&[(2, "full"), (1, "top")]);
    let perf = args().set("max-workers", 1_u64).set("max-chunk", 65536_u64);
    let job = args().set("job-id", "job0").set("device", "disk").set("target", "target");
    world.execute("blockdev-backup", job.set("sync", sync).set("x-perf", perf));
    match world.rng.below(7) {
        0 => snapshot(&mut world),
        1 => reopen(&mut world),
        _ => group(&mut world),
    }
    world.step(Step::new("run-job", "job0").with("auto-dismiss", true));
    world.query_bitmaps();
    world.vm("shutdown");
    world.step(Step::new("compare", vec!["disk", "target"]));
    world.script(name, description)
}

/// The disk over its backing file and another one of the same content, targets, and overlays that nobody uses yet.
fn stage(world: &mut World) {
    let add = |node: &str| args().set("node-name", node).set("driver", "qcow2").set("file", file(node));
    for image in ["base", "base2", "over1", "over2", "over3", "target", "target2"] {
        world.step(Step::new("image", image).with("size", SIZE));
        let options = add(image);
        let options = if image.starts_with("over") { options.set("backing", Yaml::Null) } else { options };
        world.execute_silently("blockdev-add", options);
    }
    let fill = |node: &str, command: &str| Step::new("qemu-io", node).with("command", command).with("log", "none");
    world.step(fill("base", &format!("write -P 1 0 {SIZE}")));
    world.step(fill("base2", &format!("write -P 1 0 {SIZE}")));
    world.step(Step::new("image", "disk").with("size", SIZE).with("backing", "base"));
    let named = file("disk").set("node-name", "disk-file");
    let options = args().set("node-name", "disk").set("driver", "qcow2").set("file", named).set("backing", "base");
    world.execute_silently("blockdev-add", options);
    world.step(fill("disk", "write -P 2 0 64M"));
    world.execute_silently("block-dirty-bitmap-add", args().set("node", "disk").set("name", "bitmap0"));
}

/// A snapshot, of a node that may have one or of one that may not.
fn snapshot_of(world: &mut World) -> Args {
    let node = world.pick(&["disk", "disk", "disk", "over1", "target", "base"]);
    let overlay = world.pick(&["over1", "over2", "over3"]);
    args().set("node", node).set("overlay", overlay)
}

fn snapshot(world: &mut World) {
    let arguments = snapshot_of(world);
    world.execute("blockdev-snapshot", arguments);
}

/// The disk over the other backing file, or with other options.
fn reopen(world: &mut World) {
    let base = world.pick(&["base", "base2"]);
    let options = args().set("node-name", "disk").set("driver", "qcow2").set("file", "disk-file").set("backing", base);
    let options = match world.rng.below(4) {
        0 => options.set("discard", "unmap"),
        1 => options.set("lazy-refcounts", true),
        2 => options.set("read-only", true),
        _ => options,
    };
    world.execute("blockdev-reopen", args().set("options", vec![options]));
}

/// A transaction, which fails more often than not.
fn group(world: &mut World) {
    let most = match world.level {
        Level::Easy => 1,
        Level::Medium => 2,
        Level::Hard => 4,
    };
    let count = world.rng.between(1, most);
    let fails = !world.one_in(3);
    let mut actions: Vec<Args> = (0..count).map(|number| one_of_group(world, number, fails)).collect();
    if fails {
        let first = world.one_in(4);
        actions.insert(if first { 0 } else { actions.len() }, action("abort", args()));
    }
    let mode = world.maybe(4, "grouped");
    world.step(transaction(mode, actions));
}

fn one_of_group(world: &mut World, number: u64, fails: bool) -> Args {
    match world.rng.below(8) {
        0 => {
            // An overlay that stays is nobody's but the filter's, and QEMU aborts when that goes (docs/findings.md).
            let node = if fails { world.pick(&["disk", "over1"]) } else { "over1" };
            let image = format!("new{number}");
            let data = args().set("node-name", node).set("snapshot-file", super::disks::path(&image));
            action("blockdev-snapshot-sync", data.set("snapshot-node-name", image).set("format", "qcow2"))
        }
        1 => {
            let device = world.pick(&["disk", "disk", "base", "over1"]);
            let target = world.pick(&["target2", "target2", "target"]);
            let sync = world.pick(&["full", "none", "top"]);
            let data = args().set("job-id", format!("job{}", number + 1)).set("device", device).set("target", target);
            action("blockdev-backup", data.set("sync", sync).set("speed", 65536_u64))
        }
        2 => {
            let command = world.pick(&["clear", "disable", "remove"]);
            let data = args().set("node", "disk").set("name", "bitmap0");
            action(&format!("block-dirty-bitmap-{command}"), data)
        }
        3 => action("block-dirty-bitmap-add", args().set("node", "disk").set("name", format!("new{number}"))),
        _ => {
            let data = snapshot_of(world);
            action("blockdev-snapshot", data)
        }
    }
}
