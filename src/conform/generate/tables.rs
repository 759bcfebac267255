//! Scenarios of the families `backups` and `faults` in the form of a table: the same steps for each line of `cases`.
//!
//! Must never let a line's steps depend on anything but its variables.

use super::backup::Backup;
use super::disks::image_step;
use super::faults::Policy;
use super::guest::Mix;
use super::model::{Bitmap, Disk, Format};
use super::world::World;
use super::yaml::{Args, Procedure, Script, Step, args};

/// Bytes of a table's disk.
const SIZE: u64 = 4 << 20;

/// What a line of the table of backups can be: sync mode, bitmap mode, end.
const BACKUPS: [(&str, &str, &str); 14] = [
    ("bitmap", "on-success", "finalize"),
    ("bitmap", "on-success", "cancel"),
    ("bitmap", "never", "finalize"),
    ("bitmap", "never", "cancel"),
    ("bitmap", "always", "finalize"),
    ("bitmap", "always", "cancel"),
    ("full", "on-success", "finalize"),
    ("full", "on-success", "cancel"),
    ("full", "always", "finalize"),
    ("full", "always", "cancel"),
    ("top", "on-success", "finalize"),
    ("top", "on-success", "cancel"),
    ("top", "always", "finalize"),
    ("top", "always", "cancel"),
];

/// The word that the headline of a line with a stop has more.
const STOPS: &str = "{{ ', stops' if stops else '' }}";

/// The disk of a table's scenario, with some content.
fn disk(world: &mut World) {
    world.step(Step::new("image", "img").with("size", "{{ size }}"));
    world.vm("launch");
    world.open_as("drive0", Format::Qcow2, "img", false, None);
    let mut disk = Disk::new("drive0", Format::Qcow2, SIZE);
    (disk.image, disk.cluster) = (Some("img".to_string()), 65536);
    world.disks.push(disk);
    world.guest_at(0, 3, Mix::Writes);
}

/// One backup with a bitmap: a line for each mode and end.
pub(super) fn backups(mut world: World, name: String, description: String) -> Script {
    let headline = "=== sync {{ sync }}, bitmap-mode {{ mode }}, {{ end }} ===";
    world.step(Step::new("log", headline));
    disk(&mut world);
    let granularity = world.pick(&[512_u64, 4096, 65536, 65536, 262_144]);
    let bitmap = args().set("node", "drive0").set("name", "b");
    let bitmap = bitmap.set("granularity", "{{ granularity }}");
    world.execute("block-dirty-bitmap-add", bitmap);
    let model = Bitmap::new("b", granularity, SIZE);
    world.disks[0].bitmaps.push(model);
    world.guest_at(0, 3, Mix::Writes);
    let dirty = world.disks[0].bitmaps[0].count();
    world.call(check(), args().set("expected", dirty));
    let before = backup_of_any_mode(&mut world);
    let lines = world.rng.between(2, 5) as usize;
    let mut cases = Vec::new();
    for (sync, mode, end) in world.some_of(&BACKUPS, lines) {
        let left = left(&world, &before, mode, end == "cancel");
        let line = args().set("sync", sync).set("mode", mode);
        cases.push(line.set("end", end).set("left", left));
    }
    world.call(check(), args().set("expected", "{{ left }}"));
    world.vm("shutdown");
    let images = ["compare", "TEST_DIR/PID-target", "TEST_DIR/PID-img"];
    world.step(Step::new("qemu-img", images.to_vec()));
    let vars = args().set("size", SIZE).set("granularity", granularity);
    let case_name = Some("{{ sync }}/{{ mode }}/{{ end }}".to_string());
    let script = world.script(name, description);
    Script { vars, cases, case_name, ..script }
}

/// The backup of the table, with writes while it is pending; the bits of the bitmap when it began.
fn backup_of_any_mode(world: &mut World) -> Vec<bool> {
    world.step(image_step("target", Format::Qcow2, SIZE, None));
    world.open_as("target", Format::Qcow2, "target", false, None);
    let mut backup = Backup::new("job0".to_string(), "drive0", "target");
    (backup.bitmap, backup.filter) = (Some("b".to_string()), Some("backup-top".to_string()));
    backup.auto_finalize = false;
    (backup.sync, backup.mode) = ("{{ sync }}", Some("{{ mode }}"));
    world.start(&backup);
    let before = world.disks[0].bitmaps[0].clear();
    let pending = world.inside(|world| {
        world.guest(0, "backup-top", 3, Mix::Writes);
        let write = Step::new("qemu-io", "backup-top").with("command", "write -z 0 64K");
        world.step(write.with("output", true).with("when", "end == 'cancel'"));
    });
    let run = backup.run_job().with("cancel", "{{ end == 'cancel' }}");
    world.step(run.inside("pre-finalize", pending));
    before
}

/// How many granules a line's backup leaves dirty.
fn left(world: &World, before: &[bool], mode: &str, cancelled: bool) -> u64 {
    let mut bitmap = world.disks[0].bitmaps[0].clone();
    if cancelled {
        bitmap.mark(0, 65536);
    }
    if mode == "never" || (mode == "on-success" && cancelled) {
        bitmap.restore(before);
    }
    bitmap.count()
}

/// The procedure that looks at the bitmap.
fn check() -> Procedure {
    let expect = Step::new("expect-bitmap", "drive0").with("name", "b");
    let expect = expect.with("clusters", "{{ expected }}");
    let steps = vec![Step::new("query-bitmaps", args()), expect];
    Procedure { name: "check", params: vec!["expected"], steps }
}

/// One error of the source or the target: a line for each policy.
pub(super) fn faults(mut world: World, name: String, description: String) -> Script {
    let on_source = world.one_in(3);
    let side = if on_source { "on-source-error" } else { "on-target-error" };
    let headline = format!("=== errno {{{{ errno }}}}, {side} {{{{ policy }}}}{STOPS} ===");
    world.step(Step::new("log", headline));
    disk(&mut world);
    let events: &[&str] = match on_source {
        true => &["read_aio"],
        false => &["write_aio", "cluster_alloc", "pwritev"],
    };
    let rule = args().set("event", world.pick(events));
    let rule = rule.set("errno", "{{ errno }}").set("once", true);
    if on_source {
        world.reopen_with_rules(0, Vec::new(), vec![rule.clone()]);
    }
    let bitmap = args().set("node", "drive0").set("name", "b");
    world.execute("block-dirty-bitmap-add", bitmap);
    world.guest_at(0, 2, Mix::Writes);
    world.guest_commands("drive0", vec!["write -P0x55 1M 64K".to_string()]);
    world.step(Step::new("image", "target").with("size", "{{ size }}"));
    if on_source {
        world.open_as("target", Format::Qcow2, "target", false, None);
    } else {
        world.add_with_rules("target", Format::Qcow2, "target", Vec::new(), vec![rule]);
    }
    backup_of_any_policy(&mut world, on_source);
    let lines = world.rng.between(2, 5) as usize;
    let cases = world.some_of(&policies(), lines);
    let vars = args().set("size", SIZE);
    let case_name = Some("{{ policy }} {{ errno }}".to_string());
    let script = world.script(name, description);
    Script { vars, cases, case_name, ..script }
}

/// The backup of the table; where the policy stops it, it is resumed.
fn backup_of_any_policy(world: &mut World, on_source: bool) {
    let mut backup = Backup::new("job0".to_string(), "drive0", "target");
    (backup.sync, backup.bitmap) = ("bitmap", Some("b".to_string()));
    backup.auto_dismiss = false;
    backup.mode = Some(world.pick(&["on-success", "always", "never"]));
    match on_source {
        true => backup.on_source_error = Some("{{ policy }}"),
        false => backup.on_target_error = Some("{{ policy }}"),
    }
    world.start(&backup);
    let stopped = world.inside(|world| {
        world.stopped(&backup);
        world.either(["job-resume", "block-job-resume"], "job0");
    });
    for step in stopped {
        world.step(step.with("when", "stops"));
    }
    world.step(backup.run_job());
    world.query_bitmaps();
}

/// A line for each policy and error.
fn policies() -> Vec<Args> {
    let mut lines = Vec::new();
    for name in ["report", "ignore", "stop", "enospc", "auto"] {
        for errno in [5, 28] {
            let policy = Policy { name: Some(name), errno };
            let line = args().set("errno", errno).set("policy", name);
            lines.push(line.set("stops", policy.stops()));
        }
    }
    lines
}
