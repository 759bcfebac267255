//! The user's side: two streams, colours or not, and one line that shows how far long work has come.
//!
//! Standard output carries only what a command is asked to give; everything else goes to standard error.
//! Nothing that is written to a file or a pipe may contain a colour or a progress line.

use std::io::{self, IsTerminal, Write};

use crate::report::Style;

/// Where a command writes, and what it may assume about the reader.
pub struct Terminal<'a> {
    /// What was asked for.
    pub out: &'a mut dyn Write,
    /// Errors and remarks.
    pub err: &'a mut dyn Write,
    /// How to paint what goes to standard output.
    pub style: Style,
    /// Whether a line on standard error may come and go.
    pub progress: bool,
    /// Whether this is an unattended run, where nothing may be blessed.
    pub ci: bool,
}

/// What the environment says about both streams.
pub struct Surroundings {
    /// As in [`Terminal`].
    pub style: Style,
    /// As in [`Terminal`].
    pub progress: bool,
    /// As in [`Terminal`].
    pub ci: bool,
}

impl Surroundings {
    /// Asks the environment.
    pub fn look() -> Surroundings {
        let set = |name| std::env::var_os(name).is_some_and(|value: std::ffi::OsString| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Surroundings {
            style: Style::coloured(io::stdout().is_terminal() && !dumb && !set("NO_COLOR")),
            progress: io::stderr().is_terminal() && !dumb,
            ci: set("CI"),
        }
    }
}

/// The line that shows how far work has come; silent where nobody looks.
pub struct Progress {
    total: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    /// Begins `total` pieces of work.
    pub fn new(total: usize) -> Progress {
        Progress { total, done: 0, shown: false }
    }

    /// Shows that `what` is being worked on.
    pub fn show(&mut self, terminal: &mut Terminal<'_>, what: &str) -> io::Result<()> {
        if !terminal.progress {
            return Ok(());
        }
        self.shown = true;
        let what: String = what.chars().take(60).collect();
        write!(terminal.err, "\r\x1b[K[{}/{}] {what}", self.done, self.total)?;
        terminal.err.flush()
    }

    /// Counts one piece as done.
    pub fn advance(&mut self) {
        self.done += 1;
    }

    /// Takes the line away, so that something else can be written.
    pub fn hide(&mut self, terminal: &mut Terminal<'_>) -> io::Result<()> {
        if self.shown {
            self.shown = false;
            terminal.err.write_all(b"\r\x1b[K")?;
            terminal.err.flush()?;
        }
        Ok(())
    }
}
