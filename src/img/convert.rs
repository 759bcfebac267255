//! `qemu-img convert`: a new image with the content of another (`img_convert` in QEMU's `qemu-img.c`).
//!
//! One source, one worker; the copying itself is in `convert_copy.rs`. Several sources, rate limits and
//! salvaging are not modelled.

use crate::bitmap::DirtyBitmap;
use crate::block::Node;
use crate::quirks::Quirks;

use super::args::{Opt, Parsed, Reader, letter, long, newer_name, opt, short};
use super::convert_copy::{Copy, copy};
use super::create;
use super::info::refuse_image_opts;
use super::options::{CreateOptions, check_cache_mode, check_format};
use super::process::{How, Image, Outcome, Process, failure, not_modelled};
use super::size;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    long("object", true),
    newer_name("image-opts", "source-image-opts", false),
    long("image-opts", false),
    short("source-format", 'f', true),
    short("source-cache", 'T', true),
    short("snapshot", 'l', true),
    long("target-image-opts", false),
    letter("target-format", 'O', true).called("output-format"),
    short("options", 'o', true),
    letter("target-cache", 't', true).called("output-cache"),
    long("target-is-zero", false),
    letter("backing", 'B', true).called("backing"),
    short("backing-format", 'F', true),
    letter("compress", 'c', false),
    short("sparse-size", 'S', true),
    letter("progress", 'p', false),
    short("quiet", 'q', false),
    letter("no-create", 'n', false),
    short("parallel", 'm', true),
    letter("oob", 'W', false).called("oob-writes"),
    letter("copy-range", 'C', false).called("copy-range-offloading"),
    letter("rate-limit", 'r', true).called("rate"),
    opt("force-share", 'U', false),
    long("bitmaps", false),
    long("salvage", false),
    long("skip-broken-bitmaps", false),
];

/// What changes the result and is not modelled.
const REFUSED: &[(&str, &str)] =
    &[("snapshot", "-l"), ("progress", "-p"), ("copy-range", "-C"), ("rate-limit", "-r"), ("salvage", "--salvage")];

/// What `-S` is by default, bytes.
const SPARSE_BYTES: u64 = 4096;
/// What it may be at most, bytes.
const MAX_SPARSE_BYTES: u64 = 16 << 20;
/// What it has to be a multiple of, and what copies consist of, bytes.
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
    refuse_contradictions(&parsed)?;
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
    let force_share = parsed.has("force-share");
    let how = How { force_share, no_share: !force_share, ..How::default() };
    let image = process.open(source, format, how).await?;
    let done = process.told(convert(process, &parsed, &image, target, sparse).await);
    process.close(image).await;
    done?;
    Ok(0)
}

/// What a new image would need and an old one must not have, or the other way round.
fn refuse_contradictions(parsed: &Parsed) -> Outcome<()> {
    let old = parsed.has("no-create");
    if old && parsed.has("options") {
        return Err(failure("-o has no effect when skipping image creation"));
    }
    if parsed.has("target-is-zero") && !old {
        return Err(failure("--target-is-zero requires use of -n flag"));
    }
    Ok(())
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
    let (compress, bitmaps, old) = (parsed.has("compress"), parsed.has("bitmaps"), parsed.has("no-create"));
    let mut backed = parsed.has("backing");
    if old && backed && parsed.has("target-is-zero") {
        // The real tool tells so and ends well.
        process.report("Cannot use --target-is-zero when the destination image has a backing file");
        return Ok(());
    }
    check_format(format)?;
    if old {
        if bitmaps {
            check_source_bitmaps(parsed, &source.node)?;
        }
    } else {
        let options = target_options(process.quirks(), parsed, source, format)?;
        if compress && !options.is_qcow2() {
            return Err(failure("Compression not supported for this file format"));
        }
        if compress && options.get("preallocation").is_some_and(|mode| mode != "off") {
            return Err(failure("Compression and preallocation not supported at the same time"));
        }
        if bitmaps {
            check_source_bitmaps(parsed, &source.node)?;
        }
        let created = create::make(process, target, &options).await;
        created.map_err(|text| failure(format!("{target}: error while converting {format}: {text}")))?;
        backed = options.get("backing_file").is_some();
    }
    let how = How { write: true, resize: true, unmap: sparse > 0, ..How::default() };
    let new = process.open(target, Some(format), how).await?;
    // The real tool looks at the new image, not at its options: the file stays.
    let done = if bitmaps && !stores_bitmaps(&new.node) {
        Err(failure(format!("Format driver '{format}' does not support bitmaps")))
    } else if compress && new.node.qcow2().is_none() {
        Err(failure("Compression not supported for this file format"))
    } else if new.node.length.get() < source.node.length.get() {
        Err(failure("output file is smaller than input file"))
    } else {
        let workers = parsed.get("parallel").and_then(|text| text.parse().ok()).unwrap_or(WORKERS);
        // Whether zeros need not be told: an old image has them if the user says so, a new one unless -S 0 wants data.
        let zeroed = if old { parsed.has("target-is-zero") } else { !backed && sparse > 0 };
        let plan = Plan { compress, sparse, bitmaps, new: !old, backed, zeroed, workers, in_order: !parsed.has("oob") };
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
    /// The image was made for this, and the length of its backing file is looked at.
    new: bool,
    /// What has no data in the source is left to the image's backing file.
    backed: bool,
    /// The image reads as zeros where nothing is written.
    zeroed: bool,
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
        source_unit: source.node.qcow2().map_or(SECTOR_BYTES, |qcow2| qcow2.cluster_size()),
        compress_unit: cluster.filter(|_| plan.compress),
        sparse: plan.sparse,
        backed: plan.backed,
        backing_bytes: target
            .node
            .backing()
            .filter(|_| plan.new && plan.backed)
            .map(|id| process.block.node(id).length.get()),
        zeroed: plan.zeroed,
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
