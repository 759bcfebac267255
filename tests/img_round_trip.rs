//! Generated images, with chains and bitmaps, read by both backsim and the real tools.
//!
//! Half of them are written by a simulated machine, half by the real qemu-io; what qemu-img says of them must be the
//! same from both sides, and the content that was written must be there.

mod common;

use std::path::Path;
use std::rc::Rc;

use backsim::block::Timing;
use backsim::img::ImgOutput;
use backsim::qmp::{Machine, MachineConfig};
use backsim::quirks::Compat;
use backsim::sim::rng::{Rng, Stream};
use serde_json::{Value, json};

use common::{Bench, Real};

/// Images on each side.
const IMAGES: u64 = 30;

/// One layer of a chain: its file, how it is created, what is written to it.
struct Layer {
    file: String,
    create: Vec<String>,
    /// qemu-io commands.
    commands: Vec<String>,
    /// Names and granularities of bitmaps that exist before the writes.
    bitmaps: Vec<(String, u64)>,
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.below(from.len() as u64) as usize]
}

/// A chain of one to three layers, all of the same size.
fn generate(seed: u64, discards: bool) -> (u64, Vec<Layer>) {
    let mut rng = Rng::new(seed, Stream::Workload);
    let size = 512 * (1 + rng.below(8192));
    let depth = 1 + rng.below(3);
    let layers = (0..depth).map(|i| layer(&mut rng, size, i, i + 1 == depth, discards)).collect();
    (size, layers)
}

fn layer(rng: &mut Rng, size: u64, index: u64, top: bool, discards: bool) -> Layer {
    let version = *pick(rng, &["1.1", "1.1", "0.10"]);
    let cluster = *pick(rng, &[512u64, 4096, 65536, 65536, 65536, 1 << 20]);
    let mut options = format!("compat={version},cluster_size={cluster}");
    if version == "1.1" {
        options.push_str(&format!(",refcount_bits={}", pick(rng, &[1, 8, 16, 16, 32, 64])));
    }
    let file = format!("layer{index}");
    let mut create = vec!["create".to_owned(), "-q".into(), "-f".into(), "qcow2".into(), "-o".into(), options];
    if index > 0 {
        create.extend(["-b".to_owned(), format!("layer{}", index - 1), "-F".into(), "qcow2".into()]);
    }
    create.extend([file.clone(), size.to_string()]);
    let mut commands = Vec::new();
    for _ in 0..rng.below(12) {
        let offset = 512 * rng.below(size / 512);
        let bytes = (512 * (1 + rng.below(400))).min(size - offset);
        let pattern = rng.below(256);
        commands.push(match rng.below(if discards { 8 } else { 6 }) {
            0 => format!("write -z {offset} {bytes}"),
            1 => format!("write -z -u {offset} {bytes}"),
            6 | 7 => format!("discard {offset} {bytes}"),
            _ => format!("write -P {pattern} {offset} {bytes}"),
        });
    }
    let count = if top && version == "1.1" { rng.below(3) } else { 0 };
    let bitmaps = (0..count).map(|i| (format!("bitmap{i}"), *pick(rng, &[512u64, 4096, 65536]))).collect();
    Layer { file, create, commands, bitmaps }
}

/// Sends a QMP command that must succeed.
async fn qmp(machine: &Rc<Machine>, command: &str, arguments: Value) {
    let arguments = arguments.as_object().expect("arguments are a map").clone();
    let reply = machine.execute(command, &arguments).await;
    assert!(reply.get("return").is_some(), "{command} {arguments:?}: {reply}");
}

/// A simulated machine opens the layer, makes bitmaps, writes, and ends in order.
fn write_with_machine(bench: &Bench, layer: &Layer) {
    let env = bench.env.clone();
    let node = json!({"node-name": "n", "driver": "qcow2", "discard": "unmap",
                      "file": {"driver": "file", "filename": format!("{PREFIX}{}", layer.file)}});
    let (bitmaps, commands) = (layer.bitmaps.clone(), layer.commands.clone());
    let work = async move {
        let machine = Machine::launch(MachineConfig {
            sim: env.sim.clone(),
            quirks: env.quirks,
            host: env.host.clone(),
            locks: env.locks.clone(),
            timing: Timing::instant(),
            seed: 1,
            process: 1,
        });
        qmp(&machine, "blockdev-add", node).await;
        for (name, granularity) in bitmaps {
            let bitmap = json!({"node": "n", "name": name, "granularity": granularity, "persistent": true});
            qmp(&machine, "block-dirty-bitmap-add", bitmap).await;
        }
        for command in commands {
            let line = format!("qemu-io n \"{command}\"");
            qmp(&machine, "human-monitor-command", json!({"command-line": line})).await;
        }
        qmp(&machine, "quit", json!({})).await;
    };
    bench.env.sim.run("machine", work).expect("the machine comes to an end");
}

fn write_with_tools(real: &Real, dir: &Path, layer: &Layer) {
    for (name, granularity) in &layer.bitmaps {
        let output = real.img(dir, &["bitmap", "--add", "-g", &granularity.to_string(), &layer.file, name]);
        assert_eq!(output.status, 0, "{output:?}");
    }
    if !layer.commands.is_empty() {
        let commands: Vec<&str> = layer.commands.iter().map(String::as_str).collect();
        real.io(dir, &layer.file, &commands);
    }
}

/// What a raw disk would hold after all writes of all layers.
fn reference(real: &Real, dir: &Path, size: u64, layers: &[Layer]) {
    let created = real.img(dir, &["create", "-q", "-f", "raw", "reference", &size.to_string()]);
    assert_eq!(created.status, 0, "{created:?}");
    let commands: Vec<&str> = layers.iter().flat_map(|layer| &layer.commands).map(String::as_str).collect();
    if !commands.is_empty() {
        real.io(dir, "reference", &commands);
    }
}

fn without_disk_size(text: &str) -> String {
    let measured = |line: &&str| !line.contains("disk size: ") && !line.contains("\"actual-size\"");
    text.lines().filter(measured).collect::<Vec<_>>().join("\n")
}

/// How a scenario calls the files.
const PREFIX: &str = "TEST_DIR/PID-";

/// A command line as backsim gets it: files by their names in scenarios.
fn prefixed(line: &[&str]) -> Vec<String> {
    let is_file = |arg: &str| ["layer", "reference", "converted"].iter().any(|name| arg.starts_with(name));
    line.iter().map(|arg| if is_file(arg) { format!("{PREFIX}{arg}") } else { (*arg).to_owned() }).collect()
}

fn simulated(bench: &Bench, line: &[&str]) -> ImgOutput {
    let line = prefixed(line);
    let output = bench.run(&line.iter().map(String::as_str).collect::<Vec<_>>());
    let plain = |text: String| text.replace(PREFIX, "");
    ImgOutput { stdout: plain(output.stdout), stderr: plain(output.stderr), ..output }
}

/// The behaviour of the real tool that is there.
fn compat_of(real: &Real, dir: &Path) -> Compat {
    let is_7 = real.img(dir, &["--version"]).stdout.contains("version 7.");
    if is_7 { Compat::Qemu72 } else { Compat::Qemu100 }
}

/// Asks both for the same and expects the same; what it was.
fn both(real: &Real, dir: &Path, line: &[&str]) -> String {
    let theirs = real.img(dir, line);
    let ours = simulated(&Bench::in_dir(dir, compat_of(real, dir)), line);
    assert_eq!(theirs.status, ours.status, "{line:?}\n{theirs:?}\n{ours:?}");
    assert_eq!(without_disk_size(&theirs.stdout), without_disk_size(&ours.stdout), "{line:?}");
    assert_eq!(theirs.stderr, ours.stderr, "{line:?}");
    ours.stdout
}

fn judge(real: &Real, dir: &Path, size: u64, layers: &[Layer], discards: bool) {
    let top = &layers.last().expect("a chain has a layer").file;
    for layer in layers {
        let checked = both(real, dir, &["check", &layer.file]);
        assert!(checked.starts_with("No errors were found on the image."), "{}: {checked}", layer.file);
        both(real, dir, &["map", "--output=json", &layer.file]);
        both(real, dir, &["info", &layer.file]);
        both(real, dir, &["info", "--output=json", &layer.file]);
    }
    both(real, dir, &["info", "--backing-chain", top]);
    if !discards {
        reference(real, dir, size, layers);
        assert_eq!(both(real, dir, &["compare", top, "reference"]), "Images are identical.\n");
    }
    let converted = simulated(&Bench::in_dir(dir, Compat::Qemu72), &["convert", "-O", "qcow2", top, "converted"]);
    assert_eq!(converted.status, 0, "{converted:?}");
    assert_eq!(both(real, dir, &["compare", top, "converted"]), "Images are identical.\n");
    both(real, dir, &["map", "--output=json", "converted"]);
    both(real, dir, &["check", "converted"]);
}

#[test]
fn the_real_tools_read_what_a_simulated_machine_wrote() {
    let Some(real) = Real::find("the_real_tools_read_what_a_simulated_machine_wrote") else { return };
    for seed in 0..IMAGES {
        let dir = tempfile::tempdir().unwrap();
        let discards = seed % 3 == 2;
        let (size, layers) = generate(seed, discards);
        for layer in &layers {
            let create: Vec<&str> = layer.create.iter().map(String::as_str).collect();
            let bench = Bench::in_dir(dir.path(), Compat::Qemu72);
            let created = simulated(&bench, &create);
            assert_eq!((created.status, created.stderr.as_str()), (0, ""), "seed {seed}: {create:?}");
            write_with_machine(&bench, layer);
        }
        judge(&real, dir.path(), size, &layers, discards);
    }
}

#[test]
fn backsim_reads_what_the_real_tools_wrote() {
    let Some(real) = Real::find("backsim_reads_what_the_real_tools_wrote") else { return };
    for seed in 1000..1000 + IMAGES {
        let dir = tempfile::tempdir().unwrap();
        let discards = seed % 3 == 2;
        let (size, layers) = generate(seed, discards);
        for layer in &layers {
            let create: Vec<&str> = layer.create.iter().map(String::as_str).collect();
            let created = real.img(dir.path(), &create);
            assert_eq!((created.status, created.stderr.as_str()), (0, ""), "seed {seed}: {create:?}");
            write_with_tools(&real, dir.path(), layer);
        }
        judge(&real, dir.path(), size, &layers, discards);
    }
}
