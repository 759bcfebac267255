//! What differs between two transcripts, as a unified diff whose hunks say where in the scenario they
//! come from.
//!
//! Knows texts and line numbers only. Must never stop early by the clock: the same two texts give the
//! same diff on every machine.

use std::ops::Range;

use similar::{ChangeTag, DiffOp, TextDiff};

use super::Style;

/// Lines of context around a change.
const CONTEXT: usize = 3;

/// What differs between an expected and an actual text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    hunks: Vec<Hunk>,
    /// The lines of the actual text that were added or changed, from 0; an empty range is a place where
    /// lines are missing.
    pub changed: Vec<Range<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hunk {
    old: Range<usize>,
    new: Range<usize>,
    /// Where the first change comes from, in the words of whoever asked.
    origin: Option<String>,
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    tag: ChangeTag,
    /// Without its newline.
    text: String,
    /// Whether the newline was not there to begin with.
    unended: bool,
}

/// Compares `expected` with `actual`; `None` if they are equal. `origin` says where a line of the actual
/// text (from 0) comes from.
pub fn difference(expected: &str, actual: &str, origin: impl Fn(usize) -> Option<String>) -> Option<Difference> {
    if expected == actual {
        return None;
    }
    let diff = TextDiff::from_lines(expected, actual);
    let mut found = Difference::default();
    for group in diff.grouped_ops(CONTEXT) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let changes = group.iter().filter(|op| !matches!(op, DiffOp::Equal { .. }));
        let changed: Vec<Range<usize>> = changes.map(DiffOp::new_range).collect();
        found.hunks.push(Hunk {
            old: first.old_range().start..last.old_range().end,
            new: first.new_range().start..last.new_range().end,
            origin: changed.first().and_then(|range| origin(blamed(range))),
            lines: group.iter().flat_map(|op| diff.iter_changes(op)).map(|change| line(&change)).collect(),
        });
        found.changed.extend(changed);
    }
    Some(found)
}

/// The line that stands for a change: its first, or the one before lines that are missing.
pub(crate) fn blamed(range: &Range<usize>) -> usize {
    if range.is_empty() { range.start.saturating_sub(1) } else { range.start }
}

fn line(change: &similar::Change<&str>) -> Line {
    let text = change.value();
    Line { tag: change.tag(), text: text.strip_suffix('\n').unwrap_or(text).to_owned(), unended: !text.ends_with('\n') }
}

impl Difference {
    /// The diff as text; `old` and `new` name the two sides.
    pub fn unified(&self, old: &str, new: &str, style: Style) -> String {
        let mut out = format!("{}\n{}\n", style.bold(&format!("--- {old}")), style.bold(&format!("+++ {new}")));
        for hunk in &self.hunks {
            let place = format!("@@ -{} +{} @@", numbers(&hunk.old), numbers(&hunk.new));
            out.push_str(&style.cyan(&place));
            if let Some(origin) = &hunk.origin {
                out.push(' ');
                out.push_str(&style.bold(origin));
            }
            out.push('\n');
            for line in &hunk.lines {
                let text = format!("{}{}", line.tag, line.text);
                out.push_str(&match line.tag {
                    ChangeTag::Delete => style.red(&text),
                    ChangeTag::Insert => style.green(&text),
                    ChangeTag::Equal => text,
                });
                out.push('\n');
                if line.unended {
                    out.push_str("\\ No newline at end of file\n");
                }
            }
        }
        out
    }
}

/// A range of lines as a unified diff writes it.
fn numbers(range: &Range<usize>) -> String {
    match range.len() {
        0 => format!("{},0", range.start),
        1 => (range.start + 1).to_string(),
        length => format!("{},{length}", range.start + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(expected: &str, actual: &str) -> String {
        let origin = |line: usize| Some(format!("a.yaml:{}", line + 100));
        let found = difference(expected, actual, origin).expect("the texts differ");
        found.unified("expected", "actual", Style::default())
    }

    #[test]
    fn equal_texts_do_not_differ() {
        assert_eq!(difference("a\n", "a\n", |_| None), None);
    }

    #[test]
    fn a_changed_line_names_its_origin() {
        let text = "--- expected\n+++ actual\n@@ -1,3 +1,3 @@ a.yaml:101\n a\n-b\n+x\n c\n";
        assert_eq!(shown("a\nb\nc\n", "a\nx\nc\n"), text);
    }

    #[test]
    fn missing_lines_name_the_line_before() {
        let text = "--- expected\n+++ actual\n@@ -1,2 +1 @@ a.yaml:100\n a\n-b\n";
        assert_eq!(shown("a\nb\n", "a\n"), text);
        let text = "--- expected\n+++ actual\n@@ -1 +0,0 @@ a.yaml:100\n-a\n";
        assert_eq!(shown("a\n", ""), text);
    }

    #[test]
    fn a_missing_newline_is_told() {
        let text = "--- expected\n+++ actual\n@@ -1 +1 @@ a.yaml:100\n-a\n\\ No newline at end of file\n+a\n";
        assert_eq!(shown("a", "a\n"), text);
    }

    #[test]
    fn colours_go_around_lines() {
        let found = difference("a\n", "b\n", |_| None).expect("the texts differ");
        let text = found.unified("e", "a", Style::coloured(true));
        assert!(text.contains("\x1b[31m-a\x1b[0m\n\x1b[32m+b\x1b[0m\n"), "{text:?}");
    }
}
