//! The image header and its extensions as bytes: reading fields, writing the first cluster.
//!
//! Only the encoding; what is acceptable, and in which order it is complained about, is decided in
//! `open.rs`. Unknown fields and extensions are carried along, as QEMU does (`block/qcow2.c`).

use super::layout::be_at;

/// `QFI\xfb`.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header that QEMU knows and writes in version 3.
pub(super) const HEADER_BYTES: u64 = 112;
/// Bytes of a version 2 header.
pub(super) const V2_HEADER_BYTES: u64 = 72;

/// Refcounts may be wrong.
pub(super) const INCOMPAT_DIRTY: u64 = 1;
/// Metadata may be wrong.
pub(super) const INCOMPAT_CORRUPT: u64 = 2;
/// Guest data are in another file.
pub(super) const INCOMPAT_DATA_FILE: u64 = 4;
/// The compression type is not deflate.
pub(super) const INCOMPAT_COMPRESSION: u64 = 8;
/// L2 entries of 16 bytes.
pub(super) const INCOMPAT_EXTENDED_L2: u64 = 16;
/// Refcount updates may be postponed.
pub(super) const COMPAT_LAZY_REFCOUNTS: u64 = 1;
/// The bitmaps extension is consistent with the image.
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1;
/// A guest's disk as it is lies in the external data file.
pub(super) const AUTOCLEAR_RAW_DATA: u64 = 2;

/// Extension: end of the list.
pub(super) const EXT_END: u32 = 0;
/// Extension: format of the backing file.
pub(super) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Extension: names of the feature bits.
pub(super) const EXT_FEATURES: u32 = 0x6803_f857;
/// Extension: where the bitmap directory lies.
pub(super) const EXT_BITMAPS: u32 = 0x2385_2875;
/// Extension: where the LUKS header lies.
pub(super) const EXT_CRYPTO: u32 = 0x0537_be77;
/// Extension: name of an external data file.
pub(super) const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Feature set, bit, name, in the order in which QEMU writes them.
pub(super) const FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
/// Bytes of one entry of the feature name table.
pub(super) const FEATURE_BYTES: usize = 48;

/// The fields of a header; offsets and sizes in bytes unless the name says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) magic: u32,
    pub(super) version: u32,
    pub(super) backing_file_offset: u64,
    pub(super) backing_file_size: u32,
    pub(super) cluster_bits: u32,
    /// Virtual size.
    pub(super) size: u64,
    pub(super) crypt_method: u32,
    /// Entries.
    pub(super) l1_size: u32,
    pub(super) l1_table_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) nb_snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) header_length: u32,
    pub(super) compression_type: u8,
    /// What follows the known fields up to `header_length`; written back as it was.
    pub(super) unknown_fields: Vec<u8>,
}

impl Header {
    /// Reads the fields; for version 2 those that only version 3 has get the values they imply.
    pub(super) fn parse(bytes: &[u8]) -> Header {
        let u32_at = |at| be_at(bytes, at, 4) as u32;
        let u64_at = |at| be_at(bytes, at, 8);
        let version = u32_at(4);
        let mut header = Header {
            magic: u32_at(0),
            version,
            backing_file_offset: u64_at(8),
            backing_file_size: u32_at(16),
            cluster_bits: u32_at(20),
            size: u64_at(24),
            crypt_method: u32_at(32),
            l1_size: u32_at(36),
            l1_table_offset: u64_at(40),
            refcount_table_offset: u64_at(48),
            refcount_table_clusters: u32_at(56),
            nb_snapshots: u32_at(60),
            snapshots_offset: u64_at(64),
            refcount_order: 4,
            header_length: V2_HEADER_BYTES as u32,
            ..Header::default()
        };
        if version >= 3 {
            header.incompatible = u64_at(72);
            header.compatible = u64_at(80);
            header.autoclear = u64_at(88);
            header.refcount_order = u32_at(96);
            header.header_length = u32_at(100);
            // The compression type is there only if the header is long enough to have it.
            if header.header_length > 104 {
                header.compression_type = be_at(bytes, 104, 1) as u8;
            }
        }
        header
    }

    /// The fields as bytes, unknown ones included.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize + self.unknown_fields.len());
        let put32 = |out: &mut Vec<u8>, v: u32| out.extend_from_slice(&v.to_be_bytes());
        let put64 = |out: &mut Vec<u8>, v: u64| out.extend_from_slice(&v.to_be_bytes());
        put32(&mut out, MAGIC);
        put32(&mut out, self.version);
        put64(&mut out, self.backing_file_offset);
        put32(&mut out, self.backing_file_size);
        put32(&mut out, self.cluster_bits);
        put64(&mut out, self.size);
        put32(&mut out, self.crypt_method);
        put32(&mut out, self.l1_size);
        put64(&mut out, self.l1_table_offset);
        put64(&mut out, self.refcount_table_offset);
        put32(&mut out, self.refcount_table_clusters);
        put32(&mut out, self.nb_snapshots);
        put64(&mut out, self.snapshots_offset);
        if self.version >= 3 {
            put64(&mut out, self.incompatible);
            put64(&mut out, self.compatible);
            put64(&mut out, self.autoclear);
            put32(&mut out, self.refcount_order);
            put32(&mut out, HEADER_BYTES as u32 + self.unknown_fields.len() as u32);
            out.push(self.compression_type);
            out.extend_from_slice(&[0; 7]);
            out.extend_from_slice(&self.unknown_fields);
        }
        out
    }
}

/// Where the bitmap directory lies and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BitmapsExtension {
    /// Bitmaps in the directory; 0 stands for "no extension".
    pub(super) count: u32,
    /// Bytes of the directory.
    pub(super) directory_size: u64,
    /// Host offset of the directory.
    pub(super) directory_offset: u64,
}

impl BitmapsExtension {
    /// Bytes of the extension's data.
    pub(super) const BYTES: u32 = 24;

    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.directory_size.to_be_bytes());
        out.extend_from_slice(&self.directory_offset.to_be_bytes());
        out
    }
}

/// Everything that the first cluster holds besides the header's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    pub(super) backing_name: Option<String>,
    pub(super) backing_format: Option<String>,
    pub(super) bitmaps: BitmapsExtension,
    /// Type and data; newest first, so that a rewrite reverses what was read.
    pub(super) unknown: Vec<(u32, Vec<u8>)>,
}

/// Lays out the first cluster: header, extensions, backing file name. Sets the header's backing
/// file fields. `None` if it does not fit.
pub(super) fn encode_first_cluster(header: &mut Header, extras: &Extras) -> Option<Vec<u8>> {
    let room = 1usize << header.cluster_bits;
    // The backing name's place is only known once the extensions are laid out.
    let mut out = header.encode();
    if let Some(format) = &extras.backing_format {
        push_extension(&mut out, EXT_BACKING_FORMAT, format.as_bytes());
    }
    if header.version >= 3 {
        if room > 4096 {
            push_extension(&mut out, EXT_FEATURES, &feature_table());
        }
        if extras.bitmaps.count > 0 {
            push_extension(&mut out, EXT_BITMAPS, &extras.bitmaps.encode());
        }
    }
    for (kind, data) in &extras.unknown {
        push_extension(&mut out, *kind, data);
    }
    push_extension(&mut out, EXT_END, &[]);
    (header.backing_file_offset, header.backing_file_size) = (0, 0);
    if let Some(name) = &extras.backing_name {
        header.backing_file_offset = out.len() as u64;
        header.backing_file_size = name.len() as u32;
        out.extend_from_slice(name.as_bytes());
    }
    if out.len() > room {
        return None;
    }
    out[8..16].copy_from_slice(&header.backing_file_offset.to_be_bytes());
    out[16..20].copy_from_slice(&header.backing_file_size.to_be_bytes());
    Some(out)
}

fn push_extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn feature_table() -> Vec<u8> {
    let mut out = Vec::with_capacity(FEATURES.len() * FEATURE_BYTES);
    for (set, bit, name) in FEATURES {
        let start = out.len();
        out.extend_from_slice(&[set, bit]);
        out.extend_from_slice(name.as_bytes());
        out.resize(start + FEATURE_BYTES, 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_header() -> Header {
        Header {
            magic: MAGIC,
            version: 3,
            cluster_bits: 16,
            size: 64 << 20,
            l1_size: 1,
            l1_table_offset: 0x30000,
            refcount_table_offset: 0x10000,
            refcount_table_clusters: 1,
            refcount_order: 4,
            header_length: 112,
            ..Header::default()
        }
    }

    #[test]
    fn fields_survive_a_round_trip() {
        let header = default_header();
        assert_eq!(Header::parse(&header.encode()), header);
    }

    #[test]
    fn backing_name_follows_the_end_marker() {
        let mut header = default_header();
        let extras = Extras {
            backing_name: Some("base.qcow2".into()),
            backing_format: Some("qcow2".into()),
            ..Extras::default()
        };
        let bytes = encode_first_cluster(&mut header, &extras).expect("fits into 64 KiB");
        assert_eq!(header.backing_file_offset, 0x210);
        assert_eq!(&bytes[0x210..], b"base.qcow2");
        assert_eq!(be_at(&bytes, 0x80, 4) as u32, EXT_FEATURES);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut header = Header { cluster_bits: 9, ..default_header() };
        let extras = Extras { unknown: vec![(7, vec![0; 512])], ..Extras::default() };
        assert_eq!(encode_first_cluster(&mut header, &extras), None);
    }
}
