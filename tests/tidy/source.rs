//! Rust sources as the rules look at them: code with comments, strings and characters blanked out, so that
//! a word in a text is never taken for code, and with the lines of tests known.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file.
pub struct Source {
    /// Its path from the project's root.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Its code: as long as the text, line for line, with blanks for comments and literals.
    pub code: String,
    /// Which lines (from 0) belong to tests.
    tests: Vec<bool>,
}

/// A function with its extent, in lines from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub first: usize,
    pub last: usize,
}

impl Source {
    pub fn new(path: PathBuf, text: String) -> Source {
        let code = blank(&text);
        let in_file = path.file_name().is_some_and(|name| name == "tests.rs")
            || path.components().any(|part| part.as_os_str() == "tests");
        let mut tests = vec![in_file; code.lines().count()];
        for at in positions(&code, "#[cfg(test)]") {
            let first = line_of(&code, at);
            let last = block_end(&code, at).map_or(first, |end| line_of(&code, end));
            tests[first - 1..last].fill(true);
        }
        Source { path, text, code, tests }
    }

    /// All `.rs` files below `directory` of the project, in order.
    pub fn all(directory: &str) -> Vec<Source> {
        let mut paths = Vec::new();
        collect(&root().join(directory), &mut paths);
        paths.sort();
        let read = |path: &PathBuf| fs::read_to_string(path).expect("a source file is readable UTF-8");
        let relative = |path: &Path| path.strip_prefix(root()).expect("the file is below the root").to_owned();
        paths.iter().map(|path| Source::new(relative(path), read(path))).collect()
    }

    /// The lines (numbered from 1) of code that is not for tests.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().enumerate().filter(|(index, _)| !self.tests[*index]);
        lines.map(|(index, line)| (index + 1, line))
    }

    /// The whole line `number` as written.
    pub fn line(&self, number: usize) -> &str {
        self.text.lines().nth(number - 1).unwrap_or("")
    }

    /// Byte positions in code and text where `pattern` stands in code that is not for tests.
    pub fn uses(&self, pattern: &str) -> Vec<usize> {
        let uses = positions(&self.code, pattern).into_iter();
        uses.filter(|at| !self.tests[line_of(&self.code, *at) - 1]).collect()
    }

    /// The line (from 1) of a byte position.
    pub fn line_at(&self, at: usize) -> usize {
        line_of(&self.code, at)
    }

    /// All functions with bodies.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for at in positions(&self.code, "fn ") {
            let before = self.code[..at].chars().next_back();
            let rest = &self.code[at + 3..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.is_empty() || before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            if let Some(end) = block_end(&self.code, at) {
                found.push(Function { name, first: self.line_at(at), last: self.line_at(end) });
            }
        }
        found
    }
}

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a source directory is readable") {
        let path = entry.expect("a source directory is readable").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn positions(code: &str, pattern: &str) -> Vec<usize> {
    code.match_indices(pattern).map(|(at, _)| at).collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Where the block that begins after `at` ends; `None` if a `;` ends the item before it has one.
fn block_end(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (offset, c) in code[at..].char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            ';' if depth == 0 && brackets == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + offset);
                }
            }
            _ => {}
        }
    }
    None
}

/// The code of `text`: everything else becomes blanks, byte for byte; line ends stay.
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(code).expect("whole characters were blanked, byte for byte")
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let until = |pattern: &[u8]| rest.windows(pattern.len()).position(|window| window == pattern);
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => at + until(b"\n").unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + until(b"*/").map_or(rest.len(), |end| end + 2),
        [b'r', b'"' | b'#', ..] if !in_word => raw_end(bytes, at, at + 1),
        [b'b', b'r', b'"' | b'#', ..] if !in_word => raw_end(bytes, at, at + 2),
        [b'"', ..] => quoted_end(bytes, at + 1, b'"'),
        [b'\'', b'\\', ..] => quoted_end(bytes, at + 1, b'\''),
        // A character, not a lifetime: its quote comes right after one character.
        [b'\'', first, ..] => {
            let length = match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            if rest.get(1 + length) == Some(&b'\'') { at + length + 2 } else { at }
        }
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The end of a raw string whose hashes begin at `hashes`; `at` if it is a raw identifier.
fn raw_end(bytes: &[u8], at: usize, hashes: usize) -> usize {
    let count = bytes[hashes..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(hashes + count) != Some(&b'"') {
        return at;
    }
    let begin = hashes + count + 1;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', count)).collect();
    let found = bytes[begin..].windows(close.len()).position(|window| window == close);
    found.map_or(bytes.len(), |end| begin + end + close.len())
}
