//! Where the bytes of each disk lie, and what is known of a file beside what guests have done to it.
//!
//! Names of nodes come and go, and two may show the same file; a file is what it is. Nothing here knows what a disk
//! holds.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::sim::{DiskPlace, Layer};

/// What is known of a layer below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is what guests have made the disk of this name.
    Disk(Rc<str>),
    /// Nobody has put anything there.
    Fresh,
    /// Nothing.
    Nothing,
}

/// What using a disk at a place means for what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that was not known before.
    AsBefore,
    /// Other disks are below than before.
    OverOthers,
    /// It shows something else than before.
    Elsewhere,
    /// It is used for the first time.
    New,
}

/// Where disks lie.
#[derive(Default)]
pub struct Places {
    /// The file that each disk lies in.
    files: BTreeMap<Rc<str>, Rc<str>>,
    /// The files below each overlay.
    below: BTreeMap<Rc<str>, Vec<Option<Rc<str>>>>,
    /// Disks that keep nothing.
    nowhere: BTreeSet<Rc<str>>,
    /// Disks that are images with tables of their own.
    with_tables: BTreeSet<Rc<str>>,
    /// Disks that are parts of their files.
    parts: BTreeSet<Rc<str>>,
    /// Files that guests have written as they are, or that were copied to.
    written_files: BTreeSet<Rc<str>>,
    /// Files that others than guests have put something into.
    foreign_files: BTreeSet<Rc<str>>,
}

impl Places {
    /// Somebody uses a disk that lies at `place`.
    pub fn see(&mut self, disk: &Rc<str>, place: &DiskPlace) -> Seen {
        let Some(file) = &place.file else {
            self.nowhere.insert(disk.clone());
            return Seen::AsBefore;
        };
        if place.is_image {
            self.with_tables.insert(disk.clone());
        }
        if place.is_part {
            self.parts.insert(disk.clone());
        }
        let before = self.below.get(disk).map_or(&[][..], |below| below);
        let stays = before.iter().eq(place.below.iter().map(|layer| &layer.file));
        if !stays {
            let below = place.below.iter().map(|layer| layer.file.clone()).collect();
            self.below.insert(disk.clone(), below);
        }
        if self.files.get(disk) == Some(file) {
            return if stays { Seen::AsBefore } else { Seen::OverOthers };
        }
        let is_shared = self.files.values().any(|other| other == file);
        let was_elsewhere = self.files.insert(disk.clone(), file.clone()).is_some();
        if was_elsewhere || is_shared { Seen::Elsewhere } else { Seen::New }
    }

    /// Whether others than guests have put something into the disk's file.
    pub fn is_foreign(&self, disk: &str) -> bool {
        !self.foreign_files.is_empty() && self.files.get(disk).is_some_and(|file| self.foreign_files.contains(file))
    }

    /// Whether a disk keeps nothing.
    pub fn is_nowhere(&self, disk: &str) -> bool {
        self.nowhere.contains(disk)
    }

    /// What is known of a layer.
    pub fn known(&self, layer: &Layer) -> Known {
        let Some(file) = layer.file.as_ref().filter(|file| !self.foreign_files.contains(*file)) else {
            return Known::Nothing;
        };
        let mut disks = self.disks_in(file);
        match (disks.next(), disks.next()) {
            (None, _) => Known::Fresh,
            // Under another name it is the same disk if both are images.
            (Some(disk), None) if **disk == *layer.node || (layer.is_image && self.with_tables.contains(disk)) => {
                Known::Disk(disk.clone())
            }
            _ => Known::Nothing,
        }
    }

    fn disks_in<'a>(&'a self, file: &'a str) -> impl Iterator<Item = &'a Rc<str>> {
        self.files.iter().filter(move |(_, of)| &***of == file).map(|(disk, _)| disk)
    }

    fn disks_over<'a>(&'a self, file: &'a Rc<str>) -> impl Iterator<Item = &'a Rc<str>> {
        let is_over = move |below: &[Option<Rc<str>>]| below.iter().flatten().any(|below| below == file);
        self.below.iter().filter(move |(_, below)| is_over(below)).map(|(disk, _)| disk)
    }

    /// Disks that have the same bytes as one at this place: all that is in the file, as it is.
    pub fn alike<'a>(&'a self, place: &'a DiskPlace) -> impl Iterator<Item = &'a Rc<str>> {
        let file = place.file.as_deref().filter(|_| !place.is_image && !place.is_part);
        let is_whole = |disk: &&Rc<str>| !self.with_tables.contains(*disk) && !self.parts.contains(*disk);
        file.into_iter().flat_map(|file| self.disks_in(file)).filter(is_whole)
    }

    /// Disks that show what is in a file, as it is or through it.
    pub fn showing(&self, file: &Rc<str>) -> Vec<Rc<str>> {
        self.disks_in(file).chain(self.disks_over(file)).cloned().collect()
    }

    /// Disks that show a file as it is.
    pub fn plain_in(&self, file: &str) -> Vec<Rc<str>> {
        self.disks_in(file).filter(|disk| !self.with_tables.contains(*disk)).cloned().collect()
    }

    /// A guest changes a disk: returns those that are not any more what their own guests have made them.
    pub fn change(&mut self, disk: &Rc<str>) -> Vec<Rc<str>> {
        let Some(file) = self.files.get(disk).cloned() else { return Vec::new() };
        if !self.with_tables.contains(disk) {
            self.written_files.insert(file.clone());
        }
        let mut others = self.showing(&file);
        others.retain(|other| other != disk);
        others
    }

    /// Disks over this one.
    pub fn over(&self, disk: &str) -> Vec<Rc<str>> {
        self.files.get(disk).map_or_else(Vec::new, |file| self.disks_over(file).cloned().collect())
    }

    /// Somebody else than a guest puts something into a file.
    pub fn fill(&mut self, file: &Rc<str>) {
        self.foreign_files.insert(file.clone());
    }

    /// A file is written as it is from now on: an image in it is a copy of another one, as that was at some moment.
    pub fn copy_to(&mut self, file: &Rc<str>) {
        self.written_files.insert(file.clone());
    }

    /// A file is new, and nothing in it.
    pub fn empty(&mut self, file: &str) {
        self.foreign_files.remove(file);
    }

    /// Whether somebody has written a file as it is: an image in it is what he has made it.
    pub fn is_tampered_file(&self, file: &str) -> bool {
        self.written_files.contains(file)
    }

    /// Whether the disk is an image in such a file.
    pub fn is_tampered(&self, disk: &str) -> bool {
        let file = self.files.get(disk).filter(|_| self.with_tables.contains(disk));
        file.is_some_and(|file| self.is_tampered_file(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(node: &str, file: &str) -> Layer {
        Layer { node: node.into(), file: Some(file.into()), is_image: true, length: 4096 }
    }

    fn place(file: &str, below: &[Layer]) -> DiskPlace {
        DiskPlace { file: Some(file.into()), is_image: true, is_part: false, below: below.to_vec() }
    }

    #[test]
    fn nodes_above_a_file_have_its_bytes_unless_they_are_images_or_parts() {
        let mut places = Places::default();
        let file = || DiskPlace { file: Some("a".into()), ..DiskPlace::default() };
        places.see(&"image".into(), &place("a", &[]));
        places.see(&"part".into(), &DiskPlace { is_part: true, ..file() });
        assert_eq!(places.alike(&file()).count(), 0);
        places.see(&"whole".into(), &file());
        assert_eq!(places.alike(&file()).collect::<Vec<_>>(), [&Rc::from("whole")]);
        assert_eq!(places.alike(&place("a", &[])).count(), 0, "an image is another disk");
        assert_eq!(places.alike(&DiskPlace { is_part: true, ..file() }).count(), 0);
    }

    #[test]
    fn a_disk_under_a_new_name_or_over_another_layer_shows_something_else() {
        let mut places = Places::default();
        let (disk, other) = (Rc::from("disk"), Rc::from("other"));
        assert_eq!(places.see(&disk, &place("a", &[])), Seen::New);
        assert_eq!(places.see(&disk, &place("a", &[])), Seen::AsBefore);
        assert_eq!(places.see(&disk, &place("a", &[layer("base", "b")])), Seen::OverOthers);
        assert_eq!(places.see(&disk, &place("a", &[layer("base", "b")])), Seen::AsBefore);
        assert_eq!(places.see(&disk, &place("c", &[])), Seen::Elsewhere);
        assert_eq!(places.see(&other, &place("c", &[])), Seen::Elsewhere, "two disks in one file");
    }

    #[test]
    fn a_layer_is_known_by_its_file_unless_others_have_filled_it() {
        let mut places = Places::default();
        let (disk, file) = (Rc::from("disk"), Rc::from("a"));
        assert_eq!(places.known(&layer("disk", "a")), Known::Fresh);
        places.see(&disk, &place("a", &[]));
        assert_eq!(places.known(&layer("disk", "a")), Known::Disk(disk.clone()));
        assert_eq!(places.known(&layer("#block1", "a")), Known::Disk(disk.clone()), "an image under another name");
        let part = Layer { is_image: false, ..layer("part", "a") };
        assert_eq!(places.known(&part), Known::Nothing, "it may be a part of it");
        places.fill(&file);
        assert_eq!(places.known(&layer("disk", "a")), Known::Nothing);
        places.empty(&file);
        assert_eq!(places.known(&layer("disk", "a")), Known::Disk(disk));
    }

    #[test]
    fn a_change_reaches_overlays_and_who_shares_the_file() {
        let mut places = Places::default();
        let names: Vec<Rc<str>> = ["base", "overlay", "same"].map(Rc::from).into();
        places.see(&names[0], &place("b", &[]));
        places.see(&names[1], &place("o", &[layer("base", "b")]));
        places.see(&names[2], &place("b", &[]));
        assert_eq!(places.change(&names[0]), [names[2].clone(), names[1].clone()]);
        assert_eq!(places.change(&names[1]), []);
        assert_eq!(places.over("base"), [names[1].clone()]);
    }
}
