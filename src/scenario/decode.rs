//! From the tree to typed values: small decoders that report every mistake and go on.
//!
//! The same decoders serve twice. When a scenario is read they check it, and a template stands for a
//! right value of any type; when a case is expanded, templates have become values and are checked like
//! written ones. Must never look at anything but the tree, so that all mistakes are found before a run.

use std::rc::Rc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value};

use super::diagnostic::{Diagnostic, Pos, Problems};
use super::yaml::{Data, Key, Node};

/// What every decoder knows about its surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Context<'p> {
    pub(crate) problems: &'p Problems,
    /// Templates have been replaced by their values: a null is then an absent option, and a number
    /// may stand where a string is wanted, for both come from a variable's value.
    pub(crate) expanded: bool,
}

impl Context<'_> {
    /// Reports a value of the wrong type, unless it is a template whose value is not known yet.
    pub(crate) fn wrong<T>(&self, node: &Node, expected: &str) -> Option<T> {
        if self.expanded || !matches!(node.data, Data::Template(_)) {
            self.mismatch(node, expected);
        }
        None
    }

    /// Reports a value of the wrong type, where a template would be one too.
    pub(crate) fn mismatch(&self, node: &Node, expected: &str) {
        // What could not even be read has been reported already.
        if !matches!(node.data, Data::Broken) {
            let message = format!("wrong type: {}", node.kind());
            let mistake = Diagnostic::new(node.pos, message).width(node.width());
            self.problems.push(mistake.expected(expected));
        }
    }

    pub(crate) fn report(&self, problem: Diagnostic) {
        self.problems.push(problem);
    }
}

/// A type that a value of the tree can be read as. `None`: not now, and any mistake has been told.
pub(crate) trait Decode: Sized {
    fn decode(node: &Node, context: Context<'_>) -> Option<Self>;

    /// Whether a template may stand for it.
    const TEMPLATE: bool = true;
}

/// The entries of a map while they are being read.
pub(crate) struct Fields<'n> {
    /// Where the map begins.
    pub(crate) pos: Pos,
    /// What the map describes, for messages (`step `image``).
    pub(crate) what: String,
    entries: &'n [(Key, Node)],
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The fields of `node`, or a report that it is no map.
    pub(crate) fn new(node: &'n Node, what: &str, context: Context<'_>) -> Option<Fields<'n>> {
        let Data::Map(entries) = &node.data else {
            return context.wrong(node, &format!("a map: {what}"));
        };
        Some(Fields { pos: node.pos, what: what.to_owned(), entries, asked: Vec::new() })
    }

    /// The value behind `key`, which is a known key from now on.
    pub(crate) fn find(&mut self, key: &'static str) -> Option<&'n Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Key and value of `key`, which is a known key from now on.
    pub(crate) fn entry(&mut self, key: &'static str) -> Option<(&'n Key, &'n Node)> {
        self.asked.push(key);
        let found = self.entries.iter().find(|(known, _)| &*known.name == key);
        found.map(|(key, node)| (key, node))
    }

    /// A value that must be there.
    pub(crate) fn required<T: Decode>(&mut self, key: &'static str, context: Context<'_>) -> Option<T> {
        match self.find(key) {
            Some(node) => T::decode(node, context),
            None => {
                let message = format!("{} lacks `{key}`", self.what);
                context.report(Diagnostic::new(self.pos, message));
                None
            }
        }
    }

    /// A value that `default` stands for when it is absent.
    pub(crate) fn optional<T: Decode>(
        &mut self,
        key: &'static str,
        default: impl FnOnce() -> T,
        context: Context<'_>,
    ) -> Option<T> {
        match self.find(key) {
            Some(Node { data: Data::Null, .. }) if context.expanded => Some(default()),
            Some(node) => T::decode(node, context),
            None => Some(default()),
        }
    }

    /// Reports every key that nobody asked for.
    pub(crate) fn finish(self, context: Context<'_>) {
        for (key, _) in self.entries {
            if !self.asked.contains(&&*key.name) {
                let message = format!("unknown key `{}` in {}", key.name, self.what);
                let mistake = Diagnostic::new(key.pos, message).width(key.name.chars().count());
                let known = format!("one of {}", list(self.asked.iter().copied()));
                let mistake = mistake.expected(known);
                context.report(mistake.did_you_mean(&key.name, self.asked.iter().copied()));
            }
        }
    }
}

/// `a`, `b`, `c` in the form messages use.
pub(crate) fn list<'k>(names: impl IntoIterator<Item = &'k str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// The text of a string; of a number or boolean too once templates are values.
pub(crate) fn text(node: &Node, context: Context<'_>, expected: &str) -> Option<Rc<str>> {
    match &node.data {
        Data::Text(text) => Some(Rc::clone(text)),
        Data::Number(_, raw) if context.expanded => Some(Rc::clone(raw)),
        Data::Bool(value) if context.expanded => Some(Rc::from(value.to_string())),
        Data::Number(..) | Data::Bool(_) => {
            let message = format!("wrong type: {}", node.kind());
            let mistake = Diagnostic::new(node.pos, message).width(node.width());
            let mistake = mistake.expected(expected);
            context.report(mistake.hint("write it in quotes if it is meant as a string"));
            None
        }
        _ => context.wrong(node, expected),
    }
}

impl Decode for String {
    fn decode(node: &Node, context: Context<'_>) -> Option<String> {
        text(node, context, "a string").map(|text| text.as_ref().to_owned())
    }
}

impl Decode for bool {
    fn decode(node: &Node, context: Context<'_>) -> Option<bool> {
        match node.data {
            Data::Bool(value) => Some(value),
            _ => context.wrong(node, "`true` or `false`"),
        }
    }
}

impl Decode for u64 {
    fn decode(node: &Node, context: Context<'_>) -> Option<u64> {
        match &node.data {
            Data::Number(number, _) if number.as_u64().is_some() => number.as_u64(),
            _ => context.wrong(node, "an integer, 0 or more"),
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, context: Context<'_>) -> Option<Option<T>> {
        T::decode(node, context).map(Some)
    }

    const TEMPLATE: bool = T::TEMPLATE;
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, context: Context<'_>) -> Option<Vec<T>> {
        let Data::List(items) = &node.data else {
            return context.wrong(node, "a list");
        };
        // All items are looked at, so that each mistake is told.
        let decoded: Vec<Option<T>> = items.iter().map(|item| T::decode(item, context)).collect();
        decoded.into_iter().collect()
    }
}

impl Decode for Value {
    fn decode(node: &Node, context: Context<'_>) -> Option<Value> {
        Some(match &node.data {
            Data::Null => Value::Null,
            Data::Bool(value) => Value::Bool(*value),
            Data::Number(number, _) => Value::Number(number.clone()),
            Data::Text(text) => Value::String(text.as_ref().to_owned()),
            Data::Template(_) | Data::Broken => return None,
            Data::List(_) => Value::Array(Vec::decode(node, context)?),
            Data::Map(_) => Value::Object(Map::decode(node, context)?),
        })
    }
}

impl Decode for Map<String, Value> {
    fn decode(node: &Node, context: Context<'_>) -> Option<Map<String, Value>> {
        let Data::Map(entries) = &node.data else {
            return context.wrong(node, "a map");
        };
        let mut map = Map::new();
        for (key, value) in entries {
            map.insert(key.name.as_ref().to_owned(), Value::decode(value, context)?);
        }
        Some(map)
    }
}

/// The schema of a value, with a template as the alternative where one may stand.
pub(crate) fn value_schema<T: Decode + JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let plain = generator.subschema_for::<T>();
    let is_string = plain.get("type").is_some_and(|kind| kind == "string") && plain.get("enum").is_none();
    if is_string || !T::TEMPLATE {
        return plain;
    }
    let template = generator.subschema_for::<super::schema::Template>();
    schemars::json_schema!({ "anyOf": [plain, template] })
}

/// An enumeration whose members are words: the type, its decoder and its schema from one list.
macro_rules! words {
    ($($(#[doc = $about:literal])* $name:ident { $($(#[$attribute:meta])* $member:ident = $word:literal,)* })*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub enum $name { $($(#[$attribute])* $member,)* }

        impl $name {
            /// The words, in the order of the members.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word a scenario has for it.
            pub fn word(self) -> &'static str {
                match self { $($name::$member => $word,)* }
            }
        }

        impl $crate::scenario::decode::Decode for $name {
            fn decode(node: &$crate::scenario::yaml::Node, context: $crate::scenario::decode::Context<'_>) -> Option<Self> {
                let word = $crate::scenario::decode::word(node, $name::WORDS, context)?;
                match word { $($word => Some($name::$member),)* _ => None }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($name).into() }
            fn inline_schema() -> bool { true }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": $name::WORDS })
            }
        }
    )*};
}
pub(crate) use words;

/// The one of `words` that `node` is.
pub(crate) fn word(node: &Node, words: &[&'static str], context: Context<'_>) -> Option<&'static str> {
    let expected = format!("one of {}", list(words.iter().copied()));
    let Data::Text(written) = &node.data else {
        return context.wrong(node, &expected);
    };
    let found = words.iter().find(|word| **word == &**written);
    if found.is_none() {
        let message = format!("unknown value `{written}`");
        let mistake = Diagnostic::new(node.pos, message).width(node.width());
        let mistake = mistake.expected(expected);
        context.report(mistake.did_you_mean(written, words.iter().copied()));
    }
    found.copied()
}

/// A map with known keys: the type, its decoder and its schema from one list. A field without a
/// default is required.
macro_rules! record {
    ($($(#[doc = $about:literal])* $name:ident($what:literal) {
        $($(#[doc = $doc:literal])* $field:ident $key:literal: $type:ty $(= $default:expr)?,)*
    })*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[doc = $doc])* pub $field: $type,)* }

        impl $name {
            /// Its keys in a scenario.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            pub(crate) fn read(
                fields: &mut $crate::scenario::decode::Fields<'_>,
                context: $crate::scenario::decode::Context<'_>,
            ) -> Option<Self> {
                $(let $field: Option<$type> = $crate::scenario::decode::record!(@take fields, context, $key $(, $default)?);)*
                Some($name { $($field: $field?,)* })
            }
        }

        impl $crate::scenario::decode::Decode for $name {
            fn decode(node: &$crate::scenario::yaml::Node, context: $crate::scenario::decode::Context<'_>) -> Option<Self> {
                let mut fields = $crate::scenario::decode::Fields::new(node, $what, context)?;
                let record = $name::read(&mut fields, context);
                fields.finish(context);
                record
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($name).into() }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $(
                    let schema = $crate::scenario::decode::value_schema::<$type>(generator);
                    let about = concat!($($doc, "\n"),*);
                    properties.insert($key.to_owned(), $crate::scenario::decode::described(schema, about));
                    if $crate::scenario::decode::record!(@required $($default)?) {
                        required.push($key);
                    }
                )*
                schemars::json_schema!({
                    "type": "object",
                    "description": concat!($($about, "\n"),*).trim(),
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
        }
    )*};
    (@take $fields:ident, $context:ident, $key:literal) => { $fields.required($key, $context) };
    (@take $fields:ident, $context:ident, $key:literal, $default:expr) => {
        $fields.optional($key, || $default, $context)
    };
    (@required) => { true };
    (@required $default:expr) => { false };
}
pub(crate) use record;

/// `schema` as a property with its description.
pub(crate) fn described(schema: Schema, about: &str) -> Value {
    let mut schema = schema;
    let about: Vec<&str> = about.lines().map(str::trim).collect();
    let about = about.join(" ");
    schema.insert("description".to_owned(), Value::String(about.trim().to_owned()));
    schema.to_value()
}
