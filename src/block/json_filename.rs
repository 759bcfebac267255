//! File names that are options: `json:{"driver": "qcow2", "file": …}`.
//!
//! Such a name is what [`Block::filename`](super::Block::filename) gives a node that no plain name describes, and what
//! then stands in an overlay as its backing file. What the model itself writes is read here, nested or flat
//! (`file.driver`); anything else is told as not modelled. QEMU's source: `parse_json_protocol` in `block.c`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::errno::Errno;

use super::blkdebug::{InjectError, IoType, SetState};
use super::blkdebug_event::BlkdebugEvent;
use super::null::NullDriver;
use super::open::{BackingRef, BlkdebugOptions, ChildRef, CommonOptions, DriverOptions, OpenOptions};
use super::qcow2::Qcow2Options;
use super::qdict;
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
    if driver == "blkdebug" && matches!((&file, &backing), (Child::Absent, Child::Absent)) {
        return blkdebug(given);
    }
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
    finish(&driver, &given)?;
    Ok(OpenOptions { node_name: None, common: CommonOptions::default(), driver: options, own })
}

/// Refuses what has not been taken out.
fn finish(what: &str, left: &Map<String, Value>) -> Result<(), String> {
    match left.keys().next() {
        Some(name) => Err(format!("not modelled: option '{name}' of driver '{what}' in a file name 'json:'")),
        None => Ok(()),
    }
}

/// A blkdebug node with its rules; how it was given limits and permissions is not modelled.
fn blkdebug(mut given: Map<String, Value>) -> Result<OpenOptions, String> {
    let Child::Given(image) = child(&mut given, "image")? else {
        return Err("not modelled: a file name 'json:' with driver 'blkdebug' and no image".to_owned());
    };
    let mut flat = Map::new();
    given.iter().for_each(|(name, value)| qdict::flatten(name, value, &mut flat));
    let own = flat.clone();
    let inject = rules(&mut flat, "inject-error").into_values().map(inject_error).collect::<Result<_, _>>()?;
    let set_state = rules(&mut flat, "set-state").into_values().map(set_state).collect::<Result<_, _>>()?;
    finish("blkdebug", &flat)?;
    let options = BlkdebugOptions { inject, set_state, ..BlkdebugOptions::over(image) };
    let driver = DriverOptions::Blkdebug(Box::new(options));
    Ok(OpenOptions { node_name: None, common: CommonOptions::default(), driver, own })
}

/// Takes the members of a flat list out, by place: `list.0.member`.
fn rules(flat: &mut Map<String, Value>, list: &str) -> BTreeMap<u32, Map<String, Value>> {
    let mut rules: BTreeMap<u32, Map<String, Value>> = BTreeMap::new();
    let place = |key: &str| {
        let (place, member) = below(key, list)?.split_once('.')?;
        Some((place.parse().ok()?, member.to_owned()))
    };
    flat.retain(|key, value| match place(key) {
        Some((place, member)) => {
            rules.entry(place).or_default().insert(member, value.take());
            false
        }
        None => true,
    });
    rules
}

fn event_of(rule: &mut Map<String, Value>) -> Result<BlkdebugEvent, String> {
    let event = rule.remove("event").and_then(|word| BlkdebugEvent::from_name(word.as_str()?));
    event.ok_or_else(|| "not modelled: a rule without an event in a file name 'json:'".to_owned())
}

fn inject_error(mut rule: Map<String, Value>) -> Result<InjectError, String> {
    let event = event_of(&mut rule)?;
    let iotype = rule.get("iotype").and_then(Value::as_str).and_then(IoType::from_name);
    if iotype.is_some() {
        rule.remove("iotype");
    }
    let mut flag = |name: &str| take(&mut rule, name, Value::as_bool).unwrap_or(false);
    let (once, immediately) = (flag("once"), flag("immediately"));
    let mut number = |name: &str| take(&mut rule, name, Value::as_i64);
    let (state, errno) = (number("state").unwrap_or(0), number("errno").unwrap_or(Errno::EIO.0.into()) as i32);
    let sector = number("sector").filter(|sector| *sector != -1);
    finish("blkdebug", &rule)?;
    Ok(InjectError { event, state, iotype, errno, sector, once, immediately })
}

fn set_state(mut rule: Map<String, Value>) -> Result<SetState, String> {
    let event = event_of(&mut rule)?;
    let mut number = |name: &str| take(&mut rule, name, Value::as_i64);
    let (state, new_state) = (number("state").unwrap_or(0), number("new_state"));
    finish("blkdebug", &rule)?;
    let new_state = new_state.ok_or("not modelled: a rule without a state in a file name 'json:'")?;
    Ok(SetState { event, state, new_state })
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
    fn rules_are_read_nested_and_flat() {
        let nested = r#"json:{"driver": "blkdebug", "image": {"driver": "file", "filename": "f"},
            "inject-error": [{"event": "l2_load", "errno": 28, "once": true}, {"event": "write_aio", "iotype": "write"}],
            "set-state": [{"event": "flush_to_os", "state": 1, "new_state": 2}]}"#;
        let flat = r#"json:{"driver": "blkdebug", "image.driver": "file", "image.filename": "f",
            "inject-error.1.iotype": "write", "inject-error.0.event": "l2_load", "inject-error.0.errno": 28,
            "inject-error.0.once": true, "inject-error.1.event": "write_aio",
            "set-state.0.event": "flush_to_os", "set-state.0.state": 1, "set-state.0.new_state": 2}"#;
        for text in [nested, flat] {
            let options = options_of(text).expect("it is one").expect("it is modelled");
            let DriverOptions::Blkdebug(options) = options.driver else { panic!("{text}") };
            assert_eq!(filename(&options.image), "f");
            let rule = |event, errno, once, iotype| {
                let (state, sector, immediately) = (0, None, false);
                InjectError { event, state, iotype, errno, sector, once, immediately }
            };
            let first = rule(BlkdebugEvent::L2Load, 28, true, None);
            assert_eq!(options.inject, [first, rule(BlkdebugEvent::WriteAio, 5, false, Some(IoType::Write))]);
            assert_eq!(options.set_state, [SetState { event: BlkdebugEvent::FlushToOs, state: 1, new_state: 2 }]);
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
            r#"json:{"driver": "blkdebug"}"#,
            r#"json:{"driver": "blkdebug", "image": "disk", "align": 512}"#,
            r#"json:{"driver": "blkdebug", "image": "disk", "inject-error": [{"event": "sunrise"}]}"#,
            r#"json:{"driver": "blkdebug", "image": "disk", "set-state.0.event": "l2_load"}"#,
            r#"json:{"driver": "blkdebug", "image": "disk", "inject-error.first.event": "l2_load"}"#,
        ] {
            let refused = options_of(text).expect("it is one").expect_err("it is not modelled");
            assert!(refused.starts_with("not modelled: "), "{refused}");
        }
    }
}
