//! A small machine: a host, a qcow2 node over blkdebug over a file, and a record of what happens.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use backsim::block::open::{BackingRef, BlkdebugOptions, ChildRef, CommonOptions, DriverOptions, OpenOptions};
use backsim::block::qcow2::{Qcow2, Qcow2CreateOptions, Qcow2Options};
use backsim::block::{Block, BlockConfig, FileLocks, Node, Timing};
use backsim::quirks::{Compat, Quirks};
use backsim::sim::{Choices, Sim, TraceEvent, WaitQueue};
use backsim::store::Host;

/// One QEMU process.
pub struct Rig {
    pub block: Rc<Block>,
    log: Rc<RefCell<Log>>,
}

#[derive(Default)]
struct Log {
    entries: Vec<String>,
    /// Begins of flushes of the file below blkdebug, while one of blkdebug itself runs.
    flushes_below: Option<u32>,
}

impl Rig {
    pub fn new(host: Host) -> Rig {
        let rig = Rig::quiet(host);
        let reader = rig.log.clone();
        rig.block.sim.trace().subscribe(move |stamped| reader.borrow_mut().note(&stamped.event));
        rig
    }

    /// A machine that records nothing.
    pub fn quiet(host: Host) -> Rig {
        let sim = Sim::new(Choices::qemu());
        let log: Rc<RefCell<Log>> = Rc::default();
        let block = Block::new(BlockConfig {
            sim,
            quirks: Quirks::of(Compat::Qemu72),
            host: Rc::new(host),
            locks: Rc::new(FileLocks::default()),
            timing: Timing::instant(),
            seed: 0,
            program: "backsim-test",
            process: 1,
        });
        Rig { block, log }
    }

    /// Runs main-loop code to its end.
    pub fn run<T: 'static>(&self, body: impl Future<Output = T> + 'static) -> T {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let done = Rc::new(WaitQueue::default());
        let (result, wake, sim) = (slot.clone(), done.clone(), self.block.sim.clone());
        let root = async move {
            let inner = sim.clone();
            sim.bh_frame("body", async move {
                let value = body.await;
                *result.borrow_mut() = Some(value);
                wake.wake_all(&inner);
            });
            done.wait(&sim, "the body of the test").await;
        };
        self.block.sim.run("test", root).expect("nothing gets stuck");
        slot.take().expect("the body has ended")
    }

    /// Runs request code in a coroutine to its end.
    pub fn request<T: 'static>(&self, body: impl Future<Output = T> + 'static) -> T {
        let sim = self.block.sim.clone();
        self.run(async move { sim.run_coroutine("request", body).await })
    }

    /// Formats a new image called `name`.
    pub fn create(&self, name: &'static str, options: Qcow2CreateOptions) {
        self.block.host.create(name).expect("the name is free");
        let block = self.block.clone();
        self.run(async move {
            let file = block.open(&file_options(name)).await.expect("the file is there");
            let (core, id) = (block.clone(), file.id);
            let created =
                block.sim.run_coroutine("create", async move { Qcow2::create(&core, id, &options).await }).await;
            created.expect("the options are valid");
            block.unref(file.id).await;
        });
    }

    /// Opens the image called `name` over blkdebug.
    pub fn open(&self, name: &'static str, common: CommonOptions) -> Rc<Node> {
        let block = self.block.clone();
        self.run(async move { block.open(&image_options(name, common)).await.expect("a valid image") })
    }

    pub fn close(&self, node: Rc<Node>) {
        let block = self.block.clone();
        self.run(async move { block.unref(node.id).await });
    }

    /// What happened since the last call.
    pub fn take_log(&self) -> String {
        std::mem::take(&mut self.log.borrow_mut().entries).join(" ")
    }
}

pub fn file_options(name: &str) -> OpenOptions {
    OpenOptions {
        node_name: None,
        common: CommonOptions::default(),
        driver: DriverOptions::File { filename: name.to_owned() },
        own: Default::default(),
    }
}

pub fn image_options(name: &str, common: CommonOptions) -> OpenOptions {
    let blkdebug = OpenOptions {
        node_name: Some("blk".to_owned()),
        common: CommonOptions::default(),
        driver: DriverOptions::Blkdebug(Box::new(BlkdebugOptions::over(ChildRef::Inline(Box::new(OpenOptions {
            node_name: Some("file".into()),
            ..file_options(name)
        }))))),
        own: Default::default(),
    };
    OpenOptions {
        node_name: Some("image".to_owned()),
        common,
        driver: DriverOptions::Qcow2 {
            file: ChildRef::Inline(Box::new(blkdebug)),
            backing: BackingRef::FromImage,
            options: Qcow2Options::default(),
        },
        own: Default::default(),
    }
}

impl Log {
    fn note(&mut self, event: &TraceEvent) {
        match event {
            TraceEvent::Blkdebug { event, .. } if !event.starts_with("pwritev") => self.entries.push((*event).into()),
            TraceEvent::RequestBegin { node, operation, offset, bytes, .. } if &**node == "blk" => {
                let letter = match *operation {
                    "read" => "R",
                    "write" => "W",
                    "write-zeroes" => "Z",
                    "discard" => "D",
                    _ => {
                        self.flushes_below = Some(0);
                        return;
                    }
                };
                self.entries.push(format!("{letter}({})", region(*offset, *bytes)));
            }
            // A flush of blkdebug that is not elided flushes its child twice: as its own disk flush
            // and as one of the children.
            TraceEvent::RequestBegin { node, operation: "flush", .. } if &**node == "file" => {
                let count = self.flushes_below.map_or(0, |n| n + 1);
                self.flushes_below = Some(count);
                if count == 2 {
                    self.entries.push("F".into());
                }
            }
            _ => {}
        }
    }
}

/// Clusters of a fresh 64 MiB image by what they hold; a length that is not a cluster is shown.
fn region(offset: u64, bytes: u64) -> String {
    let name = match offset >> 16 {
        0 => "hdr",
        1 => "rt",
        2 => "rb",
        3 => "l1",
        4 => "l2",
        _ => "data",
    };
    let start = if offset & 0xffff == 0 { String::new() } else { format!("+{:#x}", offset & 0xffff) };
    if bytes == 0x10000 { format!("{name}{start}") } else { format!("{name}{start},{bytes:#x}") }
}
