//! Facts about an open image, for `qemu-img info` and `query-named-block-nodes`.

use serde_json::{Value, json};

use super::Qcow2;
use super::header::{AUTOCLEAR_RAW_DATA, COMPAT_LAZY_REFCOUNTS, INCOMPAT_CORRUPT, INCOMPAT_DATA_FILE, INCOMPAT_DIRTY};
use super::snapshot::Snapshot;

/// A persistent bitmap as the image's directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the guest that one bit stands for.
    pub granularity: u64,
    /// The bitmap was not stored properly by its last user.
    pub in_use: bool,
    /// The bitmap records from the moment the image is opened.
    pub auto: bool,
}

/// What `format-specific` information and its surroundings say about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3; `compat` is `0.10` or `1.1`.
    pub version: u32,
    /// Virtual size, bytes.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The dirty bit is set.
    pub dirty: bool,
    /// The corrupt bit is set.
    pub corrupt: bool,
    /// Refcounts may be postponed.
    pub lazy_refcounts: bool,
    /// Width of a refcount, bits.
    pub refcount_bits: u32,
    /// Data is in another file, which is not open: whether that is the guest's disk as it is.
    pub data_file_raw: Option<bool>,
    /// Data is encrypted, by the first of two methods.
    pub encrypted: bool,
    /// L2 entries of 16 bytes.
    pub extended_l2: bool,
    /// `zlib` or `zstd`.
    pub compression_type: &'static str,
    /// Name of the backing file.
    pub backing_file: Option<String>,
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
}

impl Snapshot {
    /// What QMP and qemu-img say of it (`SnapshotInfo` in `qapi/block-core.json`).
    pub fn info(&self) -> Value {
        let mut value = json!({
            "id": self.id,
            "name": self.name,
            "vm-state-size": self.vm_state_size,
            "date-sec": self.date_sec,
            "date-nsec": self.date_nsec,
            "vm-clock-sec": self.vm_clock_nsec / 1_000_000_000,
            "vm-clock-nsec": self.vm_clock_nsec % 1_000_000_000,
        });
        if let Some(count) = self.icount {
            value["icount"] = json!(count);
        }
        value
    }
}

impl Qcow2 {
    /// Facts about the image as it is in memory.
    pub fn info(&self) -> Qcow2Info {
        let header = self.header.borrow();
        let extras = self.extras.borrow();
        Qcow2Info {
            version: header.version,
            virtual_size: header.size & !511,
            cluster_size: self.geo.cluster_size(),
            dirty: header.incompatible & INCOMPAT_DIRTY != 0,
            corrupt: header.incompatible & INCOMPAT_CORRUPT != 0,
            lazy_refcounts: header.compatible & COMPAT_LAZY_REFCOUNTS != 0,
            refcount_bits: 1 << header.refcount_order,
            data_file_raw: (header.incompatible & INCOMPAT_DATA_FILE != 0)
                .then_some(header.autoclear & AUTOCLEAR_RAW_DATA != 0),
            encrypted: header.crypt_method != 0,
            extended_l2: false,
            compression_type: if header.compression_type == 0 { "zlib" } else { "zstd" },
            backing_file: self.backing_name(),
            backing_format: extras.backing_format.clone(),
            snapshots: self.snapshots.borrow().list.clone(),
        }
    }
}
