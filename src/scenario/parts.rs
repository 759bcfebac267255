//! The parts of a scenario's text that could be left out: entries of lists and maps, in either style.
//!
//! This works on the text and not on a tree, so that what is left reads as it did before, comments included.
//! It need not be exact: whoever leaves a part out must check what remains, and must never take a part for
//! valid because it is listed here.

use std::ops::Range;

/// Parts that stand side by side, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Bytes of the text, one range a part.
    pub(crate) parts: Vec<Range<usize>>,
}

/// The groups of `text`: first those of whole lines from the outside in, then those inside of lines.
pub(crate) fn groups(text: &str) -> Vec<Group> {
    let mut groups = of_lines(text);
    groups.extend(in_lines(text));
    groups
}

/// Entries that begin a line: each reaches to the next line that is not indented more deeply.
fn of_lines(text: &str) -> Vec<Group> {
    let mut lines: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start_matches(' ');
        if !bare.trim().is_empty() {
            lines.push((start, line.len() - bare.len()));
        }
        start += line.len();
    }
    // By indentation: the groups that are still open, as (indentation, parts).
    let mut open: Vec<(usize, Vec<Range<usize>>)> = Vec::new();
    let mut done: Vec<(usize, Vec<Range<usize>>)> = Vec::new();
    for (index, (start, indent)) in lines.iter().enumerate() {
        let next = lines[index + 1..].iter().find(|(_, deeper)| deeper <= indent);
        let end = next.map_or(text.len(), |(end, _)| *end);
        while open.last().is_some_and(|(deeper, _)| deeper > indent) {
            done.extend(open.pop());
        }
        match open.last_mut() {
            Some((same, parts)) if same == indent => parts.push(*start..end),
            _ => {
                let only = *start..end;
                open.push((*indent, Vec::from([only])));
            }
        }
    }
    done.extend(open.into_iter().rev());
    done.sort_by_key(|(indent, parts)| (*indent, parts.first().map_or(0, |part| part.start)));
    done.into_iter().map(|(_, parts)| Group { parts }).collect()
}

/// Entries between brackets: each with the comma behind it, the last one with the comma before it.
fn in_lines(text: &str) -> Vec<Group> {
    let mut open: Vec<(usize, Vec<Range<usize>>)> = Vec::new();
    let mut groups = Vec::new();
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some(_), _) => {}
            // An apostrophe inside of a word is no quote.
            (None, '"' | '\'') if !text[..at].ends_with(|before: char| before.is_alphanumeric()) => quote = Some(c),
            (None, '[' | '{') => open.push((at + 1, Vec::new())),
            (None, ',') => {
                if let Some((from, parts)) = open.last_mut() {
                    let spaces = text[at + 1..].len() - text[at + 1..].trim_start().len();
                    parts.push(*from..at + 1 + spaces);
                    *from = at + 1 + spaces;
                }
            }
            (None, ']' | '}') => {
                if let Some((from, mut parts)) = open.pop() {
                    let comma = text[..from].trim_end();
                    let from = if parts.is_empty() { from } else { comma.len() - usize::from(comma.ends_with(',')) };
                    if from < at {
                        parts.push(from..at);
                    }
                    groups.push(Group { parts });
                }
            }
            _ => {}
        }
    }
    groups.retain(|group| !group.parts.is_empty());
    groups
}

/// `text` without the bytes of `removed`.
pub(crate) fn without(text: &str, removed: &[Range<usize>]) -> String {
    let mut sorted: Vec<&Range<usize>> = removed.iter().collect();
    sorted.sort_by_key(|range| range.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in sorted {
        if range.start > at {
            out.push_str(&text[at..range.start]);
        }
        at = at.max(range.end);
    }
    out.push_str(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
name: x
steps:
  - vm: launch
  - execute: a
    arguments: {b: [1, 2], c: \"d, e\"}

  - run-job: j
    pre-finalize:
      - log: it's, well
      - log: y
";

    fn listed(groups: &[Group]) -> Vec<Vec<&'static str>> {
        groups.iter().map(|group| group.parts.iter().map(|part| &TEXT[part.clone()]).collect()).collect()
    }

    #[test]
    fn lines_are_grouped_by_indentation() {
        let groups = of_lines(TEXT);
        let first: Vec<Vec<&str>> = listed(&groups);
        assert_eq!(first[0].len(), 2);
        assert_eq!(
            first[1],
            [
                "  - vm: launch\n",
                "  - execute: a\n    arguments: {b: [1, 2], c: \"d, e\"}\n\n",
                "  - run-job: j\n    pre-finalize:\n      - log: it's, well\n      - log: y\n",
            ]
        );
        assert_eq!(first.last().map(Vec::len), Some(2));
    }

    #[test]
    fn entries_between_brackets_take_a_comma_along() {
        assert_eq!(listed(&in_lines(TEXT)), [vec!["1, ", ", 2"], vec!["b: [1, 2], ", ", c: \"d, e\""]]);
    }

    #[test]
    fn ranges_may_overlap() {
        assert_eq!(without("abcdef", &[4..5, 1..3, 2..4]), "af");
        assert_eq!(without("abc", &[]), "abc");
    }
}
