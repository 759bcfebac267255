//! A qcow2 image as bytes in a file: every cluster that it refers to, against its refcounts.
//!
//! This is written from the format's specification (`docs/interop/qcow2.txt`) and shares no code with the driver
//! that it judges. It reads only tables, never guest data. Images with internal snapshots are not judged.

use std::collections::BTreeMap;

use crate::store::Store;

const MAGIC: u64 = 0x5146_49FB;
const OFFSETS: u64 = 0x00FF_FFFF_FFFF_FE00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const BITMAPS_EXTENSION: u64 = 0x2385_2875;

/// What is wrong with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The first thing that could lose or mix data.
    pub corruption: Option<String>,
    /// Clusters that nobody refers to any more.
    pub leaks: u64,
}

/// What refers to a cluster.
struct Use {
    what: &'static str,
    count: u64,
    /// It may be used only once.
    exclusive: bool,
}

struct Image<'a> {
    store: &'a Store,
    cluster_bits: u32,
    uses: BTreeMap<u64, Use>,
    verdict: Verdict,
    /// L1 and L2 entries: host cluster, and whether they say that nobody else uses it.
    copied: Vec<(u64, bool)>,
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or(&[]).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The refcounts in a piece of a block; each has `1 << order` bits.
fn entries(piece: &[u8], order: u32) -> impl Iterator<Item = u64> {
    let bits = piece.len() as u64 * 8;
    (0..bits >> order).map(move |number| match order {
        0..3 => {
            let bit = number << order;
            u64::from(piece[(bit / 8) as usize] >> (bit % 8)) & ((1 << (1 << order)) - 1)
        }
        _ => be(piece, (number as usize) << (order - 3), 1 << (order - 3)),
    })
}

/// Judges what a file holds; none if it is no qcow2 image, or one that is not judged.
pub fn judge(store: &Store) -> Option<Verdict> {
    // Most files of most runs are raw.
    if be(&read(store, 0, 8), 0, 4) != MAGIC {
        return None;
    }
    let header = read(store, 0, 4096);
    if header.len() < 104 {
        return None;
    }
    let (version, cluster_bits) = (be(&header, 4, 4), be(&header, 20, 4) as u32);
    if !(9..=21).contains(&cluster_bits) || be(&header, 60, 4) > 0 {
        return None;
    }
    let mut image = Image { store, cluster_bits, uses: BTreeMap::new(), verdict: Verdict::default(), copied: vec![] };
    let v3 = version >= 3;
    let (incompatible, autoclear) = if v3 { (be(&header, 72, 8), be(&header, 88, 8)) } else { (0, 0) };
    let order = if v3 { be(&header, 96, 4) as u32 } else { 4 };
    image.refer(0, 1 << cluster_bits, "the header", true);
    image.walk_tables(&header, incompatible & 16 != 0);
    if autoclear & 1 != 0 {
        image.walk_bitmaps(&header);
    }
    if incompatible & 2 != 0 {
        image.corrupt("the driver itself marked it corrupt".to_owned());
    }
    // With the dirty bit set refcounts do not count.
    if incompatible & 1 == 0 {
        image.compare(&header, order);
    }
    Some(image.verdict)
}

/// The pieces of a table that hold anything but zeros, each with its offset: tables are large and nearly empty.
fn pieces_with_content(table: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    const PIECE: usize = 256;
    let pieces = (0..).step_by(PIECE).zip(table.chunks(PIECE));
    pieces.filter(|(_, piece)| *piece != &[0; PIECE][..piece.len()])
}

fn read(store: &Store, offset: u64, bytes: u64) -> Vec<u8> {
    let bytes = bytes.min(store.len().saturating_sub(offset));
    store.read(offset, bytes).map(|content| content.to_vec()).unwrap_or_default()
}

impl Image<'_> {
    fn corrupt(&mut self, text: String) {
        self.verdict.corruption.get_or_insert(text);
    }

    /// The words of a table that are not zero, with their numbers.
    fn words(&self, offset: u64, count: u64) -> Vec<(u64, u64)> {
        let table = read(self.store, offset, count * 8);
        let words = pieces_with_content(&table).flat_map(|(at, piece)| (at / 8..).zip(piece.chunks_exact(8)));
        words.map(|(at, word)| (at as u64, be(word, 0, 8))).filter(|(_, word)| *word != 0).collect()
    }

    fn refer(&mut self, offset: u64, bytes: u64, what: &'static str, exclusive: bool) {
        if bytes == 0 {
            return;
        }
        let (first, last) = (offset >> self.cluster_bits, (offset + bytes - 1) >> self.cluster_bits);
        for cluster in first..=last {
            let used = self.uses.entry(cluster).or_insert(Use { what, count: 0, exclusive });
            used.count += 1;
            if used.count > 1 && (exclusive || used.exclusive) {
                let text = format!("cluster {cluster} is used as {} and as {what}", used.what);
                self.corrupt(text);
            }
        }
    }

    fn refer_aligned(&mut self, offset: u64, bytes: u64, what: &'static str) -> bool {
        let aligned = offset.is_multiple_of(1 << self.cluster_bits);
        if aligned {
            self.refer(offset, bytes, what, true);
        } else {
            self.corrupt(format!("{what} at {offset:#x} is not at the begin of a cluster"));
        }
        aligned
    }

    fn walk_tables(&mut self, header: &[u8], extended: bool) {
        let cluster = 1u64 << self.cluster_bits;
        let (l1_offset, l1_entries) = (be(header, 40, 8), be(header, 36, 4));
        self.refer_aligned(l1_offset, l1_entries * 8, "the L1 table");
        let (table_offset, table_bytes) = (be(header, 48, 8), be(header, 56, 4) << self.cluster_bits);
        self.refer_aligned(table_offset, table_bytes, "the refcount table");
        for (_, entry) in self.words(table_offset, table_bytes / 8) {
            if entry & OFFSETS != 0 {
                self.refer_aligned(entry & OFFSETS, cluster, "a refcount block");
            }
        }
        let stride = if extended { 2 } else { 1 };
        for (_, entry) in self.words(l1_offset, l1_entries) {
            let offset = entry & OFFSETS;
            if offset == 0 || !self.refer_aligned(offset, cluster, "an L2 table") {
                continue;
            }
            self.copied.push((offset >> self.cluster_bits, entry & COPIED != 0));
            for (at, l2) in self.words(offset, cluster / 8) {
                if at % stride == 0 {
                    self.walk_l2_entry(l2);
                }
            }
        }
    }

    fn walk_l2_entry(&mut self, entry: u64) {
        let cluster = 1u64 << self.cluster_bits;
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << shift) - 1);
            let sectors = ((entry & !(3 << 62)) >> shift) + 1;
            let start = offset & !511;
            self.refer(start, sectors * 512, "compressed data", false);
        } else if entry & OFFSETS != 0 {
            let offset = entry & OFFSETS;
            if self.refer_aligned(offset, cluster, "guest data") {
                self.copied.push((offset >> self.cluster_bits, entry & COPIED != 0));
            }
        }
    }

    fn walk_bitmaps(&mut self, header: &[u8]) {
        let cluster = 1u64 << self.cluster_bits;
        let mut at = if be(header, 4, 4) >= 3 { be(header, 100, 4) as usize } else { 72 };
        while at + 8 <= header.len() {
            let (kind, len) = (be(header, at, 4), be(header, at + 4, 4) as usize);
            if kind == 0 {
                return;
            }
            if kind == BITMAPS_EXTENSION {
                break;
            }
            at += 8 + len.next_multiple_of(8);
        }
        let (count, bytes, offset) = (be(header, at + 8, 4), be(header, at + 16, 8), be(header, at + 24, 8));
        if count == 0 || !self.refer_aligned(offset, bytes, "the bitmap directory") {
            return;
        }
        let directory = read(self.store, offset, bytes);
        let mut at = 0;
        for _ in 0..count {
            let (table, entries) = (be(&directory, at, 8), be(&directory, at + 8, 4));
            let (name, extra) = (be(&directory, at + 18, 2), be(&directory, at + 20, 4));
            if table != 0 && self.refer_aligned(table, entries * 8, "a bitmap table") {
                let words = self.words(table, entries);
                for (_, entry) in words.into_iter().filter(|(_, entry)| entry & OFFSETS != 0) {
                    self.refer_aligned(entry & OFFSETS, cluster, "bitmap data");
                }
            }
            at += (24 + extra as usize + name as usize).next_multiple_of(8);
        }
    }

    /// Refcounts by cluster, as far as there are blocks for them.
    fn refcounts(&self, header: &[u8], order: u32) -> BTreeMap<u64, u64> {
        let (table_offset, table_bytes) = (be(header, 48, 8), be(header, 56, 4) << self.cluster_bits);
        let per_block = (8u64 << self.cluster_bits) >> order;
        let mut counts = BTreeMap::new();
        for (index, entry) in self.words(table_offset, table_bytes / 8) {
            if entry & OFFSETS == 0 {
                continue;
            }
            let block = read(self.store, entry & OFFSETS, 1 << self.cluster_bits);
            for (start, piece) in pieces_with_content(&block) {
                let first = index * per_block + ((start as u64 * 8) >> order);
                let found = (first..).zip(entries(piece, order));
                counts.extend(found.filter(|(_, count)| *count != 0));
            }
        }
        counts
    }

    fn compare(&mut self, header: &[u8], order: u32) {
        let counts = self.refcounts(header, order);
        let used: Vec<(u64, &'static str, u64)> =
            self.uses.iter().map(|(at, used)| (*at, used.what, used.count)).collect();
        for (cluster, what, uses) in used {
            let count = counts.get(&cluster).copied().unwrap_or(0);
            if count < uses {
                self.corrupt(format!("cluster {cluster} is {what}, but its refcount is {count}"));
            }
        }
        for (cluster, says) in std::mem::take(&mut self.copied) {
            let count = counts.get(&cluster).copied().unwrap_or(0);
            if says != (count == 1) {
                self.corrupt(format!("cluster {cluster} has refcount {count}, but its entry's flag says otherwise"));
            }
        }
        let uses = |cluster: &u64| self.uses.get(cluster).map_or(0, |used| used.count);
        self.verdict.leaks = counts.iter().filter(|(cluster, count)| **count > uses(cluster)).count() as u64;
    }
}
