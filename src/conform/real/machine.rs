//! One QEMU process with its monitor: what a `vm: launch` starts.
//!
//! Must never wait longer than the deadline it is given, and must be gone when it is dropped.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::scenario::backend::Event;

use super::names::Names;
use super::process::{Running, bytes_from, text};
use super::trouble::{Trouble, TroubleKind, how};
use super::wire::{Message, Wire, WireError};

/// How long a QEMU that closed its monitor may take to end.
const TO_END: Duration = Duration::from_secs(5);

/// A QEMU at work.
#[derive(Debug)]
pub(super) struct Machine {
    running: Running,
    wire: Wire,
    names: Names,
    events: Vec<Event>,
    /// How long any answer may take.
    patience: Duration,
    /// How many bytes of its standard output have been given.
    shown: u64,
    /// Whether it was asked to end (`quit`), so that a closed connection is no trouble.
    quitting: bool,
}

impl Machine {
    /// Starts `qemu` in `dir` and opens its monitor; gives its greeting too. `number` tells the machines of
    /// a run apart.
    pub(super) fn start(
        qemu: &Path,
        dir: &Path,
        names: &Names,
        number: u32,
        patience: Duration,
    ) -> Result<(Machine, Value), Trouble> {
        let not_started = |why: String| Trouble { kind: TroubleKind::NotStarted(why), output: String::new() };
        let socket = format!("qmp-{number}");
        // We listen and QEMU connects: then there is no moment at which the socket is not there yet.
        let listener = UnixListener::bind(dir.join(&socket))
            .map_err(|error| not_started(format!("no socket in {}: {error}", dir.display())))?;
        let running = Running::start(qemu, "qemu", &arguments(&socket), dir, &format!("qemu-{number}"))
            .map_err(|error| not_started(format!("{}: {error}", qemu.display())))?;
        let deadline = Instant::now() + patience;
        let mut starting = Starting { running, names };
        let stream = starting.accept(&listener, deadline)?;
        let mut wire = Wire::new(stream);
        let greeting = match wire.receive(Some(deadline)) {
            Ok(Message::Greeting(greeting)) => greeting,
            Ok(other) => return Err(starting.failed(format!("no greeting, but {other:?}"))),
            Err(error) => return Err(starting.failed(format!("no greeting: {error}"))),
        };
        let mut machine = Machine {
            running: starting.running,
            wire,
            names: names.clone(),
            events: Vec::new(),
            patience,
            shown: 0,
            quitting: false,
        };
        machine.execute("qmp_capabilities", &Map::new())?;
        Ok((machine, greeting))
    }

    /// Sends a command and waits for its reply, which it gives with the names of the scenario.
    pub(super) fn execute(&mut self, command: &str, arguments: &Map<String, Value>) -> Result<Value, Trouble> {
        let deadline = Instant::now() + self.patience;
        let arguments = self.names.arguments(arguments);
        self.quitting |= command == "quit";
        self.wire.send(command, &arguments, deadline).map_err(|error| self.trouble(error, command))?;
        loop {
            match self.wire.receive(Some(deadline)) {
                Ok(Message::Reply(reply)) => return Ok(self.names.reply(&reply)),
                Ok(Message::Event(event)) => self.keep(&event),
                Ok(Message::Greeting(again)) => {
                    return Err(self.trouble(WireError::Nonsense(again.to_string()), command));
                }
                Err(error) => return Err(self.trouble(error, command)),
            }
        }
    }

    /// What it printed to standard output since the last call. That is more than what a qemu-io command
    /// prints: drive-backup tells there of the image it creates.
    pub(super) fn new_output(&mut self) -> String {
        let bytes = bytes_from(&self.running.stdout, self.shown);
        self.shown += bytes.len() as u64;
        self.names.to_scenario(&String::from_utf8_lossy(&bytes))
    }

    /// Makes sure that every event has come which QEMU emitted before now: several of them can come of one
    /// act of QEMU, one write to the socket each, and a reply overtakes none of them. A QEMU that does not
    /// answer is found out by the next command.
    pub(super) fn settle(&mut self) {
        if !self.quitting {
            let _ = self.execute("query-version", &Map::new());
        }
    }

    /// Takes in what has come without waiting; whether QEMU is still there is found out by the next command.
    pub(super) fn drain(&mut self) {
        while let Ok(message) = self.wire.receive(None) {
            if let Message::Event(event) = message {
                self.keep(&event);
            }
        }
    }

    /// Waits for one more event until `deadline`: whether it came.
    pub(super) fn wait_event(&mut self, deadline: Instant) -> Result<bool, Trouble> {
        match self.wire.receive(Some(deadline)) {
            Ok(Message::Event(event)) => {
                self.keep(&event);
                Ok(true)
            }
            Ok(Message::Reply(other) | Message::Greeting(other)) => {
                Err(self.trouble(WireError::Nonsense(other.to_string()), "no command"))
            }
            Err(WireError::Late) => Ok(false),
            Err(WireError::Closed) if self.quitting => Ok(false),
            Err(error) => Err(self.trouble(error, "no command")),
        }
    }

    /// The events so far, oldest first.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Ends it in order and gives all of its events.
    pub(super) fn shut_down(mut self) -> Result<Vec<Event>, Trouble> {
        if !self.quitting {
            match self.execute("quit", &Map::new()) {
                Ok(_) => {}
                // The reply can be lost when QEMU ends; how it ended is what counts.
                Err(_) if self.ended_in_order() => {}
                Err(trouble) => return Err(trouble),
            }
        }
        self.read_to_the_end(Instant::now() + self.patience)?;
        match self.running.wait(Instant::now() + self.patience) {
            Ok(Some(status)) if status.success() => Ok(self.events.split_off(0)),
            Ok(Some(status)) => Err(self.told(TroubleKind::Died(how(status)))),
            Ok(None) => Err(self.trouble(WireError::Late, "quit")),
            Err(error) => Err(self.told(TroubleKind::Surroundings(error.to_string()))),
        }
    }

    /// Ends it as SIGKILL does and gives all of its events.
    pub(super) fn kill(mut self) -> Vec<Event> {
        self.running.kill();
        // What had been sent is still in the socket.
        let _ = self.read_to_the_end(Instant::now() + self.patience);
        self.events.split_off(0)
    }

    fn read_to_the_end(&mut self, deadline: Instant) -> Result<(), Trouble> {
        loop {
            match self.wire.receive(Some(deadline)) {
                Ok(Message::Event(event)) => self.keep(&event),
                Ok(_) => {}
                Err(WireError::Closed) => return Ok(()),
                Err(error) => return Err(self.trouble(error, "quit")),
            }
        }
    }

    fn ended_in_order(&mut self) -> bool {
        let ended = self.running.wait(Instant::now() + TO_END);
        ended.is_ok_and(|status| status.is_some_and(|status| status.success()))
    }

    fn keep(&mut self, event: &Value) {
        let mut event = self.names.reply(event);
        let name = event.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
        let data = event.get_mut("data").map(Value::take).unwrap_or_default();
        self.events.push(Event { name: name.into(), data: data.into() });
    }

    fn trouble(&mut self, error: WireError, what: &str) -> Trouble {
        let kind = match error {
            WireError::Closed => match self.running.wait(Instant::now() + TO_END) {
                Ok(Some(status)) => TroubleKind::Died(how(status)),
                _ => TroubleKind::Nonsense("it closed its monitor and goes on".to_owned()),
            },
            WireError::Late => TroubleKind::Hung { what: what.to_owned(), seconds: self.patience.as_secs() },
            WireError::Nonsense(line) => TroubleKind::Nonsense(line),
            WireError::Socket(why) => TroubleKind::Surroundings(why),
        };
        self.told(kind)
    }

    fn told(&self, kind: TroubleKind) -> Trouble {
        Trouble { kind, output: output(&self.running, &self.names) }
    }
}

/// A QEMU that has not said anything yet.
struct Starting<'n> {
    running: Running,
    names: &'n Names,
}

impl Starting<'_> {
    fn accept(&mut self, listener: &UnixListener, deadline: Instant) -> Result<UnixStream, Trouble> {
        listener.set_nonblocking(true).map_err(|error| self.failed(error.to_string()))?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.failed(error.to_string())),
            }
            match self.running.wait(Instant::now() + Duration::from_millis(2)) {
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return Err(self.failed("it does not open its monitor".to_owned())),
                Ok(Some(status)) => return Err(self.failed(how(status))),
                Err(error) => return Err(self.failed(error.to_string())),
            }
        }
    }

    fn failed(&self, why: String) -> Trouble {
        Trouble { kind: TroubleKind::NotStarted(why), output: output(&self.running, self.names) }
    }
}

/// The command line: no machine, no devices, no display, nothing of the user's configuration; the monitor
/// connects to `socket`. The virtual CPUs (there are none) never run.
fn arguments(socket: &str) -> Vec<OsString> {
    let chardev = format!("socket,id=mon,path={socket}");
    ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-chardev"]
        .into_iter()
        .chain([chardev.as_str(), "-mon", "chardev=mon,mode=control"])
        .map(OsString::from)
        .collect()
}

fn output(running: &Running, names: &Names) -> String {
    let text = text(&running.stderr) + &text(&running.stdout);
    names.to_scenario(&text)
}
