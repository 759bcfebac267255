//! One process of qemu-img: its block layer, what it prints, how it opens and closes images.
//!
//! Must never leave an image open or a lock behind, however a subcommand ends.

use std::rc::Rc;

use crate::block::open::{BackingRef, ChildRef, DriverOptions, OpenOptions};
use crate::block::qcow2::CUT_HINT;
use crate::block::{Backend, Block, BlockConfig, Node, NodeId, Perm, Timing};
use crate::quirks::Quirks;

use super::{ImgEnv, ImgOutput};

/// How a subcommand ends before its normal end: what it still prints on standard error, and its status.
#[derive(Debug, Default)]
pub(super) struct Exit {
    pub(super) message: String,
    pub(super) status: i32,
    /// The message has no newline of its own.
    pub(super) open_line: bool,
    /// The subcommand in whose name it is told.
    pub(super) spoken_by: Option<String>,
}

/// Result of whatever may end the process; a plain end is the exit status.
pub(super) type Outcome<T> = Result<T, Exit>;

/// How an image is to be opened; the default is read-only, with its backing chain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// For writing.
    pub(super) write: bool,
    /// And for changing its length.
    pub(super) resize: bool,
    /// Without its backing file.
    pub(super) no_backing: bool,
    /// Only metadata are looked at.
    pub(super) no_io: bool,
    /// For `check`.
    pub(super) check: bool,
    /// Whoever else uses the image (`-U`).
    pub(super) force_share: bool,
    /// Nobody may write to it or resize it meanwhile (`BDRV_O_NO_SHARE`).
    pub(super) no_share: bool,
    /// Discards reach the file.
    pub(super) unmap: bool,
}

/// An open image.
pub(super) struct Image {
    pub(super) backend: Rc<Backend>,
    pub(super) node: Rc<Node>,
    /// The name that it was opened by.
    pub(super) filename: String,
}

/// The process.
pub(super) struct Process {
    pub(super) block: Rc<Block>,
}

impl Process {
    /// A new process in `env`.
    pub(super) fn new(env: &ImgEnv) -> Process {
        let process = env.next_process();
        let block = Block::new(BlockConfig {
            sim: env.sim.clone(),
            quirks: env.quirks,
            host: env.host.clone(),
            locks: env.locks.clone(),
            // A scenario's costs are those of the machine's nodes.
            timing: Timing::instant(),
            seed: env.seed.wrapping_add(u64::from(process)),
            program: "qemu-img",
            process,
        });
        Process { block }
    }

    pub(super) fn quirks(&self) -> &Quirks {
        &self.block.quirks
    }

    /// The end of the process; without a status it was killed.
    pub(super) fn end(&self, status: Option<i32>) -> ImgOutput {
        self.block.abandon();
        ImgOutput {
            stdout: self.block.stdout.take().into_text(),
            stderr: self.block.stderr.take(),
            status: status.unwrap_or(137),
            aborted: self.block.aborted(),
        }
    }

    /// Writes to standard output.
    pub(super) fn print(&self, text: &str) {
        self.block.print(text.to_owned());
    }

    /// Writes a message to standard error (`error_report`).
    pub(super) fn report(&self, message: &str) {
        self.block.report_stderr(format!("qemu-img: {message}"));
    }

    /// Opens an image (`img_open`); the text of a failure is the whole message.
    pub(super) async fn try_open(&self, filename: &str, format: Option<&str>, how: How) -> Result<Image, String> {
        let opened = self.open_plain(filename, format, how).await;
        opened.map_err(|text| format!("Could not open '{filename}': {text}"))
    }

    /// The same without the program's own words around the block layer's.
    pub(super) async fn open_plain(&self, filename: &str, format: Option<&str>, how: How) -> Result<Image, String> {
        let opened = self.open_node(filename, format, how).await;
        let node = opened.map_err(|text| self.with_hint(text))?;
        let mut perm = if how.no_io { Perm::NONE } else { Perm::CONSISTENT_READ };
        if how.write {
            perm |= Perm::WRITE;
        }
        if how.resize {
            perm |= Perm::RESIZE;
        }
        let shared = if how.no_share { Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED } else { Perm::ALL };
        let backend = self.block.new_backend(None, node.id, perm, shared);
        // The backend has a reference of its own; without it the image closes here.
        self.block.unref(node.id).await;
        match backend {
            Ok(backend) => Ok(Image { backend, node, filename: filename.to_owned() }),
            Err(text) => Err(self.with_hint(text)),
        }
    }

    async fn open_node(&self, filename: &str, format: Option<&str>, how: How) -> Result<Rc<Node>, String> {
        if let Some(protocol) = not_modelled_protocol(filename) {
            return Err(format!("not modelled: protocol '{protocol}'; images are plain files"));
        }
        let mut options = self.block.options_for(filename, format)?;
        options.common.read_only = Some(!how.write);
        options.common.discard_unmap = Some(how.unmap);
        options.common.force_share = Some(how.force_share);
        options.common.no_io = how.no_io;
        options.common.check = how.check;
        if how.no_backing
            && let DriverOptions::Qcow2 { backing, .. } = &mut options.driver
        {
            *backing = BackingRef::None;
        }
        settle_file(&mut options, how);
        let node = self.block.open(&options).await?;
        if format.is_none() && how.write && node.driver_name() == Some("raw") {
            self.warn_probed_raw(filename);
        }
        Ok(node)
    }

    /// A raw image whose format was only guessed must not be written to without a warning.
    fn warn_probed_raw(&self, filename: &str) {
        let warning = format!(
            "WARNING: Image format was not specified for '{filename}' and probing guessed raw.\n         Automatically \
             detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions."
        );
        self.block.report_stderr(warning);
    }

    /// An error with its hint, which only programs with a standard error of their own print.
    pub(super) fn with_hint(&self, text: String) -> String {
        if text.contains("Failed to get ") && text.ends_with(" lock") {
            let file = self.block.locks.last_refused();
            return format!("{text}\nIs another process using the image [{file}]?");
        }
        if text.ends_with("is inconsistent and cannot be used") {
            return text + "\nTry block-dirty-bitmap-remove to delete this bitmap from disk";
        }
        if text.contains("extra metadata in snapshot table entry") {
            return text + "\n" + CUT_HINT;
        }
        text
    }

    /// Opens an image or ends the process with status 1.
    pub(super) async fn open(&self, filename: &str, format: Option<&str>, how: How) -> Outcome<Image> {
        self.try_open(filename, format, how).await.map_err(failure)
    }

    /// Tells now why a subcommand ends, so that what closing the images tells comes after it.
    pub(super) fn told<T>(&self, outcome: Outcome<T>) -> Outcome<T> {
        outcome.map_err(|exit| {
            if exit.message.is_empty() {
                return exit;
            }
            if exit.open_line {
                self.block.stderr.borrow_mut().push_str(&format!("qemu-img: {}", exit.message));
            } else if let Some(subcommand) = exit.spoken_by {
                self.block.report_stderr(format!("qemu-img {subcommand}: {}", exit.message));
            } else {
                self.report(&exit.message);
            }
            Exit { status: exit.status, ..Exit::default() }
        })
    }

    /// Closes an image (`blk_unref`).
    pub(super) async fn close(&self, image: Image) {
        self.block.delete_backend(&image.backend).await;
    }

    /// Runs block-layer code in a coroutine, as main-loop code has to.
    pub(super) async fn co<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        self.block.sim.run_coroutine("qemu-img", work).await
    }
}

/// The file below a format has the format's sharing; the block layer passes the rest on.
fn settle_file(options: &mut OpenOptions, how: How) {
    if let DriverOptions::Raw { file, .. } | DriverOptions::Qcow2 { file, .. } = &mut options.driver
        && let ChildRef::Inline(file) = file
    {
        file.common.no_io = how.no_io;
    }
}

/// The protocol in front of a name that does not mean a plain file.
fn not_modelled_protocol(filename: &str) -> Option<&str> {
    let (protocol, _) = filename.split_once(':')?;
    (!protocol.is_empty() && !protocol.contains('/') && protocol != "json").then_some(protocol)
}

/// Ends the process with a message and status 1.
pub(super) fn failure(message: impl Into<String>) -> Exit {
    Exit { message: message.into(), status: 1, ..Exit::default() }
}

/// Ends the process with a message of what backsim has not and status 1.
pub(super) fn not_modelled(what: &str, instead: &str) -> Exit {
    failure(format!("not modelled: {what}; {instead}"))
}

/// The nodes of an image's chain, the image itself first.
pub(super) fn chain(block: &Block, top: NodeId) -> Vec<NodeId> {
    let mut nodes = vec![top];
    let mut next = block.node(top).backing();
    while let Some(id) = next {
        nodes.push(id);
        next = block.node(id).backing();
    }
    nodes
}
