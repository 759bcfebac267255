//! The store layer: the bytes of the simulated host's files.
//!
//! A [`Store`] is one host file, a [`Host`] the directory they stand in, [`Content`] a piece of
//! what they hold. There are two homes for the bytes, memory and real files, and nothing above this
//! layer may be able to tell which it got: both behave as a file on ext4 with 4 KiB blocks, however
//! the real file system behaves. Must never ask for time, choices or anything of the block layer.
//!
//! A volatile write cache, of which a power cut keeps what the choices say, would sit here: between
//! a [`Store`]'s methods and its backing, emptied by [`Store::flush`]. It is not built yet; a write
//! is on the medium at once.

mod blocks;
mod content;
mod file;
mod host;
mod memory;
#[cfg(test)]
mod tests;

use std::rc::Rc;

pub use content::{Content, Fill, Run};
pub use host::{Host, TEST_PREFIX};

use crate::errno::{Errno, Res};
use crate::sim::access::Mode;
use crate::sim::shared::RefCell;
use blocks::BlockMap;
use file::FileStore;
use memory::Image;

/// Bytes of a block of the simulated host's file system: the unit of holes.
pub const BLOCK: u64 = 4096;

/// Largest length of a host file, in bytes: that of ext4 with 4 KiB blocks.
pub const MAX_LEN: u64 = 0xffff_ffff * BLOCK;

/// Extents that ext4 keeps in the inode itself.
const EXTENTS_IN_INODE: u64 = 4;
/// Extents in a block of ext4's extent tree.
const EXTENTS_IN_BLOCK: u64 = (BLOCK - 16) / 12;

/// What the host knows about a stretch of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whether the stretch is data, as against a hole.
    pub data: bool,
    /// Its length in bytes, counted from where was asked.
    pub len: u64,
}

/// The bytes of one host file. Shared by `Rc`; every method takes `&self`.
///
/// No operation yields, and each takes effect at once; one that fails for its arguments has changed
/// nothing, one that fails because the real host does may have done a part.
pub struct Store {
    home: Home,
    /// Blocks that an efficient write of zeros has taken on the disk. Until they are written they are holes to
    /// whoever asks for extents (unwritten extents of ext4). Data blocks may be among them.
    reserved: RefCell<BlockMap>,
}

/// Where the bytes are.
enum Home {
    /// An `Rc` so that a fork is one pointer until somebody writes.
    Memory(RefCell<Rc<Image>>),
    File(FileStore),
}

impl Store {
    /// A new empty file in memory. Files with a name, and real files, come from a [`Host`].
    pub fn memory() -> Store {
        Store { home: Home::Memory(RefCell::default()), reserved: RefCell::default() }
    }

    fn file(file: FileStore) -> Store {
        Store { home: Home::File(file), reserved: RefCell::default() }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match &self.home {
            Home::Memory(image) => {
                image.note(LENGTH, u64::MAX, Mode::Read);
                image.borrow_part().len()
            }
            Home::File(file) => file.len(),
        }
    }

    /// Whether the file has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes [off, off + len); holes and what lies beyond the end read as zeros.
    ///
    /// Blocks that were taken but never written become data by being read: they are in the host's page cache
    /// from then on, where ext4 looks for data among unwritten blocks. The cache is never short of room here.
    ///
    /// `EINVAL` if the range does not fit into 64 bits; a real file may fail with what its host
    /// says.
    pub fn read(&self, off: u64, len: u64) -> Res<Content> {
        let end = off.checked_add(len).ok_or(Errno::EINVAL)?.min(self.len());
        if off < end && !self.reserved.borrow().is_empty() {
            self.cache_reserved(block_floor(off), block_ceil(end))?;
        }
        match &self.home {
            Home::Memory(image) => {
                note(image, off, off + len, Mode::Read);
                Ok(image.borrow_part().read(off, len))
            }
            Home::File(file) => file.read(off, len),
        }
    }

    /// Makes data of the reserved blocks in [off, end), which are whole ones and begin before the end of the file.
    fn cache_reserved(&self, off: u64, end: u64) -> Res<()> {
        let mut pos = off;
        while pos < end {
            let taken = self.reserved.borrow().extent(pos, end);
            let next = pos + taken.len;
            while taken.data && pos < next.min(self.len()) {
                let extent = self.extent(pos, next - pos);
                if !extent.data {
                    self.write(pos, &Content::zeros(extent.len))?;
                }
                pos += extent.len;
            }
            pos = next;
        }
        self.reserved.borrow_mut().remove(off, end);
        Ok(())
    }

    /// Writes `content` at `off`; the file grows as far as needed, with a hole before `off`. Every
    /// block touched becomes data, also by zeros. Writing nothing changes nothing.
    ///
    /// `EFBIG` beyond [`MAX_LEN`]; a real file may fail with what its host says.
    pub fn write(&self, off: u64, content: &Content) -> Res<()> {
        range_end(off, content.len())?;
        match &self.home {
            Home::Memory(image) => {
                let end = off + content.len();
                note(image, off, end, Mode::Write);
                if end > image.borrow_part().len() {
                    image.note(LENGTH, u64::MAX, Mode::Write);
                }
                Rc::make_mut(&mut image.borrow_part_mut()).write(off, content);
                Ok(())
            }
            Home::File(file) => file.write(off, content),
        }
    }

    /// Zeroes [off, off + len) the cheap way, by which whole blocks become holes and partial ones
    /// stay what they are, data or hole. The file grows as far as needed.
    ///
    /// On ext4 a zeroed range is a hole to whoever asks for extents, with and without `unmap`; without it, the
    /// range keeps or takes its blocks on the disk, which [`Store::allocated_bytes`] tells.
    ///
    /// Errors as [`Store::write`].
    pub fn write_zeroes(&self, off: u64, len: u64, unmap: bool) -> Res<()> {
        let end = range_end(off, len)?;
        if len > 0 && end > self.len() {
            self.truncate(end)?;
        }
        self.discard(off, len)?;
        if !unmap {
            self.reserved.borrow_mut().add(off, end);
        }
        Ok(())
    }

    /// Punches a hole: as [`Store::write_zeroes`], but the length stays.
    ///
    /// Errors as [`Store::write`].
    pub fn discard(&self, off: u64, len: u64) -> Res<()> {
        let end = range_end(off, len)?;
        match &self.home {
            Home::Memory(image) => {
                note(image, off, end, Mode::Write);
                Rc::make_mut(&mut image.borrow_part_mut()).punch(off, end);
            }
            Home::File(file) => file.punch(off, end)?,
        }
        let last = if end >= self.len() { block_ceil(end) } else { block_floor(end) };
        self.release(block_ceil(off), last);
        Ok(())
    }

    /// Blocks in [off, end) that are not taken any more. Where none is, nothing is changed, as exploration sees it.
    fn release(&self, off: u64, end: u64) {
        if !self.reserved.borrow().is_empty() {
            self.reserved.borrow_mut().remove(off, end);
        }
    }

    /// Sets the length; what is new is a hole.
    ///
    /// Errors as [`Store::write`].
    pub fn truncate(&self, len: u64) -> Res<()> {
        range_end(len, 0)?;
        match &self.home {
            Home::Memory(image) => Rc::make_mut(&mut image.borrow_mut()).truncate(len),
            Home::File(file) => file.truncate(len)?,
        }
        self.release(block_ceil(len), block_ceil(MAX_LEN));
        Ok(())
    }

    /// Makes everything written so far safe from a simulated power cut. A real file is not synced:
    /// its durability is no part of a simulation.
    pub fn flush(&self) -> Res<()> {
        Ok(())
    }

    /// Data or hole at `off`, and for how long, at most `len` bytes, that holds. Changes only at
    /// block boundaries. An answer never crosses the end of the file, beyond which all is hole.
    pub fn extent(&self, off: u64, len: u64) -> Extent {
        match &self.home {
            Home::Memory(image) => {
                note(image, off, off.saturating_add(len), Mode::Read);
                image.borrow_part().extent(off, len)
            }
            Home::File(file) => file.extent(off, len),
        }
    }

    /// Bytes that the file takes on the simulated host's disk: its data blocks, those that zeros were written to
    /// without `unmap`, and the file system's list of extents, once it does not fit into the inode.
    pub fn allocated_bytes(&self) -> u64 {
        let (mut bytes, mut extents) = (0, 0);
        let end = block_ceil(self.len());
        let reserved = self.reserved.borrow();
        let mut pos = 0;
        while pos < end {
            let mut here = self.extent(pos, end - pos);
            let mut is_taken = here.data;
            if !here.data {
                let taken = reserved.extent(pos, block_ceil(pos + here.len));
                (here.len, is_taken) = (taken.len, taken.data);
            }
            let next = block_ceil(pos + here.len);
            if is_taken {
                bytes += next - pos;
                extents += 1;
            }
            pos = next;
        }
        let beyond_data = match &self.home {
            Home::Memory(_) => 0,
            Home::File(file) => file.beyond_data(),
        };
        if beyond_data > 0 {
            // The host has told of this file what else is worked out here.
            return bytes + beyond_data;
        }
        let list_blocks = if extents <= EXTENTS_IN_INODE { 0 } else { extents.div_ceil(EXTENTS_IN_BLOCK) };
        bytes + list_blocks * BLOCK
    }

    /// A second file with the same bytes, which the two share until either is written to.
    /// `ENOTSUP` for a real file.
    pub fn fork(&self) -> Res<Store> {
        match &self.home {
            Home::Memory(image) => Ok(Store { home: Home::Memory(image.clone()), reserved: self.reserved.clone() }),
            Home::File(_) => Err(Errno::ENOTSUP),
        }
    }
}

impl std::fmt::Debug for Store {
    /// The file's measures, not its bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let home = if matches!(self.home, Home::Memory(_)) { "memory" } else { "file" };
        f.debug_struct("Store").field("home", &home).field("len", &self.len()).finish()
    }
}

/// Where the length of a file stands among the parts of it that a step can use: beyond all its bytes.
const LENGTH: u64 = u64::MAX - 1;

/// Notes the use of whole blocks, since those are what becomes data, and of the length, which decides what
/// lies beyond the end.
fn note(image: &RefCell<Rc<Image>>, begin: u64, end: u64, mode: Mode) {
    image.note(block_floor(begin), block_ceil(end), mode);
    image.note(LENGTH, u64::MAX, Mode::Read);
}

/// End of a range that is about to be changed.
fn range_end(off: u64, len: u64) -> Res<u64> {
    off.checked_add(len).filter(|&end| end <= MAX_LEN).ok_or(Errno::EFBIG)
}

fn block_floor(off: u64) -> u64 {
    off - off % BLOCK
}

/// Saturates at the last block boundary, which no file reaches.
fn block_ceil(off: u64) -> u64 {
    block_floor(off.saturating_add(BLOCK - 1))
}
