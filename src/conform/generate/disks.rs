//! How disks and backup targets come into the world: images, nodes with and without a named file, backing images,
//! targets made by `blockdev-create`.
//!
//! Must never give two images one name unless the older one is no longer in use.

use super::guest::Mix;
use super::model::{Disk, Format};
use super::pick::size_value;
use super::world::{Level, World, command_step};
use super::yaml::{Args, Procedure, Step, Yaml, args};

/// A node that a backup writes to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Its name.
    pub(super) node: String,
    /// The node of its file, if that has a name and is the monitor's.
    pub(super) file_node: Option<String>,
    /// Its image, unless it is a null device.
    pub(super) image: Option<String>,
    /// Its format.
    pub(super) format: Format,
    /// Bytes of a cluster as far as backups care.
    pub(super) cluster: u64,
}

/// What a disk should be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Bytes at most.
    pub(super) limit: u64,
    /// Whether it may be something other than qcow2.
    pub(super) any_format: bool,
    /// Whether it may have an image below.
    pub(super) backing: bool,
}

impl Wish {
    /// Any qcow2 disk of at most `limit` bytes.
    pub(super) fn qcow2(limit: u64) -> Wish {
        Wish { limit, any_format: false, backing: false }
    }
}

/// `{driver: file, filename: …}` for an image.
pub(super) fn file(image: &str) -> Args {
    args().set("driver", "file").set("filename", path(image))
}

/// How an image is called in arguments.
pub(super) fn path(image: &str) -> String {
    format!("TEST_DIR/PID-{image}")
}

/// The step that runs a command of qemu-img on an image.
pub(super) fn qemu_img(command: &str, image: &str) -> Step {
    Step::new("qemu-img", vec![command.to_string(), path(image)])
}

/// The step that creates an image.
pub(super) fn image_step(image: &str, format: Format, size: u64, cluster: Option<u64>) -> Step {
    Step::new("image", image).with_if(format == Format::Raw, "format", "raw").with("size", size_value(size)).with_if(
        cluster.is_some(),
        "cluster-size",
        size_value(cluster.unwrap_or(0)),
    )
}

impl World {
    /// A new disk with some content; its place among the disks.
    pub(super) fn new_disk(&mut self, wish: Wish) -> usize {
        let disk = self.empty_disk(wish);
        let writes = self.rng.between(2, 5);
        self.guest_at(disk, writes, Mix::Writes);
        disk
    }

    /// A new disk to which nothing was written yet.
    pub(super) fn empty_disk(&mut self, wish: Wish) -> usize {
        let format = if wish.any_format {
            self.weighted(&[(5, Format::Qcow2), (3, Format::Raw), (1, Format::Null)])
        } else {
            Format::Qcow2
        };
        let image = format!("img{}", self.new_image());
        let size = self.disk_size(wish.limit);
        self.disk_of(wish, &image, format, size)
    }

    /// A new disk of the given kind on a new image of the given name.
    pub(super) fn disk_of(&mut self, wish: Wish, image: &str, format: Format, size: u64) -> usize {
        let node = self.new_drive();
        let mut disk = Disk::new(&node, format, size);
        if format == Format::Null {
            self.add_null(&node, size);
            self.disks.push(disk);
            return self.disks.len() - 1;
        }
        let cluster = if format == Format::Qcow2 { self.cluster_size(size) } else { None };
        if wish.backing && self.level == Level::Hard && format == Format::Qcow2 && self.one_in(3) {
            let base = self.base_image(size, cluster);
            self.step(Step::new("image", image).with("backing", base));
            disk.cluster = 65536;
            disk.backed = true;
        } else {
            self.step(image_step(image, format, size, cluster));
            disk.cluster = if format == Format::Qcow2 { cluster.unwrap_or(65536) } else { 0 };
        }
        disk.unmap = self.one_in(3);
        disk.image = Some(image.to_string());
        disk.file_node = self.open(&node, format, image, disk.unmap);
        self.disks.push(disk);
        self.disks.len() - 1
    }

    /// Opens `image` as the node `node`; the name of its file's node, if it was given one.
    pub(super) fn open(&mut self, node: &str, format: Format, image: &str, unmap: bool) -> Option<String> {
        let file_node = self.maybe(5, format!("{node}-file"));
        self.open_as(node, format, image, unmap, file_node.as_deref());
        file_node
    }

    /// As [`World::open`], with the name of the file's node given.
    pub(super) fn open_as(&mut self, node: &str, format: Format, image: &str, unmap: bool, file_node: Option<&str>) {
        let below: Yaml = match file_node {
            Some(name) => {
                let arguments = args().set("node-name", name).set("driver", "file").set("filename", path(image));
                self.execute("blockdev-add", arguments);
                name.into()
            }
            None => file(image).into(),
        };
        let arguments = args().set("node-name", node).set("driver", format.driver()).set("file", below);
        let arguments = if unmap { arguments.set("discard", "unmap") } else { arguments };
        self.execute("blockdev-add", arguments);
    }

    /// A null device.
    pub(super) fn add_null(&mut self, node: &str, size: u64) {
        let arguments = args().set("node-name", node).set("driver", "null-co").set("size", size);
        self.execute("blockdev-add", arguments.set("read-zeroes", true));
    }

    /// An image with content for a disk to stand on.
    fn base_image(&mut self, size: u64, cluster: Option<u64>) -> String {
        let base = format!("base{}", self.new_image());
        self.step(image_step(&base, Format::Qcow2, size, cluster));
        let arguments = args().set("node-name", "base-node").set("driver", "qcow2").set("file", file(&base));
        self.execute_silently("blockdev-add", arguments);
        self.disks.push(Disk::new("base-node", Format::Qcow2, size));
        self.guest_at(self.disks.len() - 1, 3, Mix::Data);
        self.disks.pop();
        self.execute("blockdev-del", args().set("node-name", "base-node"));
        base
    }

    /// A new target of `size` bytes, of any kind; only such as keep what is written if `lasting`.
    pub(super) fn target(&mut self, size: u64, lasting: bool) -> Target {
        let node = self.new_target();
        let image = format!("{node}-img");
        match self.rng.below(20) {
            0 | 1 if !lasting => {
                self.add_null(&node, size);
                Target { node, file_node: None, image: None, format: Format::Null, cluster: 65536 }
            }
            2..=4 => {
                self.step(image_step(&image, Format::Raw, size, None));
                let file_node = self.open(&node, Format::Raw, &image, false);
                Target { node, file_node, image: Some(image), format: Format::Raw, cluster: 65536 }
            }
            5..=7 => {
                let cluster = self.cluster_size(size).unwrap_or(65536);
                self.created_target(&node, &image, size, cluster);
                let file_node = Some(format!("file-{node}"));
                let cluster = cluster.max(65536);
                Target { node, file_node, image: Some(image), format: Format::Qcow2, cluster }
            }
            _ => {
                let cluster = self.cluster_size(size);
                self.qcow2_target(node, size, cluster)
            }
        }
    }

    /// A new qcow2 target with clusters of the given size.
    pub(super) fn qcow2_target(&mut self, node: String, size: u64, cluster: Option<u64>) -> Target {
        let image = format!("{node}-img");
        self.step(image_step(&image, Format::Qcow2, size, cluster));
        let file_node = self.open(&node, Format::Qcow2, &image, false);
        let cluster = cluster.unwrap_or(65536).max(65536);
        Target { node, file_node, image: Some(image), format: Format::Qcow2, cluster }
    }

    /// A target for a job that is to be held by its speed limit; none if the disk is too small for that.
    pub(super) fn slow_target(&mut self, size: u64) -> Option<Target> {
        if size <= 65536 {
            return None;
        }
        if size >= 8 << 20 {
            return Some(self.target(size, true));
        }
        let node = self.new_target();
        let image = format!("{node}-img");
        if self.one_in(4) {
            self.step(image_step(&image, Format::Raw, size, None));
            let file_node = self.open(&node, Format::Raw, &image, false);
            return Some(Target { node, file_node, image: Some(image), format: Format::Raw, cluster: 65536 });
        }
        let cluster = self.pick(&[None, Some(65536), Some(16384)]);
        Some(self.qcow2_target(node, size, cluster))
    }

    fn created_target(&mut self, node: &str, image: &str, size: u64, cluster: u64) {
        let with = args().set("image", image).set("node", node).set("size", size).set("cluster", cluster);
        self.call(create_target(), with);
    }

    /// Removes a target's nodes.
    pub(super) fn remove_target(&mut self, target: &Target) {
        self.execute("blockdev-del", args().set("node-name", &target.node));
        if let Some(name) = &target.file_node {
            self.execute("blockdev-del", args().set("node-name", name));
        }
    }
}

/// The procedure that makes a target by `blockdev-create`.
fn create_target() -> Procedure {
    let create = |job: &str, options: Args| {
        let arguments = args().set("job-id", job).set("options", options);
        command_step("blockdev-create", arguments).with("log", "none")
    };
    let open = |arguments: Args| command_step("blockdev-add", arguments).with("log", "reply");
    let image = "TEST_DIR/PID-{{ image }}";
    let format = args().set("driver", "qcow2").set("file", "file-{{ node }}");
    let format = format.set("size", "{{ size }}").set("cluster-size", "{{ cluster }}");
    let top = args().set("driver", "qcow2").set("node-name", "{{ node }}").set("file", "file-{{ node }}");
    Procedure {
        name: "create-target",
        params: vec!["image", "node", "size", "cluster"],
        steps: vec![
            create("create-file", args().set("driver", "file").set("filename", image).set("size", 0_u64)),
            Step::new("run-job", "create-file"),
            open(args().set("driver", "file").set("node-name", "file-{{ node }}").set("filename", image)),
            create("create-format", format),
            Step::new("run-job", "create-format"),
            open(top),
        ],
    }
}
