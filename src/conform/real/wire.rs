//! QMP on a socket: one JSON value a line, replies in order, events between them.
//!
//! Must never wait without a deadline, and never interpret a reply: what QEMU says is kept as it is.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// The longest line that is still taken for QMP, in bytes.
const LONGEST_LINE: usize = 64 << 20;

/// Why nothing came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WireError {
    /// QEMU closed the connection.
    Closed,
    /// The deadline passed.
    Late,
    /// A line that is no QMP.
    Nonsense(String),
    /// The socket failed.
    Socket(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Closed => f.write_str("the connection was closed"),
            WireError::Late => f.write_str("no answer in time"),
            WireError::Nonsense(line) => write!(f, "not QMP: {line}"),
            WireError::Socket(why) => write!(f, "the socket failed: {why}"),
        }
    }
}

/// What QEMU sends by itself or in answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// The first line of a connection.
    Greeting(Value),
    /// The answer to a command.
    Reply(Value),
    /// An event.
    Event(Value),
}

/// The connection to one QEMU.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    /// What was read and is not a whole line yet.
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no newline.
    searched: usize,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Wire {
        Wire { stream, buffer: Vec::new(), searched: 0 }
    }

    /// Sends a command.
    pub(super) fn send(
        &mut self,
        command: &str,
        arguments: &Map<String, Value>,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let mut message = json!({ "execute": command });
        if !arguments.is_empty() {
            message["arguments"] = Value::Object(arguments.clone());
        }
        let text = format!("{message}\n");
        self.stream.set_nonblocking(false).map_err(socket)?;
        self.stream.set_write_timeout(Some(until(deadline)?)).map_err(socket)?;
        self.stream.write_all(text.as_bytes()).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => WireError::Late,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => WireError::Closed,
            _ => socket(error),
        })
    }

    /// The next message; waits for it until `deadline`, or not at all.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> Result<Message, WireError> {
        loop {
            if let Some(line) = self.line() {
                if !line.trim_ascii().is_empty() {
                    return message(&line);
                }
                continue;
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(WireError::Nonsense(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            self.fill(deadline)?;
        }
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    fn fill(&mut self, deadline: Option<Instant>) -> Result<(), WireError> {
        self.stream.set_nonblocking(deadline.is_none()).map_err(socket)?;
        if let Some(deadline) = deadline {
            self.stream.set_read_timeout(Some(until(deadline)?)).map_err(socket)?;
        }
        let mut chunk = [0; 1 << 14];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(WireError::Closed),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => Ok(()),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(WireError::Late),
                ErrorKind::ConnectionReset => Err(WireError::Closed),
                _ => Err(socket(error)),
            },
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn socket(error: std::io::Error) -> WireError {
    WireError::Socket(error.to_string())
}

/// The time left until `deadline`; sockets take no time-out of zero.
fn until(deadline: Instant) -> Result<Duration, WireError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(WireError::Late) } else { Ok(left) }
}

fn message(line: &[u8]) -> Result<Message, WireError> {
    let nonsense = || {
        let shown: String = String::from_utf8_lossy(line).trim_end().chars().take(200).collect();
        WireError::Nonsense(shown)
    };
    let value: Value = serde_json::from_slice(line).map_err(|_| nonsense())?;
    let has = |key| value.get(key).is_some();
    if has("return") || has("error") {
        Ok(Message::Reply(value))
    } else if value.get("event").is_some_and(Value::is_string) {
        Ok(Message::Event(value))
    } else if has("QMP") {
        Ok(Message::Greeting(value))
    } else {
        Err(nonsense())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        (Wire::new(ours), theirs)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let (mut wire, mut theirs) = pair();
        assert_eq!(wire.receive(None), Err(WireError::Late));
        theirs.write_all(b"{\"QMP\": {}}\r\n\r\n{\"event\": \"A\"").expect("written");
        assert_eq!(wire.receive(None), Ok(Message::Greeting(json!({"QMP": {}}))));
        assert_eq!(wire.receive(Some(soon())), Err(WireError::Late));
        theirs.write_all(b"}\n{\"return\": {}}\n").expect("written");
        assert_eq!(wire.receive(None), Ok(Message::Event(json!({"event": "A"}))));
        assert_eq!(wire.receive(None), Ok(Message::Reply(json!({"return": {}}))));
        drop(theirs);
        assert_eq!(wire.receive(Some(soon())), Err(WireError::Closed));
    }

    #[test]
    fn nonsense_is_shown() {
        let (mut wire, mut theirs) = pair();
        theirs.write_all(b"Segmentation fault\n{\"neither\": 1}\n").expect("written");
        assert_eq!(wire.receive(None), Err(WireError::Nonsense("Segmentation fault".to_owned())));
        assert_eq!(wire.receive(None), Err(WireError::Nonsense("{\"neither\": 1}".to_owned())));
    }

    #[test]
    fn commands_are_one_line() {
        let (mut wire, mut theirs) = pair();
        wire.send("quit", &Map::new(), soon()).expect("sent");
        let mut text = [0; 64];
        let read = theirs.read(&mut text).expect("read");
        assert_eq!(&text[..read], b"{\"execute\":\"quit\"}\n");
    }
}
