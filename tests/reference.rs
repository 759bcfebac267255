//! What real QEMU wrote, where those files are at hand: `../shared/reference`, or the directory that
//! `BACKSIM_REFERENCE` names. Without them these tests say so and pass.
//!
//! `tests/corpus-passing.txt` lists what already matches; it only ever gains. `BACKSIM_BLESS_CORPUS=1` adds
//! what matches now.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use backsim::cli::engine::{Overrides, RunOptions, guarded, judge, simulated};
use backsim::quirks::Compat;
use backsim::scenario;

const LIST: &str = "tests/corpus-passing.txt";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The directory of the reference, if it is there.
fn reference() -> Option<PathBuf> {
    let named = std::env::var_os("BACKSIM_REFERENCE").map(PathBuf::from);
    let found = named.unwrap_or_else(|| root().join("../shared/reference"));
    if found.is_dir() {
        return Some(found);
    }
    println!("skipped: {} is not there", found.display());
    None
}

#[test]
fn what_is_expected_of_257_is_what_qemu_wrote() {
    let Some(reference) = reference() else { return };
    for compat in Compat::ALL {
        let version = compat.name();
        let part = |name: &str| {
            let path = root().join(format!("expected/{name}.{version}.out"));
            fs::read_to_string(path).expect("the expected transcript is readable")
        };
        let path = reference.join(format!("257.{version}.out"));
        let qemu = fs::read_to_string(path).expect("the reference is readable");
        assert!(part("257-bitmap-sync") + &part("257-api-failures") == qemu, "{version}");
    }
}

/// Whether the scenario in `file` gives what QEMU gave.
fn passes(file: &Path, compat: Compat) -> Result<bool, String> {
    let expected = file.with_extension(format!("{}.out", compat.name()));
    let expected = fs::read_to_string(&expected).map_err(|error| format!("{}: {error}", expected.display()))?;
    let scenario = scenario::load(file).map_err(|mistakes| mistakes.to_string())?;
    let mut cases = scenario.cases().map_err(|mistakes| mistakes.to_string())?;
    let mut actual = String::new();
    for case in &mut cases {
        Overrides { compat: Some(compat), ..Overrides::default() }.apply(case);
        let run = guarded(|| simulated(case, &RunOptions::default())).map_err(|defect| defect.to_string())??;
        actual.push_str(run.outcome.transcript.text());
        if judge(case, &run.outcome.ending).is_some() {
            return Ok(false);
        }
    }
    Ok(actual == expected)
}

#[test]
fn the_corpus_only_ever_gains() {
    let Some(reference) = reference() else { return };
    let mut files: Vec<PathBuf> = fs::read_dir(reference.join("corpus"))
        .expect("the corpus is readable")
        .map(|entry| entry.expect("the corpus is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut passing = BTreeSet::new();
    for file in &files {
        let stem = file.file_stem().expect("a scenario has a name").to_string_lossy();
        for compat in Compat::ALL {
            let name = format!("{stem} {}", compat.name());
            match passes(file, compat) {
                Ok(true) => drop(passing.insert(name)),
                Ok(false) => {}
                Err(why) => println!("{name}: {why}"),
            }
        }
    }
    let total = files.len() * Compat::ALL.len();
    println!("{} of {total} transcripts of the corpus match", passing.len());
    let list = fs::read_to_string(root().join(LIST)).unwrap_or_default();
    let listed: BTreeSet<String> = list.lines().map(str::to_owned).collect();
    let lost: Vec<&String> = listed.difference(&passing).collect();
    let gained: Vec<&String> = passing.difference(&listed).collect();
    if std::env::var_os("BACKSIM_BLESS_CORPUS").is_some_and(|value| value == "1") && lost.is_empty() {
        let text: String = passing.iter().map(|name| format!("{name}\n")).collect();
        fs::write(root().join(LIST), text).expect("the list is writable");
    } else if !gained.is_empty() {
        println!(
            "{} more match than are listed; to list them: BACKSIM_BLESS_CORPUS=1 cargo test --test reference",
            gained.len()
        );
        gained.iter().for_each(|name| println!("  {name}"));
    }
    assert!(lost.is_empty(), "these matched what QEMU wrote, and no longer do: {lost:#?}");
}

/// How many lines of QEMU's own output of an iotest do not stand in ours, in this order: what README tells of. The
/// numbers may only fall.
const IOTESTS_LACK: [(&str, usize); 9] = [
    ("085", 204),
    ("206", 80),
    ("219", 178),
    ("223", 245),
    ("236", 3),
    ("242", 57),
    ("246", 7),
    ("283", 0),
    ("image-fleecing", 55),
];

/// Lines of `text` that no longest common part with `other` holds.
fn lines_apart(text: &str, other: &str) -> usize {
    let diff = similar::TextDiff::from_lines(text, other);
    diff.iter_all_changes().filter(|change| change.tag() == similar::ChangeTag::Delete).count()
}

#[test]
fn iotests_lack_no_more_than_is_told() {
    let Some(reference) = reference() else { return };
    for (name, most) in IOTESTS_LACK {
        for version in Compat::ALL.map(Compat::name) {
            let read = |path: PathBuf| fs::read_to_string(path).expect("a transcript is readable");
            let qemu = read(reference.join(format!("iotests/{name}.{version}.out")));
            let ours = read(root().join(format!("expected/iotests/{name}.{version}.out")));
            let lack = lines_apart(&qemu, &ours);
            assert!(lack <= most, "{name} {version}: {lack} lines of QEMU's are missing, {most} are told of");
        }
    }
}
