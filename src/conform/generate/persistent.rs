//! The family `persistent`: bitmaps that outlive their node, their machine, or neither.
//!
//! The image remembers what was stored; a killed machine leaves those bitmaps inconsistent. Must never run qemu-img
//! on an image that a machine has open, but to be told so.

use super::disks::{path, qemu_img};
use super::guest::Mix;
use super::model::{Bitmap, Change, Disk, Format, change};
use super::pick::BITMAPS;
use super::world::{Level, World};
use super::yaml::{Script, Step, args};

/// The image under test, and what is stored in it.
struct Image {
    size: u64,
    cluster: u64,
    stored: Vec<Bitmap>,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Shutdown,
    Kill,
    Removed,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    if world.one_in(6) {
        return table(world, name, description);
    }
    world.vm("launch");
    let mut size = world.disk_size(64 << 20);
    if !size.is_multiple_of(65536) && world.coin() {
        size = 16 << 20;
    }
    let cluster = world.cluster_size(size);
    world.step(super::disks::image_step("img", Format::Qcow2, size, cluster));
    let mut image = Image { size, cluster: cluster.unwrap_or(65536), stored: Vec::new() };
    let rounds = match world.level {
        Level::Easy => 2,
        Level::Medium => world.rng.between(2, 3),
        Level::Hard => world.rng.between(3, 5),
    };
    for round in 0..rounds {
        let last = round + 1 == rounds;
        if round > 0 && world.one_in(6) {
            read_only(&mut world, &image);
        }
        open(&mut world, &image, round > 0);
        first_bitmaps(&mut world, round == 0);
        work(&mut world, &mut image);
        if !last && world.one_in(5) {
            backup(&mut world);
        }
        let end = finish(&mut world, &mut image);
        look(&mut world, last);
        if !last {
            edit(&mut world, &mut image);
            world.headline("Again");
            if end != End::Removed {
                world.vm("launch");
            }
        }
    }
    world.script(name, description)
}

fn open(world: &mut World, image: &Image, again: bool) {
    let mut disk = Disk::new("drive0", Format::Qcow2, image.size);
    disk.image = Some("img".to_string());
    disk.cluster = image.cluster;
    disk.bitmaps = image.stored.clone();
    disk.unmap = world.one_in(6);
    disk.file_node = world.open("drive0", Format::Qcow2, "img", disk.unmap);
    world.disks.push(disk);
    if again {
        world.query_bitmaps();
    }
}

fn first_bitmaps(world: &mut World, first: bool) {
    let count = if first { world.rng.between(1, 4) } else { world.rng.below(2) };
    for _ in 0..count {
        let taken: Vec<&str> = BITMAPS.into_iter().filter(|name| world.disks[0].bitmap(name).is_none()).collect();
        if taken.is_empty() {
            return;
        }
        let name = world.pick(&taken);
        let granularity = world.granularity().map(|bytes| bytes as i64);
        let (persistent, disabled) = (!world.one_in(4), world.one_in(4));
        send_add(world, name, granularity, persistent, disabled);
    }
}

fn send_add(world: &mut World, name: &str, granularity: Option<i64>, persistent: bool, disabled: bool) {
    let arguments = args().set("node", "drive0").set("name", name).maybe("granularity", granularity);
    let arguments = arguments.maybe("persistent", persistent.then_some(true));
    world.execute("block-dirty-bitmap-add", arguments.maybe("disabled", disabled.then_some(true)));
    change(&mut world.disks, "drive0", name, &Change::Add { granularity, persistent, disabled });
}

/// What happens while the image is open.
fn work(world: &mut World, image: &mut Image) {
    for _ in 0..world.rng.between(1, 3) {
        match world.rng.below(8) {
            0..=2 => command(world, image),
            3 => merge(world),
            4 => toggle_read_only(world, image),
            5 if world.one_in(2) => locked(world),
            _ => world.query_bitmaps(),
        }
    }
    world.guest_at(0, 4, Mix::Writes);
    let names: Vec<String> = world.disks[0].bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
    if names.is_empty() || world.one_in(3) {
        world.query_bitmaps();
    } else {
        let name = world.pick(&names);
        world.expect_bitmap(0, &name);
    }
}

/// A command for a stored bitmap: refused if that is inconsistent.
fn command(world: &mut World, image: &mut Image) {
    let name = world.pick_bitmap(0, 8);
    let (command, effect) = world.pick(&[
        ("block-dirty-bitmap-clear", Change::Clear),
        ("block-dirty-bitmap-disable", Change::Disable),
        ("block-dirty-bitmap-enable", Change::Enable),
        ("block-dirty-bitmap-remove", Change::Remove),
    ]);
    world.execute(command, args().set("node", "drive0").set("name", &name));
    if change(&mut world.disks, "drive0", &name, &effect) && effect == Change::Remove {
        // A persistent bitmap leaves the image at once.
        image.stored.retain(|bitmap| bitmap.name != name);
    }
}

fn merge(world: &mut World) {
    let (target, source) = (world.pick_bitmap(0, 8), world.pick_bitmap(0, 8));
    let arguments = args().set("node", "drive0").set("target", &target).set("bitmaps", vec![source.clone()]);
    world.execute("block-dirty-bitmap-merge", arguments);
    let effect = Change::Merge(vec![("drive0".to_string(), source)]);
    change(&mut world.disks, "drive0", &target, &effect);
}

/// The node turns read-only and back; the bitmaps go with it.
fn toggle_read_only(world: &mut World, image: &mut Image) {
    let Some(file) = world.disks[0].file_node.clone() else {
        return world.query_bitmaps();
    };
    let discard = world.disks[0].unmap.then_some("unmap");
    for read_only in [true, false] {
        let options = args().set("node-name", "drive0").set("driver", "qcow2").set("file", &file);
        let options = options.set("read-only", read_only).maybe("discard", discard);
        world.execute("blockdev-reopen", args().set("options", vec![options]));
        if read_only {
            let name = world.pick_bitmap(0, 1);
            if world.coin() {
                world.execute("block-dirty-bitmap-clear", args().set("node", "drive0").set("name", name));
            }
            world.query_bitmaps();
        }
    }
    // They were stored on the way, so that a kill finds them in the image.
    image.stored = world.disks[0].bitmaps.iter().filter(|bitmap| bitmap.persistent).cloned().collect();
    // What a transient bitmap is afterwards, QEMU is asked and not the model.
    world.disks[0].bitmaps.iter_mut().for_each(|bitmap| bitmap.known = false);
}

/// qemu-img is told that the machine has the image open.
fn locked(world: &mut World) {
    let command = world.pick(&["info", "check"]);
    world.step(qemu_img(command, "img"));
}

/// The image is opened read-only: nothing about its bitmaps can be changed.
fn read_only(world: &mut World, image: &Image) {
    let file = super::disks::file("img");
    let arguments = args().set("node-name", "drive0").set("driver", "qcow2").set("file", file);
    world.execute("blockdev-add", arguments.set("read-only", true));
    world.query_bitmaps();
    let names: Vec<String> = image.stored.iter().map(|bitmap| bitmap.name.clone()).collect();
    for _ in 0..world.rng.between(1, 3) {
        let name = if names.is_empty() { "b".to_string() } else { world.pick(&names) };
        let command = world.pick(&[
            "block-dirty-bitmap-remove",
            "block-dirty-bitmap-clear",
            "block-dirty-bitmap-disable",
            "block-dirty-bitmap-enable",
            "x-debug-block-dirty-bitmap-sha256",
        ]);
        world.execute(command, args().set("node", "drive0").set("name", name));
    }
    if world.coin() {
        let write = Step::new("qemu-io", "drive0").with("command", "write -P 1 0 512");
        world.step(write.with("output", true));
    }
    if world.one_in(3) {
        let add = args().set("node", "drive0").set("name", "ro").set("persistent", world.coin());
        world.execute("block-dirty-bitmap-add", add);
        world.query_bitmaps();
    }
    world.execute("blockdev-del", args().set("node-name", "drive0"));
}

/// A backup with one of the bitmaps.
fn backup(world: &mut World) {
    world.headline("Backup");
    let usable = |bitmap: &&Bitmap| !bitmap.inconsistent;
    let names: Vec<String> = world.disks[0].bitmaps.iter().filter(usable).map(|one| one.name.clone()).collect();
    if names.is_empty() {
        return;
    }
    let name = world.pick(&names);
    let size = world.disks[0].size;
    let target = world.target(size, false);
    let mut backup = world.backup(0, &target);
    backup.bitmap = Some(name.clone());
    (backup.sync, backup.mode) = match world.rng.below(3) {
        0 => ("full", Some(world.pick(&["on-success", "always"]))),
        _ => ("bitmap", Some(world.pick(&["on-success", "always", "never"]))),
    };
    world.start(&backup);
    world.follow(0, &backup);
    world.expect_bitmap(0, &name);
    if world.coin() {
        world.remove_target(&target);
    }
}

/// Ends the round, and does to the image what that does.
fn finish(world: &mut World, image: &mut Image) -> End {
    let end = world.weighted(&[(4, End::Shutdown), (3, End::Kill), (3, End::Removed)]);
    world.headline(match end {
        End::Shutdown => "Shutdown",
        End::Kill => "Kill",
        End::Removed => "Node removed",
    });
    let bitmaps = world.disks[0].bitmaps.clone();
    match end {
        End::Shutdown => world.vm("shutdown"),
        End::Kill => {
            if world.coin() {
                world.guest_commands("drive0", vec!["flush".to_string()]);
            }
            world.vm("kill");
        }
        End::Removed => {
            let file_node = world.disks[0].file_node.clone();
            world.execute("blockdev-del", args().set("node-name", "drive0"));
            if let Some(name) = file_node {
                world.execute("blockdev-del", args().set("node-name", name));
            }
            world.disks.retain(|disk| disk.node != "drive0");
        }
    }
    if end == End::Kill {
        image.stored.iter_mut().for_each(|bitmap| bitmap.inconsistent = true);
    } else {
        image.stored = bitmaps.into_iter().filter(|bitmap| bitmap.persistent).collect();
    }
    end
}

/// What qemu-img has to say about the image.
fn look(world: &mut World, last: bool) {
    let info = Step::new("qemu-img", vec!["info".to_string(), "--output=json".to_string(), path("img")]);
    for _ in 0..world.rng.between(u64::from(last), 2) {
        let step = match world.rng.below(6) {
            0 | 1 => qemu_img("info", "img"),
            2 => info.clone(),
            3 if world.one_in(2) => qemu_img("map", "img"),
            _ => qemu_img("check", "img"),
        };
        world.step(step);
    }
}

/// qemu-img changes the bitmaps of the image.
fn edit(world: &mut World, image: &mut Image) {
    if world.coin() {
        return;
    }
    let mut disk = Disk::new("img", Format::Qcow2, image.size);
    disk.cluster = image.cluster;
    disk.bitmaps = image.stored.clone();
    let mut disks = vec![disk];
    for _ in 0..world.rng.between(1, 3) {
        let names: Vec<String> = disks[0].bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
        let any = |world: &mut World| match names.is_empty() || world.one_in(4) {
            true => "bitmap404".to_string(),
            false => world.pick(&names),
        };
        let name = any(world);
        let list = |options: &[&str], name: &str| {
            let mut list = vec!["bitmap".to_string()];
            list.extend(options.iter().map(|option| option.to_string()));
            list.extend([path("img"), name.to_string()]);
            Step::new("qemu-img", list)
        };
        let (step, name, effect) = match world.rng.below(7) {
            0 | 1 => {
                let name = world.pick(&BITMAPS).to_string();
                let granularity = world.granularity().filter(|bytes| *bytes <= 2 << 20);
                let text = granularity.map(|bytes| bytes.to_string());
                let options = match &text {
                    Some(text) => vec!["--add", "-g", text],
                    None => vec!["--add"],
                };
                let granularity = granularity.map(|bytes| bytes as i64);
                (list(&options, &name), name, Change::Add { granularity, persistent: true, disabled: false })
            }
            2 => (list(&["--remove"], &name), name, Change::Remove),
            3 => (list(&["--clear"], &name), name, Change::Clear),
            4 => (list(&["--disable"], &name), name, Change::Disable),
            5 => (list(&["--enable"], &name), name, Change::Enable),
            _ => {
                let source = any(world);
                let step = list(&["--merge", &source], &name);
                (step, name, Change::Merge(vec![("img".to_string(), source)]))
            }
        };
        world.step(step);
        change(&mut disks, "img", &name, &effect);
    }
    image.stored = disks.remove(0).bitmaps;
}

/// One bitmap over two restarts: a line for each way to end and kind of bitmap.
fn table(mut world: World, name: String, description: String) -> Script {
    let granularity = world.pick(&[512_u64, 4096, 65536, 65536, 1 << 20]);
    let kind = "{{ 'persistent' if persistent else 'transient' }}";
    let state = "{{ 'disabled' if disabled else 'enabled' }}";
    world.step(Step::new("log", format!("=== {{{{ how }}}}, {kind}, {state} ===")));
    world.step(Step::new("image", "img").with("size", "{{ size }}"));
    let mut disk = Disk::new("drive0", Format::Qcow2, 4 << 20);
    disk.image = Some("img".to_string());
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    let add = args().set("node", "drive0").set("name", "b").set("granularity", granularity);
    let add = add.set("persistent", "{{ persistent }}").set("disabled", "{{ disabled }}");
    world.execute("block-dirty-bitmap-add", add);
    world.disks.push(disk.clone());
    world.guest_at(0, 3, Mix::Writes);
    world.vm("shutdown");
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    world.query_bitmaps();
    world.disks.push(disk);
    world.guest_at(0, 3, Mix::Writes);
    world.step(Step::new("vm", "{{ how }}"));
    let look = world.pick(&["info", "check"]);
    world.step(qemu_img(look, "img"));
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    world.query_bitmaps();
    let last = world.pick(&["clear", "enable", "disable", "remove"]);
    let command = format!("block-dirty-bitmap-{last}");
    world.execute(&command, args().set("node", "drive0").set("name", "b"));
    let mut lines = Vec::new();
    for persistent in [true, false] {
        for disabled in [false, true] {
            for how in ["shutdown", "kill"] {
                lines.push(args().set("persistent", persistent).set("disabled", disabled).set("how", how));
            }
        }
    }
    let count = world.rng.between(2, 4) as usize;
    let cases = world.some_of(&lines, count);
    let vars = args().set("size", 4_u64 << 20);
    let case_name = Some("{{ how }} persistent={{ persistent }} disabled={{ disabled }}".to_string());
    Script { vars, cases, case_name, ..world.script(name, description) }
}
