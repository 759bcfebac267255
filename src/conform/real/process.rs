//! Programs that are run with a deadline, their output in files.
//!
//! Output goes to files and not to pipes, so that a program that prints much never waits for its reader and
//! what it printed is still there when it is gone. Must never leave a child behind: whoever drops a
//! [`Running`] kills it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::conform::guard;

/// The most that is read of what a program printed, in bytes.
const MOST_OUTPUT: u64 = 16 << 20;

/// A child process and the files it prints to.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// Set when the child has been waited for.
    status: Option<ExitStatus>,
    /// Standard output.
    pub(super) stdout: PathBuf,
    /// Standard error.
    pub(super) stderr: PathBuf,
}

impl Running {
    /// Starts `program`, called `name` in its own messages, in the directory `dir`; its output goes to
    /// `TAG.out` and `TAG.err` there.
    pub(super) fn start(
        program: &Path,
        name: &str,
        args: &[OsString],
        dir: &Path,
        tag: &str,
    ) -> std::io::Result<Running> {
        let stdout = dir.join(format!("{tag}.out"));
        let stderr = dir.join(format!("{tag}.err"));
        let child = Command::new(program)
            .arg0(name)
            .args(args)
            .current_dir(dir)
            // Messages of the C library are part of transcripts.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()?;
        guard::process(child.id());
        Ok(Running { child, status: None, stdout, stderr })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
            if self.status.is_some() {
                guard::forget_process(self.child.id());
            }
        }
        Ok(self.status)
    }

    /// Waits for its end until `deadline`.
    pub(super) fn wait(&mut self, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
        // Most programs end within a millisecond or two, so the first looks come quickly.
        let mut pause = Duration::from_micros(200);
        loop {
            let status = self.ended()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Ends it as SIGKILL does and waits until it is gone.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            // Both fail only for a process that has been waited for.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
            guard::forget_process(self.child.id());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The bytes of the file `path` from byte `from` on; what can't be read is not there.
pub(super) fn bytes_from(path: &Path, from: u64) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(MOST_OUTPUT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

/// The text of the file `path`.
pub(super) fn text(path: &Path) -> String {
    String::from_utf8_lossy(&bytes_from(path, 0)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Running {
        let args = ["-c", script].map(OsString::from);
        Running::start(Path::new("/bin/sh"), "sh", &args, dir, "t").expect("a shell")
    }

    fn within(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[test]
    fn output_and_status_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut running = shell(dir.path(), "echo out; echo err >&2; exit 3");
        let status = running.wait(within(5000)).expect("waited");
        assert_eq!(status.and_then(|status| status.code()), Some(3));
        assert_eq!(text(&running.stdout), "out\n");
        assert_eq!(bytes_from(&running.stderr, 1), b"rr\n");
    }

    #[test]
    fn what_hangs_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut running = shell(dir.path(), "exec sleep 1000");
        assert_eq!(running.wait(within(20)).expect("waited"), None);
        running.kill();
        assert!(running.ended().expect("known").is_some());
    }
}
