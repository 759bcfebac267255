//! The process as a user meets it: bytes on standard output, statuses, streams that close.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SCENARIOS: [&str; 2] = ["scenarios/257-bitmap-sync.yaml", "scenarios/257-api-failures.yaml"];
const VERSIONS: [&str; 2] = ["qemu-7.2", "qemu-10.0"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn backsim(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backsim"));
    command.args(args).current_dir(root()).env_remove("CI");
    command.output().expect("the binary can be started")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

/// What real QEMU writes for both parts of 257.
fn expected(version: &str) -> Vec<u8> {
    let file = |scenario: &&str| {
        let name = scenario.replace("scenarios/", "expected/").replace(".yaml", &format!(".{version}.out"));
        std::fs::read(root().join(name)).expect("the expected transcript is readable")
    };
    SCENARIOS.iter().flat_map(file).collect()
}

#[track_caller]
fn assert_257(version: &str, more: &[&str]) {
    let args = [&["run", "--compat", version], more, &SCENARIOS].concat();
    let output = backsim(&args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    let (given, wanted) = (text(&output.stdout), expected(version));
    let different = given.lines().zip(text(&wanted).lines()).position(|(given, wanted)| given != wanted);
    assert!(
        given.as_bytes() == wanted,
        "{args:?}: line {:?} differs; `backsim check` shows how",
        different.map(|n| n + 1)
    );
}

#[test]
fn test_257_is_replayed_byte_for_byte_in_memory() {
    for version in VERSIONS {
        assert_257(version, &[]);
    }
}

#[test]
fn test_257_is_replayed_byte_for_byte_in_files() {
    for version in VERSIONS {
        assert_257(version, &["--storage", "file"]);
    }
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let args = [&["run"], &SCENARIOS[..]].concat();
    let first = backsim(&args).stdout;
    assert!(!first.is_empty(), "257 has a transcript");
    for _ in 0..10 {
        assert!(backsim(&args).stdout == first, "a run depends on something else than its scenario");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["check", "--help"]] {
        let output = backsim(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{args:?}");
    }
    let help = backsim(&["--help"]);
    for exit in backsim::cli::exit::Exit::ALL {
        assert!(text(&help.stdout).contains(exit.meaning()), "--help does not explain status {}", exit.status());
    }
}

#[test]
fn wrong_arguments_are_mistakes() {
    let wrong: [&[&str]; 6] = [
        &[],
        &["frobnicate"],
        &["run"],
        &["run", "--compat", "qemu-1.0", SCENARIOS[0]],
        &["run", "no-such-file.yaml"],
        &["check", "--shard", "slice:0/2"],
    ];
    for args in wrong {
        let output = backsim(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn nothing_selected_has_its_own_status() {
    let output = backsim(&["run", "--case", "no such case", SCENARIOS[0]]);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn whoever_reads_may_stop_reading() {
    let args = [&["run"], &SCENARIOS[..]].concat();
    for args in [&args[..], &["schema"], &["completions", "bash"], &["man"], &["--help"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backsim"));
        command.args(args).current_dir(root()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the binary ends");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn there_is_a_man_page_for_each_command() {
    for command in ["run", "check", "list", "schema", "completions", "man"] {
        let output = backsim(&["man", command]);
        assert!(text(&output.stdout).contains(&format!(".TH backsim-{command} 1")), "{command}");
    }
    assert_eq!(backsim(&["man", "frobnicate"]).status.code(), Some(2));
}

#[test]
fn images_are_kept_where_they_are_asked_for() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let dir = home.path().join("images").display().to_string();
    let args = ["run", "--storage", "file", "--dir", &dir, "--case", "bitmap/never/none", SCENARIOS[0]];
    assert!(backsim(&args).status.success());
    let image: PathBuf = Path::new(&dir).join("257-bitmap-sync/03-bitmap-never-none/img");
    assert!(image.is_file(), "{}", image.display());
    assert_eq!(backsim(&args).status.code(), Some(2), "the directory is not empty any more");
}

#[test]
fn no_colours_outside_a_terminal() {
    let output = backsim(&["check"]);
    assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
}
