//! qemu-io's commands: names, options, numbers of arguments, usage.
//!
//! QEMU's source: the `cmdinfo_t` tables of `qemu-io-cmds.c`. Commands that are only listed by `help` are here too; what
//! a command does is not.

use crate::quirks::Quirks;

/// A command.
#[derive(Debug)]
pub(super) struct Spec {
    /// Its name, then its short name if it has one.
    pub names: &'static [&'static str],
    /// Letters of its options; `r` came with 8.0.
    pub options: &'static str,
    /// Options among them that take a value.
    pub valued: &'static str,
    /// Fewest words behind the name.
    pub min: usize,
    /// Most words behind the name, if there is a limit.
    pub max: Option<usize>,
    /// Its arguments as `help` shows them, a text that may be empty; `{r}` stands for an option that came with 8.0.
    arguments: Option<&'static str>,
    /// What it does, in one line.
    purpose: &'static str,
    /// Whether it can be run here.
    pub modelled: bool,
    /// Whether 7.2 does not have it.
    pub since_9: bool,
}

impl Spec {
    /// The line that `help` shows, and a command whose arguments are wrong.
    pub fn usage(&self, quirks: &Quirks) -> String {
        let r = if quirks.io_zones_and_buffers { "r" } else { "" };
        let arguments = self.arguments.map(|text| format!(" {}", text.replace("{r}", r)));
        format!("{}{} -- {}\n", self.names[0], arguments.unwrap_or_default(), self.purpose)
    }

    const fn new(names: &'static [&'static str], arguments: &'static str, purpose: &'static str) -> Spec {
        Spec { arguments: Some(arguments), ..Spec::bare(names, purpose) }
    }

    const fn bare(names: &'static [&'static str], purpose: &'static str) -> Spec {
        let (options, valued, min, max, arguments) = ("", "", 0, Some(0), None);
        Spec { names, options, valued, min, max, arguments, purpose, modelled: true, since_9: false }
    }

    const fn between(self, min: usize, max: usize) -> Spec {
        Spec { min, max: Some(max), ..self }
    }

    const fn at_least(self, min: usize) -> Spec {
        Spec { min, max: None, ..self }
    }

    const fn options(self, options: &'static str, valued: &'static str) -> Spec {
        Spec { options, valued, ..self }
    }

    const fn only_listed(self) -> Spec {
        Spec { modelled: false, ..self }
    }

    const fn later(self) -> Spec {
        Spec { since_9: true, ..self }
    }
}

/// All commands, by name.
pub(super) const COMMANDS: &[Spec] = &[
    Spec::bare(&["abort"], "simulate a program crash using abort(3)").only_listed(),
    Spec::bare(&["aio_flush"], "completes all outstanding aio requests"),
    Spec::new(&["aio_read"], "[-Ciq{r}v] [-P pattern] off len [len..]", "asynchronously reads a number of bytes")
        .options("Ciqrv", "P")
        .at_least(2),
    Spec::new(&["aio_write"], "[-Cfiq{r}uz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes")
        .options("Cfiqruz", "P")
        .at_least(2),
    Spec::new(&["alloc", "a"], "offset [count]", "checks if offset is allocated in the file").between(1, 2),
    Spec::new(&["break"], "event tag", "sets a breakpoint on event and tags the stopped request as tag").between(2, 2),
    Spec::new(&["discard", "d"], "[-Cq] off len", "discards a number of bytes at a specified offset")
        .options("Cq", "")
        .at_least(2),
    Spec::bare(&["flush", "f"], "flush all in-core file state to disk"),
    Spec::new(&["help", "?"], "[command]", "help for one or all commands").between(0, 1),
    Spec::bare(&["info", "i"], "prints information about the current file").only_listed(),
    Spec::bare(&["length", "l"], "gets the length of the current file"),
    Spec::new(&["map"], "", "prints the allocated areas of a file"),
    Spec::new(&["read", "r"], "[-abCq{r}v] [-P pattern [-s off] [-l len]] off len", READS)
        .options("bCpqrv", "lPs")
        .at_least(2),
    Spec::new(&["readv"], "[-Cq{r}v] [-P pattern] off len [len..]", READS).options("Cqrv", "P").at_least(2),
    Spec::new(&["remove_break"], "tag", "remove a breakpoint by tag").between(1, 1),
    Spec::new(&["reopen"], "[(-r|-w)] [-c cache] [-o options]", "reopens an image with new options")
        .at_least(0)
        .only_listed(),
    Spec::new(&["resume"], "tag", "resumes the request tagged as tag").between(1, 1),
    Spec::new(&["sigraise"], "signal", "raises a signal").between(1, 1).only_listed(),
    Spec::bare(&["sleep"], "waits for the given value in milliseconds").between(1, 1),
    Spec::new(&["truncate", "t"], "[-m prealloc_mode] off", "truncates the current file at the given offset")
        .options("", "m")
        .between(1, 3),
    Spec::new(&["wait_break"], "tag", "waits for the suspension of a request").between(1, 1),
    Spec::new(&["write", "w"], "[-bcCfnq{r}uz] [-P pattern | -s source_file] off len", WRITES)
        .options("bcCfnpqruz", "Ps")
        .at_least(2),
    Spec::new(&["writev"], "[-Cfq{r}] [-P pattern] off len [len..]", WRITES).options("Cfqr", "P").at_least(2),
    Spec::new(&["zone_append", "zap"], "offset len [len..]", "append write a number of bytes at a specified offset")
        .at_least(2)
        .only_listed()
        .later(),
    Spec::new(&["zone_close", "zc"], "offset len", "close a range of zones in zone block device").only_listed().later(),
    Spec::new(&["zone_finish", "zf"], "offset len", "finish a range of zones in zone block device")
        .only_listed()
        .later(),
    Spec::new(&["zone_open", "zo"], "offset len", "explicit open a range of zones in zone block device")
        .only_listed()
        .later(),
    Spec::new(&["zone_report", "zrp"], "offset number", "report zone information").only_listed().later(),
    Spec::new(&["zone_reset", "zrs"], "offset len", "reset a zone write pointer in zone block device")
        .only_listed()
        .later(),
];

const READS: &str = "reads a number of bytes at a specified offset";
const WRITES: &str = "writes a number of bytes at a specified offset";
