//! What a person gets from a search, through the binary: reports that fit on a screen and replay, and searches that
//! can be spread, broken off and put together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

#[path = "common/places.rs"]
mod places;

use places::PLACES;

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/explore/{name}.yaml"))
}

fn command(args: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backsim"));
    command.args(args).current_dir(directory);
    command
}

fn backsim(args: &[&str], directory: &Path) -> Output {
    command(args, directory).output().expect("backsim can be started")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn explore<'a>(file: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["explore", file], rest].concat()
}

#[test]
fn each_defect_gets_a_report_for_one_screen_that_replays() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    for (defect, file, case) in PLACES {
        let file = scenario(file);
        let args = ["--case", case, "--defect", defect, "--schedules", "1000", "--save", "found.yaml"];
        let found = backsim(&explore(&file.to_string_lossy(), &args), home.path());
        let report = text(&found);
        assert_eq!(found.status.code(), Some(1), "{defect} is found:\n{report}");
        assert!(report.lines().count() <= 50, "{defect}: {} lines:\n{report}", report.lines().count());
        let wide = report.lines().find(|line| line.chars().count() > 120);
        assert!(wide.is_none(), "{defect}: {wide:?}");
        for part in ["shrunk in ", "why: ", "!!! ", "replay: backsim replay found.yaml"] {
            assert!(report.contains(part), "{defect}: no {part:?} in\n{report}");
        }
        // The violation is the first line after the summary.
        let violation = report.lines().skip_while(|line| !line.is_empty()).nth(1).unwrap_or_default();
        let again = backsim(&["replay", "found.yaml"], home.path());
        assert_eq!(again.status.code(), Some(0), "{defect}: {}", text(&again));
        assert!(text(&again).starts_with(violation), "{defect}: {violation}\n{}", text(&again));
        assert!(!text(&again).contains("does not fit"), "{defect}: {}", text(&again));
        let why = backsim(&["explain", "found.yaml"], home.path());
        assert_eq!(why.status.code(), Some(0), "{defect}: {}", text(&why));
    }
}

#[test]
fn each_case_of_a_finding_is_shrunk_to_its_own_violation() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("../findings/failed-transaction-forgets-writes");
    let output = text(&backsim(&explore(&file.to_string_lossy(), &["--schedules", "300", "--json"]), home.path()));
    let found: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect();
    let expected = [
        ("disabled", "bit-lost-by-unswitching", "switched it off"),
        ("cleared", "bit-lost-by-unclearing", "cleared it"),
        ("merged into", "bit-lost-by-unmerging", "merged into it"),
    ];
    assert_eq!(found.len(), expected.len(), "{output}");
    for (line, (case, breach, did)) in found.iter().zip(expected) {
        assert_eq!(line["case"], format!("it had {case} the bitmap"));
        assert_eq!(line["breach"], breach, "{line}");
        let violation = line["violation"].as_str().unwrap_or_default();
        assert!(violation.ends_with(&format!("while a transaction that failed had {did}")), "{violation}");
    }
}

#[test]
fn a_replay_file_that_no_longer_fits_says_where() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("writers");
    let args = ["--case", "4 workers", "--defect", "copy-bit-cleared-late", "--no-shrink", "--save", "found.yaml"];
    backsim(&explore(&file.to_string_lossy(), &args), home.path());
    let path = home.path().join("found.yaml");
    let kept = fs::read_to_string(&path).expect("the file was written");
    let edited = kept.replace("take: [\"guest2\"", "take: [\"nobody\"");
    assert_ne!(kept, edited, "the file names the guest:\n{kept}");
    fs::write(&path, edited).expect("the file can be written");
    let again = text(&backsim(&["replay", "found.yaml"], home.path()));
    assert!(again.contains("does not fit any more: after ["), "{again}");
}

#[test]
fn parts_merged_are_the_whole_search() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("cancel");
    let file = file.to_string_lossy();
    let common = ["--case", "bitmap/always", "--strategy", "seeded", "--schedules", "90", "--seed", "7", "--no-shrink"];
    for defect in [None, Some("always-forgets-uncopied")] {
        let defect: Vec<&str> = defect.into_iter().flat_map(|name| ["--defect", name]).collect();
        let run = |rest: &[&str]| backsim(&explore(&file, &[&common[..], &defect[..], rest].concat()), home.path());
        let whole = run(&["--jobs", "1", "--out", "whole"]);
        run(&["--jobs", "3", "--out", "threads"]);
        for kind in ["slice", "hash"] {
            for part in 1..=3 {
                let (shard, out) = (format!("{kind}:{part}/3"), format!("part{part}"));
                run(&["--shard", &shard, "--out", &out]);
            }
            let merge = ["explore", "merge", "part1", "part2", "part3", "--out", "merged", "--no-shrink"];
            let merged = backsim(&merge, home.path());
            assert_eq!(merged.status.code(), whole.status.code());
            let read = |name: &str| fs::read_to_string(home.path().join(name)).expect("a result was written");
            assert_eq!(read("merged"), read("whole"), "{kind}, {defect:?}");
            assert_eq!(read("threads"), read("whole"), "{defect:?}");
        }
    }
    let missing = backsim(&["explore", "merge", "part1", "part3"], home.path());
    assert_eq!(missing.status.code(), Some(2));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("part hash:2/3 is missing"), "{said}");
}

#[test]
fn a_killed_search_goes_on_from_its_checkpoint() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("tail");
    let file = file.to_string_lossy();
    let args = explore(&file, &["--schedules", "800", "--checkpoint", "kept", "--out", "resumed"]);
    let mut child = command(&args, home.path()).spawn().expect("backsim can be started");
    let kept = home.path().join("kept");
    let mut patience = 3000;
    while !kept.exists() && child.try_wait().expect("the child can be asked").is_none() && patience > 0 {
        std::thread::sleep(Duration::from_millis(20));
        patience -= 1;
    }
    child.kill().expect("the child can be killed");
    child.wait().expect("the child ends");
    assert!(kept.exists(), "a checkpoint was written");
    assert_eq!(backsim(&args, home.path()).status.code(), Some(0));
    backsim(&explore(&file, &["--strategy", "seeded", "--schedules", "800", "--out", "whole"]), home.path());
    let read = |name: &str| fs::read_to_string(home.path().join(name)).expect("a result was written");
    assert_eq!(read("resumed"), read("whole"));
    let other = backsim(&explore(&file, &["--seed", "1", "--checkpoint", "kept"]), home.path());
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("the checkpoint is of another search"));
}

#[test]
fn a_search_as_another_version_says_so_everywhere() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("writers");
    let file = file.to_string_lossy();
    let common = ["--case", "4 workers", "--strategy", "seeded", "--schedules", "40", "--no-shrink"];
    let run = |rest: &[&str]| backsim(&explore(&file, &[&common[..], rest].concat()), home.path());
    let broken = ["--defect", "copy-bit-cleared-late", "--compat", "qemu-10.0"];
    let report = text(&run(&[&broken[..], &["--save", "found.yaml"]].concat()));
    assert!(report.starts_with("4 workers as qemu-10.0: "), "{report}");
    let report = text(&run(&broken));
    assert!(report.contains(" --compat qemu-10.0 "), "the command that finds it again:\n{report}");
    let kept = fs::read_to_string(home.path().join("found.yaml")).expect("the file was written");
    assert!(kept.contains("\ncompat: qemu-10.0\n"), "{kept}");
    assert_eq!(backsim(&["replay", "found.yaml"], home.path()).status.code(), Some(0));
    let unknown = kept.replace("\ncompat: qemu-10.0\n", "\ncompat: qemu-9.9\n");
    fs::write(home.path().join("found.yaml"), unknown).expect("the file can be written");
    assert_eq!(backsim(&["replay", "found.yaml"], home.path()).status.code(), Some(2));
    // Its own version and another one: two searches.
    let json = text(&run(&["--json", "--checkpoint", "kept"]));
    assert!(json.contains("\"compat\":\"qemu-7.2\""), "{json}");
    let json = text(&run(&["--json", "--compat", "qemu-10.0"]));
    assert!(json.contains("\"compat\":\"qemu-10.0\""), "{json}");
    let other = run(&["--checkpoint", "kept", "--compat", "qemu-10.0"]);
    assert_eq!(other.status.code(), Some(2));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("the checkpoint is of another search: compat"), "{said}");
    run(&["--shard", "slice:1/2", "--out", "part1"]);
    run(&["--shard", "slice:2/2", "--out", "part2", "--compat", "qemu-10.0"]);
    assert_eq!(backsim(&["explore", "merge", "part1", "part2"], home.path()).status.code(), Some(2));
}

#[test]
fn results_are_written_for_machines() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scenario("writers");
    let args = ["--defect", "copy-bit-cleared-late", "--schedules", "50", "--json", "--junit", "junit.xml"];
    let output = text(&backsim(&explore(&file.to_string_lossy(), &args), home.path()));
    let lines: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect();
    assert_eq!(lines.len(), 3, "one line a case");
    assert!(lines.iter().all(|line| line["violation"].is_string()), "{output}");
    let junit = fs::read_to_string(home.path().join("junit.xml")).expect("the file was written");
    assert!(junit.contains("tests=\"3\" failures=\"3\""), "{junit}");
}
