//! The bitmap directory and bitmap tables as bytes.
//!
//! Only the encoding and its constraints; reading, storing and what bitmaps mean are in
//! `bitmaps.rs` and `bitmap_store.rs`. Any bytes must give entries or an error. QEMU's source:
//! `block/qcow2-bitmap.c`, `docs/interop/qcow2.txt`.

use super::extensions::{MAX_BITMAPS, MAX_DIRECTORY_BYTES};
use super::layout::{Geometry, be_at};

/// The bitmap was not stored by its last user.
pub(super) const IN_USE: u32 = 1;
/// The bitmap records from the moment the image is opened.
pub(super) const AUTO: u32 = 2;
/// The fixed part of a directory entry, bytes.
const FIXED_BYTES: usize = 24;
/// `dirty tracking bitmap`, the only type.
const TYPE_DIRTY_TRACKING: u8 = 1;
/// Longest name, bytes.
pub(super) const MAX_NAME_BYTES: usize = 1023;
/// Most entries of a bitmap table.
pub(super) const MAX_TABLE_ENTRIES: u64 = 0x800_0000;
/// Most bytes of data of one bitmap.
pub(super) const MAX_DATA_BYTES: u64 = 0x2000_0000;
/// Smallest and largest granularity, log2 of bytes.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;
/// Host offset in a table entry.
pub(super) const TABLE_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of a table entry that must be 0.
const TABLE_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// A table entry without an offset whose bits are all set.
pub(super) const TABLE_ALL_ONES: u64 = 1;

/// Where a bitmap's table lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TablePlace {
    /// Host offset.
    pub(super) offset: u64,
    /// Entries.
    pub(super) entries: u32,
}

impl TablePlace {
    /// Bytes of the table.
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.entries) * 8
    }
}

/// An entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredBitmap {
    pub(super) table: TablePlace,
    pub(super) flags: u32,
    pub(super) granularity_bits: u32,
    pub(super) name: String,
}

impl StoredBitmap {
    /// Bytes that an entry for a bitmap of this name takes in the directory.
    pub(super) fn entry_bytes(name: &str) -> u64 {
        (FIXED_BYTES + name.len()).next_multiple_of(8) as u64
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.table.offset.to_be_bytes());
        out.extend_from_slice(&self.table.entries.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&[TYPE_DIRTY_TRACKING, self.granularity_bits as u8]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.name.as_bytes());
        out.resize(start + Self::entry_bytes(&self.name) as usize, 0);
    }

    /// Whether the entry can belong to an image of `size` bytes.
    fn is_acceptable(&self, geo: Geometry, size: u64, kind: u8) -> bool {
        let table = self.table;
        let data_bytes = u64::from(table.entries) << geo.cluster_bits;
        let sound = table.entries != 0
            && table.offset != 0
            && geo.into_cluster(table.offset) == 0
            && u64::from(table.entries) <= MAX_TABLE_ENTRIES
            && GRANULARITY_BITS.contains(&self.granularity_bits)
            && self.flags & !(IN_USE | AUTO) == 0
            && kind == TYPE_DIRTY_TRACKING
            && data_bytes <= MAX_DATA_BYTES;
        // The size of a bitmap that is in use is nobody's concern.
        sound && (self.flags & IN_USE != 0 || data_bytes >= data_bytes_needed(size, 1 << self.granularity_bits))
    }
}

/// Bytes of the stored form of a bitmap of a disk of `size` bytes.
pub(super) fn data_bytes_needed(size: u64, granularity: u64) -> u64 {
    size.div_ceil(granularity).div_ceil(8).next_multiple_of(8)
}

/// Entries of the table of a bitmap of a disk of `size` bytes.
pub(super) fn table_entries_needed(geo: Geometry, size: u64, granularity: u64) -> u64 {
    geo.clusters(data_bytes_needed(size, granularity))
}

/// Parses a directory of an image of `size` bytes that should have `count` entries. The error is
/// QEMU's text.
pub(super) fn parse_directory(bytes: &[u8], geo: Geometry, size: u64, count: u32) -> Result<Vec<StoredBitmap>, String> {
    let broken = || "Broken bitmap directory".to_owned();
    let mut list = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if rest.len() < FIXED_BYTES {
            return Err(broken());
        }
        if list.len() as u32 >= count {
            return Err("More bitmaps found than specified in header extension".to_owned());
        }
        let (name_bytes, extra_bytes) = (be_at(rest, 18, 2) as usize, be_at(rest, 20, 4) as usize);
        let entry_bytes = FIXED_BYTES.saturating_add(extra_bytes).saturating_add(name_bytes).next_multiple_of(8);
        // QEMU compares an int.
        if entry_bytes > rest.len() && entry_bytes as i32 > 0 {
            return Err(broken());
        }
        if extra_bytes != 0 {
            return Err("Bitmap extra data is not supported".to_owned());
        }
        let name = &rest[FIXED_BYTES..FIXED_BYTES + name_bytes];
        let bitmap = StoredBitmap {
            table: TablePlace { offset: be_at(rest, 0, 8), entries: be_at(rest, 8, 4) as u32 },
            flags: be_at(rest, 12, 4) as u32,
            granularity_bits: u32::from(rest[17]),
            name: String::from_utf8_lossy(name).into_owned(),
        };
        if name_bytes > MAX_NAME_BYTES || !bitmap.is_acceptable(geo, size, rest[16]) {
            return Err(format!("Bitmap '{}' doesn't satisfy the constraints", bitmap.name));
        }
        list.push(bitmap);
        rest = &rest[entry_bytes..];
    }
    if (list.len() as u32) < count {
        return Err("Less bitmaps found than specified in header extension".to_owned());
    }
    Ok(list)
}

/// The directory as bytes; `None` if it is empty or too large.
pub(super) fn encode_directory(list: &[StoredBitmap]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for bitmap in list {
        bitmap.encode(&mut bytes);
    }
    let fits = list.len() <= MAX_BITMAPS as usize && bytes.len() as u64 <= MAX_DIRECTORY_BYTES;
    (fits && !bytes.is_empty()).then_some(bytes)
}

/// Whether a table entry is one that QEMU accepts.
pub(super) fn is_table_entry(geo: Geometry, entry: u64) -> bool {
    let offset = entry & TABLE_OFFSET_MASK;
    entry & TABLE_RESERVED == 0 && (offset == 0 || (entry & TABLE_ALL_ONES == 0 && geo.into_cluster(offset) == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEO: Geometry = Geometry { version: 3, cluster_bits: 16, refcount_order: 4 };

    fn bitmap(name: &str) -> StoredBitmap {
        StoredBitmap {
            table: TablePlace { offset: 0x90000, entries: 1 },
            flags: AUTO,
            granularity_bits: 16,
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_example_of_the_format() {
        let bytes = encode_directory(&[bitmap("bm0")]).expect("one entry fits");
        let expected = [0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, 3, 0, 0, 0, 0];
        assert_eq!(&bytes[..24], expected);
        assert_eq!(&bytes[24..], b"bm0\0\0\0\0\0");
        assert_eq!(parse_directory(&bytes, GEO, 64 << 20, 1), Ok(vec![bitmap("bm0")]));
    }

    #[test]
    fn a_directory_must_match_its_count() {
        let two = encode_directory(&[bitmap("a"), bitmap("b")]).expect("two entries fit");
        let error = |bytes: &[u8], count| parse_directory(bytes, GEO, 0, count).expect_err("damaged");
        assert_eq!(error(&two, 1), "More bitmaps found than specified in header extension");
        assert_eq!(error(&two, 3), "Less bitmaps found than specified in header extension");
        assert_eq!(error(&two[..40], 2), "Broken bitmap directory");
        let mut unknown_flag = two.clone();
        unknown_flag[15] |= 4;
        assert_eq!(error(&unknown_flag, 2), "Bitmap 'a' doesn't satisfy the constraints");
    }

    #[test]
    fn sizes_of_tables() {
        assert_eq!(table_entries_needed(GEO, 64 << 20, 65536), 1);
        assert_eq!(table_entries_needed(GEO, 32 << 30, 65536), 1);
        assert_eq!(table_entries_needed(GEO, (32 << 30) + 1, 65536), 2);
    }
}
