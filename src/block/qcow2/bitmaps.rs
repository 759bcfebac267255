//! Persistent bitmaps: loading them, and the in-use flag that tells whether they can be believed.
//!
//! A writable image marks its bitmaps in use as long as it is open, so that after a crash they are
//! known to be inconsistent. The directory is changed in place only while the autoclear bit says
//! that it does not hold. QEMU's source: `block/qcow2-bitmap.c`.

use std::rc::Rc;

use crate::bitmap::Allow;
use crate::block::{Block, ReqFlags};
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::Qcow2;
use super::bitmap_format::{
    AUTO, IN_USE, StoredBitmap, TABLE_ALL_ONES, TABLE_OFFSET_MASK, TablePlace, encode_directory, is_table_entry,
    parse_directory, table_entries_needed,
};
use super::header::{AUTOCLEAR_BITMAPS, BitmapsExtension};
use super::info::BitmapInfo;
use super::open::read_bytes;
use super::overlap::Area;
use super::refcount::DiscardType;
use super::table::entries_of;

impl Qcow2 {
    /// Whether bitmaps are stored in the image.
    pub fn has_bitmap_directory(&self) -> bool {
        self.extras.borrow().bitmaps.count > 0
    }

    /// The directory as it is in the file; empty if there is none.
    pub(super) async fn read_directory(&self, block: &Rc<Block>) -> Result<Vec<StoredBitmap>, String> {
        let BitmapsExtension { count, directory_size, directory_offset } = self.extras.borrow().bitmaps;
        if count == 0 {
            return Ok(Vec::new());
        }
        if directory_size == 0 {
            return Err("Requested bitmap directory size is zero".to_owned());
        }
        let bytes = read_bytes(block, self.file(), directory_offset, directory_size).await;
        let bytes = bytes.map_err(|error| format!("Failed to read bitmap directory: {error}"))?;
        parse_directory(&bytes, self.geo, self.virtual_size(), count)
    }

    /// Reads a bitmap's table; EINVAL if an entry is not acceptable.
    pub(super) async fn read_bitmap_table(&self, block: &Rc<Block>, place: TablePlace) -> Res<Vec<u64>> {
        let entries = entries_of(&read_bytes(block, self.file(), place.offset, place.bytes()).await?);
        let sound = entries.iter().all(|entry| is_table_entry(self.geo, *entry));
        if sound { Ok(entries) } else { Err(Errno::EINVAL) }
    }

    /// Loads the image's bitmaps into the node, and marks them in use if the node can be written
    /// to. Tells whether the header was rewritten on the way.
    pub(super) async fn load_bitmaps(&self, block: &Rc<Block>) -> Result<bool, String> {
        let mut stored = self.read_directory(block).await?;
        if stored.is_empty() {
            return Ok(false);
        }
        let result = self.load_all(block, &mut stored).await;
        if result.is_err() {
            *block.node(self.node).bitmaps.borrow_mut() = Default::default();
        }
        result
    }

    async fn load_all(&self, block: &Rc<Block>, stored: &mut [StoredBitmap]) -> Result<bool, String> {
        let mut consistent = false;
        for bitmap in stored.iter_mut() {
            self.load_one(block, bitmap).await?;
            consistent |= bitmap.flags & IN_USE == 0;
            bitmap.flags |= IN_USE;
        }
        if !consistent || self.read_only.get() {
            return Ok(false);
        }
        let marked = self.rewrite_directory_in_place(block, stored).await;
        marked.map_err(|error| format!("Can't update bitmap directory: {error}"))?;
        Ok(true)
    }

    async fn load_one(&self, block: &Rc<Block>, stored: &StoredBitmap) -> Result<(), String> {
        let node = block.node(self.node);
        let name = &stored.name;
        if node.bitmaps.borrow().find(name).is_some() {
            return Err(format!("Bitmap already exists: {name}"));
        }
        let in_use = stored.flags & IN_USE != 0;
        let granularity = 1 << stored.granularity_bits;
        let created = node.bitmaps.borrow_mut().create(self.virtual_size(), granularity, Some(name));
        let id = created.map_err(|fault| fault.to_string())?;
        let data = if in_use { Vec::new() } else { self.read_bitmap_data(block, stored).await? };
        let mut list = node.bitmaps.borrow_mut();
        let Some(bitmap) = list.get_mut(id) else { return Ok(()) };
        bitmap.persistent = true;
        bitmap.inconsistent = in_use;
        bitmap.disabled = in_use || stored.flags & AUTO == 0;
        bitmap.readonly = self.read_only.get();
        for (index, piece) in data.iter().enumerate() {
            let offset = index as u64 * self.geo.cluster_size();
            match piece {
                Piece::Zeros => {}
                Piece::Ones => bitmap.deserialize_ones(offset, self.geo.cluster_size()),
                Piece::Bytes(bytes) => bitmap.deserialize(offset, bytes),
            }
        }
        Ok(())
    }

    async fn read_bitmap_data(&self, block: &Rc<Block>, stored: &StoredBitmap) -> Result<Vec<Piece>, String> {
        let name = &stored.name;
        let table = self.read_bitmap_table(block, stored.table).await;
        let table = table
            .map_err(|error| format!("Could not read bitmap_table table from image for bitmap '{name}': {error}"))?;
        let failed = |error: Errno| format!("Could not read bitmap '{name}' from image: {error}");
        let needed = table_entries_needed(self.geo, self.virtual_size(), 1 << stored.granularity_bits);
        if table.len() as u64 != needed {
            return Err(failed(Errno::EINVAL));
        }
        let mut pieces = Vec::with_capacity(table.len());
        for entry in table {
            pieces.push(match (entry & TABLE_OFFSET_MASK, entry & TABLE_ALL_ONES) {
                (0, 0) => Piece::Zeros,
                (0, _) => Piece::Ones,
                (offset, _) => {
                    let bytes = read_bytes(block, self.file(), offset, self.geo.cluster_size()).await;
                    Piece::Bytes(bytes.map_err(failed)?)
                }
            });
        }
        Ok(pieces)
    }

    /// Rewrites the directory where it is. In between the autoclear bit is clear, so that a crash
    /// loses the bitmaps instead of leaving half a directory.
    pub(super) async fn rewrite_directory_in_place(&self, block: &Rc<Block>, list: &[StoredBitmap]) -> Res<()> {
        let BitmapsExtension { count, directory_size, directory_offset } = self.extras.borrow().bitmaps;
        let holds = self.header.borrow().autoclear & AUTOCLEAR_BITMAPS != 0;
        let bytes = encode_directory(list).ok_or(Errno::EINVAL)?;
        if !holds || list.len() != count as usize || bytes.len() as u64 != directory_size {
            return Err(Errno::EINVAL);
        }
        self.header.borrow_mut().autoclear &= !AUTOCLEAR_BITMAPS;
        self.update_header_sync(block).await?;
        self.check_overlap(block, Some(Area::BitmapDirectory), directory_offset, directory_size).await?;
        block.co_pwrite(self.file(), directory_offset, Content::from_bytes(bytes), ReqFlags::NONE).await?;
        self.update_header_sync(block).await?;
        self.header.borrow_mut().autoclear |= AUTOCLEAR_BITMAPS;
        self.update_header_sync(block).await
    }

    pub(super) async fn update_header_sync(&self, block: &Rc<Block>) -> Res<()> {
        self.update_header(block).await?;
        block.co_flush(self.file()).await
    }

    /// Writes a directory to a new place and lets the header refer to it; without bitmaps the
    /// extension goes away. On failure nothing has changed.
    pub(super) async fn replace_directory(&self, block: &Rc<Block>, list: &[StoredBitmap]) -> Res<()> {
        let old = self.extras.borrow().bitmaps;
        let old_autoclear = self.header.borrow().autoclear;
        let mut new = BitmapsExtension::default();
        if !list.is_empty() {
            let bytes = encode_directory(list).ok_or(Errno::EINVAL)?;
            new.directory_size = bytes.len() as u64;
            new.directory_offset = self.alloc_clusters(block, new.directory_size).await?;
            new.count = list.len() as u32;
            if let Err(error) = self.write_new_directory(block, new, bytes).await {
                self.free_clusters(block, new.directory_offset, new.directory_size, DiscardType::Other).await;
                return Err(error);
            }
            self.header.borrow_mut().autoclear |= AUTOCLEAR_BITMAPS;
        } else {
            self.header.borrow_mut().autoclear &= !AUTOCLEAR_BITMAPS;
        }
        self.extras.borrow_mut().bitmaps = new;
        if let Err(error) = self.update_header_sync(block).await {
            if new.count > 0 {
                self.free_clusters(block, new.directory_offset, new.directory_size, DiscardType::Other).await;
            }
            self.extras.borrow_mut().bitmaps = old;
            self.header.borrow_mut().autoclear = old_autoclear;
            return Err(error);
        }
        if old.count > 0 {
            self.free_clusters(block, old.directory_offset, old.directory_size, DiscardType::Other).await;
        }
        Ok(())
    }

    async fn write_new_directory(&self, block: &Rc<Block>, new: BitmapsExtension, bytes: Vec<u8>) -> Res<()> {
        self.check_overlap(block, None, new.directory_offset, new.directory_size).await?;
        block.co_pwrite(self.file(), new.directory_offset, Content::from_bytes(bytes), ReqFlags::NONE).await?;
        self.flush_caches(block).await
    }

    /// The bitmaps of the image as its directory has them (`qemu-img info`).
    pub async fn bitmap_infos(self: &Rc<Self>, block: &Rc<Block>) -> Result<Vec<BitmapInfo>, String> {
        let stored = self.read_directory(block).await?;
        let info = |bitmap: StoredBitmap| BitmapInfo {
            name: bitmap.name,
            granularity: 1 << bitmap.granularity_bits,
            in_use: bitmap.flags & IN_USE != 0,
            auto: bitmap.flags & AUTO != 0,
        };
        Ok(stored.into_iter().map(info).collect())
    }

    /// Whether all stored bitmaps are in memory and can follow a resize.
    pub(super) async fn check_bitmaps_for_resize(&self, block: &Rc<Block>) -> Result<(), String> {
        let stored = self.read_directory(block).await?;
        let node = block.node(self.node);
        let list = node.bitmaps.borrow();
        for bitmap in &stored {
            let Some(loaded) = list.find(&bitmap.name).and_then(|id| list.get(id)) else {
                let text = "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory";
                return Err(text.to_owned());
            };
            loaded.check(Allow::NOTHING).map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }
}

/// What a table entry says about one cluster of a bitmap's data.
enum Piece {
    Zeros,
    Ones,
    Bytes(Vec<u8>),
}
