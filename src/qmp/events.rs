//! QMP events, in the shape in which QEMU writes them.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::block::Notice;
use crate::job::{ErrorAction, JobEvent};
use crate::sim::Nanos;

/// An event on the monitor.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Its name.
    pub name: &'static str,
    /// Its data; null if it has none.
    pub data: Rc<Value>,
    /// Virtual time, ns.
    pub time: Nanos,
}

impl QmpEvent {
    /// An event at `time`.
    pub fn new(name: &'static str, data: Value, time: Nanos) -> QmpEvent {
        QmpEvent { name, data: Rc::new(data), time }
    }

    /// What a job has told.
    pub fn of_job(event: JobEvent, time: Nanos) -> QmpEvent {
        let (name, data) = match event {
            JobEvent::Status { id, status } => ("JOB_STATUS_CHANGE", json!({"id": &*id, "status": status.name()})),
            JobEvent::Pending { id } => ("BLOCK_JOB_PENDING", json!({"id": &*id, "type": "backup"})),
            JobEvent::Ended { id, len, offset, speed, cancelled, error } => {
                let mut data = json!({"device": &*id, "len": len, "offset": offset, "speed": speed, "type": "backup"});
                if let Some(error) = error {
                    data["error"] = error.into();
                }
                (if cancelled { "BLOCK_JOB_CANCELLED" } else { "BLOCK_JOB_COMPLETED" }, data)
            }
            JobEvent::Error { id, is_read, action } => {
                let operation = if is_read { "read" } else { "write" };
                let action = match action {
                    ErrorAction::Report => "report",
                    ErrorAction::Ignore => "ignore",
                    ErrorAction::Stop => "stop",
                };
                ("BLOCK_JOB_ERROR", json!({"device": &*id, "operation": operation, "action": action}))
            }
        };
        QmpEvent::new(name, data, time)
    }

    /// What the block layer has told.
    pub fn of_notice(notice: Notice, time: Nanos) -> QmpEvent {
        match notice {
            Notice::ImageCorrupted { node, message, range, fatal } => {
                let mut data = json!({"device": "", "node-name": &*node, "msg": message, "fatal": fatal});
                if let Some((offset, size)) = range {
                    data["offset"] = offset.into();
                    data["size"] = size.into();
                }
                QmpEvent::new("BLOCK_IMAGE_CORRUPTED", data, time)
            }
        }
    }
}
