//! The block-dirty-bitmap commands (`block/monitor/bitmap-qmp-cmds.c`).
//!
//! Each is split into its checks and its effect, because transactions need them apart; the order of the
//! checks decides which error a user sees.

use std::rc::Rc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::bitmap::hbitmap::Bits;
use crate::bitmap::{Allow, BitmapId, MIN_GRANULARITY, default_granularity};
use crate::block::{Driver, Node};
use crate::errno::Errno;
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

/// Arguments of block-dirty-bitmap-add.
#[derive(Clone, Debug)]
pub(super) struct BitmapAdd {
    node: String,
    name: String,
    granularity: Option<u64>,
    persistent: bool,
    disabled: bool,
}

impl BitmapAdd {
    /// The new bitmap's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn parse(args: &Args<'_>) -> Result<BitmapAdd, QmpError> {
        let add = BitmapAdd {
            node: args.str("node")?.to_owned(),
            name: args.str("name")?.to_owned(),
            granularity: args.opt_u32("granularity")?.map(u64::from),
            persistent: args.opt_bool("persistent")?.unwrap_or(false),
            disabled: args.opt_bool("disabled")?.unwrap_or(false),
        };
        args.finish()?;
        Ok(add)
    }
}

/// `node` and `name` of a command.
#[derive(Clone, Debug)]
pub(super) struct BitmapName {
    pub(super) node: String,
    pub(super) name: String,
}

impl BitmapName {
    pub(super) fn parse(args: &Args<'_>) -> Result<BitmapName, QmpError> {
        let name = BitmapName { node: args.str("node")?.to_owned(), name: args.str("name")?.to_owned() };
        args.finish()?;
        Ok(name)
    }
}

/// With no bitmap to merge QEMU looks at nothing but the target's name, and frees a copy that it has not made when it commits.
pub(super) const MERGE_OF_NOTHING: &str = "not modelled: a merge of no bitmaps, which crashes QEMU";

/// Arguments of block-dirty-bitmap-merge; a source without a node is on the target's.
#[derive(Clone, Debug)]
pub(super) struct BitmapMerge {
    node: String,
    target: String,
    sources: Vec<(Option<String>, String)>,
}

impl BitmapMerge {
    /// Whether there is no bitmap to merge; see [`MERGE_OF_NOTHING`].
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub(super) fn parse(args: &Args<'_>) -> Result<BitmapMerge, QmpError> {
        let (node, target) = (args.str("node")?.to_owned(), args.str("target")?.to_owned());
        let mut sources = Vec::new();
        for (item, name) in args.list("bitmaps")? {
            match item {
                Value::String(name) => sources.push((None, name.clone())),
                Value::Object(_) => {
                    let external = Args::element(item, &name)?;
                    sources.push((Some(external.str("node")?.to_owned()), external.str("name")?.to_owned()));
                    external.finish()?;
                }
                _ => return Err("Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr".into()),
            }
        }
        args.finish()?;
        Ok(BitmapMerge { node, target, sources })
    }
}

/// A bitmap and the node that it is on.
pub(super) type Found = (Rc<Node>, BitmapId);

impl Machine {
    pub(super) fn find_bitmap(&self, node: &str, name: &str) -> Result<Found, QmpError> {
        let (node, id) = self.block.find_bitmap(node, name)?;
        Ok((self.block.node(node), id))
    }

    pub(super) fn check_bitmap(&self, found: &Found, allow: Allow) -> Result<(), QmpError> {
        let list = found.0.bitmaps.borrow();
        let checked = list.get(found.1).map_or(Ok(()), |bitmap| bitmap.check(allow));
        checked.map_err(|fault| fault.to_string().into())
    }

    /// Adds a bitmap (`qmp_block_dirty_bitmap_add`).
    pub(super) async fn bitmap_add(&self, add: &BitmapAdd) -> Result<Found, QmpError> {
        if add.name.is_empty() {
            return Err("Bitmap name cannot be empty".into());
        }
        let node = self.block.lookup(Some(&add.node), Some(&add.node))?;
        let granularity = match add.granularity {
            Some(granularity) if granularity < MIN_GRANULARITY || !granularity.is_power_of_two() => {
                return Err("Granularity must be power of 2 and at least 512".into());
            }
            Some(granularity) => granularity,
            None => default_granularity(self.cluster_size_of(&node)),
        };
        if add.persistent {
            self.check_storable(&node, &add.name, granularity).await?;
        }
        let mut list = node.bitmaps.borrow_mut();
        if list.find(&add.name).is_some() {
            return Err(format!("Bitmap already exists: {}", add.name).into());
        }
        if add.name.len() > 1023 {
            return Err(format!("Bitmap name too long: {}", add.name).into());
        }
        let id =
            list.create(self.block.length(&node), granularity, Some(&add.name)).map_err(|fault| fault.to_string())?;
        if let Some(bitmap) = list.get_mut(id) {
            bitmap.disabled = add.disabled;
            bitmap.persistent = add.persistent;
        }
        drop(list);
        Ok((node, id))
    }

    /// The cluster size that the node's driver tells, bytes (`bdrv_get_info`).
    fn cluster_size_of(&self, node: &Node) -> Option<u64> {
        let below = self.block.node(self.block.skip_filters(node.id));
        below.qcow2().map(|qcow2| qcow2.cluster_size())
    }

    /// Whether the node's format can store the bitmap (`bdrv_can_store_new_dirty_bitmap`).
    async fn check_storable(&self, node: &Rc<Node>, name: &str, granularity: u64) -> Result<(), QmpError> {
        match node.qcow2() {
            Some(qcow2) => {
                let (block, owned) = (self.block.clone(), name.to_owned());
                let checked = self
                    .block
                    .sim
                    .run_coroutine("bitmap check", async move {
                        qcow2.can_store_new_bitmap(&block, &owned, granularity).await
                    })
                    .await;
                checked.map_err(QmpError::from)
            }
            None => {
                let shown = self.block.device_or_node_name(node);
                let why = if node.ejected.get() { Errno::ENOMEDIUM } else { Errno::ENOTSUP };
                Err(format!("Can't store persistent bitmaps to {shown}: {why}").into())
            }
        }
    }

    /// Checks of a removal, and for a persistent bitmap the removal from the image.
    pub(super) async fn bitmap_remove_prepare(&self, name: &BitmapName) -> Result<Found, QmpError> {
        let found = self.find_bitmap(&name.node, &name.name)?;
        self.check_bitmap(&found, Allow::INCONSISTENT)?;
        let persistent = found.0.bitmaps.borrow().get(found.1).is_some_and(|bitmap| bitmap.persistent);
        if persistent && let Some(qcow2) = found.0.qcow2() {
            let (block, owned) = (self.block.clone(), name.name.clone());
            let removed = self
                .block
                .sim
                .run_coroutine("bitmap removal", async move { qcow2.remove_persistent_bitmap(&block, &owned).await })
                .await;
            removed?;
        }
        Ok(found)
    }

    pub(super) fn bitmap_release(&self, found: &Found) {
        found.0.bitmaps.borrow_mut().release(found.1);
    }

    /// Clears; gives the old contents back for a rollback.
    pub(super) fn bitmap_clear(&self, name: &BitmapName) -> Result<(Found, Bits), QmpError> {
        let found = self.find_bitmap(&name.node, &name.name)?;
        self.check_bitmap(&found, Allow::NOTHING)?;
        let old = self.edit(&found, |bitmap| bitmap.clear_keeping());
        Ok((found, old))
    }

    /// Enables or disables; tells whether it was enabled before.
    pub(super) fn bitmap_switch(&self, name: &BitmapName, enable: bool) -> Result<(Found, bool), QmpError> {
        let found = self.find_bitmap(&name.node, &name.name)?;
        self.check_bitmap(&found, Allow::READONLY)?;
        let was_enabled = self.edit(&found, |bitmap| {
            let was = !bitmap.disabled;
            bitmap.disabled = !enable;
            was
        });
        Ok((found, was_enabled))
    }

    /// Changes a bitmap that has just been found.
    pub(super) fn edit<T>(&self, found: &Found, f: impl FnOnce(&mut crate::bitmap::DirtyBitmap) -> T) -> T {
        let mut list = found.0.bitmaps.borrow_mut();
        f(list.get_mut(found.1).expect("a bitmap that was just found is in its list"))
    }

    /// Merges; gives the target and its old contents. A failing source leaves the target as it was.
    pub(super) fn bitmap_merge(&self, merge: &BitmapMerge) -> Result<(Found, Bits), QmpError> {
        let target = self.find_bitmap(&merge.node, &merge.target)?;
        let old = self.edit(&target, |bitmap| bitmap.contents());
        for (node, name) in &merge.sources {
            let source = self.find_bitmap(node.as_deref().unwrap_or(&merge.node), name);
            let merged = source.and_then(|source| self.merge_one(&target, &source));
            if let Err(error) = merged {
                self.edit(&target, |bitmap| bitmap.restore(old));
                return Err(error);
            }
        }
        Ok((target, old))
    }

    fn merge_one(&self, target: &Found, source: &Found) -> Result<(), QmpError> {
        self.check_bitmap(target, Allow::NOTHING)?;
        self.check_bitmap(source, Allow::READONLY)?;
        let contents = source.0.bitmaps.borrow().get(source.1).cloned();
        match contents {
            Some(contents) => {
                self.edit(target, |bitmap| bitmap.merge_from(&contents)).map_err(|fault| fault.to_string().into())
            }
            None => Ok(()),
        }
    }

    /// block-dirty-bitmap-add, -remove, -clear, -enable, -disable, -merge and x-debug-block-dirty-bitmap-sha256
    /// outside a transaction (`block/monitor/bitmap-qmp-cmds.c`).
    pub(in crate::qmp) async fn bitmap_command(&self, command: &str, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        match command {
            "block-dirty-bitmap-add" => {
                self.bitmap_add(&BitmapAdd::parse(&args)?).await?;
            }
            "block-dirty-bitmap-remove" => {
                let found = self.bitmap_remove_prepare(&BitmapName::parse(&args)?).await?;
                self.bitmap_release(&found);
            }
            "block-dirty-bitmap-clear" => {
                self.bitmap_clear(&BitmapName::parse(&args)?)?;
            }
            "block-dirty-bitmap-enable" | "block-dirty-bitmap-disable" => {
                self.bitmap_switch(&BitmapName::parse(&args)?, command.ends_with("enable"))?;
            }
            "block-dirty-bitmap-merge" => {
                let merge = BitmapMerge::parse(&args)?;
                self.bitmap_merge(&merge)?;
                if merge.is_empty() {
                    return Err(MERGE_OF_NOTHING.into());
                }
            }
            _ => return self.bitmap_sha256(&BitmapName::parse(&args)?),
        }
        Ok(json!({}))
    }

    /// x-debug-block-dirty-bitmap-sha256: over the bits as little-endian words.
    fn bitmap_sha256(&self, name: &BitmapName) -> QmpResult {
        let found = self.find_bitmap(&name.node, &name.name)?;
        let bytes = self.edit(&found, |bitmap| {
            let len = bitmap.serialized_len().max(8);
            bitmap.serialize(0, len)
        });
        let digest = Sha256::digest(&bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(json!({ "sha256": hex }))
    }

    /// Whether the node's driver is there at all (it may have been ejected).
    pub(super) fn has_driver(node: &Node) -> bool {
        !matches!(&*node.driver.borrow(), Driver::None)
    }
}
