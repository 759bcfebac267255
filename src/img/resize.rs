//! `qemu-img resize` (`img_resize` in QEMU's `qemu-img.c`).

use super::args::{Opt, Reader, long, short};
use super::info::refuse_image_opts;
use super::options::check_format;
use super::process::{How, Image, Outcome, Process, failure};
use super::size;
use crate::block::Preallocation;
use crate::quirks::Quirks;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    short("format", 'f', true),
    long("preallocation", true),
    long("shrink", false),
    short("quiet", 'q', false),
    long("image-opts", false),
    long("object", true),
];

/// A new size: absolute, or relative to the old one.
enum NewSize {
    Absolute(u64),
    More(u64),
    Less(u64),
}

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    // The size is taken off first: a negative one would look like an option.
    let Some((size, args)) = args.split_last().filter(|(_, before)| !before.is_empty()) else {
        let new = process.quirks().img_new_usage && !args.is_empty();
        if new {
            reader.read(args)?;
        }
        return Err(reader.usage(if new { "Expecting image file name and size" } else { "Not enough arguments" }));
    };
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    let preallocation = match parsed.get("preallocation") {
        None => Preallocation::Off,
        Some(mode) => {
            Preallocation::from_name(mode).ok_or_else(|| failure(format!("Invalid preallocation mode '{mode}'")))?
        }
    };
    let [filename] = parsed.rest.as_slice() else {
        return Err(reader.usage("Expecting image file name and size"));
    };
    let size = parse(process.quirks(), size)?;
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let how = How { write: true, resize: true, ..How::default() };
    let image = process.open(filename, format, how).await?;
    let resized = process.told(resize(process, &image, size, preallocation, parsed.has("shrink")).await);
    process.close(image).await;
    resized?;
    if !parsed.has("quiet") {
        process.print("Image resized.\n");
    }
    Ok(0)
}

fn parse(quirks: &Quirks, text: &str) -> Outcome<NewSize> {
    let (number, make): (&str, fn(u64) -> NewSize) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => (more, NewSize::More),
        (_, Some(less)) => (less, NewSize::Less),
        _ => (text, NewSize::Absolute),
    };
    size::parameter(quirks, "size", number).map(make).map_err(failure)
}

async fn resize(
    process: &Process,
    image: &Image,
    size: NewSize,
    preallocation: Preallocation,
    shrink: bool,
) -> Outcome<()> {
    let old = image.node.length.get();
    let new = match size {
        NewSize::Absolute(bytes) => Some(bytes),
        NewSize::More(bytes) => old.checked_add(bytes),
        NewSize::Less(bytes) => old.checked_sub(bytes),
    };
    let Some(new) = new.filter(|bytes| *bytes > 0 && i64::try_from(*bytes).is_ok()) else {
        return Err(failure("New image size must be positive"));
    };
    if new <= old && preallocation != Preallocation::Off {
        return Err(failure("Preallocation can only be used for growing images"));
    }
    if new < old && !shrink {
        return Err(failure(
            "Use the --shrink option to perform a shrink operation.\nqemu-img: warning: Shrinking an image will delete \
             all data beyond the shrunken image's end. Before performing such an operation, make sure there is no \
             important data there.",
        ));
    }
    let (block, node) = (process.block.clone(), image.node.id);
    process
        .co(async move { block.co_truncate(node, new, preallocation).await })
        .await
        .map_err(|text| failure(process.with_hint(text)))
}
