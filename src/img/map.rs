//! `qemu-img map`: where in which file each part of an image lies (`img_map` in QEMU's `qemu-img.c`).

use crate::block::{Block, NodeId, StatusFlags};
use crate::cutils::alternate_hex;
use crate::errno::Res;

use super::args::{Opt, Reader, long, opt};
use super::info::refuse_image_opts;
use super::options::check_format;
use super::process::{How, Image, Outcome, Process, chain, failure};
use super::size;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    opt("format", 'f', true),
    long("output", true),
    opt("force-share", 'U', false),
    opt("start-offset", 's', true),
    opt("max-length", 'l', true),
    long("image-opts", false),
    long("object", true),
];

/// A part of an image of which everything is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    start: u64,
    length: u64,
    /// Layers above the one that has it.
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// File and offset in it.
    offset: Option<u64>,
    file: Option<String>,
}

impl Entry {
    /// Whether `next`, which follows directly, says the same.
    fn continues_in(&self, next: &Entry) -> bool {
        let offsets = match (self.offset, next.offset) {
            (Some(here), Some(there)) => here.checked_add(self.length) == Some(there),
            (None, None) => true,
            _ => false,
        };
        let same = |entry: &Entry| (entry.depth, entry.present, entry.zero, entry.data, entry.compressed);
        offsets && same(self) == same(next) && self.file == next.file
    }
}

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    let bound =
        |key: &str, name: &str| parsed.get(key).map(|text| size::argument(process.quirks(), name, text)).transpose();
    let (start, max_length) = (bound("start-offset", "start offset")?, bound("max-length", "max length")?);
    let json = reader.json(&parsed)?;
    refuse_image_opts(&parsed)?;
    let filename = reader.one_file(&parsed)?;
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let how = How { force_share: parsed.has("force-share"), ..How::default() };
    let image = process.open(filename, format, how).await?;
    if json {
        process.print("[");
    } else {
        process.print("Offset          Length          Mapped to       File\n");
    }
    let start = start.unwrap_or(0);
    let end = max_length.map_or(image.node.length.get(), |max| image.node.length.get().min(start.saturating_add(max)));
    let walked = process.told(walk(process, &image, json, start, end).await);
    process.close(image).await;
    walked?;
    Ok(0)
}

async fn walk(process: &Process, image: &Image, json: bool, start: u64, end: u64) -> Outcome<()> {
    let layers = chain(&process.block, image.node.id);
    let mut current = Entry { start, ..Entry::default() };
    while current.start + current.length < end {
        let at = current.start + current.length;
        let (block, layers) = (process.block.clone(), layers.clone());
        let next = process.co(async move { status(&block, &layers, at, end - at).await }).await;
        let next = next.map_err(|error| failure(format!("Could not read file metadata: {error}")))?;
        if next.length == 0 {
            break;
        }
        if current.length > 0 && current.continues_in(&next) {
            current.length += next.length;
            continue;
        }
        if current.length > 0 {
            dump(process, &current, json, false)?;
        }
        current = next;
    }
    dump(process, &current, json, true)
}

/// The first layer that knows something about a range, and how far that holds.
async fn status(block: &std::rc::Rc<Block>, layers: &[NodeId], at: u64, bytes: u64) -> Res<Entry> {
    let mut bytes = bytes;
    let mut entry = Entry { start: at, ..Entry::default() };
    for (depth, layer) in layers.iter().enumerate() {
        let found = block.co_block_status(*layer, at, bytes, true).await?;
        bytes = bytes.min(found.bytes);
        entry.depth = depth;
        if found.flags.intersects(StatusFlags::DATA | StatusFlags::ZERO) {
            entry.present = found.flags.contains(StatusFlags::ALLOCATED);
            entry.zero = found.flags.contains(StatusFlags::ZERO);
            entry.data = found.flags.contains(StatusFlags::DATA);
            entry.compressed = found.flags.contains(StatusFlags::COMPRESSED);
            if found.flags.contains(StatusFlags::OFFSET_VALID) {
                entry.offset = Some(found.map);
                entry.file = found.file.map(|file| block.filename(file));
            }
            break;
        }
    }
    entry.length = bytes;
    Ok(entry)
}

fn dump(process: &Process, entry: &Entry, json: bool, last: bool) -> Outcome<()> {
    if !json {
        return dump_human(process, entry);
    }
    let Entry { start, length, depth, present, zero, data, .. } = entry;
    let mut line = format!(
        "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
         \"data\": {data}"
    );
    if process.quirks().img_map_compressed {
        line.push_str(&format!(", \"compressed\": {}", entry.compressed));
    }
    if let Some(offset) = entry.offset {
        line.push_str(&format!(", \"offset\": {offset}"));
    }
    line.push_str(if last { "}]\n" } else { "},\n" });
    process.print(&line);
    Ok(())
}

fn dump_human(process: &Process, entry: &Entry) -> Outcome<()> {
    if !entry.data {
        return Ok(());
    }
    let Some(offset) = entry.offset else {
        return Err(failure("File contains external, encrypted or compressed clusters."));
    };
    if !entry.zero {
        let file = entry.file.as_deref().unwrap_or("");
        let (start, length, offset) = (alternate_hex(entry.start), alternate_hex(entry.length), alternate_hex(offset));
        process.print(&format!("{start:<16}{length:<16}{offset:<16}{file}\n"));
    }
    Ok(())
}
