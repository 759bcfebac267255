//! blockdev-snapshot and blockdev-snapshot-sync: an overlay on top of a node, as an action of a transaction
//! (`external_snapshot_prepare` and its neighbours in `blockdev.c`).
//!
//! The overlay is in place when the action is prepared; commit makes the node below read-only, abort takes the
//! overlay away again. Nothing but the graph holds an overlay that blockdev-snapshot-sync has made.

use std::rc::Rc;

use crate::block::open::{BackingRef, DriverOptions};
use crate::block::qcow2::Qcow2CreateOptions;
use crate::block::{Edge, Node, Perm};
use crate::qmp::args::Args;
use crate::qmp::error::QmpError;
use crate::qmp::machine::Machine;

use super::backup::formatting_line;
use super::blockdev::unknown_format;

/// A snapshot as asked for.
pub(super) enum SnapshotArgs {
    /// blockdev-snapshot: an overlay node that exists already.
    Existing {
        /// The node.
        node: String,
        /// What goes on top of it.
        overlay: String,
    },
    /// blockdev-snapshot-sync: makes or opens the overlay's image.
    Image {
        /// The device.
        device: Option<String>,
        /// Or the node.
        node_name: Option<String>,
        /// The image.
        file: String,
        /// The overlay's name.
        new_name: Option<String>,
        /// Its format.
        format: String,
        /// Whether the image is there already.
        existing: bool,
    },
}

/// A prepared snapshot.
pub(super) struct SnapshotAction {
    node: Rc<Node>,
    /// Held by the action.
    overlay: Option<Rc<Node>>,
    is_appended: bool,
}

impl SnapshotArgs {
    /// Reads the arguments of either command.
    pub(super) fn parse(args: &Args<'_>, makes_image: bool) -> Result<SnapshotArgs, QmpError> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let parsed = if makes_image {
            SnapshotArgs::Image {
                device: own(args.opt_str("device")?),
                node_name: own(args.opt_str("node-name")?),
                file: args.str("snapshot-file")?.to_owned(),
                new_name: own(args.opt_str("snapshot-node-name")?),
                format: args.opt_str("format")?.unwrap_or("qcow2").to_owned(),
                existing: args.opt_enum("mode", &[("existing", true), ("absolute-paths", false)])?.unwrap_or(false),
            }
        } else {
            SnapshotArgs::Existing { node: args.str("node")?.to_owned(), overlay: args.str("overlay")?.to_owned() }
        };
        args.finish()?;
        Ok(parsed)
    }
}

impl Machine {
    /// Puts the overlay in place; what has been done so far is returned in any case.
    pub(super) async fn snapshot_prepare(
        self: &Rc<Self>,
        args: &SnapshotArgs,
    ) -> (Option<SnapshotAction>, Result<(), QmpError>) {
        let found = match args {
            SnapshotArgs::Existing { node, .. } => self.block.lookup(Some(node), Some(node)),
            SnapshotArgs::Image { device, node_name, .. } => self.block.lookup(device.as_deref(), node_name.as_deref()),
        };
        let node = match found {
            Ok(node) => node,
            Err(reason) => return (None, Err(reason.into())),
        };
        if let Err(gone) = self.block.drained_begin_unheld(node.id).await {
            return (None, Err(gone.into()));
        }
        let mut action = SnapshotAction { node, overlay: None, is_appended: false };
        let result = self.put_overlay(args, &mut action).await;
        (Some(action), result)
    }

    async fn put_overlay(self: &Rc<Self>, args: &SnapshotArgs, action: &mut SnapshotAction) -> Result<(), QmpError> {
        let node = action.node.clone();
        self.block.check_op_blocker(&node)?;
        self.block.check_not_backing(&node)?;
        if !node.is_read_only() {
            let (block, id) = (self.block.clone(), node.id);
            let flushed = self.block.sim.run_coroutine("flush", async move { block.co_flush(id).await }).await;
            flushed.map_err(|error| match self.block.quirks.since_9 {
                true => {
                    QmpError::from(format!("Write to node '{}' failed: {error}", self.block.device_or_node_name(&node)))
                }
                false => QmpError::from("An IO error has occurred"),
            })?;
        }
        let overlay = match args {
            SnapshotArgs::Existing { overlay, .. } => {
                let overlay = self.block.lookup(Some(overlay), Some(overlay))?;
                self.block.reference(&overlay);
                overlay
            }
            SnapshotArgs::Image { .. } => self.open_overlay(args, &node).await?,
        };
        action.overlay = Some(overlay.clone());
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
        self.block.append(&node, &overlay).await?;
        action.is_appended = true;
        Ok(())
    }

    /// The overlay of blockdev-snapshot-sync.
    async fn open_overlay(self: &Rc<Self>, args: &SnapshotArgs, node: &Node) -> Result<Rc<Node>, QmpError> {
        let SnapshotArgs::Image { node_name, file, new_name, format, existing, .. } = args else {
            return Err("no image to make".into());
        };
        if node_name.is_some() && new_name.is_none() {
            return Err("New overlay node-name missing".into());
        }
        if let Some(name) = new_name
            && self.block.find_node(name).is_some()
        {
            return Err("New overlay node-name already in use".into());
        }
        if !existing {
            match format.as_str() {
                "qcow2" => {}
                "raw" => return Err("Backing file not supported for file format 'raw'".into()),
                other => return Err(unknown_format(other)),
            }
            self.make_overlay(file, node).await?;
        }
        let mut options = self.block.options_for(file, Some(format))?;
        options.node_name = new_name.clone();
        if let DriverOptions::Qcow2 { backing, .. } = &mut options.driver {
            *backing = BackingRef::None;
        }
        let before = node.options.borrow().clone();
        Ok(self.block.open_in_place(&options, &before).await?)
    }

    async fn make_overlay(self: &Rc<Self>, file: &str, node: &Node) -> Result<(), QmpError> {
        let backing = (self.block.filename(node.id), node.driver_name().unwrap_or("raw").to_owned());
        self.block.print(formatting_line(file, "qcow2", self.block.length(node), Some(&backing)));
        let options = Qcow2CreateOptions {
            size: self.block.length(node),
            backing_file: Some(backing.0),
            backing_format: Some(backing.1),
            ..Qcow2CreateOptions::default()
        };
        let (block, name) = (self.block.clone(), file.to_owned());
        let made = async move { crate::job::create_image(&block, &name, true, &options).await };
        self.block.sim.run_coroutine("create image", made).await?;
        Ok(())
    }

    /// The node below is not written to any more.
    pub(super) async fn snapshot_commit(&self, action: &SnapshotAction) {
        // QEMU does not look whether this was possible.
        let _ = self.block.reopen_read_only(&action.node).await;
    }

    /// Takes the overlay away again.
    pub(super) async fn snapshot_abort(&self, action: &SnapshotAction) {
        if let Some(overlay) = action.overlay.as_ref().filter(|_| action.is_appended) {
            self.block.take_back(&action.node, overlay).await;
        }
    }

    /// Gives up what the action holds; an overlay that nobody uses is closed.
    pub(super) async fn snapshot_clean(&self, action: &SnapshotAction) {
        self.block.drained_end(action.node.id);
        if let Some(overlay) = &action.overlay {
            self.block.unref(overlay.id).await;
        }
    }
}
