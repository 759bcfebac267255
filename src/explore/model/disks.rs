//! What each disk must hold, from what its guests were told.
//!
//! A write counts once it is acknowledged; a failed one, or one that raced with another on the same bytes,
//! leaves its range unknown until somebody writes it again. An unknown byte is never the ground for a verdict.
//! What a flush has made durable is still there when the process has been killed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::sim::{DiskPlace, Layer, Runs};

use super::guests::Guests;
use super::places::{Known, Places, Seen};
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
    /// Bytes that another request changed, or that this one changed under another, while both were under way.
    raced: Ranges<bool>,
    /// Of a flush: what it makes durable.
    flushes: Option<Image>,
    /// A write that is durable once it is answered.
    durable: bool,
    /// It began on an overlay that was being taken away.
    adrift: bool,
    /// Whose it is, if not the monitor's.
    guest: Option<Rc<str>>,
}

impl Request {
    /// Whether it may change the disk.
    pub fn changes(&self) -> bool {
        matches!(self.operation, "write" | "write-zeroes" | "discard")
    }

    /// The bytes that it has in common with another one: offset and length.
    fn common(&self, other: &Request) -> Option<(u64, u64)> {
        let (start, end) = (self.offset.max(other.offset), self.end.min(other.end));
        (self.disk == other.disk && start < end).then(|| (start, end - start))
    }

    /// Takes out of an image what nobody can know of its bytes.
    fn blur(&self, image: &mut Image) {
        for run in self.raced.within(self.offset, self.end).filter(|run| run.value) {
            image.set(run.start, run.end - run.start, None);
        }
    }
}

/// What is said of a request that QEMU itself sends to the wrong place.
const ADRIFT: &str = ", when a snapshot was being taken back";

/// All disks, and the guests' requests to them.
pub struct Disks {
    images: BTreeMap<Rc<str>, Image>,
    open: BTreeMap<u64, Request>,
    /// What survives a kill, by disk.
    durable: BTreeMap<Rc<str>, Image>,
    initial: Option<u8>,
    places: Places,
    /// Where guests are.
    pub(super) guests: Guests,
    /// Disks that others than guests have written to, or that show something else than before: of these only what guests
    /// write from then on is known.
    foreign: BTreeSet<Rc<str>>,
    /// What guests have put into the layer that each disk is.
    written: BTreeMap<Rc<str>, Ranges<bool>>,
    /// What guests have zeroed while others wrote pieces of the same ranges.
    zeroed_in_race: BTreeMap<Rc<str>, Ranges<bool>>,
}

impl Default for Disks {
    fn default() -> Disks {
        Disks {
            images: BTreeMap::new(),
            open: BTreeMap::new(),
            durable: BTreeMap::new(),
            written: BTreeMap::new(),
            zeroed_in_race: BTreeMap::new(),
            foreign: BTreeSet::new(),
            places: Places::default(),
            guests: Guests::default(),
            initial: Some(0),
        }
    }
}

impl Disks {
    /// What `disk` must hold now.
    pub fn image(&self, disk: &str) -> Image {
        self.images.get(disk).cloned().unwrap_or_else(|| Image::all(self.initial_of(disk)))
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

    /// The name by which the disk at `place` is known: that of the one disk of guests which has the same bytes, if it is not
    /// their disk itself.
    pub fn known_as(&self, disk: &Rc<str>, place: &DiskPlace) -> Rc<str> {
        let mut others = self.places.alike(place).filter(|other| self.is_written(other));
        match (others.next(), others.next()) {
            (Some(other), None) if !self.is_written(disk) => other.clone(),
            _ => disk.clone(),
        }
    }

    /// Requests that may change `disk` and are under way.
    pub fn changing<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = &'a Request> {
        self.open.values().filter(move |request| &*request.disk == disk && request.changes())
    }

    /// The same by number, with the range of each.
    pub fn open_changes(&self, disk: &str) -> Vec<(u64, (u64, u64))> {
        let own = self.open.iter().filter(|(_, request)| &*request.disk == disk && request.changes());
        own.map(|(id, request)| (*id, (request.offset, request.end))).collect()
    }

    fn initial_of(&self, disk: &str) -> Option<u8> {
        self.initial.filter(|_| !self.foreign.contains(disk) && !self.places.is_foreign(disk))
    }

    /// Somebody uses a disk that lies at `place`. Of one that lay elsewhere before, or shows what another disk has, nothing
    /// is known; a new overlay shows what is below.
    pub fn lies_at(&mut self, disk: &Rc<str>, place: &DiskPlace) {
        match self.places.see(disk, place) {
            Seen::AsBefore => {}
            // Whatever is done to the graph, a guest's disk stays what it was.
            Seen::OverOthers if self.guests.has(disk) => {}
            Seen::OverOthers | Seen::Elsewhere => self.forget(disk),
            Seen::New if place.below.is_empty() || self.foreign.contains(disk) => {}
            Seen::New if self.initial_of(disk).is_none() => self.forget(disk),
            Seen::New => self.inherit(disk, &place.below),
        }
    }

    /// The graph has changed below a guest: nothing of its may be under way then.
    pub fn moves(&mut self, guest: &Rc<str>, disk: &Rc<str>, place: &DiskPlace, found: &mut Vec<Violation>) {
        if let Some(open) = self.open.values().find(|request| request.guest.as_ref() == Some(guest)) {
            let text = format!(
                "the graph below a guest of disk {} changes with a {} of its under way at byte {}",
                open.disk, open.operation, open.offset
            );
            found.push(Violation::new(Breach::NotDrained, disk, text));
        }
        self.is_guests(guest, disk, place, found);
    }

    /// A guest's disk is, or has become, the disk at `place`: that has to hold what the one before held.
    pub fn is_guests(&mut self, guest: &Rc<str>, disk: &Rc<str>, place: &DiskPlace, found: &mut Vec<Violation>) {
        self.lies_at(disk, place);
        let Some(before) = self.guests.uses(guest, disk) else { return };
        if place.below.iter().any(|layer| layer.node == before) {
            return;
        }
        let mut image = self.settled(&before);
        if self.guests.is_adrift(&before) {
            let lost: Vec<_> = self.guests.lost().within(0, u64::MAX).filter(|run| run.value).collect();
            if let Some(first) = lost.first() {
                let text = format!(
                    "what a guest wrote at byte {} of disk {before}{ADRIFT}, is lost: it goes on with disk {disk}",
                    first.start
                );
                found.push(Violation::new(Breach::SnapshotUndone, disk, text));
            }
            lost.iter().for_each(|run| image.set(run.start, run.end - run.start, None));
        }
        if self.is_written(&before) || self.is_written(disk) {
            self.images.insert(disk.clone(), image);
        }
        if !self.guests.has(&before) {
            self.forget(&before);
        }
    }

    /// A new overlay is what is below, as far as that is known.
    fn inherit(&mut self, disk: &Rc<str>, below: &[Layer]) {
        let mut image = Image::all(self.initial);
        let mut durable = Image::all(None);
        for layer in below.iter().rev() {
            match self.places.known(layer) {
                Known::Fresh => {}
                Known::Disk(known) if !self.foreign.contains(&known) => {
                    image = self.settled(&known);
                    durable = self.durable.get(&known).cloned().unwrap_or_else(|| Image::all(None));
                }
                Known::Disk(_) | Known::Nothing => (image, durable) = (Image::all(None), Image::all(None)),
            }
            image.set(layer.length, u64::MAX - layer.length, self.initial);
            durable.set(layer.length, u64::MAX - layer.length, None);
        }
        self.images.insert(disk.clone(), image);
        self.durable.insert(disk.clone(), durable);
    }

    /// Others than guests put something into a file.
    pub fn filled_from_outside(&mut self, file: &Rc<str>) {
        self.changes_from_outside(file);
        self.places.fill(file);
    }

    /// Somebody copies to the disk at `place`, from now on.
    pub fn is_target(&mut self, place: &DiskPlace) {
        let Some(file) = &place.file else { return };
        self.filled_from_outside(file);
        if !place.is_image {
            self.places.copy_to(file);
        }
    }

    /// A file is new, and nothing in it.
    pub fn is_new(&mut self, file: &Rc<str>) {
        self.changes_from_outside(file);
        self.places.empty(file);
    }

    /// Others than guests change a file.
    pub fn changes_from_outside(&mut self, file: &Rc<str>) {
        self.places.showing(file).iter().for_each(|disk| self.forget(disk));
    }

    /// A machine has made a file end at `size`: so do the disks that show it as it is.
    pub fn cut_file(&mut self, file: &str, size: u64) {
        self.places.plain_in(file).iter().for_each(|disk| self.cut(disk, size));
    }

    /// Where the disks lie.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Nothing is known of the disk any more but what guests write from now on.
    pub fn forget(&mut self, disk: &Rc<str>) {
        for image in self.images.get_mut(disk).into_iter().chain(self.durable.get_mut(disk)) {
            *image = Image::all(None);
        }
        self.foreign.insert(disk.clone());
    }

    /// The same for the overlays over it, too.
    pub fn forget_whole(&mut self, disk: &Rc<str>) {
        self.places.over(disk).iter().for_each(|overlay| self.forget(overlay));
        self.forget(disk);
    }

    /// The disk ends at `size` now, or has grown: nothing is known of what is behind.
    pub fn cut(&mut self, disk: &str, size: u64) {
        self.places.over(disk).iter().for_each(|overlay| self.forget(overlay));
        let rest = u64::MAX - size;
        let images = self.images.get_mut(disk).into_iter().chain(self.durable.get_mut(disk));
        images.for_each(|image| image.set(size, rest, None));
        if let Some(written) = self.written.get_mut(disk) {
            written.set(size, rest, false);
        }
    }

    /// A request begins, a write that is `durable` when it is answered, or any other.
    pub fn begin(
        &mut self,
        (id, guest): (u64, Option<&Rc<str>>),
        disk: &Rc<str>,
        operation: &'static str,
        (offset, bytes): (u64, u64),
        (content, durable): (&Runs, bool),
    ) {
        let content = if operation == "write-zeroes" { vec![(bytes, 0)] } else { content.clone() };
        let end = offset + bytes;
        let flushes = (operation == "flush").then(|| self.settled_image(disk));
        let raced = Ranges::all(false);
        let (adrift, guest) = (self.guests.is_adrift(disk), guest.cloned());
        let mut request =
            Request { disk: disk.clone(), operation, offset, end, content, raced, flushes, durable, adrift, guest };
        if request.changes() {
            self.places.change(disk).iter().for_each(|other| self.forget(other));
            let flushing =
                self.open.values_mut().filter(|other| other.disk == *disk).filter_map(|o| o.flushes.as_mut());
            let durable = self.durable.get_mut(disk);
            flushing.chain(durable).for_each(|image| image.set(offset, bytes, None));
        }
        for other in self.open.values_mut() {
            let Some((start, length)) = other.common(&request) else { continue };
            if other.changes() || request.changes() {
                request.raced.set(start, length, true);
                other.raced.set(start, length, true);
            }
        }
        self.open.insert(id, request);
    }

    /// What `disk` holds for certain, whatever becomes of the requests under way; nothing is known of one that no
    /// guest has written.
    pub fn settled_image(&self, disk: &str) -> Image {
        if self.is_written(disk) { self.settled(disk) } else { Image::all(None) }
    }

    fn settled(&self, disk: &str) -> Image {
        let mut image = self.image(disk);
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
            let initial = self.initial_of(&request.disk);
            let image = self.images.entry(request.disk.clone()).or_insert_with(|| Image::all(initial));
            if error == 0 && request.operation != "discard" && !self.places.is_nowhere(&request.disk) {
                write(image, request.offset, &request.content);
                request.blur(image);
                self.note_zeros(&request);
                if request.adrift {
                    self.guests.wrote((request.offset, request.end));
                }
                self.keep(&request);
            } else {
                image.set(request.offset, request.end - request.offset, None);
            }
        } else if request.operation == "read"
            && error == 0
            // A disk that no guest has written, a target or a snapshot, holds what others put there.
            && let Some(difference) = self.images.get(&request.disk).and_then(|image| {
                let mut image = image.clone();
                request.blur(&mut image);
                first_difference(&image, request.offset, read)
            })
        {
            let (breach, why) = match request.adrift {
                true => (Breach::SnapshotUndone, ADRIFT),
                false => self.difference_at(&request.disk, difference.at),
            };
            let text = format!("a guest read {difference} of disk {}{why}", request.disk);
            found.push(Violation::new(breach, &request.disk, text));
        }
        Some(request)
    }

    fn note_zeros(&mut self, request: &Request) {
        let is_raced = request.operation == "write-zeroes" && request.raced.any(request.offset, request.end, true);
        if is_raced || self.zeroed_in_race.contains_key(&request.disk) {
            let zeroed = self.zeroed_in_race.entry(request.disk.clone()).or_insert_with(|| Ranges::all(false));
            zeroed.set(request.offset, request.end - request.offset, is_raced);
        }
    }

    /// In which way a disk that differs at this byte does, and what is to be said of it.
    pub fn difference_at(&self, disk: &str, at: u64) -> (Breach, &'static str) {
        match self.zeroed_in_race.get(disk).is_some_and(|zeroed| zeroed.at(at)) {
            true => (Breach::ZerosUndone, ", zeroed while a piece of that was written"),
            false => (Breach::DataDiffers, ""),
        }
    }

    /// A write has been answered: one that is durable then is so, whatever becomes of flushes under way.
    fn keep(&mut self, request: &Request) {
        if !request.durable {
            return;
        }
        let flushing =
            self.open.values_mut().filter(|other| other.disk == request.disk).filter_map(|o| o.flushes.as_mut());
        let durable = self.durable.entry(request.disk.clone()).or_insert_with(|| Image::all(None));
        for image in flushing.chain([durable]) {
            write(image, request.offset, &request.content);
            request.blur(image);
        }
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

/// Where `content`, which starts at `offset`, has stretches of known bytes of `image` otherwise.
pub fn differences(image: &Image, offset: u64, content: &Runs) -> impl Iterator<Item = Difference> {
    let starts = content.iter().scan(offset, |at, (bytes, found)| {
        *at += bytes;
        Some((*at - bytes, *at, *found))
    });
    starts.flat_map(move |(start, end, found)| {
        let difference = move |run: super::ranges::Stretch<Option<u8>>| {
            let expected = run.value.filter(|expected| *expected != found)?;
            Some(Difference { at: run.start, found, expected })
        };
        image.within(start, end).filter_map(difference)
    })
}

/// The first known byte of `image` that `content`, which starts at `offset`, has otherwise.
pub fn first_difference(image: &Image, offset: u64, content: &Runs) -> Option<Difference> {
    differences(image, offset, content).next()
}
