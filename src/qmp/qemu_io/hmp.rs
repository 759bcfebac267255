//! `human-monitor-command`: `qemu-io`, which scenarios use, and `block_resize`.
//!
//! It makes a backend on the node for the time of the command and drains it at the end. What the monitor
//! itself says is in `return`, what qemu-io prints goes to QEMU's standard output (`hmp_qemu_io`).

use std::rc::Rc;

use serde_json::{Map, Value};

use crate::block::{Block, Perm};
use crate::cutils::strtosz;
use crate::qmp::args::Args;
use crate::qmp::error::QmpResult;
use crate::qmp::known::is_hmp;
use crate::qmp::machine::Machine;
use crate::sim::shared::Cell;

use super::parse::{IoCommand, IoLine, ParseError};
use super::run::Session;

impl Machine {
    /// human-monitor-command (`monitor/qmp-cmds.c`).
    pub(in crate::qmp) async fn human_monitor_command(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let line = args.str("command-line")?.to_owned();
        let cpu = args.opt_int("cpu-index")?;
        args.finish()?;
        if cpu.is_some() {
            // The machine has no processors.
            return Err("Parameter 'cpu-index' expects a CPU number".into());
        }
        Ok(self.hmp(&line).await?.into())
    }

    /// Carries a line of the human monitor out; returns what the monitor says (`monitor/hmp.c`).
    async fn hmp(self: &Rc<Self>, line: &str) -> Result<String, String> {
        let line = line.trim_start();
        let ends_name = |c: char| c.is_whitespace() || c == '/';
        let (command, arguments) = line.split_at(line.find(ends_name).unwrap_or(line.len()));
        match command {
            "" => Ok(String::new()),
            "qemu-io" => match QemuIoArguments::read(arguments) {
                Ok(arguments) => Ok(self.qemu_io(&arguments).await),
                Err(Refusal::Said(said)) => Ok(said + "Try \"help qemu-io\" for more information\r\n"),
                Err(Refusal::NotModelled) => Err("not modelled: option -d of qemu-io".to_owned()),
            },
            "block_resize" => Ok(self.hmp_block_resize(arguments).await),
            other if is_hmp(&self.block.quirks, other) => {
                Err(format!("not modelled: HMP command '{other}'; there are block_resize and qemu-io"))
            }
            other => Ok(format!("unknown command: '{other}'\r\n")),
        }
    }

    /// block_resize: of a device, which a machine without devices does not have (`hmp_block_resize`).
    async fn hmp_block_resize(self: &Rc<Self>, arguments: &str) -> String {
        const HINT: &str = "Try \"help block_resize\" for more information\r\n";
        let mut rest = arguments;
        let device = match string(&mut rest) {
            Ok(Some(device)) => device,
            _ => return format!("block_resize: block device name expected\r\n{HINT}"),
        };
        let mut words = rest.split_whitespace();
        let size = words.next().and_then(|word| self.megabytes(word));
        let Some(size) = size else { return format!("invalid size\r\n{HINT}") };
        if words.next().is_some() {
            return format!("block_resize: extraneous characters at the end of line\r\n{HINT}");
        }
        let arguments = Map::from_iter([("device".to_owned(), device.into()), ("size".to_owned(), size.into())]);
        match self.block_resize(&arguments).await {
            Ok(_) => String::new(),
            Err(error) => format!("Error: {}\r\n", error.desc),
        }
    }

    /// A size of the human monitor, bytes: without a suffix it is in MiB (`qemu_strtosz_MiB`).
    fn megabytes(&self, text: &str) -> Option<i64> {
        let quirks = &self.block.quirks;
        let is_bare = text.ends_with(|c: char| c.is_ascii_digit() || c == '.') && !text.contains(['x', 'X']);
        let text = if is_bare { format!("{text}M") } else { text.to_owned() };
        strtosz(quirks, &text).ok().and_then(|size| i64::try_from(size).ok())
    }

    /// As the step `qemu-io` of a scenario gives it to the human monitor, without escapes.
    pub async fn qemu_io_step(self: &Rc<Self>, node: &str, command: &str) -> String {
        self.hmp(&format!("qemu-io {node} \"{command}\"")).await.unwrap_or_else(|refusal| refusal)
    }

    /// Runs a qemu-io command at a backend or node; returns what the monitor says (`hmp_qemu_io`).
    async fn qemu_io(self: &Rc<Self>, arguments: &QemuIoArguments) -> String {
        let (block, name) = (&self.block, &*arguments.device);
        let (node, named) = match block.find_backend(name) {
            Some(backend) => (backend.node(block), Some(backend)),
            None => match block.lookup(None, Some(name)) {
                Ok(node) => (Some(node), None),
                Err(reason) => return format!("Error: {reason}\r\n"),
            },
        };
        let Some(node) = node else { return format!("Error: Device '{name}' has no medium\r\n") };
        let temporary = named.is_none();
        let backend = match named {
            Some(backend) => backend,
            None => match block.insert_backend(&node, Perm::NONE, Perm::ALL).await {
                Ok(backend) => backend,
                Err(reason) => return format!("Error: {reason}\r\n"),
            },
        };
        let said = self.qemu_io_on(&backend, &arguments.command).await;
        if temporary {
            block.delete_backend(&backend).await;
        }
        self.send_notices();
        said
    }

    async fn qemu_io_on(self: &Rc<Self>, backend: &Rc<crate::block::Backend>, line: &str) -> String {
        let mut said = String::new();
        match self.qemu_io_read(backend, line, &mut said) {
            Ok(None) => {}
            Ok(Some(command)) => {
                let (block, backend) = (self.block.clone(), backend.clone());
                let session = Session { block, backend, pending: Rc::default(), said: Cell::new(Some(said)) };
                session.run(&command).await;
                if session.backend.name.is_none() {
                    session.drain().await;
                }
                return session.said.take().unwrap_or_default();
            }
            Err(refused) => {
                self.block.print(refused.out);
                self.block.stderr.borrow_mut().push_str(&refused.err);
                said.push_str(&refused.said);
            }
        }
        said
    }

    /// Finds the command, asks for what it must be allowed to do, and reads its arguments.
    fn qemu_io_read(
        &self,
        backend: &Rc<crate::block::Backend>,
        line: &str,
        warnings: &mut String,
    ) -> Result<Option<IoCommand>, ParseError> {
        let Some(line) = IoLine::find(&self.block.quirks, line)? else { return Ok(None) };
        let refused = |reason: String| ParseError { said: said(&self.block, &reason), ..ParseError::default() };
        self.block.backend_require(backend, line.permissions()).map_err(refused)?;
        line.read(&self.block.quirks, warnings).map(Some)
    }
}

/// An error as the monitor shows it, with the hint for a lock that another process may hold.
fn said(block: &Block, reason: &str) -> String {
    let hint = if reason.starts_with("Failed to get ") {
        format!("Is another process using the image [{}]?\r\n", block.locks.last_refused())
    } else {
        String::new()
    };
    format!("{reason}\r\n{hint}")
}

/// The arguments of the human monitor's `qemu-io`: on what, and the command line.
struct QemuIoArguments {
    device: String,
    command: String,
}

/// Why the arguments are no good.
enum Refusal {
    /// What the monitor says of it.
    Said(String),
    /// They ask for more than there is.
    NotModelled,
}

impl From<&str> for Refusal {
    fn from(said: &str) -> Refusal {
        Refusal::Said(format!("qemu-io: {said}\r\n"))
    }
}

impl QemuIoArguments {
    /// Reads them (`monitor_parse_arguments`).
    fn read(text: &str) -> Result<QemuIoArguments, Refusal> {
        let mut rest = text.trim_start();
        let mut by_device = false;
        if let Some(option) = rest.strip_prefix('-') {
            match option.chars().next() {
                Some('d') => (by_device, rest) = (true, &option[1..]),
                Some(letter) => return Err(Refusal::from(&*format!("unsupported option -{letter}"))),
                None => return Err(Refusal::Said("qemu-io: unsupported option -".to_owned())),
            }
        }
        let device = string(&mut rest)?.ok_or("block device name expected")?;
        let command = string(&mut rest)?.ok_or("string expected")?;
        if !rest.trim_start().is_empty() {
            return Err("extraneous characters at the end of line".into());
        }
        if by_device { Err(Refusal::NotModelled) } else { Ok(QemuIoArguments { device, command }) }
    }
}

/// Takes the next word, which may be in double quotes with backslash escapes (`get_str`); none at the end.
fn string(rest: &mut &str) -> Result<Option<String>, Refusal> {
    let text = rest.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, behind) = text.split_at(text.find(|c: char| c.is_whitespace()).unwrap_or(text.len()));
        *rest = behind;
        return Ok((!word.is_empty()).then(|| word.to_owned()));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &quoted[at + 1..];
                return Ok(Some(word));
            }
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push('\n'),
                Some((_, 'r')) => word.push('\r'),
                Some((_, escaped @ ('\\' | '\'' | '"'))) => word.push(escaped),
                _ => return Err("string expected".into()),
            },
            c => word.push(c),
        }
    }
    Err("string expected".into())
}
