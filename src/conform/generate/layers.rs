//! The family `layers`: a chain of named nodes, with jobs, filters, bitmaps, guests and resizes at any of them.
//!
//! Most of it is not what anybody does to a disk, which is why it is worth asking. Each job has one worker: the order in
//! which more of them allocate is not the same twice.

use super::disks::{file, path};
use super::pick::size_value;
use super::world::{Level, World, action, transaction};
use super::yaml::{Args, Script, Step, args};

/// Sizes of a disk, and of the file of an image of that size whose clusters are all allocated.
const SIZES: [(u64, u64); 2] = [(256 << 10, 589_824), (1 << 20, 1_376_256)];
/// The file of an image without clusters, in whole sectors.
const EMPTY: u64 = 197_120;

/// A node of the chain and its length, bytes.
#[derive(Clone)]
struct Layer {
    node: String,
    bytes: u64,
    driver: &'static str,
}

#[derive(Default)]
struct Chain {
    layers: Vec<Layer>,
    /// Bitmaps by node and name.
    bitmaps: Vec<(String, String)>,
    /// Jobs that go on until somebody ends them.
    jobs: Vec<String>,
    filters: Vec<String>,
    /// Targets that are images, with their format.
    targets: Vec<(String, &'static str)>,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    let mut chain = build(&mut world);
    let rounds = match world.level {
        Level::Easy => world.rng.between(4, 6),
        Level::Medium => world.rng.between(6, 10),
        Level::Hard => world.rng.between(10, 16),
    };
    guest(&mut world, &chain, true);
    for _ in 0..rounds {
        round(&mut world, &mut chain);
    }
    nodes(&mut world);
    for job in std::mem::take(&mut chain.jobs) {
        world.execute("block-job-cancel", args().set("device", job));
    }
    guest(&mut world, &chain, true);
    nodes(&mut world);
    world.vm("shutdown");
    for (image, format) in &chain.targets {
        world.step(Step::new("qemu-img", vec!["compare", "-f", format, &path(image), &path("disk")]));
    }
    world.script(name, description)
}

/// An image with every node by name: the file, perhaps something above it, the image, perhaps something above that.
fn build(world: &mut World) -> Chain {
    let (size, allocated) = world.pick(&SIZES);
    let is_raw = world.one_in(3);
    // One that grows ends the machine, once the file has a bitmap or a job (docs/findings.md).
    let grows = !is_raw && world.one_in(6);
    let bytes = match (is_raw, grows) {
        (true, _) => size,
        (false, true) => EMPTY,
        (false, false) => allocated,
    };
    let disk = Step::new("image", "disk").with_if(is_raw, "format", "raw").with("size", size_value(size));
    let options = args().set("preallocation", "full");
    world.step(disk.with_if(!is_raw && !grows, "options", options));
    world.vm("launch");
    let mut chain = Chain::default();
    let mut top = chain.add(world, ("file", bytes), "file", args().set("filename", path("disk")));
    if world.one_in(3) {
        top = between(world, &mut chain, &top, bytes);
    }
    let format = if is_raw { "raw" } else { "qcow2" };
    top = chain.add(world, ("disk", size), format, args().set("file", top));
    if world.one_in(3) {
        between(world, &mut chain, &top, size);
    }
    chain
}

/// A node that passes on what it is asked for.
fn between(world: &mut World, chain: &mut Chain, below: &str, bytes: u64) -> String {
    let node = format!("over-{below}");
    let driver = world.pick(&["raw", "blkdebug", "copy-before-write"]);
    let options = match driver {
        "blkdebug" => args().set("image", below),
        "raw" => args().set("file", below),
        _ => {
            let target = format!("{below}-old");
            world.add_null(&target, bytes);
            chain.filters.push(node.clone());
            args().set("file", below).set("target", target)
        }
    };
    chain.add(world, (&node, bytes), driver, options)
}

impl Chain {
    fn add(&mut self, world: &mut World, (node, bytes): (&str, u64), driver: &'static str, options: Args) -> String {
        let discard = world.maybe(2, "unmap");
        let options = options.set("driver", driver).set("node-name", node);
        world.execute("blockdev-add", options.maybe("discard", discard));
        self.layers.push(Layer { node: node.to_owned(), bytes, driver });
        node.to_owned()
    }

    fn any(&self, world: &mut World) -> Layer {
        world.pick(&self.layers)
    }

    /// A bitmap that was added, or one that was not.
    fn any_bitmap(&self, world: &mut World) -> (String, String) {
        match self.bitmaps.is_empty() {
            true => (self.any(world).node, "nothing".to_owned()),
            false => world.pick(&self.bitmaps),
        }
    }
}

fn round(world: &mut World, chain: &mut Chain) {
    match world.rng.below(18) {
        0..=2 => {
            let (arguments, ends_soon) = backup(world, chain);
            world.execute("blockdev-backup", arguments);
            if ends_soon {
                world.sleep(200);
            }
        }
        3 => {
            // Together or not at all.
            let actions = [backup(world, chain), backup(world, chain)];
            let mode = world.maybe(3, "grouped");
            let actions = actions.into_iter().map(|(data, _)| action("blockdev-backup", data)).collect();
            world.step(transaction(mode, actions));
            world.sleep(200);
        }
        4 | 5 => add_bitmap(world, chain),
        6..=9 => {
            let at_top = !world.one_in(4);
            guest(world, chain, at_top);
        }
        10 => nodes(world),
        11 | 12 => change_bitmap(world, chain),
        13 => {
            let layer = chain.any(world);
            let size = world.pick(&[layer.bytes + 65536, layer.bytes * 2, layer.bytes / 2]);
            world.execute("block_resize", args().set("node-name", layer.node).set("size", size));
        }
        14 => look_back(world, chain),
        15 | 16 => reopen(world, chain),
        _ => match chain.jobs.pop() {
            Some(job) => world.execute("block-job-cancel", args().set("device", job)),
            None => {
                let node = chain.any(world).node;
                world.execute("blockdev-del", args().set("node-name", node));
            }
        },
    }
}

/// A node over another one of the chain than before, or over a filter of a job: one comes between, or goes.
fn reopen(world: &mut World, chain: &Chain) {
    let layer = chain.any(world);
    let mut below: Vec<String> = chain.layers.iter().map(|layer| layer.node.clone()).collect();
    below.extend(chain.filters.iter().cloned());
    let options = args().set("driver", layer.driver).set("node-name", layer.node);
    let options = match layer.driver {
        "file" => options.set("filename", path("disk")),
        "blkdebug" => options.set("image", world.pick(&below)),
        _ => options.set("file", world.pick(&below)),
    };
    world.execute("blockdev-reopen", args().set("options", vec![options]));
}

/// The arguments of a backup of any node, and whether it ends soon or goes on.
fn backup(world: &mut World, chain: &mut Chain) -> (Args, bool) {
    let layer = chain.any(world);
    let target = world.new_target();
    match world.pick(&["null", "raw", "qcow2"]) {
        "null" => world.add_null(&target, layer.bytes),
        format => {
            let image = Step::new("image", &target).with("format", format).with("size", layer.bytes);
            world.step(image);
            let options = args().set("node-name", &target).set("driver", format).set("file", file(&target));
            world.execute("blockdev-add", options);
            chain.targets.push((target.clone(), format));
        }
    }
    let job = world.new_job();
    let of_node: Vec<String> =
        chain.bitmaps.iter().filter(|(node, _)| *node == layer.node).map(|(_, name)| name.clone()).collect();
    let sync = match world.pick(&["none", "none", "full", "incremental"]) {
        "incremental" if of_node.is_empty() => "full",
        sync => sync,
    };
    let bitmap = (sync == "incremental").then(|| world.pick(&of_node));
    let filter = world.coin().then(|| format!("filter-{job}"));
    let arguments = args().set("job-id", &job).set("device", layer.node).set("target", target).set("sync", sync);
    let arguments = arguments.maybe("bitmap", bitmap).maybe("filter-node-name", filter.clone());
    let ends_soon = sync != "none";
    if !ends_soon {
        chain.filters.extend(filter);
        chain.jobs.push(job);
    }
    (arguments.set("x-perf", args().set("max-workers", 1_u64)), ends_soon)
}

fn add_bitmap(world: &mut World, chain: &mut Chain) {
    let (node, name) = (chain.any(world).node, format!("bitmap{}", chain.bitmaps.len()));
    let granularity = world.maybe(2, 4096_u64);
    let persistent = world.maybe(3, true);
    let arguments = args().set("node", &node).set("name", &name).maybe("granularity", granularity);
    let arguments = arguments.maybe("persistent", persistent);
    world.execute("block-dirty-bitmap-add", arguments);
    chain.bitmaps.push((node, name));
}

fn change_bitmap(world: &mut World, chain: &Chain) {
    let ((node, name), (other, source)) = (chain.any_bitmap(world), chain.any_bitmap(world));
    let command = world.pick(&["clear", "disable", "remove", "merge", "merge"]);
    let arguments = args().set("node", node);
    let arguments = match command {
        "merge" => arguments.set("target", name).set("bitmaps", vec![args().set("node", other).set("name", source)]),
        _ => arguments.set("name", name),
    };
    world.execute(&format!("block-dirty-bitmap-{command}"), arguments);
}

/// A guest at the top, or somewhere on the way down, where it may not write.
fn guest(world: &mut World, chain: &Chain, at_top: bool) {
    let layer = match chain.layers.last() {
        Some(top) if at_top => top.clone(),
        _ => chain.any(world),
    };
    let count = world.rng.between(1, 3);
    let mut commands: Vec<String> = Vec::new();
    for _ in 0..count {
        let (offset, bytes) = world.place(layer.bytes);
        let (place, pattern) = (format!("{} {}", world.number(offset), world.number(bytes)), world.pattern());
        commands.push(match world.rng.below(8) {
            0..=3 => format!("write -P {pattern} {place}"),
            4 => format!("write -z {place}"),
            5 => format!("write -z -u {place}"),
            6 => format!("discard {place}"),
            _ => format!("read {place}"),
        });
    }
    world.step(Step::new("qemu-io", layer.node).with("commands", commands).with("output", true));
}

/// Reads what a filter keeps.
fn look_back(world: &mut World, chain: &Chain) {
    if chain.filters.is_empty() {
        return nodes(world);
    }
    let filter = world.pick(&chain.filters);
    let options = args().set("node-name", "snapshot").set("driver", "snapshot-access").set("file", filter);
    world.execute("blockdev-add", options);
    let look = Step::new("qemu-io", "snapshot").with("commands", vec!["read 0 128k", "length"]);
    world.step(look.with("output", true));
    world.execute("blockdev-del", args().set("node-name", "snapshot"));
}

fn nodes(world: &mut World) {
    world.execute("query-named-block-nodes", args().set("flat", true));
}
