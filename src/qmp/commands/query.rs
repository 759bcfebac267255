//! What nodes look like from outside: query-named-block-nodes and query-block (`block/qapi.c`).

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::qcow2::{BitmapInfo, Qcow2Info, Snapshot};
use crate::block::{DetectZeroes, Driver, Node, NodeId, Parent};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

/// What stands in the bitmap directories of images.
type Stored = BTreeMap<NodeId, Vec<BitmapInfo>>;

impl Machine {
    /// query-named-block-nodes: newest node first (`bdrv_named_nodes_list` in `block.c`, `block/qapi.c`).
    pub(in crate::qmp) async fn query_named_block_nodes(&self, args: &Args<'_>) -> QmpResult {
        let flat = args.opt_bool("flat")?.unwrap_or(false);
        args.finish()?;
        let stored = self.stored_bitmaps(&self.block.live_nodes()).await?;
        Ok(self.nodes_to_tell()?.iter().map(|node| self.node_info(node, flat, &stored)).collect())
    }

    /// The part of query-named-block-nodes that is asked for most: the bitmaps of each node that has any.
    pub async fn query_bitmaps(&self) -> Result<Map<String, Value>, QmpError> {
        let read = self.stored_bitmaps(&self.block.live_nodes()).await;
        self.send_notices();
        read?;
        let nodes = self.nodes_to_tell()?;
        let told = nodes.iter().map(|node| (node.name.to_string(), bitmaps_info(node)));
        Ok(told.filter(|(_, bitmaps)| !bitmaps.is_empty()).map(|(name, bitmaps)| (name, bitmaps.into())).collect())
    }

    /// All nodes, newest first; an error if one can't be told of.
    fn nodes_to_tell(&self) -> Result<Vec<Rc<Node>>, QmpError> {
        let nodes = self.block.live_nodes();
        match nodes.iter().find(|node| node.ejected.get()) {
            Some(ejected) => Err(format!("Block device {} is ejected", ejected.name).into()),
            None => Ok(nodes),
        }
    }

    /// query-block: the named backends with what is inserted in them (`block/qapi.c`).
    pub(in crate::qmp) async fn query_block(&self) -> QmpResult {
        let mut named = Vec::new();
        for node in self.block.live_nodes() {
            for edge in node.parents.borrow().iter() {
                let Parent::Backend(backend) = &edge.parent else { continue };
                let Some(name) = &backend.name else { continue };
                named.push((name.clone(), node.clone()));
            }
        }
        let nodes: Vec<_> = named.iter().map(|(_, node)| node.clone()).collect();
        let stored = self.stored_bitmaps(&nodes).await?;
        let mut devices = Vec::new();
        for (name, node) in named {
            let mut device = json!({"device": &*name, "locked": false, "removable": false, "type": "unknown"});
            device["inserted"] = self.node_info(&node, false, &stored);
            devices.push(device);
        }
        Ok(devices.into())
    }

    /// Reads the bitmap directories of nodes (newest first), the oldest one first; who asks is told of the first that
    /// can't be read.
    async fn stored_bitmaps(&self, nodes: &[Rc<Node>]) -> Result<Stored, QmpError> {
        let mut stored = Stored::new();
        for node in nodes.iter().rev() {
            let Some(qcow2) = node.qcow2().filter(|qcow2| qcow2.has_bitmap_directory()) else { continue };
            let block = self.block.clone();
            let infos =
                self.block.sim.run_coroutine("bitmap directory", async move { qcow2.bitmap_infos(&block).await });
            stored.insert(node.id, infos.await?);
        }
        Ok(stored)
    }

    /// `BlockDeviceInfo`.
    fn node_info(&self, node: &Node, flat: bool, stored: &Stored) -> Value {
        let options = node.options.borrow();
        let detect = match options.detect_zeroes {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        };
        let mut info = json!({
            "file": self.block.filename(node.id),
            "node-name": &*node.name,
            "ro": options.read_only,
            "drv": node.driver_name().unwrap_or(""),
            "encrypted": false,
            "detect_zeroes": detect,
            "backing_file_depth": if flat { 0 } else { self.depth_below(node) },
            "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
            "write_threshold": 0,
            "cache": {"writeback": true, "direct": options.direct, "no-flush": options.no_flush},
        });
        info["image"] = self.image_info(node, flat, stored);
        if self.block.quirks.since_9 {
            info["active"] = true.into();
        }
        if let Some(backing) = node.backing() {
            info["backing_file"] = self.block.filename(backing).into();
        }
        let bitmaps = bitmaps_info(node);
        if !bitmaps.is_empty() {
            info["dirty-bitmaps"] = bitmaps.into();
        }
        info
    }

    /// Whether the image was not closed in order so far, if the driver below all filters answers `bdrv_get_info`.
    fn dirty_flag(&self, node: &Node) -> Option<bool> {
        let below = self.block.node(self.block.skip_filters(node.id));
        match &*below.driver.borrow() {
            Driver::File(_) => Some(false),
            Driver::Qcow2(qcow2) => Some(qcow2.is_dirty()),
            Driver::Raw(_) => below.primary_child().and_then(|child| self.dirty_flag(&self.block.node(child))),
            _ => None,
        }
    }

    /// The cluster size that `bdrv_get_info` tells, bytes.
    fn cluster_size(&self, node: &Node) -> Option<u64> {
        let below = self.block.node(self.block.skip_filters(node.id));
        match &*below.driver.borrow() {
            Driver::Qcow2(qcow2) => Some(qcow2.cluster_size()),
            Driver::Raw(_) => below.primary_child().and_then(|child| self.cluster_size(&self.block.node(child))),
            _ => None,
        }
    }

    /// How many nodes lie below through filters and backing files.
    fn depth_below(&self, node: &Node) -> u64 {
        let below = node.filtered_child().or_else(|| node.backing());
        below.map_or(0, |id| 1 + self.depth_below(&self.block.node(id)))
    }

    /// `ImageInfo`, as far as a node tells it.
    fn image_info(&self, node: &Node, flat: bool, stored: &Stored) -> Value {
        let mut image = json!({
            "filename": self.block.filename(node.id),
            "format": node.driver_name().unwrap_or(""),
            "virtual-size": self.block.length(node),
        });
        if let Some(size) = self.block.allocated_size(node.id) {
            image["actual-size"] = size.into();
        }
        if let Some(dirty) = self.dirty_flag(node) {
            image["dirty-flag"] = dirty.into();
        }
        if let Some(qcow2) = node.qcow2() {
            let mut specific = json!({"type": "qcow2"});
            let info = qcow2.info();
            specific["data"] = specific_info(&info, stored.get(&node.id));
            image["format-specific"] = specific;
            if !info.snapshots.is_empty() {
                image["snapshots"] = info.snapshots.iter().map(Snapshot::info).collect();
            }
            if let Some(name) = qcow2.backing_name() {
                image["full-backing-filename"] = self.block.relative_to(node, &name).into();
                image["backing-filename"] = name.into();
                if let Some(format) = qcow2.backing_format() {
                    image["backing-filename-format"] = format.into();
                }
            }
        }
        if let Some(bytes) = self.cluster_size(node) {
            image["cluster-size"] = bytes.into();
        }
        if self.block.quirks.file_is_specific && matches!(&*node.driver.borrow(), Driver::File(_)) {
            image["format-specific"] = json!({"type": "file", "data": {}});
        }
        let backing = node.filtered_child().or_else(|| node.backing());
        let backing = backing.filter(|_| !flat).map(|id| self.block.node(id));
        if let Some(backing) = backing {
            image["backing-image"] = self.image_info(&backing, false, stored);
        }
        image
    }
}

/// `ImageInfoSpecificQCow2`.
fn specific_info(info: &Qcow2Info, stored: Option<&Vec<BitmapInfo>>) -> Value {
    let mut data = json!({
        "compat": if info.version == 2 { "0.10" } else { "1.1" },
        "compression-type": info.compression_type,
        "refcount-bits": info.refcount_bits,
    });
    if info.version > 2 {
        data["lazy-refcounts"] = info.lazy_refcounts.into();
        data["corrupt"] = info.corrupt.into();
        data["extended-l2"] = info.extended_l2.into();
        if let Some(stored) = stored.filter(|stored| !stored.is_empty()) {
            data["bitmaps"] = stored.iter().map(stored_info).collect();
        }
    }
    data
}

/// `Qcow2BitmapInfo`.
fn stored_info(bitmap: &BitmapInfo) -> Value {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    let flags: Vec<&str> = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    json!({"name": bitmap.name, "granularity": bitmap.granularity, "flags": flags})
}

/// The bitmaps of a node, newest first.
fn bitmaps_info(node: &Node) -> Vec<Value> {
    let list = node.bitmaps.borrow();
    list.iter()
        .map(|(id, bitmap)| {
            let mut info = json!({
                "count": bitmap.count_bytes(),
                "granularity": bitmap.granularity(),
                "recording": list.recording(id),
                "busy": bitmap.busy,
                "persistent": bitmap.persistent,
            });
            if let Some(name) = &bitmap.name {
                info["name"] = (&**name).into();
            }
            if bitmap.inconsistent {
                info["inconsistent"] = true.into();
            }
            info
        })
        .collect()
}
