//! File names: `TEST_DIR/PID-NAME` in scenarios and transcripts, a path in the run's own directory in QEMU.
//!
//! Every text that goes to a real program passes `to_real`, every text that comes back `to_scenario`; so
//! no transcript shows where a run took place. Must never touch anything but that prefix.

use std::path::Path;

use serde_json::{Map, Value};

/// What stands before a name in scenarios.
const PREFIX: &str = "TEST_DIR/PID-";

/// The two ways to write the files of one run.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What stands before a name in QEMU.
    real: String,
}

impl Names {
    /// The names of files in `dir`; `None` if QEMU would read something else into the directory's name: `:`
    /// ends a protocol, `,` an option, and quotes and backslashes are escaped in JSON.
    pub(super) fn new(dir: &Path) -> Option<Names> {
        let dir = dir.to_str()?;
        let harmless = |c: char| c.is_ascii_alphanumeric() || "/-_.+@".contains(c);
        (dir.starts_with('/') && dir.chars().all(harmless))
            .then(|| Names { real: format!("{}/PID-", dir.trim_end_matches('/')) })
    }

    /// `text` with the paths of QEMU.
    pub(super) fn to_real(&self, text: &str) -> String {
        text.replace(PREFIX, &self.real)
    }

    /// `text` with the names of the scenario.
    pub(super) fn to_scenario(&self, text: &str) -> String {
        text.replace(&self.real, PREFIX)
    }

    /// The arguments of a command with the paths of QEMU.
    pub(super) fn arguments(&self, arguments: &Map<String, Value>) -> Map<String, Value> {
        map_entries(arguments, &|text| self.to_real(text))
    }

    /// A reply or an event with the names of the scenario.
    pub(super) fn reply(&self, value: &Value) -> Value {
        map_strings(value, &|text| self.to_scenario(text))
    }
}

fn map_entries(map: &Map<String, Value>, change: &dyn Fn(&str) -> String) -> Map<String, Value> {
    map.iter().map(|(key, value)| (key.clone(), map_strings(value, change))).collect()
}

fn map_strings(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => Value::Array(items.iter().map(|item| map_strings(item, change)).collect()),
        Value::Object(map) => Value::Object(map_entries(map, change)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_go_there_and_back() {
        let names = Names::new(Path::new("/tmp/run-1")).expect("a harmless directory");
        let wire =
            json!({"a": ["TEST_DIR/PID-img", 1], "b": {"c": "json:{\"f\": \"TEST_DIR/PID-x\"}"}, "d": "TEST_DIR/x"});
        let real = map_strings(&wire, &|text| names.to_real(text));
        assert_eq!(
            real,
            json!({"a": ["/tmp/run-1/PID-img", 1], "b": {"c": "json:{\"f\": \"/tmp/run-1/PID-x\"}"}, "d": "TEST_DIR/x"})
        );
        assert_eq!(names.reply(&real), wire);
    }

    #[test]
    fn a_directory_that_qemu_would_take_apart_is_refused() {
        for dir in ["/tmp/a:b", "/tmp/a,b", "/tmp/a\"b", "tmp", "/tmp/a b"] {
            assert!(Names::new(Path::new(dir)).is_none(), "{dir}");
        }
    }
}
