//! `blockdev-add` and its relatives: from QMP options to nodes.
//!
//! Option names and errors are those of `BlockdevOptions` in `qapi/block-core.json`; what a node does
//! with its options is the block layer's business.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::block::open::{BackingRef, BlkdebugOptions, ChildRef, CommonOptions, DriverOptions, OpenOptions};
use crate::block::qcow2::Qcow2Options;
use crate::block::qdict::flatten;
use crate::block::{
    BlkdebugEvent, DetectZeroes, InjectError, IoType, Node, NullDriver, OnCbwError, Parent, Perm, Preallocation,
    SetState, Window,
};
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

/// Drivers of QEMU that this machine does not have; asking for one is an error of the scenario's
/// scope, told as such.
const OTHER_DRIVERS: &[&str] = &[
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-on-read",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// Members that are no option of the driver itself: common ones and children.
const IN_COMMON: [&str; 12] = [
    "node-name",
    "driver",
    "read-only",
    "auto-read-only",
    "discard",
    "detect-zeroes",
    "cache",
    "active",
    "file",
    "backing",
    "image",
    "target",
];

/// Whether QEMU has the driver, modelled or not (`BlockdevDriver`).
pub(super) fn is_driver(name: &str) -> bool {
    const MODELLED: &[&str] = &["blkdebug", "copy-before-write", "file", "null-co", "qcow2", "raw", "snapshot-access"];
    MODELLED.contains(&name) || OTHER_DRIVERS.contains(&name)
}

/// Why an image of that format can't be made.
pub(super) fn unknown_format(format: &str) -> QmpError {
    if is_driver(format) {
        return format!("not modelled: format '{format}'; there are qcow2 and raw").into();
    }
    format!("Unknown file format '{format}'").into()
}

impl Machine {
    /// blockdev-add (`qmp_blockdev_add` in `blockdev.c`).
    pub(in crate::qmp) async fn blockdev_add(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let options = self.parse_node(&args)?;
        if options.node_name.is_none() {
            return Err("'node-name' must be specified for the root node".into());
        }
        let node = self.block.open(&options).await?;
        node.monitor_owned.set(true);
        Ok(json!({}))
    }

    /// Reads a `BlockdevOptions`.
    pub(crate) fn parse_node(&self, args: &Args<'_>) -> Result<OpenOptions, QmpError> {
        let driver = args.str("driver")?.to_owned();
        if !is_driver(&driver) {
            return Err(args.bad_value("driver", &driver));
        }
        let node_name = args.opt_str("node-name")?.map(str::to_owned);
        let mut common = CommonOptions {
            discard_unmap: args.opt_enum("discard", &[("ignore", false), ("unmap", true)])?,
            ..CommonOptions::default()
        };
        if let Some(cache) = args.opt_object("cache")? {
            common.direct = cache.opt_bool("direct")?;
            common.no_flush = cache.opt_bool("no-flush")?;
            cache.finish()?;
        }
        if self.block.quirks.since_9 {
            args.opt_bool("active")?;
        }
        common.read_only = args.opt_bool("read-only")?;
        common.auto_read_only = args.opt_bool("auto-read-only")?;
        common.force_share = args.opt_bool("force-share")?;
        let detect = [("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];
        common.detect_zeroes = args.opt_enum("detect-zeroes", &detect)?.unwrap_or_default();
        let driver = self.parse_driver(args, &driver)?;
        args.finish()?;
        let mut own = Map::new();
        for (name, value) in args.members().iter().filter(|(name, _)| !IN_COMMON.contains(&name.as_str())) {
            flatten(name, value, &mut own);
        }
        Ok(OpenOptions { node_name, common, driver, own })
    }

    fn parse_driver(&self, args: &Args<'_>, driver: &str) -> Result<DriverOptions, QmpError> {
        Ok(match driver {
            "file" => {
                let filename = args.str("filename")?.to_owned();
                let manager = args.opt_str("pr-manager")?;
                args.opt_enum("locking", &[("auto", ()), ("on", ()), ("off", ())])?;
                let aio = args.opt_enum("aio", &[("threads", false), ("native", true), ("io_uring", false)])?;
                args.opt_int("aio-max-batch")?;
                if let Some(id) = manager {
                    return Err(format!("No persistent reservation manager with id '{id}'").into());
                }
                let direct = args.members().get("cache").and_then(|cache| cache["direct"].as_bool());
                if aio == Some(true) && direct != Some(true) {
                    return Err(
                        "aio=native was specified, but it requires cache.direct=on, which was not specified.".into()
                    );
                }
                if filename.is_empty() {
                    return Err("The 'file' block driver requires a file name".into());
                }
                DriverOptions::File { filename }
            }
            "null-co" => {
                let given_size = args.opt_int("size")?;
                let latency = args.opt_size("latency-ns")?.unwrap_or(0);
                if i64::try_from(latency).is_err() {
                    return Err("latency-ns is invalid".into());
                }
                DriverOptions::Null(NullDriver::new(given_size, args.opt_bool("read-zeroes")?, latency))
            }
            "raw" => {
                let file = self.parse_child(args, "file")?;
                let unsigned = |value: Option<i64>| value.map(|value| value as u64);
                let (offset, size) = (unsigned(args.opt_int("offset")?), unsigned(args.opt_int("size")?));
                DriverOptions::Raw { file, window: Window { offset, size } }
            }
            "qcow2" => self.parse_qcow2(args)?,
            "blkdebug" => DriverOptions::Blkdebug(Box::new(self.parse_blkdebug(args)?)),
            "copy-before-write" => self.parse_cbw(args)?,
            "snapshot-access" => DriverOptions::SnapshotAccess { file: self.parse_child(args, "file")? },
            other => {
                let Some(driver) = OTHER_DRIVERS.iter().find(|known| **known == other) else {
                    return Err(args.bad_value("driver", other));
                };
                args.accept_all();
                let file = if args.has("file") { Some(self.parse_child(args, "file")?) } else { None };
                DriverOptions::Other { driver, file }
            }
        })
    }

    /// Reads a `BlockdevRef`.
    pub(super) fn parse_child(&self, args: &Args<'_>, name: &'static str) -> Result<ChildRef, QmpError> {
        match args.any(name) {
            Some(Value::String(reference)) => Ok(ChildRef::Name(reference.clone())),
            Some(Value::Object(_)) => Ok(ChildRef::Inline(Box::new(self.parse_node(&args.object(name)?)?))),
            Some(_) => {
                let or_null = if name == "backing" { "OrNull" } else { "" };
                Err(format!("Invalid parameter type for '{name}', expected: BlockdevRef{or_null}").into())
            }
            None => args.object(name).map(|_| ChildRef::Name(String::new())),
        }
    }

    fn parse_qcow2(&self, args: &Args<'_>) -> Result<DriverOptions, QmpError> {
        let file = self.parse_child(args, "file")?;
        let backing = match args.any("backing") {
            None => BackingRef::FromImage,
            Some(Value::Null) => BackingRef::None,
            Some(Value::String(name)) if name.is_empty() => {
                let program = self.block.program;
                self.block.report_stderr(format!(
                    "{program}: warning: Use of \"backing\": \"\" is deprecated; use \"backing\": null instead"
                ));
                BackingRef::None
            }
            Some(_) => BackingRef::Given(self.parse_child(args, "backing")?),
        };
        // In the order of the schema.
        let lazy_refcounts = args.opt_bool("lazy-refcounts")?;
        let pass_discard_request = args.opt_bool("pass-discard-request")?;
        args.opt_bool("pass-discard-snapshot")?;
        let pass_discard_other = args.opt_bool("pass-discard-other")?.unwrap_or(false);
        let discard_no_unref =
            if self.block.quirks.since_9 { args.opt_bool("discard-no-unref")?.unwrap_or(false) } else { false };
        parse_overlap_check(args)?;
        let options = Qcow2Options {
            lazy_refcounts,
            pass_discard_request,
            pass_discard_other,
            discard_no_unref,
            cache_size: args.opt_int("cache-size")?,
            l2_cache_size: args.opt_int("l2-cache-size")?,
            l2_cache_entry_size: args.opt_int("l2-cache-entry-size")?,
            refcount_cache_size: args.opt_int("refcount-cache-size")?,
            cache_clean_interval: args.opt_int("cache-clean-interval")?,
        };
        for unmodelled in ["encrypt", "data-file"] {
            if args.has(unmodelled) {
                return Err(format!("not modelled: option '{unmodelled}' of driver 'qcow2'").into());
            }
        }
        Ok(DriverOptions::Qcow2 { file, backing, options })
    }

    fn parse_blkdebug(&self, args: &Args<'_>) -> Result<BlkdebugOptions, QmpError> {
        let image = self.parse_child(args, "image")?;
        let config = args.opt_str("config")?.map(str::to_owned);
        let align = args.opt_int("align")?;
        let max_transfer = args.opt_i32("max-transfer")?;
        let opt_write_zero = args.opt_i32("opt-write-zero")?;
        let max_write_zero = args.opt_i32("max-write-zero")?;
        let opt_discard = args.opt_i32("opt-discard")?;
        let max_discard = args.opt_i32("max-discard")?;
        let inject = args.opt_list("inject-error")?.unwrap_or_default();
        let inject_is_empty = args.has("inject-error") && inject.is_empty();
        let inject = inject.into_iter().map(|(item, name)| parse_inject(item, &name)).collect::<Result<_, _>>()?;
        let set_state = args.opt_list("set-state")?.unwrap_or_default();
        let set_is_empty = args.has("set-state") && set_state.is_empty();
        let set_state =
            set_state.into_iter().map(|(item, name)| parse_set_state(item, &name)).collect::<Result<_, _>>()?;
        let take = parse_permissions(args, "take-child-perms")?;
        let unshare = parse_permissions(args, "unshare-child-perms")?;
        // QEMU flattens options; an empty list leaves a member behind that the driver does not know.
        for (empty, name) in [(set_is_empty, "set-state"), (inject_is_empty, "inject-error")] {
            if empty {
                return Err(format!("Block protocol 'blkdebug' doesn't support the option '{name}'").into());
            }
        }
        Ok(BlkdebugOptions {
            image,
            inject,
            set_state,
            align,
            max_transfer: max_transfer.map(i64::from),
            opt_write_zero: opt_write_zero.map(i64::from),
            max_write_zero: max_write_zero.map(i64::from),
            opt_discard: opt_discard.map(i64::from),
            max_discard: max_discard.map(i64::from),
            config,
            take,
            unshare,
        })
    }

    fn parse_cbw(&self, args: &Args<'_>) -> Result<DriverOptions, QmpError> {
        let file = self.parse_child(args, "file")?;
        let target = self.parse_child(args, "target")?;
        let bitmap = match args.opt_object("bitmap")? {
            None => None,
            Some(bitmap) => {
                let found = (bitmap.str("node")?.to_owned(), bitmap.str("name")?.to_owned());
                bitmap.finish()?;
                Some(found)
            }
        };
        let policies =
            [("break-guest-write", OnCbwError::BreakGuestWrite), ("break-snapshot", OnCbwError::BreakSnapshot)];
        let on_error = args.opt_enum("on-cbw-error", &policies)?.unwrap_or_default();
        let timeout_s = args.opt_u32("cbw-timeout")?.unwrap_or(0);
        let min_cluster_size =
            if self.block.quirks.since_9 { args.opt_size("min-cluster-size")?.unwrap_or(0) } else { 0 };
        Ok(DriverOptions::CopyBeforeWrite { file, target, bitmap, on_error, timeout_s, min_cluster_size })
    }

    /// blockdev-del (`qmp_blockdev_del` in `blockdev.c`).
    pub(in crate::qmp) async fn blockdev_del(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let name = args.str("node-name")?;
        args.finish()?;
        let node = self
            .block
            .find_node(name)
            .ok_or_else(|| QmpError::from(format!("Failed to find node with node-name='{name}'")))?;
        self.check_deletable(&node, name)?;
        node.monitor_owned.set(false);
        self.block.unref(node.id).await;
        Ok(json!({}))
    }

    fn check_deletable(&self, node: &Rc<Node>, name: &str) -> Result<(), QmpError> {
        let parents = node.parents.borrow();
        if parents.iter().any(|edge| matches!(edge.parent, Parent::Backend(_))) {
            return Err(format!("Node {name} is in use").into());
        }
        self.block.check_op_blocker(node)?;
        self.block.check_not_backing(node)?;
        if !node.monitor_owned.get() {
            return Err(format!("Node {name} is not owned by the monitor").into());
        }
        if node.references.get() > 1 {
            return Err(format!("Block device {name} is in use").into());
        }
        Ok(())
    }

    /// block_resize (`qmp_block_resize` in `blockdev.c`).
    pub(in crate::qmp) async fn block_resize(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let device = args.opt_str("device")?;
        let node_name = args.opt_str("node-name")?;
        let size = args.int("size")?;
        args.finish()?;
        let node = self.block.lookup(device, node_name)?;
        if size < 0 {
            return Err("Parameter 'size' expects a >0 size".into());
        }
        let blocked = self.block.check_op_blocker(&node).and_then(|()| self.block.check_not_backing(&node));
        if let Err(busy) = blocked {
            let named = self.block.quirks.resize_names_blocker;
            return Err(if named { busy } else { "Device '(null)' is in use".to_owned() }.into());
        }
        let perm = crate::block::Perm::RESIZE;
        let backend = self.block.insert_backend(&node, perm, crate::block::Perm::ALL).await?;
        let result = self.resize_node(&node, size.unsigned_abs()).await;
        self.block.delete_backend(&backend).await;
        result.map(|()| json!({})).map_err(QmpError::from)
    }

    async fn resize_node(self: &Rc<Self>, node: &Rc<Node>, size: u64) -> Result<(), String> {
        if node.is_read_only() {
            return Err("Image is read-only".to_owned());
        }
        self.block.drained_begin(node.id).await;
        let (block, id) = (self.block.clone(), node.id);
        let result = self
            .block
            .sim
            .run_coroutine("resize", async move { block.co_truncate(id, size, Preallocation::Off).await })
            .await;
        self.block.drained_end(node.id);
        result
    }
}

/// A list of permissions; a word that is none has no name in QEMU's error.
fn parse_permissions(args: &Args<'_>, name: &'static str) -> Result<Perm, QmpError> {
    let mut permissions = Perm::NONE;
    for (item, _) in args.opt_list(name)?.unwrap_or_default() {
        permissions |= match item.as_str() {
            Some("consistent-read") => Perm::CONSISTENT_READ,
            Some("write") => Perm::WRITE,
            Some("write-unchanged") => Perm::WRITE_UNCHANGED,
            Some("resize") => Perm::RESIZE,
            Some(word) => return Err(format!("Parameter 'null' does not accept value '{word}'").into()),
            None => return Err("Invalid parameter type for 'null', expected: string".into()),
        };
    }
    Ok(permissions)
}

fn parse_event(args: &Args<'_>) -> Result<BlkdebugEvent, QmpError> {
    let word = args.str("event")?;
    // In a list element only the member's own name is known to the reader of an enumeration.
    BlkdebugEvent::from_name(word).ok_or_else(|| format!("Parameter 'event' does not accept value '{word}'").into())
}

/// Checks `overlap-check`. Which kinds of metadata are looked at makes no difference to an image that is whole, so it
/// is not kept.
fn parse_overlap_check(args: &Args<'_>) -> Result<(), QmpError> {
    let templates = ["none", "constant", "cached", "all"].map(|name| (name, ()));
    match args.any("overlap-check") {
        None => Ok(()),
        Some(Value::String(_)) => args.enumeration("overlap-check", &templates),
        Some(Value::Object(_)) => {
            let flags = args.object("overlap-check")?;
            flags.opt_enum("template", &templates)?;
            for kind in [
                "main-header",
                "active-l1",
                "active-l2",
                "refcount-table",
                "refcount-block",
                "snapshot-table",
                "inactive-l1",
                "inactive-l2",
                "bitmap-directory",
            ] {
                flags.opt_bool(kind)?;
            }
            flags.finish()
        }
        Some(_) => Err("Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks".into()),
    }
}

fn parse_inject(item: &Value, name: &str) -> Result<InjectError, QmpError> {
    let args = Args::element(item, name)?;
    let event = parse_event(&args)?;
    let state = args.opt_int("state")?.unwrap_or(0);
    let iotype = match args.opt_str("iotype")? {
        None => None,
        Some(word) => Some(
            IoType::from_name(word)
                .ok_or_else(|| QmpError::from(format!("Parameter 'iotype' does not accept value '{word}'")))?,
        ),
    };
    let errno = args.opt_int("errno")?.unwrap_or(5);
    let sector = args.opt_int("sector")?.filter(|sector| *sector != -1);
    let once = args.opt_bool("once")?.unwrap_or(false);
    let immediately = args.opt_bool("immediately")?.unwrap_or(false);
    args.finish()?;
    Ok(InjectError { event, state, iotype, errno: errno as i32, sector, once, immediately })
}

fn parse_set_state(item: &Value, name: &str) -> Result<SetState, QmpError> {
    let args = Args::element(item, name)?;
    let event = parse_event(&args)?;
    let state = args.opt_int("state")?.unwrap_or(0);
    let new_state = args.int("new_state")?;
    args.finish()?;
    Ok(SetState { event, state, new_state })
}
