//! Opening nodes from options, as `blockdev-add` gives them.
//!
//! The options are typed already; here children are opened or found, edges attached in QEMU's order
//! (a format's file before the format itself, a backing chain after it) and drivers started.
//! QEMU's source: `bdrv_open_inherit` in `block.c`. A failed open leaves nothing behind.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::backend::Backend;
use super::blkdebug::{InjectError, SetState};
use super::cbw::{CbwOptions, CopyBeforeWrite, OnCbwError};
use super::file::FileDriver;
use super::flags::Perm;
use super::graph::Block;
use super::json_filename;
use super::node::{DetectZeroes, Driver, Edge, Given, Node, NodeId, NodeOptions, Parent, Role};
use super::null::NullDriver;
use super::qcow2::{OpenFlags, Qcow2, Qcow2Options};
use super::raw::{RawDriver, Window};
use super::truncate::MAX_LENGTH;

/// A child: an existing node, or options for a new one.
#[derive(Clone, Debug)]
pub enum ChildRef {
    /// A device's or node's name.
    Name(String),
    /// Options of a node that only the parent owns.
    Inline(Box<OpenOptions>),
}

/// The backing file of a format node.
#[derive(Clone, Debug, Default)]
pub enum BackingRef {
    /// What the image says.
    #[default]
    FromImage,
    /// None (`null`).
    None,
    /// This one.
    Given(ChildRef),
}

/// Options common to all drivers; what is absent is inherited or has QEMU's default.
#[derive(Clone, Debug, Default)]
pub struct CommonOptions {
    /// `read-only`.
    pub read_only: Option<bool>,
    /// `auto-read-only`.
    pub auto_read_only: Option<bool>,
    /// `discard`: whether it is `unmap`.
    pub discard_unmap: Option<bool>,
    /// `detect-zeroes`.
    pub detect_zeroes: DetectZeroes,
    /// `cache.direct`.
    pub direct: Option<bool>,
    /// `cache.no-flush`.
    pub no_flush: Option<bool>,
    /// `force-share`.
    pub force_share: Option<bool>,
    /// Opened by `qemu-img check`.
    pub check: bool,
    /// Opened without I/O (`qemu-img info`).
    pub no_io: bool,
}

/// A driver and its options.
#[derive(Clone, Debug)]
pub enum DriverOptions {
    /// `file`.
    File {
        /// The file.
        filename: String,
    },
    /// `null-co`.
    Null(NullDriver),
    /// `raw`.
    Raw {
        /// Its storage.
        file: ChildRef,
        /// `offset` and `size`.
        window: Window,
    },
    /// `qcow2`.
    Qcow2 {
        /// Its storage.
        file: ChildRef,
        /// Its backing file.
        backing: BackingRef,
        /// Run-time options.
        options: Qcow2Options,
    },
    /// `blkdebug`.
    Blkdebug(Box<BlkdebugOptions>),
    /// `copy-before-write`.
    CopyBeforeWrite {
        /// The source.
        file: ChildRef,
        /// Where old data go.
        target: ChildRef,
        /// Node and name of a bitmap that limits the snapshot.
        bitmap: Option<(String, String)>,
        /// `on-cbw-error`.
        on_error: OnCbwError,
        /// `cbw-timeout`, s.
        timeout_s: u32,
        /// `min-cluster-size`, bytes.
        min_cluster_size: u64,
    },
    /// `snapshot-access`.
    SnapshotAccess {
        /// The filter.
        file: ChildRef,
    },
    /// A driver of QEMU that is not modelled; such a node can't be opened.
    Other {
        /// Its name.
        driver: &'static str,
        /// Its storage, if it has some.
        file: Option<ChildRef>,
    },
}

impl DriverOptions {
    /// The driver's name.
    pub fn name(&self) -> &'static str {
        match self {
            DriverOptions::File { .. } => "file",
            DriverOptions::Null(_) => "null-co",
            DriverOptions::Raw { .. } => "raw",
            DriverOptions::Qcow2 { .. } => "qcow2",
            DriverOptions::Blkdebug(_) => "blkdebug",
            DriverOptions::CopyBeforeWrite { .. } => "copy-before-write",
            DriverOptions::SnapshotAccess { .. } => "snapshot-access",
            DriverOptions::Other { driver, .. } => driver,
        }
    }
}

/// Options of `blkdebug`.
#[derive(Clone, Debug)]
pub struct BlkdebugOptions {
    /// The node below.
    pub image: ChildRef,
    /// `inject-error`.
    pub inject: Vec<InjectError>,
    /// `set-state`.
    pub set_state: Vec<SetState>,
    /// `align`, bytes.
    pub align: Option<i64>,
    /// `max-transfer`, bytes.
    pub max_transfer: Option<i64>,
    /// `opt-write-zero`, bytes.
    pub opt_write_zero: Option<i64>,
    /// `max-write-zero`, bytes.
    pub max_write_zero: Option<i64>,
    /// `opt-discard`, bytes.
    pub opt_discard: Option<i64>,
    /// `max-discard`, bytes.
    pub max_discard: Option<i64>,
    /// `config`: a file with more rules, which must be there.
    pub config: Option<String>,
    /// `take-child-perms`.
    pub take: Perm,
    /// `unshare-child-perms`.
    pub unshare: Perm,
}

/// Everything that is needed to open a node.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The name; none: generated.
    pub node_name: Option<String>,
    /// Common options.
    pub common: CommonOptions,
    /// The driver.
    pub driver: DriverOptions,
    /// The driver's options once more, flat and without children, as they were given.
    pub own: Map<String, Value>,
}

/// What a node takes from another one where it is not told otherwise.
#[derive(Clone, Copy)]
pub(super) enum Inherit<'a> {
    /// It stands alone.
    Nothing,
    /// It is a child of a node with these options.
    Child(&'a NodeOptions),
    /// It is the backing file of a node with these options.
    Backing(&'a NodeOptions),
    /// It takes the place of a node with these options, of which it has those that QEMU keeps as flags.
    Flags(&'a NodeOptions),
}

pub(super) type Opened = Result<Rc<Node>, String>;

/// A node whose driver has not been opened yet, above the file that it is to be opened from.
struct Over {
    node: Rc<Node>,
    file: Rc<Edge>,
    /// What has looked at the file's format, and holds the file until the driver is open.
    probe: Rc<Backend>,
}

impl Block {
    /// Opens a node (`bdrv_open`); the caller gets the one reference on it.
    pub async fn open(self: &Rc<Self>, options: &OpenOptions) -> Opened {
        self.open_inherit(options, Inherit::Nothing).await
    }

    /// Opens a node that is to take the place of one with options `before`.
    pub async fn open_in_place(self: &Rc<Self>, options: &OpenOptions, before: &NodeOptions) -> Opened {
        self.open_inherit(options, Inherit::Flags(before)).await
    }

    async fn open_inherit(self: &Rc<Self>, options: &OpenOptions, inherit: Inherit<'_>) -> Opened {
        let common = resolve(&options.common, inherit);
        let node = self.open_driver(options, common).await?;
        *node.given.borrow_mut() = Given { common: options.common.clone(), own: options.own.clone(), set: None };
        Ok(node)
    }

    async fn open_driver(self: &Rc<Self>, options: &OpenOptions, common: NodeOptions) -> Opened {
        let name = options.node_name.as_deref();
        match &options.driver {
            DriverOptions::File { filename } => self.open_file(name, common, filename).await,
            DriverOptions::Null(null) => {
                let node = self.named_node(name, common).await?;
                if null.size > MAX_LENGTH {
                    self.give_up(Some(node.id), false).await;
                    return Err("Could not refresh total sector count: File too large".to_owned());
                }
                node.length.set(null.size.next_multiple_of(512));
                *node.driver.borrow_mut() = Driver::Null(Rc::new(null.clone()));
                Ok(node)
            }
            DriverOptions::Raw { file, window } => self.open_raw(name, common, file, *window).await,
            DriverOptions::Qcow2 { file, backing, options } => {
                Box::pin(self.open_qcow2(name, common, file, backing, options)).await
            }
            DriverOptions::Blkdebug(options) => Box::pin(self.open_blkdebug(name, common, options)).await,
            DriverOptions::CopyBeforeWrite { .. } => Box::pin(self.open_cbw(name, common, &options.driver)).await,
            DriverOptions::SnapshotAccess { file } => {
                let Over { node, file, probe } = self.open_over(name, common, file, Role::Snapshot).await?;
                *node.driver.borrow_mut() = Driver::SnapshotAccess;
                self.copy_from_child(&node, file.child.get());
                self.delete_backend(&probe).await;
                Ok(node)
            }
            DriverOptions::Other { driver, .. } => Err(format!(
                "not modelled: driver '{driver}'; there are file, null-co, raw, qcow2, blkdebug, copy-before-write and \
                 snapshot-access"
            )),
        }
    }

    /// Refuses options that contradict each other, then the name, and makes the node
    /// (`bdrv_open_common`).
    pub(super) fn checked_node(&self, name: Option<&str>, options: NodeOptions) -> Opened {
        options.check()?;
        self.new_node(name, options)
    }

    async fn open_raw(
        self: &Rc<Self>,
        name: Option<&str>,
        options: NodeOptions,
        file: &ChildRef,
        window: Window,
    ) -> Opened {
        let driver = Driver::Raw(Rc::new(RawDriver::new(window)));
        let Over { node, file, probe } = self.open_over_as(name, options, file, Role::Filtered, driver).await?;
        let real = self.length(&self.node(file.child.get()));
        if let Err(reason) = window.check(real) {
            self.driver_refused(node.id, Some(&probe)).await;
            return Err(reason);
        }
        node.length.set(window.length(real));
        self.delete_backend(&probe).await;
        Ok(node)
    }

    async fn open_file(&self, name: Option<&str>, options: NodeOptions, filename: &str) -> Opened {
        let node = self.named_node(name, options).await?;
        let store = match self.host.open(filename) {
            Ok(store) => store,
            Err(error) => {
                self.give_up(Some(node.id), true).await;
                return Err(format!("Could not open '{filename}': {error}"));
            }
        };
        node.length.set(store.len().next_multiple_of(512));
        let process = self.process;
        *node.driver.borrow_mut() = Driver::File(Rc::new(FileDriver { filename: filename.into(), store, process }));
        Ok(node)
    }

    /// A filter has the length of the node below.
    pub(super) fn copy_from_child(&self, node: &Node, child: NodeId) {
        node.length.set(self.node(child).length.get());
    }

    /// Opens or finds a child and takes a reference on it for the caller.
    pub(super) async fn open_child(self: &Rc<Self>, child: &ChildRef, inherit: Inherit<'_>) -> Opened {
        match child {
            ChildRef::Name(name) => {
                let node = self.lookup(Some(name), Some(name))?;
                self.reference(&node);
                Ok(node)
            }
            ChildRef::Inline(options) => Box::pin(self.open_inherit(options, inherit)).await,
        }
    }

    /// Opens `file`, then the node above it, and attaches the two.
    async fn open_over(
        self: &Rc<Self>,
        name: Option<&str>,
        options: NodeOptions,
        file: &ChildRef,
        role: Role,
    ) -> Result<Over, String> {
        self.open_over_as(name, options, file, role, Driver::None).await
    }

    /// The same for a driver whose state decides about permissions.
    async fn open_over_as(
        self: &Rc<Self>,
        name: Option<&str>,
        options: NodeOptions,
        file: &ChildRef,
        role: Role,
        driver: Driver,
    ) -> Result<Over, String> {
        let child = match self.open_child(file, Inherit::Child(&options)).await {
            Ok(child) => child,
            Err(reason) => {
                // The format's probe asks for the file before the driver is asked.
                self.give_up(None, false).await;
                return Err(reason);
            }
        };
        // The probe of the format holds the file for a while, by a backend. The file's name is looked up again below it.
        let probe = self.insert_backend(&child, Perm::NONE, Perm::ALL).await;
        self.unref(child.id).await;
        let probe = probe?;
        if self.try_node(child.id).is_none() {
            self.delete_backend(&probe).await;
            return Err(format!("Cannot find device='{0}' nor node-name='{0}'", child.name));
        }
        let mut refused = false;
        let attached = self.checked_node(name, options).and_then(|node| {
            *node.driver.borrow_mut() = driver;
            inherit_from(file, &child, &node);
            let attached = self.attach(Parent::Node(node.id), "file", role, child.id, None);
            refused = attached.is_err();
            attached.map(|edge| (node.clone(), edge)).inspect_err(|_| self.remove_node(node.id))
        });
        self.graph_write_section().await;
        match attached {
            Ok((node, file)) => Ok(Over { node, file, probe }),
            Err(reason) => {
                self.delete_backend(&probe).await;
                if refused {
                    self.give_up(None, true).await;
                }
                Err(reason)
            }
        }
    }

    async fn open_qcow2(
        self: &Rc<Self>,
        name: Option<&str>,
        options: NodeOptions,
        file: &ChildRef,
        backing: &BackingRef,
        qcow2_options: &Qcow2Options,
    ) -> Opened {
        let Over { node, file, probe } = self.open_over(name, options, file, Role::Storage).await?;
        let flags = {
            let options = node.options.borrow();
            OpenFlags { read_only: options.read_only, check: options.check, no_io: options.no_io }
        };
        let (block, id, qcow2_options) = (self.clone(), node.id, qcow2_options.clone());
        let opened = self
            .sim
            .run_coroutine("qcow2 open", async move { Qcow2::open(&block, id, &file, &qcow2_options, flags).await })
            .await;
        let qcow2 = match opened {
            Ok(qcow2) => qcow2,
            Err(reason) => {
                // Once more than other drivers that refuse.
                self.graph_write_section().await;
                self.driver_refused(node.id, Some(&probe)).await;
                return Err(reason);
            }
        };
        *node.driver.borrow_mut() = Driver::Qcow2(qcow2.clone());
        *node.automatic_backing.borrow_mut() = qcow2.backing_name();
        self.delete_backend(&probe).await;
        if let Err(reason) = self.open_backing(&node, &qcow2, backing).await {
            self.unref(node.id).await;
            return Err(reason);
        }
        Ok(node)
    }

    async fn open_backing(
        self: &Rc<Self>,
        node: &Rc<Node>,
        qcow2: &Rc<Qcow2>,
        backing: &BackingRef,
    ) -> Result<(), String> {
        let from_image;
        let child = match backing {
            BackingRef::None => return Ok(()),
            BackingRef::Given(child) => child,
            BackingRef::FromImage => {
                let Some(name) = qcow2.backing_name() else { return Ok(()) };
                if node.options.borrow().no_io {
                    return Ok(());
                }
                let filename = self.relative_to(node, &name);
                from_image =
                    ChildRef::Inline(Box::new(self.options_for(&filename, qcow2.backing_format().as_deref())?));
                &from_image
            }
        };
        let inherited = node.options.borrow().clone();
        let opened = self.open_child(child, Inherit::Backing(&inherited)).await;
        let opened = opened.map_err(|reason| format!("Could not open backing file: {reason}"))?;
        inherit_from(child, &opened, node);
        if matches!(backing, BackingRef::FromImage) {
            *node.automatic_backing.borrow_mut() = Some(self.filename(opened.id));
        }
        let attached = self.attach(Parent::Node(node.id), "backing", Role::Cow, opened.id, None);
        self.graph_write_section().await;
        self.unref(opened.id).await;
        attached.map(|_| ())
    }

    /// A backing file's name is relative to its overlay's directory.
    pub fn relative_to(&self, overlay: &Node, name: &str) -> String {
        match self.directory(overlay.id) {
            Some(directory) if !name.contains('/') && !name.contains(':') => format!("{directory}{name}"),
            _ => name.to_owned(),
        }
    }

    /// Options for an image of which only the name is known, and perhaps the format.
    pub fn options_for(&self, filename: &str, format: Option<&str>) -> Result<OpenOptions, String> {
        if let Some(options) = json_filename::options_of(filename) {
            return options;
        }
        let file = OpenOptions {
            node_name: None,
            common: CommonOptions::default(),
            driver: DriverOptions::File { filename: filename.to_owned() },
            own: Map::from_iter([("filename".to_owned(), filename.into())]),
        };
        if format == Some("file") {
            return Ok(file);
        }
        let file = ChildRef::Inline(Box::new(file));
        let format = match format {
            Some(format) => format,
            None => self.probe(filename),
        };
        let driver = match format {
            "qcow2" => DriverOptions::Qcow2 { file, backing: BackingRef::FromImage, options: Qcow2Options::default() },
            "raw" => DriverOptions::Raw { file, window: Window::default() },
            "qcow" => DriverOptions::Other { driver: "qcow", file: Some(file) },
            other => return Err(format!("Unknown driver '{other}'")),
        };
        Ok(OpenOptions { node_name: None, common: CommonOptions::default(), driver, own: Map::new() })
    }

    /// The format that the beginning of a file looks like (`bdrv_probe_all`).
    fn probe(&self, filename: &str) -> &'static str {
        let head = self.host.open(filename).and_then(|store| store.read(0, 8)).map(|head| head.to_vec());
        match head.as_deref() {
            Ok([b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1]) => "qcow",
            Ok([b'Q', b'F', b'I', 0xfb, version @ ..]) if *version != [0; 4] => "qcow2",
            _ => "raw",
        }
    }

    async fn open_cbw(self: &Rc<Self>, name: Option<&str>, options: NodeOptions, driver: &DriverOptions) -> Opened {
        let DriverOptions::CopyBeforeWrite { file, target, bitmap, on_error, timeout_s, min_cluster_size } = driver
        else {
            return Err("not a copy-before-write node".to_owned());
        };
        let Over { node, file, probe } = self.open_over(name, options.clone(), file, Role::Filtered).await?;
        let opened = async {
            let spec = target;
            let target = self.open_child(spec, Inherit::Child(&options)).await?;
            inherit_from(spec, &target, &node);
            let attached = self.attach(Parent::Node(node.id), "target", Role::CbwTarget, target.id, None);
            self.unref(target.id).await;
            attached?;
            self.graph_write_section().await;
            let mut cbw = CbwOptions {
                bitmap: None,
                on_error: *on_error,
                timeout_s: *timeout_s,
                min_cluster_size: *min_cluster_size,
                discard_source: false,
            };
            if let Some((node, name)) = bitmap {
                cbw.bitmap = Some(self.find_bitmap(node, name)?);
            }
            // The filter of a job that was below may have left by now.
            CopyBeforeWrite::open(self, node.id, file.child.get(), target.id, cbw).await
        }
        .await;
        match opened {
            Ok(cbw) => {
                *node.driver.borrow_mut() = Driver::CopyBeforeWrite(Rc::new(cbw));
                self.copy_from_child(&node, file.child.get());
                self.delete_backend(&probe).await;
                Ok(node)
            }
            Err(reason) => {
                self.driver_refused(node.id, Some(&probe)).await;
                Err(reason)
            }
        }
    }
}

/// A child that was opened inline takes its parent's options over.
pub(super) fn inherit_from(given: &ChildRef, child: &Node, parent: &Node) {
    if matches!(given, ChildRef::Inline(_)) {
        child.inherits_from.set(Some(parent.id));
    }
}

impl NodeOptions {
    /// Refuses contradictions.
    fn check(&self) -> Result<(), String> {
        if self.force_share && !self.read_only {
            return Err("force-share=on can only be used with read-only images".to_owned());
        }
        self.check_detect_zeroes()
    }

    /// Refuses to unmap what may not be unmapped.
    pub(super) fn check_detect_zeroes(&self) -> Result<(), String> {
        if self.detect_zeroes == DetectZeroes::Unmap && !self.discard_unmap {
            return Err(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap".to_owned()
            );
        }
        Ok(())
    }
}

/// Fills in what is inherited or has a default.
pub(super) fn resolve(common: &CommonOptions, inherit: Inherit<'_>) -> NodeOptions {
    let from = match inherit {
        Inherit::Nothing => None,
        Inherit::Child(other) | Inherit::Backing(other) | Inherit::Flags(other) => Some(other),
    };
    let backing = matches!(inherit, Inherit::Backing(_));
    let inherited = |own: Option<bool>, other: fn(&NodeOptions) -> bool| own.unwrap_or(from.is_some_and(other));
    let (discard_unmap, shares) = match inherit {
        Inherit::Flags(before) => (before.discard_unmap, false),
        _ => (from.is_some(), from.is_some_and(|parent| parent.force_share)),
    };
    NodeOptions {
        read_only: if backing {
            common.read_only.unwrap_or(true)
        } else {
            inherited(common.read_only, |p| p.read_only)
        },
        auto_read_only: !backing && inherited(common.auto_read_only, |p| p.auto_read_only),
        discard_unmap: common.discard_unmap.unwrap_or(discard_unmap),
        detect_zeroes: common.detect_zeroes,
        direct: inherited(common.direct, |p| p.direct),
        no_flush: inherited(common.no_flush, |p| p.no_flush),
        force_share: common.force_share.unwrap_or(shares),
        check: common.check,
        no_io: common.no_io,
    }
}
