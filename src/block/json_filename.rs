//! File names that are options: `json:{"driver": "qcow2", "file": …}`.
//!
//! Such a name is what [`Block::filename`](super::Block::filename) gives a node that no plain name describes, and what
//! then stands in an overlay as its backing file. What the model itself writes is read here, nested or flat
//! (`file.driver`); anything else is told as not modelled. QEMU's source: `parse_json_protocol` in `block.c`.

use serde_json::{Map, Value};

use super::null::NullDriver;
use super::open::{BackingRef, ChildRef, CommonOptions, DriverOptions, OpenOptions};
use super::qcow2::Qcow2Options;
use super::raw::Window;

/// What such a name begins with.
const PROTOCOL: &str = "json:";

/// The options that a name is, if it is some; the error is for the user.
pub(super) fn options_of(filename: &str) -> Option<Result<OpenOptions, String>> {
    let text = filename.strip_prefix(PROTOCOL)?;
    Some(match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(options) => node(options),
        Err(error) => Err(format!("not modelled: a file name 'json:' with '{text}' behind it ({error})")),
    })
}

fn node(mut given: Map<String, Value>) -> Result<OpenOptions, String> {
    let driver = match given.remove("driver") {
        Some(Value::String(driver)) => driver,
        _ => return Err("not modelled: a file name 'json:' without a driver".to_owned()),
    };
    let file = child(&mut given, "file")?;
    let backing = child(&mut given, "backing")?;
    let own = given.clone();
    let options = match (driver.as_str(), file, backing) {
        ("file", Child::Absent, Child::Absent) => match given.remove("filename") {
            Some(Value::String(filename)) => DriverOptions::File { filename },
            _ => return Err("The 'file' block driver requires a file name".to_owned()),
        },
        ("null-co", Child::Absent, Child::Absent) => {
            let size = take(&mut given, "size", Value::as_i64);
            DriverOptions::Null(NullDriver::new(size, take(&mut given, "read-zeroes", Value::as_bool), 0))
        }
        ("raw", Child::Given(file), Child::Absent) => {
            let mut number = |name: &str| take(&mut given, name, Value::as_u64);
            DriverOptions::Raw { file, window: Window { offset: number("offset"), size: number("size") } }
        }
        ("qcow2", Child::Given(file), backing) => {
            let backing = match backing {
                Child::Absent => BackingRef::FromImage,
                Child::Null => BackingRef::None,
                Child::Given(backing) => BackingRef::Given(backing),
            };
            DriverOptions::Qcow2 { file, backing, options: Qcow2Options::default() }
        }
        _ => return Err(format!("not modelled: a file name 'json:' with driver '{driver}' and these children")),
    };
    if let Some(name) = given.keys().next() {
        return Err(format!("not modelled: option '{name}' of driver '{driver}' in a file name 'json:'"));
    }
    Ok(OpenOptions { node_name: None, common: CommonOptions::default(), driver: options, own })
}

/// Takes an option out that has the right type; another stays, and is told.
fn take<T>(given: &mut Map<String, Value>, name: &str, read: fn(&Value) -> Option<T>) -> Option<T> {
    let value = given.get(name).and_then(read)?;
    given.remove(name);
    Some(value)
}

/// A child in the options of its parent.
enum Child {
    Absent,
    Null,
    Given(ChildRef),
}

/// Takes a child out of the options: nested, flat or by node name.
fn child(given: &mut Map<String, Value>, name: &str) -> Result<Child, String> {
    let inline = |options| Ok(Child::Given(ChildRef::Inline(Box::new(node(options)?))));
    match given.remove(name) {
        Some(Value::Null) => return Ok(Child::Null),
        Some(Value::String(node_name)) => return Ok(Child::Given(ChildRef::Name(node_name))),
        Some(Value::Object(options)) => return inline(options),
        Some(_) => return Err(format!("not modelled: '{name}' in a file name 'json:' is neither a node nor options")),
        None => {}
    }
    let flat: Vec<String> = given.keys().filter(|key| below(key, name).is_some()).cloned().collect();
    if flat.is_empty() {
        return Ok(Child::Absent);
    }
    let mut options = Map::new();
    for key in flat {
        if let (Some(own), Some(value)) = (below(&key, name), given.remove(&key)) {
            options.insert(own.to_owned(), value);
        }
    }
    inline(options)
}

/// What a flat key says below a child.
fn below<'a>(key: &'a str, child: &str) -> Option<&'a str> {
    key.strip_prefix(child)?.strip_prefix('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filename(child: &ChildRef) -> &str {
        match child {
            ChildRef::Inline(options) => match &options.driver {
                DriverOptions::File { filename } => filename,
                other => panic!("no file: {other:?}"),
            },
            ChildRef::Name(name) => name,
        }
    }

    #[test]
    fn nested_and_flat_options_are_the_same() {
        for text in [
            r#"json:{"driver": "qcow2", "file": {"driver": "file", "filename": "f"}, "backing": null}"#,
            r#"json:{"driver": "qcow2", "file.driver": "file", "file.filename": "f", "backing": null}"#,
        ] {
            let options = options_of(text).expect("it is one").expect("it is modelled");
            let DriverOptions::Qcow2 { file, backing: BackingRef::None, .. } = &options.driver else {
                panic!("{:?}", options.driver);
            };
            assert_eq!(filename(file), "f");
        }
    }

    #[test]
    fn what_is_not_modelled_is_told() {
        assert!(options_of("TEST_DIR/PID-img").is_none());
        for text in [
            "json:",
            "json:{}",
            r#"json:{"driver": "raw"}"#,
            r#"json:{"driver": "null-co", "latency-ns": 5}"#,
            r#"json:{"driver": "null-co", "size": [5]}"#,
        ] {
            let refused = options_of(text).expect("it is one").expect_err("it is not modelled");
            assert!(refused.starts_with("not modelled: "), "{refused}");
        }
    }
}
