//! Changing a node's length (`bdrv_co_truncate` in `block/io.c`), and what is allocated meanwhile.
//!
//! Each driver does its own part of it. Must never look at what a node's data are.

use std::rc::Rc;

use super::graph::Block;
use super::io::BoxFuture;
use super::node::{Driver, NodeId};

/// What becomes of new bytes (`PreallocMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing is allocated.
    #[default]
    Off,
    /// A format maps every cluster; no data are written.
    Metadata,
    /// Room is taken on the disk; what is read there are zeros.
    Falloc,
    /// Zeros are written as data.
    Full,
}

impl Preallocation {
    /// All modes.
    pub const ALL: [Preallocation; 4] =
        [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];

    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        }
    }

    /// The mode that is called `name`.
    pub fn from_name(name: &str) -> Option<Preallocation> {
        Preallocation::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// The largest length of a node, bytes (`BDRV_MAX_LENGTH`).
pub(super) const MAX_LENGTH: u64 = (1 << 63) - (1 << 30);

/// Refuses a length that no node can have (`bdrv_check_request`). The error is QEMU's text.
pub(super) fn check_length(size: u64) -> Result<(), String> {
    if i64::try_from(size).is_err() {
        return Err("Image size cannot be negative".to_owned());
    }
    match size <= MAX_LENGTH {
        true => Ok(()),
        false => Err(format!("offset({size}) exceeds maximum({MAX_LENGTH})")),
    }
}

impl Block {
    /// Sets a node's length, bytes; a longer node reads zeros there. The error is QEMU's text.
    pub fn co_truncate<'a>(
        self: &'a Rc<Self>,
        id: NodeId,
        size: u64,
        preallocation: Preallocation,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            const NO_RESIZE: &str = "Image format driver does not support resize";
            let node = self.node(id);
            let driver = node.driver.borrow().clone();
            if matches!(driver, Driver::None) {
                return Err("No medium inserted".to_owned());
            }
            check_length(size)?;
            if !matches!(driver, Driver::Qcow2(_)) {
                node.bitmaps.borrow().check_size(size).map_err(|fault| fault.to_string())?;
            }
            let mut length = size.next_multiple_of(512);
            match driver {
                Driver::File(file) => file.truncate(self, &node, size, preallocation).await?,
                Driver::Qcow2(qcow2) => qcow2.truncate(self, size, preallocation).await?,
                Driver::Raw(raw) => {
                    if raw.window().size.is_some() {
                        return Err("Cannot resize fixed-size raw disks".to_owned());
                    }
                    let below = size.checked_add(raw.offset()).filter(|size| i64::try_from(*size).is_ok());
                    let below = below.ok_or("Disk size too large for the chosen offset")?;
                    let child = node.primary_child().ok_or(NO_RESIZE)?;
                    self.co_truncate(child, below, preallocation).await?;
                    // The node below has whole sectors; with an odd offset that is more than was asked for.
                    length = raw.window().length(self.length(&self.node(child)));
                }
                // Filters have no say in it.
                Driver::Blkdebug(_) | Driver::CopyBeforeWrite(_) => {
                    let child = node.primary_child().ok_or(NO_RESIZE)?;
                    self.co_truncate(child, size, preallocation).await?;
                }
                _ => return Err(NO_RESIZE.to_owned()),
            }
            self.set_length(&node, length);
            node.write_generation.add(1);
            Ok(())
        })
    }
}
