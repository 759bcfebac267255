//! Reading a command's arguments as QAPI does: types, missing members, unexpected members.
//!
//! A reader visits members in the order of the schema, so the first mistake in that order wins; members
//! that nobody asked for are refused at the end. QEMU's source: `qapi/qobject-input-visitor.c`. No
//! command's meaning may be known here.

use crate::sim::shared::RefCell;

use serde_json::{Map, Value};

use super::error::QmpError;

type Read<T> = Result<T, QmpError>;

/// A map of arguments that is being read.
pub struct Args<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
    visited: RefCell<Vec<&'a str>>,
}

impl<'a> Args<'a> {
    /// The outermost map of a command.
    pub fn new(map: &'a Map<String, Value>) -> Args<'a> {
        Args { map, prefix: String::new(), visited: RefCell::default() }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn missing(&self, name: &str) -> QmpError {
        format!("Parameter '{}' is missing", self.full_name(name)).into()
    }

    fn wrong_type(&self, name: &str, expected: &str) -> QmpError {
        format!("Invalid parameter type for '{}', expected: {expected}", self.full_name(name)).into()
    }

    fn visit(&self, name: &'static str) -> Option<&'a Value> {
        self.visited.borrow_mut().push(name);
        self.map.get(name)
    }

    /// All members.
    pub fn members(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// Takes every member for known.
    pub fn accept_all(&self) {
        self.visited.borrow_mut().extend(self.map.keys().map(String::as_str));
    }

    /// Whether a member is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A member as it is.
    pub fn any(&self, name: &'static str) -> Option<&'a Value> {
        self.visit(name)
    }

    /// An optional string.
    pub fn opt_str(&self, name: &'static str) -> Read<Option<&'a str>> {
        match self.visit(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type(name, "string")),
        }
    }

    /// A string.
    pub fn str(&self, name: &'static str) -> Read<&'a str> {
        self.opt_str(name)?.ok_or_else(|| self.missing(name))
    }

    /// An optional boolean.
    pub fn opt_bool(&self, name: &'static str) -> Read<Option<bool>> {
        match self.visit(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong_type(name, "boolean")),
        }
    }

    /// An optional signed 64-bit integer.
    pub fn opt_int(&self, name: &'static str) -> Read<Option<i64>> {
        match self.visit(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_i64().map(Some).ok_or_else(|| self.wrong_type(name, "integer")),
            Some(_) => Err(self.wrong_type(name, "integer")),
        }
    }

    /// A signed 64-bit integer.
    pub fn int(&self, name: &'static str) -> Read<i64> {
        self.opt_int(name)?.ok_or_else(|| self.missing(name))
    }

    /// An optional signed 32-bit integer.
    pub fn opt_i32(&self, name: &'static str) -> Read<Option<i32>> {
        let Some(value) = self.opt_int(name)? else { return Ok(None) };
        // QAPI names integer ranges without the path.
        value.try_into().map(Some).map_err(|_| format!("Parameter '{name}' expects int32_t").into())
    }

    /// An optional unsigned 32-bit integer.
    pub fn opt_u32(&self, name: &'static str) -> Read<Option<u32>> {
        let Some(value) = self.opt_size(name)? else { return Ok(None) };
        value.try_into().map(Some).map_err(|_| format!("Parameter '{name}' expects uint32_t").into())
    }

    /// An optional unsigned 16-bit integer.
    pub fn opt_u16(&self, name: &'static str) -> Read<Option<u16>> {
        let Some(value) = self.opt_size(name)? else { return Ok(None) };
        value.try_into().map(Some).map_err(|_| format!("Parameter '{name}' expects uint16_t").into())
    }

    /// An optional size in bytes, or any unsigned 64-bit integer; a negative number wraps around, as in QEMU.
    pub fn opt_size(&self, name: &'static str) -> Read<Option<u64>> {
        let Some(value) = self.visit(name) else { return Ok(None) };
        match value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)) {
            None => Err(format!("Parameter '{}' expects uint64", self.full_name(name)).into()),
            size => Ok(size),
        }
    }

    /// A size in bytes.
    pub fn size(&self, name: &'static str) -> Read<u64> {
        self.opt_size(name)?.ok_or_else(|| self.missing(name))
    }

    /// An optional enumeration member, translated by `table`.
    pub fn opt_enum<T: Copy>(&self, name: &'static str, table: &[(&str, T)]) -> Read<Option<T>> {
        let Some(word) = self.opt_str(name)? else { return Ok(None) };
        match table.iter().find(|(known, _)| *known == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(self.bad_value(name, word)),
        }
    }

    /// An enumeration member.
    pub fn enumeration<T: Copy>(&self, name: &'static str, table: &[(&str, T)]) -> Read<T> {
        self.opt_enum(name, table)?.ok_or_else(|| self.missing(name))
    }

    /// The error for a word that an enumeration does not have.
    pub fn bad_value(&self, name: &str, word: &str) -> QmpError {
        // QAPI names enumeration members and integer ranges without their path.
        format!("Parameter '{name}' does not accept value '{word}'").into()
    }

    /// The error for a member that this version of QEMU does not have.
    pub fn unexpected(&self, name: &str) -> QmpError {
        format!("Parameter '{}' is unexpected", self.full_name(name)).into()
    }

    /// An optional nested map.
    pub fn opt_object(&self, name: &'static str) -> Read<Option<Args<'a>>> {
        match self.visit(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Args { map, prefix: format!("{}{name}.", self.prefix), visited: RefCell::default() }))
            }
            Some(_) => Err(self.wrong_type(name, "object")),
        }
    }

    /// A nested map.
    pub fn object(&self, name: &'static str) -> Read<Args<'a>> {
        self.opt_object(name)?.ok_or_else(|| self.missing(name))
    }

    /// An optional list; each element with its name in errors (`actions[0]`).
    pub fn opt_list(&self, name: &'static str) -> Read<Option<Vec<(&'a Value, String)>>> {
        match self.visit(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let named = items.iter().enumerate().map(|(i, item)| (item, format!("{}{name}[{i}]", self.prefix)));
                Ok(Some(named.collect()))
            }
            Some(_) => Err(self.wrong_type(name, "array")),
        }
    }

    /// A list.
    pub fn list(&self, name: &'static str) -> Read<Vec<(&'a Value, String)>> {
        self.opt_list(name)?.ok_or_else(|| self.missing(name))
    }

    /// A list element that must be a map.
    pub fn element(item: &'a Value, name: &str) -> Read<Args<'a>> {
        match item {
            Value::Object(map) => Ok(Args { map, prefix: format!("{name}."), visited: RefCell::default() }),
            _ => Err(format!("Invalid parameter type for '{name}', expected: object").into()),
        }
    }

    /// Refuses members that nobody has asked for.
    pub fn finish(&self) -> Read<()> {
        let visited = self.visited.borrow();
        let mut unknown: Vec<&String> = self.map.keys().filter(|key| !visited.contains(&key.as_str())).collect();
        unknown.sort_by_key(|key| std::cmp::Reverse(crate::block::qdict::bucket(key)));
        match unknown.last() {
            Some(key) => Err(self.unexpected(key)),
            None => Ok(()),
        }
    }
}
