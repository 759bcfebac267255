//! How `qemu-img info` looks: for people and as JSON (`bdrv_node_info_dump` in QEMU's `block/qapi.c`).
//!
//! Only layout; the facts come from `info.rs`.

use serde_json::{Map, Value, json};

use crate::block::qcow2::{BitmapInfo, Qcow2Info, Snapshot};
use crate::quirks::Quirks;

use super::info::NodeInfo;
use super::json::pretty;
use super::size::human;

/// All images for people, with an empty line between two.
pub(super) fn human_list(quirks: &Quirks, infos: &[NodeInfo]) -> String {
    let texts: Vec<String> = infos.iter().map(|info| one(quirks, info)).collect();
    texts.join("\n")
}

fn one(quirks: &Quirks, info: &NodeInfo) -> String {
    let mut out = String::new();
    line(&mut out, "image", &info.filename);
    line(&mut out, "file format", info.format);
    line(&mut out, "virtual size", &both_sizes(info.virtual_size));
    line(&mut out, "disk size", &disk_size(info));
    if let Some(qcow2) = &info.qcow2 {
        if qcow2.encrypted {
            line(&mut out, "encrypted", "yes");
        }
        line(&mut out, "cluster_size", &qcow2.cluster_size.to_string());
        if qcow2.dirty {
            line(&mut out, "cleanly shut down", "no");
        }
        if let Some(name) = &qcow2.backing_file {
            let full = info.full_backing.as_deref().filter(|full| full != name);
            let path = full.map(|full| format!(" (actual path: {full})")).unwrap_or_default();
            line(&mut out, "backing file", &format!("{name}{path}"));
        }
        if let Some(format) = &qcow2.backing_format {
            line(&mut out, "backing file format", format);
        }
        snapshots(quirks, &mut out, &qcow2.snapshots);
        format_specific(&mut out, info, qcow2);
    }
    if quirks.img_shows_children {
        children(&mut out, "/", "", info);
    }
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    out.push_str(&format!("{key}: {value}\n"));
}

fn both_sizes(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human(bytes))
}

fn disk_size(info: &NodeInfo) -> String {
    info.actual_size.map_or_else(|| "unavailable".to_owned(), human)
}

fn format_specific(out: &mut String, info: &NodeInfo, qcow2: &Qcow2Info) {
    out.push_str("Format specific information:\n");
    let mut row = |text: String| out.push_str(&format!("    {text}\n"));
    row(format!("compat: {}", compat(qcow2)));
    row(format!("compression type: {}", qcow2.compression_type));
    if qcow2.version >= 3 {
        row(format!("lazy refcounts: {}", qcow2.lazy_refcounts));
    }
    if !info.bitmaps.is_empty() {
        row("bitmaps:".to_owned());
    }
    for (i, bitmap) in info.bitmaps.iter().enumerate() {
        row(format!("    [{i}]:"));
        row("        flags:".to_owned());
        for (i, flag) in flags(bitmap).iter().enumerate() {
            row(format!("            [{i}]: {flag}"));
        }
        row(format!("        name: {}", bitmap.name));
        row(format!("        granularity: {}", bitmap.granularity));
    }
    row(format!("refcount bits: {}", qcow2.refcount_bits));
    if qcow2.encrypted {
        row("encrypt:".to_owned());
        row("    format: aes".to_owned());
    }
    if let Some(raw) = qcow2.data_file_raw {
        row(format!("data file raw: {raw}"));
    }
    if qcow2.version >= 3 {
        row(format!("corrupt: {}", qcow2.corrupt));
        row(format!("extended l2: {}", qcow2.extended_l2));
    }
}

fn compat(qcow2: &Qcow2Info) -> &'static str {
    if qcow2.version >= 3 { "1.1" } else { "0.10" }
}

fn flags(bitmap: &BitmapInfo) -> Vec<&'static str> {
    let all = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
    all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}

/// Child nodes, each with its path in the graph.
fn children(out: &mut String, path: &str, indent: &str, info: &NodeInfo) {
    for (name, child) in &info.children {
        let path = format!("{path}{name}");
        out.push_str(&format!("{indent}Child node '{path}':\n"));
        let leaf = child.children.is_empty();
        let mut row = |key: &str, value: &str| out.push_str(&format!("{indent}    {key}: {value}\n"));
        row(if leaf { "filename" } else { "image" }, &child.filename);
        row(if leaf { "protocol type" } else { "file format" }, child.format);
        row(if leaf { "file length" } else { "virtual size" }, &both_sizes(child.virtual_size));
        row("disk size", &disk_size(child));
        children(out, &format!("{path}/"), &format!("{indent}    "), child);
    }
}

/// The table of internal snapshots (`bdrv_snapshot_dump`).
fn snapshots(quirks: &Quirks, out: &mut String, list: &[Snapshot]) {
    if list.is_empty() {
        return;
    }
    out.push_str("Snapshot list:\n");
    out.push_str(&if quirks.img_shows_children {
        let titles = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
        row_10([titles[0], titles[1], titles[2], titles[3], titles[4], titles[5]])
    } else {
        format!("{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
    });
    for snapshot in list {
        let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
        let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let millis = snapshot.vm_clock_nsec / 1_000_000 % 1000;
        let unknown = if quirks.img_shows_children { "--" } else { "" };
        let icount = snapshot.icount.map_or_else(|| unknown.to_owned(), |count| count.to_string());
        let (size, date) = (human(snapshot.vm_state_size), date(snapshot.date_sec));
        out.push_str(&if quirks.img_shows_children {
            let clock = format!("{hours:04}:{minutes:02}:{rest:02}.{millis:03}");
            row_10([&snapshot.id, &snapshot.name, &size, &date, &clock, &icount])
        } else {
            let clock = format!("{hours:02}:{minutes:02}:{rest:02}.{millis:03}");
            format!("{:<9} {:<16} {size:>8}{date:>20}{clock:>13}{icount:>11}\n", snapshot.id, snapshot.name)
        });
    }
}

fn row_10([id, tag, size, date, clock, icount]: [&str; 6]) -> String {
    format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

/// Seconds since 1970 as a date and time of day; the simulated host keeps UTC.
fn date(seconds: u32) -> String {
    let (days, time) = (seconds / 86400, seconds % 86400);
    // Years are counted from March, so that a leap day ends one; era and day-of-era as in the civil calendar.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + next_year;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// One image as JSON, with a newline.
pub(super) fn json(quirks: &Quirks, info: &NodeInfo) -> String {
    pretty(&value(quirks, info)) + "\n"
}

/// A chain as JSON, with a newline.
pub(super) fn json_list(quirks: &Quirks, infos: &[NodeInfo]) -> String {
    let list = infos.iter().map(|info| value(quirks, info)).collect();
    pretty(&Value::Array(list)) + "\n"
}

fn value(quirks: &Quirks, info: &NodeInfo) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("filename", json!(info.filename));
    put("format", json!(info.format));
    put("virtual-size", json!(info.virtual_size));
    put("dirty-flag", json!(info.qcow2.as_ref().is_some_and(|qcow2| qcow2.dirty)));
    if let Some(bytes) = info.actual_size {
        put("actual-size", json!(bytes));
    }
    if let Some(qcow2) = &info.qcow2 {
        put("cluster-size", json!(qcow2.cluster_size));
        if qcow2.encrypted {
            put("encrypted", json!(true));
        }
        if let Some(name) = &qcow2.backing_file {
            put("backing-filename", json!(name));
            put("full-backing-filename", json!(info.full_backing));
        }
        if let Some(format) = &qcow2.backing_format {
            put("backing-filename-format", json!(format));
        }
        if !qcow2.snapshots.is_empty() {
            put("snapshots", qcow2.snapshots.iter().map(Snapshot::info).collect());
        }
        put("format-specific", json!({"type": "qcow2", "data": specific(info, qcow2)}));
    } else if quirks.img_shows_children && info.format == "file" {
        put("format-specific", json!({"type": "file", "data": {}}));
    }
    if quirks.img_shows_children {
        let child = |(name, child): &(&str, NodeInfo)| json!({"name": name, "info": value(quirks, child)});
        put("children", info.children.iter().map(child).collect());
    }
    Value::Object(map)
}

fn specific(info: &NodeInfo, qcow2: &Qcow2Info) -> Value {
    let mut data = Map::new();
    let mut put = |key: &str, value: Value| data.insert(key.to_owned(), value);
    put("compat", json!(compat(qcow2)));
    put("compression-type", json!(qcow2.compression_type));
    put("refcount-bits", json!(qcow2.refcount_bits));
    if qcow2.encrypted {
        put("encrypt", json!({"format": "aes"}));
    }
    if let Some(raw) = qcow2.data_file_raw {
        put("data-file-raw", json!(raw));
    }
    if qcow2.version >= 3 {
        put("lazy-refcounts", json!(qcow2.lazy_refcounts));
        put("corrupt", json!(qcow2.corrupt));
        put("extended-l2", json!(qcow2.extended_l2));
    }
    if !info.bitmaps.is_empty() {
        let bitmap = |bitmap: &BitmapInfo| {
            let flags = flags(bitmap);
            json!({"name": bitmap.name, "granularity": bitmap.granularity, "flags": flags})
        };
        put("bitmaps", info.bitmaps.iter().map(bitmap).collect());
    }
    Value::Object(data)
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_795_466_679), "2026-11-23 20:44:39");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15");
    }
}
