//! Command lines of qemu-io: options, numbers, and the errors about them.
//!
//! QEMU's source: `qemu-io-cmds.c`. The texts go to standard output, except usage and unknown commands, which
//! go to standard error. Nothing is done here.

use super::numbers::{NumberError, parse_size};
use crate::block::REQUEST_MAX_BYTES;

/// A command that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// read, readv, aio_read.
    Read(Transfer),
    /// write, writev, aio_write.
    Write(Transfer),
    /// flush.
    Flush,
    /// aio_flush.
    AioFlush,
    /// discard.
    Discard {
        /// Bytes.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// `-q`.
        quiet: bool,
        /// `-C`.
        condensed: bool,
    },
    /// length.
    Length,
    /// map.
    Map,
    /// alloc.
    Alloc {
        /// Bytes.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// truncate.
    Truncate {
        /// Bytes.
        size: u64,
    },
    /// break.
    Break {
        /// Event name.
        event: String,
        /// Tag.
        tag: String,
    },
    /// wait_break.
    WaitBreak(String),
    /// resume.
    Resume(String),
    /// remove_break.
    RemoveBreak(String),
    /// sleep, ms.
    Sleep(u64),
    /// Nothing at all, or help.
    Nothing,
}

/// A read or write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// `read`, `readv`, `aio_read`, `write`, … as in the command.
    pub command: &'static str,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// `-P`.
    pub pattern: Option<u8>,
    /// `-s` and `-l`: where in the buffer the pattern is looked for, bytes.
    pub pattern_range: Option<(u64, u64)>,
    /// `-z`.
    pub zeroes: bool,
    /// `-u`.
    pub unmap: bool,
    /// `-n`.
    pub no_fallback: bool,
    /// `-f`.
    pub fua: bool,
    /// `-c`.
    pub compressed: bool,
    /// `-q`.
    pub quiet: bool,
    /// `-C`.
    pub condensed: bool,
    /// `-v`.
    pub dump: bool,
}

/// Why a command line is refused, and where qemu-io says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// On standard output.
    Out(String),
    /// On standard error.
    Err(String),
}

struct Spec {
    names: &'static [&'static str],
    options: &'static str,
    /// Options among them that take a value.
    valued: &'static str,
    min: usize,
    max: Option<usize>,
    usage: &'static str,
}

const COMMANDS: &[Spec] = &[
    Spec {
        names: &["read", "r"],
        options: "abCpqv",
        valued: "lPs",
        min: 2,
        max: None,
        usage: "read [-abCqrv] [-P pattern [-s off] [-l len]] off len -- reads a number of bytes at a specified offset",
    },
    Spec {
        names: &["readv"],
        options: "Cqv",
        valued: "P",
        min: 2,
        max: None,
        usage: "readv [-Cqrv] [-P pattern] off len [len..] -- reads a number of bytes at a specified offset",
    },
    Spec {
        names: &["aio_read"],
        options: "Ciqv",
        valued: "P",
        min: 2,
        max: None,
        usage: "aio_read [-Ciqrv] [-P pattern] off len [len..] -- asynchronously reads a number of bytes",
    },
    Spec {
        names: &["write", "w"],
        options: "bcCfnpquz",
        valued: "Ps",
        min: 2,
        max: None,
        usage: "write [-bcCfnqruz] [-P pattern | -s source_file] off len -- writes a number of bytes at a specified offset",
    },
    Spec {
        names: &["writev"],
        options: "Cfq",
        valued: "P",
        min: 2,
        max: None,
        usage: "writev [-Cfqr] [-P pattern] off len [len..] -- writes a number of bytes at a specified offset",
    },
    Spec {
        names: &["aio_write"],
        options: "Cfiquz",
        valued: "P",
        min: 2,
        max: None,
        usage: "aio_write [-Cfiqruz] [-P pattern] off len [len..] -- asynchronously writes a number of bytes",
    },
    Spec {
        names: &["discard", "d"],
        options: "Cq",
        valued: "",
        min: 2,
        max: None,
        usage: "discard [-Cq] off len -- discards a number of bytes at a specified offset",
    },
    Spec { names: &["flush", "f"], options: "", valued: "", min: 0, max: Some(0), usage: "" },
    Spec { names: &["aio_flush"], options: "", valued: "", min: 0, max: Some(0), usage: "" },
    Spec { names: &["length", "l"], options: "", valued: "", min: 0, max: Some(0), usage: "" },
    Spec { names: &["map"], options: "", valued: "", min: 0, max: Some(0), usage: "" },
    Spec { names: &["alloc", "a"], options: "", valued: "", min: 1, max: Some(2), usage: "" },
    Spec { names: &["truncate", "t"], options: "", valued: "m", min: 1, max: Some(3), usage: "" },
    Spec { names: &["break"], options: "", valued: "", min: 2, max: Some(2), usage: "" },
    Spec { names: &["wait_break"], options: "", valued: "", min: 1, max: Some(1), usage: "" },
    Spec { names: &["resume"], options: "", valued: "", min: 1, max: Some(1), usage: "" },
    Spec { names: &["remove_break"], options: "", valued: "", min: 1, max: Some(1), usage: "" },
    Spec { names: &["sleep"], options: "", valued: "", min: 1, max: Some(1), usage: "" },
];

/// The words behind a command: options with their values, and the rest.
struct Words<'a> {
    options: Vec<(char, Option<&'a str>)>,
    rest: Vec<&'a str>,
}

impl Words<'_> {
    fn has(&self, option: char) -> bool {
        self.options.iter().any(|(o, _)| *o == option)
    }

    fn value(&self, option: char) -> Option<&str> {
        self.options.iter().rev().find(|(o, _)| *o == option).and_then(|(_, value)| *value)
    }
}

/// Reads a command line.
pub fn parse(line: &str) -> Result<IoCommand, ParseError> {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let Some((name, arguments)) = words.split_first() else { return Ok(IoCommand::Nothing) };
    let Some(spec) = COMMANDS.iter().find(|spec| spec.names.contains(name)) else {
        return Err(ParseError::Err(format!("command \"{name}\" not found\n")));
    };
    let count = arguments.len();
    if count < spec.min || spec.max.is_some_and(|max| count > max) {
        return Err(ParseError::Err(bad_count(name, count, spec)));
    }
    let words = split_options(spec, arguments)?;
    build(spec.names[0], &words, spec)
}

fn bad_count(name: &str, count: usize, spec: &Spec) -> String {
    let expected = match spec.max {
        None => format!("at least {} arguments", spec.min),
        Some(max) if max == spec.min => format!("{max} arguments"),
        Some(max) => format!("between {} and {max} arguments", spec.min),
    };
    format!("bad argument count {count} to {name}, expected {expected}\n")
}

fn split_options<'a>(spec: &Spec, arguments: &[&'a str]) -> Result<Words<'a>, ParseError> {
    let mut words = Words { options: Vec::new(), rest: Vec::new() };
    let mut iter = arguments.iter();
    while let Some(word) = iter.next() {
        let Some(mut letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            words.rest.push(word);
            continue;
        };
        while let Some(letter) = letters.chars().next() {
            letters = &letters[letter.len_utf8()..];
            if spec.valued.contains(letter) {
                let value = if letters.is_empty() { iter.next().copied() } else { Some(letters) };
                let Some(value) = value else {
                    let reason = format!("{}: option requires an argument -- '{letter}'\n", spec.names[0]);
                    return Err(ParseError::Err(reason + &usage(spec)));
                };
                words.options.push((letter, Some(value)));
                break;
            }
            if !spec.options.contains(letter) {
                let reason = format!("{}: invalid option -- '{letter}'\n", spec.names[0]);
                return Err(ParseError::Err(reason + &usage(spec)));
            }
            words.options.push((letter, None));
        }
    }
    Ok(words)
}

fn usage(spec: &Spec) -> String {
    if spec.usage.is_empty() { String::new() } else { format!("{}\n", spec.usage) }
}

fn number(text: &str) -> Result<u64, ParseError> {
    parse_size(text).map_err(|error| {
        ParseError::Out(match error {
            NumberError::Malformed => {
                format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}\n")
            }
            NumberError::TooLarge => format!("Parsing error: argument too large -- {text}\n"),
        })
    })
}

fn pattern(text: &str) -> Result<u8, ParseError> {
    let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match value {
        Some(byte) if byte <= 255 => Ok(byte as u8),
        _ => Err(ParseError::Out(format!("{text} is not a valid pattern byte\n"))),
    }
}

fn out(text: impl Into<String>) -> ParseError {
    ParseError::Out(text.into())
}

fn build(name: &'static str, words: &Words<'_>, spec: &Spec) -> Result<IoCommand, ParseError> {
    let text = |index: usize| words.rest.get(index).copied().unwrap_or("").to_owned();
    Ok(match name {
        "read" | "readv" | "aio_read" => IoCommand::Read(transfer(name, words, spec)?),
        "write" | "writev" | "aio_write" => IoCommand::Write(transfer(name, words, spec)?),
        "discard" => {
            let [offset, bytes] = offset_and_length(words, spec)?;
            if bytes > REQUEST_MAX_BYTES {
                return Err(out(format!("length cannot exceed {REQUEST_MAX_BYTES}, given {}\n", text(1))));
            }
            IoCommand::Discard { offset, bytes, quiet: words.has('q'), condensed: words.has('C') }
        }
        "flush" => IoCommand::Flush,
        "aio_flush" => IoCommand::AioFlush,
        "length" => IoCommand::Length,
        "map" => IoCommand::Map,
        "alloc" => IoCommand::Alloc {
            offset: number(&text(0))?,
            bytes: if words.rest.len() > 1 { number(&text(1))? } else { 512 },
        },
        "truncate" => IoCommand::Truncate { size: number(&text(0))? },
        "break" => IoCommand::Break { event: text(0), tag: text(1) },
        "wait_break" => IoCommand::WaitBreak(text(0)),
        "resume" => IoCommand::Resume(text(0)),
        "remove_break" => IoCommand::RemoveBreak(text(0)),
        _ => match text(0).parse() {
            Ok(ms) => IoCommand::Sleep(ms),
            Err(_) => return Err(out("ms is not a valid number\n")),
        },
    })
}

fn offset_and_length(words: &Words<'_>, spec: &Spec) -> Result<[u64; 2], ParseError> {
    if words.rest.len() < 2 {
        return Err(ParseError::Err(usage(spec)));
    }
    Ok([number(words.rest[0])?, number(words.rest[1])?])
}

fn transfer(command: &'static str, words: &Words<'_>, spec: &Spec) -> Result<Transfer, ParseError> {
    let is_write = command.ends_with("write") || command == "writev";
    let mut transfer = Transfer {
        command,
        zeroes: words.has('z'),
        unmap: words.has('u'),
        no_fallback: words.has('n'),
        fua: words.has('f'),
        compressed: words.has('c'),
        quiet: words.has('q'),
        condensed: words.has('C'),
        dump: words.has('v'),
        ..Transfer::default()
    };
    if let Some(text) = words.value('P') {
        transfer.pattern = Some(pattern(text)?);
    }
    check_combination(words, is_write)?;
    let vectored = matches!(command, "readv" | "writev" | "aio_read" | "aio_write");
    let exact = !vectored || transfer.zeroes;
    if words.rest.len() < 2 || (exact && !vectored && words.rest.len() != 2) {
        return Err(ParseError::Err(usage(spec)));
    }
    if transfer.zeroes && vectored && words.rest.len() != 2 {
        return Err(out("-z supports only a single length parameter\n"));
    }
    transfer.offset = number(words.rest[0])?;
    for text in &words.rest[1..] {
        let bytes = number(text)?;
        let limited = !(is_write && transfer.no_fallback);
        if limited && bytes > REQUEST_MAX_BYTES {
            let without = if is_write && !vectored { " without -n" } else { "" };
            return Err(out(format!("length cannot exceed {REQUEST_MAX_BYTES}{without}, given {text}\n")));
        }
        transfer.bytes = transfer.bytes.saturating_add(bytes);
    }
    if !is_write {
        transfer.pattern_range = pattern_range(words, transfer.bytes)?;
    }
    if words.has('b') || transfer.compressed {
        for (value, what) in [(transfer.offset, "offset"), (transfer.bytes, "count")] {
            if value % 512 != 0 {
                return Err(out(format!("{value} is not a sector-aligned value for '{what}'\n")));
            }
        }
    }
    Ok(transfer)
}

fn check_combination(words: &Words<'_>, is_write: bool) -> Result<(), ParseError> {
    if !is_write {
        return Ok(());
    }
    if words.has('b') && words.has('z') {
        return Err(out("-b and -z cannot be specified at the same time\n"));
    }
    if words.has('f') && (words.has('b') || words.has('c')) {
        return Err(out("-f and -b or -c cannot be specified at the same time\n"));
    }
    if words.has('n') && !words.has('z') {
        return Err(out("-n requires -z to be specified\n"));
    }
    if words.has('u') && !words.has('z') {
        return Err(out("-u requires -z to be specified\n"));
    }
    let contents = [words.has('z'), words.has('P'), words.has('s')];
    if contents.iter().filter(|given| **given).count() > 1 {
        return Err(out("Only one of -z, -P, and -s can be specified at the same time\n"));
    }
    if words.has('s') {
        return Err(out("not modelled: -s source_file\n"));
    }
    Ok(())
}

fn pattern_range(words: &Words<'_>, bytes: u64) -> Result<Option<(u64, u64)>, ParseError> {
    let start = words.value('s').map(number).transpose()?;
    let length = words.value('l').map(number).transpose()?;
    if start.is_none() && length.is_none() {
        return Ok(None);
    }
    let start = start.unwrap_or(0);
    let length = length.unwrap_or(bytes.saturating_sub(start));
    if start.saturating_add(length) > bytes {
        return Err(out("pattern verification range exceeds end of read data\n"));
    }
    Ok(Some((start, length)))
}
