//! The directory in which the simulated host keeps its files.
//!
//! Must never reach outside its directory, whatever name a scenario gives, and must hand out one
//! and the same [`Store`] for one name: two nodes on one file see each other's writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Store;
use super::file::{FileStore, errno_of};
use crate::errno::{Errno, Res};
use crate::sim::shared::RefCell;

/// How the names of a scenario's images begin in arguments and transcripts.
pub const TEST_PREFIX: &str = "TEST_DIR/PID-";

/// Longest name of a real file, in bytes.
const MAX_NAME: usize = 255;

/// The files of the simulated host, by name.
///
/// `TEST_DIR/PID-img` and `img` are the same file. What follows the prefix has to be a plain file name: there is no
/// other directory.
#[derive(Debug)]
pub struct Host {
    /// Where real files stand; `None` keeps everything in memory.
    dir: Option<PathBuf>,
    /// In memory, all files. In a directory, those in use since this host began.
    files: RefCell<BTreeMap<String, Rc<Store>>>,
}

impl Host {
    /// A host without files, all of whose files will live in memory.
    pub fn memory() -> Host {
        Host { dir: None, files: RefCell::default() }
    }

    /// A host whose files are the real ones in `dir`, which has to exist.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Host {
        Host { dir: Some(dir.into()), files: RefCell::default() }
    }

    /// The directory with the real files, if there is one.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// An empty file of that name. If it exists already it is emptied, also for those who have it
    /// open.
    ///
    /// `ENOENT` for a name that no file can have, `ENAMETOOLONG`, or what the real host says.
    pub fn create(&self, name: &str) -> Res<Rc<Store>> {
        let name = self.key(name)?;
        if let Some(store) = self.known(name) {
            store.truncate(0)?;
            return Ok(store);
        }
        let store = match &self.dir {
            None => Store::memory(),
            Some(dir) => Store::file(FileStore::create(&dir.join(name))?),
        };
        Ok(self.keep(name, store))
    }

    /// The file of that name. `ENOENT` if there is none; else errors as [`Host::create`].
    pub fn open(&self, name: &str) -> Res<Rc<Store>> {
        let name = self.key(name)?;
        if let Some(store) = self.known(name) {
            return Ok(store);
        }
        let dir = self.dir.as_ref().ok_or(Errno::ENOENT)?;
        Ok(self.keep(name, Store::file(FileStore::open(&dir.join(name))?)))
    }

    /// Whether there is a file of that name.
    pub fn exists(&self, name: &str) -> bool {
        let Ok(name) = self.key(name) else {
            return false;
        };
        let on_disk = || self.dir.as_ref().is_some_and(|dir| dir.join(name).is_file());
        self.known(name).is_some() || on_disk()
    }

    /// Removes the name; who has the file open keeps it. `ENOENT` if there is none.
    pub fn remove(&self, name: &str) -> Res<()> {
        let name = self.key(name)?;
        let known = self.files.borrow_mut().remove(name).is_some();
        match &self.dir {
            Some(dir) => std::fs::remove_file(dir.join(name)).map_err(errno_of),
            None if known => Ok(()),
            None => Err(Errno::ENOENT),
        }
    }

    /// The names, without prefix and in order, of all files in memory, or of those in the directory
    /// that this host has created or opened.
    pub fn names(&self) -> Vec<String> {
        self.files.borrow().keys().cloned().collect()
    }

    /// A file's name without the directory that scenarios put in front.
    pub fn plain_name(name: &str) -> &str {
        name.strip_prefix(TEST_PREFIX).unwrap_or(name)
    }

    /// Under which name a file is kept.
    fn key<'a>(&self, name: &'a str) -> Res<&'a str> {
        let plain = Host::plain_name(name);
        // There are no other directories, in memory as little as on the disk.
        let no_file = plain.contains(['/', '\0']) || plain == "." || plain == "..";
        if plain.is_empty() || no_file {
            return Err(Errno::ENOENT);
        }
        if self.dir.is_some() && plain.len() > MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(plain)
    }

    fn known(&self, name: &str) -> Option<Rc<Store>> {
        self.files.borrow().get(name).cloned()
    }

    fn keep(&self, name: &str, store: Store) -> Rc<Store> {
        let store = Rc::new(store);
        self.files.borrow_mut().insert(name.to_string(), Rc::clone(&store));
        store
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Content;

    fn hosts() -> (tempfile::TempDir, [Host; 2]) {
        let dir = tempfile::tempdir().unwrap();
        let hosts = [Host::memory(), Host::in_dir(dir.path())];
        (dir, hosts)
    }

    #[test]
    fn one_name_is_one_file() {
        let (_dir, hosts) = hosts();
        for host in hosts {
            assert_eq!(host.open("TEST_DIR/PID-img").err(), Some(Errno::ENOENT));
            let store = host.create("TEST_DIR/PID-img").unwrap();
            store.write(0, &Content::pattern(1, 10)).unwrap();
            assert!(Rc::ptr_eq(&store, &host.open("img").unwrap()));
            assert!(host.exists("img") && !host.exists("other"));
            assert_eq!(host.names(), ["img"]);
            host.create("img").unwrap();
            assert_eq!(store.len(), 0);
            host.remove("img").unwrap();
            assert_eq!(host.remove("img"), Err(Errno::ENOENT));
            assert_eq!(host.open("img").err(), Some(Errno::ENOENT));
            store.write(0, &Content::pattern(1, 10)).unwrap();
        }
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let (_dir, [_, host]) = hosts();
        for name in ["", "/etc/passwd", "../x", "TEST_DIR/PID-../x", "a/b", ".", "..", "a\0b"] {
            assert_eq!(host.create(name).err(), Some(Errno::ENOENT), "{name:?}");
            assert!(!host.exists(name));
        }
        assert_eq!(host.create(&"x".repeat(256)).err(), Some(Errno::ENAMETOOLONG));
    }

    #[test]
    fn a_directory_is_not_an_image() {
        let (dir, [_, host]) = hosts();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert_eq!(host.open("d").err(), Some(Errno::EISDIR));
        assert_eq!(host.create("d").err(), Some(Errno::EISDIR));
    }

    #[test]
    fn a_file_from_before_is_found_with_its_holes() {
        let (dir, [_, host]) = hosts();
        let made = host.create("img").unwrap();
        made.truncate(1 << 20).unwrap();
        made.write(65536, &Content::pattern(5, 4096)).unwrap();
        let later = Host::in_dir(dir.path()).open("img").unwrap();
        assert_eq!(later.len(), 1 << 20);
        assert_eq!(later.read(65536, 4096).unwrap(), Content::pattern(5, 4096));
        assert!(later.read(0, 65536).unwrap().is_zero());
        assert!(later.extent(65536, 1).data);
    }
}
