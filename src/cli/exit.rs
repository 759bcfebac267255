//! Exit statuses: the one place where their meaning is written down.
//!
//! `--help`, the man page and README's table are held against [`Exit::ALL`] by tests. Nothing else may
//! invent a status; whoever ends the process does it with one of these.

use std::process::ExitCode;

/// How a command ended. Where several apply, the highest of 1, 2 and 3 is what the process returns: a
/// difference must not hide a broken scenario, and neither may hide a broken backsim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// All is well.
    #[default]
    Good = 0,
    /// A transcript differs, an expectation failed, or an invariant was violated.
    Different = 1,
    /// A mistake in arguments, in a scenario, or in an image or other file that was named.
    Mistake = 2,
    /// An invariant of backsim's own is broken: a defect of backsim, not of the scenario.
    Broken = 3,
    /// Nothing was selected, so nothing was done.
    Nothing = 4,
}

impl Exit {
    /// All of them, in ascending order.
    pub const ALL: [Exit; 5] = [Exit::Good, Exit::Different, Exit::Mistake, Exit::Broken, Exit::Nothing];

    /// What it means, as help, man page and README say it.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Good => "all well",
            Exit::Different => "a difference, a failed expectation or a violated invariant",
            Exit::Mistake => "a mistake in arguments, scenario or image",
            Exit::Broken => "a broken invariant of backsim's own; please report it",
            Exit::Nothing => "nothing selected",
        }
    }

    /// The number that the process returns.
    pub fn status(self) -> u8 {
        self as u8
    }

    /// All statuses with their meanings, for help texts.
    pub fn table() -> String {
        Exit::ALL.iter().map(|exit| format!("  {}  {}\n", exit.status(), exit.meaning())).collect()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}
