//! The stream of trace events: what every layer tells about what it does.
//!
//! Transcript, picture, coverage and invariants all read this one stream. Readers may only look; an
//! event must never be needed for the model to go on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::Nanos;

/// Content of a disk as bytes of one value each: length and value.
pub type Runs = Vec<(u64, u8)>;

/// A named dirty bitmap as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapDump {
    /// Node name.
    pub node: Rc<str>,
    /// The bitmap's name.
    pub name: Rc<str>,
    /// Bytes of a bit.
    pub granularity: u64,
    /// As `query-block` shows it.
    pub recording: bool,
    /// An operation uses it.
    pub busy: bool,
    /// Loaded with its in-use flag set.
    pub inconsistent: bool,
    /// To be stored in the image.
    pub persistent: bool,
    /// Its image can't be written to, so that what becomes of it stays in memory.
    pub readonly: bool,
    /// Bytes of the disk that it covers.
    pub size: u64,
    /// Dirty areas, those of a successor included: offset and bytes.
    pub dirty: Vec<(u64, u64)>,
}

/// Where a disk's bytes lie, when somebody begins to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskPlace {
    /// The host's file, if there is one.
    pub file: Option<Rc<str>>,
    /// It is an image with tables of its own in that file.
    pub is_image: bool,
    /// It shows a part of the file only.
    pub is_part: bool,
    /// The backing files that show where it has nothing itself, the nearest first.
    pub below: Vec<Layer>,
}

/// A disk below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Node name.
    pub node: Rc<str>,
    /// The host's file; none if it has none, or shows it in a way of its own.
    pub file: Option<Rc<str>>,
    /// It is an image with tables of its own in that file.
    pub is_image: bool,
    /// Its length, bytes: zeros are behind.
    pub length: u64,
}

/// What a backup was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupCreated {
    /// Job id.
    pub job: Rc<str>,
    /// The disk.
    pub source: Rc<str>,
    /// Where its bytes lie.
    pub place: DiskPlace,
    /// Where the job reads it, if there is a filter of its user's above it: that node.
    pub read_at: Rc<str>,
    /// Where to.
    pub target: Rc<str>,
    /// Where the target's bytes lie.
    pub target_place: DiskPlace,
    /// `full`, `top`, `none`, `incremental`, `bitmap`.
    pub sync: &'static str,
    /// `on-success`, `never`, `always`.
    pub mode: &'static str,
    /// The sync bitmap as it was just before.
    pub bitmap: Option<BitmapDump>,
    /// The filter whose snapshot the source shows, if it does.
    pub snapshot: Option<Rc<str>>,
    /// Bytes of a backup cluster.
    pub cluster: u64,
    /// Bytes of the disk.
    pub length: u64,
    /// Jobs that succeed or fail together share this number.
    pub group: Option<u64>,
    /// `on-source-error`.
    pub on_source_error: &'static str,
    /// `on-target-error`.
    pub on_target_error: &'static str,
    /// `auto-finalize`.
    pub auto_finalize: bool,
    /// `auto-dismiss`.
    pub auto_dismiss: bool,
    /// `speed`, bytes per second; 0: unlimited.
    pub speed: u64,
    /// `max-workers`.
    pub workers: u32,
    /// `max-chunk`, bytes; 0: no limit.
    pub max_chunk: u64,
}

/// Something that happened, with the footprint that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A request entered a node.
    RequestBegin {
        /// Which request of the run; its end carries the same number.
        id: u64,
        /// Node name.
        node: Rc<str>,
        /// `read`, `write`, `write-zeroes`, `discard`, `flush`.
        operation: &'static str,
        /// Bytes.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// Nothing is below the node, or it gives errors of its own as a device does.
        device: bool,
    },
    /// A request left its node.
    RequestEnd {
        /// As in its begin.
        id: u64,
        /// 0, or the errno.
        error: i32,
    },
    /// A file of the host was made, empty, in place of another one of that name or not.
    FileCreated {
        /// Its name.
        file: Rc<str>,
    },
    /// A file of the host was made an empty image.
    FileFormatted {
        /// Its name.
        file: Rc<str>,
    },
    /// A file of the host ends elsewhere now.
    FileResized {
        /// Its name.
        file: Rc<str>,
        /// Its new length, bytes.
        size: u64,
        /// A qemu-img did it, and no machine.
        outside: bool,
    },
    /// A guest's request has passed the queue of its backend.
    GuestBegin {
        /// Which request of the run; its end carries the same number.
        id: u64,
        /// Whose request it is, if it comes from a guest's own disk and not from the monitor.
        guest: Option<Rc<str>>,
        /// The disk: the node below all filters.
        disk: Rc<str>,
        /// Where its bytes lie.
        place: DiskPlace,
        /// `read`, `write`, `write-zeroes`, `discard`, `flush`.
        operation: &'static str,
        /// Bytes.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// What is written.
        content: Runs,
        /// It is durable when it is answered (FUA, or a writethrough cache).
        durable: bool,
        /// It is written as compressed clusters, which is refused where there is something already.
        compressed: bool,
    },
    /// A guest's disk is another node now.
    GuestMoved {
        /// Whose disk.
        guest: Rc<str>,
        /// The node below all filters.
        disk: Rc<str>,
        /// Where its bytes lie.
        place: DiskPlace,
    },
    /// Between the two changes of the graph that take an overlay away again.
    TakenBack {
        /// The overlay.
        overlay: Rc<str>,
        /// Nothing is below it any more; or else nobody uses it any more.
        begins: bool,
    },
    /// A guest's request is answered.
    GuestEnd {
        /// As in its begin.
        id: u64,
        /// 0, or the errno.
        error: i32,
        /// What was read.
        content: Runs,
    },
    /// From now on a copy-before-write filter keeps the disk as it is at this moment.
    SnapshotOpened {
        /// The filter's node.
        filter: Rc<str>,
        /// The disk.
        source: Rc<str>,
        /// Where its bytes lie.
        place: DiskPlace,
        /// Where the bytes lie of what old content is copied to.
        target: DiskPlace,
        /// It keeps all of it, not only what a bitmap says.
        whole: bool,
        /// What is written to the disk and to where its old content goes can be read back.
        kept: bool,
    },
    /// A reader of the snapshot got data.
    SnapshotRead {
        /// The filter's node.
        filter: Rc<str>,
        /// Bytes.
        offset: u64,
        /// What it got.
        content: Runs,
    },
    /// A backup job was made; its point in time is this moment.
    BackupCreated(Rc<BackupCreated>),
    /// A backup job has settled its bitmap and is about to be concluded.
    BackupSettled {
        /// Job id.
        job: Rc<str>,
        /// Whether it counts as successful.
        success: bool,
        /// The sync bitmap as it is now.
        bitmap: Option<Rc<BitmapDump>>,
    },
    /// BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED was sent.
    JobEnded {
        /// Job id.
        id: Rc<str>,
        /// Bytes in all.
        len: u64,
        /// Bytes done.
        offset: u64,
        /// Cancelled.
        cancelled: bool,
        /// Failed.
        failed: bool,
    },
    /// All named bitmaps, after a command that may have changed them.
    Bitmaps {
        /// The command.
        command: &'static str,
        /// Its arguments.
        arguments: Rc<Map<String, Value>>,
        /// Whether it succeeded.
        succeeded: bool,
        /// What there is.
        list: Vec<BitmapDump>,
    },
    /// A command about a job is about to be carried out, or has been.
    JobCommand {
        /// The command, without `block-` in front.
        command: &'static str,
        /// Job id.
        id: Rc<str>,
        /// The new speed, bytes per second, of one that sets it.
        speed: Option<u64>,
        /// Whether it succeeded; none before.
        succeeded: Option<bool>,
    },
    /// A job is asked to pause: by its user, for a drained section, or since it has failed.
    JobAskedToPause {
        /// Job id.
        id: Rc<str>,
    },
    /// A drained section has begun, with nothing in flight any more, or is about to end.
    Drained {
        /// Node name; none: all nodes.
        node: Option<Rc<str>>,
        /// Whether it begins.
        begins: bool,
    },
    /// The process died at once.
    Killed,
    /// The process ended in order: images are closed, bitmaps stored.
    ShutDown,
    /// A job changed its state.
    JobStatus {
        /// Job id.
        id: Rc<str>,
        /// The new state's name.
        status: &'static str,
    },
    /// A QMP event was written to the monitor.
    QmpEvent {
        /// Its name.
        name: &'static str,
    },
    /// A scenario's step began.
    Step {
        /// Line in the scenario file.
        line: u32,
        /// Its label or verb.
        text: Rc<str>,
    },
    /// Bits of a bitmap changed: told only where the trace is detailed.
    Bits {
        /// Node name.
        node: Rc<str>,
        /// The bitmap's name, or what it is for.
        bitmap: Rc<str>,
        /// Bytes.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// Whether they are set now.
        set: bool,
    },
    /// A blkdebug event passed a node.
    Blkdebug {
        /// The blkdebug node.
        node: Rc<str>,
        /// The event's name.
        event: &'static str,
    },
}

/// What stands in front of a node's name that is not the machine's but a tool's.
pub const TOOL: &str = "qemu-img: ";

/// An event with its time and the task that caused it.
#[derive(Clone, Debug)]
pub struct Stamped {
    /// Virtual time, ns.
    pub time: Nanos,
    /// The task's name; none for the loop itself.
    pub task: Option<Rc<str>>,
    /// On whose behalf the task runs.
    pub owner: Option<Rc<str>>,
    /// What happened.
    pub event: TraceEvent,
}

type Reader = Box<dyn FnMut(&Stamped)>;

/// The stream; see the module's text.
#[derive(Default)]
pub struct Trace {
    readers: RefCell<Vec<Reader>>,
    is_read: Cell<bool>,
    is_detailed: Cell<bool>,
    next_request: Cell<u64>,
}

impl Trace {
    /// Adds a reader, which sees everything from now on.
    pub fn subscribe(&self, reader: impl FnMut(&Stamped) + 'static) {
        self.readers.borrow_mut().push(Box::new(reader));
        self.is_read.set(true);
    }

    /// Whether anybody reads; without readers events are not even built.
    pub fn is_read(&self) -> bool {
        self.is_read.get()
    }

    /// Asks for what is told only to those who follow a run step by step.
    pub fn want_detail(&self) {
        self.is_detailed.set(true);
    }

    /// Whether somebody follows the run step by step.
    pub fn is_detailed(&self) -> bool {
        self.is_detailed.get()
    }

    /// A fresh number for a request.
    pub fn request_id(&self) -> u64 {
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        id
    }

    pub(super) fn publish(&self, stamped: Stamped) {
        for reader in self.readers.borrow_mut().iter_mut() {
            reader(&stamped);
        }
    }
}
