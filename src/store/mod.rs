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
use file::FileStore;
use memory::Image;

/// Bytes of a block of the simulated host's file system: the unit of holes.
pub const BLOCK: u64 = 4096;

/// Largest length of a host file, in bytes: that of ext4 with 4 KiB blocks.
pub const MAX_LEN: u64 = 0xffff_ffff * BLOCK;

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
        Store { home: Home::Memory(RefCell::default()) }
    }

    fn file(file: FileStore) -> Store {
        Store { home: Home::File(file) }
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
    /// `EINVAL` if the range does not fit into 64 bits; a real file may fail with what its host
    /// says.
    pub fn read(&self, off: u64, len: u64) -> Res<Content> {
        off.checked_add(len).ok_or(Errno::EINVAL)?;
        match &self.home {
            Home::Memory(image) => {
                note(image, off, off + len, Mode::Read);
                Ok(image.borrow_part().read(off, len))
            }
            Home::File(file) => file.read(off, len),
        }
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
    /// On ext4 a zeroed range is a hole to whoever asks for extents, with and without `unmap`, so
    /// the argument makes no difference here, nor to [`Store::allocated_bytes`].
    ///
    /// Errors as [`Store::write`].
    pub fn write_zeroes(&self, off: u64, len: u64, unmap: bool) -> Res<()> {
        let _ = unmap;
        let end = range_end(off, len)?;
        if len > 0 && end > self.len() {
            self.truncate(end)?;
        }
        self.discard(off, len)
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
                Ok(())
            }
            Home::File(file) => file.punch(off, end),
        }
    }

    /// Sets the length; what is new is a hole.
    ///
    /// Errors as [`Store::write`].
    pub fn truncate(&self, len: u64) -> Res<()> {
        range_end(len, 0)?;
        match &self.home {
            Home::Memory(image) => {
                Rc::make_mut(&mut image.borrow_mut()).truncate(len);
                Ok(())
            }
            Home::File(file) => file.truncate(len),
        }
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

    /// Bytes that the file takes on the simulated host's disk: its data blocks.
    pub fn allocated_bytes(&self) -> u64 {
        match &self.home {
            Home::Memory(image) => image.borrow().allocated_bytes(),
            Home::File(file) => file.allocated_bytes(),
        }
    }

    /// A second file with the same bytes, which the two share until either is written to.
    /// `ENOTSUP` for a real file.
    pub fn fork(&self) -> Res<Store> {
        match &self.home {
            Home::Memory(image) => Ok(Store { home: Home::Memory(image.clone()) }),
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
