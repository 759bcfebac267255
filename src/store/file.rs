//! File storage: the bytes of a host file in a real file, for other programs to open.
//!
//! Must never ask the real file system what it thinks is a hole, except once when a file that
//! exists is opened: extents come from a map in memory, so that a run answers alike on every host
//! and with either storage. Everything the map calls a hole reads as zeros in the file as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::blocks::BlockMap;
use super::content::{Content, Fill, Run, to_usize};
use super::{Extent, MAX_LEN, block_ceil, block_floor};
use crate::errno::{Errno, Res};
use crate::sim::shared::RefCell;

/// Bytes moved between a run and the file at once.
const PIECE: u64 = 64 << 10;

/// A real file and what the simulated host knows of it.
pub(super) struct FileStore {
    file: File,
    state: RefCell<State>,
}

struct State {
    len: u64,
    data: BlockMap,
    /// What a file that somebody else made takes on the disk beyond its data, bytes: blocks that are taken but
    /// were never written, and the file system's own.
    beyond_data: u64,
}

impl FileStore {
    /// Makes an empty file, also of one that exists.
    pub(super) fn create(path: &Path) -> Res<FileStore> {
        regular_or_absent(path)?;
        let mut how = OpenOptions::new();
        let file = how.read(true).write(true).create(true).truncate(true).open(path);
        let state = State { len: 0, data: BlockMap::default(), beyond_data: 0 };
        Ok(FileStore { file: file.map_err(errno_of)?, state: RefCell::new(state) })
    }

    /// Opens a file that exists, whoever made it.
    pub(super) fn open(path: &Path) -> Res<FileStore> {
        regular_or_absent(path)?;
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(errno_of)?;
        let metadata = file.metadata().map_err(errno_of)?;
        let len = metadata.len();
        if len > MAX_LEN {
            return Err(Errno::EFBIG);
        }
        let data = data_of(&file, len)?;
        // The host counts blocks of 512 bytes, whatever its own are.
        let beyond_data = metadata.blocks().saturating_mul(512).saturating_sub(data.bytes());
        Ok(FileStore { file, state: RefCell::new(State { len, data, beyond_data }) })
    }

    pub(super) fn len(&self) -> u64 {
        self.state.borrow().len
    }

    /// The caller has checked that `off + len` fits. `EIO` if the file has become shorter behind
    /// our back.
    pub(super) fn read(&self, off: u64, len: u64) -> Res<Content> {
        let state = self.state.borrow();
        let end = off + len;
        let stop = end.min(state.len);
        let mut out = Content::new();
        let mut pos = off;
        while pos < stop {
            let extent = state.data.extent(pos, stop);
            if extent.data {
                self.read_data(pos, pos + extent.len, &mut out)?;
            } else {
                out.push(Content::zeros(extent.len));
            }
            pos += extent.len;
        }
        out.push(Content::zeros(end - pos));
        Ok(out)
    }

    fn read_data(&self, off: u64, end: u64, out: &mut Content) -> Res<()> {
        let mut pos = off;
        while pos < end {
            let mut piece = vec![0; to_usize(PIECE.min(end - pos))];
            self.file.read_exact_at(&mut piece, pos).map_err(errno_of)?;
            pos += piece.len() as u64;
            let piece = Content::from_bytes(piece);
            // What a guest wrote as a pattern is a pattern again, and stays cheap to hand on.
            match piece.byte_at(0).filter(|&byte| piece.first_not(byte).is_none()) {
                Some(byte) => out.push(Content::pattern(byte, piece.len())),
                None => out.push(piece),
            }
        }
        Ok(())
    }

    /// The caller has checked that the end fits. What was written before an error stays written.
    pub(super) fn write(&self, off: u64, content: &Content) -> Res<()> {
        let mut pos = off;
        for run in content.runs() {
            self.write_run(pos, run)?;
            pos += run.len;
        }
        Ok(())
    }

    fn write_run(&self, off: u64, run: &Run) -> Res<()> {
        let mut buffer = vec![0; to_usize(PIECE.min(run.len))];
        if let Some(byte) = run.fill.repeated() {
            buffer.fill(byte);
        }
        let mut done = 0;
        while done < run.len {
            let len = PIECE.min(run.len - done);
            let piece = match run.bytes() {
                Some(bytes) => &bytes[to_usize(done)..to_usize(done + len)],
                None => &buffer[..to_usize(len)],
            };
            let (start, end) = (off + done, off + done + len);
            self.file.write_all_at(piece, start).map_err(errno_of)?;
            let mut state = self.state.borrow_mut();
            state.data.add(start, end);
            state.len = state.len.max(end);
            done += len;
        }
        Ok(())
    }

    /// As the memory image's `punch`.
    pub(super) fn punch(&self, off: u64, end: u64) -> Res<()> {
        let end = end.min(self.len());
        if off >= end {
            return Ok(());
        }
        let last = if end == self.len() { end } else { block_floor(end) };
        let first = block_ceil(off).min(end);
        self.zero_within_block(off, first)?;
        if first < last {
            self.punch_blocks(first, last)?;
        }
        self.zero_within_block(last.max(first), end)
    }

    /// Zeroes a piece of one block, which stays what it was; a hole is zero already.
    fn zero_within_block(&self, off: u64, end: u64) -> Res<()> {
        if off < end && self.state.borrow().data.is_data(off) {
            return self.write_run(off, &Run { len: end - off, fill: Fill::Zero });
        }
        Ok(())
    }

    /// Punches [off, end), which are whole blocks or end with the file.
    fn punch_blocks(&self, off: u64, end: u64) -> Res<()> {
        let extent = self.state.borrow().data.extent(off, end);
        if !extent.data && extent.len == end - off {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, off, end - off) {
            Ok(()) => {}
            // A file system without holes: the map alone knows of them.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.write_run(off, &Run { len: end - off, fill: Fill::Zero })?;
            }
            Err(errno) => return Err(Errno(errno.raw_os_error())),
        }
        self.state.borrow_mut().data.remove(off, end);
        Ok(())
    }

    /// The caller has checked that the length fits.
    pub(super) fn truncate(&self, len: u64) -> Res<()> {
        self.file.set_len(len).map_err(errno_of)?;
        let mut state = self.state.borrow_mut();
        let old = state.len;
        state.data.remove(block_ceil(len), block_ceil(old));
        state.len = len;
        Ok(())
    }

    /// As the memory image's `extent`.
    pub(super) fn extent(&self, off: u64, len: u64) -> Extent {
        let state = self.state.borrow();
        let end = off.saturating_add(len).min(state.len);
        if off >= end {
            return Extent { data: false, len };
        }
        state.data.extent(off, end)
    }

    /// What somebody else's file took on the disk beyond its data when it was opened, bytes.
    pub(super) fn beyond_data(&self) -> u64 {
        self.state.borrow().beyond_data
    }
}

/// Opening a directory, device or pipe as an image is refused before it can block.
fn regular_or_absent(path: &Path) -> Res<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(Errno::EISDIR),
        Ok(meta) if !meta.is_file() => Err(Errno::ENOTSUP),
        _ => Ok(()),
    }
}

/// What a file that exists holds, by the host's own account, rounded out to our blocks.
fn data_of(file: &File, len: u64) -> Res<BlockMap> {
    let mut map = BlockMap::default();
    let mut pos = 0;
    while pos < len {
        let start = match seek(file, SeekFrom::Data(pos)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            // The file system cannot say.
            Err(rustix::io::Errno::INVAL) => {
                map.add(pos, len);
                break;
            }
            Err(errno) => return Err(Errno(errno.raw_os_error())),
        };
        let hole = seek(file, SeekFrom::Hole(start)).unwrap_or(len);
        let end = hole.clamp(start.saturating_add(1), len.max(start.saturating_add(1)));
        map.add(start, end);
        pos = end;
    }
    Ok(map)
}

/// The errno of a failed call on a real file; `EIO` if it has none.
pub(super) fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}
