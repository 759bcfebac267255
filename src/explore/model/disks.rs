//! What each disk must hold, from what its guests were told.
//!
//! A write counts once it is acknowledged; a failed one, or one that raced with another on the same bytes,
//! leaves its range unknown until somebody writes it again. An unknown byte is never the ground for a verdict.
//! What a flush has made durable is still there when the process has been killed.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::sim::Runs;

use super::ranges::Ranges;
use super::violation::{Breach, Violation};

/// The bytes of a disk; none where nobody can know.
pub type Image = Ranges<Option<u8>>;

/// A guest's request under way.
#[derive(Clone, Debug)]
pub struct Request {
    /// The disk.
    pub disk: Rc<str>,
    /// `read`, `write`, …
    pub operation: &'static str,
    /// First byte.
    pub offset: u64,
    /// Byte after the last.
    pub end: u64,
    content: Runs,
    /// A request that changes the same bytes overlapped with this one.
    raced: bool,
    /// Of a flush: what it makes durable.
    flushes: Option<Image>,
}

impl Request {
    /// Whether it may change the disk.
    pub fn changes(&self) -> bool {
        matches!(self.operation, "write" | "write-zeroes" | "discard")
    }

    fn overlaps(&self, other: &Request) -> bool {
        self.disk == other.disk && self.offset < other.end && other.offset < self.end
    }
}

/// All disks, and the guests' requests to them.
pub struct Disks {
    images: BTreeMap<Rc<str>, Image>,
    open: BTreeMap<u64, Request>,
    /// What survives a kill, by disk.
    durable: BTreeMap<Rc<str>, Image>,
    initial: Option<u8>,
    /// What guests have put into the layer that each disk is.
    written: BTreeMap<Rc<str>, Ranges<bool>>,
}

impl Disks {
    /// Disks that begin as zeros, or unknown.
    pub fn new(begin_as_zeros: bool) -> Disks {
        Disks {
            images: BTreeMap::new(),
            open: BTreeMap::new(),
            durable: BTreeMap::new(),
            written: BTreeMap::new(),
            initial: begin_as_zeros.then_some(0),
        }
    }

    /// What `disk` must hold now.
    pub fn image(&self, disk: &str) -> Image {
        self.images.get(disk).cloned().unwrap_or_else(|| Image::all(self.initial))
    }

    /// What guests have certainly put into the layer that `disk` is.
    pub fn written(&self, disk: &str) -> Ranges<bool> {
        self.written.get(disk).cloned().unwrap_or_else(|| Ranges::all(false))
    }

    /// Whether some guest has written to the disk.
    pub fn is_written(&self, disk: &str) -> bool {
        self.images.contains_key(disk)
    }

    /// All disks that a guest has used.
    pub fn all(&self) -> impl Iterator<Item = (&Rc<str>, &Image)> {
        self.images.iter()
    }

    /// Whether nobody changes the disk at the moment.
    pub fn is_quiet(&self, disk: &str) -> bool {
        !self.open.values().any(|request| &*request.disk == disk && request.changes())
    }

    /// Requests that may change `disk` and are under way.
    pub fn changing<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = &'a Request> {
        self.open.values().filter(move |request| &*request.disk == disk && request.changes())
    }

    /// The disk ends at `size` now, or has grown: nothing is known of what is behind.
    pub fn cut(&mut self, disk: &str, size: u64) {
        let rest = u64::MAX - size;
        let images = self.images.get_mut(disk).into_iter().chain(self.durable.get_mut(disk));
        images.for_each(|image| image.set(size, rest, None));
        if let Some(written) = self.written.get_mut(disk) {
            written.set(size, rest, false);
        }
    }

    /// A request begins.
    pub fn begin(&mut self, id: u64, disk: &Rc<str>, operation: &'static str, range: (u64, u64), content: &Runs) {
        let (offset, bytes) = range;
        let content = if operation == "write-zeroes" { vec![(bytes, 0)] } else { content.clone() };
        let end = offset + bytes;
        let flushes = (operation == "flush").then(|| self.settled_image(disk));
        let mut request = Request { disk: disk.clone(), operation, offset, end, content, raced: false, flushes };
        if request.changes() {
            let flushing =
                self.open.values_mut().filter(|other| other.disk == *disk).filter_map(|o| o.flushes.as_mut());
            let durable = self.durable.get_mut(disk);
            flushing.chain(durable).for_each(|image| image.set(offset, bytes, None));
        }
        for other in self.open.values_mut() {
            if other.overlaps(&request) {
                request.raced |= other.changes();
                other.raced |= request.changes();
            }
        }
        self.open.insert(id, request);
    }

    /// What `disk` holds for certain, whatever becomes of the requests under way; nothing is known of one that no
    /// guest has written.
    pub fn settled_image(&self, disk: &str) -> Image {
        let Some(image) = self.images.get(disk) else { return Image::all(None) };
        let mut image = image.clone();
        for request in self.changing(disk) {
            image.set(request.offset, request.end - request.offset, None);
        }
        image
    }

    /// Requests that are not answered yet.
    pub fn unanswered(&self) -> impl Iterator<Item = &Request> {
        self.open.values()
    }

    /// A request is answered: the disk is what it is from now on, or a read is judged. Returns the request.
    pub fn end(&mut self, id: u64, error: i32, read: &Runs, found: &mut Vec<Violation>) -> Option<Request> {
        let mut request = self.open.remove(&id)?;
        if let Some(image) = request.flushes.take().filter(|_| error == 0) {
            self.durable.insert(request.disk.clone(), image);
        }
        if request.operation == "discard" && !self.images.contains_key(&request.disk) {
            // Nobody has written there, and it may be a snapshot, which a discard gives up.
        } else if request.changes() {
            if error == 0 && request.operation != "discard" {
                let written = self.written.entry(request.disk.clone()).or_insert_with(|| Ranges::all(false));
                written.set(request.offset, request.end - request.offset, true);
            }
            let initial = self.initial;
            let image = self.images.entry(request.disk.clone()).or_insert_with(|| Image::all(initial));
            let known = error == 0 && !request.raced && request.operation != "discard";
            if known {
                write(image, request.offset, &request.content);
            } else {
                image.set(request.offset, request.end - request.offset, None);
            }
        } else if request.operation == "read"
            && error == 0
            && !request.raced
            // A disk that no guest has written, a target or a snapshot, holds what others put there.
            && let Some(image) = self.images.get(&request.disk)
            && let Some(difference) = first_difference(image, request.offset, read)
        {
            let text = format!("a guest read {} of disk {}", difference, request.disk);
            found.push(Violation::new(Breach::DataDiffers, &request.disk, text));
        }
        Some(request)
    }

    /// The process died: only what was flushed is there for certain.
    pub fn die(&mut self) {
        self.open.clear();
        self.written.clear();
        self.images = self.durable.clone();
        self.initial = None;
    }
}

fn write(image: &mut Image, offset: u64, content: &Runs) {
    let mut at = offset;
    for (bytes, value) in content {
        image.set(at, *bytes, Some(*value));
        at += bytes;
    }
}

/// Where content differs from what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first byte that differs.
    pub at: u64,
    /// What is there.
    pub found: u8,
    /// What should be.
    pub expected: u8,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:02x} instead of 0x{:02x} at byte {}", self.found, self.expected, self.at)
    }
}

/// The first known byte of `image` that `content`, which starts at `offset`, has otherwise.
pub fn first_difference(image: &Image, offset: u64, content: &Runs) -> Option<Difference> {
    let mut at = offset;
    for (bytes, found) in content {
        for run in image.within(at, at + bytes) {
            if let Some(expected) = run.value.filter(|expected| expected != found) {
                return Some(Difference { at: run.start, found: *found, expected });
            }
        }
        at += bytes;
    }
    None
}
