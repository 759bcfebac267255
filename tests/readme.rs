//! README's claims: each `console` block is run, and must give what it shows.
//!
//! A block `yaml` after `<!-- file: NAME -->` is written to NAME first. In a `console` block, `$ ` begins a
//! command, `[N]` at the end of its output is its exit status, and a line `...` stands for any lines.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A block of README with the line (from 1) it begins at.
struct Block {
    line: usize,
    language: String,
    /// The file that it is the content of.
    file: Option<String>,
    text: String,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    let mut file = None;
    for (index, line) in readme.lines().enumerate() {
        if let Some(name) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            file = Some(name.to_owned());
        } else if let Some(language) = line.strip_prefix("```") {
            inside = !inside;
            if inside {
                let language = language.to_owned();
                found.push(Block { line: index + 1, language, file: file.take(), text: String::new() });
            }
        } else if let (true, Some(block)) = (inside, found.last_mut()) {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    found
}

/// A command with what it should give.
struct Step {
    line: usize,
    command: String,
    expected: String,
}

fn steps(block: &Block) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    for (index, line) in block.text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            let line = block.line + index + 1;
            found.push(Step { line, command: command.to_owned(), expected: String::new() });
        } else if let Some(step) = found.last_mut() {
            step.expected.push_str(line);
            step.expected.push('\n');
        }
    }
    found
}

/// Runs `command` with a shell in `directory`; its output, both streams, and its status unless 0.
fn given(command: &str, directory: &Path) -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_backsim")).parent().expect("the binary is in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(directory)
        .env("PATH", format!("{}:{path}", bin.display()))
        .env_remove("CI")
        .output()
        .expect("a shell can be started");
    let mut text = String::from_utf8(output.stdout).expect("output is UTF-8");
    if !output.status.success() {
        text.push_str(&format!("[{}]\n", output.status.code().unwrap_or(-1)));
    }
    text
}

/// Whether `given` is `expected`, where a line `...` stands for any number of lines.
fn matches(expected: &[&str], given: &[&str]) -> bool {
    match expected.split_first() {
        None => given.is_empty(),
        Some((&"...", rest)) => (0..=given.len()).any(|skipped| matches(rest, &given[skipped..])),
        Some((line, rest)) => given.split_first().is_some_and(|(own, given)| own == line && matches(rest, given)),
    }
}

#[test]
fn every_command_gives_what_the_readme_shows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md is readable");
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let mut run = 0;
    for block in blocks(&readme) {
        if let Some(name) = &block.file {
            fs::write(home.path().join(name), &block.text).expect("a file can be written");
        }
        if block.language != "console" {
            continue;
        }
        for step in steps(&block) {
            let given = given(&step.command, home.path());
            let expected: Vec<&str> = step.expected.lines().collect();
            let fits = matches(&expected, &given.lines().collect::<Vec<_>>());
            assert!(fits, "README.md:{}: `{}` gives\n{given}", step.line, step.command);
            run += 1;
        }
    }
    assert!(run > 4, "README has a tour of commands");
}
