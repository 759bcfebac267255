//! backsim's qemu-img against the real one: the same command lines, byte for byte.
//!
//! Needs qemu-img and qemu-io 7.2 or 10.0; other versions have other texts, and without them the tests say that they
//! were skipped. Masked are node names and what a file takes on the disk.

mod common;

use std::path::Path;

use backsim::img::ImgOutput;
use backsim::quirks::Compat;
use common::{Bench, Real, mask, split};

/// Each line is a command of both tools; `io FILE: a; b` writes with the real qemu-io, `crash FILE`
/// opens it for writing and dies, `poke FILE OFFSET BYTE…` overwrites bytes.
const SCRIPTS: &[(&str, &str)] = &[
    ("usage", include_str!("img/usage.txt")),
    ("create", include_str!("img/create.txt")),
    ("read", include_str!("img/read.txt")),
    ("change", include_str!("img/change.txt")),
    ("convert", include_str!("img/convert.txt")),
    ("damage", include_str!("img/damage.txt")),
];

/// Command lines whose answers are known to differ, and why. They are told, and fail nothing; whoever mends one takes
/// it out.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "convert",
        "map --output=json y",
        "each of our command lines sees the files anew, and takes a block of zeros for a hole",
    ),
    ("convert", "map --output=json z", "as above"),
    ("convert", "map --output=json zz", "as above"),
    ("convert", "map --output=json -f raw s1", "as above"),
];

fn masked(output: ImgOutput) -> ImgOutput {
    ImgOutput { stdout: mask(&output.stdout), stderr: mask(&output.stderr), ..output }
}

fn play(real: &Real, compat: Compat, name: &str, script: &str) -> Vec<String> {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut differences = Vec::new();
    let mut about = "";
    for line in script.lines().filter(|line| !line.is_empty()) {
        if let Some(text) = line.strip_prefix("# ") {
            about = text;
            continue;
        }
        if let Some(io) = line.strip_prefix("io ") {
            let (file, commands) = io.split_once(": ").expect("io FILE: COMMANDS");
            let commands: Vec<&str> = commands.split("; ").collect();
            for dir in [theirs.path(), ours.path()] {
                real.io(dir, file, &commands);
            }
            continue;
        }
        if let Some(file) = line.strip_prefix("crash ") {
            for dir in [theirs.path(), ours.path()] {
                real.crash(dir, file);
            }
            continue;
        }
        if let Some(poke) = line.strip_prefix("poke ") {
            for dir in [theirs.path(), ours.path()] {
                poke_file(dir, poke);
            }
            continue;
        }
        let expected = masked(real.img(theirs.path(), &split(line)));
        let got = masked(Bench::in_dir(ours.path(), compat).line(line));
        if expected != got {
            if let Some((.., why)) = KNOWN.iter().find(|(script, known, _)| *script == name && *known == line) {
                eprintln!("known to differ: {name}: qemu-img {line}: {why}\n  real:  {expected:?}\n  ours:  {got:?}");
                continue;
            }
            differences.push(format!("{name}: {about}: qemu-img {line}\n  real:  {expected:?}\n  ours:  {got:?}"));
        }
    }
    differences
}

fn poke_file(dir: &Path, poke: &str) {
    use std::os::unix::fs::FileExt;
    let (file, offset, bytes) = common::poke(poke);
    let file = std::fs::File::options().write(true).open(dir.join(file)).expect("the file is there");
    file.write_all_at(&bytes, offset).expect("the file can be written to");
}

#[test]
fn texts_and_statuses_are_those_of_the_real_tool() {
    let Some(real) = Real::find("texts_and_statuses_are_those_of_the_real_tool") else { return };
    let version = real.version();
    let known = [("version 7.2.", Compat::Qemu72), ("version 10.0.2", Compat::Qemu100)];
    let Some((_, compat)) = known.into_iter().find(|(text, _)| version.contains(text)) else {
        eprintln!("SKIPPED: the texts are those of qemu-img 7.2 and 10.0.2, this is {version}");
        return;
    };
    let play = |(name, script): &(&str, &str)| play(&real, compat, name, script);
    let differences: Vec<String> = SCRIPTS.iter().flat_map(play).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
