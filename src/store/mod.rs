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

mod content;
mod memory;

use std::cell::RefCell;
use std::rc::Rc;

pub use content::{Content, Fill, Run};

use crate::errno::{Errno, Res};
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
/// No operation yields, and each one takes effect at once and as a whole.
pub struct Store {
    image: RefCell<Rc<Image>>,
}

impl Store {
    /// A new empty file in memory.
    pub fn memory() -> Store {
        Store {
            image: RefCell::default(),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.image.borrow().len()
    }

    /// Whether the file has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes [off, off + len); holes and what lies beyond the end read as zeros.
    ///
    /// `EINVAL` if the range does not fit into 64 bits.
    pub fn read(&self, off: u64, len: u64) -> Res<Content> {
        off.checked_add(len).ok_or(Errno::EINVAL)?;
        Ok(self.image.borrow().read(off, len))
    }

    /// Writes `content` at `off`; the file grows as far as needed, with a hole before `off`. Every
    /// block touched becomes data, also by zeros.
    ///
    /// `EFBIG` beyond [`MAX_LEN`]; nothing is written then.
    pub fn write(&self, off: u64, content: &Content) -> Res<()> {
        range_end(off, content.len())?;
        Rc::make_mut(&mut self.image.borrow_mut()).write(off, content);
        Ok(())
    }

    /// Zeroes [off, off + len) the cheap way, by which whole blocks become holes and partial ones
    /// stay what they are. The file grows as far as needed.
    ///
    /// `EFBIG` beyond [`MAX_LEN`]. On ext4 a zeroed range is a hole to whoever asks, with and
    /// without `unmap`: so the argument changes nothing here and is part of the signature because
    /// other homes of bytes may care.
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
    /// `EFBIG` beyond [`MAX_LEN`].
    pub fn discard(&self, off: u64, len: u64) -> Res<()> {
        let end = range_end(off, len)?;
        Rc::make_mut(&mut self.image.borrow_mut()).punch(off, end);
        Ok(())
    }

    /// Sets the length; what is new is a hole.
    ///
    /// `EFBIG` beyond [`MAX_LEN`].
    pub fn truncate(&self, len: u64) -> Res<()> {
        range_end(len, 0)?;
        Rc::make_mut(&mut self.image.borrow_mut()).truncate(len);
        Ok(())
    }

    /// Makes everything written so far safe from a power cut.
    pub fn flush(&self) -> Res<()> {
        Ok(())
    }

    /// Data or hole at `off`, and for how long at most `len` bytes that holds. Changes only at
    /// block boundaries. An answer never crosses the end of the file, beyond which all is hole.
    pub fn extent(&self, off: u64, len: u64) -> Extent {
        self.image.borrow().extent(off, len)
    }

    /// Bytes that the file takes on the host's disk.
    pub fn allocated_bytes(&self) -> u64 {
        self.image.borrow().allocated_bytes()
    }

    /// A second file with the same bytes, which shares them until either is written to.
    pub fn fork(&self) -> Res<Store> {
        Ok(Store {
            image: self.image.clone(),
        })
    }
}

/// End of a range that is about to be changed.
fn range_end(off: u64, len: u64) -> Res<u64> {
    off.checked_add(len)
        .filter(|&end| end <= MAX_LEN)
        .ok_or(Errno::EFBIG)
}

fn block_floor(off: u64) -> u64 {
    off - off % BLOCK
}

/// Saturates at the last block boundary, which no file reaches.
fn block_ceil(off: u64) -> u64 {
    block_floor(off.saturating_add(BLOCK - 1))
}
