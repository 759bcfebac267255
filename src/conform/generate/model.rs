//! A small model of disks and their dirty bitmaps: enough to know which command has a meaning and how many
//! granules are dirty. It is not the simulator and must never ask it: a generated expectation comes from here,
//! so that a mistake on either side shows in the transcript.

/// A dirty bitmap.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    /// Its name.
    pub(super) name: String,
    /// Bytes a bit stands for.
    pub(super) granularity: u64,
    /// Whether it records.
    pub(super) enabled: bool,
    /// Whether it is stored when its node closes.
    pub(super) persistent: bool,
    /// Whether a job or a transaction owns it.
    pub(super) busy: bool,
    /// Whether the machine was killed while it was in use.
    pub(super) inconsistent: bool,
    /// Whether the model still knows which bits are set.
    pub(super) known: bool,
    bits: Vec<bool>,
}

impl Bitmap {
    /// A clean bitmap for a disk of `size` bytes.
    pub(super) fn new(name: &str, granularity: u64, size: u64) -> Bitmap {
        Bitmap {
            name: name.to_string(),
            granularity,
            enabled: true,
            persistent: false,
            busy: false,
            inconsistent: false,
            known: true,
            bits: vec![false; size.div_ceil(granularity) as usize],
        }
    }

    /// How many granules are dirty.
    pub(super) fn count(&self) -> u64 {
        self.bits.iter().filter(|bit| **bit).count() as u64
    }

    /// Sets the bits of a range.
    pub(super) fn mark(&mut self, offset: u64, bytes: u64) {
        if bytes > 0 {
            let last = (offset + bytes - 1) / self.granularity;
            for granule in offset / self.granularity..=last {
                if let Some(bit) = self.bits.get_mut(granule as usize) {
                    *bit = true;
                }
            }
        }
    }

    /// Clears all bits; what they were.
    pub(super) fn clear(&mut self) -> Vec<bool> {
        let clean = vec![false; self.bits.len()];
        std::mem::replace(&mut self.bits, clean)
    }

    /// Sets the bits that were set in `before` as well.
    pub(super) fn restore(&mut self, before: &[bool]) {
        self.bits.iter_mut().zip(before).for_each(|(bit, before)| *bit |= before);
    }

    /// Sets the bits that `other` has set, of whatever granularity.
    pub(super) fn merge(&mut self, other: &Bitmap) {
        let granules = other.bits.iter().enumerate().filter(|(_, bit)| **bit);
        for (index, _) in granules {
            self.mark(index as u64 * other.granularity, other.granularity);
        }
        self.known &= other.known;
    }
}

/// What a disk's node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// QEMU's own format.
    Qcow2,
    /// Bytes one to one.
    Raw,
    /// Nothing at all.
    Null,
}

impl Format {
    /// The name of the driver.
    pub(super) fn driver(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
            Format::Null => "null-co",
        }
    }
}

/// A node that a guest can use.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    /// Its name.
    pub(super) node: String,
    /// The node of its file, if that has a name.
    pub(super) file_node: Option<String>,
    /// Its image.
    pub(super) image: Option<String>,
    /// Its format.
    pub(super) format: Format,
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a cluster, or 0.
    pub(super) cluster: u64,
    /// Whether a discard reaches it.
    pub(super) unmap: bool,
    /// Whether it has an image below.
    pub(super) backed: bool,
    /// Its bitmaps, oldest first.
    pub(super) bitmaps: Vec<Bitmap>,
    /// What was written, oldest first: offset, bytes, pattern.
    pub(super) content: Vec<(u64, u64, u8)>,
    /// How often it was changed.
    pub(super) changes: u64,
}

impl Disk {
    /// A disk without content or bitmaps.
    pub(super) fn new(node: &str, format: Format, size: u64) -> Disk {
        Disk {
            node: node.to_string(),
            file_node: None,
            image: None,
            format,
            size,
            cluster: 0,
            unmap: false,
            backed: false,
            bitmaps: Vec::new(),
            content: Vec::new(),
            changes: 0,
        }
    }

    /// A write of `pattern`, seen by the bitmaps that record.
    pub(super) fn write(&mut self, offset: u64, bytes: u64, pattern: u8) {
        self.changes += 1;
        if self.format != Format::Null {
            self.content.push((offset, bytes, pattern));
        }
        for bitmap in self.bitmaps.iter_mut().filter(|bitmap| bitmap.enabled && !bitmap.inconsistent) {
            bitmap.mark(offset, bytes);
        }
    }

    /// The bitmap called `name`.
    pub(super) fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }

    /// The bitmap called `name`, to be changed.
    pub(super) fn bitmap_mut(&mut self, name: &str) -> Option<&mut Bitmap> {
        self.bitmaps.iter_mut().find(|bitmap| bitmap.name == name)
    }

    /// The granularity that a bitmap has if none is given.
    pub(super) fn default_granularity(&self) -> u64 {
        match self.cluster {
            0 => 65536,
            cluster => cluster.clamp(4096, 65536),
        }
    }
}

/// What a bitmap command does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A new bitmap.
    Add { granularity: Option<i64>, persistent: bool, disabled: bool },
    /// One bitmap less.
    Remove,
    /// No bit set any more.
    Clear,
    /// It records from now on.
    Enable,
    /// It records no longer.
    Disable,
    /// The bits of others are added: their nodes and names.
    Merge(Vec<(String, String)>),
}

/// Carries out a bitmap command; false if QEMU would refuse it, then nothing has changed.
pub(super) fn change(disks: &mut [Disk], node: &str, name: &str, change: &Change) -> bool {
    let sources = match change {
        Change::Merge(list) => match merge_sources(disks, list) {
            Some(sources) => sources,
            None => return false,
        },
        _ => Vec::new(),
    };
    let Some(disk) = disks.iter_mut().find(|disk| disk.node == node) else {
        return false;
    };
    if let Change::Add { granularity, persistent, disabled } = change {
        return add(disk, name, *granularity, *persistent, *disabled);
    }
    let size = disk.size;
    let Some(at) = disk.bitmaps.iter().position(|bitmap| bitmap.name == name) else {
        return false;
    };
    let bitmap = &mut disk.bitmaps[at];
    if bitmap.busy || (bitmap.inconsistent && *change != Change::Remove) {
        return false;
    }
    match change {
        Change::Remove => drop(disk.bitmaps.remove(at)),
        Change::Clear => drop(bitmap.clear()),
        Change::Enable => bitmap.enabled = true,
        Change::Disable => bitmap.enabled = false,
        Change::Merge(_) if sources.iter().any(|(other, _)| *other != size) => return false,
        Change::Merge(_) => sources.iter().for_each(|(_, source)| bitmap.merge(source)),
        Change::Add { .. } => {}
    }
    true
}

fn merge_sources(disks: &[Disk], list: &[(String, String)]) -> Option<Vec<(u64, Bitmap)>> {
    let source = |(node, name): &(String, String)| {
        let disk = disks.iter().find(|disk| disk.node == *node)?;
        let bitmap = disk.bitmap(name).filter(|bitmap| !bitmap.busy && !bitmap.inconsistent)?;
        Some((disk.size, bitmap.clone()))
    };
    list.iter().map(source).collect()
}

fn add(disk: &mut Disk, name: &str, granularity: Option<i64>, persistent: bool, disabled: bool) -> bool {
    let granularity = match granularity {
        None => disk.default_granularity(),
        Some(bytes) => u64::try_from(bytes).unwrap_or(0),
    };
    let storable = !persistent || disk.format == Format::Qcow2;
    let fits = granularity.is_power_of_two() && (512..=1 << 31).contains(&granularity);
    if !storable || !fits || name.is_empty() || name.len() > 1023 || disk.bitmap(name).is_some() {
        return false;
    }
    let mut bitmap = Bitmap::new(name, granularity, disk.size);
    bitmap.enabled = !disabled;
    bitmap.persistent = persistent;
    disk.bitmaps.push(bitmap);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_a_coarse_bitmap_marks_all_fine_granules() {
        let mut disk = Disk::new("d", Format::Raw, 1 << 20);
        let add = |granularity| Change::Add { granularity: Some(granularity), persistent: false, disabled: false };
        let mut disks = {
            disk.write(0, 1, 1);
            vec![disk]
        };
        assert!(change(&mut disks, "d", "coarse", &add(65536)));
        disks[0].write(0, 1, 1);
        assert!(change(&mut disks, "d", "fine", &add(512)));
        assert!(!change(&mut disks, "d", "fine", &add(512)));
        let merge = Change::Merge(vec![("d".into(), "coarse".into())]);
        assert!(change(&mut disks, "d", "fine", &merge));
        assert_eq!(disks[0].bitmap("fine").map(Bitmap::count), Some(128));
        assert!(!change(&mut disks, "d", "fine", &Change::Merge(vec![("d".into(), "none".into())])));
    }
}
