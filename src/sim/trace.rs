//! The stream of trace events: what every layer tells about what it does.
//!
//! Transcript, picture, coverage and invariants all read this one stream. Readers may only look; an
//! event must never be needed for the model to go on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::Nanos;

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
    },
    /// A request left its node.
    RequestEnd {
        /// As in its begin.
        id: u64,
        /// 0, or the errno.
        error: i32,
    },
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
    /// A blkdebug event passed a node.
    Blkdebug {
        /// The blkdebug node.
        node: Rc<str>,
        /// The event's name.
        event: &'static str,
    },
}

/// An event with its time and the task that caused it.
#[derive(Clone, Debug)]
pub struct Stamped {
    /// Virtual time, ns.
    pub time: Nanos,
    /// The task's name; none for the loop itself.
    pub task: Option<Rc<str>>,
    /// What happened.
    pub event: TraceEvent,
}

type Reader = Box<dyn FnMut(&Stamped)>;

/// The stream; see the module's text.
#[derive(Default)]
pub struct Trace {
    readers: RefCell<Vec<Reader>>,
    is_read: Cell<bool>,
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

    /// A fresh number for a request.
    pub fn request_id(&self) -> u64 {
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        id
    }

    pub(super) fn publish(&self, time: Nanos, task: Option<Rc<str>>, event: TraceEvent) {
        let stamped = Stamped { time, task, event };
        for reader in self.readers.borrow_mut().iter_mut() {
            reader(&stamped);
        }
    }
}
