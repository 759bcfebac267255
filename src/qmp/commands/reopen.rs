//! blockdev-reopen: new options for existing nodes (`qmp_blockdev_reopen` in `blockdev.c`).
//!
//! Here options are read and nodes found; what new options mean is the block layer's business.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::open::OpenOptions;
use crate::block::{Node, NodeId};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

impl Machine {
    /// blockdev-reopen (`qmp_blockdev_reopen` in `blockdev.c`).
    pub(in crate::qmp) async fn blockdev_reopen(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let mut queue = Vec::new();
        let mut joined: Vec<Value> = Vec::new();
        for (item, place) in args.list("options")? {
            let mut options = self.parse_node(&Args::element(item, &place)?)?;
            let mut item = item.clone();
            // Who names a node again adds to what was said of it before.
            let earlier = joined.iter().rev().find(|earlier| earlier.get("node-name") == item.get("node-name"));
            if let Some(earlier) = earlier {
                join(&mut item, earlier)?;
                options = self.parse_node(&Args::element(&item, &place)?)?;
            }
            queue.push(options);
            joined.push(item);
        }
        args.finish()?;
        if queue.is_empty() {
            return Err("not modelled: blockdev-reopen of no node, which aborts QEMU".into());
        }
        let mut nodes = Vec::new();
        for options in queue {
            let Some(name) = &options.node_name else { return Err("node-name not specified".into()) };
            let node = self.block.find_node(name);
            let node = node.ok_or_else(|| QmpError::from(format!("Failed to find node with node-name='{name}'")))?;
            nodes.push((node, options));
        }
        let drained = self.with_those_below(&nodes);
        for node in &drained {
            // The filter of a job may leave while the nodes before it are drained; it matters only if the command names it.
            if self.block.try_node(*node).is_some() {
                self.block.drained_begin(*node).await;
            }
        }
        for (node, _) in &nodes {
            self.block.still_there(node.id)?;
        }
        let result = self.block.reopen(nodes).await;
        drained.iter().for_each(|node| self.block.drained_end(*node));
        result?;
        Ok(json!({}))
    }

    /// The nodes that are drained while `nodes` change.
    fn with_those_below(&self, nodes: &[(Rc<Node>, OpenOptions)]) -> Vec<NodeId> {
        let mut drained: Vec<NodeId> = nodes.iter().map(|(node, _)| node.id).collect();
        let mut next = 0;
        while let Some(id) = drained.get(next).copied() {
            let below: Vec<NodeId> =
                self.block.node(id).children.borrow().iter().map(|edge| edge.child.get()).collect();
            drained.extend(below.into_iter().filter(|child| !drained.contains(child)).collect::<Vec<_>>());
            next += 1;
        }
        drained
    }
}

/// Adds to `options` what only `earlier` ones of the same node say (`bdrv_join_options` in `block.c`). Those of a child that
/// was given inline are not among them: they went to the child.
fn join(options: &mut Value, earlier: &Value) -> Result<(), QmpError> {
    let (Value::Object(options), Value::Object(earlier)) = (options, earlier) else { return Ok(()) };
    for (key, value) in earlier {
        match options.get_mut(key) {
            Some(Value::Object(_)) if value.is_string() => {
                let what = "a child by its name and then by its options, for one node of blockdev-reopen";
                return Err(format!("not modelled: {what}").into());
            }
            Some(own) => join(own, value)?,
            None if value.get("driver").is_some() => {}
            None => drop(options.insert(key.clone(), value.clone())),
        }
    }
    Ok(())
}
