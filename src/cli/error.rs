//! What a command says when it can't do what was asked: what, where, what was expected, one hint.
//!
//! Only words are made here. An error is shown once, by [`crate::cli::main`]; nothing on the way may
//! print it or swallow it.

use std::fmt;
use std::io;
use std::path::Path;

use crate::scenario::Diagnostics;

use super::exit::Exit;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// Something to tell the user.
    Told(Message),
    /// Mistakes in a scenario, which know their own form.
    Scenario(Diagnostics),
    /// Whoever read standard output has had enough (`backsim run … | head`): not an error.
    OutputClosed,
}

/// An error in words.
#[derive(Debug)]
pub struct Message {
    exit: Exit,
    what: String,
    place: Option<String>,
    expected: Option<String>,
    hint: Option<String>,
}

impl Message {
    /// An error that ends the process with `exit`; `what` is a sentence fragment in lower case.
    pub fn new(exit: Exit, what: impl Into<String>) -> Message {
        let what = what.into();
        Message { exit, what, place: None, expected: None, hint: None }
    }

    /// A mistake of the user's.
    pub fn mistake(what: impl Into<String>) -> Message {
        Message::new(Exit::Mistake, what)
    }

    /// Says where it is: a file, an argument.
    pub fn at(mut self, place: impl fmt::Display) -> Message {
        self.place = Some(place.to_string());
        self
    }

    /// Says what would have been right.
    pub fn expected(mut self, expected: impl Into<String>) -> Message {
        self.expected = Some(expected.into());
        self
    }

    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Message {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.what)?;
        if let Some(expected) = &self.expected {
            write!(f, "\n  = expected: {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  = hint: {hint}")?;
        }
        Ok(())
    }
}

impl Failure {
    /// A file or directory that the system refuses.
    pub fn file(path: &Path, doing: &str, error: &io::Error) -> Failure {
        Message::mistake(format!("cannot {doing}: {}", reason(error))).at(path.display()).into()
    }

    /// What the process returns.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Told(message) => message.exit,
            Failure::Scenario(_) => Exit::Mistake,
            Failure::OutputClosed => Exit::Good,
        }
    }
}

/// The system's words without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Told(message) => message.fmt(f),
            Failure::Scenario(mistakes) => mistakes.fmt(f),
            Failure::OutputClosed => f.write_str("standard output was closed"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Message> for Failure {
    fn from(message: Message) -> Failure {
        Failure::Told(message)
    }
}

impl From<Diagnostics> for Failure {
    fn from(mistakes: Diagnostics) -> Failure {
        Failure::Scenario(mistakes)
    }
}

/// An error from writing to standard output or standard error, the only two streams that have no name.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Message::mistake(format!("cannot write: {}", reason(&error))).at("standard output").into(),
        }
    }
}
