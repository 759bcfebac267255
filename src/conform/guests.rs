//! Guests of a real QEMU: drives of their own, whose requests leave the monitor free while they are under way.
//!
//! Must never take the end of one request for another's: what qemu-io prints says where a request was, and no more.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::task::Poll;

use serde_json::{Map, Value};

use crate::qmp::qemu_io::{IoCommand, parse};
use crate::quirks::{Compat, Quirks};
use crate::scenario::ast::{Concurrently, Step, Verb};
use crate::scenario::backend::RunError;

use super::real::RealQemu;

/// All `concurrently` among the steps.
pub(super) fn concurrent(steps: &[Step]) -> impl Iterator<Item = &Concurrently> {
    steps.iter().filter_map(|step| match &*step.verb {
        Verb::Concurrently(concurrently) => Some(concurrently),
        _ => None,
    })
}

/// The nodes at which actors have guests.
pub(super) fn guest_nodes(steps: &[Step]) -> BTreeSet<Rc<str>> {
    let steps = concurrent(steps).flat_map(|step| step.actors.iter().flat_map(|(_, steps)| &steps.0));
    let nodes = steps.filter_map(|step| match &*step.verb {
        Verb::QemuIo(io) => Some(Rc::from(&*io.qemu_io)),
        _ => None,
    });
    nodes.collect()
}

/// Gives the turn to others once.
pub(super) async fn turn() {
    let mut waited = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// A guest's request in the form that leaves the monitor free while it is under way, and where it begins; none
/// for those that qemu-io has no such form of.
pub(super) fn asynchronous(command: &str) -> Option<(String, u64)> {
    let (verb, rest) = command.split_once(' ')?;
    match parse(&Quirks::of(Compat::Qemu100), command, &mut String::new()) {
        Ok(IoCommand::Read(transfer) | IoCommand::Write(transfer)) if matches!(verb, "write" | "read") => {
            Some((format!("aio_{verb} {rest}"), transfer.offset))
        }
        _ => None,
    }
}

/// What qemu-io prints when the asynchronous request at `offset` is over.
pub(super) fn result_of(printed: &str, offset: u64) -> Option<&str> {
    let done = format!(" bytes at offset {offset}");
    let failed = |line: &str| line.starts_with("aio_write failed: ") || line.starts_with("readv failed: ");
    printed.lines().find(|line| line.ends_with(&done) || failed(line))
}

/// What the human monitor has answered, without the end of the line.
pub(super) fn said(reply: &Value) -> &str {
    reply.get("return").and_then(Value::as_str).unwrap_or_default().trim_end()
}

/// The guests of a machine: one drive above each node that actors use.
pub(super) struct Guests {
    real: RealQemu,
    drives: RefCell<BTreeMap<String, String>>,
}

impl Guests {
    /// No guests yet.
    pub(super) fn new(real: &RealQemu) -> Guests {
        Guests { real: real.clone(), drives: RefCell::default() }
    }

    /// A line for the human monitor.
    pub(super) fn monitor(&self, line: &str) -> Result<Value, RunError> {
        let arguments = Map::from_iter([("command-line".to_owned(), line.into())]);
        self.real.execute_now("human-monitor-command", &arguments)
    }

    /// Gives each node's guest a backend of its own: a device's, not the monitor's for one command, which would wait for
    /// the end of every request that it began. While requests are held it is too late, since a new backend waits for
    /// all requests of its node.
    pub(super) fn add(&self, nodes: &BTreeSet<Rc<str>>) -> Result<(), RunError> {
        for (number, node) in nodes.iter().enumerate() {
            let drive = format!("backsim-guest-{number}");
            let add = |node: &str, how: &str| {
                let below = format!("{{\"driver\":\"raw\",,\"file\":\"{node}\"}}");
                let line = format!("drive_add 0 if=none,id={drive},discard=unmap{how},file=json:{below}");
                Ok(said(&self.monitor(&line)?) == "OK")
            };
            // A guest that was there before a filter is above it; the filter may leave before the guest comes. Where nobody may
            // write, one can read; where there is no node yet, each request is refused.
            let mut is_there = false;
            for how in ["", "", "", ",readonly=on"] {
                is_there = is_there || add(&self.above_filters(node)?, how)?;
            }
            self.drives.borrow_mut().insert(node.to_string(), drive);
        }
        Ok(())
    }

    /// The topmost of the filters above a node, or the node.
    fn above_filters(&self, node: &str) -> Result<String, RunError> {
        let ask = |command: &str| self.real.execute_now(command, &Map::new());
        let (nodes, graph) = (ask("query-named-block-nodes")?, ask("x-debug-query-block-graph")?);
        let list = |reply: &Value, key: &str| reply["return"][key].as_array().cloned().unwrap_or_default();
        let (names, edges) = (list(&graph, "nodes"), list(&graph, "edges"));
        let name_of = |id: &Value| names.iter().find(|one| one["id"] == *id).map(|one| one["name"].clone());
        let is_filter = |name: &Value| {
            let all = nodes["return"].as_array().cloned().unwrap_or_default();
            all.iter().any(|one| one["node-name"] == *name && one["drv"] == "copy-before-write")
        };
        let above = |name: &Value| {
            let up =
                edges.iter().filter(|edge| edge["name"] == "file" && name_of(&edge["child"]).as_ref() == Some(name));
            up.filter_map(|edge| name_of(&edge["parent"])).find(is_filter)
        };
        let mut top = Value::from(node);
        while let Some(filter) = above(&top) {
            top = filter;
        }
        Ok(top.as_str().unwrap_or(node).to_owned())
    }

    /// The drive of the guest at `node`.
    pub(super) fn drive(&self, node: &str) -> Result<String, RunError> {
        let drive = self.drives.borrow().get(node).cloned();
        drive.ok_or_else(|| RunError::machine(format!("no guest of an actor is at node '{node}'")))
    }

    /// Takes all of them away.
    pub(super) fn remove(&self) -> Result<(), RunError> {
        let drives = std::mem::take(&mut *self.drives.borrow_mut());
        drives.into_values().try_for_each(|drive| self.monitor(&format!("drive_del {drive}")).map(|_| ()))
    }
}
