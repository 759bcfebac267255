//! The programs of a QEMU installation, and whose behaviour the model has to show beside them.
//!
//! Must never guess: a program that is missing or does not speak QMP is an error that says what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::quirks::Compat;
use crate::scenario::backend::{Backend, RunError};

use super::real::{RealOptions, RealQemu, Trouble};
use super::real_run::ready;

/// The versions that are reproduced exactly, with their packages' last number.
const KNOWN: [(Version, Compat); 2] = [
    (Version { major: 7, minor: 2, micro: 22 }, Compat::Qemu72),
    (Version { major: 10, minor: 0, micro: 2 }, Compat::Qemu100),
];

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 7 in 7.2.22.
    pub major: u32,
    /// 2 in 7.2.22.
    pub minor: u32,
    /// 22 in 7.2.22.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// Reads the reply of query-version, or the version in a greeting.
    fn read(value: &Value) -> Option<Version> {
        let qemu = value.get("qemu")?;
        let number = |key| qemu.get(key)?.as_u64()?.try_into().ok();
        Some(Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
    }

    /// Its place in time: QEMU has three releases a year, x.0 to x.2.
    fn release(self) -> u32 {
        self.major.saturating_mul(3).saturating_add(self.minor.min(2))
    }

    /// The behaviour that is nearest to it.
    pub fn compat(self) -> Compat {
        let distance = |(known, _): &(Version, Compat)| known.release().abs_diff(self.release());
        KNOWN.iter().min_by_key(|known| distance(known)).map_or_else(Compat::default, |(_, compat)| *compat)
    }

    /// What to say if that behaviour is another version's.
    pub fn note(self) -> Option<String> {
        if KNOWN.iter().any(|(known, _)| *known == self) {
            return None;
        }
        let compat = self.compat().name();
        let model = KNOWN.iter().find(|(_, known)| *known == self.compat()).map(|(version, _)| version.to_string());
        let model = model.unwrap_or_default();
        Some(format!("QEMU {self} is not one of the reproduced versions; the nearest is used: {compat} ({model})"))
    }
}

/// A QEMU that was tried and answers.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Its programs.
    pub options: RealOptions,
    /// What query-version says.
    pub version: Version,
    /// What its packager says of it; may be empty.
    pub package: String,
}

/// Why there is no QEMU to compare with.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// A program is not there.
    #[error("{name} was not found: name it with {option} or ${variable} (in Debian: package {package})")]
    Missing {
        /// The program.
        name: &'static str,
        /// The option that names it.
        option: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// The program that was named is not there.
    #[error("{} was not found: {option} or ${variable} names it", program.display())]
    NotThere {
        /// What was named.
        program: PathBuf,
        /// The option that names it.
        option: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
    },
    /// It does not work.
    #[error("{program} can't be used: {trouble}{}", shown(.trouble))]
    Unusable {
        /// The program.
        program: PathBuf,
        /// What is wrong with it.
        trouble: Box<Trouble>,
    },
    /// It says no version.
    #[error("{program} says no version of QEMU: {reply}")]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// What it says.
        reply: String,
    },
    /// It has no human monitor (the storage daemon): then there is no way to guest I/O.
    #[error("{program} has no human-monitor-command, by which guests read and write; qemu-system is needed")]
    NoMonitor {
        /// The program.
        program: PathBuf,
    },
}

fn shown(trouble: &Trouble) -> String {
    let output = trouble.output.trim_end();
    if output.is_empty() { String::new() } else { format!("; it printed:\n{output}") }
}

impl Qemu {
    /// Finds the programs (the given ones, else those of `QEMU_PROG` and `QEMU_IMG_PROG`, as iotests call
    /// them, else what `PATH` has), starts them once and asks for the version.
    pub fn find(qemu: Option<&Path>, qemu_img: Option<&Path>, patience: Duration) -> Result<Qemu, QemuError> {
        let qemu = program(
            qemu,
            &["qemu-system-x86_64", "qemu-system-aarch64", "qemu-kvm"],
            &Names { option: "--qemu", variable: "QEMU_PROG", package: "qemu-system-x86" },
        )?;
        let qemu_img = program(
            qemu_img,
            &["qemu-img"],
            &Names { option: "--qemu-img", variable: "QEMU_IMG_PROG", package: "qemu-utils" },
        )?;
        let options = RealOptions { qemu, qemu_img, patience, longest_wait: None };
        let (version, package) = probe(&options)?;
        Ok(Qemu { options, version, package })
    }

    /// The behaviour the model shows beside it.
    pub fn compat(&self) -> Compat {
        self.version.compat()
    }
}

/// How a program can be named, and where it comes from.
struct Names {
    option: &'static str,
    variable: &'static str,
    package: &'static str,
}

/// The program that is meant, as a path that stays right in another directory.
fn program(given: Option<&Path>, names: &[&'static str], by: &Names) -> Result<PathBuf, QemuError> {
    let Names { option, variable, package } = *by;
    let chosen = given.map(Path::to_owned).or_else(|| std::env::var_os(variable).map(PathBuf::from));
    let Some(chosen) = chosen else {
        let found = names.iter().find_map(|name| in_path(Path::new(name)));
        return found.ok_or(QemuError::Missing { name: names[0], option, variable, package });
    };
    let found = if chosen.components().count() > 1 { chosen.canonicalize().ok() } else { in_path(&chosen) };
    found.ok_or(QemuError::NotThere { program: chosen, option, variable })
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs both programs once.
fn probe(options: &RealOptions) -> Result<(Version, String), QemuError> {
    let unusable = |program: &Path, trouble: Trouble| QemuError::Unusable {
        program: program.to_owned(),
        trouble: Box::new(trouble),
    };
    let dir = tempfile::Builder::new().prefix("backsim-").tempdir();
    let dir = dir.map_err(|error| unusable(&options.qemu, Trouble::surroundings(error.to_string())))?;
    let backend = RealQemu::new(options, dir.path()).map_err(|trouble| unusable(&options.qemu, trouble))?;
    let why = |error: RunError| backend.trouble().unwrap_or_else(|| Trouble::surroundings(error.message));
    answer(backend.qemu_img(&["--version".to_owned()])).map_err(|error| unusable(&options.qemu_img, why(error)))?;
    let asked = answer(async {
        backend.launch().await?;
        let version = backend.execute("query-version", &Map::new()).await?;
        let commands = backend.execute("query-commands", &Map::new()).await?;
        backend.shutdown().await?;
        Ok((version, commands))
    });
    let (version, commands) = asked.map_err(|error| unusable(&options.qemu, why(error)))?;
    let reply = version.get("return").unwrap_or(&version);
    let known = Version::read(reply)
        .ok_or_else(|| QemuError::NoVersion { program: options.qemu.clone(), reply: version.to_string() })?;
    let commands = commands["return"].as_array();
    let is_monitor = |command: &Value| command["name"] == "human-monitor-command";
    if !commands.is_some_and(|commands| commands.iter().any(is_monitor)) {
        return Err(QemuError::NoMonitor { program: options.qemu.clone() });
    }
    let package = reply.get("package").and_then(Value::as_str).unwrap_or_default();
    Ok((known, package.to_owned()))
}

fn answer<T>(future: impl Future<Output = Result<T, RunError>>) -> Result<T, RunError> {
    ready(future).unwrap_or_else(|| Err(RunError::machine("it does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_go_with_the_nearest() {
        let version = |major, minor, micro| Version { major, minor, micro };
        assert_eq!(version(7, 2, 22).compat(), Compat::Qemu72);
        assert_eq!(version(7, 2, 22).note(), None);
        assert_eq!(version(10, 0, 2).compat(), Compat::Qemu100);
        assert_eq!(version(6, 0, 0).compat(), Compat::Qemu72);
        assert_eq!(version(8, 2, 1).compat(), Compat::Qemu72);
        assert_eq!(version(9, 0, 0).compat(), Compat::Qemu100);
        assert_eq!(version(11, 0, 0).compat(), Compat::Qemu100);
        let note = version(7, 2, 0).note().unwrap_or_default();
        assert!(note.contains("QEMU 7.2.0") && note.contains("qemu-7.2 (7.2.22)"), "{note}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Qemu::find(Some(Path::new("/nowhere/qemu")), None, Duration::from_secs(1)).expect_err("not there");
        assert!(error.to_string().contains("--qemu or $QEMU_PROG"), "{error}");
    }
}
