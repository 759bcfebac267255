//! `qemu-img rebase -u`: another backing file's name in the header (`img_rebase` in QEMU's `qemu-img.c`).
//!
//! Only the unsafe mode, which looks at no data; the safe one would copy what differs.

use crate::block::qcow2::Qcow2;
use crate::errno::Errno;

use super::args::{Opt, Reader, long, opt, short};
use super::info::refuse_image_opts;
use super::options::{check_cache_mode, check_format};
use super::process::{How, Image, Outcome, Process, failure, not_modelled};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    short("format", 'f', true),
    short("backing", 'b', true),
    short("backing-format", 'F', true),
    short("backing-unsafe", 'u', false),
    short("progress", 'p', false),
    short("quiet", 'q', false),
    short("cache", 't', true),
    short("src-cache", 'T', true),
    opt("force-share", 'U', false),
    opt("compress", 'c', false),
    long("image-opts", false),
    long("object", true),
];

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    let filename = reader.one_file(&parsed)?;
    let backing = parsed.get("backing");
    if !parsed.has("backing-unsafe") {
        if backing.is_none() {
            return Err(reader.usage("Must specify backing file (-b) or use unsafe mode (-u)"));
        }
        return Err(not_modelled("rebase without -u", "-u changes the name without copying"));
    }
    if parsed.has("progress") {
        return Err(not_modelled("option '-p'", "leave it out"));
    }
    check_cache_mode(&parsed, "cache", "cache")?;
    check_cache_mode(&parsed, "src-cache", "source cache")?;
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let backing_format = parsed.get("backing-format");
    backing_format.map_or(Ok(()), check_format)?;
    let how = How { write: true, no_backing: true, ..How::default() };
    let image = process.open(filename, format, how).await?;
    let changed = match backing_format {
        Some(name) if !matches!(name, "qcow2" | "raw") => Err(failure(format!("Invalid format name: '{name}'"))),
        _ => change(process, &image, backing, backing_format).await,
    };
    let changed = process.told(changed);
    process.close(image).await;
    changed?;
    Ok(0)
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
