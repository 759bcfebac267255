//! The table of internal snapshots: read at open, so that refcounts can be checked and metadata
//! guarded.
//!
//! Snapshots are never made, applied or deleted here; a damaged table is repaired in `snapshot_check.rs`. QEMU's source: `block/qcow2-snapshot.c`.

use std::rc::Rc;

use crate::block::{Block, NodeId, ReqFlags};
use crate::errno::Errno;

use super::header::Header;
use super::layout::be_at;

/// Most internal snapshots.
pub(super) const MAX_SNAPSHOTS: u64 = 65536;
/// Largest snapshot table, bytes.
pub(super) const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Largest extra data of one entry, bytes.
const MAX_EXTRA_BYTES: u64 = 1024;
/// Extra data that QEMU knows, bytes.
const KNOWN_EXTRA_BYTES: u64 = 24;
/// The fixed part of an entry, bytes.
pub(super) const FIXED_BYTES: u64 = 40;
/// What is said of an entry with more extra data than that.
pub const CUT_HINT: &str = "You can force-remove this extra metadata with qemu-img check -r all";

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
    /// Those of them that nobody here knows.
    pub unknown_extra: Vec<u8>,
}

/// All internal snapshots and where their table lies.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) list: Vec<Snapshot>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Why a table can't be read.
pub(super) struct Unreadable {
    /// QEMU's text.
    pub(super) reason: String,
    /// What its user can do, which only the check tells.
    pub(super) hint: Option<String>,
    /// The same as an error number.
    pub(super) errno: Errno,
}

/// What reading for a repair has changed in the table.
#[derive(Default)]
pub(super) struct Repairs {
    /// Snapshots that were left out.
    pub(super) left_out: u64,
    /// Snapshots whose extra data was cut.
    pub(super) cut: u64,
}

/// Reads the table that a header describes; for a repair as far as it can be kept.
pub(super) async fn read_snapshots(
    block: &Rc<Block>,
    file: NodeId,
    header: &Header,
    mut repairs: Option<&mut Repairs>,
) -> Result<SnapshotTable, Unreadable> {
    let mut table = SnapshotTable::default();
    if header.nb_snapshots == 0 {
        return Ok(table);
    }
    let mut at = header.snapshots_offset;
    for index in 0..header.nb_snapshots {
        at = at.next_multiple_of(8);
        let (snapshot, next) = read_one(block, file, header, (index, at), &mut repairs).await?;
        if next - header.snapshots_offset > MAX_TABLE_BYTES {
            let more = header.nb_snapshots - index;
            let Some(repairs) = repairs else {
                let hint = format!("You can force-remove all {more} overhanging snapshots with qemu-img check -r all");
                let reason = "Snapshot table is too big".to_owned();
                return Err(Unreadable { reason, hint: Some(hint), errno: Errno::EFBIG });
            };
            block.report_stderr(format!("Discarding {more} overhanging snapshots (snapshot table is too big)"));
            repairs.left_out += u64::from(more);
            break;
        }
        at = next;
        table.list.push(snapshot);
    }
    (table.offset, table.bytes) = (header.snapshots_offset, at - header.snapshots_offset);
    Ok(table)
}

async fn read_one(
    block: &Rc<Block>,
    file: NodeId,
    header: &Header,
    (index, at): (u32, u64),
    repairs: &mut Option<&mut Repairs>,
) -> Result<(Snapshot, u64), Unreadable> {
    let read = |offset: u64, bytes: u64| async move {
        let content = block.co_pread(file, offset, bytes, ReqFlags::NONE).await;
        content.map(|c| c.to_vec()).map_err(|errno| Unreadable {
            reason: format!("Failed to read snapshot table: {errno}"),
            hint: None,
            errno,
        })
    };
    let fixed = read(at, FIXED_BYTES).await?;
    let (id_size, name_size) = (be_at(&fixed, 12, 2), be_at(&fixed, 14, 2));
    let extra_size = be_at(&fixed, 36, 4);
    if extra_size > MAX_EXTRA_BYTES {
        let Some(repairs) = repairs else {
            return Err(Unreadable {
                reason: format!("Too much extra metadata in snapshot table entry {index}"),
                hint: Some(CUT_HINT.to_owned()),
                errno: Errno::EFBIG,
            });
        };
        block.report_stderr(format!(
            "Discarding too much extra metadata in snapshot table entry {index} ({extra_size} > {MAX_EXTRA_BYTES})"
        ));
        repairs.cut += 1;
    }
    let mut extra = read(at + FIXED_BYTES, extra_size.min(KNOWN_EXTRA_BYTES)).await?;
    let kept = extra_size.min(MAX_EXTRA_BYTES);
    let unknown_extra = match kept > KNOWN_EXTRA_BYTES {
        true => read(at + FIXED_BYTES + KNOWN_EXTRA_BYTES, kept - KNOWN_EXTRA_BYTES).await?,
        false => Vec::new(),
    };
    extra.resize(KNOWN_EXTRA_BYTES as usize, 0);
    let names = at + FIXED_BYTES + extra_size;
    let id = read(names, id_size).await?;
    let name = read(names + id_size, name_size).await?;
    let snapshot = Snapshot {
        l1_table_offset: be_at(&fixed, 0, 8),
        l1_size: be_at(&fixed, 8, 4) as u32,
        id: text_of(&id),
        name: text_of(&name),
        date_sec: be_at(&fixed, 16, 4) as u32,
        date_nsec: be_at(&fixed, 20, 4) as u32,
        vm_clock_nsec: be_at(&fixed, 24, 8),
        vm_state_size: if extra_size >= 8 { be_at(&extra, 0, 8) } else { be_at(&fixed, 32, 4) },
        disk_size: if extra_size >= 16 { be_at(&extra, 8, 8) } else { header.size },
        icount: (extra_size >= KNOWN_EXTRA_BYTES).then(|| be_at(&extra, 16, 8)).filter(|count| *count != u64::MAX),
        extra_bytes: kept,
        unknown_extra,
    };
    Ok((snapshot, names + id_size + name_size))
}

impl Snapshot {
    /// Bytes of extra data as the entry is written.
    pub(super) fn stored_extra_bytes(&self) -> u64 {
        KNOWN_EXTRA_BYTES + self.unknown_extra.len() as u64
    }

    /// The entry as it is written.
    pub(super) fn entry(&self) -> Vec<u8> {
        let mut entry = Vec::new();
        entry.extend(self.l1_table_offset.to_be_bytes());
        entry.extend(self.l1_size.to_be_bytes());
        entry.extend((self.id.len() as u16).to_be_bytes());
        entry.extend((self.name.len() as u16).to_be_bytes());
        entry.extend(self.date_sec.to_be_bytes());
        entry.extend(self.date_nsec.to_be_bytes());
        entry.extend(self.vm_clock_nsec.to_be_bytes());
        // The old field, for what does not know the larger one.
        entry.extend(u32::try_from(self.vm_state_size).unwrap_or(0).to_be_bytes());
        entry.extend((self.stored_extra_bytes() as u32).to_be_bytes());
        entry.extend(self.vm_state_size.to_be_bytes());
        entry.extend(self.disk_size.to_be_bytes());
        entry.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
        entry.extend(&self.unknown_extra);
        entry.extend(self.id.bytes());
        entry.extend(self.name.bytes());
        entry
    }
}

/// A text as QEMU takes it, up to the first zero byte.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
