//! The table of internal snapshots: read at open, so that refcounts can be checked and metadata
//! guarded.
//!
//! Snapshots are never made, applied or deleted here. QEMU's source: `block/qcow2-snapshot.c`.

use std::rc::Rc;

use crate::block::{Block, NodeId, ReqFlags};

use super::header::Header;
use super::layout::be_at;

/// Largest snapshot table, bytes.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Largest extra data of one entry, bytes.
const MAX_EXTRA_BYTES: u64 = 1024;
/// Extra data that QEMU knows, bytes.
const KNOWN_EXTRA_BYTES: u64 = 24;
/// The fixed part of an entry, bytes.
const FIXED_BYTES: u64 = 40;

/// An internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Host offset of its L1 table.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// Its id, a decimal number as a rule.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, s since 1970.
    pub date_sec: u32,
    /// Nanoseconds of that second.
    pub date_nsec: u32,
    /// The guest's clock, ns.
    pub vm_clock_nsec: u64,
    /// Bytes of the saved machine state.
    pub vm_state_size: u64,
    /// Virtual size at that time, bytes.
    pub disk_size: u64,
    /// Instruction count, if it was kept.
    pub icount: Option<u64>,
    /// Bytes of extra data in the table.
    pub extra_bytes: u64,
}

/// All internal snapshots and where their table lies.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) list: Vec<Snapshot>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Reads the table that a header describes. The error is QEMU's text.
pub(super) async fn read_snapshots(block: &Rc<Block>, file: NodeId, header: &Header) -> Result<SnapshotTable, String> {
    let mut table = SnapshotTable::default();
    if header.nb_snapshots == 0 {
        return Ok(table);
    }
    let mut at = header.snapshots_offset;
    for index in 0..header.nb_snapshots {
        at = at.next_multiple_of(8);
        let (snapshot, next) = read_one(block, file, header, index, at).await?;
        at = next;
        table.list.push(snapshot);
        if at - header.snapshots_offset > MAX_TABLE_BYTES {
            return Err("Snapshot table is too big".to_owned());
        }
    }
    (table.offset, table.bytes) = (header.snapshots_offset, at - header.snapshots_offset);
    Ok(table)
}

async fn read_one(
    block: &Rc<Block>,
    file: NodeId,
    header: &Header,
    index: u32,
    at: u64,
) -> Result<(Snapshot, u64), String> {
    let read = |offset: u64, bytes: u64| async move {
        let content = block.co_pread(file, offset, bytes, ReqFlags::NONE).await;
        content.map(|c| c.to_vec()).map_err(|error| format!("Failed to read snapshot table: {error}"))
    };
    let fixed = read(at, FIXED_BYTES).await?;
    let (id_size, name_size) = (be_at(&fixed, 12, 2), be_at(&fixed, 14, 2));
    let extra_size = be_at(&fixed, 36, 4);
    if extra_size > MAX_EXTRA_BYTES {
        return Err(format!("Too much extra metadata in snapshot table entry {index}"));
    }
    let extra = read(at + FIXED_BYTES, extra_size.min(KNOWN_EXTRA_BYTES)).await?;
    let names = at + FIXED_BYTES + extra_size;
    let id = read(names, id_size).await?;
    let name = read(names + id_size, name_size).await?;
    let snapshot = Snapshot {
        l1_table_offset: be_at(&fixed, 0, 8),
        l1_size: be_at(&fixed, 8, 4) as u32,
        id: String::from_utf8_lossy(&id).into_owned(),
        name: String::from_utf8_lossy(&name).into_owned(),
        date_sec: be_at(&fixed, 16, 4) as u32,
        date_nsec: be_at(&fixed, 20, 4) as u32,
        vm_clock_nsec: be_at(&fixed, 24, 8),
        vm_state_size: if extra_size >= 8 { be_at(&extra, 0, 8) } else { be_at(&fixed, 32, 4) },
        disk_size: if extra_size >= 16 { be_at(&extra, 8, 8) } else { header.size },
        icount: (extra_size >= 24).then(|| be_at(&extra, 16, 8)).filter(|count| *count != u64::MAX),
        extra_bytes: extra_size,
    };
    Ok((snapshot, names + id_size + name_size))
}
