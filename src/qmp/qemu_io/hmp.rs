//! `human-monitor-command` with `qemu-io`: the only HMP command that scenarios use.
//!
//! It makes a backend on the node for the time of the command and drains it at the end. What the monitor
//! itself says is in `return`, what qemu-io prints goes to QEMU's standard output (`hmp_qemu_io`).

use std::rc::Rc;

use serde_json::{Map, Value};

use crate::block::{Block, Perm};
use crate::qmp::args::Args;
use crate::qmp::error::QmpResult;
use crate::qmp::machine::Machine;
use crate::sim::shared::Cell;

use super::parse::{IoCommand, parse};
use super::run::Session;

impl Machine {
    /// human-monitor-command.
    pub(in crate::qmp) async fn human_monitor_command(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let line = args.str("command-line")?.to_owned();
        args.opt_int("cpu-index")?;
        args.finish()?;
        let mut rest = line.trim_start();
        let Some(command) = next_word(&mut rest) else { return Ok("".into()) };
        if command != "qemu-io" {
            return Err(format!("not modelled: HMP command '{command}'; there is qemu-io").into());
        }
        let Some(node) = next_word(&mut rest) else { return Ok(string_expected()) };
        let Some(io) = next_word(&mut rest) else { return Ok(string_expected()) };
        if !rest.trim().is_empty() {
            return Ok("qemu-io: extraneous characters at the end of line\r\n".into());
        }
        Ok(self.qemu_io(&node, &io).await.into())
    }

    /// Runs a qemu-io command at a node; returns what the monitor says.
    pub async fn qemu_io(self: &Rc<Self>, name: &str, line: &str) -> String {
        let block = &self.block;
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
            None => match block.new_backend(None, node.id, Perm::NONE, Perm::ALL) {
                Ok(backend) => backend,
                Err(reason) => return format!("Error: {reason}\r\n"),
            },
        };
        if temporary {
            block.graph_write_section().await;
        }
        let said = self.qemu_io_on(&backend, line).await;
        if temporary {
            // The command's own drain, then the one of the backend's end.
            block.drained_begin(node.id).await;
            block.drained_end(node.id);
            block.delete_backend(&backend).await;
        }
        self.send_notices();
        said
    }

    async fn qemu_io_on(self: &Rc<Self>, backend: &Rc<crate::block::Backend>, line: &str) -> String {
        let command = match parse(line, self.block.quirks.since_9) {
            Ok(command) => command,
            Err(refused) => {
                self.block.print(refused.out);
                self.block.stderr.borrow_mut().push_str(&refused.err);
                return refused.said;
            }
        };
        if let Err(reason) = self.block.backend_require(backend, command.permissions()) {
            return said(&self.block, &reason);
        }
        let session = Session {
            block: self.block.clone(),
            backend: backend.clone(),
            pending: Rc::default(),
            said: Cell::default(),
        };
        session.run(&command).await;
        if !matches!(command, IoCommand::Nothing) && backend.name.is_none() {
            session.drain().await;
        }
        session.said.take().unwrap_or_default()
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

fn string_expected() -> Value {
    "qemu-io: string expected\r\nTry \"help qemu-io\" for more information\r\n".into()
}

/// Takes the next word, which may be in double quotes with backslash escapes.
fn next_word(rest: &mut &str) -> Option<String> {
    let text = rest.trim_start();
    let mut chars = text.char_indices();
    let mut word = String::new();
    let quoted = text.starts_with('"');
    if quoted {
        chars.next();
    }
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quoted => word.extend(chars.next().map(|(_, escaped)| match escaped {
                'n' => '\n',
                't' => '\t',
                other => other,
            })),
            '"' if quoted => {
                end = at + 1;
                break;
            }
            c if !quoted && c.is_whitespace() => {
                end = at;
                break;
            }
            c => word.push(c),
        }
    }
    *rest = &text[end..];
    if text.is_empty() { None } else { Some(word) }
}
