//! QMP errors: a class and a text (QAPI's `QapiErrorClass`).

use serde_json::{Value, json};

/// The classes that QEMU still uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Almost everything.
    GenericError,
    /// There is no such command.
    CommandNotFound,
    /// block-job-*: there is no such job.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
}

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// Its class.
    pub class: ErrorClass,
    /// Its text.
    pub desc: String,
}

/// What a command returns.
pub type QmpResult = Result<Value, QmpError>;

impl QmpError {
    /// An error of `class`.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> QmpError {
        QmpError { class, desc: desc.into() }
    }

    /// As on the wire.
    pub fn to_value(&self) -> Value {
        let class = match self.class {
            ErrorClass::GenericError => "GenericError",
            ErrorClass::CommandNotFound => "CommandNotFound",
            ErrorClass::DeviceNotActive => "DeviceNotActive",
            ErrorClass::DeviceNotFound => "DeviceNotFound",
        };
        json!({"error": {"class": class, "desc": self.desc}})
    }
}

impl From<String> for QmpError {
    fn from(desc: String) -> QmpError {
        QmpError { class: ErrorClass::GenericError, desc }
    }
}

impl From<&str> for QmpError {
    fn from(desc: &str) -> QmpError {
        QmpError::from(desc.to_owned())
    }
}
