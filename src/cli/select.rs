//! Which scenarios a command is about: files as they are named, directories searched in a fixed order.
//!
//! Must never depend on the order in which a file system lists its entries.

use std::fs;
use std::path::{Path, PathBuf};

use crate::scenario::{self, Case, Diagnostics, Scenario};

use super::error::{Failure, Message};
use super::exit::Exit;

/// All scenario files that `paths` name, each once, in the order of their first mention.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        let kind = fs::metadata(path).map_err(|error| {
            let hint = "name scenario files or directories of them, or go where scenarios/ is";
            match error.kind() {
                std::io::ErrorKind::NotFound => {
                    Message::mistake("no such file or directory").at(path.display()).hint(hint).into()
                }
                _ => Failure::file(path, "read this", &error),
            }
        })?;
        if kind.is_dir() {
            walk(path, &mut |file| {
                if is_scenario(&file) {
                    found.push(file);
                }
            })?;
        } else {
            found.push(path.clone());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|file| seen.insert(file.clone()));
    if found.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let message = Message::new(Exit::Nothing, "no scenario found").at(names.join(", "));
        return Err(message.expected("files whose names end in .yaml or .yml").into());
    }
    Ok(found)
}

/// Whether a directory's file is taken for a scenario.
fn is_scenario(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Shows every file below `directory` to `visit`, sorted by name; hidden ones are left out.
pub fn walk(directory: &Path, visit: &mut impl FnMut(PathBuf)) -> Result<(), Failure> {
    let refused = |error| Failure::file(directory, "read this directory", &error);
    let entries = fs::read_dir(directory).map_err(refused)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // A link to a directory is not followed: it could lead back here.
        if entry.file_type().map_err(refused)?.is_dir() {
            walk(&entry.path(), visit)?;
        } else {
            visit(entry.path());
        }
    }
    Ok(())
}

/// A scenario with its cases, ready to run.
pub struct Loaded {
    /// The scenario.
    pub scenario: Scenario,
    /// Its cases.
    pub cases: Vec<Case>,
}

/// Reads one scenario and works out its cases.
pub fn load(file: &Path) -> Result<Loaded, Diagnostics> {
    let scenario = scenario::load(file)?;
    let cases = scenario.cases()?;
    Ok(Loaded { scenario, cases })
}

/// Reads several scenarios; the mistakes of all are told together.
pub fn load_all(files: &[PathBuf]) -> Result<Vec<Loaded>, Failure> {
    let mut loaded = Vec::with_capacity(files.len());
    let mut mistakes = Vec::new();
    for file in files {
        match load(file) {
            Ok(scenario) => loaded.push(scenario),
            Err(found) => mistakes.extend(found.items),
        }
    }
    if mistakes.is_empty() { Ok(loaded) } else { Err(Diagnostics { items: mistakes }.into()) }
}
