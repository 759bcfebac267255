//! The family `graph`: nodes come, go and change, rightly and wrongly, and are asked about.
//!
//! Must never start a job: nothing here happens but what a command does before it answers.

use super::disks::{file, image_step, path};
use super::graph_apart::{ask_more, other_backing, other_rules, snapshot, tools, window};
use super::guest::Mix;
use super::model::{Disk, Format};
use super::pick::size_value;
use super::world::{Level, World};
use super::yaml::{Args, Script, Step, args};

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    world.vm("launch");
    let rounds = match world.level {
        Level::Easy => world.rng.between(5, 8),
        Level::Medium => world.rng.between(8, 14),
        Level::Hard => world.rng.between(12, 22),
    };
    first_disk(&mut world);
    for _ in 0..rounds {
        if world.disks.is_empty() {
            first_disk(&mut world);
        }
        let act = world.pick(&ACTS);
        act(&mut world);
    }
    if world.coin() {
        nodes(&mut world);
    }
    if world.coin() {
        let images: Vec<(String, Format)> =
            world.disks.iter().filter_map(|disk| Some((disk.image.clone()?, disk.format))).collect();
        world.vm("shutdown");
        if !images.is_empty() {
            tools(&mut world, &images);
        }
    }
    world.script(name, description)
}

type Act = fn(&mut World);

const ACTS: [Act; 22] = [
    another_disk,
    guest,
    guest,
    wrong_add,
    wrong_add,
    wrong_delete,
    delete,
    reopen,
    wrong_reopen,
    resize,
    resize,
    overlay,
    wrong_guest,
    bitmaps,
    ask,
    ask_more,
    snapshot,
    snapshot,
    window,
    window,
    other_backing,
    other_rules,
];

/// A disk whose file has a name, so that it can be reopened.
fn first_disk(world: &mut World) {
    let node = world.new_drive();
    let image = format!("img{}", world.new_image());
    let format = world.weighted(&[(3, Format::Qcow2), (1, Format::Raw)]);
    let size = world.disk_size(8 << 20);
    let cluster = if format == Format::Qcow2 { world.cluster_size(size) } else { None };
    world.step(image_step(&image, format, size, cluster));
    let mut disk = Disk::new(&node, format, size);
    disk.cluster = if format == Format::Qcow2 { cluster.unwrap_or(65536) } else { 0 };
    (disk.image, disk.file_node) = (Some(image.clone()), Some(format!("{node}-file")));
    world.open_as(&node, format, &image, false, disk.file_node.as_deref());
    world.disks.push(disk);
}

fn another_disk(world: &mut World) {
    if world.disks.len() > 4 {
        return;
    }
    match world.rng.below(4) {
        0 => first_disk(world),
        1 => {
            let node = world.new_drive();
            let size = world.disk_size(8 << 20);
            world.add_null(&node, size);
            world.disks.push(Disk::new(&node, Format::Null, size));
        }
        _ => {
            let wish = super::disks::Wish { limit: 8 << 20, any_format: true, backing: false };
            world.empty_disk(wish);
        }
    }
}

fn any_disk(world: &mut World) -> usize {
    world.rng.below(world.disks.len() as u64) as usize
}

fn guest(world: &mut World) {
    let disk = any_disk(world);
    world.guest_at(disk, 3, Mix::All);
}

/// Commands that qemu-io does not take, or can't carry out.
fn wrong_guest(world: &mut World) {
    let disk = any_disk(world);
    let node = world.disks[disk].node.clone();
    let size = world.disks[disk].size;
    let commands = [
        "writ 0 64k".to_string(),
        "write 0".to_string(),
        "write -P 256 0 64k".to_string(),
        "write -u 0 64k".to_string(),
        "write -n 0 64k".to_string(),
        "write -z -P 1 0 64k".to_string(),
        "write 0 64q".to_string(),
        "write 0 4G".to_string(),
        "read 0 64k 1".to_string(),
        format!("read {size} 512"),
        format!("write -z {size} 64k"),
        format!("discard {} 1024", size - 512),
        "length".to_string(),
        "write -x 0 512".to_string(),
        "read -P 0 -s 1k -l 64k 0 64k".to_string(),
    ];
    let node = if world.one_in(8) { "nothing".to_string() } else { node };
    let command = world.pick(&commands);
    world.step(Step::new("qemu-io", node).with("command", command).with("output", true));
}

/// Nodes that can't be added.
fn wrong_add(world: &mut World) {
    let disk = any_disk(world);
    let model = world.disks[disk].clone();
    let image = model.image.clone().unwrap_or_else(|| "missing".to_string());
    if world.one_in(3) {
        let arguments = world.pick(&[names_refused(&model), drivers_refused()].concat());
        return world.execute("blockdev-add", arguments);
    }
    let arguments = world.pick(&options_refused(&model.node, &image));
    world.execute("blockdev-add", arguments);
    if world.one_in(4) {
        // Some of these are taken, depending on the disk; then the node is in nobody's way for long.
        world.execute("blockdev-del", args().set("node-name", "new"));
    }
}

fn names_refused(model: &Disk) -> Vec<Args> {
    let names = [model.node.as_str(), "", "1st", "a b", "a-node-name-that-is-too-long-for-qemu"];
    let null = || args().set("driver", "null-co");
    let mut list: Vec<Args> = names.map(|name| null().set("node-name", name)).to_vec();
    list.push(null());
    list
}

fn drivers_refused() -> Vec<Args> {
    let new = || args().set("node-name", "new");
    vec![
        new(),
        new().set("driver", "qcow3"),
        new().set("driver", "qcow2"),
        new().set("driver", "file"),
        new().set("driver", "file").set("filename", path("missing")),
        new().set("driver", "blkdebug"),
        new().set("driver", "blkdebug").set("image", "nothing"),
        new().set("driver", "null-co").set("size", "big"),
    ]
}

/// Options that are refused, most of them whatever the disk is like.
fn options_refused(node: &str, image: &str) -> Vec<Args> {
    let new = || args().set("node-name", "new");
    let over = |driver: &str, image: &str| new().set("driver", driver).set("file", file(image));
    let blkdebug = || new().set("driver", "blkdebug").set("image", node);
    vec![
        over("qcow2", "missing"),
        over("qcow2", image),
        over("raw", image),
        over("qcow2", image).set("read-only", true),
        over("qcow2", image).set("force-share", true),
        over("qcow2", image).set("bogus", 1_u64),
        over("qcow2", image).set("read-only", "maybe"),
        over("qcow2", image).set("discard", "never"),
        over("qcow2", image).set("detect-zeroes", "unmap"),
        over("qcow2", image).set("backing", "nothing"),
        over("raw", image).set("offset", 100_u64),
        new().set("driver", "qcow2").set("file", "nothing"),
        new().set("driver", "qcow2").set("file", node),
        blkdebug().set("inject-error", vec![args().set("event", "bogus")]),
        blkdebug().set("inject-error", vec![args().set("errno", 5_u64)]),
        blkdebug().set("set-state", vec![args().set("event", "read_aio").set("state", 1_u64)]),
        blkdebug().set("align", 100_u64),
    ]
}

fn wrong_delete(world: &mut World) {
    let disk = any_disk(world);
    let model = world.disks[disk].clone();
    let mut names = vec!["nothing".to_string(), String::new()];
    names.extend(model.file_node.clone());
    let name = world.pick(&names);
    world.execute("blockdev-del", args().set("node-name", name));
}

fn delete(world: &mut World) {
    if world.disks.len() < 2 {
        return;
    }
    let at = any_disk(world);
    let disk = world.disks.remove(at);
    world.execute("blockdev-del", args().set("node-name", &disk.node));
    if let Some(name) = disk.file_node {
        world.execute("blockdev-del", args().set("node-name", name));
    }
}

/// A node with other options.
fn reopen(world: &mut World) {
    let at = any_disk(world);
    let disk = world.disks[at].clone();
    let Some(name) = disk.file_node else {
        return wrong_reopen(world);
    };
    let options = || args().set("node-name", &disk.node).set("driver", disk.format.driver()).set("file", &name);
    match world.rng.below(4) {
        0 => {
            world.disks[at].unmap = true;
            let options = options().set("discard", "unmap");
            let detect = world.maybe(3, "unmap");
            let options = options.maybe("detect-zeroes", detect);
            world.execute("blockdev-reopen", args().set("options", vec![options]));
        }
        1 => {
            world.disks[at].unmap = false;
            world.execute("blockdev-reopen", args().set("options", vec![options()]));
        }
        _ => {
            world.execute("blockdev-reopen", args().set("options", vec![options().set("read-only", true)]));
            let write = Step::new("qemu-io", &disk.node).with("command", "write -P 1 0 512");
            world.step(write.with("output", true));
            if world.one_in(3) {
                world.execute("blockdev-reopen", args().set("options", vec![options()]));
            }
            world.disks[at].unmap = false;
            world.execute("blockdev-reopen", args().set("options", vec![options().set("read-only", false)]));
        }
    }
}

fn wrong_reopen(world: &mut World) {
    let disk = any_disk(world);
    let model = world.disks[disk].clone();
    let name = model.file_node.clone().unwrap_or_else(|| "nothing".to_string());
    let base = || args().set("node-name", &model.node).set("driver", model.format.driver());
    let list = [
        args().set("driver", "qcow2"),
        args().set("node-name", "nothing").set("driver", "qcow2").set("file", &name),
        base().set("file", "nothing"),
        base().set("file", &model.node),
        base(),
        args().set("node-name", &model.node).set("driver", "luks").set("file", &name),
        base().set("file", &name).set("read-only", "yes"),
        base().set("file", &name).set("detect-zeroes", "unmap"),
        base().set("file", &name).set("backing", "nothing"),
    ];
    let options = world.pick(&list);
    world.execute("blockdev-reopen", args().set("options", vec![options]));
}

/// The disk gets another size, or does not.
fn resize(world: &mut World) {
    let at = any_disk(world);
    let (node, size) = (world.disks[at].node.clone(), world.disks[at].size);
    let resizable = world.disks[at].format != Format::Null && world.disks[at].bitmaps.iter().all(|one| !one.persistent);
    let arguments = |size: i64| args().set("node-name", &node).set("size", size);
    if world.one_in(3) {
        let wrong = world.pick(&[0, -512, 1000, size as i64 + 1]);
        world.execute("block_resize", arguments(wrong));
        return;
    }
    let sizes = [size + 512, size + 65536, size + (1 << 20), size * 2, size / 2 / 512 * 512, 512, size];
    let other = world.pick(&sizes).clamp(512, 64 << 20);
    world.execute("block_resize", arguments(other as i64));
    if resizable {
        let disk = &mut world.disks[at];
        disk.size = other;
        disk.content.clear();
        disk.bitmaps.iter_mut().for_each(|bitmap| bitmap.known = false);
    }
    world.step(Step::new("qemu-io", node).with("command", "length").with("output", true));
    if world.coin() {
        world.query_bitmaps();
    }
}

/// An image on top of another one, and a snapshot that makes it the disk.
fn overlay(world: &mut World) {
    let at = any_disk(world);
    let disk = world.disks[at].clone();
    let Some(image) = disk.image.clone() else { return };
    let number = world.new_image();
    let (top, node) = (format!("top{number}"), format!("overlay{number}"));
    let format = (disk.format == Format::Raw).then_some("raw");
    if world.coin() {
        world.step(image_step(&top, Format::Qcow2, disk.size, None));
        let options = args().set("node-name", &node).set("driver", "qcow2").set("file", file(&top));
        world.execute("blockdev-add", options.set("backing", &disk.node));
    } else {
        let step = Step::new("image", &top).with("size", size_value(disk.size)).with("backing", image);
        world.step(match format {
            Some(format) => step.with("backing-format", format),
            None => step,
        });
        // Its backing image can't be opened a second time while the disk may write to it.
        let options = args().set("node-name", &node).set("driver", "qcow2").set("file", file(&top));
        if world.coin() {
            world.execute("blockdev-add", options.clone());
        }
        world.execute("blockdev-add", options.set("backing", &disk.node));
    }
    let (offset, bytes) = world.place(disk.size);
    let read = world.read_command(at, offset, bytes);
    let write = format!("write -P 77 {} {}", world.number(offset), world.number(bytes.min(65536)));
    let commands = vec![read.clone(), write, read];
    world.step(Step::new("qemu-io", &node).with("commands", commands).with("output", true));
    if world.coin() {
        let map = Step::new("qemu-io", &node).with("command", "map").with("output", true);
        world.step(map);
    }
    if world.one_in(3) {
        // In use, so that it stays.
        world.execute("blockdev-del", args().set("node-name", &disk.node));
    }
    world.execute("blockdev-del", args().set("node-name", &node));
}

fn bitmaps(world: &mut World) {
    let at = any_disk(world);
    match world.disks[at].bitmaps.first().map(|bitmap| bitmap.name.clone()) {
        Some(name) if world.coin() => world.expect_bitmap(at, &name),
        Some(_) => world.query_bitmaps(),
        None => drop(world.add_bitmap(at, false)),
    }
}

fn ask(world: &mut World) {
    match world.rng.below(5) {
        0 => world.execute("query-block", args()),
        1 => world.query_jobs(),
        2 => world.query_events(),
        _ => nodes(world),
    }
}

fn nodes(world: &mut World) {
    let arguments = if world.coin() { args().set("flat", true) } else { args() };
    world.execute("query-named-block-nodes", arguments);
}
