//! The main job, as part of the tests: every scenario of the project gives its expected transcript.

use std::path::Path;
use std::process::Command;

/// Enough scenarios to be divided among threads and machines.
const SOME: &str = "scenarios/rules";

fn check(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backsim"));
    command.arg("check").args(args).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let output = command.output().expect("the binary can be started");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn every_scenario_gives_its_expected_transcript() {
    let (status, text) = check(&[]);
    assert_eq!(status, Some(0), "{text}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    assert_eq!(check(&[SOME, "--jobs", "1"]), check(&[SOME, "--jobs", "4"]));
}

#[test]
fn the_parts_of_a_split_check_add_up() {
    let lines = |args: &[&str]| {
        let (_, text) = check(args);
        let starts = ["ok ", "differs", "failed", "missing", "known", "passes", "broken"];
        let is_case = |line: &&str| starts.iter().any(|start| line.starts_with(start));
        let mut lines: Vec<String> = text.lines().filter(is_case).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for kind in ["slice", "hash"] {
        let mut parts = lines(&[SOME, "--shard", &format!("{kind}:1/2")]);
        parts.extend(lines(&[SOME, "--shard", &format!("{kind}:2/2")]));
        parts.sort();
        assert!(!parts.is_empty());
        assert_eq!(parts, lines(&[SOME]), "{kind}");
    }
}
