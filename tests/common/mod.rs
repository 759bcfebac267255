//! What the tests of qemu-img have in common: a simulated host to run it in, and the real tools.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use backsim::block::FileLocks;
use backsim::img::{ImgEnv, ImgOutput, run};
use backsim::quirks::Compat;
use backsim::sim::{Choices, Sim};
use backsim::store::Host;

/// A simulated host with nobody on it but qemu-img.
pub struct Bench {
    pub env: Rc<ImgEnv>,
}

impl Bench {
    pub fn new(host: Host, compat: Compat) -> Bench {
        let sim = Sim::new(Choices::qemu());
        let env =
            ImgEnv::new(sim, backsim::quirks::Quirks::of(compat), Rc::new(host), Rc::new(FileLocks::default()), 1);
        Bench { env: Rc::new(env) }
    }

    pub fn memory(compat: Compat) -> Bench {
        Bench::new(Host::memory(), compat)
    }

    pub fn in_dir(dir: &Path, compat: Compat) -> Bench {
        Bench::new(Host::in_dir(dir), compat)
    }

    /// Runs qemu-img; a deadlock is a failed test.
    pub fn run(&self, args: &[&str]) -> ImgOutput {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let env = self.env.clone();
        self.env.sim.run("test", async move { run(&env, &args).await }).expect("qemu-img comes to an end")
    }

    /// Runs a line, split at spaces; `''` is an empty argument.
    pub fn line(&self, line: &str) -> ImgOutput {
        self.run(&split(line))
    }

    /// Runs a line that must succeed; what it printed.
    pub fn ok(&self, line: &str) -> String {
        let output = self.line(line);
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{line}");
        output.stdout
    }
}

pub fn split(line: &str) -> Vec<&str> {
    line.split_whitespace().map(|word| if word == "''" { "" } else { word }).collect()
}

/// A real tool: in the directory `BACKSIM_QEMU_BIN`, else in the path.
pub fn tool(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("BACKSIM_QEMU_BIN").into_iter().chain(std::env::var_os("PATH"));
    let found = dirs.flat_map(|dirs| std::env::split_paths(&dirs).collect::<Vec<_>>()).map(|dir| dir.join(name));
    found.into_iter().find(|path| path.is_file())
}

/// The real qemu-img and qemu-io, or a loud word that a test is skipped.
pub struct Real {
    img: PathBuf,
    io: PathBuf,
}

impl Real {
    pub fn find(test: &str) -> Option<Real> {
        match (tool("qemu-img"), tool("qemu-io")) {
            (Some(img), Some(io)) => Some(Real { img, io }),
            _ => {
                eprintln!("SKIPPED: {test}: no qemu-img and qemu-io in the path or in BACKSIM_QEMU_BIN");
                None
            }
        }
    }

    pub fn img(&self, dir: &Path, args: &[&str]) -> ImgOutput {
        let output = Command::new(&self.img).args(args).current_dir(dir).env("TZ", "UTC").output();
        let output = output.expect("the tool that was found can be started");
        // The tool calls itself by the path it was started with.
        let own = self.img.display().to_string();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&own, "qemu-img");
        ImgOutput {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            status: output.status.code().unwrap_or(-1),
            aborted: None,
        }
    }

    pub fn io(&self, dir: &Path, file: &str, commands: &[&str]) {
        let mut command = Command::new(&self.io);
        command.current_dir(dir).args(["-d", "unmap"]);
        for each in commands {
            command.args(["-c", each]);
        }
        let output = command.arg(file).output().expect("the tool that was found can be started");
        assert!(output.status.success(), "qemu-io {commands:?} {file}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Opens an image for writing and dies.
    pub fn crash(&self, dir: &Path, file: &str) {
        let output = Command::new(&self.io).current_dir(dir).args(["-c", "abort", file]).output();
        assert!(!output.expect("the tool that was found can be started").status.success());
    }

    pub fn version(&self) -> String {
        self.img(Path::new("."), &["--version"]).stdout
    }
}

/// Without what depends on the host or the run: what a file takes on the disk, names of nodes.
pub fn mask(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let masked = if let Some(at) = line.find("disk size: ") {
            format!("{}disk size: SIZE\n", &line[..at])
        } else if let Some(at) = line.find("\"actual-size\": ") {
            format!("{}\"actual-size\": SIZE\n", &line[..at])
        } else if let Some(at) = line.find("#block") {
            let rest = line[at + 6..].trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{}NODE_NAME{rest}", &line[..at])
        } else {
            line.to_owned()
        };
        out.push_str(&masked);
    }
    out
}

/// `FILE OFFSET BYTE…`, all in hexadecimal: bytes that a script overwrites.
pub fn poke(line: &str) -> (&str, u64, Vec<u8>) {
    let mut words = line.split(' ');
    let file = words.next().expect("a file");
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("a hexadecimal number");
    let offset = number(words.next().expect("an offset"));
    (file, offset, words.map(|word| number(word) as u8).collect())
}
