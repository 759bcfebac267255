//! blockdev-snapshot and blockdev-snapshot-sync: an overlay on top of a node
//! (`external_snapshot_prepare` in `blockdev.c`).

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::open::{BackingRef, DriverOptions};
use crate::block::qcow2::Qcow2CreateOptions;
use crate::block::{Edge, Node, Perm};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

impl Machine {
    /// blockdev-snapshot: an overlay node that exists already.
    pub(in crate::qmp) async fn blockdev_snapshot(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let (node, overlay) = (args.str("node")?, args.str("overlay")?);
        args.finish()?;
        let node = self.block.lookup(Some(node), Some(node))?;
        self.block.drained_begin(node.id).await;
        let result = self.append_overlay(&node, overlay).await;
        self.block.drained_end(node.id);
        result.map(|()| json!({}))
    }

    async fn append_overlay(&self, node: &Rc<Node>, overlay: &str) -> Result<(), QmpError> {
        self.block.check_op_blocker(node)?;
        self.block.check_not_backing(node)?;
        let overlay = self
            .block
            .lookup(None, Some(overlay))
            .map_err(|_| QmpError::from(format!("Cannot find device='{overlay}' nor node-name='{overlay}'")))?;
        let is_read = |edge: &Rc<Edge>| edge.perm.get().contains(Perm::CONSISTENT_READ);
        if overlay.parents.borrow().iter().any(is_read) {
            return Err("The overlay is already in use".into());
        }
        if overlay.filtered_child().is_some() {
            return Err("Filters cannot be used as overlays".into());
        }
        if overlay.backing().is_some() {
            return Err("The overlay already has a backing image".into());
        }
        if overlay.qcow2().is_none() {
            return Err("The overlay does not support backing images".into());
        }
        self.block.append(node, &overlay).await?;
        Ok(())
    }

    /// blockdev-snapshot-sync: makes the overlay's image first.
    pub(in crate::qmp) async fn blockdev_snapshot_sync(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let device = args.opt_str("device")?;
        let node_name = args.opt_str("node-name")?;
        let file = args.str("snapshot-file")?.to_owned();
        let new_name = args.opt_str("snapshot-node-name")?.map(str::to_owned);
        let format = args.opt_str("format")?.unwrap_or("qcow2");
        let existing = args.opt_enum("mode", &[("existing", true), ("absolute-paths", false)])?.unwrap_or(false);
        args.finish()?;
        let node = self.block.lookup(device, node_name)?;
        if node_name.is_some() && new_name.is_none() {
            return Err("New overlay node-name missing".into());
        }
        if let Some(name) = &new_name
            && self.block.find_node(name).is_some()
        {
            return Err("New overlay node-name already in use".into());
        }
        self.block.check_op_blocker(&node)?;
        self.block.check_not_backing(&node)?;
        if format != "qcow2" {
            return Err(format!("not modelled: an overlay of format '{format}'; there is qcow2").into());
        }
        if !existing {
            let backing = (node.filename.borrow().to_string(), node.driver_name().unwrap_or("raw").to_owned());
            let options = Qcow2CreateOptions {
                size: node.length.get(),
                backing_file: Some(backing.0),
                backing_format: Some(backing.1),
                ..Qcow2CreateOptions::default()
            };
            let (block, name) = (self.block.clone(), file.clone());
            let made = async move { crate::job::create_image(&block, &name, true, &options).await };
            self.block.sim.run_coroutine("create image", made).await?;
        }
        let mut options = self.block.options_for(&file, Some("qcow2"))?;
        options.node_name = new_name;
        if let DriverOptions::Qcow2 { backing, .. } = &mut options.driver {
            *backing = BackingRef::None;
        }
        let overlay = self.block.open(&options).await?;
        self.block.drained_begin(node.id).await;
        let result = self.block.append(&node, &overlay).await;
        self.block.drained_end(node.id);
        overlay.monitor_owned.set(true);
        if result.is_err() {
            self.block.unref(overlay.id).await;
        }
        result?;
        Ok(json!({}))
    }
}
