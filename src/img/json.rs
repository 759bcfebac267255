//! JSON as qemu-img prints it: four spaces a level, members in the order of QEMU's hash table.
//!
//! QEMU's source: `qobject_to_json_pretty` in `qobject/qjson.c`. Strings are printed in full, nothing is rounded.

use serde_json::{Map, Value};

use crate::block::qdict::bucket;

/// A value over several lines, without a newline at the end.
pub(super) fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

fn write(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::Array(items) => {
            list(out, ('[', ']'), level, items.iter(), |out, item| write(out, item, level + 1));
        }
        Value::Object(map) => {
            list(out, ('{', '}'), level, in_order(map).into_iter(), |out, (key, value)| {
                string(out, key);
                out.push_str(": ");
                write(out, value, level + 1);
            });
        }
        Value::String(text) => string(out, text),
        other => out.push_str(&other.to_string()),
    }
}

/// A string, in ASCII only.
fn string(out: &mut String, text: &str) {
    for unit in Value::from(text).to_string().chars() {
        if unit.is_ascii() && unit != '\u{7f}' {
            out.push(unit);
            continue;
        }
        for half in unit.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{half:04X}"));
        }
    }
}

fn list<T>(
    out: &mut String,
    (open, close): (char, char),
    level: usize,
    items: impl Iterator<Item = T>,
    mut item: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (i, each) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        newline(out, level + 1);
        item(out, each);
    }
    newline(out, level);
    out.push(close);
}

fn newline(out: &mut String, level: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("    ", level));
}

/// Members by hash bucket; of two in one bucket the later one comes first.
fn in_order(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<(&String, &Value)> = map.iter().rev().collect();
    members.sort_by_key(|(key, _)| bucket(key));
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_empty_list_still_takes_two_lines() {
        let text = pretty(&json!({"virtual-size": 1024, "children": [], "filename": "a\"b", "dirty-flag": false}));
        let expected = "{\n    \"children\": [\n    ],\n    \"virtual-size\": 1024,\n    \"filename\": \"a\\\"b\",\n    \"dirty-flag\": false\n}";
        assert_eq!(text, expected);
    }
}
