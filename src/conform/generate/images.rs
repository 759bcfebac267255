//! The family `images`: qemu-img and what it says of images, their chains and their bitmaps.
//!
//! A machine writes data and bitmaps into some images, then qemu-img does the rest. Where the host may place data
//! as it likes, nothing is asked that would show it.

use super::disks::path;
use super::guest::Mix;
use super::model::{Disk, Format};
use super::world::{Level, World};
use super::yaml::{Script, Step, args};

/// An image that there is.
#[derive(Clone, Debug)]
struct Image {
    name: String,
    format: &'static str,
    size: u64,
    bitmaps: Vec<String>,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    let mut images = Vec::new();
    for _ in 0..world.rng.between(1, 3) {
        create(&mut world, &mut images);
    }
    let rounds = match world.level {
        Level::Easy => 4,
        Level::Medium => world.rng.between(6, 10),
        Level::Hard => world.rng.between(10, 20),
    };
    if !world.one_in(4) {
        fill(&mut world, &images);
    }
    for _ in 0..rounds {
        match world.rng.below(10) {
            0 => create(&mut world, &mut images),
            1 => bitmap(&mut world, &mut images),
            2 => rebase(&mut world, &images),
            3 => compare(&mut world, &images),
            4 => convert(&mut world, &mut images),
            5 => resize(&mut world, &mut images),
            6 if world.coin() => fill(&mut world, &images),
            7 => mistake(&mut world, &images),
            _ => look(&mut world, &images),
        }
    }
    for image in &images {
        run(&mut world, &["check"], &[&image.name]);
        run(&mut world, &["info", "--output=json"], &[&image.name]);
    }
    world.script(name, description)
}

/// The step `qemu-img: [words…, images…]`.
fn run(world: &mut World, words: &[&str], images: &[&str]) {
    let words = words.iter().map(|word| (*word).to_owned());
    let files = images.iter().map(|image| if image.is_empty() { String::new() } else { path(image) });
    let all: Vec<String> = words.chain(files).collect();
    world.step(Step::new("qemu-img", all));
}

fn size(world: &mut World) -> u64 {
    let odd = world.rng.between(1, 4 << 20);
    world.weighted(&[(6, 1 << 20), (3, 4 << 20), (3, 192 << 10), (1, 0), (2, 1_000_448), (1, odd), (1, 64 << 30)])
}

fn create(world: &mut World, images: &mut Vec<Image>) {
    let name = format!("i{}", world.new_image());
    let format = world.weighted(&[(4, "qcow2"), (1, "raw")]);
    let mut words = vec!["create".to_owned(), "-f".to_owned(), format.to_owned()];
    if world.one_in(4) {
        words.push("-q".to_owned());
    }
    let mut options = Vec::new();
    if format == "qcow2" {
        let groups: [(u64, &[&str]); 5] = [
            (3, &["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "cluster_size=3k"]),
            (4, &["compat=0.10", "compat=1.1", "compat=v3", "compat=1.2"]),
            (6, &["lazy_refcounts=on", "lazy_refcounts=off", "lazy_refcounts=yes"]),
            (5, &["refcount_bits=1", "refcount_bits=8", "refcount_bits=64", "refcount_bits=7"]),
            (6, &["preallocation=off", "preallocation=metadata", "preallocation=some"]),
        ];
        for (odds, choices) in groups {
            if world.one_in(odds) {
                options.push(world.pick(choices).to_owned());
            }
        }
    }
    if world.one_in(20) {
        options.push("nonsense=1".to_owned());
    }
    if !options.is_empty() {
        words.extend(["-o".to_owned(), options.join(",")]);
    }
    let backing =
        if format == "qcow2" && world.one_in(2) && !images.is_empty() { Some(world.pick(images)) } else { None };
    let bytes = size(world);
    if let Some(backing) = &backing {
        words.extend(["-b".to_owned(), path(&backing.name)]);
        if !world.one_in(10) {
            words.extend(["-F".to_owned(), backing.format.to_owned()]);
        }
    }
    words.push(path(&name));
    let own = backing.is_none() || world.one_in(3);
    if own {
        words.push(bytes.to_string());
    }
    world.step(Step::new("qemu-img", words));
    let bytes = if own { bytes } else { backing.map_or(0, |backing| backing.size) };
    images.push(Image { name, format, size: bytes, bitmaps: Vec::new() });
}

/// A machine opens one image and writes to it.
fn fill(world: &mut World, images: &[Image]) {
    let image = world.pick(images);
    if image.size < 65536 {
        return;
    }
    world.vm("launch");
    let format = if image.format == "raw" { Format::Raw } else { Format::Qcow2 };
    let mut disk = Disk::new("drive0", format, image.size.min(4 << 20));
    disk.image = Some(image.name.clone());
    world.open_as("drive0", format, &image.name, true, None);
    world.disks.push(disk);
    if format == Format::Qcow2 && world.coin() {
        let add = args().set("node", "drive0").set("name", "vm").set("persistent", true);
        world.execute("block-dirty-bitmap-add", add);
    }
    world.guest_at(0, 6, Mix::All);
    let end = world.weighted(&[(5, "shutdown"), (1, "kill")]);
    world.vm(end);
}

fn bitmap(world: &mut World, images: &mut [Image]) {
    let at = world.rng.below(images.len() as u64) as usize;
    let (image, known) = (images[at].clone(), images[at].bitmaps.clone());
    let fresh = world.pick(&["b0", "b1", "b2", "vm"]);
    let name = if known.is_empty() || world.one_in(4) { fresh.to_owned() } else { world.pick(&known) };
    let action = world.weighted(&[(5, "--add"), (2, "--clear"), (2, "--enable"), (2, "--disable"), (2, "--remove")]);
    let mut words = vec!["bitmap".to_owned(), action.to_owned()];
    if action == "--add" {
        if world.one_in(3) {
            let granularity = world.pick(&["512", "4k", "64k", "1M", "2G", "100", "4G", "0"]);
            words.extend(["-g".to_owned(), granularity.to_owned()]);
        }
        if world.one_in(4) {
            words.push("--disable".to_owned());
        }
        images[at].bitmaps.push(name.clone());
    }
    if world.one_in(5) {
        let source = world.pick(images);
        let bitmap = if source.bitmaps.is_empty() { "b0".to_owned() } else { world.pick(&source.bitmaps) };
        words.extend(["--merge".to_owned(), bitmap]);
        if source.name != image.name {
            words.extend(["-b".to_owned(), path(&source.name), "-F".to_owned(), source.format.to_owned()]);
        }
    }
    words.extend([path(&image.name), name]);
    world.step(Step::new("qemu-img", words));
}

fn rebase(world: &mut World, images: &[Image]) {
    let at = world.rng.below(images.len() as u64) as usize;
    let image = images[at].name.clone();
    match world.rng.below(4) {
        0 => run(world, &["rebase", "-u", "-b", ""], &[&image]),
        1 => run(world, &["rebase", "-u", "-b", "TEST_DIR/PID-nowhere", "-F", "raw"], &[&image]),
        // An image that is its own backing file, even far below, would make qemu-img go round.
        _ if at == 0 => run(world, &["rebase", "-u", "-F", "qcow2"], &[&image]),
        _ => {
            let backing = world.pick(&images[..at]);
            run(world, &["rebase", "-u", "-F", backing.format, "-b", &path(&backing.name)], &[&image]);
        }
    }
}

fn compare(world: &mut World, images: &[Image]) {
    let (one, other) = (world.pick(images), world.pick(images));
    let mut words = vec!["compare"];
    if world.one_in(4) {
        words.push("-s");
    }
    if world.one_in(6) {
        words.push("-q");
    }
    if world.one_in(4) {
        words.extend(["-f", one.format, "-F", other.format]);
    }
    run(world, &words, &[&one.name, &other.name]);
}

fn convert(world: &mut World, images: &mut Vec<Image>) {
    let source = world.pick(images);
    if source.size > 16 << 20 {
        return look(world, images);
    }
    let name = format!("c{}", world.new_image());
    let format = world.weighted(&[(3, "qcow2"), (1, "raw")]);
    let mut words = vec!["convert", "-f", source.format, "-O", format];
    if world.one_in(4) {
        words.push("-c");
    }
    if world.one_in(4) {
        words.push("--bitmaps");
    }
    if world.one_in(5) {
        words.extend(["-S", world.pick(&["0", "4k", "64k", "3k"])]);
    }
    run(world, &words, &[&source.name, &name]);
    run(world, &["compare", "-s"], &[&source.name, &name]);
    images.push(Image { name, format, size: source.size, bitmaps: Vec::new() });
}

fn resize(world: &mut World, images: &mut [Image]) {
    let at = world.rng.below(images.len() as u64) as usize;
    let name = images[at].name.clone();
    let to = world.pick(&["+64k", "+1000", "2M", "3M", "1M", "-64k", "1x", "+1E"]);
    let shrink = if world.one_in(3) { &["resize", "--shrink", "--"][..] } else { &["resize", "--"] };
    let mut words: Vec<String> = shrink.iter().map(|word| (*word).to_owned()).collect();
    words.extend([path(&name), to.to_owned()]);
    world.step(Step::new("qemu-img", words));
}

fn look(world: &mut World, images: &[Image]) {
    let image = world.pick(images);
    let qcow2 = image.format == "qcow2";
    match world.rng.below(7) {
        0 => run(world, &["info"], &[&image.name]),
        1 => run(world, &["info", "--output=json"], &[&image.name]),
        2 => run(world, &["info", "--backing-chain"], &[&image.name]),
        3 => run(world, &["check", "--output=json"], &[&image.name]),
        4 if qcow2 => run(world, &["map"], &[&image.name]),
        5 if qcow2 => run(world, &["map", "--output=json"], &[&image.name]),
        6 if qcow2 => {
            let (start, length) = world.place(image.size.max(512));
            let (start, length) = (format!("--start-offset={start}"), format!("--max-length={length}"));
            run(world, &["map", "--output=json", &start, &length], &[&image.name]);
        }
        _ => run(world, &["check"], &[&image.name]),
    }
}

/// A command line that is refused.
fn mistake(world: &mut World, images: &[Image]) {
    let image = world.pick(images).name;
    let line = world.pick(&[
        "info",
        "info TEST_DIR/PID-nowhere",
        "info -f nonsense @",
        "info --output=xml @",
        "check -r some @",
        "check TEST_DIR/PID-nowhere",
        "map -s 1x @",
        "map @ @",
        "compare @",
        "compare @ TEST_DIR/PID-nowhere",
        "bitmap --add @",
        "bitmap @ b0",
        "bitmap --add --remove @ b0",
        "rebase -u",
        "convert -O nonsense @ TEST_DIR/PID-other",
        "convert @",
        "create -f nonsense TEST_DIR/PID-other 1M",
        "create -f qcow2 TEST_DIR/PID-other",
        "resize @",
        "nonsense @",
    ]);
    let words: Vec<String> = line.split(' ').map(|word| word.replace('@', &path(&image))).collect();
    world.step(Step::new("qemu-img", words));
}
