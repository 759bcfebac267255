//! One dirty bitmap: bits that stand for granules of a disk, and the state QEMU keeps beside them.
//!
//! Speaks in bytes of the disk. Must never lose dirt: what marks a part of a granule marks all of
//! it, what cleans a part of a granule leaves it dirty.

use std::fmt;
use std::rc::Rc;

use super::hbitmap::{Bits, MAX_BITS};
use super::{BitmapFault, BitmapId};

/// Smallest granularity of any bitmap, in bytes.
pub const MIN_GRANULARITY: u64 = 512;
/// Largest granularity of any bitmap, in bytes.
pub const MAX_GRANULARITY: u64 = 1 << 31;

/// The granularity in bytes that QEMU gives a bitmap when nobody asks for one: the node's cluster
/// size held within 4 KiB and 64 KiB; 64 KiB if the node has no clusters (`None` or 0).
pub fn default_granularity(cluster_size: Option<u64>) -> u64 {
    match cluster_size {
        None | Some(0) => 65536,
        Some(size) => size.clamp(4096, 65536),
    }
}

/// A state of a bitmap that stands in the way of using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapState {
    /// In use by a job, an export or a removal under way.
    Busy,
    /// Loaded from a node that may not be written to.
    Readonly,
    /// Loaded from an image that was not closed properly.
    Inconsistent,
}

/// The states that a command accepts; all others make [`DirtyBitmap::check`] fail.
///
/// QEMU names what it refuses (`BDRV_BITMAP_DEFAULT`, `BDRV_BITMAP_ALLOW_RO`); these are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// Accept a busy bitmap.
    pub busy: bool,
    /// Accept a readonly bitmap.
    pub readonly: bool,
    /// Accept an inconsistent bitmap.
    pub inconsistent: bool,
}

impl Allow {
    /// What changes the bits: clear, the target of a merge, a backup's bitmap.
    pub const NOTHING: Allow = Allow { busy: false, readonly: false, inconsistent: false };
    /// What leaves the bits alone: enable, disable, the source of a merge.
    pub const READONLY: Allow = Allow { readonly: true, ..Allow::NOTHING };
    /// Removal.
    pub const INCONSISTENT: Allow = Allow { inconsistent: true, ..Allow::NOTHING };
}

/// A dirty bitmap of one node.
///
/// The flags are plain fields: the rules of when to change them belong to commands and jobs. Bits,
/// size and granularity change only together, by methods.
#[derive(Clone)]
pub struct DirtyBitmap {
    /// Name; `None` for the anonymous bitmaps of jobs and filters, and for successors.
    pub name: Option<Rc<str>>,
    /// Not recording by itself (see [`super::BitmapList::recording`]).
    pub disabled: bool,
    /// In use by a job, an export or a removal under way.
    pub busy: bool,
    /// To be stored in the image when the node is closed.
    pub persistent: bool,
    /// Loaded from the image with its in-use flag still set: neither bits nor recording count.
    pub inconsistent: bool,
    /// Loaded from a node that may not be written to.
    pub readonly: bool,
    /// A removal in a transaction has taken it out of what is stored at close.
    pub skip_store: bool,
    /// The bitmap that records in this one's place while an operation uses this one.
    pub(super) successor: Option<BitmapId>,
    granularity_bits: u32,
    size: u64,
    bits: Bits,
}

impl DirtyBitmap {
    /// A clean enabled bitmap of a disk of `size` bytes.
    ///
    /// [`BitmapFault::Granularity`] unless that is a power of two from 512 to 2^31;
    /// [`BitmapFault::TooBig`] if the disk has more granules than a map can have bits.
    pub fn new(size: u64, granularity: u64, name: Option<&str>) -> Result<DirtyBitmap, BitmapFault> {
        let range = MIN_GRANULARITY..=MAX_GRANULARITY;
        if !granularity.is_power_of_two() || !range.contains(&granularity) {
            return Err(BitmapFault::Granularity);
        }
        let bits = Bits::new(size.div_ceil(granularity)).map_err(|_| BitmapFault::TooBig)?;
        Ok(DirtyBitmap {
            name: name.map(Rc::from),
            disabled: false,
            busy: false,
            persistent: false,
            inconsistent: false,
            readonly: false,
            skip_store: false,
            successor: None,
            granularity_bits: granularity.trailing_zeros(),
            size,
            bits,
        })
    }

    /// Bytes of the disk that one bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Where its last granule ends, bytes: at its size or behind.
    pub fn end_of_granules(&self) -> u64 {
        self.bits.len().saturating_mul(self.granularity())
    }

    /// Bytes of the disk that the bitmap covers.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bitmap that records in this one's place, if an operation uses this one.
    pub fn successor(&self) -> Option<BitmapId> {
        self.successor
    }

    /// Whether the bitmap itself records writes.
    pub fn enabled(&self) -> bool {
        !self.disabled
    }

    /// Refuses a bitmap in a state that is not allowed, in QEMU's order of checks.
    pub fn check(&self, allow: Allow) -> Result<(), BitmapFault> {
        let states = [
            (self.busy && !allow.busy, BitmapState::Busy),
            (self.readonly && !allow.readonly, BitmapState::Readonly),
            (self.inconsistent && !allow.inconsistent, BitmapState::Inconsistent),
        ];
        match states.iter().find(|(refused, _)| *refused) {
            Some(&(_, state)) => Err(BitmapFault::State { name: self.name_or_empty(), state }),
            None => Ok(()),
        }
    }

    fn name_or_empty(&self) -> Rc<str> {
        self.name.clone().unwrap_or_default()
    }

    /// Bytes that the dirty granules stand for; more than the disk has, if the last granule is
    /// dirty and reaches beyond the end.
    pub fn count_bytes(&self) -> u64 {
        self.bits.count() << self.granularity_bits
    }

    /// Whether the granule that holds the byte at `offset` is dirty; false beyond the end.
    pub fn is_set(&self, offset: u64) -> bool {
        offset < self.size && self.bits.get(offset >> self.granularity_bits)
    }

    /// Makes every granule dirty that [offset, offset + bytes) touches; what lies beyond the end is
    /// ignored.
    pub fn set(&mut self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.size);
        if offset < end {
            let (first, last) = (offset >> self.granularity_bits, (end - 1) >> self.granularity_bits);
            self.bits.set_range(first, last - first + 1);
        }
    }

    /// Makes every granule clean that [offset, offset + bytes) covers whole, the last one also if it
    /// is covered up to the disk's end. QEMU asserts that no granule is covered in part; here such
    /// a granule stays as it is.
    pub fn reset(&mut self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes);
        let first = offset.div_ceil(self.granularity());
        let stop = if end >= self.size { self.bits.len() } else { end >> self.granularity_bits };
        self.bits.clear_range(first, stop.saturating_sub(first));
    }

    /// Makes the whole disk dirty or clean.
    pub fn fill(&mut self, dirty: bool) {
        self.bits.fill(dirty);
    }

    /// Offset of the first dirty byte in [offset, offset + bytes).
    pub fn next_dirty(&self, offset: u64, bytes: u64) -> Option<u64> {
        self.next_bit(offset, bytes, |bits, from| bits.next_one(from))
    }

    /// Offset of the first clean byte in [offset, offset + bytes), `None` if all are dirty or lie
    /// beyond the end.
    pub fn next_zero(&self, offset: u64, bytes: u64) -> Option<u64> {
        self.next_bit(offset, bytes, |bits, from| bits.next_zero(from))
    }

    fn next_bit(&self, offset: u64, bytes: u64, find: impl Fn(&Bits, u64) -> Option<u64>) -> Option<u64> {
        let end = offset.saturating_add(bytes).min(self.size);
        if offset >= end {
            return None;
        }
        let bit = find(&self.bits, offset >> self.granularity_bits)?;
        // The granule of `offset` itself begins before it.
        Some((bit << self.granularity_bits).max(offset)).filter(|&at| at < end)
    }

    /// The first dirty area in [offset, end): where it begins and its length in bytes, at most
    /// `max_bytes`. It ends at the first clean granule, at `end` or at the end of the disk, so its
    /// length need not be a multiple of the granularity.
    pub fn next_dirty_area(&self, offset: u64, end: u64, max_bytes: u64) -> Option<(u64, u64)> {
        let start = self.next_dirty(offset, end.saturating_sub(offset)).filter(|_| max_bytes > 0)?;
        let end = end.min(self.size).min(start.saturating_add(max_bytes));
        let stop = self.next_zero(start, end - start).unwrap_or(end);
        Some((start, stop - start))
    }

    /// All dirty areas, offset and length in bytes, in ascending order and cut at the disk's end.
    pub fn dirty_areas(&self) -> impl Iterator<Item = (u64, u64)> {
        self.bits.areas().map(|(first, len)| {
            let start = first << self.granularity_bits;
            (start, (len << self.granularity_bits).min(self.size - start))
        })
    }

    /// Makes dirty what is dirty in `source`: each dirty granule of it marks every granule of this
    /// bitmap that it touches within the disk.
    ///
    /// [`BitmapFault::Sizes`] if the two are of disks of different size; nothing is merged then.
    pub fn merge_from(&mut self, source: &DirtyBitmap) -> Result<(), BitmapFault> {
        if self.size != source.size {
            return Err(BitmapFault::Sizes { target_size: self.size, source_size: source.size });
        }
        if self.granularity_bits == source.granularity_bits {
            self.bits.or_assign(&source.bits);
        } else {
            for (start, len) in source.dirty_areas() {
                self.set(start, len);
            }
        }
        Ok(())
    }

    /// Makes the disk clean and returns the bits from before, for [`DirtyBitmap::restore`].
    pub fn clear_keeping(&mut self) -> Bits {
        let before = self.bits.clone();
        self.bits.fill(false);
        before
    }

    /// The bits as they are, for [`DirtyBitmap::restore`] after a change that is taken back.
    pub fn contents(&self) -> Bits {
        self.bits.clone()
    }

    /// Puts bits back that were taken from this bitmap. If the disk has been resized since, they
    /// are cut or followed by clean ones.
    pub fn restore(&mut self, contents: Bits) {
        let now = self.bits.len();
        self.bits.fill(false);
        if contents.len() == now {
            self.bits = contents;
        } else {
            self.bits.or_assign(&contents);
        }
    }

    /// Follows a resize of the disk; new granules are clean.
    ///
    /// [`BitmapFault::TooBig`] as in [`DirtyBitmap::new`]; nothing has changed then.
    pub fn truncate(&mut self, size: u64) -> Result<(), BitmapFault> {
        let bits = size.div_ceil(self.granularity());
        if bits != self.bits.len() {
            self.bits.resize(bits).map_err(|_| BitmapFault::TooBig)?;
        }
        self.size = size;
        Ok(())
    }

    /// Whether [`DirtyBitmap::truncate`] to `size` would succeed.
    pub fn fits(&self, size: u64) -> bool {
        size.div_ceil(self.granularity()) <= MAX_BITS
    }

    /// Length in bytes of the stored form: little-endian 64-bit words, at least one.
    pub fn serialized_len(&self) -> u64 {
        self.bits.byte_len()
    }

    /// The bytes [off, off + len) of the stored form, at most to its end. What QEMU writes to
    /// bitmap clusters, and what x-debug-block-dirty-bitmap-sha256 hashes.
    pub fn serialize(&self, off: u64, len: u64) -> Vec<u8> {
        self.bits.to_le_bytes(off, len)
    }

    /// Adds the dirt in `bytes`, which are the stored form from byte `off` on. Bits beyond the end
    /// of the disk are ignored.
    pub fn deserialize(&mut self, off: u64, bytes: &[u8]) {
        self.bits.or_le_bytes(off, bytes);
    }

    /// Adds dirt to all granules whose bits stand in the bytes [off, off + len) of the stored form
    /// (a bitmap table entry that says "all ones").
    pub fn deserialize_ones(&mut self, off: u64, len: u64) {
        self.bits.set_range(off.saturating_mul(8), len.saturating_mul(8));
    }

    /// Whether any bit in the bytes [off, off + len) of the stored form is set; if none is, QEMU
    /// stores no cluster for them.
    pub fn any_serialized(&self, off: u64, len: u64) -> bool {
        let (first, end) = (off.saturating_mul(8), off.saturating_add(len).saturating_mul(8));
        self.bits.next_one(first).is_some_and(|at| at < end)
    }
}

impl fmt::Debug for DirtyBitmap {
    /// What a person wants to see of it; not the bits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("name", &self.name)
            .field("granularity", &self.granularity())
            .field("count", &self.count_bytes())
            .field("disabled", &self.disabled)
            .field("busy", &self.busy)
            .field("successor", &self.successor)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
