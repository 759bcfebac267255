//! QEMU's dictionaries: the order of their members, their text, and how nested options become flat ones.
//!
//! QEMU prints a dictionary in the order of its hash buckets. Transcripts sort members, so this matters only
//! where the first of several members decides (an unexpected one, an option that can't change), for file names
//! that are options (`json:…`) and for `qemu-img`'s JSON. QEMU's source: `qobject/qdict.c`, `qobject/block-qdict.c`.

use serde_json::{Map, Value};

/// The bucket of a key in QEMU's `QDict`, 0 to 511.
pub fn bucket(key: &str) -> u32 {
    let seed = 0x238F_13AFu32.wrapping_mul(key.len() as u32);
    let sum =
        key.bytes().enumerate().fold(seed, |value, (i, byte)| value.wrapping_add(u32::from(byte) << (i * 5 % 24)));
    1_103_515_243u32.wrapping_mul(sum).wrapping_add(12345) % 512
}

/// Members of blkdebug's rules as the schema has them; some of them share a bucket.
const RULE: [&str; 8] = ["event", "state", "iotype", "errno", "sector", "once", "immediately", "new_state"];

/// The members of a dictionary in QEMU's order: by bucket, those of one bucket in the order of the schema.
pub fn in_order(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = map.iter().collect();
    members.sort_by_key(|(key, _)| {
        let (rule, member) = key.rsplit_once('.').unwrap_or(("", key));
        (bucket(key), rule.to_owned(), RULE.iter().position(|known| *known == member))
    });
    members
}

/// The JSON text of a value as QEMU writes it in one line.
pub fn text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let members: Vec<String> = in_order(map)
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), text(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// Adds a member to flat options: `a.b` for a member of a dictionary, `a.0` for one of a list (`qdict_flatten`).
pub fn flatten(name: &str, value: &Value, into: &mut Map<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, into));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&format!("{name}.{i}"), value, into));
        }
        plain => drop(into.insert(name.to_owned(), plain.clone())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_and_errors_come_in_the_order_of_real_qemu() {
        for order in [
            &["timestamp", "event", "data"][..],
            &["class", "desc"],
            &["seconds", "microseconds"],
            &["device", "len", "offset", "speed", "type", "error"],
            &["name", "recording", "persistent", "busy", "granularity", "count"],
        ] {
            let buckets: Vec<u32> = order.iter().map(|key| bucket(key)).collect();
            assert!(buckets.is_sorted(), "{order:?}: {buckets:?}");
        }
    }

    #[test]
    fn options_print_as_in_the_file_names_of_real_qemu() {
        let options =
            json!({"driver": "raw", "file": {"filename": "f", "driver": "file"}, "size": 65536, "offset": 512});
        let expected =
            r#"{"offset": 512, "driver": "raw", "size": 65536, "file": {"driver": "file", "filename": "f"}}"#;
        assert_eq!(text(&options), expected);
        let rule = json!({"inject-error.1.event": "none", "inject-error.0.errno": 5, "inject-error.0.event": "none"});
        let order: Vec<&String> = in_order(rule.as_object().expect("a map")).iter().map(|(key, _)| *key).collect();
        assert_eq!(order, ["inject-error.0.event", "inject-error.0.errno", "inject-error.1.event"]);
    }

    #[test]
    fn nested_options_become_flat() {
        let mut flat = Map::new();
        flatten("inject-error", &json!([{"event": "none", "once": true}]), &mut flat);
        flatten("set-state", &json!([]), &mut flat);
        let expected = json!({"inject-error.0.event": "none", "inject-error.0.once": true, "set-state": []});
        assert_eq!(Value::from(flat), expected);
    }
}
