//! `qemu-img convert`: a new image with the content of another (`img_convert` in QEMU's `qemu-img.c`).
//!
//! One source, one worker; the copying itself is in `convert_copy.rs`. Several sources, rate limits and
//! salvaging are not modelled.

use crate::bitmap::DirtyBitmap;
use crate::block::Node;
use crate::quirks::Quirks;

use super::args::{Opt, Parsed, Reader, long, opt, short};
use super::convert_copy::{Copy, copy};
use super::create;
use super::info::refuse_image_opts;
use super::options::{CreateOptions, check_cache_mode, check_format};
use super::process::{How, Image, Outcome, Process, failure, not_modelled};
use super::size;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    short("source-format", 'f', true),
    short("target-format", 'O', true),
    opt("backing", 'B', true),
    short("backing-format", 'F', true),
    short("compress", 'c', false),
    short("options", 'o', true),
    short("snapshot", 'l', true),
    short("sparse-size", 'S', true),
    short("progress", 'p', false),
    short("quiet", 'q', false),
    short("no-create", 'n', false),
    short("target-cache", 't', true),
    short("source-cache", 'T', true),
    short("parallel", 'm', true),
    short("oob", 'W', false),
    short("rate-limit", 'r', true),
    opt("force-share", 'U', false),
    long("bitmaps", false),
    long("skip-broken-bitmaps", false),
    long("salvage", false),
    long("target-is-zero", false),
    long("image-opts", false),
    long("target-image-opts", false),
    long("object", true),
];

/// What changes the result and is not modelled.
const REFUSED: &[(&str, &str)] = &[
    ("snapshot", "-l"),
    ("progress", "-p"),
    ("no-create", "-n"),
    ("rate-limit", "-r"),
    ("salvage", "--salvage"),
    ("target-is-zero", "--target-is-zero"),
];

/// What `-S` is by default, bytes.
const SPARSE_BYTES: u64 = 4096;
/// What it may be at most, bytes.
const MAX_SPARSE_BYTES: u64 = 16 << 20;
/// What it has to be a multiple of, bytes.
const SECTOR_BYTES: u64 = 512;
/// Workers that copy, unless `-m` says otherwise.
const WORKERS: usize = 8;

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    if let Some((_, option)) = REFUSED.iter().find(|(key, _)| parsed.has(key)) {
        return Err(not_modelled(&format!("option '{option}'"), "convert copies one whole image to a new one"));
    }
    if parsed.has("skip-broken-bitmaps") && !parsed.has("bitmaps") {
        return Err(failure("Use of --skip-broken-bitmaps requires --bitmaps"));
    }
    let sparse = sparse_size(process, &parsed)?;
    if parsed.get("parallel").is_some_and(|text| !matches!(text.parse(), Ok(1..=16u8))) {
        return Err(failure(if process.quirks().img_new_usage {
            "Invalid number of coroutines specified. Must be between 1 and 16."
        } else {
            "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"
        }));
    }
    check_cache_mode(&parsed, "target-cache", "cache")?;
    check_cache_mode(&parsed, "source-cache", "source cache")?;
    let (source, target) = match parsed.rest.as_slice() {
        [] | [_] => return Err(failure("Must specify image file name")),
        [source, target] => (source, target),
        _ => return Err(not_modelled("several source images", "there is one")),
    };
    let format = parsed.get("source-format");
    format.map_or(Ok(()), check_format)?;
    let how = How { force_share: parsed.has("force-share"), ..How::default() };
    let image = process.open(source, format, how).await?;
    let done = process.told(convert(process, &parsed, &image, target, sparse).await);
    process.close(image).await;
    done?;
    Ok(0)
}

fn sparse_size(process: &Process, parsed: &Parsed) -> Outcome<u64> {
    const WHAT: &str = "buffer size for sparse output";
    let Some(text) = parsed.get("sparse-size") else { return Ok(SPARSE_BYTES) };
    let bytes = size::argument(process.quirks(), WHAT, text)?;
    if bytes % SECTOR_BYTES == 0 && bytes <= MAX_SPARSE_BYTES {
        return Ok(bytes);
    }
    Err(failure(format!(
        "Invalid {WHAT} specified. Valid sizes are multiples of {SECTOR_BYTES} up to {MAX_SPARSE_BYTES}. Select 0 to \
         disable sparse detection (fully allocates output)."
    )))
}

async fn convert(process: &Process, parsed: &Parsed, source: &Image, target: &str, sparse: u64) -> Outcome<()> {
    let format = parsed.get("target-format").unwrap_or("raw");
    check_format(format)?;
    let options = target_options(process.quirks(), parsed, source, format)?;
    let compress = parsed.has("compress");
    if compress && !options.is_qcow2() {
        return Err(failure("Compression not supported for this file format"));
    }
    if compress && options.get("preallocation").is_some_and(|mode| mode != "off") {
        return Err(failure("Compression and preallocation not supported at the same time"));
    }
    let bitmaps = parsed.has("bitmaps");
    if bitmaps {
        check_source_bitmaps(parsed, &source.node)?;
    }
    let created = create::make(process, target, &options).await;
    created.map_err(|text| failure(format!("{target}: error while converting {format}: {text}")))?;
    let how = How { write: true, resize: true, unmap: true, ..How::default() };
    let new = process.open(target, Some(format), how).await?;
    // The real tool looks at the new image, not at its options: the file stays.
    let done = if bitmaps && !stores_bitmaps(&new.node) {
        Err(failure(format!("Format driver '{format}' does not support bitmaps")))
    } else {
        let workers = parsed.get("parallel").and_then(|text| text.parse().ok()).unwrap_or(WORKERS);
        let (backed, in_order) = (options.get("backing_file").is_some(), !parsed.has("oob"));
        let plan = Plan { compress, sparse, bitmaps, backed, workers, in_order };
        fill(process, source, &new, plan).await
    };
    let done = process.told(done);
    process.close(new).await;
    done
}

/// How the new image is filled.
struct Plan {
    compress: bool,
    sparse: u64,
    bitmaps: bool,
    /// The new image has a backing file.
    backed: bool,
    workers: usize,
    in_order: bool,
}

fn target_options(quirks: &Quirks, parsed: &Parsed, source: &Image, format: &str) -> Outcome<CreateOptions> {
    if !matches!(format, "qcow2" | "raw") {
        return Err(failure(format!("Unknown file format '{format}'")));
    }
    let mut options = CreateOptions::new(format);
    for text in parsed.all("options") {
        options.parse(quirks, text).map_err(failure)?;
    }
    if options.given("size").is_none() {
        options.set("size", &source.node.length.get().to_string());
    } else if options.number("size") != Some(source.node.length.get()) {
        return Err(not_modelled("-o size", "the new image has the size of the source"));
    }
    if let Some(backing) = parsed.get("backing")
        && !options.set("backing_file", backing)
    {
        return Err(failure(format!("Backing file not supported for file format '{format}'")));
    }
    if let Some(backing_format) = parsed.get("backing-format")
        && !options.set("backing_fmt", backing_format)
    {
        return Err(failure(format!("Backing file format not supported for file format '{format}'")));
    }
    if options.get("backing_file").is_some() && options.get("backing_fmt").is_none() {
        return Err(failure("Use of backing file requires explicit backing format"));
    }
    Ok(options)
}

/// Whether an image can hold bitmaps (`bdrv_supports_persistent_dirty_bitmap`).
fn stores_bitmaps(node: &Node) -> bool {
    node.qcow2().is_some_and(|qcow2| qcow2.version() >= 3)
}

/// Whether the source has bitmaps that can be copied (`convert_check_bitmaps`).
fn check_source_bitmaps(parsed: &Parsed, source: &Node) -> Outcome<()> {
    if !stores_bitmaps(source) {
        return Err(failure("Source lacks bitmap support"));
    }
    let list = source.bitmaps.borrow();
    let broken = list.iter().find(|(_, bitmap)| bitmap.persistent && bitmap.inconsistent);
    match broken {
        Some((_, bitmap)) if !parsed.has("skip-broken-bitmaps") => Err(failure(format!(
            "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            bitmap.name.as_deref().unwrap_or("")
        ))),
        _ => Ok(()),
    }
}

async fn fill(process: &Process, source: &Image, target: &Image, plan: Plan) -> Outcome<()> {
    let cluster = target.node.qcow2().map(|qcow2| qcow2.cluster_size());
    let work = Copy {
        block: process.block.clone(),
        source: source.node.id,
        target: target.node.id,
        bytes: source.node.length.get(),
        compress_unit: cluster.filter(|_| plan.compress),
        sparse: plan.sparse,
        backing: if plan.backed { target.node.backing() } else { None },
        workers: plan.workers,
        in_order: plan.in_order,
    };
    if !copy(work).await {
        // Told already.
        return Err(failure(""));
    }
    if plan.bitmaps {
        copy_bitmaps(process, &source.node, &target.node)?;
    }
    Ok(())
}

/// Gives the new image the persistent bitmaps of the source (`convert_copy_bitmaps`).
fn copy_bitmaps(process: &Process, source: &Node, target: &Node) -> Outcome<()> {
    let bitmaps: Vec<DirtyBitmap> = {
        let list = source.bitmaps.borrow();
        list.iter().filter(|(_, bitmap)| bitmap.persistent).map(|(_, bitmap)| bitmap.clone()).collect()
    };
    for bitmap in bitmaps {
        let name = bitmap.name.as_deref().unwrap_or("");
        if bitmap.inconsistent {
            process.report(&format!("warning: Skipping inconsistent bitmap '{name}'"));
            continue;
        }
        let mut list = target.bitmaps.borrow_mut();
        let made = list.create(target.length.get(), bitmap.granularity(), Some(name));
        let made = made.and_then(|id| match list.get_mut(id) {
            Some(new) => {
                (new.persistent, new.disabled) = (true, bitmap.disabled);
                new.merge_from(&bitmap)
            }
            None => Ok(()),
        });
        made.map_err(|fault| failure(format!("Failed to populate bitmap {name}: {fault}")))?;
    }
    Ok(())
}
