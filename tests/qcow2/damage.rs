//! Damaged images: what we say about them is what the real qemu-img says, word for word.

use std::path::Path;
use std::process::Command;

use backsim::block::open::CommonOptions;
use backsim::block::qcow2::{CheckResult, Fix};
use backsim::errno::Res;
use backsim::store::Host;

use super::oracle::{good, have};
use super::rig::{Rig, image_options};

/// How many damaged images are looked at; more are worth a look after a change of `check.rs`.
fn rounds() -> u64 {
    std::env::var("QCOW2_DAMAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(120)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// An image with everything in it, small clusters to have many tables.
fn rich_image(dir: &Path) -> Vec<u8> {
    good(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "rich.img", "8M"]);
    let script = [
        "-c",
        "write -P 1 0 300k",
        "-c",
        "write -z 64k 20k",
        "-c",
        "write -z 400k 40k",
        "-c",
        "write -c -P 9 1M 16k",
        "-c",
        "write -P 3 5M 100k",
        "-c",
        "discard 100k 20k",
        "rich.img",
    ];
    good(dir, "qemu-io", &script);
    good(dir, "qemu-img", &["snapshot", "-c", "s1", "rich.img"]);
    good(dir, "qemu-io", &["-c", "write -P 2 64k 4k", "-c", "write -P 2 6M 64k", "rich.img"]);
    good(dir, "qemu-img", &["bitmap", "--add", "-g", "4k", "rich.img", "one"]);
    good(dir, "qemu-io", &["-c", "write -P 2 64k 4k", "rich.img"]);
    good(dir, "qemu-img", &["bitmap", "--add", "-g", "64k", "rich.img", "two"]);
    std::fs::read(dir.join("rich.img")).expect("just made")
}

/// Places worth damaging: table entries and header fields that are in use.
fn interesting_places(image: &[u8]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..140).collect();
    for at in (4096..image.len() - 8).step_by(8) {
        let word = &image[at..at + 8];
        let looks_like_metadata = word.iter().any(|b| *b != 0) && word.iter().any(|b| *b != word[0]);
        if looks_like_metadata {
            places.extend(at..at + 8);
        }
    }
    places
}

fn damage(image: &[u8], places: &[usize], random: &mut Random) -> (Vec<u8>, String) {
    let mut bytes = image.to_vec();
    let mut what = String::new();
    for _ in 0..=random.below(2) {
        let at = places[random.below(places.len() as u64) as usize];
        let old = bytes[at];
        bytes[at] = match random.below(4) {
            0 => 0,
            1 => old ^ (1 << random.below(8)),
            2 => old.wrapping_add(1),
            _ => random.below(256) as u8,
        };
        what.push_str(&format!("{at:#x}: {old:02x} -> {:02x}; ", bytes[at]));
    }
    if random.below(20) == 0 {
        let keep = random.below(bytes.len() as u64) as usize;
        bytes.truncate(keep);
        what.push_str(&format!("cut to {keep}"));
    }
    (bytes, what)
}

/// What qemu-img says: its standard error, and the numbers of its report; none if it crashed.
fn their_check(dir: &Path, args: &[&str]) -> Option<(String, String)> {
    let mut all = vec!["check", "-f", "qcow2", "--output=json"];
    all.extend(args);
    all.push("damaged.img");
    let out = Command::new("qemu-img").args(all).current_dir(dir).output().expect("found before");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    out.status.code().map(|_| (text(&out.stderr), text(&out.stdout)))
}

fn number(json: &str, key: &str) -> u64 {
    let after = json.split(&format!("\"{key}\": ")).nth(1).unwrap_or("0");
    after.split([',', '\n', ' ']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn from_json(json: &str) -> CheckResult {
    CheckResult {
        corruptions: number(json, "corruptions"),
        leaks: number(json, "leaks"),
        check_errors: number(json, "check-errors"),
        corruptions_fixed: number(json, "corruptions-fixed"),
        leaks_fixed: number(json, "leaks-fixed"),
        image_end_offset: number(json, "image-end-offset"),
        total_clusters: number(json, "total-clusters"),
        allocated_clusters: number(json, "allocated-clusters"),
        fragmented_clusters: number(json, "fragmented-clusters"),
        compressed_clusters: number(json, "compressed-clusters"),
    }
}

/// What we say: standard error, and the result unless the image could not be opened.
fn our_check(dir: &Path, fix: Fix) -> (String, Option<(CheckResult, Res<()>)>) {
    let rig = Rig::new(Host::in_dir(dir));
    let common = CommonOptions { read_only: Some(!fix.any()), check: true, ..Default::default() };
    let block = rig.block.clone();
    let checked = rig.run(async move {
        let node = block.open(&image_options("damaged.img", common)).await?;
        let (core, qcow2) = (block.clone(), node.qcow2().expect("opened as qcow2"));
        let checked = block.sim.run_coroutine("check", async move { qcow2.check(&core, fix).await }).await;
        block.unref(node.id).await;
        Ok::<_, String>(checked)
    });
    let said = rig.block.stderr.take();
    match checked {
        Ok(checked) => (said, Some(checked)),
        Err(reason) => (said + &format!("qemu-img: Could not open 'damaged.img': {reason}\n"), None),
    }
}

/// Lines without those that qemu-img adds around a check, and without hints.
fn comparable(said: &str) -> Vec<String> {
    let said = said.replace("backsim-test: ", "qemu-img: ");
    let kept = |line: &&str| !line.starts_with("qemu-img: Check failed") && !line.starts_with("You can force-remove");
    said.lines().filter(kept).map(str::to_owned).collect()
}

#[test]
fn damaged_images_are_judged_alike() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = rich_image(dir.path());
    let places = interesting_places(&image);
    let mut random = Random(7);
    for round in 0..rounds() {
        let (bytes, what) = damage(&image, &places, &mut random);
        let place = dir.path().join("damaged.img");
        std::fs::write(&place, &bytes).expect("writable");
        let Some((their_words, json)) = their_check(dir.path(), &[]) else { continue };
        let (our_words, outcome) = our_check(dir.path(), Fix::NOTHING);
        assert_eq!(comparable(&our_words), comparable(&their_words), "round {round}: {what}");
        let Some((result, Ok(()))) = outcome else { continue };
        assert_eq!(result, from_json(&json), "round {round}: {what}");
        if result.corruptions + result.leaks == 0 {
            continue;
        }
        let (_, outcome) = our_check(dir.path(), Fix::ALL);
        let repaired = std::fs::read(&place).expect("still there");
        std::fs::write(&place, &bytes).expect("writable");
        let Some((_, json)) = their_check(dir.path(), &["-r", "all"]) else { continue };
        let theirs = from_json(&json);
        let Some((ours, Ok(()))) = outcome else {
            assert_ne!(theirs.check_errors + theirs.corruptions, 0, "we gave up, round {round}: {what}");
            continue;
        };
        // qemu-img reports on the second look, after the repair.
        let fixed = |r: &CheckResult| (r.corruptions_fixed, r.leaks_fixed);
        assert_eq!(fixed(&ours), fixed(&theirs), "round {round}: {what}");
        // Closing stores bitmaps: what counts is what is left after that.
        let Some((_, json)) = their_check(dir.path(), &[]) else { continue };
        let theirs = from_json(&json);
        std::fs::write(&place, repaired).expect("writable");
        let (words, json) = their_check(dir.path(), &[]).expect("our repair does not crash qemu-img");
        assert_eq!(from_json(&json), theirs, "{words} round {round}: {what}");
    }
}
