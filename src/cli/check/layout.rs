//! Where the expected transcript of a scenario lies, and which expected transcripts lost their scenario.
//!
//! A scenario below a directory `scenarios` has its expected transcripts at the same place below
//! `expected` beside it: `scenarios/iotests/055.yaml` and `expected/iotests/055.qemu-7.2.out`. Any other
//! scenario has them beside itself. Must never look into a file.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::cli::error::Failure;
use crate::cli::select;
use crate::quirks::Compat;

const SCENARIOS: &str = "scenarios";
const EXPECTED: &str = "expected";

/// What a scenario is called in lists: its path below `scenarios`, or as named, without its extension.
pub fn title(scenario: &Path) -> String {
    let below = split(scenario).map(|(_, below)| below);
    below.unwrap_or_else(|| scenario.to_owned()).with_extension("").display().to_string()
}

/// Where the expected transcript of `scenario` under `compat` lies.
pub fn expected(scenario: &Path, compat: Compat) -> PathBuf {
    let home = match split(scenario) {
        Some((root, below)) => root.join(EXPECTED).join(below),
        None => scenario.to_owned(),
    };
    let mut name = home.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{}.out", compat.name()));
    home.with_file_name(name)
}

/// The parent of the nearest directory `scenarios` above `path`, and the path below that directory.
fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    split_named(path).or_else(|| {
        // Perhaps the directory is above the current one.
        let absolute = std::path::absolute(path).ok()?;
        split_named(&absolute)
    })
}

fn split_named(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let last = parts.len().checked_sub(1)?;
    let at = parts[..last].iter().rposition(|part| part.as_os_str() == SCENARIOS)?;
    Some((parts[..at].iter().collect(), parts[at + 1..].iter().collect()))
}

/// All expected transcripts that `paths` are about and that no scenario has any more.
pub fn orphans(paths: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Failure> {
    let mut found = BTreeSet::new();
    for path in paths.iter().filter(|path| path.is_dir()) {
        // A name below the directory, for the place where its expected transcripts would lie.
        match split(&path.join("any")) {
            Some((root, below)) => {
                let home = root.join(EXPECTED).join(below.parent().unwrap_or(Path::new("")));
                let scenarios = root.join(SCENARIOS);
                collect(&home, &mut found, |file| {
                    let below = file.strip_prefix(root.join(EXPECTED)).ok()?;
                    Some(scenarios.join(stem(below)?))
                })?;
            }
            None => collect(path, &mut found, known_stem)?,
        }
    }
    Ok(found)
}

/// Adds the files below `home` whose scenario, as `scenario` names it without extension, does not exist.
fn collect(
    home: &Path,
    found: &mut BTreeSet<PathBuf>,
    scenario: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<(), Failure> {
    if !home.is_dir() {
        return Ok(());
    }
    select::walk(home, &mut |file| {
        if file.extension() != Some(OsStr::new("out")) {
            return;
        }
        let exists = |scenario: &Path| {
            let with = |extension: &str| {
                let mut name = scenario.as_os_str().to_owned();
                name.push(extension);
                PathBuf::from(name).exists()
            };
            with(".yaml") || with(".yml")
        };
        if scenario(&file).is_some_and(|scenario| !exists(&scenario)) {
            found.insert(file);
        }
    })
}

/// `a/b` for `a/b.VERSION.out`, whatever the version; the file itself for a name of another form.
fn stem(file: &Path) -> Option<PathBuf> {
    known_stem(file).or_else(|| Some(file.to_owned()))
}

/// `a/b` for `a/b.VERSION.out` with a version that backsim knows.
fn known_stem(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    let stem = Compat::ALL.iter().find_map(|compat| name.strip_suffix(&format!(".{}.out", compat.name())))?;
    Some(file.with_file_name(stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_transcripts_mirror_the_scenarios() {
        let place = |path: &str| expected(Path::new(path), Compat::Qemu72).display().to_string();
        assert_eq!(place("scenarios/257.yaml"), "expected/257.qemu-7.2.out");
        assert_eq!(place("a/scenarios/b/c.d.yaml"), "a/expected/b/c.d.qemu-7.2.out");
        assert_eq!(place("/x/scenarios/scenarios/c.yml"), "/x/scenarios/expected/c.qemu-7.2.out");
        assert_eq!(place("/corpus/backups-001.yaml"), "/corpus/backups-001.qemu-7.2.out");
        assert_eq!(title(Path::new("a/scenarios/b/c.yaml")), "b/c");
        assert_eq!(title(Path::new("/corpus/c.yaml")), "/corpus/c");
    }

    #[test]
    fn the_scenario_of_an_expected_transcript_is_told_by_its_name() {
        let stem = |name: &str| known_stem(Path::new(name));
        assert_eq!(stem("e/a.b.qemu-10.0.out"), Some(PathBuf::from("e/a.b")));
        assert_eq!(stem("e/a.qemu-9.0.out"), None);
        assert_eq!(stem("e/a.out"), None);
    }
}
