//! Opening a blkdebug node: its options checked against each other, its child, its first event.
//!
//! What the node does then is in `blkdebug.rs`. QEMU's source: `blkdebug_open` in `block/blkdebug.c`.

use std::rc::Rc;

use super::blkdebug::Blkdebug;
use super::blkdebug_event::BlkdebugEvent;
use super::flags::Perm;
use super::graph::Block;
use super::node::{Driver, NodeOptions, Parent, Role};
use super::open::{BlkdebugOptions, ChildRef, Inherit, Opened, inherit_from};

impl Block {
    pub(super) async fn open_blkdebug(
        self: &Rc<Self>,
        name: Option<&str>,
        options: NodeOptions,
        spec: &BlkdebugOptions,
    ) -> Opened {
        let node = self.named_node(name, options.clone()).await?;
        let opened = match self.check_blkdebug_options(spec) {
            Ok(()) => self.open_child(&spec.image, Inherit::Child(&options)).await,
            Err(reason) => Err(reason),
        };
        let image = match opened {
            Ok(image) => image,
            Err(reason) => {
                self.give_up(Some(node.id), true).await;
                return Err(reason);
            }
        };
        let blkdebug = Rc::new(make_blkdebug(spec));
        *node.driver.borrow_mut() = Driver::Blkdebug(blkdebug.clone());
        inherit_from(&spec.image, &image, &node);
        let attached = self.attach(Parent::Node(node.id), "image", Role::Filtered, image.id, None);
        self.graph_write_section().await;
        self.unref(image.id).await;
        let checked = attached.map(|_| ()).and_then(|()| check_constraints(spec));
        if let Err(reason) = checked {
            self.driver_refused(node.id, None).await;
            return Err(reason);
        }
        self.copy_from_child(&node, image.id);
        let (block, name) = (self.clone(), node.name.clone());
        let event = BlkdebugEvent::None;
        self.sim.run_coroutine("blkdebug open", async move { blkdebug.event(&block, &name, event).await }).await;
        Ok(node)
    }

    /// What drivers say of a negative size (`parse_option_size`).
    pub(super) fn negative_size(&self, name: &str, size: i64) -> String {
        match self.quirks.strtosz_strict {
            true => format!("Value '{size}' is out of range for parameter '{name}'"),
            false => format!("Parameter '{name}' expects a non-negative number below 2^64"),
        }
    }

    /// What blkdebug looks at before it opens its image.
    fn check_blkdebug_options(&self, spec: &BlkdebugOptions) -> Result<(), String> {
        if let Some((name, Some(value))) = spec.limits().into_iter().find(|(_, value)| value.is_some_and(|n| n < 0)) {
            return Err(self.negative_size(name, value));
        }
        match spec.config.as_deref().map(|name| self.host.open(name)) {
            None => Ok(()),
            Some(Ok(_)) => Err("not modelled: a configuration file of blkdebug; give its rules inline".to_owned()),
            Some(Err(error)) => Err(format!("Could not read blkdebug config file: {error}")),
        }
    }
}

fn make_blkdebug(spec: &BlkdebugOptions) -> Blkdebug {
    let [align, max_transfer, opt_write_zero, max_write_zero, opt_discard, max_discard] =
        spec.limits().map(|(_, value)| value.map(i64::unsigned_abs));
    let mut blkdebug = Blkdebug::new(spec.inject.clone(), spec.set_state.clone());
    blkdebug.align = align.unwrap_or(0);
    blkdebug.max_transfer = max_transfer;
    blkdebug.opt_write_zero = opt_write_zero;
    blkdebug.max_write_zero = max_write_zero;
    blkdebug.opt_discard = opt_discard;
    blkdebug.max_discard = max_discard;
    blkdebug.take = spec.take;
    blkdebug.unshare = spec.unshare;
    blkdebug
}

impl BlkdebugOptions {
    /// Over `image`, without rules, limits and permissions of its own.
    pub fn over(image: ChildRef) -> BlkdebugOptions {
        BlkdebugOptions {
            image,
            inject: Vec::new(),
            set_state: Vec::new(),
            align: None,
            max_transfer: None,
            opt_write_zero: None,
            max_write_zero: None,
            opt_discard: None,
            max_discard: None,
            config: None,
            take: Perm::NONE,
            unshare: Perm::NONE,
        }
    }

    /// The limits by their names, bytes.
    fn limits(&self) -> [(&'static str, Option<i64>); 6] {
        [
            ("align", self.align),
            ("max-transfer", self.max_transfer),
            ("opt-write-zero", self.opt_write_zero),
            ("max-write-zero", self.max_write_zero),
            ("opt-discard", self.opt_discard),
            ("max-discard", self.max_discard),
        ]
    }
}

/// Constraints between blkdebug's limits (`blkdebug_open`).
fn check_constraints(spec: &BlkdebugOptions) -> Result<(), String> {
    let [align, max_transfer, opt_write_zero, max_write_zero, opt_discard, max_discard] =
        spec.limits().map(|(name, value)| (name, value.map_or(0, i64::unsigned_abs)));
    let refused = |(name, value): (&str, u64)| Err(format!("Cannot meet constraints with {name} {value}"));
    if align.1 != 0 && (!align.1.is_power_of_two() || align.1 >= i32::MAX as u64) {
        return refused(align);
    }
    let align = align.1.max(1);
    for (limit, unit) in [
        (max_transfer, align),
        (opt_write_zero, align),
        (max_write_zero, align.max(opt_write_zero.1)),
        (opt_discard, align),
        (max_discard, align.max(opt_discard.1)),
    ] {
        if limit.1 % unit != 0 || limit.1 >= i32::MAX as u64 {
            return refused(limit);
        }
    }
    Ok(())
}
