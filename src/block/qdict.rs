//! QEMU's dictionaries: the order of their members, their text, and how nested options become flat ones.
//!
//! QEMU prints a dictionary in the order of its hash buckets. Transcripts sort members, so this matters only
//! where the first of several members decides (an unexpected one, an option that can't change), for file names
//! that are options (`json:…`) and for `qemu-img`'s JSON. QEMU's source: `qobject/qdict.c`, `qobject/block-qdict.c`.

use std::cmp::Reverse;

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

/// The members of flat options in the order in which QEMU makes them flat: that of the nested ones, where a list keeps
/// its own.
pub fn as_flattened(flat: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = flat.iter().collect();
    members.sort_by_key(|(key, _)| {
        let mut parts = key.splitn(3, '.');
        let [name, index, member] = [(); 3].map(|()| parts.next().unwrap_or(""));
        let place = RULE.iter().position(|known| *known == member);
        (bucket(name), name, index.parse::<u64>().ok(), bucket(member), Reverse(place))
    });
    members
}

/// A dictionary in QEMU's order: by bucket, and in a bucket the newest first.
#[derive(Debug, Default)]
pub struct Dict {
    members: Vec<(String, Member)>,
}

/// What a dictionary holds.
#[derive(Debug)]
pub enum Member {
    /// No dictionary.
    Plain(Value),
    /// Another dictionary.
    Dict(Dict),
}

impl Dict {
    /// Adds a member that was not there.
    pub fn put(&mut self, key: &str, member: Member) {
        let place = self.members.partition_point(|(other, _)| bucket(other) < bucket(key));
        self.members.insert(place, (key.to_owned(), member));
    }

    /// The members, in order.
    pub fn into_members(self) -> impl Iterator<Item = (String, Member)> {
        self.members.into_iter()
    }

    /// A copy: what shared a bucket has changed places.
    #[must_use]
    pub fn copied(self) -> Dict {
        self.with_prefix("")
    }

    /// A dictionary of the members whose names begin so, without that beginning (`qdict_extract_subqdict`).
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Dict {
        let mut part = Dict::default();
        for (key, member) in self.members {
            if let Some(key) = key.strip_prefix(prefix) {
                part.put(key, member);
            }
        }
        part
    }

    /// The JSON text as QEMU writes it in one line.
    pub fn text(&self) -> String {
        let text = |member: &Member| match member {
            Member::Plain(value) => value.to_string(),
            Member::Dict(dict) => dict.text(),
        };
        let members: Vec<String> = self
            .members
            .iter()
            .map(|(key, member)| format!("{}: {}", Value::from(key.as_str()), text(member)))
            .collect();
        format!("{{{}}}", members.join(", "))
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
    fn who_shares_a_bucket_changes_places_with_each_copy() {
        let mut options = Dict::default();
        for key in ["size", "inject-error.0.event", "inject-error.1.event", "inject-error.0.errno", "offset"] {
            options.put(key, Member::Plain(Value::Null));
        }
        let keys = |dict: Dict| dict.into_members().map(|(key, _)| key).collect::<Vec<_>>();
        let expected = r#"{"offset": null, "size": null, "inject-error.0.errno": null, "inject-error.1.event": null, "inject-error.0.event": null}"#;
        assert_eq!(options.text(), expected);
        let shared = ["inject-error.0.event", "inject-error.1.event", "inject-error.0.errno"];
        assert_eq!(keys(options.copied())[2..], shared);
    }

    #[test]
    fn rules_are_made_flat_in_the_order_of_their_members() {
        let rules =
            json!({"inject-error.10.event": 0, "inject-error.2.errno": 0, "inject-error.2.event": 0, "align": 0});
        let order: Vec<&String> = as_flattened(rules.as_object().expect("a map")).iter().map(|(key, _)| *key).collect();
        assert_eq!(order, ["inject-error.2.event", "inject-error.2.errno", "inject-error.10.event", "align"]);
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
