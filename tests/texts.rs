//! Each text that the model can write is reached by a scenario or a test.
//!
//! A text is a literal in the layers below the scenario that begins with a capital letter and has several words: errors,
//! warnings, reports. It is reached if it stands in an expected transcript or in the sources of the tests, with anything
//! in its placeholders. `texts-unreached.txt` names those that are not reached yet; the list only gets shorter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The layers whose texts a user sees in a transcript.
const LAYERS: [&str; 5] = ["bitmap", "block", "img", "job", "qmp"];

fn files(below: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).expect("a directory of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a text file of the project")
}

/// The source without its comments, and what stands below `#[cfg(test)]`.
fn split(source: &str) -> (String, &str) {
    let (code, tests) = source.split_at(source.find("#[cfg(test)]").unwrap_or(source.len()));
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    (code, tests)
}

/// The string literals of some code, as they are written but for line breaks.
fn literals(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut letters = code.chars().peekable();
    let mut before = ' ';
    while let Some(letter) = letters.next() {
        if letter != '"' || before == '\'' {
            before = letter;
            continue;
        }
        let mut text = String::new();
        while let Some(letter) = letters.next_if(|letter| *letter != '"') {
            match (letter, letters.peek()) {
                ('\\', Some('\n')) => while letters.next_if(|letter| letter.is_whitespace()).is_some() {},
                ('\\', Some(_)) => text.extend([letter, letters.next().expect("it was there")]),
                _ => text.push(letter),
            }
        }
        letters.next();
        before = '"';
        found.push(text);
    }
    found
}

/// The fixed parts of a text's first line, between its placeholders.
fn parts(text: &str) -> Vec<String> {
    let line = text.split("\\n").next().unwrap_or("").replace("\\r", "");
    let plain = line.replace("\\\"", "\"").replace("\\\\", "\\").replace("{{", "\u{1}").replace("}}", "\u{2}");
    let mut parts = Vec::new();
    let mut rest = plain.as_str();
    while let Some((before, behind)) = rest.split_once('{') {
        parts.push(before);
        rest = behind.split_once('}').map_or("", |(_, behind)| behind);
    }
    parts.push(rest);
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| part.replace('\u{1}', "{").replace('\u{2}', "}"))
        .collect()
}

/// Whether some line holds the parts: it is looked for by the longest of them.
fn is_reached(all: &str, parts: &[String]) -> bool {
    let Some(longest) = parts.iter().max_by_key(|part| part.len()) else { return true };
    all.match_indices(longest.as_str()).any(|(at, _)| {
        let start = all[..at].rfind('\n').map_or(0, |end| end + 1);
        let end = all[at..].find('\n').map_or(all.len(), |end| at + end);
        holds(&all[start..end], parts)
    })
}

fn holds(line: &str, parts: &[String]) -> bool {
    let mut rest = line;
    parts.iter().all(|part| match rest.split_once(part.as_str()) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}

/// Texts of the model, as they are written in its source.
fn texts(sources: &[PathBuf]) -> BTreeSet<String> {
    let all = sources.iter().flat_map(|path| literals(&split(&read(path)).0));
    let is_text = |text: &String| text.starts_with(|c: char| c.is_ascii_uppercase()) && text.trim().contains(' ');
    all.filter(is_text).collect()
}

#[test]
fn each_text_is_reached() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<PathBuf> = LAYERS.iter().flat_map(|layer| files(&root.join("src").join(layer), &["rs"])).collect();
    let own = root.join("tests/texts-unreached.txt");
    let mut reached: Vec<String> = files(&root.join("expected"), &["out"]).iter().map(|path| read(path)).collect();
    let tests = files(&root.join("tests"), &["rs", "txt", "err"]);
    reached.extend(tests.iter().filter(|path| **path != own).map(|path| read(path)));
    reached.extend(sources.iter().map(|path| match path.ends_with("tests.rs") {
        true => read(path),
        false => split(&read(path)).1.to_owned(),
    }));
    let reached = reached.join("\n").replace("\\\"", "\"").replace("\\\\", "\\");
    let texts = texts(&sources);
    assert!(texts.len() > 200, "only {} texts were found: the reader of sources is broken", texts.len());
    let missing: Vec<&String> = texts.iter().filter(|text| !is_reached(&reached, &parts(text))).collect();
    let now = missing.iter().map(|text| format!("{text}\n")).collect::<String>();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&own, &now).expect("a writable file");
    }
    let known = read(&own);
    let new: Vec<&str> = now.lines().filter(|text| !known.lines().any(|known| known == *text)).collect();
    assert!(new.is_empty(), "no scenario or test reaches:\n  {}", new.join("\n  "));
    let gone: Vec<&str> = known.lines().filter(|text| !now.lines().any(|now| now == *text)).collect();
    assert!(gone.is_empty(), "reached now, or gone; strike out of texts-unreached.txt:\n  {}", gone.join("\n  "));
}

#[test]
fn literals_and_their_parts_are_read_as_rust_reads_them() {
    let code = "a(\"One \\\"two\\\" {x}: {{y}}\"); b('\"'); c(\"Three \\\n   four\\n\")";
    assert_eq!(literals(code), ["One \\\"two\\\" {x}: {{y}}", "Three four\\n"]);
    assert_eq!(parts("One \\\"two\\\" {x}: {{y}}"), ["One \"two\" ", ": {y}"]);
    assert!(holds("x One \"two\" 5: {y}", &parts("One \\\"two\\\" {x}: {{y}}")));
    assert!(!holds("x One \"two\" 5", &parts("One \\\"two\\\" {x}: {{y}}")));
}
