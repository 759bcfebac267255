//! `qemu-img compare`: whether two images have the same content (`img_compare` in QEMU's `qemu-img.c`).

use std::rc::Rc;

use crate::block::{Block, BlockStatus, NodeId, ReqFlags, StatusFlags};
use crate::errno::Errno;

use super::args::{Opt, Reader, long, newer_name, opt, short};
use super::info::refuse_image_opts;
use super::options::{check_cache_mode, check_format};
use super::process::{Exit, How, Image, Outcome, Process, not_modelled};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    short("a-format", 'f', true),
    short("b-format", 'F', true),
    newer_name("a-format", "left-format", true),
    newer_name("b-format", "right-format", true),
    short("cache", 'T', true),
    short("progress", 'p', false),
    short("quiet", 'q', false),
    short("strict", 's', false),
    opt("force-share", 'U', false),
    long("image-opts", false),
    long("object", true),
];

/// Most bytes that are read at once.
const CHUNK_BYTES: u64 = 2 << 20;
/// Unit in which differences are located, bytes.
const SECTOR_BYTES: u64 = 512;

/// What both images say about a range, as far as strict mode compares it.
const COMPARED: u32 = StatusFlags::DATA.0
    | StatusFlags::ZERO.0
    | StatusFlags::OFFSET_VALID.0
    | StatusFlags::ALLOCATED.0
    | StatusFlags::EOF.0
    | StatusFlags::COMPRESSED.0;

/// One of the two.
#[derive(Clone)]
struct Side {
    node: NodeId,
    length: u64,
    filename: String,
}

/// How a comparison ends early.
enum Stop {
    /// What standard output says; status 1.
    Differ(String),
    /// An error: message, status.
    Failed(String, i32),
}

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    if parsed.has("progress") {
        return Err(not_modelled("option '-p'", "leave it out"));
    }
    let [first, second] = parsed.rest.as_slice() else {
        return Err(reader.usage("Expecting two image file names"));
    };
    check_cache_mode(&parsed, "cache", "source cache").map_err(|exit| Exit { status: 2, ..exit })?;
    let how = How { force_share: parsed.has("force-share"), ..How::default() };
    let mut images: Vec<Image> = Vec::new();
    for (filename, format) in [(first, parsed.get("a-format")), (second, parsed.get("b-format"))] {
        let opened = match format.map_or(Ok(()), check_format) {
            Ok(()) => process.open(filename, format, how).await,
            Err(exit) => Err(exit),
        };
        match opened {
            Ok(image) => images.push(image),
            Err(exit) => {
                let ended = process.told(Err(Exit { status: 2, ..exit }));
                close_all(process, images).await;
                return ended;
            }
        }
    }
    let sides: Vec<Side> = images.iter().map(Side::of).collect();
    let (block, strict) = (process.block.clone(), parsed.has("strict"));
    let (text, result) = process.co(async move { compare(&block, [&sides[0], &sides[1]], strict).await }).await;
    let (text, status, error) = match result {
        Ok(()) => (text + "Images are identical.\n", 0, None),
        Err(Stop::Differ(line)) => (text + &line + "\n", 1, None),
        Err(Stop::Failed(message, status)) => (text, status, Some(message)),
    };
    if !parsed.has("quiet") {
        process.print(&text);
    }
    let ended = match error {
        Some(message) => process.told(Err(Exit { message, status, ..Exit::default() })),
        None => Ok(status),
    };
    close_all(process, images).await;
    ended
}

async fn close_all(process: &Process, images: Vec<Image>) {
    for image in images.into_iter().rev() {
        process.close(image).await;
    }
}

impl Side {
    fn of(image: &Image) -> Side {
        Side { node: image.node.id, length: image.node.length.get(), filename: image.filename.clone() }
    }

    async fn status(&self, block: &Rc<Block>, offset: u64) -> Result<BlockStatus, Stop> {
        let answer = block.co_block_status_above(self.node, None, offset, self.length - offset, true).await;
        let answer =
            answer.map_err(|_| Stop::Failed(format!("Sector allocation test failed for {}", self.filename), 3))?;
        Ok(answer.status)
    }

    fn read_error(&self, offset: u64, error: Errno) -> Stop {
        Stop::Failed(format!("Error while reading offset {offset} of {}: {error}", self.filename), 4)
    }

    async fn read(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Result<crate::store::Content, Stop> {
        let read = block.co_pread(self.node, offset, bytes, ReqFlags::NONE).await;
        read.map_err(|error| self.read_error(offset, error))
    }

    /// Checks that a range is all zeros.
    async fn check_empty(&self, block: &Rc<Block>, offset: u64, bytes: u64) -> Result<(), Stop> {
        let mut at = offset;
        while at < offset + bytes {
            let chunk = CHUNK_BYTES.min(offset + bytes - at);
            if let Some(found) = self.read(block, at, chunk).await?.first_not(0) {
                return Err(mismatch(at, found));
            }
            at += chunk;
        }
        Ok(())
    }
}

/// A difference `found` bytes into a chunk at `offset`.
fn mismatch(offset: u64, found: u64) -> Stop {
    Stop::Differ(format!("Content mismatch at offset {}!", offset + found / SECTOR_BYTES * SECTOR_BYTES))
}

/// What standard output says before the verdict, and the verdict.
async fn compare(block: &Rc<Block>, [a, b]: [&Side; 2], strict: bool) -> (String, Result<(), Stop>) {
    if strict && a.length != b.length {
        return (String::new(), Err(Stop::Differ("Strict mode: Image size mismatch!".to_owned())));
    }
    if let Err(stop) = compare_common(block, [a, b], strict).await {
        return (String::new(), Err(stop));
    }
    if a.length == b.length {
        return (String::new(), Ok(()));
    }
    let (longer, from) = if a.length > b.length { (a, b.length) } else { (b, a.length) };
    ("Warning: Image size mismatch!\n".to_owned(), check_tail(block, longer, from).await)
}

async fn compare_common(block: &Rc<Block>, [a, b]: [&Side; 2], strict: bool) -> Result<(), Stop> {
    let end = a.length.min(b.length);
    let mut at = 0;
    while at < end {
        let (here, there) = (a.status(block, at).await?, b.status(block, at).await?);
        let chunk = here.bytes.min(there.bytes).min(end - at);
        if chunk == 0 {
            break;
        }
        if strict && here.flags.0 & COMPARED != there.flags.0 & COMPARED {
            return Err(Stop::Differ(format!("Strict mode: Offset {at} block status mismatch!")));
        }
        at += compare_chunk(block, [a, b], [here.flags, there.flags], at, chunk).await?;
    }
    Ok(())
}

/// Compares (the beginning of) a range that each image has one status for; how many bytes were compared.
async fn compare_chunk(
    block: &Rc<Block>,
    [a, b]: [&Side; 2],
    [here, there]: [StatusFlags; 2],
    at: u64,
    chunk: u64,
) -> Result<u64, Stop> {
    if here.contains(StatusFlags::ZERO) && there.contains(StatusFlags::ZERO) {
        return Ok(chunk);
    }
    match (here.contains(StatusFlags::ALLOCATED), there.contains(StatusFlags::ALLOCATED)) {
        (false, false) => Ok(chunk),
        (true, true) => {
            let chunk = chunk.min(CHUNK_BYTES);
            let (content, other) = (a.read(block, at, chunk).await?, b.read(block, at, chunk).await?);
            match content.first_difference(&other) {
                Some(found) => Err(mismatch(at, found)),
                None => Ok(chunk),
            }
        }
        (only_first, _) => {
            let side = if only_first { a } else { b };
            side.check_empty(block, at, chunk).await?;
            Ok(chunk)
        }
    }
}

/// What one image has beyond the other's end must read as zeros.
async fn check_tail(block: &Rc<Block>, longer: &Side, from: u64) -> Result<(), Stop> {
    let mut at = from;
    while at < longer.length {
        let status = longer.status(block, at).await?;
        if status.bytes == 0 {
            break;
        }
        if status.flags.contains(StatusFlags::ALLOCATED) && !status.flags.contains(StatusFlags::ZERO) {
            longer.check_empty(block, at, status.bytes).await?;
        }
        at += status.bytes;
    }
    Ok(())
}
