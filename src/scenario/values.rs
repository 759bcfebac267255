//! Values with a notation of their own: sizes, durations, ranges, schedules, timing.
//!
//! Each type says how it is written, both to the decoder and to the JSON Schema. Nothing here knows what
//! the values are used for.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use crate::errno::Errno;
use crate::quirks::{Compat, DEFECTS};
use crate::units::{parse_duration, parse_size};

use super::ast::{Operation, Step};
use super::decode::{Context, Decode, Fields, list, text, word};
use super::diagnostic::Diagnostic;
use super::yaml::{Data, Node};

/// Strategies a `schedule` may name.
pub const STRATEGIES: &[&str] = &["qemu", "random", "pct", "pos", "delay", "exhaustive"];

/// A JSON Schema that is written out by hand, inline.
macro_rules! schema {
    ($($type:ty => $schema:tt)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> { stringify!($type).into() }
            fn inline_schema() -> bool { true }
            fn json_schema(_: &mut SchemaGenerator) -> Schema { json_schema!($schema) }
        }
    )*};
}

schema! {
    Text => { "type": ["string", "number", "boolean"] }
    Word => { "type": "string" }
    Bytes => { "anyOf": [
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)[bBkKmMgGtTpPeE]?$" },
    ] }
    Nanos => { "anyOf": [
        { "const": 0 },
        { "type": "string", "pattern": "^([0-9]+(ns|us|ms|s)|0)$" },
    ] }
    Empty => { "type": ["object", "null"], "maxProperties": 0 }
    Errors => { "anyOf": [
        { "type": "string", "pattern": "^E[A-Z0-9]+$" },
        { "type": "integer", "minimum": 1 },
    ] }
    Compatibility => { "type": "string", "enum": ["qemu-7.2", "qemu-10.0"] }
    DefectName => { "type": "string", "description": "a name that `backsim list --defects` shows" }
}

/// A text to print: a number or boolean is printed as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl Decode for Text {
    fn decode(node: &Node, context: Context<'_>) -> Option<Text> {
        let lenient = Context { expanded: true, ..context };
        match node.data {
            Data::Template(_) => None,
            _ => text(node, lenient, "a text").map(|text| Text(text.as_ref().to_owned())),
        }
    }
}

/// A name or a line of a command language.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(pub String);

impl std::ops::Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Decode for Word {
    fn decode(node: &Node, context: Context<'_>) -> Option<Word> {
        String::decode(node, context).map(Word)
    }
}

/// A size or an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Decode for Bytes {
    fn decode(node: &Node, context: Context<'_>) -> Option<Bytes> {
        let expected = "a size in bytes, such as `64K`, `0x10000` or 65536";
        match &node.data {
            Data::Number(number, _) if number.as_u64().is_some() => number.as_u64().map(Bytes),
            Data::Number(_, raw) | Data::Text(raw) => match parse_size(raw) {
                Ok(size) => Some(Bytes(size)),
                Err(why) => refuse(node, &format!("the size `{raw}` {why}"), expected, context),
            },
            _ => context.wrong(node, expected),
        }
    }
}

/// A duration in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Nanos(pub u64);

impl Decode for Nanos {
    fn decode(node: &Node, context: Context<'_>) -> Option<Nanos> {
        let expected = "a duration with its unit, such as `50us`, `200ms` or `20s`";
        match &node.data {
            Data::Number(_, raw) | Data::Text(raw) => match parse_duration(raw) {
                Ok(ns) => Some(Nanos(ns)),
                Err(why) => refuse(node, &format!("the duration `{raw}` {why}"), expected, context),
            },
            _ => context.wrong(node, expected),
        }
    }
}

fn refuse<T>(node: &Node, message: &str, expected: &str, context: Context<'_>) -> Option<T> {
    let mistake = Diagnostic::new(node.pos, message).width(node.width());
    context.report(mistake.expected(expected));
    None
}

/// The empty map of a verb that needs no value.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Empty;

impl Decode for Empty {
    fn decode(node: &Node, context: Context<'_>) -> Option<Empty> {
        match &node.data {
            Data::Null => Some(Empty),
            Data::Map(entries) if entries.is_empty() => Some(Empty),
            _ => context.wrong(node, "an empty map, `{}`; options stand beside the verb"),
        }
    }
}

/// Two image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The first.
    pub image: Word,
    /// The second.
    pub reference: Word,
}

impl Decode for Pair {
    fn decode(node: &Node, context: Context<'_>) -> Option<Pair> {
        match &node.data {
            Data::List(items) if items.len() == 2 => {
                let image = Word::decode(&items[0], context);
                let reference = Word::decode(&items[1], context);
                Some(Pair { image: image?, reference: reference? })
            }
            Data::List(items) => {
                let message = format!("wrong number of images: {}", items.len());
                refuse(node, &message, "a list of two, [IMAGE, REFERENCE]", context)
            }
            _ => context.wrong(node, "a list of two, [IMAGE, REFERENCE]"),
        }
    }
}

impl JsonSchema for Pair {
    fn schema_name() -> Cow<'static, str> {
        "Pair".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": { "type": "string" }, "minItems": 2, "maxItems": 2 })
    }
}

/// Bytes from `offset`, `length` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Decode for Range {
    fn decode(node: &Node, context: Context<'_>) -> Option<Range> {
        let expected = "[OFFSET, LENGTH] or {offset, length}";
        let (offset, length) = match &node.data {
            Data::List(items) if items.len() == 2 => {
                (Bytes::decode(&items[0], context), Bytes::decode(&items[1], context))
            }
            Data::Map(_) => {
                let mut fields = Fields::new(node, "a range", context)?;
                let offset = fields.required("offset", context);
                let length = fields.required("length", context);
                fields.finish(context);
                (offset, length)
            }
            _ => return context.wrong(node, expected),
        };
        let (Bytes(offset), Bytes(length)) = (offset?, length?);
        if offset.checked_add(length).is_none() {
            return refuse(node, "the end of the range does not fit in 64 bits", expected, context);
        }
        Some(Range { offset, length })
    }
}

impl JsonSchema for Range {
    fn schema_name() -> Cow<'static, str> {
        "Range".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bytes = generator.subschema_for::<Bytes>();
        json_schema!({ "anyOf": [
            { "type": "array", "items": bytes, "minItems": 2, "maxItems": 2 },
            { "type": "object", "properties": { "offset": bytes, "length": bytes },
              "required": ["offset", "length"], "additionalProperties": false },
        ] })
    }
}

/// A size in bytes that varies: from `min` to `max`, both possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
}

impl Decode for Spread {
    fn decode(node: &Node, context: Context<'_>) -> Option<Spread> {
        spread(node, context, |Bytes(bytes)| bytes).map(|(min, max)| Spread { min, max })
    }
}

/// One value, or `{min, max}`, as two numbers.
fn spread<T: Decode>(node: &Node, context: Context<'_>, number: fn(T) -> u64) -> Option<(u64, u64)> {
    let Data::Map(_) = &node.data else {
        let value = number(T::decode(node, context)?);
        return Some((value, value));
    };
    let mut fields = Fields::new(node, "a {min, max}", context)?;
    let min: Option<T> = fields.required("min", context);
    let max: Option<T> = fields.required("max", context);
    fields.finish(context);
    let (min, max) = (number(min?), number(max?));
    if min > max {
        return refuse(node, "`min` is greater than `max`", "`min` at most `max`", context);
    }
    Some((min, max))
}

fn spread_schema(one: &Schema) -> Schema {
    json_schema!({ "anyOf": [one, {
        "type": "object", "properties": { "min": one, "max": one },
        "required": ["min", "max"], "additionalProperties": false,
    }] })
}

impl JsonSchema for Spread {
    fn schema_name() -> Cow<'static, str> {
        "Spread".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        spread_schema(&generator.subschema_for::<Bytes>())
    }
}

/// A host error, by name (`EIO`) or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errors(pub Errno);

impl Decode for Errors {
    fn decode(node: &Node, context: Context<'_>) -> Option<Errors> {
        let expected = "the name of a host error, such as `EIO` or `ENOSPC`";
        match &node.data {
            Data::Text(name) => match Errno::from_name(name) {
                Some(errno) => Some(Errors(errno)),
                None => refuse(node, &format!("unknown error `{name}`"), expected, context),
            },
            Data::Number(number, _) => match number.as_i64().map(i32::try_from) {
                Some(Ok(errno)) if errno > 0 => Some(Errors(Errno(errno))),
                _ => context.wrong(node, expected),
            },
            _ => context.wrong(node, expected),
        }
    }
}

/// Whose behaviour is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Compatibility(pub Compat);

impl Decode for Compatibility {
    fn decode(node: &Node, context: Context<'_>) -> Option<Compatibility> {
        let names: Vec<&'static str> = Compat::ALL.into_iter().map(Compat::name).collect();
        let name = word(node, &names, context)?;
        Compat::from_name(name).map(Compatibility)
    }
}

/// The name of a defect that is put back into the model; `backsim list --defects` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefectName(pub &'static str);

impl Decode for DefectName {
    fn decode(node: &Node, context: Context<'_>) -> Option<DefectName> {
        let names: Vec<&'static str> = DEFECTS.iter().map(|defect| defect.name).collect();
        word(node, &names, context).map(DefectName)
    }
}

/// The order of runnable tasks: a strategy and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One of [`STRATEGIES`].
    pub strategy: &'static str,
    /// Its options, which the strategy itself checks.
    pub options: Map<String, Value>,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { strategy: "qemu", options: Map::new() }
    }
}

impl Decode for Schedule {
    fn decode(node: &Node, context: Context<'_>) -> Option<Schedule> {
        let Data::Map(entries) = &node.data else {
            let strategy = word(node, STRATEGIES, context)?;
            return Some(Schedule { strategy, options: Map::new() });
        };
        let mut fields = Fields::new(node, "a schedule", context)?;
        let Some(named) = fields.find("strategy") else {
            context.report(Diagnostic::new(node.pos, "a schedule lacks `strategy`"));
            return None;
        };
        let strategy = word(named, STRATEGIES, context)?;
        let mut options = Map::new();
        for (key, value) in entries.iter().filter(|(key, _)| &*key.name != "strategy") {
            options.insert(key.name.as_ref().to_owned(), Value::decode(value, context)?);
        }
        Some(Schedule { strategy, options })
    }
}

impl JsonSchema for Schedule {
    fn schema_name() -> Cow<'static, str> {
        "Schedule".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "enum": STRATEGIES },
            { "type": "object", "properties": { "strategy": { "enum": STRATEGIES } }, "required": ["strategy"] },
        ] })
    }
}

/// What one kind of operation takes: from `min` to `max` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The least, in nanoseconds.
    pub min: u64,
    /// The most, in nanoseconds.
    pub max: u64,
}

/// What the operations of a device take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Reading; absent: as the default says.
    pub read: Option<Cost>,
    /// Writing.
    pub write: Option<Cost>,
    /// Flushing.
    pub flush: Option<Cost>,
    /// Discarding.
    pub discard: Option<Cost>,
}

impl Costs {
    fn slot(&mut self, operation: &str) -> Option<&mut Option<Cost>> {
        match operation {
            "read" => Some(&mut self.read),
            "write" => Some(&mut self.write),
            "flush" => Some(&mut self.flush),
            "discard" => Some(&mut self.discard),
            _ => None,
        }
    }
}

/// What device operations take in virtual time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Where a node has nothing of its own.
    pub default: Costs,
    /// Nodes with costs of their own.
    pub nodes: BTreeMap<String, Costs>,
}

impl Timing {
    /// What `operation` takes at `node`.
    pub fn cost(&self, node: &str, operation: Operation) -> Cost {
        let of = |costs: &Costs| match operation {
            Operation::Read => costs.read,
            Operation::Write => costs.write,
            Operation::Flush => costs.flush,
            Operation::Discard => costs.discard,
        };
        let own = self.nodes.get(node).and_then(of);
        own.or_else(|| of(&self.default)).unwrap_or_default()
    }
}

fn cost(node: &Node, context: Context<'_>) -> Option<Cost> {
    spread(node, context, |Nanos(ns)| ns).map(|(min, max)| Cost { min, max })
}

fn costs(node: &Node, context: Context<'_>) -> Option<Costs> {
    let mut fields = Fields::new(node, "the timing of a node", context)?;
    let mut costs = Costs::default();
    for operation in Operation::WORDS {
        if let (Some(value), Some(slot)) = (fields.find(operation), costs.slot(operation)) {
            *slot = cost(value, context);
        }
    }
    fields.finish(context);
    Some(costs)
}

impl Decode for Timing {
    fn decode(node: &Node, context: Context<'_>) -> Option<Timing> {
        let Data::Map(entries) = &node.data else {
            return context.wrong(node, "a map: `timing`");
        };
        let mut timing = Timing::default();
        for (key, value) in entries {
            if let Some(slot) = timing.default.slot(&key.name) {
                *slot = cost(value, context);
            } else if matches!(value.data, Data::Map(_)) {
                let own = costs(value, context)?;
                match &*key.name {
                    "default" => timing.default = own,
                    node => drop(timing.nodes.insert(node.to_owned(), own)),
                }
            } else {
                let message = format!("unknown key `{}` in `timing`", key.name);
                let expected = format!(
                    "one of {}, `default` or a node with a map of these",
                    list(Operation::WORDS.iter().copied())
                );
                let mistake = Diagnostic::new(key.pos, message).width(key.name.chars().count());
                let known = Operation::WORDS.iter().copied();
                context.report(mistake.expected(expected).did_you_mean(&key.name, known));
            }
        }
        Some(timing)
    }
}

impl JsonSchema for Timing {
    fn schema_name() -> Cow<'static, str> {
        "Timing".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let cost = spread_schema(&generator.subschema_for::<Nanos>());
        let operations: Map<String, Value> =
            Operation::WORDS.iter().map(|word| ((*word).to_owned(), cost.clone().to_value())).collect();
        json_schema!({
            "type": "object",
            "properties": operations,
            "additionalProperties": { "type": "object", "properties": operations, "additionalProperties": false },
        })
    }
}

/// The steps inside a step. They are read by the part of the language that expands steps, not by the
/// decoder of the step they stand in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps(pub Vec<Step>);

impl Decode for Steps {
    fn decode(_: &Node, _: Context<'_>) -> Option<Steps> {
        Some(Steps::default())
    }

    const TEMPLATE: bool = false;
}

impl JsonSchema for Steps {
    fn schema_name() -> Cow<'static, str> {
        "Steps".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": generator.subschema_for::<super::schema::AnyStep>() })
    }
}
