//! Command lines of qemu-io: options, numbers, and the errors about them.
//!
//! QEMU's source: `qemu-io-cmds.c`. Reading has two stages: the command with the number of its arguments, for which
//! alone the permission to write is asked, and then the arguments, each option in its turn. The texts go to standard
//! output, except an unknown command, a wrong number of arguments and what getopt says, which go to standard error.
//! Nothing is done here.

use smallvec::SmallVec;

use crate::block::{Perm, Preallocation, REQUEST_MAX_BYTES};
use crate::cutils::{StrtoszError, strtol, strtosz, strtosz_warns};
use crate::quirks::Quirks;
use crate::sim::shared::RefCell;

use super::table::{COMMANDS, Spec};

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
        /// `-m`.
        preallocation: Preallocation,
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
    /// Nothing at all.
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
    /// `-b`.
    pub vm_state: bool,
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

/// A command line of which the command is known, and that it has a possible number of arguments.
pub struct IoLine<'a> {
    spec: &'static Spec,
    words: Words<'a>,
}

/// The words of a command line.
type Words<'a> = SmallVec<[&'a str; 8]>;

impl<'a> IoLine<'a> {
    /// Looks the command up; none for an empty line.
    pub fn find(quirks: &Quirks, line: &'a str) -> Result<Option<IoLine<'a>>, ParseError> {
        let line = line.trim_start_matches(' ');
        let (name, arguments) = line.split_once(' ').unwrap_or((line, ""));
        if name.is_empty() {
            return Ok(None);
        }
        let Some(spec) = known(quirks).find(|spec| spec.names.contains(&name)) else {
            return Err(err(format!("command \"{name}\" not found\n")));
        };
        let words: Words<'a> = words(arguments).collect();
        let count = words.len();
        if count < spec.min || spec.max.is_some_and(|max| count > max) {
            return Err(err(bad_count(name, count, spec)));
        }
        if !spec.modelled {
            let names: Vec<&str> = known(quirks).filter(|spec| spec.modelled).map(|spec| spec.names[0]).collect();
            return Err(not_modelled(&format!("command '{name}' of qemu-io; there are {}", names.join(", "))));
        }
        Ok(Some(IoLine { spec, words }))
    }

    /// What the command must be allowed to do.
    pub fn permissions(&self) -> Perm {
        match self.spec.names[0] {
            "write" | "writev" | "aio_write" | "discard" => Perm::WRITE,
            "truncate" => Perm::WRITE | Perm::RESIZE,
            _ => Perm::NONE,
        }
    }

    /// Reads the arguments; what is warned about meanwhile is added to `warnings`.
    pub fn read(&self, quirks: &Quirks, warnings: &mut String) -> Result<IoCommand, ParseError> {
        let reader = Reader { quirks, spec: self.spec, warnings: RefCell::new(warnings) };
        let words = self.words.as_slice();
        match self.spec.names[0] {
            "read" => reader.read(words),
            "readv" | "aio_read" => reader.read_vector(words),
            "write" => reader.write(words),
            "writev" | "aio_write" => reader.write_vector(words),
            "discard" => reader.discard(words),
            "truncate" => reader.truncate(words),
            _ => reader.plain(words),
        }
    }
}

/// Reads a whole command line; nothing is asked between its stages.
pub fn parse(quirks: &Quirks, line: &str, warnings: &mut String) -> Result<IoCommand, ParseError> {
    match IoLine::find(quirks, line)? {
        Some(line) => line.read(quirks, warnings),
        None => Ok(IoCommand::Nothing),
    }
}

fn words(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split(' ').filter(|word| !word.is_empty())
}

/// The commands of the version.
fn known(quirks: &Quirks) -> impl Iterator<Item = &'static Spec> {
    COMMANDS.iter().filter(|spec| quirks.io_zones_and_buffers || !spec.since_9)
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

fn out(text: impl Into<String>) -> ParseError {
    ParseError { out: text.into(), ..ParseError::default() }
}

fn err(text: impl Into<String>) -> ParseError {
    ParseError { err: text.into(), ..ParseError::default() }
}

fn said(text: impl std::fmt::Display) -> ParseError {
    ParseError { said: format!("{text}\r\n"), ..ParseError::default() }
}

fn not_modelled(what: &str) -> ParseError {
    said(format!("not modelled: {what}"))
}

fn pattern(text: &str) -> Result<u8, ParseError> {
    let byte = strtol(text).and_then(|value| u8::try_from(value).ok());
    byte.ok_or_else(|| out(format!("{text} is not a valid pattern byte\n")))
}

/// Reads the arguments of one command.
struct Reader<'a> {
    quirks: &'a Quirks,
    spec: &'static Spec,
    warnings: RefCell<&'a mut String>,
}

impl Reader<'_> {
    /// Goes through the words as getopt does: each option is given to `option`, with its value if it takes one;
    /// what is left are the other words.
    fn options<'w>(
        &self,
        words: &[&'w str],
        mut option: impl FnMut(char, &'w str) -> Result<(), ParseError>,
    ) -> Result<Words<'w>, ParseError> {
        let mut rest = Words::new();
        let mut iter = words.iter();
        while let Some(word) = iter.next() {
            if *word == "--" {
                rest.extend(iter.copied());
                break;
            }
            let Some(mut letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                rest.push(*word);
                continue;
            };
            while let Some(letter) = letters.chars().next() {
                letters = &letters[letter.len_utf8()..];
                if self.spec.valued.contains(letter) {
                    let value = if letters.is_empty() { iter.next().copied() } else { Some(letters) };
                    let missing = || self.refused(&format!("option requires an argument -- '{letter}'"));
                    option(letter, value.ok_or_else(missing)?)?;
                    break;
                }
                let is_too_new = letter == 'r' && !self.quirks.io_zones_and_buffers;
                if is_too_new || !self.spec.options.contains(letter) {
                    return Err(self.refused(&format!("invalid option -- '{letter}'")));
                }
                option(letter, "")?;
            }
        }
        Ok(rest)
    }

    fn usage(&self) -> ParseError {
        out(self.spec.usage(self.quirks))
    }

    /// What getopt says, and the usage.
    fn refused(&self, reason: &str) -> ParseError {
        ParseError { err: format!("{}: {reason}\n", self.spec.names[0]), ..self.usage() }
    }

    /// A number of bytes (`cvtnum`).
    fn number(&self, text: &str) -> Result<u64, ParseError> {
        if strtosz_warns(self.quirks, text) {
            let warning = format!("warning: Using a multiplier suffix on hex numbers is deprecated: {text}\r\n");
            self.warnings.borrow_mut().push_str(&warning);
        }
        match strtosz(self.quirks, text) {
            Ok(value) if i64::try_from(value).is_ok() => Ok(value),
            Ok(_) | Err(StrtoszError::Range) => Err(out(format!("Parsing error: argument too large -- {text}\n"))),
            Err(StrtoszError::Invalid) => {
                Err(out(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}\n")))
            }
        }
    }

    fn length(&self, text: &str, without: &str) -> Result<u64, ParseError> {
        let bytes = self.number(text)?;
        if bytes > REQUEST_MAX_BYTES {
            return Err(out(format!("length cannot exceed {REQUEST_MAX_BYTES}{without}, given {text}\n")));
        }
        Ok(bytes)
    }

    /// The sum of lengths (`create_iovec`).
    fn lengths(&self, words: &[&str]) -> Result<u64, ParseError> {
        let mut sum = 0;
        for text in words {
            let bytes = self.number(text)?;
            if bytes > REQUEST_MAX_BYTES {
                return Err(out(format!("Argument '{text}' exceeds maximum size {REQUEST_MAX_BYTES}\n")));
            }
            sum += bytes;
            if sum > REQUEST_MAX_BYTES {
                return Err(out(format!("The total number of bytes exceed the maximum size {REQUEST_MAX_BYTES}\n")));
            }
        }
        Ok(sum)
    }

    /// A request in which the options that need no more than to be kept are kept.
    fn transfer<'w>(
        &self,
        words: &[&'w str],
        mut other: impl FnMut(char, &'w str) -> Result<(), ParseError>,
    ) -> Result<(Transfer, Words<'w>), ParseError> {
        let mut transfer = Transfer { command: self.spec.names[0], ..Transfer::default() };
        let rest = self.options(words, |letter, value| {
            match letter {
                'b' => transfer.vm_state = true,
                'C' => transfer.condensed = true,
                'q' => transfer.quiet = true,
                'v' => transfer.dump = true,
                'z' => transfer.zeroes = true,
                'u' => transfer.unmap = true,
                'n' => transfer.no_fallback = true,
                'f' => transfer.fua = true,
                'c' => transfer.compressed = true,
                'P' => transfer.pattern = Some(pattern(value)?),
                other_letter => other(other_letter, value)?,
            }
            Ok(())
        })?;
        Ok((transfer, rest))
    }

    fn read(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let (mut start, mut length) = (None, None);
        let (mut transfer, rest) = self.transfer(words, |letter, value| {
            match letter {
                's' => start = Some(self.number(value)?),
                'l' => length = Some(self.number(value)?),
                _ => {}
            }
            Ok(())
        })?;
        let [offset, bytes] = rest[..] else { return Err(self.usage()) };
        (transfer.offset, transfer.bytes) = (self.number(offset)?, self.length(bytes, "")?);
        let ranged = start.is_some() || length.is_some();
        if ranged && transfer.pattern.is_none() {
            return Err(self.usage());
        }
        if ranged {
            let start = start.unwrap_or(0);
            let range = match length {
                Some(length) => start.checked_add(length).is_some_and(|end| end <= transfer.bytes).then_some(length),
                None => transfer.bytes.checked_sub(start),
            };
            let Some(length) = range else {
                return Err(out("pattern verification range exceeds end of read data\n"));
            };
            transfer.pattern_range = Some((start, length));
        }
        if transfer.vm_state {
            check_sectors(&transfer)?;
        }
        Ok(IoCommand::Read(transfer))
    }

    fn read_vector(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let (mut transfer, rest) = self.transfer(words, |letter, _| self.vector_option(letter, "read"))?;
        let [offset, lengths @ ..] = &rest[..] else { return Err(self.usage()) };
        if lengths.is_empty() {
            return Err(self.usage());
        }
        (transfer.offset, transfer.bytes) = (self.number(offset)?, self.lengths(lengths)?);
        Ok(IoCommand::Read(transfer))
    }

    /// `-i` makes accounting see an invalid request and ends the command; `-r` aborts QEMU 10.0.2 on
    /// asynchronous requests.
    fn vector_option(&self, letter: char, what: &str) -> Result<(), ParseError> {
        match letter {
            'i' => Err(out(format!("injecting invalid {what} request\n"))),
            'r' if self.spec.names[0].starts_with("aio") => {
                Err(not_modelled(&format!("{} -r of qemu-io", self.spec.names[0])))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let mut source = false;
        let (mut transfer, rest) = self.transfer(words, |letter, _| {
            source |= letter == 's';
            Ok(())
        })?;
        let [offset, bytes] = rest[..] else { return Err(self.usage()) };
        check_combination(&transfer, source)?;
        transfer.offset = self.number(offset)?;
        transfer.bytes = if transfer.no_fallback { self.number(bytes)? } else { self.length(bytes, " without -n")? };
        if transfer.vm_state || transfer.compressed {
            check_sectors(&transfer)?;
        }
        if source {
            return Err(not_modelled("write -s of qemu-io"));
        }
        Ok(IoCommand::Write(transfer))
    }

    fn write_vector(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let (mut transfer, rest) = self.transfer(words, |letter, _| self.vector_option(letter, "write"))?;
        let [offset, lengths @ ..] = &rest[..] else { return Err(self.usage()) };
        if lengths.is_empty() {
            return Err(self.usage());
        }
        if transfer.zeroes && lengths.len() != 1 {
            return Err(out("-z supports only a single length parameter\n"));
        }
        if transfer.unmap && !transfer.zeroes {
            return Err(out("-u requires -z to be specified\n"));
        }
        transfer.offset = self.number(offset)?;
        transfer.bytes = if transfer.zeroes { self.number(lengths[0])? } else { self.lengths(lengths)? };
        Ok(IoCommand::Write(transfer))
    }

    fn discard(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let (transfer, rest) = self.transfer(words, |_, _| Ok(()))?;
        let [offset, bytes] = rest[..] else { return Err(self.usage()) };
        let (offset, bytes) = (self.number(offset)?, self.length(bytes, "")?);
        Ok(IoCommand::Discard { offset, bytes, quiet: transfer.quiet, condensed: transfer.condensed })
    }

    fn truncate(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let mut preallocation = Preallocation::Off;
        let rest = self.options(words, |_, mode| {
            let known = Preallocation::from_name(mode);
            preallocation = known.ok_or_else(|| said(format!("Invalid preallocation mode '{mode}'")))?;
            Ok(())
        })?;
        // Further words are passed over, as in QEMU.
        let size = rest.first().copied().unwrap_or("(null)");
        Ok(IoCommand::Truncate { size: self.number(size)?, preallocation })
    }

    fn help(&self, about: Option<&str>) -> ParseError {
        match about {
            None => out(known(self.quirks).map(|spec| spec.usage(self.quirks)).collect::<String>() + HELP_ENDS),
            Some(one) if known(self.quirks).any(|spec| spec.names.contains(&one)) => {
                not_modelled("the help of a single command of qemu-io")
            }
            Some(other) => out(format!("command {other} not found\n")),
        }
    }

    /// Commands without options.
    fn plain(&self, words: &[&str]) -> Result<IoCommand, ParseError> {
        let text = |index: usize| words.get(index).copied().unwrap_or("").to_owned();
        Ok(match self.spec.names[0] {
            "help" => return Err(self.help(words.first().copied())),
            "flush" => IoCommand::Flush,
            "aio_flush" => IoCommand::AioFlush,
            "length" => IoCommand::Length,
            "map" => IoCommand::Map,
            "alloc" => IoCommand::Alloc {
                offset: self.number(&text(0))?,
                bytes: words.get(1).map_or(Ok(512), |bytes| self.number(bytes))?,
            },
            "break" => IoCommand::Break { event: text(0), tag: text(1) },
            "wait_break" => IoCommand::WaitBreak(text(0)),
            "resume" => IoCommand::Resume(text(0)),
            "remove_break" => IoCommand::RemoveBreak(text(0)),
            _ => match strtol(&text(0)).and_then(|ms| u64::try_from(ms).ok()) {
                Some(ms) => IoCommand::Sleep(ms),
                None => return Err(out(format!("{} is not a valid number\n", text(0)))),
            },
        })
    }
}

fn check_sectors(transfer: &Transfer) -> Result<(), ParseError> {
    for (value, what) in [(transfer.offset, "offset"), (transfer.bytes, "count")] {
        if value % 512 != 0 {
            return Err(out(format!("{value} is not a sector-aligned value for '{what}'\n")));
        }
    }
    Ok(())
}

fn check_combination(transfer: &Transfer, source: bool) -> Result<(), ParseError> {
    if transfer.vm_state && transfer.zeroes {
        return Err(out("-b and -z cannot be specified at the same time\n"));
    }
    if transfer.fua && (transfer.vm_state || transfer.compressed) {
        return Err(out("-f and -b or -c cannot be specified at the same time\n"));
    }
    if transfer.no_fallback && !transfer.zeroes {
        return Err(out("-n requires -z to be specified\n"));
    }
    if transfer.unmap && !transfer.zeroes {
        return Err(out("-u requires -z to be specified\n"));
    }
    let contents = [transfer.zeroes, transfer.pattern.is_some(), source];
    if contents.iter().filter(|given| **given).count() > 1 {
        return Err(out("Only one of -z, -P, and -s can be specified at the same time\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quirks::Compat;

    fn read(line: &str, since_9: bool) -> Result<IoCommand, ParseError> {
        let compat = if since_9 { Compat::Qemu100 } else { Compat::Qemu72 };
        parse(&Quirks::of(compat), line, &mut String::new())
    }

    fn refused(line: &str, since_9: bool) -> ParseError {
        read(line, since_9).expect_err("the line is wrong")
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
        assert!(read("read -r 0 512", true).is_ok());
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
        let size = 4 << 20;
        assert_eq!(
            read("truncate -m off 4M", false),
            Ok(IoCommand::Truncate { size, preallocation: Preallocation::Off })
        );
    }
}
