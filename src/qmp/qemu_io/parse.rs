//! Command lines of qemu-io: options, numbers, and the errors about them.
//!
//! QEMU's source: `qemu-io-cmds.c`. The texts go to standard output, except an unknown command, a wrong number of
//! arguments and what getopt says, which go to standard error. Nothing is done here.

use super::numbers::{NumberError, parse_size};
use super::table::{COMMANDS, Spec};
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParseError {
    /// On standard output.
    pub out: String,
    /// On standard error.
    pub err: String,
    /// What the monitor says.
    pub said: String,
}

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

/// Reads a command line; `since_9` as in [`Quirks`](crate::quirks::Quirks).
pub fn parse(line: &str, since_9: bool) -> Result<IoCommand, ParseError> {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let Some((name, arguments)) = words.split_first() else { return Ok(IoCommand::Nothing) };
    let known = COMMANDS.iter().filter(|spec| since_9 || !spec.since_9);
    let Some(spec) = known.clone().find(|spec| spec.names.contains(name)) else {
        return Err(err(format!("command \"{name}\" not found\n")));
    };
    let count = arguments.len();
    if count < spec.min || spec.max.is_some_and(|max| count > max) {
        return Err(err(bad_count(name, count, spec)));
    }
    if spec.names[0] == "help" {
        return Err(out(match arguments.first() {
            None => known.map(|spec| spec.usage(since_9)).collect::<String>() + HELP_ENDS,
            Some(one) if known.clone().any(|spec| spec.names.contains(one)) => {
                "not modelled: the help of a single command\n".to_owned()
            }
            Some(other) => format!("command {other} not found\n"),
        }));
    }
    if !spec.modelled {
        return Err(out(format!("not modelled: qemu-io's command '{name}'\n")));
    }
    let words = split_options(spec, arguments, since_9)?;
    build(spec.names[0], &words, spec, since_9)
}

/// The last line of a list of commands.
const HELP_ENDS: &str = "\nUse 'help commandname' for extended help.\n";

fn bad_count(name: &str, count: usize, spec: &Spec) -> String {
    let expected = match spec.max {
        None => format!("at least {} arguments", spec.min),
        Some(max) if max == spec.min => format!("{max} arguments"),
        Some(max) => format!("between {} and {max} arguments", spec.min),
    };
    format!("bad argument count {count} to {name}, expected {expected}\n")
}

fn split_options<'a>(spec: &Spec, arguments: &[&'a str], since_9: bool) -> Result<Words<'a>, ParseError> {
    let mut words = Words { options: Vec::new(), rest: Vec::new() };
    let refused = |reason: String| ParseError {
        out: spec.usage(since_9),
        err: format!("{}: {reason}\n", spec.names[0]),
        ..ParseError::default()
    };
    let mut iter = arguments.iter();
    while let Some(word) = iter.next() {
        if *word == "--" {
            words.rest.extend(iter);
            break;
        }
        let Some(mut letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            words.rest.push(word);
            continue;
        };
        while let Some(letter) = letters.chars().next() {
            letters = &letters[letter.len_utf8()..];
            if spec.valued.contains(letter) {
                let value = if letters.is_empty() { iter.next().copied() } else { Some(letters) };
                let Some(value) = value else {
                    return Err(refused(format!("option requires an argument -- '{letter}'")));
                };
                words.options.push((letter, Some(value)));
                break;
            }
            if !spec.options.contains(letter) || (letter == 'r' && !since_9) {
                return Err(refused(format!("invalid option -- '{letter}'")));
            }
            words.options.push((letter, None));
        }
    }
    Ok(words)
}

fn number(text: &str) -> Result<u64, ParseError> {
    parse_size(text).map_err(|error| {
        out(match error {
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
        _ => Err(out(format!("{text} is not a valid pattern byte\n"))),
    }
}

fn out(text: impl Into<String>) -> ParseError {
    ParseError { out: text.into(), ..ParseError::default() }
}

fn err(text: impl Into<String>) -> ParseError {
    ParseError { err: text.into(), ..ParseError::default() }
}

fn build(name: &'static str, words: &Words<'_>, spec: &Spec, since_9: bool) -> Result<IoCommand, ParseError> {
    let text = |index: usize| words.rest.get(index).copied().unwrap_or("").to_owned();
    Ok(match name {
        "read" | "readv" | "aio_read" => IoCommand::Read(transfer(name, words, spec, since_9)?),
        "write" | "writev" | "aio_write" => IoCommand::Write(transfer(name, words, spec, since_9)?),
        "discard" => {
            let [offset, bytes] = offset_and_length(words, spec, since_9)?;
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
        "truncate" => {
            match words.value('m') {
                None | Some("off") => {}
                Some(mode @ ("metadata" | "falloc" | "full")) => {
                    return Err(out(format!("not modelled: preallocation mode '{mode}'\n")));
                }
                Some(mode) => {
                    let said = format!("Invalid preallocation mode '{mode}'\r\n");
                    return Err(ParseError { said, ..ParseError::default() });
                }
            }
            IoCommand::Truncate { size: number(&text(0))? }
        }
        "break" => IoCommand::Break { event: text(0), tag: text(1) },
        "wait_break" => IoCommand::WaitBreak(text(0)),
        "resume" => IoCommand::Resume(text(0)),
        "remove_break" => IoCommand::RemoveBreak(text(0)),
        _ => match text(0).parse() {
            Ok(ms) => IoCommand::Sleep(ms),
            Err(_) => return Err(out(format!("{} is not a valid number\n", text(0)))),
        },
    })
}

fn offset_and_length(words: &Words<'_>, spec: &Spec, since_9: bool) -> Result<[u64; 2], ParseError> {
    if words.rest.len() != 2 {
        return Err(out(spec.usage(since_9)));
    }
    Ok([number(words.rest[0])?, number(words.rest[1])?])
}

fn transfer(command: &'static str, words: &Words<'_>, spec: &Spec, since_9: bool) -> Result<Transfer, ParseError> {
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
    if words.has('i') {
        return Err(out(format!("injecting invalid {} request\n", if is_write { "write" } else { "read" })));
    }
    check_combination(words, is_write)?;
    let vectored = matches!(command, "readv" | "writev" | "aio_read" | "aio_write");
    let exact = !vectored || transfer.zeroes;
    if words.rest.len() < 2 || (exact && !vectored && words.rest.len() != 2) {
        return Err(out(spec.usage(since_9)));
    }
    if !is_write && transfer.pattern.is_none() && (words.has('s') || words.has('l')) {
        return Err(out(spec.usage(since_9)));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str, since_9: bool) -> ParseError {
        parse(line, since_9).expect_err("the line is wrong")
    }

    #[test]
    fn usage_goes_to_standard_output_and_what_getopt_says_to_standard_error() {
        let usage = |r: &str| format!("write [-bcCfnq{r}uz] [-P pattern | -s source_file] off len -- {}", WRITES_TEXT);
        let wrong = refused("write -x 0 512", false);
        assert_eq!((wrong.out, wrong.err.as_str()), (usage(""), "write: invalid option -- 'x'\n"));
        assert_eq!(refused("write 0 64k 1", true).out, usage("r"));
        assert_eq!(refused("write 0", true).err, "bad argument count 1 to write, expected at least 2 arguments\n");
        assert_eq!(refused("writ 0 64k", true).err, "command \"writ\" not found\n");
    }

    const WRITES_TEXT: &str = "writes a number of bytes at a specified offset\n";

    #[test]
    fn a_registered_buffer_came_with_8_0() {
        assert_eq!(refused("read -r 0 512", false).err, "read: invalid option -- 'r'\n");
        assert!(parse("read -r 0 512", true).is_ok());
    }

    #[test]
    fn a_pattern_s_place_needs_a_pattern() {
        assert!(refused("read -s 1k 0 2k", true).out.starts_with("read [-abCqrv]"));
        assert_eq!(refused("read -P 0 -s 3k 0 2k", true).out, "pattern verification range exceeds end of read data\n");
    }

    #[test]
    fn help_lists_the_commands_of_the_version() {
        let (old, new) = (refused("help", false).out, refused("?", true).out);
        assert!(old.starts_with("abort -- simulate a program crash using abort(3)\naio_flush -- "));
        assert!(old.ends_with("\n\nUse 'help commandname' for extended help.\n"));
        assert_eq!((old.contains("zone_"), new.contains("\nzone_reset offset len -- ")), (false, true));
        assert_eq!(refused("help nothing", false).out, "command nothing not found\n");
    }

    #[test]
    fn an_unknown_preallocation_mode_is_told_by_the_monitor() {
        assert_eq!(refused("truncate -m x 4M", false).said, "Invalid preallocation mode 'x'\r\n");
        assert_eq!(parse("truncate -m off 4M", false), Ok(IoCommand::Truncate { size: 4 << 20 }));
    }
}
