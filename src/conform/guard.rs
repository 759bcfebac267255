//! The guard: ends real QEMUs and removes their files when backsim itself is killed.
//!
//! A killed process runs no destructors, and without `unsafe` it can't ask the kernel to take its children
//! along. So one shell waits on a pipe whose other end only this process holds: it hears which children
//! and directories there are, and does away with them when the pipe closes. Must never touch what it was
//! told to forget.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What the shell does. Signals that end a whole group of processes must not end it first.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT PIPE
pids=' '
dirs=' '
while read -r what name; do
  case $what in
    process) pids="$pids$name " ;;
    directory) dirs="$dirs$name " ;;
    forget)
      case $pids in *" $name "*) pids="${pids%% $name *} ${pids#* $name }" ;; esac
      case $dirs in *" $name "*) dirs="${dirs%% $name *} ${dirs#* $name }" ;; esac ;;
  esac
done
for pid in $pids; do kill -9 "$pid"; done
for dir in $dirs; do rm -rf "$dir"; done
"#;

static GUARD: Mutex<Option<Child>> = Mutex::new(None);

/// Tells the guard of the child `pid`.
pub(super) fn process(pid: u32) {
    tell("process", &pid.to_string());
}

/// The child `pid` has been waited for: its number may soon mean another process.
pub(super) fn forget_process(pid: u32) {
    tell("forget", &pid.to_string());
}

/// A directory that goes with this process, and takes its name back when it is dropped.
#[derive(Debug)]
pub(super) struct Directory(Option<String>);

impl Directory {
    /// Tells the guard of `path`; one whose name a shell would take apart is left to itself.
    pub(super) fn new(path: &Path) -> Directory {
        let harmless = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c));
        let name = path.to_str().filter(harmless).map(str::to_owned);
        if let Some(name) = &name {
            tell("directory", name);
        }
        Directory(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(name) = &self.0 {
            tell("forget", name);
        }
    }
}

/// A guard that can't be had is no reason to stop: it is only needed when backsim is killed.
fn tell(what: &str, name: &str) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = start().ok();
    }
    let pipe = guard.as_mut().and_then(|child| child.stdin.as_mut());
    if let Some(pipe) = pipe {
        let _ = writeln!(pipe, "{what} {name}");
    }
}

fn start() -> std::io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_is_watched_ends_with_the_pipe() {
        let sleep = || Command::new("sleep").arg("1000").spawn().expect("sleep");
        let mut watched = sleep();
        let mut forgotten = sleep();
        let mut also = sleep();
        let dir = tempfile::tempdir().expect("a directory").keep();
        let mut guard = start().expect("a shell");
        let pipe = guard.stdin.as_mut().expect("a pipe");
        for child in [&watched, &forgotten, &also] {
            writeln!(pipe, "process {}", child.id()).expect("told");
        }
        writeln!(pipe, "forget {}\ndirectory {}", forgotten.id(), dir.display()).expect("told");
        drop(guard.stdin.take());
        guard.wait().expect("ended");
        assert!(!dir.exists());
        assert_eq!(watched.wait().expect("ended").signal(), Some(9));
        assert_eq!(also.wait().expect("ended").signal(), Some(9));
        assert_eq!(forgotten.try_wait().expect("known"), None);
        forgotten.kill().expect("killed");
        forgotten.wait().expect("ended");
    }
}
