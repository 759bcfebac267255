//! Round trips with the real qemu-img and qemu-io; skipped, loudly, where there are none.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use backsim::block::Preallocation;
use backsim::block::open::CommonOptions;
use backsim::block::qcow2::Qcow2CreateOptions;
use backsim::block::{Node, ReqFlags};
use backsim::store::{Content, Host};

use super::rig::Rig;

const CLUSTER: u64 = 65536;

/// Whether the tool can be run; says so if not.
pub fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: no {tool} on this machine");
    }
    found
}

/// Runs a tool in `dir`; its output, and whether it was content.
fn tool(dir: &Path, name: &str, args: &[&str]) -> (String, bool) {
    let out = Command::new(name).args(args).current_dir(dir).output().expect("the tool was found before");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (text, out.status.success())
}

#[track_caller]
pub fn good(dir: &Path, name: &str, args: &[&str]) -> String {
    let (text, ok) = tool(dir, name, args);
    assert!(ok, "{name} {args:?}: {text}");
    text
}

/// Creates the same image both ways and compares every byte.
#[track_caller]
fn same_bytes(options: Qcow2CreateOptions, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rig = Rig::new(Host::in_dir(dir.path()));
    let size = options.size.to_string();
    rig.create("ours.img", options);
    let mut all = vec!["create", "-q", "-f", "qcow2", "theirs.img", size.as_str()];
    all.splice(2..2, args.iter().copied());
    good(dir.path(), "qemu-img", &all);
    let read = |name: &str| std::fs::read(dir.path().join(name)).expect("the image is there");
    let (ours, theirs) = (read("ours.img"), read("theirs.img"));
    assert_eq!(ours.len(), theirs.len(), "length with {args:?}");
    let difference = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!(difference, None, "first difference with {args:?}");
}

#[test]
fn created_images_are_the_same_to_the_byte() {
    if !have("qemu-img") {
        return;
    }
    let base = || Qcow2CreateOptions { size: 64 << 20, ..Default::default() };
    same_bytes(base(), &[]);
    same_bytes(Qcow2CreateOptions { size: 0, ..base() }, &[]);
    same_bytes(Qcow2CreateOptions { size: 3 << 40, ..base() }, &[]);
    same_bytes(Qcow2CreateOptions { version: 2, ..base() }, &["-o", "compat=0.10"]);
    same_bytes(Qcow2CreateOptions { cluster_size: 512, ..base() }, &["-o", "cluster_size=512"]);
    same_bytes(Qcow2CreateOptions { cluster_size: 2 << 20, ..base() }, &["-o", "cluster_size=2M"]);
    same_bytes(Qcow2CreateOptions { refcount_bits: 1, ..base() }, &["-o", "refcount_bits=1"]);
    same_bytes(Qcow2CreateOptions { refcount_bits: 64, ..base() }, &["-o", "refcount_bits=64"]);
    same_bytes(Qcow2CreateOptions { lazy_refcounts: true, ..base() }, &["-o", "lazy_refcounts=on"]);
    let backed =
        Qcow2CreateOptions { backing_file: Some("base.img".into()), backing_format: Some("qcow2".into()), ..base() };
    same_bytes(backed, &["-u", "-b", "base.img", "-F", "qcow2"]);
    let mapped = Qcow2CreateOptions { preallocation: Preallocation::Metadata, ..base() };
    same_bytes(mapped, &["-o", "preallocation=metadata"]);
}

fn write(rig: &Rig, node: &Rc<Node>, at: u64, content: Content, flags: ReqFlags) {
    let (block, id) = (rig.block.clone(), node.id);
    let written = rig.request(async move { block.co_pwrite(id, at, content, flags).await });
    assert_eq!(written, Ok(()));
}

/// A deterministic mix of operations, in units of 4 KiB over 8 MiB; the expected content.
fn mixed_operations(rig: &Rig, node: &Rc<Node>, seed: u64, cluster: u64, unmap: bool) -> Vec<u8> {
    let mut model = vec![0u8; 8 << 20];
    let mut state = seed;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    for step in 0..150u32 {
        let at = next(2048) * 4096;
        let len = ((next(40) + 1) * 4096).min((8 << 20) - at);
        let byte = (step % 250) as u8 + 1;
        let (block, id) = (rig.block.clone(), node.id);
        let range = at as usize..(at + len) as usize;
        // Compression comes first: QEMU goes on packing into a cluster that was freed meanwhile.
        let kind = if step < 20 { 4 } else { [0, 1, 2, 3, 5][next(5) as usize] };
        match kind {
            0 | 1 => {
                write(rig, node, at, Content::pattern(byte, len), ReqFlags::NONE);
                model[range].fill(byte);
            }
            2 => {
                let flags = if unmap { ReqFlags::MAY_UNMAP } else { ReqFlags::NONE };
                let zeroed = rig.request(async move { block.co_pwrite_zeroes(id, at, len, flags).await });
                assert_eq!(zeroed, Ok(()));
                model[range].fill(0);
            }
            3 => {
                let done = rig.request(async move { block.co_pdiscard(id, at, len).await });
                assert_eq!(done, Ok(()));
                let whole = at.next_multiple_of(cluster)..(at + len) / cluster * cluster;
                if whole.start < whole.end {
                    model[whole.start as usize..whole.end as usize].fill(0);
                }
            }
            4 => {
                let at = at / cluster * cluster;
                let target = at as usize..(at + cluster) as usize;
                let packed = Content::pattern(byte, cluster);
                let done = rig.request(async move { block.co_pwrite(id, at, packed, ReqFlags::COMPRESSED).await });
                // A cluster that is allocated already cannot be overwritten so.
                if done.is_ok() {
                    model[target].fill(byte);
                }
            }
            _ => {
                let done = rig.request(async move { block.co_flush(id).await });
                assert_eq!(done, Ok(()));
            }
        }
    }
    model
}

#[track_caller]
fn survives(options: Qcow2CreateOptions, seed: u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rig = Rig::new(Host::in_dir(dir.path()));
    let cluster = options.cluster_size;
    rig.create("a.img", Qcow2CreateOptions { size: 8 << 20, ..options });
    let node = rig.open("a.img", CommonOptions { discard_unmap: Some(true), ..Default::default() });
    let model = mixed_operations(&rig, &node, seed, cluster, seed.is_multiple_of(2));
    let (block, id) = (rig.block.clone(), node.id);
    let ours = rig.request(async move { block.co_pread(id, 0, 8 << 20, ReqFlags::NONE).await });
    let difference = ours.expect("readable").to_vec().iter().zip(&model).position(|(a, b)| a != b);
    assert_eq!(difference, None, "our own read, seed {seed}, cluster {cluster}");
    rig.close(node);
    let checked = good(dir.path(), "qemu-img", &["check", "a.img"]);
    assert!(checked.contains("No errors were found"), "{checked}");
    good(dir.path(), "qemu-img", &["convert", "-O", "raw", "a.img", "a.raw"]);
    let theirs = std::fs::read(dir.path().join("a.raw")).expect("converted");
    let difference = theirs.iter().zip(&model).position(|(a, b)| a != b);
    assert_eq!(difference, None, "what qemu-img reads, seed {seed}, cluster {cluster}");
}

#[test]
fn what_we_write_qemu_reads_and_finds_sound() {
    if !have("qemu-img") {
        return;
    }
    let base = Qcow2CreateOptions::default;
    for seed in 1..=2 {
        survives(base(), seed);
        survives(Qcow2CreateOptions { cluster_size: 4096, ..base() }, seed + 10);
        survives(Qcow2CreateOptions { cluster_size: 512, ..base() }, seed + 20);
        survives(Qcow2CreateOptions { version: 2, ..base() }, seed + 30);
        survives(Qcow2CreateOptions { lazy_refcounts: true, ..base() }, seed + 40);
        survives(Qcow2CreateOptions { refcount_bits: 8, cluster_size: 1024, ..base() }, seed + 50);
        survives(Qcow2CreateOptions { cluster_size: 2 << 20, ..base() }, seed + 60);
    }
}

#[test]
fn what_qemu_writes_we_read() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    good(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "base.img", "8M"]);
    good(dir.path(), "qemu-io", &["-c", "write -P 7 0 1M", "-c", "write -P 8 3M 100k", "base.img"]);
    good(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "qcow2", "a.img"]);
    let script = [
        "-c",
        "write -P 1 64k 100k",
        "-c",
        "write -z 512k 64k",
        "-c",
        "discard 640k 64k",
        "-c",
        "write -c -P 9 2M 128k",
        "a.img",
    ];
    good(dir.path(), "qemu-io", &script);
    good(dir.path(), "qemu-img", &["snapshot", "-c", "s1", "a.img"]);
    good(dir.path(), "qemu-io", &["-c", "write -P 2 64k 4k", "a.img"]);
    good(dir.path(), "qemu-img", &["convert", "-O", "raw", "a.img", "a.raw"]);
    let theirs = || std::fs::read(dir.path().join("a.raw")).expect("converted");
    let rig = Rig::new(Host::in_dir(dir.path()));
    let node = rig.open("a.img", CommonOptions::default());
    let (block, id) = (rig.block.clone(), node.id);
    let ours = rig.request(async move { block.co_pread(id, 0, 8 << 20, ReqFlags::NONE).await });
    assert!(ours.expect("readable").to_vec() == theirs(), "content differs");
    // Writing on over the snapshot keeps the image sound for qemu-img.
    write(&rig, &node, 70_000, Content::pattern(3, 200_000), ReqFlags::NONE);
    write(&rig, &node, 5 << 20, Content::pattern(4, 3 * CLUSTER), ReqFlags::NONE);
    let (block, id) = (rig.block.clone(), node.id);
    let ours = rig.request(async move { block.co_pread(id, 0, 8 << 20, ReqFlags::NONE).await });
    rig.close(node);
    good(dir.path(), "qemu-img", &["check", "a.img"]);
    good(dir.path(), "qemu-img", &["convert", "-O", "raw", "a.img", "a.raw"]);
    assert!(ours.expect("readable").to_vec() == theirs(), "content differs after our writes");
}

#[test]
fn bitmaps_go_back_and_forth() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    good(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "a.img", "64M"]);
    good(dir.path(), "qemu-img", &["bitmap", "--add", "a.img", "theirs"]);
    let rig = Rig::new(Host::in_dir(dir.path()));
    let node = rig.open("a.img", CommonOptions::default());
    {
        let mut list = node.bitmaps.borrow_mut();
        let id = list.create(64 << 20, CLUSTER, Some("ours")).expect("a valid bitmap");
        let bitmap = list.get_mut(id).expect("just made");
        (bitmap.persistent, bitmap.disabled) = (true, true);
    }
    write(&rig, &node, 3 * CLUSTER, Content::pattern(1, CLUSTER), ReqFlags::NONE);
    rig.close(node);
    let checked = good(dir.path(), "qemu-img", &["check", "a.img"]);
    assert!(checked.contains("No errors were found"), "{checked}");
    let info = good(dir.path(), "qemu-img", &["info", "a.img"]);
    assert!(info.contains("name: theirs") && info.contains("name: ours"), "{info}");
    good(dir.path(), "qemu-img", &["bitmap", "--merge", "theirs", "a.img", "ours"]);
    // A host does not expect others to change its files while it runs.
    let rig = Rig::new(Host::in_dir(dir.path()));
    let node = rig.open("a.img", CommonOptions::default());
    {
        let list = node.bitmaps.borrow();
        let bitmap = list.get(list.find("ours").expect("stored")).expect("found");
        assert_eq!(bitmap.dirty_areas().collect::<Vec<_>>(), [(3 * CLUSTER, CLUSTER)]);
        assert!(!bitmap.enabled());
    }
    let (block, id) = (rig.block.clone(), node.id);
    let resized = rig.request(async move { block.co_truncate(id, 1 << 30, Preallocation::Off).await });
    assert_eq!(resized, Ok(()));
    rig.close(node);
    good(dir.path(), "qemu-img", &["check", "a.img"]);
    let node = rig.open("a.img", CommonOptions::default());
    let (block, id) = (rig.block.clone(), node.id);
    let resized = rig.request(async move { block.co_truncate(id, 1 << 20, Preallocation::Off).await });
    assert_eq!(resized, Ok(()));
    rig.close(node);
    let checked = good(dir.path(), "qemu-img", &["check", "a.img"]);
    assert!(checked.contains("No errors were found"), "{checked}");
}
