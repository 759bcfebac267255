//! Exports: the NBD server's commands, answered without a network.
//!
//! An export is a backend on its node and keeps its bitmaps busy; nobody can connect. QEMU's sources:
//! `blockdev-nbd.c`, `block/export/export.c`, `nbd/server.c`.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::bitmap::{Allow, BitmapId};
use crate::block::{Backend, Node, NodeId, Perm, is_well_formed_id};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

/// All exports, newest first, and whether the server runs.
#[derive(Default)]
pub(crate) struct Exports {
    server: bool,
    exports: Vec<Export>,
}

struct Export {
    id: String,
    name: String,
    backend: Rc<Backend>,
    bitmaps: Vec<(NodeId, BitmapId)>,
}

/// What an export is to be.
struct NewExport {
    id: String,
    node: String,
    /// The node may be given by its device's name (nbd-server-add).
    by_device: bool,
    name: Option<String>,
    writable: bool,
    bitmaps: Vec<(Option<String>, String)>,
}

impl Machine {
    /// nbd-server-start, -stop, and the older nbd-server-add, -remove (`blockdev-nbd.c`); block-export-add, -del
    /// (`block/export/export.c`).
    pub(in crate::qmp) async fn export_command(
        self: &Rc<Self>,
        command: &str,
        arguments: &Map<String, Value>,
    ) -> QmpResult {
        let args = Args::new(arguments);
        match command {
            "nbd-server-start" => self.start_server(&args),
            "nbd-server-stop" => {
                args.finish()?;
                if !self.exports.borrow().server {
                    return Err("NBD server not running".into());
                }
                self.drop_all_exports().await;
                Ok(json!({}))
            }
            "block-export-add" => {
                let new = self.parse_export(&args)?;
                self.add_export(new).await
            }
            "nbd-server-add" => {
                let name = args.opt_str("name")?;
                args.opt_str("description")?;
                let device = args.str("device")?.to_owned();
                let name = name.unwrap_or(&device).to_owned();
                let writable = args.opt_bool("writable")?.unwrap_or(false);
                let bitmap = args.opt_str("bitmap")?.map(|bitmap| (None, bitmap.to_owned()));
                args.finish()?;
                let bitmaps = bitmap.into_iter().collect();
                let (id, by_device) = (name.clone(), true);
                self.add_export(NewExport { id, node: device, by_device, name: Some(name), writable, bitmaps }).await
            }
            _ => {
                let id = args.str(if command == "nbd-server-remove" { "name" } else { "id" })?;
                args.opt_enum("mode", &[("safe", ()), ("hard", ())])?;
                args.finish()?;
                let index = self.exports.borrow().exports.iter().position(|export| export.id == id);
                let index = index.ok_or_else(|| QmpError::from(format!("Export '{id}' is not found")))?;
                self.drop_export(index).await;
                Ok(json!({}))
            }
        }
    }

    fn start_server(&self, args: &Args<'_>) -> QmpResult {
        let address = args.object("addr")?;
        let kinds = ["inet", "unix", "vsock", "fd"].map(|kind| (kind, kind));
        let kind = address.enumeration("type", &kinds)?;
        read_address(&address.object("data")?, kind)?;
        address.finish()?;
        if self.block.quirks.since_9 {
            args.opt_u32("handshake-max-seconds")?;
        }
        args.opt_str("tls-creds")?;
        args.opt_str("tls-authz")?;
        args.opt_u32("max-connections")?;
        args.finish()?;
        if self.exports.borrow().server {
            return Err("NBD server already running".into());
        }
        self.exports.borrow_mut().server = true;
        Ok(json!({}))
    }

    fn parse_export(&self, args: &Args<'_>) -> Result<NewExport, QmpError> {
        let kinds = ["nbd", "vhost-user-blk", "fuse", "vduse-blk"].map(|kind| (kind, kind));
        let kind = args.enumeration("type", &kinds)?;
        let id = args.str("id")?.to_owned();
        args.opt_bool("fixed-iothread")?;
        args.opt_str("iothread")?;
        let node = args.str("node-name")?.to_owned();
        let writable = args.opt_bool("writable")?.unwrap_or(false);
        args.opt_bool("writethrough")?;
        if self.block.quirks.since_9 {
            args.opt_bool("allow-inactive")?;
        }
        if kind != "nbd" {
            return Err(format!("not modelled: export type '{kind}'; there is nbd").into());
        }
        let name = args.opt_str("name")?.map(str::to_owned);
        args.opt_str("description")?;
        let mut bitmaps = Vec::new();
        for (item, element) in args.opt_list("bitmaps")?.unwrap_or_default() {
            match item {
                Value::String(name) => bitmaps.push((None, name.clone())),
                _ => {
                    let external = Args::element(item, &element)?;
                    bitmaps.push((Some(external.str("node")?.to_owned()), external.str("name")?.to_owned()));
                    external.finish()?;
                }
            }
        }
        args.opt_bool("allocation-depth")?;
        args.finish()?;
        Ok(NewExport { id, node, by_device: false, name, writable, bitmaps })
    }

    async fn add_export(&self, new: NewExport) -> QmpResult {
        if !is_well_formed_id(&new.id) {
            return Err("Invalid block export id".into());
        }
        if self.exports.borrow().exports.iter().any(|export| export.id == new.id) {
            return Err(format!("Block export id '{}' is already in use", new.id).into());
        }
        let device = new.by_device.then_some(new.node.as_str());
        let node = self.block.lookup(device, Some(&new.node))?;
        if new.writable && node.is_read_only() {
            return Err("Cannot export read-only node as writable".into());
        }
        let write = if new.writable { Perm::WRITE } else { Perm::NONE };
        let backend = self.block.insert_backend(&node, Perm::CONSISTENT_READ | write, Perm::ALL).await?;
        let name = new.name.clone().unwrap_or_else(|| new.node.clone());
        match self.take_bitmaps(&node, &backend, &name, &new) {
            Ok(bitmaps) => {
                let export = Export { id: new.id, name, backend, bitmaps };
                self.exports.borrow_mut().exports.insert(0, export);
                Ok(json!({}))
            }
            Err(error) => {
                self.block.delete_backend(&backend).await;
                Err(error)
            }
        }
    }

    /// The checks of `nbd_export_create`; the bitmaps are busy from then on.
    fn take_bitmaps(
        &self,
        node: &Rc<Node>,
        backend: &Backend,
        name: &str,
        new: &NewExport,
    ) -> Result<Vec<(NodeId, BitmapId)>, QmpError> {
        if !self.exports.borrow().server {
            return Err("NBD server not running".into());
        }
        if name.len() > 4096 {
            return Err(format!("export name '{name}' too long").into());
        }
        if self.exports.borrow().exports.iter().any(|export| export.name == name) {
            return Err(format!("NBD server already has export named '{name}'").into());
        }
        // What clients see has one length.
        self.block.backend_withhold(backend, Perm::RESIZE)?;
        let mut taken = Vec::new();
        for (owner, bitmap) in &new.bitmaps {
            let by_name_alone = owner.is_none();
            let found = match owner {
                Some(owner) => self.block.find_bitmap(owner, bitmap)?,
                None => self
                    .bitmap_in_chain(node.id, bitmap)
                    .ok_or_else(|| QmpError::from(format!("Bitmap '{bitmap}' is not found")))?,
            };
            let owner = self.block.node(found.0);
            let list = owner.bitmaps.borrow();
            let Some(state) = list.get(found.1) else { continue };
            if !taken.contains(&found) {
                state.check(Allow::READONLY).map_err(|fault| fault.to_string())?;
            }
            let writable_node = !node.is_read_only();
            if by_name_alone && !new.writable && writable_node && state.enabled() {
                return Err(format!("Enabled bitmap '{bitmap}' incompatible with readonly export").into());
            }
            taken.push(found);
        }
        self.set_busy(&taken, true);
        Ok(taken)
    }

    fn bitmap_in_chain(&self, top: NodeId, name: &str) -> Option<(NodeId, BitmapId)> {
        let mut layer = Some(top);
        while let Some(id) = layer {
            let node = self.block.node(id);
            if let Some(bitmap) = node.bitmaps.borrow().find(name) {
                return Some((id, bitmap));
            }
            layer = node.filtered_child().or_else(|| node.backing());
        }
        None
    }

    fn set_busy(&self, bitmaps: &[(NodeId, BitmapId)], busy: bool) {
        for (node, id) in bitmaps {
            let Some(node) = self.block.try_node(*node) else { continue };
            if let Some(bitmap) = node.bitmaps.borrow_mut().get_mut(*id) {
                bitmap.busy = busy;
            }
        }
    }

    async fn drop_export(&self, index: usize) {
        let export = self.exports.borrow_mut().exports.remove(index);
        self.set_busy(&export.bitmaps, false);
        self.block.delete_backend(&export.backend).await;
        self.send_event("BLOCK_EXPORT_DELETED", json!({ "id": export.id }));
    }

    /// Stops the server, if it runs, and drops every export (`nbd_server_free` in `blockdev-nbd.c`).
    pub(in crate::qmp) async fn drop_all_exports(&self) {
        self.exports.borrow_mut().server = false;
        while !self.exports.borrow().exports.is_empty() {
            self.drop_export(0).await;
        }
    }

    /// query-block-exports (`block/export/export.c`).
    pub(in crate::qmp) fn query_block_exports(&self) -> QmpResult {
        let exports = self.exports.borrow();
        let info = |export: &Export| {
            // A snapshot or a filter may have moved the export to another node.
            let node = export.backend.node(&self.block).map(|node| node.name.to_string()).unwrap_or_default();
            json!({"node-name": node, "shutting-down": false, "type": "nbd", "id": export.id})
        };
        Ok(exports.exports.iter().map(info).collect())
    }
}

/// Reads a `SocketAddress` of which nothing is done (`qapi/sockets.json`).
fn read_address(data: &Args<'_>, kind: &str) -> Result<(), QmpError> {
    match kind {
        "inet" => {
            data.str("host")?;
            data.str("port")?;
            for option in ["numeric", "ipv4", "ipv6", "keep-alive", "mptcp"] {
                data.opt_bool(option)?;
            }
            data.opt_u16("to")?;
        }
        "unix" => {
            data.str("path")?;
            data.opt_bool("abstract")?;
            data.opt_bool("tight")?;
        }
        "vsock" => {
            data.str("cid")?;
            data.str("port")?;
        }
        _ => {
            data.str("str")?;
        }
    }
    data.finish()
}
