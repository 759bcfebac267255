//! Opening an image: what is read, what is refused, in QEMU's order and words.
//!
//! Reads the header, the L1 table, the refcount table, extensions and snapshots; L2 tables and
//! refcount blocks follow when they are needed. Only a writable open may write. QEMU's source:
//! `qcow2_do_open` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, NodeId, ReqFlags};
use crate::errno::{Errno, Res};
use crate::sim::CoMutex;
use crate::sim::shared::{Cell, RefCell};
use crate::store::TEST_PREFIX;

use super::cache::{Cache, CacheKind};
use super::check::Fix;
use super::compressed::Threads;
use super::extensions::{read_extensions, unknown_features};
use super::header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA, HEADER_BYTES, Header, INCOMPAT_COMPRESSION, INCOMPAT_CORRUPT,
    INCOMPAT_DATA_FILE, INCOMPAT_DIRTY, INCOMPAT_EXTENDED_L2, MAGIC,
};
use super::layout::{ENTRY_BYTES, Geometry, L1E_OFFSET_MASK, MAX_L1_BYTES, MAX_REFTABLE_BYTES};
use super::options::{OpenFlags, Qcow2Options};
use super::overlap::Span;
use super::refcount::Reftable;
use super::snapshot::{FIXED_BYTES, MAX_SNAPSHOTS, read_snapshots};
use super::table::{content_prefix, entries_of};
use super::{Edge, Qcow2};

/// Incompatible features that are known here.
const KNOWN_INCOMPATIBLE: u64 =
    INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_DATA_FILE | INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2;
/// Autoclear features that are known here.
const KNOWN_AUTOCLEAR: u64 = AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA;
/// The largest L2 cache by default, bytes.
const MAX_L2_CACHE_BYTES: u64 = 32 << 20;
/// An L2 cache that cannot cover the disk has entries of this size, bytes.
const SMALL_L2_ENTRY_BYTES: u64 = 4096;
/// Refcount blocks in the cache, at least.
const MIN_REFCOUNT_CACHE: u64 = 4;
/// L2 tables or slices in the cache, at least.
const MIN_L2_CACHE: u64 = 2;

/// Reads a short piece of metadata.
pub(super) async fn read_bytes(block: &Rc<Block>, file: NodeId, offset: u64, bytes: u64) -> Res<Vec<u8>> {
    block.co_pread(file, offset, bytes, ReqFlags::NONE).await.map(|content| content.to_vec())
}

impl Qcow2 {
    /// Opens the image in `file` for `node`, and sets that node's length. The error is QEMU's text.
    pub async fn open(
        block: &Rc<Block>,
        node: NodeId,
        file: &Rc<Edge>,
        options: &Qcow2Options,
        flags: OpenFlags,
    ) -> Result<Rc<Qcow2>, String> {
        let edge = file.clone();
        let file = edge.child.get();
        let mut header = read_header(block, file).await?;
        check_features(block, file, &header, flags).await?;
        if header.crypt_method == 1 && block.program != "qemu-img" {
            return Err("Use of AES-CBC encrypted qcow2 images is no longer supported in system emulators".to_owned());
        }
        check_tables(&header, flags)?;
        let l1 = read_l1(block, file, &header).await?;
        check_sizes(block, options)?;
        let caches = cache_shape(&header, options)?;
        let reftable = read_reftable(block, file, &header).await?;
        let mut found = read_extensions(block, file, &header).await?;
        check_data_file(&header, found.data_file, flags)?;
        check_encryption(&header, flags)?;
        found.extras.backing_name = read_backing_name(block, file, &header).await?;
        if flags.check {
            // QEMU leaves reading snapshots to the check, and forgets them until then. If the header
            // is rewritten in between, for its bitmaps, it loses them for good.
            (header.nb_snapshots, header.snapshots_offset) = (0, 0);
        }
        let snapshots = read_snapshots(block, file, &header, None).await.map_err(|fault| fault.reason)?;
        let mut rewrite = found.outdated;
        if !flags.check && !flags.read_only && header.autoclear & !KNOWN_AUTOCLEAR != 0 {
            header.autoclear &= KNOWN_AUTOCLEAR;
            rewrite = true;
        }
        let dirty = header.incompatible & INCOMPAT_DIRTY != 0;
        let open_node = block.node(node);
        let image = Rc::new(Qcow2 {
            node,
            file: edge,
            options: RefCell::new(options.clone()),
            geo: Geometry {
                version: header.version,
                cluster_bits: header.cluster_bits,
                refcount_order: header.refcount_order,
            },
            l2_span: Cell::new(Span::of(l1.iter().map(|entry| entry & L1E_OFFSET_MASK))),
            l1: RefCell::new(l1),
            l1_offset: Cell::new(header.l1_table_offset),
            reftable: RefCell::new(reftable),
            l2_cache: Cache::new(CacheKind::L2, caches.l2_entries, caches.l2_entry_bytes),
            refcount_cache: Cache::new(CacheKind::Refcount, caches.refcount_entries, 1 << header.cluster_bits),
            free_cluster_index: Cell::new(0),
            free_byte_offset: Cell::new(0),
            lock: CoMutex::default(),
            threads: Threads::default(),
            in_flight: RefCell::default(),
            discards: RefCell::default(),
            cache_discards: Cell::new(false),
            snapshots: RefCell::new(snapshots),
            read_only: Cell::new(flags.read_only),
            signaled_corruption: Cell::new(false),
            ejected: Cell::new(false),
            extras: RefCell::new(found.extras),
            prefixed: block.filename(file).contains(TEST_PREFIX),
            preallocated: Cell::new(None),
            header: RefCell::new(header),
        });
        image.finish_open(block, flags, rewrite, dirty).await.inspect_err(|_| {
            *open_node.bitmaps.borrow_mut() = Default::default();
        })?;
        let size = image.virtual_size();
        if size > i64::MAX as u64 {
            return Err("Could not refresh total sector count: File too large".to_owned());
        }
        open_node.length.set(size);
        Ok(image)
    }

    /// The part of opening that may write.
    async fn finish_open(
        self: &Rc<Self>,
        block: &Rc<Block>,
        flags: OpenFlags,
        rewrite: bool,
        dirty: bool,
    ) -> Result<(), String> {
        let rewritten = self.load_bitmaps(block).await?;
        if rewrite && !rewritten && !flags.read_only {
            let updated = self.update_header(block).await;
            updated.map_err(|error| format!("Could not update qcow2 header: {error}"))?;
        }
        if dirty && !flags.check && !flags.read_only {
            let failed = |error| format!("Could not repair dirty image: {error}");
            let (result, outcome) = self.check_locked(block, Fix::ALL).await;
            outcome.map_err(failed)?;
            if result.check_errors > 0 {
                return Err(failed(Errno::EIO));
            }
        }
        Ok(())
    }

    /// Gives the caches the shape that the virtual size asks for; they must be clean.
    pub(super) fn reshape_caches(&self) {
        // The options were valid when the image was opened.
        if let Ok(shape) = cache_shape(&self.header.borrow(), &self.options.borrow()) {
            self.l2_cache.reshape(shape.l2_entries, shape.l2_entry_bytes);
            self.refcount_cache.reshape(shape.refcount_entries, self.geo.cluster_size());
        }
    }
}

async fn read_header(block: &Rc<Block>, file: NodeId) -> Result<Header, String> {
    let bytes = read_bytes(block, file, 0, HEADER_BYTES).await;
    let bytes = bytes.map_err(|error| format!("Could not read qcow2 header: {error}"))?;
    let mut header = Header::parse(&bytes);
    if header.magic != MAGIC {
        return Err("Image is not in qcow2 format".to_owned());
    }
    if !(2..=3).contains(&header.version) {
        return Err(format!("Unsupported qcow2 version {}", header.version));
    }
    if !(9..=21).contains(&header.cluster_bits) {
        return Err(format!("Unsupported cluster size: 2^{}", header.cluster_bits));
    }
    if header.version >= 3 {
        if header.header_length < 104 {
            return Err("qcow2 header too short".to_owned());
        }
        if u64::from(header.header_length) > 1 << header.cluster_bits {
            return Err("qcow2 header exceeds cluster size".to_owned());
        }
        if let Some(more) = u64::from(header.header_length).checked_sub(HEADER_BYTES).filter(|n| *n > 0) {
            let unknown = read_bytes(block, file, HEADER_BYTES, more).await;
            header.unknown_fields =
                unknown.map_err(|error| format!("Could not read unknown qcow2 header fields: {error}"))?;
        }
    }
    if header.backing_file_offset > 1 << header.cluster_bits {
        return Err("Invalid backing file offset".to_owned());
    }
    Ok(header)
}

async fn check_features(block: &Rc<Block>, file: NodeId, header: &Header, flags: OpenFlags) -> Result<(), String> {
    let has = |bit: u64| header.incompatible & bit != 0;
    match header.compression_type {
        0 if has(INCOMPAT_COMPRESSION) => {
            return Err("qcow2: Compression type incompatible feature bit must not be set".to_owned());
        }
        0 => {}
        1 if !has(INCOMPAT_COMPRESSION) => {
            return Err("qcow2: Compression type incompatible feature bit must be set".to_owned());
        }
        1 => {}
        other => return Err(format!("qcow2: unknown compression type: {other}")),
    }
    let unknown = header.incompatible & !KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        return Err(unknown_features(block, file, header, unknown).await);
    }
    if has(INCOMPAT_CORRUPT) && !flags.read_only && !flags.check {
        return Err("qcow2: Image is corrupt; cannot be opened read/write".to_owned());
    }
    if has(INCOMPAT_EXTENDED_L2) {
        let subcluster = (1u64 << header.cluster_bits) / 32;
        if subcluster < 512 {
            return Err(format!("Unsupported subcluster size: {subcluster}"));
        }
        return Err("backsim does not support extended L2 entries".to_owned());
    }
    if header.refcount_order > 6 {
        return Err("Reference count entry width too large; may not exceed 64 bits".to_owned());
    }
    Ok(())
}

/// Whether a table of so many bytes can lie at `offset`.
fn table_fits(header: &Header, offset: u64, bytes: u64) -> bool {
    let aligned = offset & ((1 << header.cluster_bits) - 1) == 0;
    aligned && offset.checked_add(bytes).is_some_and(|end| i64::try_from(end).is_ok())
}

fn check_tables(header: &Header, flags: OpenFlags) -> Result<(), String> {
    if header.refcount_table_clusters == 0 && !flags.check {
        return Err("Image does not contain a reference count table".to_owned());
    }
    let reftable_bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    if reftable_bytes > MAX_REFTABLE_BYTES {
        return Err("Reference count table too large".to_owned());
    }
    if !table_fits(header, header.refcount_table_offset, reftable_bytes) {
        return Err("Reference count table offset invalid".to_owned());
    }
    if !flags.check {
        let snapshots = u64::from(header.nb_snapshots);
        if snapshots > MAX_SNAPSHOTS {
            return Err("Snapshot table too large".to_owned());
        }
        if !table_fits(header, header.snapshots_offset, snapshots * FIXED_BYTES) {
            return Err("Snapshot table offset invalid".to_owned());
        }
    }
    let l1_bytes = u64::from(header.l1_size) * ENTRY_BYTES;
    if l1_bytes > MAX_L1_BYTES {
        return Err("Active L1 table too large".to_owned());
    }
    if !table_fits(header, header.l1_table_offset, l1_bytes) {
        return Err("Active L1 table offset invalid".to_owned());
    }
    let geo = Geometry { version: header.version, cluster_bits: header.cluster_bits, refcount_order: 4 };
    let needed = geo.l1_entries(header.size);
    if needed > i32::MAX as u64 {
        return Err("Image is too big".to_owned());
    }
    if u64::from(header.l1_size) < needed {
        return Err("L1 table is too small".to_owned());
    }
    Ok(())
}

async fn read_l1(block: &Rc<Block>, file: NodeId, header: &Header) -> Result<Vec<u64>, String> {
    if header.l1_size == 0 {
        return Ok(Vec::new());
    }
    let content = block.co_pread(file, header.l1_table_offset, u64::from(header.l1_size) * ENTRY_BYTES, ReqFlags::NONE);
    let content = content.await.map_err(|error| format!("Could not read L1 table: {error}"))?;
    let mut l1 = entries_of(&content_prefix(&content));
    l1.resize(header.l1_size as usize, 0);
    Ok(l1)
}

async fn read_reftable(block: &Rc<Block>, file: NodeId, header: &Header) -> Result<Reftable, String> {
    let bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    let mut table = Reftable { offset: header.refcount_table_offset, len: bytes / ENTRY_BYTES, entries: Vec::new() };
    if bytes > 0 {
        block.debug_event(file, BlkdebugEvent::ReftableLoad).await;
        let content = block.co_pread(file, table.offset, bytes, ReqFlags::NONE).await;
        let content = content.map_err(|error| format!("Could not initialize refcount handling: {error}"))?;
        table.entries = entries_of(&content_prefix(&content));
    }
    Ok(table)
}

/// Data may not be anywhere else. Who only looks at metadata does not ask.
fn check_data_file(header: &Header, named: bool, flags: OpenFlags) -> Result<(), String> {
    if flags.no_io {
        return Ok(());
    }
    if header.incompatible & INCOMPAT_DATA_FILE != 0 {
        return Err("'data-file' is required for this image".to_owned());
    }
    if named {
        return Err("'data-file' can only be set for images with an external data file".to_owned());
    }
    if header.autoclear & AUTOCLEAR_RAW_DATA != 0 {
        return Err("data-file-raw requires a data file".to_owned());
    }
    Ok(())
}

/// A guest's data must be there as it is: nothing here has a key. QEMU 7.2 dies where it looks at the metadata of an
/// image of the second method without its header; later ones refuse it.
fn check_encryption(header: &Header, flags: OpenFlags) -> Result<(), String> {
    match header.crypt_method {
        2 => Err("Missing CRYPTO header for crypt method 2".to_owned()),
        1 if !flags.no_io => Err("Parameter 'encrypt.key-secret' is required for cipher".to_owned()),
        _ => Ok(()),
    }
}

async fn read_backing_name(block: &Rc<Block>, file: NodeId, header: &Header) -> Result<Option<String>, String> {
    if header.backing_file_offset == 0 {
        return Ok(None);
    }
    let len = u64::from(header.backing_file_size);
    let room = (1u64 << header.cluster_bits) - header.backing_file_offset;
    if len > room.min(1023) {
        return Err("Backing file name too long".to_owned());
    }
    let name = read_bytes(block, file, header.backing_file_offset, len).await;
    let name = name.map_err(|error| format!("Could not read backing file name: {error}"))?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()).filter(|name| !name.is_empty()))
}

/// Refuses negative sizes, which only the driver notices.
pub(super) fn check_sizes(block: &Block, options: &Qcow2Options) -> Result<(), String> {
    let negative =
        options.sizes().into_iter().find_map(|(name, size)| size.filter(|size| *size < 0).map(|n| (name, n)));
    match negative {
        None => Ok(()),
        Some((name, size)) => Err(block.negative_size(name, size)),
    }
}

/// Sizes of the caches, in entries.
pub(super) struct CacheShape {
    l2_entries: usize,
    l2_entry_bytes: u64,
    refcount_entries: usize,
}

pub(super) fn cache_shape(header: &Header, options: &Qcow2Options) -> Result<CacheShape, String> {
    let cluster = 1u64 << header.cluster_bits;
    if header.crypt_method > 2 {
        return Err(format!("Unsupported encryption method {}", header.crypt_method as i32));
    }
    let whole_disk = (header.size.div_ceil(cluster).saturating_mul(ENTRY_BYTES)).next_multiple_of(cluster);
    let [both, given_l2, given_entry, given_refcount] = options.sizes().map(|(_, size)| size.map(i64::unsigned_abs));
    let mut refcount = given_refcount.unwrap_or(MIN_REFCOUNT_CACHE * cluster);
    let mut l2 = given_l2.unwrap_or(MAX_L2_CACHE_BYTES).min(whole_disk);
    if let Some(both) = both {
        match (given_l2, given_refcount) {
            (Some(_), Some(_)) => {
                let text = "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
                return Err(text.to_owned());
            }
            (Some(size), None) if size > both => return Err("l2-cache-size may not exceed cache-size".to_owned()),
            (None, Some(size)) if size > both => return Err("refcount-cache-size may not exceed cache-size".to_owned()),
            (Some(size), None) => refcount = both - size,
            (None, Some(size)) => l2 = (both - size).min(whole_disk),
            (None, None) => {
                l2 = both.saturating_sub(refcount).min(whole_disk);
                refcount = (both - l2.min(both)).max(refcount);
            }
        }
    }
    let default_entry = if l2 < whole_disk { cluster.min(SMALL_L2_ENTRY_BYTES) } else { cluster };
    let entry = given_entry.unwrap_or(default_entry);
    if !entry.is_power_of_two() || entry < 512 || entry > cluster {
        return Err(format!("L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"));
    }
    let l2_entries = (l2 / entry).max(MIN_L2_CACHE);
    let refcount_entries = (refcount / cluster).max(MIN_REFCOUNT_CACHE);
    if l2_entries > i32::MAX as u64 {
        return Err("L2 cache size too big".to_owned());
    }
    if refcount_entries > i32::MAX as u64 {
        return Err("Refcount cache size too big".to_owned());
    }
    if options.cache_clean_interval.is_some_and(|seconds| u32::try_from(seconds).is_err()) {
        return Err("Cache clean interval too big".to_owned());
    }
    if options.lazy_refcounts == Some(true) && header.version < 3 {
        let text = "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
        return Err(text.to_owned());
    }
    if options.discard_no_unref && header.version < 3 {
        return Err("discard-no-unref is only supported since qcow2 version 3".to_owned());
    }
    Ok(CacheShape {
        l2_entries: l2_entries as usize,
        l2_entry_bytes: entry,
        refcount_entries: refcount_entries as usize,
    })
}
