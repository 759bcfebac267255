//! Persistent bitmaps: storing them when an image is closed or becomes read-only, removing them.
//!
//! New data, tables and a new directory are written before the header refers to them; old ones
//! are freed after. A failure leaves the image with its old, in-use bitmaps. QEMU's source:
//! `qcow2_store_persistent_dirty_bitmaps` in `block/qcow2-bitmap.c`.

use std::rc::Rc;

use crate::bitmap::{BitmapId, DirtyBitmap};
use crate::block::{Block, Node, ReqFlags};
use crate::store::Content;

use super::Qcow2;
use super::bitmap_format::{
    AUTO, GRANULARITY_BITS, IN_USE, MAX_DATA_BYTES, MAX_NAME_BYTES, MAX_TABLE_ENTRIES, StoredBitmap, TABLE_OFFSET_MASK,
    TablePlace, data_bytes_needed, table_entries_needed,
};
use super::extensions::{MAX_BITMAPS, MAX_DIRECTORY_BYTES};
use super::refcount::DiscardType;
use super::table::{entry_bytes, prefix_content};

/// A directory entry, and the bitmap in memory that belongs to it.
struct Slot {
    stored: StoredBitmap,
    bitmap: Option<BitmapId>,
    /// It gets new data: the bitmap can be written and is consistent.
    rewritten: bool,
}

/// What a store will do.
struct Plan {
    slots: Vec<Slot>,
    /// Tables that nobody refers to once the new directory is there.
    obsolete: Vec<TablePlace>,
}

impl Qcow2 {
    /// Stores all persistent bitmaps that can be stored; with `release` they leave the node then.
    pub async fn store_bitmaps(self: &Rc<Self>, block: &Rc<Block>, release: bool) -> Result<(), String> {
        let mut plan = self.plan_store(block).await?;
        if plan.slots.iter().any(|slot| slot.rewritten) {
            if self.read_only.get() {
                return Err("No write access".to_owned());
            }
            if let Err(reason) = self.write_bitmaps(block, &mut plan).await {
                for slot in plan.slots.iter().filter(|slot| slot.rewritten && slot.stored.table.offset != 0) {
                    self.free_bitmap(block, slot.stored.table).await;
                }
                return Err(reason);
            }
            for table in plan.obsolete {
                self.free_bitmap(block, table).await;
            }
        }
        if release {
            let node = block.node(self.node);
            let mut list = node.bitmaps.borrow_mut();
            for id in plan.slots.iter().filter_map(|slot| slot.bitmap) {
                list.release(id);
            }
        }
        Ok(())
    }

    /// Brings the directory in the file and the bitmaps in memory together.
    async fn plan_store(&self, block: &Rc<Block>) -> Result<Plan, String> {
        let stored = self.read_directory(block).await?;
        let slots = stored.into_iter().map(|stored| Slot { stored, bitmap: None, rewritten: false });
        let mut plan = Plan { slots: slots.collect(), obsolete: Vec::new() };
        let node = block.node(self.node);
        let list = node.bitmaps.borrow();
        for (id, bitmap) in list.iter().filter(|(_, bitmap)| is_stored(bitmap) && !bitmap.inconsistent) {
            let Some(name) = bitmap.name.as_deref() else { continue };
            let known = plan.slots.iter_mut().find(|slot| slot.stored.name == name);
            if bitmap.readonly {
                if let Some(slot) = known {
                    slot.bitmap = Some(id);
                }
                continue;
            }
            self.check_constraints(node.length.get(), name, bitmap.granularity())
                .map_err(|reason| format!("Bitmap '{name}' doesn't satisfy the constraints: {reason}"))?;
            let slot = match known {
                Some(slot) => {
                    if slot.stored.flags & IN_USE == 0 {
                        return Err(format!("Bitmap '{name}' already exists in the image"));
                    }
                    plan.obsolete.push(std::mem::take(&mut slot.stored.table));
                    slot
                }
                None => plan.append(name)?,
            };
            slot.stored.flags = if bitmap.enabled() { AUTO } else { 0 };
            slot.stored.granularity_bits = bitmap.granularity().trailing_zeros();
            (slot.bitmap, slot.rewritten) = (Some(id), true);
        }
        Ok(plan)
    }

    async fn write_bitmaps(&self, block: &Rc<Block>, plan: &mut Plan) -> Result<(), String> {
        for slot in plan.slots.iter_mut().filter(|slot| slot.rewritten) {
            if let Some(id) = slot.bitmap {
                slot.stored.table = self.write_bitmap(block, id, &slot.stored.name).await?;
            }
        }
        let directory: Vec<StoredBitmap> = plan.slots.iter().map(|slot| slot.stored.clone()).collect();
        let replaced = self.replace_directory(block, &directory).await;
        replaced.map_err(|error| format!("Failed to update bitmap extension: {error}"))
    }

    /// Writes a bitmap's data and table to new clusters.
    async fn write_bitmap(&self, block: &Rc<Block>, id: BitmapId, name: &str) -> Result<TablePlace, String> {
        let mut table = Vec::new();
        let result = self.write_bitmap_clusters(block, id, name, &mut table).await;
        if result.is_err() {
            self.free_bitmap_data(block, &table).await;
        }
        result
    }

    async fn write_bitmap_clusters(
        &self,
        block: &Rc<Block>,
        id: BitmapId,
        name: &str,
        table: &mut Vec<u64>,
    ) -> Result<TablePlace, String> {
        let cluster = self.geo.cluster_size();
        let node = block.node(self.node);
        let entries = {
            let list = node.bitmaps.borrow();
            let bitmap = list.get(id).ok_or_else(|| format!("Dirty bitmap '{name}' not found"))?;
            table_entries_needed(self.geo, bitmap.size(), bitmap.granularity())
        };
        if entries > MAX_TABLE_ENTRIES || entries * cluster > MAX_DATA_BYTES {
            return Err(format!("Bitmap '{name}' is too big"));
        }
        if entries == 0 {
            // QEMU takes the table of no bytes that it gets for a failed allocation.
            return Err("No memory".to_owned());
        }
        table.resize(entries as usize, 0);
        for index in 0..entries {
            let bytes = {
                let list = node.bitmaps.borrow();
                let set = list.get(id).filter(|bitmap| bitmap.any_serialized(index * cluster, cluster));
                match set {
                    Some(bitmap) => bitmap.serialize(index * cluster, cluster),
                    None => continue,
                }
            };
            let place = self.alloc_for_bitmap(block, name, cluster).await?;
            table[index as usize] = place;
            self.write_for_bitmap(block, name, place, prefix_content(bytes, cluster)).await?;
        }
        let table_bytes = entries * 8;
        let place = self.alloc_for_bitmap(block, name, table_bytes).await?;
        let written = self.write_for_bitmap(block, name, place, prefix_content(entry_bytes(table), table_bytes)).await;
        if let Err(reason) = written {
            // The header's own cluster, where a damaged refcount gave it away, is not given back.
            if place > 0 {
                self.free_clusters(block, place, table_bytes, DiscardType::Other).await;
            }
            return Err(reason);
        }
        Ok(TablePlace { offset: place, entries: entries as u32 })
    }

    async fn alloc_for_bitmap(&self, block: &Rc<Block>, name: &str, bytes: u64) -> Result<u64, String> {
        let place = self.alloc_clusters(block, bytes).await;
        place.map_err(|error| format!("Failed to allocate clusters for bitmap '{name}': {error}"))
    }

    async fn write_for_bitmap(&self, block: &Rc<Block>, name: &str, at: u64, content: Content) -> Result<(), String> {
        let checked = self.check_overlap(block, None, at, content.len()).await;
        checked.map_err(|error| format!("Qcow2 overlap check failed: {error}"))?;
        let written = block.co_pwrite(self.file(), at, content, ReqFlags::NONE).await;
        written.map_err(|error| format!("Failed to write bitmap '{name}' to file: {error}"))
    }

    /// Frees a stored bitmap's data and table; if the table cannot be read, they leak.
    async fn free_bitmap(&self, block: &Rc<Block>, place: TablePlace) {
        let Ok(table) = self.read_bitmap_table(block, place).await else { return };
        self.free_bitmap_data(block, &table).await;
        self.free_clusters(block, place.offset, place.bytes(), DiscardType::Other).await;
    }

    async fn free_bitmap_data(&self, block: &Rc<Block>, table: &[u64]) {
        for entry in table {
            let place = entry & TABLE_OFFSET_MASK;
            if place != 0 {
                self.free_clusters(block, place, self.geo.cluster_size(), DiscardType::Always).await;
            }
        }
    }

    /// Whether a persistent bitmap of this name and granularity (bytes) could be stored. The error
    /// is QEMU's text (`qcow2_co_can_store_new_dirty_bitmap` in `block/qcow2-bitmap.c`).
    pub async fn can_store_new_bitmap(
        self: &Rc<Self>,
        block: &Rc<Block>,
        name: &str,
        granularity: u64,
    ) -> Result<(), String> {
        let node = block.node(self.node);
        if node.bitmaps.borrow().find(name).is_some() {
            return Err(format!("Bitmap already exists: {name}"));
        }
        let shown = block.device_or_node_name(&node);
        self.check_new_bitmap(&node, name, granularity)
            .map_err(|reason| format!("Can't make bitmap '{name}' persistent in '{shown}': {reason}"))
    }

    fn check_new_bitmap(&self, node: &Node, name: &str, granularity: u64) -> Result<(), String> {
        if self.geo.version < 3 {
            return Err("Cannot store dirty bitmaps in qcow2 v2 files".to_owned());
        }
        self.check_constraints(node.length.get(), name, granularity)?;
        let list = node.bitmaps.borrow();
        let names = || list.iter().filter(|(_, bitmap)| is_stored(bitmap)).filter_map(|(_, b)| b.name.as_deref());
        if names().count() + 1 > MAX_BITMAPS as usize {
            return Err("Maximum number of persistent bitmaps is already reached".to_owned());
        }
        let directory: u64 = names().chain([name]).map(StoredBitmap::entry_bytes).sum();
        if directory > MAX_DIRECTORY_BYTES {
            return Err("Not enough space in the bitmap directory".to_owned());
        }
        Ok(())
    }

    fn check_constraints(&self, size: u64, name: &str, granularity: u64) -> Result<(), String> {
        let bits = granularity.trailing_zeros();
        if bits > *GRANULARITY_BITS.end() {
            return Err(format!("Granularity exceeds maximum ({} bytes)", 1u64 << GRANULARITY_BITS.end()));
        }
        if bits < *GRANULARITY_BITS.start() {
            return Err(format!("Granularity is under minimum ({} bytes)", 1u64 << GRANULARITY_BITS.start()));
        }
        let bytes = data_bytes_needed(size, granularity);
        if bytes > MAX_DATA_BYTES || bytes > MAX_TABLE_ENTRIES << self.geo.cluster_bits {
            return Err("Too much space will be occupied by the bitmap. Use larger granularity".to_owned());
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("Name length exceeds maximum ({MAX_NAME_BYTES} characters)"));
        }
        Ok(())
    }

    /// Removes a bitmap from the image, where it need not be. The bitmap in memory stays.
    pub async fn remove_persistent_bitmap(self: &Rc<Self>, block: &Rc<Block>, name: &str) -> Result<(), String> {
        if self.extras.borrow().bitmaps.count == 0 {
            return Ok(());
        }
        let _locked = self.lock(block).await;
        let mut stored = self.read_directory(block).await?;
        let Some(index) = stored.iter().position(|bitmap| bitmap.name == name) else { return Ok(()) };
        let removed = stored.remove(index);
        let replaced = self.replace_directory(block, &stored).await;
        replaced.map_err(|error| format!("Failed to update bitmap extension: {error}"))?;
        self.free_bitmap(block, removed.table).await;
        Ok(())
    }
}

impl Plan {
    /// A new entry at the end of the directory.
    fn append(&mut self, name: &str) -> Result<&mut Slot, String> {
        if self.slots.len() + 1 > MAX_BITMAPS as usize {
            return Err("Too many persistent bitmaps".to_owned());
        }
        let names = self.slots.iter().map(|slot| slot.stored.name.as_str());
        let directory: u64 = names.chain([name]).map(StoredBitmap::entry_bytes).sum();
        if directory > MAX_DIRECTORY_BYTES {
            return Err("Bitmap directory is too large".to_owned());
        }
        let stored =
            StoredBitmap { table: TablePlace::default(), flags: 0, granularity_bits: 0, name: name.to_owned() };
        self.slots.push(Slot { stored, bitmap: None, rewritten: false });
        let last = self.slots.len() - 1;
        Ok(&mut self.slots[last])
    }
}

/// Whether a bitmap is to be found in the image after the node is closed.
pub(super) fn is_stored(bitmap: &DirtyBitmap) -> bool {
    bitmap.persistent && !bitmap.skip_store
}
