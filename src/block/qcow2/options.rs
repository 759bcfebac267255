//! What an image is opened and created with.

use crate::block::Preallocation;

/// Run-time options of a qcow2 node, as `blockdev-add` gives them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Qcow2Options {
    /// `lazy-refcounts`; none: what the image says.
    pub lazy_refcounts: Option<bool>,
    /// `pass-discard-request`; none: if the node has `discard: unmap`.
    pub pass_discard_request: Option<bool>,
    /// `pass-discard-other`.
    pub pass_discard_other: bool,
    /// `discard-no-unref` (8.1 and later).
    pub discard_no_unref: bool,
    /// `l2-cache-size`, bytes as given; none: as large as the disk needs, at most 32 MiB.
    pub l2_cache_size: Option<i64>,
    /// `l2-cache-entry-size`, bytes as given.
    pub l2_cache_entry_size: Option<i64>,
    /// `refcount-cache-size`, bytes as given.
    pub refcount_cache_size: Option<i64>,
    /// `cache-size`, bytes as given: both caches together.
    pub cache_size: Option<i64>,
    /// `cache-clean-interval`, seconds as given; nothing is cleaned.
    pub cache_clean_interval: Option<i64>,
}

impl Qcow2Options {
    /// The options that are sizes; QAPI lets negative ones through.
    pub fn sizes(&self) -> [(&'static str, Option<i64>); 4] {
        [
            ("cache-size", self.cache_size),
            ("l2-cache-size", self.l2_cache_size),
            ("l2-cache-entry-size", self.l2_cache_entry_size),
            ("refcount-cache-size", self.refcount_cache_size),
        ]
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Nothing is written, not even repairs.
    pub read_only: bool,
    /// For `qemu-img check`: some validations are left out.
    pub check: bool,
    /// Only metadata will be looked at.
    pub no_io: bool,
}

/// Options of `blockdev-create` for qcow2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2CreateOptions {
    /// Virtual size, bytes.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// 2 (`compat=0.10`) or 3.
    pub version: u32,
    /// Width of a refcount, bits.
    pub refcount_bits: u64,
    /// Postpone refcount updates.
    pub lazy_refcounts: bool,
    /// L2 entries of 16 bytes; not supported.
    pub extended_l2: bool,
    /// Name of the backing file.
    pub backing_file: Option<String>,
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// What to allocate at once.
    pub preallocation: Preallocation,
    /// Compress with zstd: stored in the header only; compressed writes are refused then.
    pub zstd: bool,
}

impl Default for Qcow2CreateOptions {
    fn default() -> Qcow2CreateOptions {
        Qcow2CreateOptions {
            size: 0,
            cluster_size: 65536,
            version: 3,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            backing_file: None,
            backing_format: None,
            preallocation: Preallocation::Off,
            zstd: false,
        }
    }
}
