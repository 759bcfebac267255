//! The project's own rules, kept by machine. Each test names every place that breaks its rule and says what
//! to do about it; none of them needs anything but the sources.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use backsim::cli::exit::Exit;
use source::{Function, Source, blank, root};

/// What all layers may use.
const GROUND: &[&str] = &["cutils", "errno", "quirks", "shard", "units"];

/// The layers from the ground up; those of one entry stand side by side.
const LAYERS: &[&[&str]] = &[
    &["sim"],
    &["store"],
    &["bitmap"],
    &["block"],
    &["job"],
    &["qmp"],
    &["img"],
    &["scenario"],
    &["workers"],
    &["explore", "conform", "report"],
    &["cli"],
];

/// Layers that talk to the world outside a run: clocks, threads and processes are theirs.
const OUTSIDE: &[&str] = &["cli", "conform", "explore", "workers"];

/// More lines than this in one function need scrolling twice.
const FUNCTION_LINES: usize = 100;
const FILE_LINES: usize = 700;

#[track_caller]
fn none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}\n{} broken:\n  {}\n", found.len(), found.join("\n  "));
}

fn place(source: &Source, line: usize) -> String {
    format!("{}:{line}: {}", source.path.display(), source.line(line).trim())
}

/// The top-level module that a file belongs to; `lib` and `main` stand for themselves.
fn layer(path: &Path) -> String {
    let below = path.strip_prefix("src").expect("a source lies below src");
    let first = below.components().next().expect("a source has a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn rank(layer: &str) -> Option<usize> {
    if GROUND.contains(&layer) {
        return Some(0);
    }
    LAYERS.iter().position(|side_by_side| side_by_side.contains(&layer)).map(|index| index + 1)
}

#[test]
fn layers_import_only_downwards() {
    let mut found = Vec::new();
    for source in Source::all("src") {
        let own = layer(&source.path);
        if matches!(own.as_str(), "lib" | "main") {
            continue;
        }
        let Some(height) = rank(&own) else {
            found.push(format!("{}: `{own}` has no place among the layers", source.path.display()));
            continue;
        };
        for (line, used) in imports(&source) {
            if rank(&used).is_some_and(|used| used > height) {
                found.push(format!("{} (`{own}` may not know `{used}`)", place(&source, line)));
            }
        }
    }
    none("A layer knows only what is below it (see LAYERS in tests/tidy.rs): move the code, or pass it in.", &found);
}

/// The names right below the crate's root that a file uses, with their lines.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let depth = source.path.components().count() - 1 - usize::from(source.path.ends_with("mod.rs"));
    let to_root = "super::".repeat(depth);
    let mut found = Vec::new();
    for path in ["crate::", to_root.as_str()] {
        for at in source.uses(path) {
            let before = source.code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
                continue;
            }
            let names = first_names(&source.code[at + path.len()..]);
            found.extend(names.into_iter().map(|name| (source.line_at(at), name)));
        }
    }
    found
}

/// The first names of a path or of each path in a group: `a::b` gives `a`, `{a::b, c::{d}}` gives `a` and `c`.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let mut names = vec![name(group)];
    let mut depth = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

#[test]
fn each_module_says_what_it_is_for() {
    let mut found = Vec::new();
    for source in Source::all("src") {
        let opening: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let words = opening.iter().flat_map(|line| line.split_whitespace()).filter(|word| *word != "//!").count();
        if words < 6 {
            found.push(format!("{}: {}", source.path.display(), opening.join(" ")));
        }
    }
    none("Each module opens with a `//!` paragraph: what it is for, what it must never do.", &found);
}

/// The documentation right above each function that the monitor's table calls.
fn command_docs(source: &Source) -> Vec<(usize, String)> {
    let lines: Vec<&str> = source.text.lines().collect();
    let is_doc = |line: &&&str| line.trim_start().starts_with("///");
    let handler = |line: &str| line.trim_start().starts_with("pub(in crate::qmp)") && line.contains("fn ");
    let above = |at: usize| lines[..at].iter().rev().take_while(is_doc).map(|line| line.trim()).collect::<Vec<_>>();
    let handlers = (0..lines.len()).filter(|at| handler(lines[*at]));
    handlers.map(|at| (at + 1, above(at).into_iter().rev().collect::<Vec<_>>().join(" "))).collect()
}

#[test]
fn each_command_names_the_source_of_its_behaviour() {
    let mut found = Vec::new();
    let mut docs = String::new();
    for source in Source::all("src/qmp") {
        for (line, doc) in command_docs(&source) {
            if !doc.contains(".c`") {
                found.push(place(&source, line));
            }
        }
        let is_doc = |line: &&str| line.starts_with("//!") || line.trim_start().starts_with("///");
        docs.extend(source.text.lines().filter(is_doc));
    }
    none("Whoever reads of a command must know where QEMU has it: name the file of QEMU's source.", &found);
    // `block-job-pause, -resume`: a name may be shortened to what it ends in.
    let told = |command: &&&str| {
        docs.contains(**command) || command.rsplit_once('-').is_some_and(|(_, end)| docs.contains(&format!("-{end}")))
    };
    let untold: Vec<String> =
        backsim::qmp::COMMANDS.iter().filter(|name| !told(name)).map(|name| (*name).to_owned()).collect();
    none("A command must be found in the documentation of what carries it out.", &untold);
}

#[test]
fn nothing_is_a_stub() {
    let words = ["todo!", "unimplemented!", "dbg!", "unsafe "];
    none("No stub, no debugging output, no `unsafe`.", &standing_alone(&Source::all("src"), &words));
}

/// Places outside tests where one of `words` stands and is not the end of a longer word.
fn standing_alone(sources: &[Source], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (line, code) in source.lines() {
            let stands = |word: &str| {
                code.match_indices(word).any(|(at, _)| {
                    let around = [code[..at].chars().next_back(), code[at + word.len()..].chars().next()];
                    !around.into_iter().flatten().any(|c| c.is_alphanumeric() || c == '_')
                })
            };
            if words.iter().any(|word| stands(word)) {
                found.push(place(source, line));
            }
        }
    }
    found
}

#[test]
fn a_run_depends_on_nothing_but_its_scenario() {
    let all = Source::all("src");
    let (outside, inside): (Vec<Source>, Vec<Source>) =
        all.into_iter().partition(|source| OUTSIDE.contains(&layer(&source.path).as_str()));
    let words = ["HashMap", "HashSet", "SystemTime", "thread_rng", "RandomState"];
    let mut found = standing_alone(&inside, &words);
    // Search spreads over cores and is timed; each run in it stays on its thread.
    let inside: Vec<Source> = inside.into_iter().filter(|source| layer(&source.path) != "explore").collect();
    found.extend(standing_alone(&inside, &["Instant", "std::time", "std::thread", "std::process", "std::env"]));
    // Even outside, an order that differs from run to run may not reach what is written.
    found.extend(standing_alone(&outside, &["thread_rng", "RandomState"]));
    let rule = "No clock, thread, environment or unordered map on a run's path: use sim, BTreeMap, BTreeSet.";
    none(rule, &found);
}

#[test]
fn what_tasks_share_is_watched() {
    let shared: Vec<Source> = Source::all("src")
        .into_iter()
        .filter(|source| ["store", "bitmap", "block", "job", "qmp", "img"].contains(&layer(&source.path).as_str()))
        .collect();
    let found = standing_alone(&shared, &["std::cell"]);
    none("State lives in the cells of sim::shared, which partial-order reduction watches.", &found);
}

#[test]
fn functions_and_files_are_short() {
    let mut found = Vec::new();
    for source in Source::all("src").into_iter().chain(Source::all("tests")) {
        let lines = source.text.lines().count();
        if lines > FILE_LINES {
            found.push(format!("{}: {lines} lines, at most {FILE_LINES}", source.path.display()));
        }
        for Function { name, first, last } in source.functions() {
            let lines = last - first + 1;
            if lines > FUNCTION_LINES {
                let path = source.path.display();
                found.push(format!("{path}:{first}: fn {name} has {lines} lines, at most {FUNCTION_LINES}"));
            }
        }
    }
    none("What needs scrolling twice is split.", &found);
}

#[test]
fn a_panic_states_the_invariant_that_would_be_broken() {
    let mut found = Vec::new();
    for source in Source::all("src") {
        found.extend(source.uses(".unwrap()").into_iter().map(|at| place(&source, source.line_at(at))));
        for at in source.uses(".expect(") {
            let argument = source.text[at + ".expect(".len()..].trim_start();
            let stated = argument.strip_prefix('"').and_then(|rest| rest.split('"').next());
            // A parser's own `expect` takes no text; only messages are looked at.
            let is_message = stated.is_some();
            if is_message && stated.is_some_and(|text| text.split_whitespace().count() < 3) {
                found.push(place(&source, source.line_at(at)));
            }
        }
    }
    none("No `unwrap()`; `expect(…)` says, in three words or more, the invariant that makes it safe.", &found);
}

#[test]
fn every_source_is_part_of_the_house() {
    let all = Source::all("src");
    let mut found = Vec::new();
    for source in &all {
        let stem = source.path.file_stem().expect("a source has a name").to_string_lossy().into_owned();
        let home = source.path.parent().expect("a source has a directory");
        if matches!(stem.as_str(), "lib" | "main") {
            continue;
        }
        let (name, above) = if stem == "mod" {
            (home.file_name().expect("a module has a name").to_string_lossy().into_owned(), home.parent())
        } else {
            (stem, Some(home))
        };
        let above = above.expect("all modules are below src");
        let parents: [PathBuf; 3] = [above.join("mod.rs"), above.with_extension("rs"), above.join("lib.rs")];
        let declares = |parent: &&Source| {
            parents.contains(&parent.path)
                && parent
                    .code
                    .lines()
                    .any(|line| line.trim().trim_start_matches("pub").ends_with(&format!("mod {name};")))
        };
        if !all.iter().any(|parent| declares(&parent)) {
            found.push(source.path.display().to_string());
        }
    }
    none("A file that no `mod` names is not compiled: declare it or remove it.", &found);
}

/// README and everything in docs/.
fn documents() -> String {
    let mut text = fs::read_to_string(root().join("README.md")).expect("README.md is readable");
    let docs = fs::read_dir(root().join("docs")).expect("docs/ is readable");
    let mut paths: Vec<PathBuf> = docs.map(|entry| entry.expect("docs/ is readable").path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        text.push_str(&fs::read_to_string(path).expect("a document is readable UTF-8"));
    }
    text
}

#[test]
fn each_exit_status_is_documented() {
    let text = documents();
    let row = |exit: &Exit| format!("| {} | {} |", exit.status(), exit.meaning());
    let missing: Vec<String> = Exit::ALL.iter().map(row).filter(|row| !text.contains(row)).collect();
    none("Each exit status has its row in README.md, in the words of src/cli/exit.rs.", &missing);
}

#[test]
fn each_command_and_flag_is_documented() {
    let text = documents();
    let words: BTreeSet<&str> = text.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
    let mut missing = Vec::new();
    let interface = backsim::cli::interface();
    for command in interface.get_subcommands().filter(|command| command.get_name() != "help") {
        if !text.contains(&format!("backsim {}", command.get_name())) {
            missing.push(format!("backsim {}", command.get_name()));
        }
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            if flag != "help" && !words.contains(format!("--{flag}").as_str()) {
                missing.push(format!("backsim {} --{flag}", command.get_name()));
            }
        }
    }
    none("Each command and each of its flags is in README.md or docs/.", &missing);
}

#[test]
fn nothing_needs_a_place_outside_the_project() {
    let mut found = Vec::new();
    // Put together here, so that this line is not found itself.
    let private = ["/wo", "rk/"].concat();
    let everywhere = ["src", "tests", "benches"].into_iter().flat_map(Source::all);
    for source in everywhere {
        for (index, line) in source.text.lines().enumerate() {
            if line.contains(&private) {
                found.push(format!("{}:{}: {}", source.path.display(), index + 1, line.trim()));
            }
        }
    }
    found.extend(documents().lines().filter(|line| line.contains(&private)).map(str::to_owned));
    none("No path of somebody's own machine.", &found);
}

mod of_itself {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(PathBuf::from("src/job/state.rs"), text.to_owned())
    }

    #[test]
    fn texts_and_comments_are_no_code() {
        let blanked = |text: &str| blank(text).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(blanked("a // crate::cli\nb /* c\nd */ e"), "a b e");
        assert_eq!(blanked(r#"a "b \" c" 'd' '\'' 'static "ü" e"#), "a 'static e");
        assert_eq!(blanked("a r#\"b\"c\"# br\"d\" r#type e"), "a r#type e");
        assert_eq!(blank("\"ü\n\"").len(), "\"ü\n\"".len());
    }

    #[test]
    fn imports_are_found_in_every_spelling() {
        let text = "use crate::{sim::Sim, qmp::{Machine, x}};\nuse super::super::cli;\nlet x = crate::block::Node;\n\
                    // crate::conform\n#[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
        let names: Vec<(usize, String)> = imports(&source(text));
        let names: Vec<(usize, &str)> = names.iter().map(|(line, name)| (*line, name.as_str())).collect();
        assert_eq!(names, [(1, "sim"), (1, "qmp"), (3, "block"), (2, "cli")]);
    }

    #[test]
    fn functions_are_measured_from_name_to_brace() {
        let text = "trait T {\n    fn none(&self);\n    fn one(x: [u8; 2]) {\n        \"}\";\n    }\n}\n";
        let found = source(text).functions();
        assert_eq!(found, [Function { name: "one".to_owned(), first: 3, last: 5 }]);
    }
}
