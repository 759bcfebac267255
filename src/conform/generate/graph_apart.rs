//! The family `graph`, what happens to nodes beside coming and going: overlays by snapshot, parts of a node, other
//! backing nodes by reopen, queries, and what qemu-img says of the images when the machine is gone.
//!
//! Must never leave a node behind that keeps a later act from a disk.

use super::disks::{file, image_step, path};
use super::model::{Disk, Format};
use super::world::{World, action, transaction};
use super::yaml::{Step, Yaml, args};

/// An overlay on top of a disk, by either command, with or without a way back.
pub(super) fn snapshot(world: &mut World) {
    let at = world.rng.below(world.disks.len() as u64) as usize;
    let disk = world.disks[at].clone();
    if world.one_in(4) {
        return wrong_snapshot(world, &disk);
    }
    let number = world.new_image();
    let (image, overlay) = (format!("snap{number}"), format!("snap{number}"));
    if world.coin() {
        // By its node name, since the graph below may have no name that an image could hold.
        let data = args().set("node-name", &disk.node).set("snapshot-file", path(&image));
        let data = data.set("snapshot-node-name", &overlay);
        let format = world.maybe(4, "qcow2");
        let mode = world.maybe(4, "absolute-paths");
        world.execute("blockdev-snapshot-sync", data.maybe("format", format).maybe("mode", mode));
        // Nobody uses the overlay, so that it is gone already.
        return world.execute("query-named-block-nodes", args().set("flat", true));
    }
    let size = if world.one_in(6) { disk.size * 2 } else { disk.size };
    world.step(image_step(&image, Format::Qcow2, size, None));
    let options = args().set("node-name", &overlay).set("driver", "qcow2").set("file", file(&image));
    // One that could have a backing file of its own is no overlay.
    let options = if world.one_in(6) { options } else { options.set("backing", Yaml::Null) };
    world.execute("blockdev-add", options);
    let data = args().set("node", &disk.node).set("overlay", &overlay);
    match world.rng.below(4) {
        0 => {
            let bitmap = args().set("node", &overlay).set("name", "on-top");
            let last = if world.coin() { action("abort", args()) } else { action("block-dirty-bitmap-add", bitmap) };
            world.step(transaction(None, vec![action("blockdev-snapshot", data), last]));
        }
        _ => world.execute("blockdev-snapshot", data),
    }
    use_overlay(world, at, &disk, &overlay);
}

fn use_overlay(world: &mut World, at: usize, disk: &Disk, overlay: &str) {
    let (offset, bytes) = world.place(disk.size);
    let bytes = bytes.min(128 << 10);
    let read = world.read_command(at, offset, bytes);
    let write = format!("write -P 88 {} {}", world.number(offset), world.number(bytes));
    let commands = vec!["length".to_string(), read.clone(), write, read, "map".to_string()];
    world.step(Step::new("qemu-io", overlay).with("commands", commands).with("output", true));
    if world.coin() {
        let write = Step::new("qemu-io", &disk.node).with("command", "write -P 1 0 512");
        world.step(write);
        // Where the snapshot was taken back the disk is still one's own.
        world.disks[at].write(0, 512, 1);
    }
    if world.one_in(3) {
        world.execute("query-named-block-nodes", args().set("flat", true));
    }
    if world.one_in(3) {
        // In use, so that it stays.
        world.execute("blockdev-del", args().set("node-name", &disk.node));
    }
    world.execute("blockdev-del", args().set("node-name", overlay));
    // What the disk holds and counts depends on how the snapshot went.
    world.disks[at].content.clear();
    world.disks[at].bitmaps.iter_mut().for_each(|bitmap| bitmap.known = false);
}

/// Snapshots that can't be.
fn wrong_snapshot(world: &mut World, disk: &Disk) {
    let (node, file_node) = (&disk.node, disk.file_node.clone().unwrap_or_else(|| "nothing".to_string()));
    let snapshot = |node: &str, overlay: &str| args().set("node", node).set("overlay", overlay);
    let sync = |node: &str| args().set("node-name", node).set("snapshot-file", path("snap-never"));
    let list = [
        ("blockdev-snapshot", snapshot("nothing", node)),
        ("blockdev-snapshot", snapshot(node, "nothing")),
        ("blockdev-snapshot", snapshot(node, node)),
        ("blockdev-snapshot", snapshot(node, &file_node)),
        ("blockdev-snapshot", args().set("node", node)),
        ("blockdev-snapshot-sync", sync(node)),
        ("blockdev-snapshot-sync", sync("nothing").set("snapshot-node-name", "over")),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", node)),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", "1st")),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", "over").set("format", "bogus")),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", "over").set("format", "raw")),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", "over").set("mode", "existing")),
        ("blockdev-snapshot-sync", sync(node).set("snapshot-node-name", "over").set("mode", "bogus")),
        ("blockdev-snapshot-sync", args().set("snapshot-file", path("snap-never"))),
        ("blockdev-snapshot-sync", args().set("node-name", node).set("snapshot-node-name", "over")),
    ];
    let (command, arguments) = world.pick(&list);
    world.execute(command, arguments);
}

/// A node that shows a part of another one.
pub(super) fn window(world: &mut World) {
    let number = world.new_image();
    let (image, below, part) = (format!("whole{number}"), format!("whole{number}"), format!("part{number}"));
    let size = world.pick(&[1_u64 << 20, 4 << 20, (1 << 20) + 512, 100 << 10]);
    world.step(image_step(&image, Format::Raw, size, None));
    let arguments = args().set("node-name", &below).set("driver", "file").set("filename", path(&image));
    world.execute("blockdev-add", arguments);
    let places = [
        (Some(512), None),
        (Some(4096), Some(65536)),
        (Some(65536), Some(size - 65536 - size % 512)),
        (Some(1000), None),
        (None, Some(65536)),
        (None, Some(size)),
        (Some(0), None),
        (Some(size), None),
        (Some(size + 512), None),
        (Some(512), Some(size)),
        (None, Some(1000)),
    ];
    let options = |node: &str, (offset, bytes): (Option<u64>, Option<u64>)| {
        let options = args().set("node-name", node).set("driver", "raw").set("file", &below);
        options.maybe("offset", offset).maybe("size", bytes)
    };
    let first = world.pick(&places);
    world.execute("blockdev-add", options(&part, first));
    through_window(world, &part);
    match world.rng.below(4) {
        0 => {
            let other = world.pick(&places);
            world.execute("blockdev-reopen", args().set("options", vec![options(&part, other)]));
            through_window(world, &part);
        }
        1 => {
            let bytes = world.pick(&[65536_u64, 512, 1 << 20, 2 << 20]);
            world.execute("block_resize", args().set("node-name", &part).set("size", bytes));
            let look = vec!["length", "map"];
            world.step(Step::new("qemu-io", &part).with("commands", look).with("output", true));
        }
        2 => {
            let second = world.pick(&places);
            let other = format!("{part}-too");
            world.execute("blockdev-add", options(&other, second));
            through_window(world, &other);
            world.execute("blockdev-del", args().set("node-name", other));
        }
        _ => world.execute("query-named-block-nodes", args().set("flat", true)),
    }
    world.execute("blockdev-del", args().set("node-name", &part));
    let read = "read -P 5 512 512";
    world.step(Step::new("qemu-io", &below).with("commands", vec!["length", read]).with("output", true));
    world.execute("blockdev-del", args().set("node-name", &below));
}

/// Requests within a part and beyond its ends.
fn through_window(world: &mut World, part: &str) {
    let commands = [
        "write -P 5 0 512",
        "write -P 6 0 64k",
        "write -P 7 60k 8k",
        "write -z 4k 64k",
        "read 0 64k",
        "read 64k 64k",
        "discard 0 4k",
        "write -P 8 65024 512",
        "alloc 0 64k",
        "map",
    ];
    let count = world.rng.between(2, 4) as usize;
    let mut commands = world.some_of(&commands, count);
    commands.insert(0, "length");
    world.step(Step::new("qemu-io", part).with("commands", commands).with("output", true));
}

/// A node on top of one and then of another.
pub(super) fn other_backing(world: &mut World) {
    let number = world.new_image();
    let names = ["low", "high", "top"].map(|name| format!("{name}{number}"));
    for (place, name) in names.iter().enumerate() {
        let size = if place == 0 { world.pick(&[1_u64 << 20, 512 << 10]) } else { 1 << 20 };
        world.step(image_step(name, Format::Qcow2, size, None));
        let options = args().set("node-name", name).set("driver", "qcow2").set("file", file(name));
        let options = if place == 2 { options.set("backing", &names[0]) } else { options };
        world.execute("blockdev-add", options);
        if place < 2 {
            let write = format!("write -P {} {}k 128k", place + 11, place * 192);
            world.step(Step::new("qemu-io", name).with("command", write).with("log", "none"));
        }
    }
    let [low, high, top] = &names;
    let look = ["read -P 11 0 64k", "read -P 12 192k 64k", "write -P 13 64k 4k", "alloc 64k 64k", "map"];
    let base = || args().set("node-name", top).set("driver", "qcow2").set("file", file(top));
    for _ in 0..world.rng.between(1, 3) {
        let count = world.rng.between(2, 4) as usize;
        let commands = world.some_of(&look, count);
        world.step(Step::new("qemu-io", top).with("commands", commands).with("output", true));
        let options = match world.rng.below(8) {
            0 => base(),
            1 => base().set("backing", Yaml::Null),
            2 => base().set("backing", top),
            3 => base().set("backing", "nothing"),
            4 => base().set("backing", low).set("read-only", true),
            5 => base().set("backing", low),
            _ => base().set("backing", high),
        };
        world.execute("blockdev-reopen", args().set("options", vec![options]));
    }
    if world.coin() {
        let wrong = args().set("node-name", low).set("driver", "qcow2").set("file", file(low)).set("backing", top);
        world.execute("blockdev-reopen", args().set("options", vec![wrong]));
    }
    world.execute("query-named-block-nodes", args().set("flat", true));
    for name in [top, high, low] {
        world.execute("blockdev-del", args().set("node-name", name));
    }
}

/// A blkdebug node that is given other rules, or asked to.
pub(super) fn other_rules(world: &mut World) {
    let number = world.new_image();
    let (image, debug, top) = (format!("ruled{number}"), format!("rules{number}"), format!("ruled{number}"));
    world.step(image_step(&image, Format::Qcow2, 1 << 20, None));
    let errno = world.pick(&[5_u64, 28]);
    let event = world.pick(&["write_aio", "read_aio", "flush_to_disk", "cluster_alloc", "l2_load"]);
    let rule = args().set("event", event).set("errno", errno).set("once", world.coin());
    let plain = args().set("node-name", &debug).set("driver", "blkdebug").set("image", file(&image));
    let ruled = plain.clone().set("inject-error", vec![rule]);
    let (first, second) = if world.coin() { (plain, ruled) } else { (ruled, plain) };
    world.execute("blockdev-add", first);
    let arguments = args().set("node-name", &top).set("driver", "qcow2").set("file", &debug);
    world.execute("blockdev-add", arguments);
    let requests = vec!["write -P 1 0 64k", "write -P 2 64k 4k", "read -P 1 0 4k", "flush"];
    let step = Step::new("qemu-io", &top).with("commands", requests).with("output", true);
    world.step(step.clone());
    world.execute("blockdev-reopen", args().set("options", vec![second]));
    world.step(step);
    world.execute("blockdev-del", args().set("node-name", &top));
    world.execute("blockdev-del", args().set("node-name", &debug));
}

/// Questions that no other act asks.
pub(super) fn ask_more(world: &mut World) {
    let commands = [
        "query-block",
        "query-block-exports",
        "query-jobs",
        "query-block-jobs",
        "query-status",
        "query-named-block-nodes",
    ];
    let command = world.pick(&commands);
    world.execute(command, args());
}

/// What qemu-img says of, and does to, images that no machine has open any more.
pub(super) fn tools(world: &mut World, images: &[(String, Format)]) {
    for _ in 0..world.rng.between(1, 4) {
        let (image, format) = world.pick(images);
        let place = path(&image);
        let driver = format.driver();
        let number = world.new_image();
        let copy = path(&format!("copy{number}"));
        let lists: [&[&str]; 17] = [
            &["info", &place],
            &["check", &place],
            &["check", "-f", driver, &place],
            &["check", "-r", "all", &place],
            &["map", "-f", driver, &place],
            &["map", "--output=json", "-f", driver, &place],
            &["resize", "-f", driver, &place, "+1M"],
            &["resize", "-f", driver, &place, "512K"],
            &["resize", "-f", driver, "--shrink", &place, "64K"],
            &["bitmap", "--add", &place, "tool"],
            &["bitmap", "--add", "-g", "32K", "--disable", &place, "tool"],
            &["bitmap", "--remove", &place, "tool"],
            &["convert", "-f", driver, "-O", "qcow2", &place, &copy],
            &["convert", "-f", driver, "-O", "raw", &place, &copy],
            &["convert", "-c", "-f", driver, "-O", "qcow2", &place, &copy],
            &["compare", "-f", driver, "-F", driver, &place, &place],
            &["info", "-f", "qcow2", &place],
        ];
        let command = world.pick(&lists);
        let converts = command[0] == "convert";
        let words: Vec<String> = command.iter().map(|word| word.to_string()).collect();
        world.step(Step::new("qemu-img", words));
        if converts {
            let words = ["compare", &place, &copy].map(str::to_string).to_vec();
            world.step(Step::new("qemu-img", words));
        }
    }
}
