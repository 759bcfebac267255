//! `qemu-img rebase`: another backing file (`img_rebase` in QEMU's `qemu-img.c`).
//!
//! With `-u` the header gets another name and no data is looked at; without it what the two backing files do not have
//! in common is copied first (`rebase_copy.rs`).

use crate::block::NodeId;
use crate::block::qcow2::Qcow2;
use crate::errno::Errno;

use super::args::{Opt, Reader, long, newer, opt, short};
use super::create::full_backing_name;
use super::info::refuse_image_opts;
use super::options::{check_cache_mode, check_format};
use super::process::{How, Image, Outcome, Process, chain, failure, not_modelled};
use super::rebase_copy::{Base, RebaseCopy};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    opt("force-share", 'U', false),
    short("format", 'f', true),
    short("backing", 'b', true),
    short("backing-format", 'F', true),
    short("progress", 'p', false),
    short("quiet", 'q', false),
    short("cache", 't', true),
    short("backing-cache", 'T', true),
    short("backing-unsafe", 'u', false),
    newer("compress", 'c', false),
    long("image-opts", false),
    long("object", true),
];

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    let filename = reader.one_file(&parsed)?;
    let (backing, safe) = (parsed.get("backing"), !parsed.has("backing-unsafe"));
    if safe && backing.is_none() {
        return Err(reader.usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    if parsed.has("progress") {
        return Err(not_modelled("option '-p'", "leave it out"));
    }
    check_cache_mode(&parsed, "cache", "cache")?;
    check_cache_mode(&parsed, "backing-cache", "source cache")?;
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let backing_format = parsed.get("backing-format");
    backing_format.map_or(Ok(()), check_format)?;
    let force_share = parsed.has("force-share");
    let how = How { write: true, no_backing: !safe, force_share, ..How::default() };
    let image = process.open(filename, format, how).await?;
    let wanted = Wanted { backing, backing_format, safe, compress: parsed.has("compress"), force_share };
    let changed = process.told(rebase(process, &image, &wanted).await);
    process.close(image).await;
    changed?;
    Ok(0)
}

/// What the command line asks for.
struct Wanted<'a> {
    backing: Option<&'a str>,
    backing_format: Option<&'a str>,
    safe: bool,
    compress: bool,
    force_share: bool,
}

async fn rebase(process: &Process, image: &Image, wanted: &Wanted<'_>) -> Outcome<()> {
    if let Some(name) = wanted.backing_format
        && !matches!(name, "qcow2" | "raw")
    {
        return Err(failure(format!("Invalid format name: '{name}'")));
    }
    if wanted.safe {
        copy_differences(process, image, wanted).await?;
    }
    change(process, image, wanted.backing, wanted.backing_format).await
}

/// Gives the image of its own what only its old backing file has.
async fn copy_differences(process: &Process, image: &Image, wanted: &Wanted<'_>) -> Outcome<()> {
    let old = image.node.backing();
    let name = wanted.backing.unwrap_or("");
    let full = full_backing_name(&image.filename, name);
    // A file of the old chain is not opened again: what lies on this side of it is all that can differ.
    let prefix = if name.is_empty() { None } else { in_chain(process, image, &full) };
    let opened = match prefix {
        None if !name.is_empty() => Some(open_new(process, wanted, name, &full).await?),
        _ => None,
    };
    let base = |id: NodeId| Base { node: id, bytes: process.block.node(id).length.get() };
    let copy = RebaseCopy {
        block: process.block.clone(),
        image: image.node.id,
        bytes: image.node.length.get(),
        old: old.map(base),
        new: prefix.or(opened.as_ref().map(|image| image.node.id)).map(base),
        prefix,
        unit: image.node.qcow2().map_or(1, |qcow2| qcow2.cluster_size()),
        in_clusters: process.quirks().img_rebase_in_clusters,
        compress: wanted.compress,
    };
    let copied = if wanted.compress && image.node.qcow2().is_none() {
        Err("Compression not supported for this file format".to_owned())
    } else {
        process.co(async move { copy.run().await }).await
    };
    let copied = process.told(copied.map_err(failure));
    if let Some(opened) = opened {
        process.close(opened).await;
    }
    copied
}

/// The node of the image's backing chain that has this file.
fn in_chain(process: &Process, image: &Image, full: &str) -> Option<NodeId> {
    let below = chain(&process.block, image.node.id).into_iter().skip(1);
    below.into_iter().find(|id| process.block.filename(*id) == full)
}

async fn open_new(process: &Process, wanted: &Wanted<'_>, name: &str, full: &str) -> Outcome<Image> {
    let how = How { force_share: wanted.force_share, ..How::default() };
    let opened = process.open_plain(full, wanted.backing_format, how).await;
    opened.map_err(|text| failure(format!("Could not open new backing file '{name}': {text}")))
}

async fn change(process: &Process, image: &Image, name: Option<&str>, format: Option<&str>) -> Outcome<()> {
    // A name that was not given is told as the C library prints it.
    let (told, name) = (name.unwrap_or("(null)"), name.unwrap_or(""));
    let failed = |text: &str| failure(format!("Could not change the backing file to '{told}': {text}"));
    let Some(qcow2) = image.node.qcow2() else { return Err(failed(&Errno::ENOTSUP.to_string())) };
    if name.is_empty() {
        return set(process, qcow2, None).await.map_err(|error| failed(&error.to_string()));
    }
    let Some(format) = format else { return Err(failed("backing format must be specified")) };
    let new = Some((name.to_owned(), format.to_owned()));
    set(process, qcow2, new).await.map_err(|error| match error {
        Errno::ENOSPC => failed("No space left in the file header"),
        other => failed(&other.to_string()),
    })
}

async fn set(process: &Process, qcow2: std::rc::Rc<Qcow2>, new: Option<(String, String)>) -> Result<(), Errno> {
    let block = process.block.clone();
    process
        .co(async move {
            let (name, format) = new.as_ref().map(|(name, format)| (name.as_str(), format.as_str())).unzip();
            qcow2.change_backing(&block, name, format).await
        })
        .await
}
