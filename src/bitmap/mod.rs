//! The bitmap layer: which parts of a disk have been written to.
//!
//! [`hbitmap::Bits`] is the bare array of bits, [`DirtyBitmap`] one bitmap with QEMU's state,
//! [`BitmapList`] all of a node. Must never know of nodes, jobs or commands: who is told of a
//! write, and when, and which checks a command makes, is decided above.

mod dirty;
pub mod hbitmap;
mod list;
mod summary;

use std::rc::Rc;

pub use dirty::{Allow, BitmapState, DirtyBitmap, MAX_GRANULARITY, MIN_GRANULARITY, default_granularity};
pub use list::{BitmapId, BitmapList};

/// Why something cannot be done with a bitmap. The texts are QEMU's where QEMU has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapFault {
    /// The bitmap is in a state that the operation does not accept.
    #[error("Bitmap '{name}' {}", state_text(*.state))]
    State {
        /// Name of the bitmap, empty for an anonymous one.
        name: Rc<str>,
        /// What is in the way.
        state: BitmapState,
    },
    /// Two bitmaps to be merged are of disks of different size.
    #[error(
        "Bitmaps are of different sizes (destination size is {target_size}, source size is {source_size}) \
         and can't be merged"
    )]
    Sizes {
        /// Bytes that the target covers.
        target_size: u64,
        /// Bytes that the source covers.
        source_size: u64,
    },
    /// A granularity that no bitmap can have.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// More granules than a map can have bits ([`hbitmap::MAX_BITS`]). QEMU, whose maps are in memory as a whole, aborts
    /// at a size that depends on the host.
    #[error("not modelled: a bitmap of more than 2^34 granules")]
    TooBig,
    /// A second successor was asked for.
    #[error("Cannot create a successor for a bitmap that already has one")]
    Successor,
    /// There is no successor to abdicate to or to take back.
    #[error("Cannot relinquish control if there's no successor present")]
    NoSuccessor,
    /// The list has no such bitmap (any more).
    #[error("Dirty bitmap {0} not found")]
    Unknown(BitmapId),
}

fn state_text(state: BitmapState) -> &'static str {
    match state {
        BitmapState::Busy => "is currently in use by another operation and cannot be used",
        BitmapState::Readonly => "is readonly and cannot be modified",
        BitmapState::Inconsistent => "is inconsistent and cannot be used",
    }
}
