//! Choices of numbers and names: sizes, clusters, granularities, places on a disk, and how they are written.
//!
//! Edges are as likely here as they are rare in life. Must never choose what real QEMU can't survive.

use super::world::{Level, World};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Names of bitmaps.
pub(super) const BITMAPS: [&str; 6] = ["bitmap0", "bitmap1", "b", "daily", "weekly", "inc-0"];

/// Names that no bitmap has.
pub(super) const NO_BITMAPS: [&str; 3] = ["bitmap404", "nothing", ""];

impl World {
    /// Bytes of a disk: at most `limit`, a round number but for hard scenarios.
    pub(super) fn disk_size(&mut self, limit: u64) -> u64 {
        let round = [MIB, 2 * MIB, 4 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB];
        let odd = [
            4100 * KIB,
            33_657_344,
            64 * MIB + 512,
            4 * MIB + 512,
            MIB + 512,
            100 * KIB,
            3 * MIB - 512,
            MIB - 4 * KIB,
            65024,
            2560 * KIB,
        ];
        let unround = self.level == Level::Hard && self.one_in(3);
        let sizes: Vec<u64> = if unround { odd.to_vec() } else { round.to_vec() };
        let fitting: Vec<u64> = sizes.into_iter().filter(|size| *size <= limit).collect();
        self.pick(&fitting)
    }

    /// Bytes of a qcow2 cluster for a disk of `size` bytes; none: QEMU's default.
    pub(super) fn cluster_size(&mut self, size: u64) -> Option<u64> {
        if self.coin() {
            return None;
        }
        // Small clusters on a large disk cost real QEMU more time than they show.
        let smallest = if size > 16 * MIB { 16 * KIB } else { 4 * KIB };
        let sizes = [4, 16, 32, 64, 64, 64, 128, 256, 1024, 2048].map(|kib| kib * KIB);
        let cluster = self.pick(&sizes).max(smallest);
        if size <= 8 * MIB && self.level == Level::Hard && self.one_in(12) { Some(512) } else { Some(cluster) }
    }

    /// A granularity that QEMU takes; none: its default.
    pub(super) fn granularity(&mut self) -> Option<u64> {
        if self.one_in(5) {
            return None;
        }
        let powers = [9, 9, 12, 14, 15, 16, 16, 17, 18, 20, 21];
        let edges = [10, 25, 30, 31];
        let power = if self.one_in(12) { self.pick(&edges) } else { self.pick(&powers) };
        Some(1 << power)
    }

    /// A granularity that QEMU refuses.
    pub(super) fn wrong_granularity(&mut self) -> i64 {
        self.pick(&[0, 1, 256, 513, 511, 3000, 65537, -1, -512, 1 << 32, 3 << 30, 98304])
    }

    /// A place on a disk of `size` bytes: offset and length, both multiples of 512 if the size is.
    pub(super) fn place(&mut self, size: u64) -> (u64, u64) {
        if size <= 64 * KIB {
            let sectors = (size / 512).max(1);
            let offset = self.rng.below(sectors);
            return (offset * 512, 512 * self.rng.between(1, sectors - offset));
        }
        let aligned = |world: &mut World, unit: u64, most: u64| {
            let bytes = (unit * world.rng.between(1, most)).min(size - size % 512);
            (world.rng.below((size - bytes) / unit + 1) * unit, bytes)
        };
        match self.rng.below(20) {
            0..=6 => aligned(self, 64 * KIB, 1),
            7..=9 => aligned(self, 64 * KIB, 8),
            10..=12 => aligned(self, 4 * KIB, 4),
            13 => aligned(self, 512, 4),
            14 => aligned(self, MIB, 4),
            15 => {
                let bytes = self.pick(&[512, 4 * KIB, 64 * KIB]);
                (size - size % 512 - bytes, bytes)
            }
            16 => (0, self.pick(&[512, 4 * KIB, 32 * KIB, 64 * KIB])),
            17 => {
                let bytes = self.pick(&[4 * KIB, 8 * KIB, 16 * KIB]);
                (self.rng.below((size - bytes) / KIB + 1) * KIB, bytes)
            }
            18 => {
                // The last clusters of the disk, whatever is left of them.
                let start = (size - 1) / (64 * KIB) * (64 * KIB);
                let start = start.saturating_sub(64 * KIB * self.rng.below(3));
                (start, size - size % 512 - start)
            }
            _ => (0, size - size % 512),
        }
    }

    /// A byte that guests write; never 0, so that it differs from what was never written.
    pub(super) fn pattern(&mut self) -> u8 {
        self.rng.between(1, 254) as u8
    }

    /// `number` in one of the ways in which people write it.
    pub(super) fn number(&mut self, number: u64) -> String {
        match self.rng.below(8) {
            0 if number.is_multiple_of(MIB) && number > 0 => format!("{}M", number / MIB),
            0 | 1 if number.is_multiple_of(KIB) && number > 0 => format!("{}k", number / KIB),
            0..=2 => number.to_string(),
            _ => format!("{number:#x}"),
        }
    }
}

/// A size as an option of `image` shows it.
pub(super) fn size_text(size: u64) -> String {
    match size {
        size if size >= MIB && size.is_multiple_of(MIB) => format!("{}M", size / MIB),
        size if size >= KIB && size.is_multiple_of(KIB) => format!("{}K", size / KIB),
        size => size.to_string(),
    }
}

/// The step option value for `size`: text with a unit, or a bare number.
pub(super) fn size_value(size: u64) -> super::yaml::Yaml {
    match size_text(size) {
        text if text.ends_with(['M', 'K']) => text.into(),
        _ => size.into(),
    }
}
