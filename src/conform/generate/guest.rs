//! Guest I/O: commands in qemu-io's language and their effect on the model.
//!
//! Must never leave a request in flight when its step ends, and never read what a machine may fill with anything.

use super::model::Disk;
use super::world::World;
use super::yaml::Step;

/// Which requests a guest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    /// Writes of all kinds, discards, reads.
    All,
    /// Writes of data alone.
    Data,
    /// Writes of data and zeroes; no two requests that depend on the node's options.
    Writes,
}

impl World {
    /// Up to `most` requests at `node`, which is the disk or a filter above it.
    pub(super) fn guest(&mut self, disk: usize, node: &str, most: u64, mix: Mix) {
        let count = self.rng.between(1, most);
        let commands: Vec<String> = (0..count).map(|_| self.request(disk, node, mix)).collect();
        self.guest_commands(node, commands);
    }

    /// Up to `most` requests at the disk itself.
    pub(super) fn guest_at(&mut self, disk: usize, most: u64, mix: Mix) {
        let node = self.disks[disk].node.clone();
        self.guest(disk, &node, most, mix);
    }

    /// The step that gives `commands` to qemu-io; what it prints is shown now and then.
    pub(super) fn guest_commands(&mut self, node: &str, commands: Vec<String>) {
        let reads = commands.iter().any(|command| command.starts_with("read"));
        let output = self.one_in(if reads { 1 } else { 5 });
        let silent = !output && self.one_in(9);
        let step = Step::new("qemu-io", node);
        let step = match &commands[..] {
            [command] => step.with("command", command),
            _ => step.with("commands", commands),
        };
        self.step(step.with_if(output, "output", true).with_if(silent, "log", "none"));
    }

    fn request(&mut self, disk: usize, node: &str, mix: Mix) -> String {
        let (offset, bytes) = self.place(self.disks[disk].size);
        let kind = match mix {
            Mix::Data => 0,
            Mix::Writes => self.rng.below(14),
            Mix::All => self.rng.below(20),
        };
        match kind {
            0..=9 => self.write_command(disk, offset, bytes),
            10 | 11 => self.zero_command("-z", disk, offset, bytes),
            12 | 13 => self.zero_command("-zu", disk, offset, bytes),
            14 | 15 => self.discard_command(disk, node, offset, bytes),
            16 => self.odd_command(disk),
            _ => self.read_command(disk, offset, bytes),
        }
    }

    /// A write of data.
    pub(super) fn write_command(&mut self, disk: usize, offset: u64, bytes: u64) -> String {
        let pattern = self.pattern();
        self.disks[disk].write(offset, bytes, pattern);
        let flush = if self.one_in(10) { "-f " } else { "" };
        let pattern = if self.coin() { format!("-P {pattern}") } else { format!("-P{pattern:#x}") };
        format!("write {flush}{pattern} {} {}", self.number(offset), self.number(bytes))
    }

    fn zero_command(&mut self, how: &str, disk: usize, offset: u64, bytes: u64) -> String {
        self.disks[disk].write(offset, bytes, 0);
        format!("write {how} {} {}", self.number(offset), self.number(bytes))
    }

    fn discard_command(&mut self, disk: usize, node: &str, offset: u64, bytes: u64) -> String {
        let target = &mut self.disks[disk];
        // A filter was opened without discard=unmap, so that a discard ends above it.
        if target.unmap && target.node == node {
            target.write(offset, bytes, 0);
        }
        format!("discard {} {}", self.number(offset), self.number(bytes))
    }

    /// Something unusual: a flush, nothing at all, beyond the end, not on a sector's border.
    fn odd_command(&mut self, disk: usize) -> String {
        let size = self.disks[disk].size;
        match self.rng.below(6) {
            0 | 1 => "flush".to_string(),
            2 => format!("write -P 1 {} 0", self.number(0)),
            3 => format!("write -P 2 {} {}", self.number(size), self.number(512)),
            4 => format!("read {} {}", self.number(size - 512), self.number(4096)),
            _ => {
                let offset = self.rng.below((size - 512).min(1 << 20));
                let bytes = self.rng.between(1, 511);
                self.disks[disk].write(offset, bytes, 3);
                format!("write -P 3 {offset} {bytes}")
            }
        }
    }

    /// A read whose pattern is right, but for one in ten.
    pub(super) fn read_command(&mut self, disk: usize, offset: u64, bytes: u64) -> String {
        let (offset, bytes, pattern) = match known_content(&self.disks[disk], offset, bytes) {
            Some(found) => found,
            None => (offset, bytes, 0),
        };
        let pattern = if self.one_in(10) { self.pattern() } else { pattern };
        format!("read -P{pattern:#x} {} {}", self.number(offset), self.number(bytes))
    }
}

/// A range near the given one whose content is one pattern: the last write there, or what was never written.
fn known_content(disk: &Disk, offset: u64, bytes: u64) -> Option<(u64, u64, u8)> {
    let end = offset + bytes;
    let mut cut = (offset, end, 0);
    for (start, length, pattern) in &disk.content {
        let stop = start + length;
        if stop <= cut.0 || *start >= cut.1 {
            continue;
        }
        // The newest write wins where it overlaps; what is kept is either all of it or all before or behind it.
        cut = match (start.max(&cut.0), stop.min(cut.1)) {
            (first, last) if last - first >= 512 => (*first, last, *pattern),
            (first, _) if *first > cut.0 => (cut.0, *first, cut.2),
            (_, last) => (last, cut.1, cut.2),
        };
    }
    (cut.1 > cut.0).then_some((cut.0, cut.1 - cut.0, cut.2))
}
