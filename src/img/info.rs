//! `qemu-img info`: what an image says about itself, and its backing chain (`collect_image_info_list` in
//! QEMU's `qemu-img.c`, `bdrv_query_image_info` in `block/qapi.c`).
//!
//! Opens without the backing file and without reading data. How it looks is in `info_text.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::block::qcow2::{BitmapInfo, Qcow2Info};
use crate::block::{Driver, Node};

use super::args::{Opt, Reader, long, newer_letter, opt};
use super::info_text;
use super::options::check_format;
use super::process::{How, Image, Outcome, Process, failure, not_modelled};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    opt("format", 'f', true),
    long("output", true),
    long("backing-chain", false),
    newer_letter("backing-chain", 'b', false),
    opt("force-share", 'U', false),
    long("image-opts", false),
    long("object", true),
];

/// What is known about a node.
pub(super) struct NodeInfo {
    pub(super) filename: String,
    /// The driver.
    pub(super) format: &'static str,
    /// Bytes.
    pub(super) virtual_size: u64,
    /// Bytes on the host; none where the driver does not know.
    pub(super) actual_size: Option<u64>,
    pub(super) qcow2: Option<Qcow2Info>,
    pub(super) bitmaps: Vec<BitmapInfo>,
    /// The backing file's full name.
    pub(super) full_backing: Option<String>,
    /// Name and facts of each child.
    pub(super) children: Vec<(&'static str, NodeInfo)>,
}

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    let json = reader.json(&parsed)?;
    refuse_image_opts(&parsed)?;
    let first = reader.one_file(&parsed)?;
    let whole_chain = parsed.has("backing-chain");
    let how = How { no_backing: true, no_io: true, force_share: parsed.has("force-share"), ..How::default() };
    let mut infos: Vec<NodeInfo> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = Some((first.to_owned(), parsed.get("format").map(str::to_owned)));
    while let Some((filename, format)) = next.take() {
        if !seen.insert(filename.clone()) {
            return Err(failure(format!("Backing file '{filename}' creates an infinite loop.")));
        }
        if let Some(format) = &format {
            check_format(format)?;
        }
        let image = process.open(&filename, format.as_deref(), how).await?;
        let info = process.told(describe(process, &image).await);
        process.close(image).await;
        let info = info?;
        if whole_chain {
            let format = info.qcow2.as_ref().and_then(|qcow2| qcow2.backing_format.clone());
            next = info.full_backing.clone().map(|name| (name, format));
        }
        infos.push(info);
    }
    process.print(&match (json, whole_chain) {
        (true, true) => info_text::json_list(process.quirks(), &infos),
        (true, false) => infos.iter().map(|info| info_text::json(process.quirks(), info)).collect(),
        (false, _) => info_text::human_list(process.quirks(), &infos),
    });
    Ok(0)
}

/// `--image-opts` and `--object` name images in a way that is not modelled.
pub(super) fn refuse_image_opts(parsed: &super::args::Parsed) -> Outcome<()> {
    for key in ["image-opts", "target-image-opts", "object"] {
        if parsed.has(key) {
            return Err(not_modelled(&format!("option '--{key}'"), "images are given by file name"));
        }
    }
    Ok(())
}

async fn describe(process: &Process, image: &Image) -> Outcome<NodeInfo> {
    let mut info = of_node(process, &image.node);
    if let Some(qcow2) = image.node.qcow2() {
        let block = process.block.clone();
        let bitmaps = process.co(async move { qcow2.bitmap_infos(&block).await }).await;
        // An image whose directory cannot be read has not been opened; this is for read errors since.
        info.bitmaps = bitmaps.map_err(failure)?;
    }
    Ok(info)
}

fn of_node(process: &Process, node: &Rc<Node>) -> NodeInfo {
    let qcow2 = node.qcow2().map(|qcow2| qcow2.info());
    let backing = qcow2.as_ref().and_then(|info| info.backing_file.as_deref());
    let children = node.children.borrow();
    let children = children.iter().map(|edge| (edge.name, of_node(process, &process.block.node(edge.child.get()))));
    NodeInfo {
        filename: process.block.filename(node.id),
        format: node.driver_name().unwrap_or(""),
        virtual_size: length(node),
        actual_size: process.block.allocated_size(node.id),
        full_backing: backing.map(|name| process.block.relative_to(node, name)),
        qcow2,
        bitmaps: Vec::new(),
        children: children.collect(),
    }
}

/// A file may have grown since it was opened; everything else has the length it was opened with.
fn length(node: &Node) -> u64 {
    match &*node.driver.borrow() {
        Driver::File(file) => file.store.len().next_multiple_of(512),
        _ => node.length.get(),
    }
}
