//! Mistakes in a scenario, reported as a compiler does: place, source line with a mark, what was
//! expected, and a guess at what was meant.
//!
//! Nothing here decides what is a mistake, and nothing here may end the search for more of them: all
//! that were found are shown together.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// More mistakes than this are not worth reading; the rest is counted only.
const SHOWN: usize = 50;

/// A place in a scenario file; both counts begin at 1, columns are characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    /// Line number.
    pub line: u32,
    /// Column number.
    pub column: u32,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Where the mistake is; line 0 stands for the whole file.
    pub pos: Pos,
    /// How many characters to mark (at least one).
    pub width: u32,
    /// What is wrong.
    pub message: String,
    /// What would have been right, if there is more to say than the message does.
    pub expected: Option<String>,
    /// A guess at what was meant, or where to look.
    pub hint: Option<String>,
    /// The text of the line; empty if there is none to show.
    pub source: String,
}

impl Diagnostic {
    /// A mistake at `pos` with no more than its message.
    pub(crate) fn new(pos: Pos, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            file: Arc::from(""),
            pos,
            width: 1,
            message: message.into(),
            expected: None,
            hint: None,
            source: String::new(),
        }
    }

    /// Says what would have been right.
    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Diagnostic {
        self.expected = Some(expected.into());
        self
    }

    /// Says where to look, or what was perhaps meant.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }

    /// Names the most similar of `known`, if one is similar enough to be what was meant.
    pub(crate) fn did_you_mean<'k>(self, written: &str, known: impl IntoIterator<Item = &'k str>) -> Diagnostic {
        match closest(written, known) {
            Some(name) => self.hint(format!("did you mean `{name}`?")),
            None => self,
        }
    }

    /// Marks `width` characters.
    pub(crate) fn width(mut self, width: usize) -> Diagnostic {
        self.width = u32::try_from(width.max(1)).unwrap_or(u32::MAX);
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pos.line == 0 {
            write!(f, "{}: {}", self.file, self.message)?;
        } else {
            let Pos { line, column } = self.pos;
            write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        }
        if !self.source.is_empty() {
            let number = self.pos.line.to_string();
            let margin = " ".repeat(number.len());
            let before = self.pos.column.saturating_sub(1) as usize;
            // Tabs stay tabs in the line with the mark, so that it stands below what it marks.
            let pad: String = self.source.chars().take(before).map(blank).collect();
            let room = self.source.chars().count().saturating_sub(before).max(1);
            let mark = "^".repeat((self.width as usize).clamp(1, room));
            write!(f, "\n {margin} |\n {number} | {}", self.source)?;
            write!(f, "\n {margin} | {pad}{mark}")?;
        }
        if let Some(expected) = &self.expected {
            write!(f, "\n  = expected: {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  = hint: {hint}")?;
        }
        Ok(())
    }
}

fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

/// All mistakes found in one scenario, in the order of their places. Never empty when returned as
/// an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    /// The mistakes.
    pub items: Vec<Diagnostic>,
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().take(SHOWN).enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{item}")?;
        }
        match self.items.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n… and {more} more"),
        }
    }
}

impl std::error::Error for Diagnostics {}

/// Collects mistakes while a scenario is read, and gives them file and source line at the end.
#[derive(Debug)]
pub(crate) struct Problems {
    file: Arc<str>,
    text: Rc<str>,
    items: RefCell<Vec<Diagnostic>>,
}

impl Problems {
    pub(crate) fn new(file: &str, text: Rc<str>) -> Problems {
        Problems { file: Arc::from(file), text, items: RefCell::new(Vec::new()) }
    }

    /// The source line `line` (from 1), without its end. A line ends where YAML ends one: a lone carriage return
    /// does it too.
    pub(crate) fn line(&self, line: u32) -> &str {
        let ends = ['\r', '\n'];
        let mut rest = &*self.text;
        for _ in 1..line {
            let Some(end) = rest.find(ends) else { return "" };
            rest = &rest[end..];
            rest = rest.strip_prefix("\r\n").unwrap_or(&rest[1..]);
        }
        rest.split(ends).next().unwrap_or("")
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn push(&self, mut item: Diagnostic) {
        let mut items = self.items.borrow_mut();
        // The same mistake can be met again in every case; it is one mistake.
        let again = |old: &Diagnostic| old.pos == item.pos && old.message == item.message;
        if items.len() > 4 * SHOWN || items.iter().any(again) {
            return;
        }
        item.file = Arc::clone(&self.file);
        if item.pos.line > 0 {
            item.source = crop(self.line(item.pos.line), item.pos.column);
        }
        items.push(item);
    }

    /// All mistakes in order. Empties the collection.
    pub(crate) fn take(&self) -> Vec<Diagnostic> {
        let mut items = std::mem::take(&mut *self.items.borrow_mut());
        items.sort_by_key(|item| item.pos);
        items
    }

    /// `Err` with all mistakes in order, or `Ok` if there were none. Empties the collection.
    pub(crate) fn finish(&self) -> Result<(), Diagnostics> {
        match self.take() {
            items if items.is_empty() => Ok(()),
            items => Err(Diagnostics { items }),
        }
    }
}

/// Endless lines are not shown: beyond this many characters the end is cut, and a line whose mark
/// would then be lost is not shown at all.
fn crop(line: &str, column: u32) -> String {
    const LIMIT: usize = 200;
    let line = line.trim_end();
    if line.chars().count() <= LIMIT {
        return line.to_owned();
    }
    if column as usize > LIMIT {
        return String::new();
    }
    line.chars().take(LIMIT).chain(['…']).collect()
}

/// The name among `known` that `written` is most similar to, if it differs by about a third at most.
pub(crate) fn closest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let limit = (written.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|name| (edit_distance(written, name, limit), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein's distance, with a swap of neighbours counted as one edit; `limit + 1` stands for
/// anything above `limit` whose lengths alone say so.
fn edit_distance(a: &str, b: &str, limit: usize) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j - 1] + change).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_a_likely_one() {
        let known = ["execute", "qemu-io", "log", "image"];
        assert_eq!(closest("execut", known), Some("execute"));
        assert_eq!(closest("exceute", known), Some("execute"));
        assert_eq!(closest("qemu_io", known), Some("qemu-io"));
        assert_eq!(closest("teleport", known), None);
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_mark() {
        let problems = Problems::new("a.yaml", Rc::from("x: 1\n  - execut: y\n"));
        let pos = Pos { line: 2, column: 5 };
        problems.push(Diagnostic::new(pos, "unknown verb `execut`").width(6).hint("eh"));
        let Err(all) = problems.finish() else {
            panic!("a mistake was pushed");
        };
        let text = "a.yaml:2:5: unknown verb `execut`\n   |\n 2 |   - execut: y\n   |     ^^^^^^\n  = hint: eh";
        assert_eq!(all.to_string(), text);
    }
}
