//! What can go wrong with a real QEMU that is no answer of QEMU: typed, with what it printed.
//!
//! A trouble is never a difference between simulator and QEMU. Must never hold anything that has to be
//! cleaned up.

use std::fmt;
use std::process::ExitStatus;

/// A QEMU (or qemu-img) that did not behave like a program that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What happened.
    pub kind: TroubleKind,
    /// What the program had printed, standard error first, with the names of the scenario.
    pub output: String,
}

impl Trouble {
    /// The surroundings failed, for the reason `why`; nothing was printed.
    pub(in crate::conform) fn surroundings(why: String) -> Trouble {
        Trouble { kind: TroubleKind::Surroundings(why), output: String::new() }
    }
}

/// The kinds of trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// It could not be started, or not be connected to.
    NotStarted(String),
    /// It ended by itself; how, for people.
    Died(String),
    /// It did not answer in time; to what, and after how many seconds.
    Hung {
        /// What it was asked.
        what: String,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// It said something that is not in the protocol.
    Nonsense(String),
    /// The surroundings failed: a full disk, a directory that can't be used.
    Surroundings(String),
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TroubleKind::NotStarted(why) => write!(f, "QEMU did not start: {why}"),
            TroubleKind::Died(how) => write!(f, "QEMU ended by itself: {how}"),
            TroubleKind::Hung { what, seconds } => write!(f, "QEMU hangs: no answer to {what} within {seconds}s"),
            TroubleKind::Nonsense(line) => write!(f, "QEMU said what is not QMP: {line}"),
            TroubleKind::Surroundings(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for Trouble {}

/// How a process ended, for people.
pub(super) fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let name = match signal {
                4 => " (SIGILL)",
                6 => " (SIGABRT, as after a failed assertion)",
                7 => " (SIGBUS)",
                9 => " (SIGKILL)",
                11 => " (SIGSEGV)",
                15 => " (SIGTERM)",
                _ => "",
            };
            format!("signal {signal}{name}")
        }
        (None, None) => "no status".to_owned(),
    }
}
