//! Reading the header extensions of an image that is being opened.
//!
//! Reads exactly what QEMU reads: eight bytes for each extension, then the data of those that are
//! used. Unknown extensions are kept. QEMU's source: `qcow2_read_extensions` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{Block, NodeId};

use super::header::{
    AUTOCLEAR_BITMAPS, BitmapsExtension, EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_CRYPTO, EXT_DATA_FILE, EXT_END,
    EXT_FEATURES, Extras, FEATURE_BYTES, Header,
};
use super::layout::be_at;
use super::open::read_bytes;

/// Most bitmaps in an image.
pub(super) const MAX_BITMAPS: u32 = 65535;
/// Largest bitmap directory, bytes.
pub(super) const MAX_DIRECTORY_BYTES: u64 = 1024 * MAX_BITMAPS as u64;

/// What the extensions said.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) extras: Extras,
    /// The header must be rewritten: something in it does not hold any more.
    pub(super) outdated: bool,
    /// A data file is named.
    pub(super) data_file: bool,
}

/// Where the extensions begin and end.
fn area(header: &Header) -> (u64, u64) {
    let end = match header.backing_file_offset {
        0 => 1 << header.cluster_bits,
        offset => offset,
    };
    (u64::from(header.header_length), end)
}

/// Reads the extensions of an image.
pub(super) async fn read_extensions(block: &Rc<Block>, file: NodeId, header: &Header) -> Result<Extensions, String> {
    let mut found = Extensions::default();
    let (mut at, end) = area(header);
    while at < end {
        let (kind, len, data) = next_extension(block, file, at, end).await?;
        at = data + len.next_multiple_of(8);
        match kind {
            EXT_END => break,
            EXT_FEATURES => {}
            EXT_BACKING_FORMAT => {
                if len >= 16 {
                    return Err(format!("ERROR: ext_backing_format: len={len} too large (>=16)"));
                }
                let bytes = read_data(block, file, data, len).await?;
                found.extras.backing_format = Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            EXT_BITMAPS => bitmaps_extension(block, file, header, (data, len), &mut found).await?,
            EXT_CRYPTO => {
                return Err("CRYPTO header extension only expected with LUKS encryption method".to_owned());
            }
            EXT_DATA_FILE => {
                found.data_file = true;
                read_data(block, file, data, len).await?;
            }
            _ => {
                let bytes = read_data(block, file, data, len).await?;
                found.extras.unknown.insert(0, (kind, bytes));
            }
        }
    }
    Ok(found)
}

/// Type, length and data offset of the extension at `at`.
async fn next_extension(block: &Rc<Block>, file: NodeId, at: u64, end: u64) -> Result<(u32, u64, u64), String> {
    let head = read_bytes(block, file, at, 8).await;
    let head = head.map_err(|_| format!("qcow2_read_extension: ERROR: pread fail from offset {at}"))?;
    let (kind, len) = (be_at(&head, 0, 4) as u32, be_at(&head, 4, 4));
    let data = at + 8;
    if data > end || len > end - data {
        return Err("Header extension too large".to_owned());
    }
    Ok((kind, len, data))
}

async fn read_data(block: &Rc<Block>, file: NodeId, at: u64, len: u64) -> Result<Vec<u8>, String> {
    let read = read_bytes(block, file, at, len).await;
    read.map_err(|error| format!("ERROR: unknown extension: Could not read data: {error}"))
}

async fn bitmaps_extension(
    block: &Rc<Block>,
    file: NodeId,
    header: &Header,
    (data, len): (u64, u64),
    found: &mut Extensions,
) -> Result<(), String> {
    if len != u64::from(BitmapsExtension::BYTES) {
        return Err("bitmaps_ext: Invalid extension length".to_owned());
    }
    if header.autoclear & AUTOCLEAR_BITMAPS == 0 {
        warn_about_bitmaps(block, header.version);
        found.outdated = true;
        return Ok(());
    }
    let bytes = read_bytes(block, file, data, len).await;
    let bytes = bytes.map_err(|error| format!("bitmaps_ext: Could not read ext header: {error}"))?;
    let count = be_at(&bytes, 0, 4) as u32;
    let (directory_size, directory_offset) = (be_at(&bytes, 8, 8), be_at(&bytes, 16, 8));
    if be_at(&bytes, 4, 4) != 0 {
        return Err("bitmaps_ext: Reserved field is not zero".to_owned());
    }
    if count > MAX_BITMAPS {
        let limit = MAX_BITMAPS;
        return Err(format!("bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {limit}"));
    }
    if count == 0 {
        return Err("found bitmaps extension with zero bitmaps".to_owned());
    }
    if directory_offset & ((1 << header.cluster_bits) - 1) != 0 {
        return Err("bitmaps_ext: invalid bitmap directory offset".to_owned());
    }
    if directory_size > MAX_DIRECTORY_BYTES {
        return Err(format!(
            "bitmaps_ext: bitmap directory size ({directory_size}) exceeds the maximum supported size ({MAX_DIRECTORY_BYTES})"
        ));
    }
    found.extras.bitmaps = BitmapsExtension { count, directory_size, directory_offset };
    Ok(())
}

/// Another program wrote to the image without keeping its bitmaps up to date.
fn warn_about_bitmaps(block: &Block, version: u32) {
    let program = block.program;
    let warning = if version < 3 {
        format!(
            "{program}: warning: This qcow2 v2 image contains bitmaps, but they may have been modified by a program \
             without persistent bitmap support; so now they must all be considered inconsistent\n"
        )
    } else {
        // QEMU leaves the last line open.
        format!(
            "{program}: warning: a program lacking bitmap support modified this file, so all bitmaps are now \
             considered inconsistent\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
        )
    };
    block.stderr.borrow_mut().push_str(&warning);
}

/// The complaint about incompatible feature bits that are not known here; names come from the
/// image's own table.
pub(super) async fn unknown_features(block: &Rc<Block>, file: NodeId, header: &Header, mut bits: u64) -> String {
    let mut names = Vec::new();
    for (bit, name) in feature_names(block, file, header).await {
        if bit < 64 && bits & 1 << bit != 0 {
            names.push(name);
            bits &= !(1 << bit);
        }
    }
    if bits != 0 {
        names.push(format!("Unknown incompatible feature: {bits:x}"));
    }
    format!("Unsupported qcow2 feature(s): {}", names.join(", "))
}

/// The incompatible features that the image has names for.
async fn feature_names(block: &Rc<Block>, file: NodeId, header: &Header) -> Vec<(u8, String)> {
    let (mut at, end) = area(header);
    while at < end {
        let Ok((kind, len, data)) = next_extension(block, file, at, end).await else { break };
        match kind {
            EXT_END => break,
            EXT_FEATURES => {
                let Ok(table) = read_bytes(block, file, data, len).await else { break };
                let incompatible = table.chunks_exact(FEATURE_BYTES).filter(|entry| entry[0] == 0);
                return incompatible.map(|entry| (entry[1], feature_name(&entry[2..]))).collect();
            }
            _ => at = data + len.next_multiple_of(8),
        }
    }
    Vec::new()
}

fn feature_name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
