//! Where the image files of a run live: below `--dir`, or in a temporary directory that goes away.
//!
//! Must never write into a directory that held anything before.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::scenario::Case;
use crate::scenario::ast::Storage;

use super::error::{Failure, Message};

/// Gives each case a directory of its own.
pub enum Images {
    /// Files stay, for whoever asked for them.
    Kept {
        /// `--dir`
        root: PathBuf,
        /// The directories given so far, each the case's own.
        given: BTreeSet<PathBuf>,
    },
    /// Files go when the run is over.
    Temporary,
}

/// The directory of one case.
pub struct Place {
    path: PathBuf,
    temporary: bool,
}

impl Images {
    /// Files are kept in `root`, which must be empty or new.
    pub fn kept(root: &Path) -> Result<Images, Failure> {
        fs::create_dir_all(root).map_err(|error| Failure::file(root, "create this directory", &error))?;
        let mut entries = fs::read_dir(root).map_err(|error| Failure::file(root, "read this directory", &error))?;
        if entries.next().is_some() {
            let message = Message::mistake("this directory is not empty").at(root.display());
            let message = message.expected("an empty directory, or a name for a new one");
            return Err(message.hint("nothing in it was touched; name another one with --dir").into());
        }
        Ok(Images::Kept { root: root.to_owned(), given: BTreeSet::new() })
    }

    /// A directory for `case` of the scenario called `scenario`, if the case keeps images in files.
    pub fn place(&mut self, scenario: &str, case: &Case) -> Result<Option<Place>, Failure> {
        if case.settings.storage != Storage::File {
            return Ok(None);
        }
        let refused = |at: &Path, error| Failure::file(at, "create a directory here", &error);
        let place = match self {
            Images::Kept { root, given } => {
                let wanted = root.join(file_name(scenario));
                let case = format!("{:02}-{}", case.index + 1, file_name(&case.name));
                let mut path = wanted.join(&case);
                let mut again = 1;
                while !given.insert(path.clone()) {
                    again += 1;
                    path = wanted.with_file_name(format!("{}-{again}", file_name(scenario))).join(&case);
                }
                fs::create_dir_all(&path).map_err(|error| refused(&path, error))?;
                Place { path, temporary: false }
            }
            Images::Temporary => temporary().map_err(|error| refused(&std::env::temp_dir(), error))?,
        };
        Ok(Some(place))
    }
}

/// A new directory that nobody else has.
fn temporary() -> io::Result<Place> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("backsim-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(Place { path, temporary: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

impl Place {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            // What can't be removed is left to whoever clears temporary files; the run's result stands.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A name that every file system takes and a shell needs no quotes for.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_+".contains(c) { c } else { '-' };
    name.chars().take(100).map(plain).collect()
}
