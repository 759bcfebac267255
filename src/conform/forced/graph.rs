//! Where requests can be held: blkdebug nodes between a raw node and a file, as the scenario's `blockdev-add`
//! steps define them.
//!
//! Must never hold at a format whose own requests look like a guest's: a qcow2 node reads and writes tables by
//! the same events as data.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::scenario::ast::{Step, Verb};

/// A node as a command defines it.
#[derive(Clone, Debug)]
struct Defined {
    driver: String,
    /// The node below, by name.
    below: Option<String>,
}

/// The blkdebug node above each file node at which requests can be held, by the file node's name.
pub fn holding_points(steps: &[Step]) -> BTreeMap<String, String> {
    let mut nodes = BTreeMap::new();
    for step in steps {
        if let Verb::Execute(command) = &*step.verb
            && &*command.execute == "blockdev-add"
        {
            define(&command.arguments, &mut nodes);
        }
    }
    let mut points = BTreeMap::new();
    for raw in nodes.values().filter(|node: &&Defined| node.driver == "raw") {
        let blkdebug = raw.below.as_ref().and_then(|name| Some((name, nodes.get(name)?)));
        if let Some((name, Defined { driver, below: Some(file) })) = blkdebug
            && driver == "blkdebug"
        {
            points.insert(file.clone(), name.clone());
        }
    }
    points
}

/// Takes a definition and those within it in; gives its node's name, if it has one.
fn define(options: &Map<String, Value>, nodes: &mut BTreeMap<String, Defined>) -> Option<String> {
    let driver = options.get("driver")?.as_str()?.to_owned();
    let below = match options.get(if driver == "blkdebug" { "image" } else { "file" }) {
        Some(Value::String(name)) => Some(name.clone()),
        Some(Value::Object(options)) => define(options, nodes),
        _ => None,
    };
    let name = options.get("node-name")?.as_str()?.to_owned();
    nodes.insert(name.clone(), Defined { driver, below });
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn points_are_where_raw_blkdebug_and_file_are_stacked_by_name() {
        let text = "steps:
  - execute: blockdev-add
    arguments: {driver: file, node-name: f, filename: TEST_DIR/PID-a}
  - execute: blockdev-add
    arguments: {driver: raw, node-name: a, file: {driver: blkdebug, node-name: d, image: f}}
  - execute: blockdev-add
    arguments: {driver: qcow2, node-name: q, file: {driver: blkdebug, node-name: e, image: {driver: file, node-name: g, filename: x}}}
  - execute: blockdev-add
    arguments: {driver: raw, node-name: n, file: {driver: blkdebug, image: {driver: file, node-name: h, filename: y}}}
";
        let scenario = parse("t.yaml", text).expect("a scenario");
        let case = scenario.cases().expect("cases").remove(0);
        let points = holding_points(&case.steps);
        assert_eq!(points.into_iter().collect::<Vec<_>>(), [("f".to_owned(), "d".to_owned())]);
    }
}
