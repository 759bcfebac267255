//! `qemu-img create` and the creation behind `convert` (`bdrv_img_create` in QEMU's `block.c`).

use crate::block::Preallocation;
use crate::block::qcow2::Qcow2CreateOptions;
use crate::job::create_image;

use super::args::{Opt, Reader, long, short};
use super::options::{CreateOptions, check_format, creation_failed, truth};
use super::process::{Exit, How, Outcome, Process};
use super::size;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    short("format", 'f', true),
    short("backing", 'b', true),
    short("backing-format", 'F', true),
    long("object", true),
    short("options", 'o', true),
    short("quiet", 'q', false),
    short("backing-unsafe", 'u', false),
];

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    let (filename, given_size) = match parsed.rest.as_slice() {
        [] => return Err(reader.usage("Expecting image file name")),
        [file] => (file, None),
        [file, size] => (file, Some(size::argument(process.quirks(), "image size", size)?)),
        [_, size, extra, ..] => {
            size::argument(process.quirks(), "image size", size)?;
            return Err(reader.usage(&format!("Unexpected argument: {extra}")));
        }
    };
    let format = parsed.get("format").unwrap_or("raw");
    check_format(format)?;
    let failed = |text: &str| creation_failed(filename, text);
    if !matches!(format, "qcow2" | "raw") {
        return Err(failed(&format!("Unknown file format '{format}'")));
    }
    let mut options = CreateOptions::new(format);
    for text in parsed.all("options") {
        if text == "help" || text == "?" {
            return Err(super::process::not_modelled("-o help", "the options are in qemu-img(1)"));
        }
        options.parse(process.quirks(), text).map_err(|text| failed(&text))?;
    }
    if let Some(size) = given_size {
        if options.given("size").is_some() {
            return Err(failed("The image size must be specified only once"));
        }
        options.set("size", &size.to_string());
    }
    if let Some(backing) = parsed.get("backing")
        && !options.set("backing_file", backing)
    {
        return Err(failed(&format!("Backing file not supported for file format '{format}'")));
    }
    if let Some(backing_format) = parsed.get("backing-format")
        && !options.set("backing_fmt", backing_format)
    {
        return Err(failed(&format!("Backing file format not supported for file format '{format}'")));
    }
    create(process, filename, &mut options, parsed.has("backing-unsafe"), parsed.has("quiet")).await?;
    Ok(0)
}

/// Checks the backing file, fills the size in, prints the `Formatting` line and creates the image.
async fn create(
    process: &Process,
    filename: &str,
    options: &mut CreateOptions,
    unsafe_backing: bool,
    quiet: bool,
) -> Outcome<()> {
    let failed = |text: &str| creation_failed(filename, text);
    if let Some(backing) = options.get("backing_file").map(str::to_owned) {
        if backing.is_empty() {
            return Err(failed("Expected backing file name, got empty string"));
        }
        if backing == filename {
            return Err(failed("Error: Trying to create an image with the same filename as the backing file"));
        }
        if !unsafe_backing {
            let size = backing_size(process, filename, &backing, options).await?;
            if options.given("size").is_none() {
                options.set("size", &size.to_string());
            }
        } else if options.get("backing_fmt").is_none() {
            return Err(failed("Backing file specified without backing format"));
        }
    }
    if options.number("size").is_none() {
        return Err(failed("Image creation needs a size parameter"));
    }
    if !quiet {
        process.print(&options.formatting(filename));
    }
    make(process, filename, options).await.map_err(|text| failed(&text))
}

/// Opens the backing file for a moment; its length, bytes.
async fn backing_size(process: &Process, filename: &str, backing: &str, options: &CreateOptions) -> Outcome<u64> {
    let failed = |text: &str| creation_failed(filename, text);
    let format = options.get("backing_fmt");
    if let Some(format) = format {
        check_format(format)?;
    }
    let full = full_backing_name(filename, backing);
    // Whoever uses the backing file may go on: only its length is looked at.
    let how = How { force_share: true, ..How::default() };
    let opened = process.open_plain(&full, format, how).await;
    let image = opened.map_err(|text| failed(&format!("{text}\nCould not open backing image.")))?;
    let (size, found) = (image.node.length.get(), image.node.driver_name().unwrap_or("raw"));
    process.close(image).await;
    if format.is_none() {
        let mut exit: Exit =
            failed(&format!("Backing file specified without backing format\nDetected format of {found}."));
        exit.open_line = !process.quirks().img_hint_newline;
        return Err(exit);
    }
    Ok(size)
}

/// A backing file's name is relative to the new image's directory.
pub(super) fn full_backing_name(filename: &str, backing: &str) -> String {
    match filename.rsplit_once('/') {
        Some((directory, _)) if !backing.contains('/') => format!("{directory}/{backing}"),
        _ => backing.to_owned(),
    }
}

/// Creates the file and the image in it. The error is QEMU's text, without the file's name in front.
pub(super) async fn make(process: &Process, filename: &str, options: &CreateOptions) -> Result<(), String> {
    let size = options.number("size").unwrap_or(0);
    if i64::try_from(size).is_err() || size > i64::MAX as u64 - 511 {
        return Err(too_large(&options.format));
    }
    let mut new = Qcow2CreateOptions { size: size.next_multiple_of(512), ..Qcow2CreateOptions::default() };
    let mode = options.get("preallocation").unwrap_or("off");
    let preallocation = Preallocation::from_name(mode);
    if options.is_qcow2() {
        qcow2_options(options, preallocation, &mut new)?;
    } else {
        new.preallocation = preallocation.ok_or_else(|| format!("invalid parameter value: {mode}"))?;
    }
    let (block, name, is_qcow2) = (process.block.clone(), filename.to_owned(), options.is_qcow2());
    let made = process.co(async move { create_image(&block, &name, is_qcow2, &new).await }).await;
    made.map_err(|text| match text.ends_with("File too large") {
        true => too_large(&options.format),
        false => process.with_hint(text),
    })
}

fn too_large(format: &str) -> String {
    let hint = if format == "qcow2" { " (try using a larger cluster size)" } else { "" };
    format!("The image size is too large for file format '{format}'{hint}")
}

/// Names are looked at in the order of the schema (`BlockdevCreateOptionsQcow2`).
fn qcow2_options(
    options: &CreateOptions,
    preallocation: Option<Preallocation>,
    new: &mut Qcow2CreateOptions,
) -> Result<(), String> {
    let refused = |name: &str, value: &str| Err(format!("Parameter '{name}' does not accept value '{value}'"));
    new.version = match options.get("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return refused("version", other),
    };
    new.preallocation = match preallocation {
        Some(mode) => mode,
        None => return refused("preallocation", options.get("preallocation").unwrap_or("")),
    };
    new.zstd = match options.get("compression_type") {
        None | Some("zlib") => false,
        Some("zstd") => true,
        Some(other) => return refused("compression-type", other),
    };
    new.cluster_size = options.number("cluster_size").unwrap_or(new.cluster_size);
    new.refcount_bits = options.number("refcount_bits").unwrap_or(new.refcount_bits);
    new.lazy_refcounts = options.get("lazy_refcounts").and_then(truth) == Some(true);
    new.extended_l2 = options.get("extended_l2").and_then(truth) == Some(true);
    new.backing_file = options.get("backing_file").map(str::to_owned);
    new.backing_format = options.get("backing_fmt").map(str::to_owned);
    Ok(())
}
