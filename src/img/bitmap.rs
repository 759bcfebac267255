//! `qemu-img bitmap`: changes the persistent bitmaps of an image (`img_bitmap` in QEMU's `qemu-img.c`).
//!
//! The actions are those of QMP's block-dirty-bitmap commands, with their texts; all are done in the order given, in
//! one opening of the image.

use std::rc::Rc;

use crate::bitmap::{Allow, BitmapId, DirtyBitmap, MIN_GRANULARITY, default_granularity};
use crate::block::Node;

use super::args::{Opt, Parsed, Reader, letter, long, opt};
use super::info::refuse_image_opts;
use super::options::check_format;
use super::process::{How, Image, Outcome, Process, failure};
use super::size;

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    letter("format", 'f', true),
    long("add", false),
    long("remove", false),
    long("clear", false),
    long("enable", false),
    long("disable", false),
    long("merge", true),
    opt("granularity", 'g', true),
    opt("source-file", 'b', true),
    opt("source-format", 'F', true),
    long("image-opts", false),
    long("object", true),
];

const ACTIONS: &[&str] = &["add", "remove", "clear", "enable", "disable", "merge"];

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    refuse_image_opts(&parsed)?;
    let granularity = parsed.get("granularity").map(|text| size::argument(process.quirks(), "granularity", text));
    // 0 is the same as none.
    let granularity = granularity.transpose()?.filter(|bytes| *bytes > 0);
    check(&parsed, granularity)?;
    let [filename, name] = parsed.rest.as_slice() else {
        return Err(failure("Expecting filename and bitmap name"));
    };
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let how = How { write: true, no_backing: true, ..How::default() };
    let image = process.open(filename, format, how).await?;
    let source = match parsed.get("source-file") {
        None => Ok(None),
        Some(source) => {
            let how = How { no_backing: true, ..How::default() };
            process.open(source, parsed.get("source-format"), how).await.map(Some)
        }
    };
    let (source, mut done) = match source {
        Ok(source) => (source, Ok(())),
        Err(exit) => (None, Err(exit)),
    };
    if done.is_ok() {
        let work = Work { process, image: &image, source: source.as_ref(), name, granularity };
        done = work.actions(&parsed).await;
    }
    let done = process.told(done);
    let stored = store(process, &image).await;
    if let Some(source) = source {
        process.close(source).await;
    }
    process.close(image).await;
    done.and(stored)?;
    Ok(0)
}

fn check(parsed: &Parsed, granularity: Option<u64>) -> Outcome<()> {
    let problem = if !ACTIONS.iter().any(|action| parsed.has(action)) {
        "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
    } else if granularity.is_some() && !parsed.has("add") {
        "granularity only supported with --add"
    } else if parsed.has("source-format") && !parsed.has("source-file") {
        "-F only supported with -b"
    } else if parsed.has("source-file") && !parsed.has("merge") {
        "Merge bitmap source file only supported with --merge"
    } else {
        return Ok(());
    };
    Err(failure(problem))
}

/// QEMU 10 stores the bitmaps before the image is closed, and tells when that fails.
async fn store(process: &Process, image: &Image) -> Outcome<()> {
    if !process.quirks().img_bitmap_stores_first {
        return Ok(());
    }
    let Some(qcow2) = image.node.qcow2() else { return Ok(()) };
    let block = process.block.clone();
    let stored = process.co(async move { qcow2.inactivate(&block).await }).await;
    let Err(error) = stored else { return Ok(()) };
    // Told at once: closing the image tries again, and tells its reasons again.
    process.told(Err(failure(format!("Error while closing the image: {error}"))))
}

/// The image that is worked on.
struct Work<'a> {
    process: &'a Process,
    image: &'a Image,
    source: Option<&'a Image>,
    name: &'a str,
    granularity: Option<u64>,
}

impl Work<'_> {
    async fn actions(&self, parsed: &Parsed) -> Outcome<()> {
        for (action, argument) in parsed.options.iter().filter(|(key, _)| ACTIONS.contains(key)) {
            let done = match *action {
                "add" => self.add().await,
                "remove" => self.remove().await,
                "merge" => self.merge(argument),
                "clear" => self.edit(Allow::NOTHING, |bitmap| bitmap.fill(false)),
                other => self.edit(Allow::READONLY, |bitmap| bitmap.disabled = other == "disable"),
            };
            if let Err(text) = done {
                // Told at once: closing the image may have something to tell, too.
                self.process.report(&format!("Operation {action} on bitmap {} failed: {text}", self.name));
                return Err(failure(""));
            }
        }
        Ok(())
    }

    fn node(&self) -> &Rc<Node> {
        &self.image.node
    }

    fn find(&self, node: &Node, name: &str, allow: Allow) -> Result<BitmapId, String> {
        let list = node.bitmaps.borrow();
        let id = list.find(name).ok_or_else(|| format!("Dirty bitmap '{name}' not found"))?;
        let checked = list.get(id).map_or(Ok(()), |bitmap| bitmap.check(allow));
        checked.map(|()| id).map_err(|fault| self.process.with_hint(fault.to_string()))
    }

    fn edit(&self, allow: Allow, change: impl FnOnce(&mut DirtyBitmap)) -> Result<(), String> {
        let id = self.find(self.node(), self.name, allow)?;
        if let Some(bitmap) = self.node().bitmaps.borrow_mut().get_mut(id) {
            change(bitmap);
        }
        Ok(())
    }

    async fn add(&self) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("Bitmap name cannot be empty".to_owned());
        }
        let node = self.node();
        let granularity = match self.granularity {
            // QMP's argument has 32 bits; what does not fit loses its upper half.
            Some(bytes) => u64::from(bytes as u32),
            None => default_granularity(node.qcow2().map(|qcow2| qcow2.cluster_size())),
        };
        if granularity < MIN_GRANULARITY || !granularity.is_power_of_two() {
            return Err("Granularity must be power of 2 and at least 512".to_owned());
        }
        self.check_storable(granularity).await?;
        let mut list = node.bitmaps.borrow_mut();
        if list.find(self.name).is_some() {
            return Err(format!("Bitmap already exists: {}", self.name));
        }
        let created = list.create(node.length.get(), granularity, Some(self.name));
        let id = created.map_err(|fault| fault.to_string())?;
        if let Some(bitmap) = list.get_mut(id) {
            bitmap.persistent = true;
        }
        Ok(())
    }

    /// Whether the format can store the bitmap (`bdrv_can_store_new_dirty_bitmap`).
    async fn check_storable(&self, granularity: u64) -> Result<(), String> {
        let node = self.node();
        let Some(qcow2) = node.qcow2() else {
            return Err(format!("Can't store persistent bitmaps to {}: Operation not supported", node.name));
        };
        let (block, name) = (self.process.block.clone(), self.name.to_owned());
        self.process.co(async move { qcow2.can_store_new_bitmap(&block, &name, granularity).await }).await
    }

    async fn remove(&self) -> Result<(), String> {
        let node = self.node();
        let id = self.find(node, self.name, Allow::INCONSISTENT)?;
        let persistent = node.bitmaps.borrow().get(id).is_some_and(|bitmap| bitmap.persistent);
        if persistent && let Some(qcow2) = node.qcow2() {
            let (block, name) = (self.process.block.clone(), self.name.to_owned());
            self.process.co(async move { qcow2.remove_persistent_bitmap(&block, &name).await }).await?;
        }
        node.bitmaps.borrow_mut().release(id);
        Ok(())
    }

    fn merge(&self, source_name: &str) -> Result<(), String> {
        let exists = |node: &Node, name: &str| {
            node.bitmaps.borrow().find(name).map(|_| ()).ok_or_else(|| format!("Dirty bitmap '{name}' not found"))
        };
        let source_node = self.source.map_or(self.node(), |source| &source.node);
        exists(self.node(), self.name)?;
        exists(source_node, source_name)?;
        let target = self.find(self.node(), self.name, Allow::NOTHING)?;
        let source = self.find(source_node, source_name, Allow::READONLY)?;
        let contents = source_node.bitmaps.borrow().get(source).cloned();
        match (contents, self.node().bitmaps.borrow_mut().get_mut(target)) {
            (Some(contents), Some(target)) => target.merge_from(&contents).map_err(|fault| fault.to_string()),
            _ => Ok(()),
        }
    }
}
