//! The `file` driver: a file of the simulated host, and the locks that openers hold on it.
//!
//! Every request goes to the host's thread pool in QEMU, so every request yields here. Locks
//! follow permissions as `block/file-posix.c` does with its lock bytes.

use std::rc::Rc;

use crate::errno::{Errno, Res};
use crate::sim::Footprint;
use crate::sim::shared::RefCell;
use crate::store::{Content, Store};

use super::faults::Strike;
use super::flags::{BlockStatus, Perm, StatusFlags};
use super::graph::Block;
use super::node::{Node, NodeId};
use super::timing::Operation;
use super::truncate::Preallocation;

/// State of a file node.
pub struct FileDriver {
    /// The name that it was opened by.
    pub filename: Rc<str>,
    /// The bytes.
    pub store: Rc<Store>,
    /// Names the opener among all processes of the host.
    pub process: u32,
}

/// Sets a file's length, bytes. An empty file that grows gets its first block written, which helps QEMU to
/// probe alignments later (`allocate_first_block` in `block/file-posix.c`) and is why a new raw image
/// begins with data. The error is QEMU's text (`handle_aiocb_truncate`).
pub fn set_file_length(store: &Store, size: u64, preallocation: Preallocation) -> Result<(), String> {
    const FIRST_BLOCK: u64 = 4096;
    let old = store.len();
    if preallocation != Preallocation::Off && size < old {
        return Err("Cannot use preallocation for shrinking files".to_owned());
    }
    let (done, what) = match preallocation {
        Preallocation::Off => (store.truncate(size), "Could not resize file"),
        Preallocation::Metadata => return Err("Unsupported preallocation mode: metadata".to_owned()),
        Preallocation::Falloc => (store.write_zeroes(old, size - old, false), "Could not preallocate new data"),
        Preallocation::Full => {
            (store.write(old, &Content::zeros(size - old)), "Could not write zeros for preallocation")
        }
    };
    done.map_err(|error| format!("{what}: {error}"))?;
    if old == 0 && size > 0 && preallocation != Preallocation::Full {
        let first = Content::zeros(if size < FIRST_BLOCK { 512.min(size) } else { FIRST_BLOCK });
        store.write(0, &first).map_err(|error| format!("{what}: {error}"))?;
    }
    Ok(())
}

struct Lock {
    file: Rc<Store>,
    process: u32,
    node: NodeId,
    perm: Perm,
    shared: Perm,
}

/// All locks on the host's files, of all processes.
#[derive(Default)]
pub struct FileLocks {
    locks: RefCell<Vec<Lock>>,
    /// The name by which the file was opened whose locks were last refused.
    last_refused: RefCell<String>,
}

impl FileLocks {
    /// Drops the locks of one node.
    pub fn release(&self, process: u32, node: NodeId) {
        self.locks.borrow_mut().retain(|lock| lock.process != process || lock.node != node);
    }

    /// Drops all locks of a process that has died.
    pub fn release_process(&self, process: u32) {
        self.locks.borrow_mut().retain(|lock| lock.process != process);
    }
}

impl FileLocks {
    /// Whether these permissions on a file, opened by `filename`, conflict with a lock, other than that of the given
    /// process's node. The error is QEMU's text.
    pub fn check(
        &self,
        file: &Rc<Store>,
        filename: &str,
        own: Option<(u32, NodeId)>,
        perm: Perm,
        shared: Perm,
    ) -> Result<(), String> {
        let all = self.locks.borrow();
        let others = || all.iter().filter(|l| Rc::ptr_eq(&l.file, file) && Some((l.process, l.node)) != own);
        for p in PERMISSIONS {
            let refused = if perm.contains(p) && others().any(|other| !other.shared.contains(p)) {
                format!("Failed to get \"{}\" lock", p.names())
            } else if !shared.contains(p) && others().any(|other| other.perm.contains(p)) {
                format!("Failed to get shared \"{}\" lock", p.names())
            } else {
                continue;
            };
            *self.last_refused.borrow_mut() = filename.to_owned();
            return Err(refused);
        }
        Ok(())
    }

    /// The name by which the file was opened whose locks were last refused (QEMU's hint names it).
    pub fn last_refused(&self) -> String {
        self.last_refused.borrow().clone()
    }
}

const PERMISSIONS: [Perm; 4] = [Perm::CONSISTENT_READ, Perm::WRITE, Perm::WRITE_UNCHANGED, Perm::RESIZE];

impl FileDriver {
    /// Takes the locks for these permissions, or says which could not be had.
    pub fn try_lock(
        &self,
        locks: &FileLocks,
        node: NodeId,
        perm: Perm,
        shared: Perm,
        force_share: bool,
    ) -> Result<(), String> {
        if !force_share {
            locks.check(&self.store, &self.filename, Some((self.process, node)), perm, shared)?;
        }
        let mut all = locks.locks.borrow_mut();
        all.retain(|lock| !self.holds(lock, node));
        if !force_share {
            all.push(Lock { file: self.store.clone(), process: self.process, node, perm, shared });
        }
        Ok(())
    }

    fn holds(&self, lock: &Lock, node: NodeId) -> bool {
        lock.process == self.process && lock.node == node
    }

    /// The time that the device takes, and the fault that the request meets.
    async fn device(&self, block: &Block, node: &Node, operation: Operation, offset: u64, bytes: u64) -> Res<()> {
        let strike = if block.faults.is_empty() {
            Strike::default()
        } else {
            block.faults.strike(&node.name, operation, offset, bytes)
        };
        let latency = block.timing.cost(&node.name, operation).saturating_add(strike.latency);
        let (what, writes) = match operation {
            Operation::Read => ("read", false),
            Operation::Write => ("write", true),
            Operation::Flush => ("flush", true),
            Operation::Discard => ("discard", true),
        };
        let footprint = Footprint::range(what, node.id.0, offset, bytes, writes);
        match operation {
            Operation::Flush => block.sim.device_sync(latency, footprint).await,
            _ => block.sim.device(latency, footprint).await,
        }
        strike.error.map_or(Ok(()), Err)
    }

    /// Reads; zeros beyond the end of the file.
    pub async fn read(&self, block: &Block, node: &Node, offset: u64, bytes: u64) -> Res<Content> {
        self.device(block, node, Operation::Read, offset, bytes).await?;
        self.store.read(offset, bytes)
    }

    /// Writes, extending the file.
    pub async fn write(&self, block: &Block, node: &Node, offset: u64, content: &Content) -> Res<()> {
        self.device(block, node, Operation::Write, offset, content.len()).await?;
        self.store.write(offset, content)
    }

    /// Writes zeros efficiently.
    pub async fn write_zeroes(&self, block: &Block, node: &Node, offset: u64, bytes: u64, unmap: bool) -> Res<()> {
        self.device(block, node, Operation::Write, offset, bytes).await?;
        self.store.write_zeroes(offset, bytes, unmap)
    }

    /// Copies from another file. Where that ends too early, what there is arrives, and the rest is refused
    /// (`handle_aiocb_copy_range`).
    pub async fn copy_from(
        &self,
        block: &Block,
        node: &Node,
        from: &FileDriver,
        source: u64,
        offset: u64,
        bytes: u64,
    ) -> Res<()> {
        self.device(block, node, Operation::Write, offset, bytes).await?;
        let there = bytes.min(from.store.len().saturating_sub(source));
        if there > 0 {
            self.store.write(offset, &from.store.read(source, there)?)?;
        }
        if there < bytes { Err(Errno::ENOTSUP) } else { Ok(()) }
    }

    /// Punches a hole.
    pub async fn discard(&self, block: &Block, node: &Node, offset: u64, bytes: u64) -> Res<()> {
        self.device(block, node, Operation::Discard, offset, bytes).await?;
        self.store.discard(offset, bytes)
    }

    /// Makes everything written so far durable.
    pub async fn flush(&self, block: &Block, node: &Node) -> Res<()> {
        self.device(block, node, Operation::Flush, 0, 0).await?;
        self.store.flush()
    }

    /// Sets the file's length, bytes. The error is QEMU's text.
    pub async fn truncate(
        &self,
        block: &Block,
        node: &Node,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), String> {
        let struck = self.device(block, node, Operation::Write, size, 0).await;
        struck.map_err(|error| format!("Could not resize file: {error}"))?;
        set_file_length(&self.store, size, preallocation)?;
        block.witness_file_length(&self.filename, size);
        Ok(())
    }

    /// Data or hole (`lseek`), without a yield.
    pub fn status(&self, node: NodeId, offset: u64, bytes: u64) -> BlockStatus {
        let extent = self.store.extent(offset, bytes);
        let kind = if extent.data { StatusFlags::DATA } else { StatusFlags::ZERO };
        let bytes = extent.len.clamp(1, bytes.max(1));
        BlockStatus { flags: kind | StatusFlags::OFFSET_VALID, bytes, map: offset, file: Some(node) }
    }
}
