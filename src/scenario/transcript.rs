//! The transcript: the text a run writes, and which line of the scenario wrote each line of it.
//!
//! What differs from run to run in a real QEMU is masked here, wherever it occurs. Must never change
//! anything else.

use std::borrow::Cow;

/// The text of a run as far as it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    text: String,
    /// Where a step begins to write: the number of the transcript's line (from 0) and the scenario's line,
    /// in ascending order of the former.
    origins: Vec<(u32, u32)>,
    lines: u32,
}

impl Transcript {
    /// The text so far; every line ends in a newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line of the scenario whose step wrote line `line` of the transcript (both from 1).
    pub fn origin(&self, line: u32) -> Option<u32> {
        let index = line.checked_sub(1).filter(|index| *index < self.lines)?;
        let after = self.origins.partition_point(|(start, _)| *start <= index);
        self.origins.get(after.checked_sub(1)?).map(|(_, origin)| *origin)
    }

    /// Writes `text` and a newline for the step at line `origin` of the scenario.
    pub fn log(&mut self, origin: u32, text: &str) {
        if self.origins.last().is_none_or(|(_, last)| *last != origin) {
            self.origins.push((self.lines, origin));
        }
        let text = mask(text);
        self.text.push_str(&text);
        self.text.push('\n');
        let written = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
        self.lines = self.lines.saturating_add(u32::try_from(written).unwrap_or(u32::MAX));
    }
}

/// Replaces what no two runs of a real QEMU agree on: generated node names, the space a file takes.
pub fn mask(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    if text.contains("#block") {
        text = Cow::Owned(replace_number(&text, "#block", "", "NODE_NAME"));
    }
    if text.contains("\"actual-size\": ") {
        let name = "\"actual-size\": ";
        text = Cow::Owned(replace_number(&text, name, name, "\"SIZE\""));
    }
    if text.contains("disk size: ") {
        text = Cow::Owned(replace_disk_size(&text));
    }
    text
}

/// Replaces `name` and the digits behind it by `kept` and `shown`.
fn replace_number(text: &str, name: &str, kept: &str, shown: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let after = &rest[at + name.len()..];
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        out.push_str(&rest[..at]);
        if end == 0 {
            out.push_str(name);
        } else {
            out.push_str(kept);
            out.push_str(shown);
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

fn replace_disk_size(text: &str) -> String {
    let name = "disk size: ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let after = &rest[at + name.len()..];
        let end = after.find('\n').unwrap_or(after.len());
        out.push_str(&rest[..at + name.len()]);
        out.push_str("SIZE");
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_is_masked() {
        assert_eq!(mask("node '#block123' x"), "node 'NODE_NAME' x");
        assert_eq!(mask("#block"), "#block");
        assert_eq!(mask("{\"actual-size\": 1234, \"a\": 1}"), "{\"actual-size\": \"SIZE\", \"a\": 1}");
        assert_eq!(mask("disk size: 200 KiB\nx"), "disk size: SIZE\nx");
        assert!(matches!(mask("nothing"), Cow::Borrowed(_)));
    }

    #[test]
    fn lines_know_where_they_come_from() {
        let mut transcript = Transcript::default();
        transcript.log(7, "one\ntwo");
        transcript.log(7, "three");
        transcript.log(9, "four");
        transcript.log(7, "");
        let origins: Vec<Option<u32>> = (0..=6).map(|line| transcript.origin(line)).collect();
        assert_eq!(origins, [None, Some(7), Some(7), Some(7), Some(9), Some(7), None]);
        assert_eq!(transcript.text(), "one\ntwo\nthree\nfour\n\n");
    }
}
