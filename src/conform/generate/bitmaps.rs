//! The family `bitmaps`: all bitmap commands, right and wrong, alone and in transactions, on disks of all kinds.
//!
//! Two commands that kill real QEMU are never written: a merge of an empty list, and a transaction that enables
//! a bitmap which does not exist.

use super::backup::{Backup, End, job_command};
use super::disks::Wish;
use super::guest::Mix;
use super::model::{Change, Disk, Format, change};
use super::pick::{BITMAPS, NO_BITMAPS};
use super::world::{Level, World, action, transaction};
use super::yaml::{Args, Script, Step, Yaml, args};

/// A bitmap command: where, on what, and what it does.
#[derive(Clone, Debug)]
struct Command {
    node: String,
    name: String,
    change: Change,
}

/// Writes a scenario of the family.
pub(super) fn generate(mut world: World, name: String, description: String) -> Script {
    if world.one_in(8) {
        return table(world, name, description);
    }
    world.vm("launch");
    let (disks, rounds) = match world.level {
        Level::Easy => (1, world.rng.between(6, 12)),
        Level::Medium => (world.rng.between(1, 3), world.rng.between(10, 20)),
        Level::Hard => (world.rng.between(1, 3), world.rng.between(14, 30)),
    };
    for _ in 0..disks {
        let wish = Wish { limit: 64 << 20, any_format: world.one_in(2), backing: false };
        let disk = world.empty_disk(wish);
        if world.coin() {
            world.guest_at(disk, 2, Mix::Writes);
        }
    }
    for disk in 0..world.disks.len() {
        world.add_bitmap(disk, false);
    }
    for _ in 0..rounds {
        round(&mut world);
    }
    if world.level > Level::Easy && world.one_in(3) {
        owned_by_a_job(&mut world);
    }
    end(&mut world);
    world.script(name, description)
}

fn round(world: &mut World) {
    let disk = world.rng.below(world.disks.len() as u64) as usize;
    match world.rng.below(20) {
        0..=6 => {
            let command = world.bitmap_command(disk, 8);
            world.send(&command);
        }
        7..=12 => {
            world.guest_at(disk, 3, Mix::All);
            if world.coin() {
                let node = world.pick_bitmap(disk, 1);
                world.expect_bitmap(disk, &node);
            }
        }
        13 | 14 => bitmap_transaction(world),
        15 => sha256(world, disk),
        16 | 17 => world.query_bitmaps(),
        18 if world.one_in(3) => reopen(world, disk),
        18 if world.one_in(3) => malformed(world, disk),
        _ => drop(world.add_bitmap(disk, false)),
    }
}

/// A command whose arguments QEMU does not even look at.
fn malformed(world: &mut World, disk: usize) {
    let node = args().set("node", &world.disks[disk].node);
    let bitmap = || node.clone().set("name", "b");
    let target = || node.clone().set("target", "b");
    let list = [
        ("block-dirty-bitmap-add", node.clone()),
        ("block-dirty-bitmap-add", bitmap().set("granularity", "big")),
        ("block-dirty-bitmap-add", bitmap().set("persistent", "yes")),
        ("block-dirty-bitmap-add", bitmap().set("size", 1_u64)),
        ("block-dirty-bitmap-remove", args().set("name", "b")),
        ("block-dirty-bitmap-clear", node.clone().set("name", 1_u64)),
        ("block-dirty-bitmap-merge", target()),
        ("block-dirty-bitmap-merge", target().set("bitmaps", "b")),
        ("block-dirty-bitmap-merge", target().set("bitmaps", vec![node.clone()])),
        ("block-dirty-bitmap-merge", target().set("bitmaps", vec![1_u64])),
    ];
    let (command, arguments) = world.pick(&list);
    if world.one_in(3) {
        let bad = [
            action("block-dirty-bitmap-shake", args()),
            args().set("type", "block-dirty-bitmap-clear"),
            action("block-dirty-bitmap-clear", node),
            args().set("data", args()),
        ];
        let bad = world.pick(&bad);
        return world.step(transaction(None, vec![bad]));
    }
    world.execute(command, arguments);
}

fn sha256(world: &mut World, disk: usize) {
    let name = world.pick_bitmap(disk, 8);
    let node = world.disks[disk].node.clone();
    world.execute("x-debug-block-dirty-bitmap-sha256", args().set("node", node).set("name", name));
}

impl World {
    /// Adds a bitmap to `disk`; one that QEMU takes if `sure`, else most likely.
    pub(super) fn add_bitmap(&mut self, disk: usize, sure: bool) -> Option<String> {
        let taken: Vec<&str> = BITMAPS.into_iter().filter(|name| self.disks[disk].bitmap(name).is_none()).collect();
        if taken.is_empty() {
            return None;
        }
        let name = self.pick(&taken).to_string();
        let granularity = self.granularity().map(|bytes| bytes as i64);
        let storable = self.disks[disk].format == Format::Qcow2;
        let change = Change::Add {
            granularity: if !sure && self.one_in(10) { Some(self.wrong_granularity()) } else { granularity },
            persistent: (storable || !sure) && self.one_in(if storable { 3 } else { 10 }),
            disabled: !sure && self.one_in(4),
        };
        let node = if !sure && self.one_in(25) { "drive9".to_string() } else { self.disks[disk].node.clone() };
        self.send(&Command { node, name: name.clone(), change }).then_some(name)
    }

    /// A bitmap of `disk`; once in `wrong` draws one that does not exist.
    pub(super) fn pick_bitmap(&mut self, disk: usize, wrong: u64) -> String {
        let names: Vec<String> = self.disks[disk].bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
        if names.is_empty() || (wrong > 1 && self.one_in(wrong)) {
            return self.pick(&NO_BITMAPS).to_string();
        }
        self.pick(&names)
    }

    /// A command for a bitmap of `disk`; once in `wrong` draws something about it is wrong.
    fn bitmap_command(&mut self, disk: usize, wrong: u64) -> Command {
        let node = if self.one_in(wrong * 6) { "drive9".to_string() } else { self.disks[disk].node.clone() };
        let name = self.pick_bitmap(disk, wrong);
        let change = match self.rng.below(14) {
            0..=2 => Change::Clear,
            3 | 4 => Change::Enable,
            5 | 6 => Change::Disable,
            7 => Change::Remove,
            8 | 9 => return self.add_command(disk, wrong),
            _ => self.merge_change(disk, wrong),
        };
        Command { node, name, change }
    }

    fn add_command(&mut self, disk: usize, wrong: u64) -> Command {
        let node = self.disks[disk].node.clone();
        let name = if self.one_in(wrong * 8) { "x".repeat(1024) } else { self.pick(&BITMAPS).to_string() };
        let granularity = self.granularity().map(|bytes| bytes as i64);
        let wrong_one = self.wrong_granularity();
        let change = Change::Add {
            granularity: if self.one_in(wrong) { Some(wrong_one) } else { granularity },
            persistent: self.one_in(4),
            disabled: self.one_in(4),
        };
        Command { node, name, change }
    }

    fn merge_change(&mut self, disk: usize, wrong: u64) -> Change {
        let count = self.rng.between(1, 3);
        let mut sources = Vec::new();
        for _ in 0..count {
            let other = if self.one_in(4) { self.rng.below(self.disks.len() as u64) as usize } else { disk };
            let name = self.pick_bitmap(other, wrong);
            sources.push((self.disks[other].node.clone(), name));
        }
        Change::Merge(sources)
    }

    /// Sends a bitmap command and does to the model what it does; whether QEMU takes it.
    fn send(&mut self, command: &Command) -> bool {
        let arguments = self.data(command);
        self.execute(kind(&command.change), arguments);
        change(&mut self.disks, &command.node, &command.name, &command.change)
    }

    /// The arguments of a bitmap command.
    fn data(&mut self, command: &Command) -> Args {
        let node = args().set("node", &command.node);
        match &command.change {
            Change::Add { granularity, persistent, disabled } => {
                let spoken = *persistent || self.one_in(8);
                node.set("name", &command.name)
                    .maybe("granularity", *granularity)
                    .maybe("persistent", spoken.then_some(*persistent))
                    .maybe("disabled", disabled.then_some(true))
            }
            Change::Merge(sources) => {
                let mut list: Vec<Yaml> = Vec::new();
                for (node, name) in sources {
                    let short = *node == command.node && self.coin();
                    let long = args().set("node", node).set("name", name);
                    list.push(if short { name.into() } else { long.into() });
                }
                node.set("target", &command.name).set("bitmaps", list)
            }
            _ => node.set("name", &command.name),
        }
    }
}

fn kind(change: &Change) -> &'static str {
    match change {
        Change::Add { .. } => "block-dirty-bitmap-add",
        Change::Remove => "block-dirty-bitmap-remove",
        Change::Clear => "block-dirty-bitmap-clear",
        Change::Enable => "block-dirty-bitmap-enable",
        Change::Disable => "block-dirty-bitmap-disable",
        Change::Merge(_) => "block-dirty-bitmap-merge",
    }
}

fn bitmap_transaction(world: &mut World) {
    let before = world.disks.clone();
    let mut removed: Vec<(String, String)> = Vec::new();
    let mut actions = Vec::new();
    let mut fine = true;
    for _ in 0..world.rng.between(1, 4) {
        if world.one_in(12) {
            actions.push(action("abort", args()));
            fine = false;
            continue;
        }
        let disk = world.rng.below(world.disks.len() as u64) as usize;
        let command = world.bitmap_command(disk, 10);
        let exists = world.disk(&command.node).is_some_and(|disk| {
            world.disks[disk].bitmap(&command.name).is_some_and(|bitmap| !bitmap.busy && !bitmap.inconsistent)
        });
        if command.change == Change::Enable && !exists {
            continue;
        }
        actions.push(action(kind(&command.change), world.data(&command)));
        // Nothing is prepared any more after the first action that fails.
        fine = fine && prepare(world, &command, &mut removed);
    }
    let mode = world.maybe(10, "individual");
    world.step(transaction(mode, actions));
    if !fine {
        world.disks = before;
        return;
    }
    for (node, name) in removed {
        if let Some(disk) = world.disk(&node) {
            world.disks[disk].bitmaps.retain(|bitmap| bitmap.name != name);
        }
    }
}

/// Prepares an action: a bitmap that goes stays in the way until all is done.
fn prepare(world: &mut World, command: &Command, removed: &mut Vec<(String, String)>) -> bool {
    if command.change != Change::Remove {
        return change(&mut world.disks, &command.node, &command.name, &command.change);
    }
    let Some(disk) = world.disk(&command.node) else {
        return false;
    };
    match world.disks[disk].bitmap_mut(&command.name) {
        Some(bitmap) if !bitmap.busy => {
            bitmap.busy = true;
            removed.push((command.node.clone(), command.name.clone()));
            true
        }
        _ => false,
    }
}

/// The disk's node is removed and opened again: what was not stored is gone.
fn reopen(world: &mut World, at: usize) {
    let disk = world.disks[at].clone();
    let (Some(image), false) = (disk.image.clone(), disk.bitmaps.iter().any(|bitmap| bitmap.busy)) else {
        return;
    };
    world.execute("blockdev-del", args().set("node-name", &disk.node));
    if let Some(name) = &disk.file_node {
        world.execute("blockdev-del", args().set("node-name", name));
    }
    let file_node = world.open(&disk.node, disk.format, &image, disk.unmap);
    world.disks[at].file_node = file_node;
    world.disks[at].bitmaps.retain(|bitmap| bitmap.persistent);
    world.query_bitmaps();
}

/// A job owns a bitmap, and everybody else is refused.
fn owned_by_a_job(world: &mut World) {
    let owners = |disk: &Disk| disk.bitmaps.iter().any(|bitmap| !bitmap.busy);
    let Some(at) = world.disks.iter().position(owners) else {
        return;
    };
    world.headline("A job owns the bitmap");
    let size = world.disks[at].size;
    let target = world.target(size, false);
    let mut backup: Backup = world.backup(at, &target);
    let name = world.pick_bitmap(at, 1);
    backup.bitmap = Some(name.clone());
    backup.sync = world.pick(&["bitmap", "bitmap", "full", "incremental"]);
    let modes: &[&str] = match backup.sync {
        "incremental" => &["on-success"],
        "full" => &["on-success", "always"],
        _ => &["on-success", "never", "always"],
    };
    backup.mode = Some(world.pick(modes));
    backup.auto_finalize = false;
    backup.filter = Some("backup-top".to_string());
    let before = world.owned(at, &backup);
    world.start(&backup);
    world.wait_status(&backup.job, "pending", false);
    if let Some(bitmap) = world.disks[at].bitmap_mut(&name) {
        bitmap.busy = true;
    }
    let node = world.disks[at].node.clone();
    for _ in 0..world.rng.between(1, 4) {
        let changes = [Change::Clear, Change::Enable, Change::Disable, Change::Remove];
        let change = match world.rng.below(6) {
            0 => Change::Merge(vec![(node.clone(), name.clone())]),
            1 => Change::Add { granularity: None, persistent: false, disabled: false },
            _ => world.pick(&changes),
        };
        world.send(&Command { node: node.clone(), name: name.clone(), change });
    }
    if world.one_in(3) {
        let mut second = Backup::new(world.new_job(), &node, &target.node);
        (second.sync, second.bitmap) = ("incremental", Some(name.clone()));
        world.start(&second);
    }
    world.guest(at, "backup-top", 3, Mix::All);
    world.query_bitmaps();
    let finalize = world.pick(&["job-finalize", "block-job-finalize", "job-cancel"]);
    world.step(job_command(finalize, &backup.job));
    world.wait_status(&backup.job, backup.last_state(), false);
    if !backup.auto_dismiss {
        let dismiss = world.pick(&["job-dismiss", "block-job-dismiss"]);
        world.step(job_command(dismiss, &backup.job));
    }
    if let Some(bitmap) = world.disks[at].bitmap_mut(&name) {
        bitmap.busy = false;
    }
    let end = if finalize == "job-cancel" { End::Cancelled } else { End::Success };
    world.settle(at, &backup, before, end);
    world.expect_bitmap(at, &name);
    world.query_bitmaps();
}

fn end(world: &mut World) {
    world.query_bitmaps();
    if world.one_in(4) {
        let node = world.disks[0].node.clone();
        world.execute("blockdev-del", args().set("node-name", node));
        world.query_bitmaps();
    }
    if world.one_in(4) {
        world.vm("shutdown");
    }
}

/// One disk, one bitmap, two rounds of writes: a line for each granularity.
fn table(mut world: World, name: String, description: String) -> Script {
    let size = 4 << 20;
    let mut disk = Disk::new("drive0", Format::Qcow2, size);
    disk.image = Some("img".to_string());
    disk.cluster = 65536;
    world.disks.push(disk);
    let powers: Vec<u32> = (9..=21).collect();
    let lines = world.rng.between(2, 4) as usize;
    let granularities: Vec<u64> = world.some_of(&powers, lines).into_iter().map(|power| 1 << power).collect();
    for (index, granularity) in granularities.iter().enumerate() {
        let add = Change::Add { granularity: Some(*granularity as i64), persistent: false, disabled: false };
        change(&mut world.disks, "drive0", &index.to_string(), &add);
    }
    world.step(Step::new("log", "=== granularity {{ granularity }}: {{ first }}, then {{ second }} ==="));
    world.step(Step::new("image", "img").with("size", "{{ size }}"));
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    let bitmap = args().set("node", "drive0").set("name", "b").set("granularity", "{{ granularity }}");
    world.execute("block-dirty-bitmap-add", bitmap);
    let mut counts: Vec<Vec<u64>> = Vec::new();
    for turn in ["{{ first }}", "{{ second }}"] {
        world.guest_at(0, 4, Mix::Writes);
        counts.push(world.disks[0].bitmaps.iter().map(|bitmap| bitmap.count()).collect());
        world.step(Step::new("expect-bitmap", "drive0").with("name", "b").with("clusters", turn));
    }
    let sum = world.pick(&[512_u64, 4096, 65536, 1 << 20]);
    let other = args().set("node", "drive0").set("name", "sum").set("granularity", sum);
    world.execute("block-dirty-bitmap-add", other);
    let merge = args().set("node", "drive0").set("target", "sum").set("bitmaps", vec!["b"]);
    world.execute("block-dirty-bitmap-merge", merge);
    world.query_bitmaps();
    let cases = granularities.iter().enumerate().map(|(index, granularity)| {
        args().set("granularity", *granularity).set("first", counts[0][index]).set("second", counts[1][index])
    });
    let cases = cases.collect();
    let vars = args().set("size", size);
    let case_name = Some("granularity {{ granularity }}".to_string());
    Script { vars, cases, case_name, ..world.script(name, description) }
}
