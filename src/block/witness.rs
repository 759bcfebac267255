//! What the block layer tells about guests, snapshots and bitmaps, for whoever checks a run.
//!
//! Everything here only builds trace events, and only when somebody reads them. Nothing may change state.

use std::rc::Rc;

use crate::bitmap::{BitmapId, DirtyBitmap};
use crate::errno::Res;
use crate::sim::trace::TOOL;
use crate::sim::{BitmapDump, DiskPlace, Layer, Runs, TraceEvent};
use crate::store::{Content, Host};

use super::backend::Backend;
use super::flags::ReqFlags;
use super::graph::Block;
use super::node::{Driver, Edge, Node, NodeId, Parent};

impl Block {
    /// A guest's request begins at `node`, the root of its backend; returns the request's number.
    pub(super) fn witness_begin(
        &self,
        (backend, node): (&Backend, &Node),
        operation: &'static str,
        offset: u64,
        bytes: u64,
        content: Option<&Content>,
        flags: ReqFlags,
    ) -> u64 {
        let trace = self.sim.trace();
        if !trace.is_read() {
            return 0;
        }
        let id = trace.request_id();
        let root = self.node(self.skip_filters(node.id));
        self.sim.emit(|| TraceEvent::GuestBegin {
            id,
            guest: backend.guest.clone(),
            disk: root.name.clone(),
            place: self.place_of(root.id),
            operation,
            offset,
            bytes,
            content: content.map_or_else(Runs::new, Content::fills),
            durable: flags.contains(ReqFlags::FUA),
            compressed: flags.contains(ReqFlags::COMPRESSED),
        });
        id
    }

    /// Whether what is written to a node can be read back.
    pub fn keeps_data(&self, id: NodeId) -> bool {
        let node = self.node(id);
        match node.primary_child() {
            Some(child) => self.keeps_data(child),
            None => !matches!(&*node.driver.borrow(), Driver::Null(_)),
        }
    }

    /// An edge leads elsewhere: guests above it, and above filters above it, have another disk.
    pub(super) fn witness_move(&self, edge: &Edge) {
        match &edge.parent {
            Parent::Backend(backend) => {
                let Some((guest, root)) = backend.guest.as_ref().zip(backend.node_id()) else { return };
                self.sim.emit(|| TraceEvent::GuestMoved {
                    guest: guest.clone(),
                    disk: self.node(self.skip_filters(root)).name.clone(),
                    place: self.place_of(root),
                });
            }
            Parent::Node(id) => {
                let node = self.node(*id);
                if node.filtered_child().is_some() {
                    node.parents.borrow().iter().for_each(|above| self.witness_move(above));
                }
            }
            Parent::Job(_) => {}
        }
    }

    /// An overlay that is being taken away again shows nothing of what was below it any more, though its users are still
    /// there; or they are not.
    pub(super) fn witness_take_back(&self, overlay: &Node, begins: bool) {
        self.sim.emit(|| TraceEvent::TakenBack { overlay: overlay.name.clone(), begins });
    }

    /// Where the bytes of the disk below the filters of a node lie.
    pub fn place_of(&self, id: NodeId) -> DiskPlace {
        let root = self.node(self.skip_filters(id));
        let file = self.host_file(root.id);
        let (is_image, is_part) = (root.qcow2().is_some(), self.is_part(&root));
        let mut place = DiskPlace { file, is_image, is_part, below: Vec::new() };
        let mut above = root;
        while let Some(image) = self.image_within(&above) {
            let Some(backing) = image.backing() else { break };
            let layer = self.node(self.skip_filters(backing));
            // What shows an image in a way of its own, a part of it perhaps, is not that image.
            let is_plain = image.id == above.id && self.image_within(&layer).is_none_or(|image| image.id == layer.id);
            let file = is_plain.then(|| self.host_file(layer.id)).flatten();
            let (node, is_image, length) = (layer.name.clone(), layer.qcow2().is_some(), layer.length.get());
            place.below.push(Layer { node, file, is_image, length });
            above = layer;
        }
        place
    }

    /// Whether a node shows a part only of what is below it.
    fn is_part(&self, node: &Node) -> bool {
        let is_window = matches!(&*node.driver.borrow(), Driver::Raw(raw) if raw.is_window());
        let below = || node.primary_child().and_then(|child| self.try_node(child));
        is_window || (node.qcow2().is_none() && below().is_some_and(|below| self.is_part(&below)))
    }

    /// The image that a node is or shows.
    fn image_within(&self, node: &Rc<Node>) -> Option<Rc<Node>> {
        match node.qcow2() {
            Some(_) => Some(node.clone()),
            None => self.image_within(&self.try_node(node.primary_child()?)?),
        }
    }

    /// The host's file that a node's own data lie in.
    pub fn host_file(&self, id: NodeId) -> Option<Rc<str>> {
        let node = self.try_node(id)?;
        if let Driver::File(file) = &*node.driver.borrow() {
            return Some(Host::plain_name(&file.filename).into());
        }
        node.primary_child().and_then(|child| self.host_file(child))
    }

    /// A guest's request is answered.
    pub(super) fn witness_end<T>(&self, id: u64, result: &Res<T>, content: impl FnOnce(&T) -> Runs) {
        self.sim.emit(|| match result {
            Ok(value) => TraceEvent::GuestEnd { id, error: 0, content: content(value) },
            Err(error) => TraceEvent::GuestEnd { id, error: error.0, content: Runs::new() },
        });
    }

    /// Bits of the bitmap that says what is still to be copied changed.
    pub(super) fn witness_copy_bits(&self, node: NodeId, offset: u64, bytes: u64, set: bool) {
        self.sim.emit_detail(|| TraceEvent::Bits {
            node: self.node(self.skip_filters(node)).name.clone(),
            bitmap: "copy bitmap".into(),
            offset,
            bytes,
            set,
        });
    }

    /// A write of `node` is about to be noted by every enabled bitmap; a successor counts for its bitmap.
    pub(super) fn witness_dirty(&self, node: &Node, offset: u64, bytes: u64) {
        if !self.sim.trace().is_detailed() {
            return;
        }
        let list = node.bitmaps.borrow();
        for (id, bitmap) in list.iter() {
            let Some(name) = bitmap.name.clone().filter(|_| list.recording(id)) else { continue };
            let node = node.name.clone();
            self.sim.emit(|| TraceEvent::Bits { node, bitmap: name, offset, bytes, set: true });
        }
    }

    /// A copy-before-write filter begins to keep the disk below it as it is now.
    pub(super) fn witness_snapshot(&self, filter: NodeId, source: NodeId, target: NodeId, whole: bool) {
        self.sim.emit(|| TraceEvent::SnapshotOpened {
            filter: self.node(filter).name.clone(),
            source: self.node(self.skip_filters(source)).name.clone(),
            place: self.place_of(source),
            target: self.place_of(target),
            whole,
            kept: self.keeps_data(source) && self.keeps_data(target),
        });
    }

    /// How the trace calls a node. Those of qemu-img may have the names of the machine's; a file is called by its own.
    pub(super) fn told_name(&self, node: &Node) -> Rc<str> {
        if self.program != "qemu-img" {
            return node.name.clone();
        }
        let file = match &*node.driver.borrow() {
            Driver::File(file) => Some(file.filename.clone()),
            _ => None,
        };
        let name = file.as_deref().map_or(&*node.name, Host::plain_name);
        format!("{TOOL}{name}").into()
    }

    /// What lies below a node is an empty image now.
    pub fn witness_format(&self, node: NodeId) {
        self.sim.emit(|| TraceEvent::FileFormatted { file: self.host_file(node).unwrap_or_default() });
    }

    /// A file of the host has another length now.
    pub(super) fn witness_file_length(&self, filename: &str, size: u64) {
        let outside = self.program == "qemu-img";
        self.sim.emit(|| TraceEvent::FileResized { file: Host::plain_name(filename).into(), size, outside });
    }

    /// A drained section of a node, or of all, has begun or is about to end.
    pub(super) fn witness_drain(&self, node: Option<NodeId>, begins: bool) {
        let name = |id: NodeId| self.try_node(id).map(|node| self.told_name(&node)).unwrap_or_default();
        self.sim.emit(|| TraceEvent::Drained { node: node.map(name), begins });
    }

    /// A bitmap of a node, with what its successor has recorded.
    pub fn dump_bitmap(&self, node: NodeId, id: BitmapId) -> Option<BitmapDump> {
        let node = self.try_node(node)?;
        let list = node.bitmaps.borrow();
        let bitmap = list.get(id)?;
        let name = bitmap.name.clone()?;
        let successor = bitmap.successor().and_then(|id| list.get(id));
        let mut dirty: Vec<(u64, u64)> = bitmap.dirty_areas().collect();
        dirty.extend(successor.into_iter().flat_map(DirtyBitmap::dirty_areas));
        Some(BitmapDump {
            node: node.name.clone(),
            name,
            granularity: bitmap.granularity(),
            recording: list.recording(id),
            busy: bitmap.busy,
            inconsistent: bitmap.inconsistent,
            persistent: bitmap.persistent && !bitmap.skip_store,
            readonly: bitmap.readonly,
            size: bitmap.size(),
            dirty,
        })
    }

    /// All named bitmaps of all nodes.
    pub fn dump_bitmaps(&self) -> Vec<BitmapDump> {
        let nodes = self.live_nodes();
        let ids = |node: &Rc<Node>| {
            let list = node.bitmaps.borrow();
            list.iter().map(|(id, _)| (node.id, id)).collect::<Vec<_>>()
        };
        nodes.iter().flat_map(ids).filter_map(|(node, id)| self.dump_bitmap(node, id)).collect()
    }
}
