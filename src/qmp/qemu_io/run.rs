//! Doing what a qemu-io command says, through a backend.
//!
//! Requests run in coroutines of their own while the monitor's handler polls, as in QEMU; asynchronous ones
//! outlive the command that started them as long as their backend does.

use std::rc::Rc;

use crate::block::{Backend, Block, NodeId, Preallocation, Printed, ReqFlags};
use crate::errno::{Errno, Res};
use crate::sim::shared::Cell;
use crate::store::Content;

use super::numbers::human;
use super::parse::{IoCommand, Transfer};
use super::report::{Report, dump};

/// A session of qemu-io on one backend.
pub(super) struct Session {
    pub(super) block: Rc<Block>,
    pub(super) backend: Rc<Backend>,
    pub(super) pending: Rc<Cell<u32>>,
    /// What the monitor says, if it says anything.
    pub(super) said: Cell<Option<String>>,
}

impl Session {
    /// Runs a command; what it prints goes to the process's standard output.
    pub(super) async fn run(&self, command: &IoCommand) {
        match command {
            IoCommand::Read(transfer) | IoCommand::Write(transfer) if transfer.vm_state => self.vm_state(transfer),
            IoCommand::Read(transfer) if transfer.command == "aio_read" => self.start(transfer, false),
            IoCommand::Write(transfer) if transfer.command == "aio_write" => self.start(transfer, true),
            IoCommand::Read(transfer) => {
                let text = self.in_coroutine(read(self.block.clone(), self.backend.clone(), transfer.clone())).await;
                self.block.print(text);
            }
            IoCommand::Write(transfer) => {
                let text = self.in_coroutine(write(self.block.clone(), self.backend.clone(), transfer.clone())).await;
                self.block.print(text);
            }
            IoCommand::Discard { offset, bytes, quiet, condensed } => {
                self.discard(*offset, *bytes, *quiet, *condensed).await;
            }
            IoCommand::Flush => {
                let (block, backend) = (self.block.clone(), self.backend.clone());
                // qemu-io says nothing about a flush, not even that it failed.
                let _ = self.in_coroutine(async move { block.backend_flush(&backend).await }).await;
            }
            IoCommand::AioFlush => self.drain().await,
            IoCommand::Length => {
                let length = self.backend.node(&self.block).map_or(0, |node| self.block.length(&node));
                self.block.print(format!("{}\n", human(length)));
            }
            IoCommand::Map => self.map().await,
            IoCommand::Alloc { offset, bytes } => self.alloc(*offset, *bytes).await,
            IoCommand::Truncate { size, preallocation } => self.truncate(*size, *preallocation).await,
            IoCommand::Sleep(ms) => {
                let (sim, ns) = (self.block.sim.clone(), ms.saturating_mul(1_000_000));
                self.in_coroutine(async move { sim.sleep(ns).await }).await;
            }
            IoCommand::Break { .. } | IoCommand::WaitBreak(_) | IoCommand::Resume(_) | IoCommand::RemoveBreak(_) => {
                self.breakpoint(command).await;
            }
            IoCommand::Nothing => {}
        }
    }

    async fn in_coroutine<T: 'static>(&self, request: impl Future<Output = T> + 'static) -> T {
        self.block.sim.run_coroutine("qemu-io", request).await
    }

    /// Starts an asynchronous request.
    fn start(&self, transfer: &Transfer, is_write: bool) {
        let (block, backend, transfer, pending) =
            (self.block.clone(), self.backend.clone(), transfer.clone(), self.pending.clone());
        pending.set(pending.get() + 1);
        self.block.sim.spawn("aio", async move {
            let text = if is_write {
                write(block.clone(), backend, transfer).await
            } else {
                read(block.clone(), backend, transfer).await
            };
            block.print(text);
            pending.set(pending.get() - 1);
        });
    }

    /// Waits for all asynchronous requests.
    pub(super) async fn drain(&self) {
        let pending = self.pending.clone();
        self.block.sim.poll_until("asynchronous requests of qemu-io", move || pending.get() == 0).await;
    }

    async fn discard(&self, offset: u64, bytes: u64, quiet: bool, condensed: bool) {
        let started = self.block.sim.now();
        let (block, backend) = (self.block.clone(), self.backend.clone());
        let result = self.in_coroutine(async move { block.backend_discard(&backend, offset, bytes).await }).await;
        let took = self.block.sim.now() - started;
        match result {
            Err(error) => self.block.print(format!("discard failed: {error}\n")),
            Ok(()) if quiet => {}
            Ok(()) => self.block.print(Report { what: "discard", offset, bytes, took, condensed }),
        }
    }

    /// Says something in the monitor.
    fn say(&self, text: impl std::fmt::Display) {
        self.said.set(Some(self.said.take().unwrap_or_default() + &format!("{text}\r\n")));
    }

    /// The state of a machine is kept in formats that can, behind the disk; no other node has room for it.
    fn vm_state(&self, transfer: &Transfer) {
        let mut node = self.backend.node(&self.block);
        while let Some(below) = node.take() {
            if below.qcow2().is_some() {
                return self.say(format!("not modelled: {} -b on qcow2", transfer.command));
            }
            node = below.primary_child().map(|id| self.block.node(id));
        }
        self.block.print(format!("{} failed: {}\n", transfer.command, Errno::ENOTSUP));
    }

    async fn truncate(&self, size: u64, preallocation: Preallocation) {
        let Some(node) = self.backend.node_id() else { return };
        let block = self.block.clone();
        let done = self.in_coroutine(async move { block.co_truncate(node, size, preallocation).await });
        if let Err(reason) = done.await {
            self.say(reason);
        }
    }

    async fn map(&self) {
        let Some(node) = self.backend.node(&self.block) else { return };
        let (block, id, length) = (self.block.clone(), node.id, self.block.length(&node));
        let runs = self.in_coroutine(async move { allocation_runs(&block, id, length).await }).await;
        match runs {
            Err(error) => self.say(format!("Failed to get allocation status: {error}")),
            Ok(runs) => {
                let end = runs.last().map_or(0, |(offset, bytes, _)| offset + bytes);
                for (offset, bytes, allocated) in runs {
                    let word = if allocated { "    allocated" } else { "not allocated" };
                    let (long, at) = (human(bytes), human(offset));
                    self.block.print(format!("{long} ({bytes:#x}) bytes {word} at offset {at} ({offset:#x})\n"));
                }
                if end < length {
                    // A window of raw, rounded up to whole sectors, can reach behind the node below.
                    self.say("Unexpected end of image".to_owned());
                }
            }
        }
    }

    async fn alloc(&self, offset: u64, bytes: u64) {
        let Some(node) = self.backend.node(&self.block) else { return };
        let (node, block) = (node.id, self.block.clone());
        let sum = self
            .in_coroutine(async move {
                let (mut pos, end, mut sum) = (offset, offset.saturating_add(bytes), 0);
                while pos < end {
                    let (allocated, run) = block.co_is_allocated(node, pos, end - pos).await?;
                    if run == 0 {
                        break;
                    }
                    sum += if allocated { run } else { 0 };
                    pos += run;
                }
                // What lies behind the end is not counted.
                Ok::<(u64, u64), Errno>((sum, pos - offset))
            })
            .await;
        match sum {
            Err(error) => self.block.print(format!("is_allocated failed: {error}\n")),
            Ok((sum, bytes)) => {
                self.block.print(format!("{sum}/{bytes} bytes allocated at offset {}\n", human(offset)))
            }
        }
    }

    /// break, wait_break, resume, remove_break: for the first blkdebug node below.
    async fn breakpoint(&self, command: &IoCommand) {
        let below = self.backend.node_id().and_then(|id| self.block.find_blkdebug(id));
        let missing = || Errno::ENOTSUP;
        match command {
            IoCommand::Break { event, tag } => {
                let result = below.ok_or_else(missing).and_then(|b| b.set_breakpoint(event, tag));
                self.complain("Could not set breakpoint", result);
            }
            IoCommand::Resume(tag) => {
                let result = below.ok_or_else(missing).and_then(|b| b.resume(&self.block, tag));
                self.complain("Could not resume request", result);
            }
            IoCommand::RemoveBreak(tag) => {
                let result = below.ok_or_else(missing).and_then(|b| b.remove_breakpoint(&self.block, tag));
                self.complain(&format!("Could not remove breakpoint {tag}"), result);
            }
            IoCommand::WaitBreak(tag) => {
                if let Some(below) = below {
                    let tag = tag.clone();
                    self.block.sim.poll_until("a blkdebug breakpoint", move || below.is_suspended(&tag)).await;
                }
            }
            _ => {}
        }
    }

    fn complain(&self, what: &str, result: Res<()>) {
        if let Err(error) = result {
            self.block.print(format!("{what}: {error}\n"));
        }
    }
}

/// Runs a guest's request for the calling actor: a coroutine of its own, entered at once.
pub async fn run_as_guest(block: &Rc<Block>, backend: &Rc<Backend>, command: IoCommand) {
    let Some(me) = block.sim.current() else { return };
    let (block_of_guest, backend, sim) = (block.clone(), backend.clone(), block.sim.clone());
    let done = Rc::new(Cell::new(false));
    let flag = done.clone();
    block.sim.spawn("guest request", async move {
        let session = Session { block: block_of_guest, backend, pending: Rc::default(), said: Cell::default() };
        session.run(&command).await;
        flag.set(true);
        sim.wake(me);
    });
    let deaths = block.sim.deaths();
    while !done.get() && block.sim.deaths() == deaths {
        block.sim.park("a guest request").await;
    }
}

/// Runs of equal allocation on the node's own layer.
async fn allocation_runs(block: &Rc<Block>, node: NodeId, length: u64) -> Res<Vec<(u64, u64, bool)>> {
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    let mut pos = 0;
    while pos < length {
        let (allocated, bytes) = block.co_is_allocated(node, pos, length - pos).await?;
        if bytes == 0 {
            break;
        }
        match runs.last_mut() {
            Some(last) if last.2 == allocated => last.1 += bytes,
            _ => runs.push((pos, bytes, allocated)),
        }
        pos += bytes;
    }
    Ok(runs)
}

async fn read(block: Rc<Block>, backend: Rc<Backend>, transfer: Transfer) -> Printed {
    let started = block.sim.now();
    let verb = if transfer.command == "read" { "read" } else { "readv" };
    let content = match block.backend_read(&backend, transfer.offset, transfer.bytes).await {
        Err(error) => return format!("{verb} failed: {error}\n").into(),
        Ok(content) => content,
    };
    let took = block.sim.now() - started;
    let mut text = Printed::default();
    if let Some(pattern) = transfer.pattern {
        let (start, length) = transfer.pattern_range.unwrap_or((0, transfer.bytes));
        if content.slice(start, length).first_not(pattern).is_some() {
            let at = transfer.offset + start;
            text = format!("Pattern verification failed at offset {at}, {length} bytes\n").into();
        }
    }
    if transfer.quiet {
        return text;
    }
    if transfer.dump {
        text.append(dump(&content, transfer.offset).into());
    }
    let (offset, bytes) = (transfer.offset, transfer.bytes);
    text.append(Report { what: "read", offset, bytes, took, condensed: transfer.condensed }.into());
    text
}

async fn write(block: Rc<Block>, backend: Rc<Backend>, transfer: Transfer) -> Printed {
    let started = block.sim.now();
    let mut flags = ReqFlags::NONE;
    for (given, flag) in [
        (transfer.fua, ReqFlags::FUA),
        (transfer.unmap, ReqFlags::MAY_UNMAP),
        (transfer.no_fallback, ReqFlags::NO_FALLBACK),
        (transfer.compressed, ReqFlags::COMPRESSED),
    ] {
        if given {
            flags |= flag;
        }
    }
    let (offset, bytes) = (transfer.offset, transfer.bytes);
    let result = if transfer.zeroes {
        block.backend_write_zeroes(&backend, offset, bytes, flags).await
    } else {
        let content = Content::pattern(transfer.pattern.unwrap_or(0xcd), bytes);
        block.backend_write(&backend, offset, content, flags).await
    };
    let took = block.sim.now() - started;
    match result {
        Err(error) => format!("{} failed: {error}\n", transfer.command).into(),
        Ok(()) if transfer.quiet => Printed::default(),
        Ok(()) => Report { what: "wrote", offset, bytes, took, condensed: transfer.condensed }.into(),
    }
}
