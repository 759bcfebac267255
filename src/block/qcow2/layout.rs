//! The arithmetic of the format: masks, cluster types, which table entry maps an offset.
//!
//! Pure functions on numbers as they stand in an image; any bit pattern is a legal input and must
//! give an answer or an error, never a panic. Field meanings: QEMU's `docs/interop/qcow2.txt`.

/// Host offset of an L2 table in an L1 entry.
pub(super) const L1E_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Host offset of a data cluster in a standard L2 entry.
pub(super) const L2E_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be 0.
pub(super) const L1E_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that must be 0.
pub(super) const L2E_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Host offset of a refcount block in a refcount table entry.
pub(super) const REFT_OFFSET_MASK: u64 = 0xffff_ffff_ffff_fe00;
/// Bits of a refcount table entry that must be 0.
pub(super) const REFT_RESERVED: u64 = 0x1ff;
/// The referenced cluster has a refcount of exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// The L2 entry describes a compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever its offset says.
pub(super) const ZERO: u64 = 1;
/// Bytes of an L1, L2 or refcount table entry.
pub(super) const ENTRY_BYTES: u64 = 8;
/// Allocated offsets stay below this (56 bits, QEMU's `QCOW_MAX_CLUSTER_OFFSET`).
pub(super) const MAX_HOST_OFFSET: u64 = (1 << 56) - 1;
/// Largest active L1 table, bytes.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table, bytes.
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// Unit of the length of a compressed cluster, bytes.
pub(super) const COMPRESSED_SECTOR: u64 = 512;
/// A request is handled in pieces of at most this many bytes (`BDRV_REQUEST_MAX_BYTES`).
pub(super) const REQUEST_MAX_BYTES: u64 = (i32::MAX as u64 / 512) * 512;

/// What an L2 entry stands for (`QCow2ClusterType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterType {
    /// Nothing here; reads go to the backing file.
    Unallocated,
    /// Reads as zeros, no host cluster.
    ZeroPlain,
    /// Reads as zeros, keeps a host cluster.
    ZeroAlloc,
    /// Data in a host cluster.
    Normal,
    /// Compressed data somewhere in the file.
    Compressed,
}

impl ClusterType {
    /// The type of a standard (not extended) L2 entry.
    pub(super) fn of(entry: u64) -> ClusterType {
        if entry & COMPRESSED != 0 {
            return ClusterType::Compressed;
        }
        match (entry & ZERO != 0, entry & L2E_OFFSET_MASK != 0) {
            (true, true) => ClusterType::ZeroAlloc,
            (true, false) => ClusterType::ZeroPlain,
            (false, false) => ClusterType::Unallocated,
            (false, true) => ClusterType::Normal,
        }
    }

    /// Whether host clusters belong to the entry.
    pub(super) fn is_allocated(self) -> bool {
        matches!(self, ClusterType::Normal | ClusterType::ZeroAlloc | ClusterType::Compressed)
    }

    /// Whether it reads as zeros by itself.
    pub(super) fn is_zero(self) -> bool {
        matches!(self, ClusterType::ZeroPlain | ClusterType::ZeroAlloc)
    }
}

/// Whether a write needs a new host cluster: not for a cluster that this entry alone owns.
pub(super) fn needs_new_cluster(entry: u64) -> bool {
    let kept = matches!(ClusterType::of(entry), ClusterType::Normal | ClusterType::ZeroAlloc);
    !(kept && entry & COPIED != 0)
}

/// Sizes that never change while an image is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// 2 or 3.
    pub(super) version: u32,
    /// log2 of the cluster size.
    pub(super) cluster_bits: u32,
    /// log2 of the width of a refcount in bits.
    pub(super) refcount_order: u32,
}

impl Geometry {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the entries of an L2 table.
    pub(super) fn l2_bits(self) -> u32 {
        self.cluster_bits - 3
    }

    /// log2 of the entries of a refcount block.
    pub(super) fn refblock_bits(self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Entries of a refcount block.
    pub(super) fn refblock_entries(self) -> u64 {
        1 << self.refblock_bits()
    }

    /// The largest refcount that can be stored.
    pub(super) fn refcount_max(self) -> u64 {
        if self.refcount_order >= 6 { u64::MAX } else { (1u64 << (1 << self.refcount_order)) - 1 }
    }

    /// Bytes from the start of the cluster that holds `offset`.
    pub(super) fn into_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// The start of the cluster that holds `offset`.
    pub(super) fn cluster_start(self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// Clusters that hold `bytes` bytes.
    pub(super) fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Which L1 entry maps a guest offset.
    pub(super) fn l1_index(self, offset: u64) -> u64 {
        offset >> (self.cluster_bits + self.l2_bits())
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub(super) fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(1 << (self.cluster_bits + self.l2_bits()))
    }

    /// Where a compressed cluster lies: host offset and bytes to read, from its L2 entry.
    pub(super) fn compressed_extent(self, entry: u64) -> (u64, u64) {
        let shift = self.compressed_shift();
        let offset = entry & ((1 << shift) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> shift;
        (offset, (sectors + 1) * COMPRESSED_SECTOR - (offset & (COMPRESSED_SECTOR - 1)))
    }

    /// Bits of the host offset in a compressed descriptor.
    pub(super) fn compressed_shift(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }
}

/// The `n`-byte big-endian number at `at`, 0 where the bytes have ended.
pub(super) fn be_at(bytes: &[u8], at: usize, n: usize) -> u64 {
    (at..at + n).fold(0, |value, i| value << 8 | u64::from(bytes.get(i).copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEO: Geometry = Geometry { version: 3, cluster_bits: 16, refcount_order: 4 };

    #[test]
    fn types_follow_the_order_of_decision() {
        assert_eq!(ClusterType::of(0), ClusterType::Unallocated);
        assert_eq!(ClusterType::of(ZERO), ClusterType::ZeroPlain);
        assert_eq!(ClusterType::of(0x50000 | ZERO | COPIED), ClusterType::ZeroAlloc);
        assert_eq!(ClusterType::of(0x50000 | COPIED), ClusterType::Normal);
        assert_eq!(ClusterType::of(COMPRESSED | ZERO), ClusterType::Compressed);
    }

    #[test]
    fn compressed_descriptor_of_64k_clusters() {
        assert_eq!(GEO.compressed_shift(), 54);
        assert_eq!(GEO.compressed_extent(COMPRESSED | 3 << 54 | 0x50123), (0x50123, 4 * 512 - 0x123));
    }

    #[test]
    fn one_l2_table_maps_512_mib() {
        assert_eq!(GEO.l1_index((512 << 20) - 1), 0);
        assert_eq!(GEO.l1_index(512 << 20), 1);
        assert_eq!(GEO.l1_entries(64 << 20), 1);
        assert_eq!(GEO.l1_entries(0), 0);
        assert_eq!(GEO.refcount_max(), 0xffff);
    }
}
