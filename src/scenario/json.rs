//! JSON as Python's `json.dumps` prints it, which is what QEMU's own test logs are made of.
//!
//! Keys are always sorted, as `sort_keys=True` does, everything outside ASCII is escaped, and a float has
//! Python's form. Must never lose or reorder anything else.

use std::fmt::Write;

use serde_json::{Map, Number, Value};

/// One value: on one line with `, ` and `: `, or indented by `indent` spaces a level.
pub fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_value(&mut out, value, indent, 0);
    out
}

/// A QMP command as qmp_log shows it: `execute` first, then the sorted arguments, in which `_` shows as `-`
/// in the keys of the outermost map and of maps that stand in lists.
pub fn command(name: &str, arguments: &Map<String, Value>, indent: Option<usize>) -> String {
    let mut out = String::from("{");
    newline(&mut out, indent, 1);
    out.push_str("\"execute\": ");
    write_string(&mut out, name);
    out.push_str(if indent.is_some() { "," } else { ", " });
    newline(&mut out, indent, 1);
    out.push_str("\"arguments\": ");
    write_map(&mut out, arguments, indent, 1, Keys::Dashed);
    newline(&mut out, indent, 0);
    out.push('}');
    out
}

/// How keys are shown.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    /// As they are, all the way down.
    Plain,
    /// `_` as `-` here and in maps that stand in lists; not in maps that stand in maps.
    Dashed,
    /// As they are here, dashed in maps that stand in lists.
    DashedInLists,
}

fn newline(out: &mut String, indent: Option<usize>, level: usize) {
    if let Some(width) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * level));
    }
}

fn write_value(out: &mut String, value: &Value, indent: Option<usize>, level: usize) {
    write_any(out, value, indent, level, Keys::Plain);
}

fn write_any(out: &mut String, value: &Value, indent: Option<usize>, level: usize, keys: Keys) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => write_list(out, items, indent, level, keys),
        Value::Object(map) => write_map(out, map, indent, level, keys),
    }
}

fn write_list(out: &mut String, items: &[Value], indent: Option<usize>, level: usize, keys: Keys) {
    if items.is_empty() {
        return out.push_str("[]");
    }
    // iotests' ordered_qmp turns key conversion on again for what stands in a list.
    let keys = if keys == Keys::Plain { keys } else { Keys::Dashed };
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        newline(out, indent, level + 1);
        write_any(out, item, indent, level + 1, keys);
    }
    newline(out, indent, level);
    out.push(']');
}

fn write_map(out: &mut String, map: &Map<String, Value>, indent: Option<usize>, level: usize, keys: Keys) {
    if map.is_empty() {
        return out.push_str("{}");
    }
    let inner = if keys == Keys::Plain { keys } else { Keys::DashedInLists };
    let mut entries: Vec<(&String, &Value)> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    out.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        newline(out, indent, level + 1);
        match keys {
            Keys::Dashed => write_string(out, &key.replace('_', "-")),
            _ => write_string(out, key),
        }
        out.push_str(": ");
        write_any(out, value, indent, level + 1, inner);
    }
    newline(out, indent, level);
    out.push('}');
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    let plain = text.bytes().position(|byte| !is_plain(byte)).unwrap_or(text.len());
    out.push_str(&text[..plain]);
    for c in text[plain..].chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    // Writing to a String can't fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

/// Integers as they are; floats as Python's `repr`: the shortest digits that mean the same number, with
/// an exponent below 1e-4 and from 1e16 on.
fn write_number(out: &mut String, number: &Number) {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else {
        return out.push_str(&number.to_string());
    };
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let text = format!("{value}");
        out.push_str(&text);
        if !text.contains('.') {
            out.push_str(".0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_line_and_indented() {
        let value = json!({"b": [1, {"c": null}], "a": {}, "e": []});
        assert_eq!(dumps(&value, None), r#"{"a": {}, "b": [1, {"c": null}], "e": []}"#);
        let indented = "{\n  \"bitmaps\": {}\n}";
        assert_eq!(dumps(&json!({"bitmaps": {}}), Some(2)), indented);
        assert_eq!(dumps(&json!([1, 2]), Some(2)), "[\n  1,\n  2\n]");
        assert_eq!(dumps(&json!("é\u{1f600}\n\"\u{7f}"), None), r#""\u00e9\ud83d\ude00\n\"\u007f""#);
    }

    #[test]
    fn floats_are_pythons() {
        let floats = json!([1.0, 0.5, 1e16, 1.5e-5, -2.0, 0.0001, 1e22]);
        assert_eq!(dumps(&floats, None), "[1.0, 0.5, 1e+16, 1.5e-05, -2.0, 0.0001, 1e+22]");
    }

    #[test]
    fn keys_of_a_command_are_dashed_where_iotests_does_it() {
        let arguments = json!({"a_b": {"c_d": [{"new_state": 1, "x": {"y_z": 2}}]}, "a-a": 1});
        let Value::Object(arguments) = arguments else {
            panic!("a map");
        };
        let line = r#"{"execute": "x", "arguments": {"a-a": 1, "a-b": {"c_d": [{"new-state": 1, "x": {"y_z": 2}}]}}}"#;
        assert_eq!(command("x", &arguments, None), line);
        let none = Map::new();
        assert_eq!(command("stop", &none, None), r#"{"execute": "stop", "arguments": {}}"#);
        let indented = "{\n  \"execute\": \"stop\",\n  \"arguments\": {}\n}";
        assert_eq!(command("stop", &none, Some(2)), indented);
    }
}
