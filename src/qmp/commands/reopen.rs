//! blockdev-reopen: new options for existing nodes (`qmp_blockdev_reopen` in `blockdev.c`).
//!
//! Modelled for what backup scenarios change: read-only, discard, detect-zeroes, and the backing link.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::open::{BackingRef, ChildRef, DriverOptions, OpenOptions};
use crate::block::{Node, Parent, Role};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

impl Machine {
    /// blockdev-reopen.
    pub(in crate::qmp) async fn blockdev_reopen(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let mut queue = Vec::new();
        for (item, name) in args.list("options")? {
            queue.push(self.parse_node(&Args::element(item, &name)?)?);
        }
        args.finish()?;
        let mut nodes = Vec::new();
        for options in queue {
            let Some(name) = &options.node_name else { return Err("node-name not specified".into()) };
            let node = self.block.find_node(name);
            let node = node.ok_or_else(|| QmpError::from(format!("Failed to find node with node-name='{name}'")))?;
            nodes.push((node, options));
        }
        self.block.drain_all_begin().await;
        let result = self.reopen_all(&nodes).await;
        self.block.drain_all_end();
        result.map(|()| json!({}))
    }

    async fn reopen_all(self: &Rc<Self>, nodes: &[(Rc<Node>, OpenOptions)]) -> Result<(), QmpError> {
        for (node, options) in nodes {
            self.check_reopen(node, options)?;
        }
        for (node, _) in nodes {
            let (block, id) = (self.block.clone(), node.id);
            let flushed = self.block.sim.run_coroutine("flush", async move { block.co_flush(id).await }).await;
            flushed.map_err(|error| format!("Error flushing drive: {error}"))?;
        }
        for (node, options) in nodes {
            self.reopen_node(node, options).await?;
        }
        Ok(())
    }

    fn check_reopen(&self, node: &Rc<Node>, options: &OpenOptions) -> Result<(), QmpError> {
        let driver = match &options.driver {
            DriverOptions::File { .. } => "file",
            DriverOptions::Null(_) => "null-co",
            DriverOptions::Raw { .. } => "raw",
            DriverOptions::Qcow2 { .. } => "qcow2",
            DriverOptions::Blkdebug(_) => "blkdebug",
            DriverOptions::CopyBeforeWrite { .. } => "copy-before-write",
            DriverOptions::SnapshotAccess { .. } => "snapshot-access",
        };
        if node.driver_name() != Some(driver) {
            return Err("Cannot change the option 'driver'".into());
        }
        if let DriverOptions::File { filename } = &options.driver
            && **filename != **node.filename.borrow()
        {
            return Err("Cannot change the option 'filename'".into());
        }
        if let DriverOptions::Qcow2 { file, .. } | DriverOptions::Raw { file } = &options.driver {
            self.check_same_child(node, "file", file)?;
        }
        Ok(())
    }

    /// A child named by reference must be the one that is there.
    fn check_same_child(&self, node: &Node, name: &'static str, child: &ChildRef) -> Result<(), QmpError> {
        let ChildRef::Name(reference) = child else { return Ok(()) };
        let wanted = self.block.lookup(None, Some(reference))?;
        if self.block.reaches(wanted.id, node.id) {
            return Err(format!("Making '{reference}' a {name} child of '{}' would create a cycle", node.name).into());
        }
        match node.child(name) {
            Some(edge) if edge.child.get() == wanted.id => Ok(()),
            _ => Err(format!("not modelled: changing the '{name}' child of '{}' by blockdev-reopen", node.name).into()),
        }
    }

    async fn reopen_node(self: &Rc<Self>, node: &Rc<Node>, options: &OpenOptions) -> Result<(), QmpError> {
        if let DriverOptions::Qcow2 { backing, .. } = &options.driver {
            self.reopen_backing(node, backing).await?;
        }
        let was_read_only = node.is_read_only();
        let read_only = options.common.read_only.unwrap_or(false);
        if let (Some(qcow2), true) = (node.qcow2(), read_only != was_read_only) {
            let block = self.block.clone();
            let (reopened, is_ro) = (qcow2.clone(), read_only);
            if is_ro {
                let stored = self
                    .block
                    .sim
                    .run_coroutine("store bitmaps", async move { reopened.reopen_read_only(&block).await })
                    .await;
                stored?;
            }
        }
        {
            let mut own = node.options.borrow_mut();
            own.read_only = read_only;
            own.discard_unmap = options.common.discard_unmap.unwrap_or(false);
            own.detect_zeroes = options.common.detect_zeroes;
        }
        if let Err(reason) = self.block.refresh_node_permissions(node.id) {
            node.options.borrow_mut().read_only = was_read_only;
            return Err(reason.into());
        }
        if let (Some(qcow2), true, false) = (node.qcow2(), was_read_only, read_only) {
            let block = self.block.clone();
            self.block.sim.run_coroutine("load bitmaps", async move { qcow2.reopen_read_write(&block).await }).await;
        }
        Ok(())
    }

    async fn reopen_backing(self: &Rc<Self>, node: &Rc<Node>, backing: &BackingRef) -> Result<(), QmpError> {
        let current = node.child("backing");
        let wanted = match backing {
            BackingRef::FromImage if current.is_some() => {
                return Err(format!("backing is missing for '{}'", node.name).into());
            }
            BackingRef::FromImage | BackingRef::None => None,
            BackingRef::Given(ChildRef::Name(name)) => Some(self.block.lookup(None, Some(name))?),
            BackingRef::Given(ChildRef::Inline(_)) => {
                return Err("not modelled: blockdev-reopen with inline options for 'backing'".into());
            }
        };
        if current.as_ref().map(|edge| edge.child.get()) == wanted.as_ref().map(|node| node.id) {
            return Ok(());
        }
        if let Some(wanted) = &wanted
            && self.block.reaches(wanted.id, node.id)
        {
            let (child, parent) = (&wanted.name, &node.name);
            return Err(format!("Making '{child}' a backing child of '{parent}' would create a cycle").into());
        }
        if let Some(edge) = current {
            self.block.detach(&edge);
            self.block.unref(edge.child.get()).await;
        }
        if let Some(wanted) = &wanted {
            self.block.attach(Parent::Node(node.id), "backing", Role::Cow, wanted.id, None)?;
        }
        if let Some(qcow2) = node.qcow2() {
            qcow2.set_backing_node(wanted.map(|node| node.id));
        }
        Ok(())
    }
}
