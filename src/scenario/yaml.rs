//! YAML as a tree in which every key and every value knows its line and column.
//!
//! Scalars are resolved by the core schema of YAML 1.2 (so `on` and `no` are strings), which makes
//! any JSON text readable too. Must never run away: size, depth, node count and aliases are bounded,
//! and all that is wrong ends as a [`Diagnostic`].

use std::borrow::Cow;
use std::rc::Rc;

use serde_json::Number;
use serde_yaml::granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag, options};

use super::diagnostic::{Diagnostic, Pos, Problems};
use super::template::Template;

/// Bytes a scenario file may have.
pub const MAX_FILE: usize = 4 << 20;
/// Maps and lists that may stand in one another.
pub const MAX_DEPTH: usize = 64;
/// Values a file may have, those that come by aliases counted each time.
pub const MAX_NODES: usize = 500_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) pos: Pos,
    pub(crate) data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// What could not be read; it has been reported.
    Broken,
    Null,
    Bool(bool),
    /// The number, and how it was spelled.
    Number(Number, Rc<str>),
    Text(Rc<str>),
    /// A text with `{{ … }}` in it, already taken apart.
    Template(Rc<Template>),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) pos: Pos,
    pub(crate) name: Rc<str>,
}

impl Node {
    /// What the value is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.data {
            Data::Broken => "something unreadable",
            Data::Null => "nothing",
            Data::Bool(_) => "a boolean",
            Data::Number(..) => "a number",
            Data::Text(_) => "a string",
            Data::Template(_) => "a template",
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
        }
    }

    /// How many characters of its first line the value takes, as far as that is known.
    pub(crate) fn width(&self) -> usize {
        match &self.data {
            Data::Bool(value) => value.to_string().len(),
            Data::Number(_, raw) => raw.chars().count(),
            Data::Text(text) => text.lines().next().unwrap_or("").chars().count(),
            _ => 1,
        }
    }

    /// Calls `see` with every template in this value, in order.
    pub(crate) fn templates(&self, see: &mut dyn FnMut(&Rc<Template>, Pos)) {
        match &self.data {
            Data::Template(template) => see(template, self.pos),
            Data::List(items) => items.iter().for_each(|item| item.templates(see)),
            Data::Map(entries) => entries.iter().for_each(|(_, value)| value.templates(see)),
            _ => {}
        }
    }

    /// Whether any template is in this value.
    pub(crate) fn has_template(&self) -> bool {
        match &self.data {
            Data::Template(_) => true,
            Data::List(items) => items.iter().any(Node::has_template),
            Data::Map(entries) => entries.iter().any(|(_, value)| value.has_template()),
            _ => false,
        }
    }

    /// The number of values in this one, itself included.
    fn count(&self) -> usize {
        1 + match &self.data {
            Data::List(items) => items.iter().map(Node::count).sum(),
            Data::Map(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
            _ => 0,
        }
    }

    /// How many maps and lists stand in one another here.
    fn depth(&self) -> usize {
        match &self.data {
            Data::List(items) => 1 + items.iter().map(Node::depth).max().unwrap_or(0),
            Data::Map(entries) => 1 + entries.iter().map(|(_, v)| v.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The value behind `key`, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|(k, _)| &*k.name == key).map(|(_, value)| value),
            _ => None,
        }
    }
}

/// Reads one document. `None` (with at least one problem told) if there is no tree to go on with.
pub(crate) fn parse(problems: &Problems) -> Option<Node> {
    let text = problems.text();
    if text.len() > MAX_FILE {
        let message = format!("the file is too large: {} bytes", text.len());
        let expected = format!("at most {MAX_FILE} bytes");
        problems.push(Diagnostic::new(Pos::default(), message).expected(expected));
        return None;
    }
    let settings: Options = options! { emit_comments: false };
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, settings),
        problems,
        anchors: Vec::new(),
        nodes: 0,
        depth: 0,
        tag: Pos::default(),
    };
    reader.document().ok()
}

/// A problem was told that makes reading on pointless.
struct Stop;

struct Reader<'t, I: Iterator> {
    events: I,
    problems: &'t Problems,
    /// Finished values with an anchor, by the parser's number for it.
    anchors: Vec<(usize, Node)>,
    nodes: usize,
    depth: usize,
    /// Where the tag of the value read last begins.
    tag: Pos,
}

type Item<'t> = Result<(Event<'t>, Span), serde_yaml::granit_parser::ScanError>;

impl<'t, I: Iterator<Item = Item<'t>>> Reader<'t, I> {
    fn stop<T>(&self, problem: Diagnostic) -> Result<T, Stop> {
        self.problems.push(problem);
        Err(Stop)
    }

    fn next(&mut self) -> Result<(Event<'t>, Pos), Stop> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.tag = pos(span.tag_start.unwrap_or(span.start));
                Ok((event, pos(span.start)))
            }
            Some(Err(error)) => {
                let message = format!("invalid YAML: {}", error.info());
                self.stop(Diagnostic::new(pos(*error.marker()), message))
            }
            None => self.stop(Diagnostic::new(Pos::default(), "the file ends unexpectedly")),
        }
    }

    fn document(&mut self) -> Result<Node, Stop> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(..), _) => {}
                (Event::StreamEnd, _) => {
                    let empty = Diagnostic::new(Pos::default(), "the file is empty");
                    return self.stop(empty.expected("a map with `steps`"));
                }
                (event, at) => {
                    let root = self.node(event, at)?;
                    self.end_of_stream()?;
                    return Ok(root);
                }
            }
        }
    }

    fn end_of_stream(&mut self) -> Result<(), Stop> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd, _) => {}
                (_, at) => {
                    let second = Diagnostic::new(at, "a second document begins here");
                    return self.stop(second.expected("one scenario a file"));
                }
            }
        }
    }

    fn node(&mut self, event: Event<'t>, at: Pos) -> Result<Node, Stop> {
        self.count(1, at)?;
        let (anchor, data) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, self.scalar(text, style, tag.as_deref(), at)?),
            Event::SequenceStart(_, anchor, tag) => {
                self.no_tag(tag.as_deref(), "seq");
                (anchor, self.list(at)?)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.no_tag(tag.as_deref(), "map");
                (anchor, self.map(at)?)
            }
            Event::Alias(id) => return self.alias(id, at),
            _ => return self.stop(Diagnostic::new(at, "a value was expected here")),
        };
        let node = Node { pos: at, data };
        if anchor != 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, at: Pos) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let many = Diagnostic::new(at, "the file has too many values");
        self.stop(many.expected(format!("at most {MAX_NODES}, aliases counted each time")))
    }

    fn alias(&mut self, id: usize, at: Pos) -> Result<Node, Stop> {
        let Some((_, node)) = self.anchors.iter().rev().find(|(known, _)| *known == id) else {
            return self.stop(Diagnostic::new(at, "an alias inside the value it stands for"));
        };
        let node = node.clone();
        self.count(node.count(), at)?;
        if self.depth + node.depth() > MAX_DEPTH {
            return self.stop(too_deep(at));
        }
        // Mistakes in it are shown where it is written, not where it is used.
        Ok(node)
    }

    fn enter(&mut self, at: Pos) -> Result<(), Stop> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        self.stop(too_deep(at))
    }

    fn list(&mut self, at: Pos) -> Result<Data, Stop> {
        self.enter(at)?;
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => break,
                (event, at) => items.push(self.node(event, at)?),
            }
        }
        self.depth -= 1;
        Ok(Data::List(items))
    }

    fn map(&mut self, at: Pos) -> Result<Data, Stop> {
        self.enter(at)?;
        let mut entries: Vec<(Key, Node)> = Vec::new();
        // Sorted by name, so that a map of any size costs n log n to check for duplicates.
        let mut seen: std::collections::BTreeMap<Rc<str>, u32> = std::collections::BTreeMap::new();
        loop {
            let (event, at) = match self.next()? {
                (Event::MappingEnd, _) => break,
                other => other,
            };
            let Event::Scalar(name, ..) = event else {
                let wrong = Diagnostic::new(at, "a map, a list or an alias as a key");
                return self.stop(wrong.expected("a string"));
            };
            let key = Key { pos: at, name: Rc::from(&*name) };
            let (event, at) = self.next()?;
            let value = self.node(event, at)?;
            if let Some(line) = seen.insert(Rc::clone(&key.name), key.pos.line) {
                let message = format!("duplicate key `{}`", key.name);
                let twice = Diagnostic::new(key.pos, message).width(key.name.chars().count());
                self.problems.push(twice.hint(format!("it stands first at line {line}")));
            } else {
                entries.push((key, value));
            }
        }
        self.depth -= 1;
        Ok(Data::Map(entries))
    }

    fn no_tag(&self, tag: Option<&Tag>, standard: &str) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema_tag(standard))
        {
            let mistake = Diagnostic::new(self.tag, format!("unknown tag `{tag}`"));
            self.problems.push(mistake.width(tag.to_string().chars().count()));
        }
    }

    fn scalar(&self, text: Cow<'t, str>, style: ScalarStyle, tag: Option<&Tag>, at: Pos) -> Result<Data, Stop> {
        let is_string = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
        if !is_string {
            self.no_tag(tag, "");
        }
        if is_string || style != ScalarStyle::Plain {
            return Ok(Data::Text(Rc::from(&*text)));
        }
        Ok(match resolve(&text) {
            Resolved::Data(data) => data,
            Resolved::Text => Data::Text(Rc::from(&*text)),
            Resolved::TooLarge => {
                let message = format!("the number {text} does not fit in 64 bits");
                let large = Diagnostic::new(at, message).width(text.chars().count());
                self.problems.push(large.hint("write it in quotes if it is a string"));
                Data::Broken
            }
        })
    }
}

fn too_deep(at: Pos) -> Diagnostic {
    let most = format!("at most {MAX_DEPTH} maps and lists in one another");
    Diagnostic::new(at, "nested too deep").expected(most)
}

enum Resolved {
    Data(Data),
    Text,
    TooLarge,
}

/// The core schema of YAML 1.2 for a plain scalar.
fn resolve(text: &str) -> Resolved {
    let number = |n: Number| Resolved::Data(Data::Number(n, Rc::from(text)));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Data(Data::Null),
        "true" | "True" | "TRUE" => return Resolved::Data(Data::Bool(true)),
        "false" | "False" | "FALSE" => return Resolved::Data(Data::Bool(false)),
        _ => {}
    }
    let radix = |digits: &str, base: u32| match u64::from_str_radix(digits, base) {
        Ok(value) => number(Number::from(value)),
        Err(_) => Resolved::TooLarge,
    };
    if let Some(hex) = text.strip_prefix("0x")
        && !hex.is_empty()
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return radix(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o")
        && !octal.is_empty()
        && octal.bytes().all(|b| (b'0'..=b'7').contains(&b))
    {
        return radix(octal, 8);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned.is_empty() {
        return Resolved::Text;
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return match (text.parse::<u64>(), text.parse::<i64>()) {
            (Ok(value), _) => number(Number::from(value)),
            (_, Ok(value)) => number(Number::from(value)),
            _ => Resolved::TooLarge,
        };
    }
    if !is_float(unsigned) {
        return Resolved::Text;
    }
    match text.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(value) => number(value),
        None => Resolved::TooLarge,
    }
}

/// `[0-9]* . [0-9]*` with at least one digit, and an optional exponent. (`.inf` and `.nan` have no
/// JSON form and stay strings.)
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_is_right = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    digits(whole) && digits(part) && !(whole.is_empty() && part.is_empty()) && exponent_is_right
}

fn pos(mark: serde_yaml::granit_parser::Marker) -> Pos {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Pos { line: clamp(mark.line()), column: clamp(mark.col().saturating_add(1)) }
}
