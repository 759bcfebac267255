//! The guard: ends real QEMUs when backsim itself is killed.
//!
//! A killed process runs no destructors, and without `unsafe` it can't ask the kernel to take its children
//! along. So one shell waits on a pipe whose other end only this process holds: it hears which children
//! there are, and kills them when the pipe closes. Must never kill what it was told to forget.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What the shell does. Signals that end a whole group of processes must not end it first.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT PIPE
all=' '
while read -r what pid; do
  case $what in
    watch) all="$all$pid " ;;
    forget) case $all in *" $pid "*) all="${all%% $pid *} ${all#* $pid }" ;; esac ;;
  esac
done
for pid in $all; do kill -9 "$pid"; done
"#;

static GUARD: Mutex<Option<Child>> = Mutex::new(None);

/// Tells the guard of the child `pid`.
pub(super) fn watch(pid: u32) {
    tell("watch", pid);
}

/// The child `pid` has been waited for: its number may soon mean another process.
pub(super) fn forget(pid: u32) {
    tell("forget", pid);
}

/// A guard that can't be had is no reason to stop: it is only needed when backsim is killed.
fn tell(what: &str, pid: u32) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = start().ok();
    }
    let pipe = guard.as_mut().and_then(|child| child.stdin.as_mut());
    if let Some(pipe) = pipe {
        let _ = writeln!(pipe, "{what} {pid}");
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
        let mut guard = start().expect("a shell");
        let pipe = guard.stdin.as_mut().expect("a pipe");
        for child in [&watched, &forgotten, &also] {
            writeln!(pipe, "watch {}", child.id()).expect("told");
        }
        writeln!(pipe, "forget {}", forgotten.id()).expect("told");
        drop(guard.stdin.take());
        guard.wait().expect("ended");
        assert_eq!(watched.wait().expect("ended").signal(), Some(9));
        assert_eq!(also.wait().expect("ended").signal(), Some(9));
        assert_eq!(forgotten.try_wait().expect("known"), None);
        forgotten.kill().expect("killed");
        forgotten.wait().expect("ended");
    }
}
