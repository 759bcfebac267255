//! Creation options: what stands behind `-o`, what a format knows, and the `Formatting` line.
//!
//! QEMU's sources: `QemuOpts` in `util/qemu-option.c`, the option lists in `block/qcow2.c` and
//! `block/raw-format.c`. Values are only checked here as far as QEMU does before it prints that line.

use super::args::Parsed;
use super::process::{Exit, failure, not_modelled};
use super::size;
use crate::quirks::Quirks;

/// What a value has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Size,
    Number,
    Bool,
    Text,
    /// Known to QEMU only.
    NotModelled,
}

/// An option: name, kind, and the value that is printed when none was given.
type Known = (&'static str, Kind, Option<&'static str>);

/// qcow2's options, in the order of the `Formatting` line, then those of the file below.
const QCOW2: &[Known] = &[
    ("cluster_size", Kind::Size, Some("65536")),
    ("extended_l2", Kind::Bool, Some("off")),
    ("preallocation", Kind::Text, None),
    ("compression_type", Kind::Text, Some("zlib")),
    ("size", Kind::Size, None),
    ("compat", Kind::Text, None),
    ("backing_file", Kind::Text, None),
    ("backing_fmt", Kind::Text, None),
    ("data_file", Kind::NotModelled, None),
    ("data_file_raw", Kind::NotModelled, None),
    ("lazy_refcounts", Kind::Bool, Some("off")),
    ("refcount_bits", Kind::Number, Some("16")),
    ("encryption", Kind::NotModelled, None),
    ("encrypt.format", Kind::NotModelled, None),
    ("encrypt.key-secret", Kind::NotModelled, None),
    ("nocow", Kind::Bool, None),
    ("extent_size_hint", Kind::Size, None),
];

const RAW: &[Known] = &[
    ("size", Kind::Size, None),
    ("preallocation", Kind::Text, None),
    ("nocow", Kind::Bool, None),
    ("extent_size_hint", Kind::Size, None),
];

/// Formats of QEMU that are not modelled.
const OTHER_FORMATS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// What is wrong with a format that cannot be used here, if anything is.
pub(super) fn check_format(format: &str) -> Result<(), Exit> {
    if OTHER_FORMATS.contains(&format) {
        return Err(not_modelled(&format!("format '{format}'"), "there are qcow2 and raw"));
    }
    Ok(())
}

/// Refuses an argument of a cache option that is no cache mode; the modes themselves make no difference here.
pub(super) fn check_cache_mode(parsed: &Parsed, key: &str, what: &str) -> Result<(), Exit> {
    match parsed.get(key) {
        None | Some("none" | "off" | "directsync" | "writeback" | "unsafe" | "writethrough") => Ok(()),
        Some(other) => Err(failure(format!("Invalid {what} option: {other}"))),
    }
}

/// The creation options of one image.
#[derive(Clone, Debug)]
pub(super) struct CreateOptions {
    /// `qcow2` or `raw`.
    pub(super) format: String,
    values: Vec<(&'static str, String)>,
}

impl CreateOptions {
    /// The defaults of a format.
    pub(super) fn new(format: &str) -> CreateOptions {
        CreateOptions { format: format.to_owned(), values: Vec::new() }
    }

    pub(super) fn is_qcow2(&self) -> bool {
        self.format == "qcow2"
    }

    fn known(&self) -> &'static [Known] {
        if self.is_qcow2() { QCOW2 } else { RAW }
    }

    /// Takes over an argument of `-o`. The error is QEMU's text.
    pub(super) fn parse(&mut self, quirks: &Quirks, text: &str) -> Result<(), String> {
        for (key, value) in key_values(text) {
            let found = self.known().iter().find(|(name, _, _)| *name == key);
            let Some((name, kind, _)) = found else { return Err(format!("Invalid parameter '{key}'")) };
            let value = value.unwrap_or_else(|| "on".to_owned());
            let value = match kind {
                Kind::Size => size::parameter(quirks, name, &value)?.to_string(),
                Kind::Number => number(name, &value)?.to_string(),
                Kind::Bool if truth(&value).is_none() => {
                    return Err(format!("Parameter '{name}' expects 'on' or 'off'"));
                }
                Kind::NotModelled => return Err(format!("not modelled: option '{name}'; there are {}", self.names())),
                Kind::Bool | Kind::Text => value,
            };
            self.values.push((name, value));
        }
        Ok(())
    }

    fn names(&self) -> String {
        let known = self.known().iter().filter(|(_, kind, _)| *kind != Kind::NotModelled);
        known.map(|(name, _, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Sets an option that the format must know.
    pub(super) fn set(&mut self, key: &str, value: &str) -> bool {
        let found = self.known().iter().find(|(name, _, _)| *name == key);
        match found {
            Some((name, _, _)) => {
                self.values.push((name, value.to_owned()));
                true
            }
            None => false,
        }
    }

    /// The value of an option, given or by default.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let default = || self.known().iter().find(|(name, _, _)| *name == key).and_then(|(_, _, default)| *default);
        self.given(key).or_else(default)
    }

    /// The value of an option that was given; the last one counts.
    pub(super) fn given(&self, key: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a size or number, which was checked when it was read.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(|value| value.parse().ok())
    }

    /// `Formatting 'F', fmt=…`.
    pub(super) fn formatting(&self, filename: &str) -> String {
        let mut line = format!("Formatting '{filename}', fmt={}", self.format);
        for (name, _, _) in self.known() {
            if let Some(value) = self.get(name) {
                // As on the command line, a comma is written twice.
                line.push_str(&format!(" {name}={}", value.replace(',', ",,")));
            }
        }
        line.push('\n');
        line
    }
}

fn number(name: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("Parameter '{name}' expects a number"))
}

/// Splits `k=v,k=v`; `,,` stands for a comma in a value.
fn key_values(text: &str) -> Vec<(String, Option<String>)> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != ',' {
            parts.last_mut().expect("there is always a last part").push(letter);
        } else if letters.next_if_eq(&',').is_some() {
            parts.last_mut().expect("there is always a last part").push(',');
        } else {
            parts.push(String::new());
        }
    }
    let split = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    parts.into_iter().filter(|part| !part.is_empty()).map(split).collect()
}

/// The end of a creation that a file's name goes in front of.
pub(super) fn creation_failed(filename: &str, text: &str) -> Exit {
    failure(format!("{filename}: {text}"))
}

/// What a word says, if it is one of those that QEMU takes for yes or no (`qapi_bool_parse`).
pub(super) fn truth(word: &str) -> Option<bool> {
    match word {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quirks::Compat;

    #[test]
    fn the_formatting_line_has_qemus_order() {
        let mut options = CreateOptions::new("qcow2");
        options.parse(&Quirks::of(Compat::Qemu72), "lazy_refcounts,compat=0.10,preallocation=off,size=2M").unwrap();
        assert!(options.set("backing_file", "a") && options.set("backing_fmt", "raw"));
        let line = "Formatting 'F', fmt=qcow2 cluster_size=65536 extended_l2=off preallocation=off compression_type=zlib \
                    size=2097152 compat=0.10 backing_file=a backing_fmt=raw lazy_refcounts=on refcount_bits=16\n";
        assert_eq!(options.formatting("F"), line);
    }

    #[test]
    fn commas_are_doubled_in_values() {
        assert_eq!(key_values("a=b,,c,d"), [("a".into(), Some("b,c".into())), ("d".into(), None)]);
        let mut raw = CreateOptions::new("raw");
        assert_eq!(
            raw.parse(&Quirks::of(Compat::Qemu72), "cluster_size=64k"),
            Err("Invalid parameter 'cluster_size'".into())
        );
        assert_eq!(
            raw.parse(&Quirks::of(Compat::Qemu72), "nocow=x"),
            Err("Parameter 'nocow' expects 'on' or 'off'".into())
        );
    }
}
