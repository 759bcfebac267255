//! qemu-img in a simulated host, without the real one: versions, locks, names, images for scenarios.

mod common;

use std::rc::Rc;

use backsim::block::Timing;
use backsim::img::{NewImage, create_for_scenario};
use backsim::qmp::{Machine, MachineConfig};
use backsim::quirks::Compat;
use backsim::store::Content;
use serde_json::{Map, json};

use common::Bench;

/// Creates an image as a scenario's `image:` does.
fn image(bench: &Bench, image: NewImage) -> Result<(), String> {
    let env = bench.env.clone();
    let created = async move { create_for_scenario(&env, &image).await };
    bench.env.sim.run("test", created).expect("qemu-img comes to an end")
}

fn qcow2(name: &str, size: u64) -> NewImage {
    let file = format!("TEST_DIR/PID-{name}");
    NewImage { file, format: "qcow2".to_owned(), size: Some(size), ..NewImage::default() }
}

/// The lines that `disk size` is not in.
fn stable(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains("disk size") && !line.contains("actual-size"))
        .collect::<Vec<_>>()
        .join("\n")
}

const INFO: &str = "\
image: TEST_DIR/PID-img
file format: qcow2
virtual size: 4 MiB (4194304 bytes)
cluster_size: 65536
Format specific information:
    compat: 1.1
    compression type: zlib
    lazy refcounts: false
    refcount bits: 16
    corrupt: false
    extended l2: false";

#[test]
fn info_shows_child_nodes_since_8_0() {
    let text = |compat| {
        let bench = Bench::memory(compat);
        image(&bench, qcow2("img", 4 << 20)).unwrap();
        stable(&bench.ok("info TEST_DIR/PID-img"))
    };
    assert_eq!(text(Compat::Qemu72), INFO);
    let child = "\nChild node '/file':\n    filename: TEST_DIR/PID-img\n    protocol type: file\n    \
                 file length: 192 KiB (197120 bytes)";
    assert_eq!(text(Compat::Qemu100), format!("{INFO}{child}"));
}

#[test]
fn json_of_10_0_has_children_in_the_order_of_real_qemu() {
    let bench = Bench::memory(Compat::Qemu100);
    image(&bench, qcow2("img", 8 << 20)).unwrap();
    let text = stable(&bench.ok("info --output=json TEST_DIR/PID-img"));
    let begin = "{\n    \"children\": [\n        {\n            \"name\": \"file\",\n            \"info\": {\n                \
                 \"children\": [\n                ],\n                \"virtual-size\": 197120,\n                \
                 \"filename\": \"TEST_DIR/PID-img\",\n                \"format\": \"file\",\n                \
                 \"format-specific\": {\n                    \"type\": \"file\",\n                    \"data\": {\n                    \
                 }\n                },\n                \"dirty-flag\": false\n            }\n        }\n    ],\n    \
                 \"virtual-size\": 8388608,\n    \"filename\": \"TEST_DIR/PID-img\",\n    \"cluster-size\": 65536,\n";
    assert!(text.starts_with(begin), "{text}");
    let map = bench.ok("map --output=json TEST_DIR/PID-img");
    let entry = "[{ \"start\": 0, \"length\": 8388608, \"depth\": 0, \"present\": false, \"zero\": true, \"data\": false, \
                 \"compressed\": false}]\n";
    assert_eq!(map, entry);
}

#[test]
fn usage_differs_between_the_versions() {
    let failed = |compat, line| {
        let output = Bench::memory(compat).line(line);
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{line}");
        output.stderr
    };
    assert_eq!(
        failed(Compat::Qemu72, "check -r x a"),
        "qemu-img: Unknown option value for -r (expecting 'leaks' or 'all'): x\nTry 'qemu-img --help' for more information\n"
    );
    assert_eq!(
        failed(Compat::Qemu100, "check -r x a"),
        "qemu-img: --repair (-r) expects 'leaks' or 'all' not 'x'\nTry 'qemu-img check --help' for more info\n"
    );
    assert_eq!(
        failed(Compat::Qemu100, "info"),
        "qemu-img: Expecting one image file name\nTry 'qemu-img info --help' for more info\n"
    );
    assert_eq!(
        failed(Compat::Qemu100, "info --output x a"),
        "qemu-img: --output expects 'human' or 'json' not 'x'\nTry 'qemu-img info --help' for more info\n"
    );
    assert_eq!(failed(Compat::Qemu100, "create a 1x"), "qemu-img: Invalid image size specified: '1x'.\n");
}

#[test]
fn what_is_not_modelled_is_said_and_fails() {
    let bench = Bench::memory(Compat::Qemu72);
    image(&bench, qcow2("a", 1 << 20)).unwrap();
    for line in [
        "snapshot -c s a",
        "commit a",
        "measure a",
        "--version",
        "create -f vmdk v 1M",
        "create -f qcow2 -o data_file=x v 1M",
        "create -f qcow2 -o extended_l2=on v 1M",
        "info --image-opts driver=qcow2,file.filename=a",
        "info -f vmdk a",
        "info nbd://localhost",
        "compare -p a a",
        "rebase -p -b a -F qcow2 a",
        "convert -l snap a b",
        "convert -C a b",
        "convert -p a b",
        "convert a a b",
        "convert -O vmdk a b",
    ] {
        let output = bench.line(line);
        assert_eq!(output.status, 1, "{line}: {output:?}");
        let said = output.stderr.contains("not modelled") || output.stderr.contains("backsim does not support");
        assert!(said, "{line}: {output:?}");
    }
}

#[test]
fn an_overlay_names_its_backing_file_as_scenarios_do() {
    for compat in Compat::ALL {
        let dir = tempfile::tempdir().unwrap();
        for bench in [Bench::memory(compat), Bench::in_dir(dir.path(), compat)] {
            image(&bench, qcow2("base", 3 << 20)).unwrap();
            let backing = Some(("TEST_DIR/PID-base".to_owned(), "qcow2".to_owned()));
            let cluster_size = Some(4096);
            let options = Map::from_iter([("lazy-refcounts".to_owned(), json!(true))]);
            image(&bench, NewImage { size: None, backing, cluster_size, options, ..qcow2("over", 0) }).unwrap();
            let text = bench.ok("info TEST_DIR/PID-over");
            assert!(text.contains("\nvirtual size: 3 MiB (3145728 bytes)\n"), "{text}");
            assert!(text.contains("\nbacking file: TEST_DIR/PID-base\nbacking file format: qcow2\n"), "{text}");
            assert!(text.contains("\ncluster_size: 4096\n") && text.contains("\n    lazy refcounts: true\n"), "{text}");
            bench.ok("rebase -u -b TEST_DIR/PID-base -F raw TEST_DIR/PID-over");
            let text = bench.ok("info TEST_DIR/PID-over");
            assert!(text.contains("\nbacking file: TEST_DIR/PID-base\nbacking file format: raw\n"), "{text}");
        }
        // The name in the image is one that real tools find.
        let head = std::fs::read(dir.path().join("over")).unwrap();
        assert!(!head[..4096].windows(8).any(|bytes| bytes == b"TEST_DIR"));
    }
}

#[test]
fn an_image_for_a_scenario_can_be_refused() {
    let bench = Bench::memory(Compat::Qemu72);
    let error = image(&bench, NewImage { cluster_size: Some(5), ..qcow2("a", 1 << 20) }).unwrap_err();
    assert_eq!(error, "qemu-img: TEST_DIR/PID-a: Cluster size must be a power of two between 512 and 2048k");
    let error = image(&bench, NewImage { size: None, ..qcow2("a", 0) }).unwrap_err();
    assert_eq!(error, "qemu-img: TEST_DIR/PID-a: Image creation needs a size parameter");
}

#[test]
fn an_image_that_a_machine_uses_is_locked() {
    let bench = Bench::memory(Compat::Qemu72);
    for name in ["used", "free"] {
        image(&bench, qcow2(name, 1 << 20)).unwrap();
    }
    let backing = Some(("TEST_DIR/PID-used".to_owned(), "qcow2".to_owned()));
    image(&bench, NewImage { backing, ..qcow2("over", 1 << 20) }).unwrap();
    let machine = launch(&bench);
    let inner = machine.clone();
    let add = async move {
        let node = json!({"node-name": "n", "driver": "qcow2",
                          "file": {"driver": "file", "filename": "TEST_DIR/PID-used"}});
        inner.execute("blockdev-add", node.as_object().expect("a map")).await
    };
    assert_eq!(bench.env.sim.run("test", add).unwrap(), json!({"return": {}}));
    let hint = "Is another process using the image [TEST_DIR/PID-used]?\n";
    let shared = format!("qemu-img: Could not open 'TEST_DIR/PID-used': Failed to get shared \"write\" lock\n{hint}");
    let own = format!("qemu-img: Could not open 'TEST_DIR/PID-used': Failed to get \"write\" lock\n{hint}");
    let used = "TEST_DIR/PID-used";
    for (line, status, stderr) in [
        (format!("info {used}"), 1, shared.clone()),
        (format!("check {used}"), 1, shared.clone()),
        (format!("map {used}"), 1, shared.clone()),
        (format!("compare {used} TEST_DIR/PID-free"), 2, shared.clone()),
        (format!("check -r all {used}"), 1, own.clone()),
        (format!("bitmap --add {used} b"), 1, own.clone()),
        (format!("resize {used} 2M"), 1, own.clone()),
        (format!("rebase -u {used}"), 1, own.clone()),
        (format!("create -q {used} 1M"), 1, format!("qemu-img: {used}: Failed to get \"write\" lock\n{hint}")),
        (
            "map TEST_DIR/PID-over".to_owned(),
            1,
            shared.replacen("PID-used': ", "PID-over': Could not open backing file: ", 1),
        ),
        (format!("info -U {used}"), 0, String::new()),
        (format!("check -U {used}"), 0, String::new()),
        (format!("compare -U {used} TEST_DIR/PID-free"), 0, String::new()),
        ("info TEST_DIR/PID-over".to_owned(), 0, String::new()),
        (format!("create -q -f qcow2 -b {used} -F qcow2 TEST_DIR/PID-new"), 0, String::new()),
    ] {
        let output = bench.line(&line);
        assert_eq!((output.status, output.stderr), (status, stderr), "{line}");
    }
    let inner = machine.clone();
    bench.env.sim.run("test", async move { inner.execute("quit", &Map::new()).await }).unwrap();
    assert!(bench.line(&format!("check -r all {used}")).stdout.starts_with("No errors"));
}

fn launch(bench: &Bench) -> Rc<Machine> {
    Machine::launch(MachineConfig {
        sim: bench.env.sim.clone(),
        quirks: bench.env.quirks,
        host: bench.env.host.clone(),
        locks: bench.env.locks.clone(),
        timing: Timing::instant(),
        seed: 1,
        process: 1,
    })
}

#[test]
fn bitmaps_are_kept_by_both_versions() {
    for compat in Compat::ALL {
        let bench = Bench::memory(compat);
        image(&bench, qcow2("img", 1 << 20)).unwrap();
        bench.ok("bitmap --add -g 4k TEST_DIR/PID-img b0");
        bench.ok("bitmap --add --disable TEST_DIR/PID-img b1");
        bench.ok("bitmap --merge b0 --enable TEST_DIR/PID-img b1");
        bench.ok("bitmap --remove TEST_DIR/PID-img b0");
        let text = bench.ok("info TEST_DIR/PID-img");
        let expected = "    bitmaps:\n        [0]:\n            flags:\n                [0]: auto\n            \
                        name: b1\n            granularity: 65536\n    refcount bits: 16\n";
        assert!(text.contains(expected), "{text}");
        let missing = bench.line("bitmap --merge nope TEST_DIR/PID-img b1");
        let expected = "qemu-img: Operation merge on bitmap b1 failed: Dirty bitmap 'nope' not found\n";
        assert_eq!((missing.status, missing.stderr.as_str()), (1, expected));
    }
}

/// What `tests/img/damage.txt` has written, line by line. The oracle's test asks the real tool the same.
fn damage(compat: Compat) -> String {
    let bench = Bench::memory(compat);
    let mut said = String::new();
    for line in include_str!("img/damage.txt").lines().filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            said.push_str(&format!("{line}\n"));
        } else if let Some(poke) = line.strip_prefix("poke ") {
            let (file, offset, bytes) = common::poke(poke);
            let store = bench.env.host.open(file).expect("the file is there");
            store.write(offset, &Content::from_bytes(bytes)).expect("the file can be written to");
        } else {
            let output = bench.line(line);
            let text = common::mask(&(output.stderr + &output.stdout));
            let status = if output.status == 0 { String::new() } else { format!("exit status {}\n", output.status) };
            said.push_str(&format!("qemu-img {line}\n{text}{status}"));
        }
    }
    said
}

/// Recorded with `BLESS=1`.
#[test]
fn damaged_images_are_told_as_the_real_tool_tells_them() {
    for (compat, name) in [(Compat::Qemu72, "7.2"), (Compat::Qemu100, "10.0")] {
        let path = format!("{}/tests/img/damage.qemu-{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let said = damage(compat);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &said).expect("a writable file");
        }
        let recorded = std::fs::read_to_string(&path).expect("a recorded text");
        let differs = said.lines().zip(recorded.lines()).position(|(said, recorded)| said != recorded);
        let at = differs.unwrap_or(said.lines().count().min(recorded.lines().count()));
        let around = |text: &str| text.lines().skip(at.saturating_sub(8)).take(10).collect::<Vec<_>>().join("\n");
        assert!(said == recorded, "{path}: recorded:\n{}\nsaid:\n{}", around(&recorded), around(&said));
    }
}
