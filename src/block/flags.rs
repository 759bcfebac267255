//! Small types of the request path: request flags, block status, permissions.
//!
//! Only data; what the bits mean to a driver is the driver's business. Names are those of QEMU's
//! `include/block/block-common.h` without their prefixes.

use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

use super::node::NodeId;

macro_rules! bit_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct $name(pub u32);

        impl $name {
            /// No bit.
            pub const NONE: $name = $name(0);
            $($(#[$bit_doc])* pub const $bit: $name = $name($value);)*

            /// Whether all bits of `other` are set.
            pub fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any bit of `other` is set.
            pub fn intersects(self, other: $name) -> bool {
                self.0 & other.0 != 0
            }

            /// These bits without those of `other`.
            pub fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }

            /// Whether no bit is set.
            pub fn is_empty(self) -> bool {
                self.0 == 0
            }
        }

        impl BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }

        impl BitAnd for $name {
            type Output = $name;
            fn bitand(self, other: $name) -> $name {
                $name(self.0 & other.0)
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: $name) {
                self.0 |= other.0;
            }
        }

        impl Not for $name {
            type Output = $name;
            fn not(self) -> $name {
                $name(!self.0)
            }
        }
    };
}

bit_set! {
    /// Flags of a request (`BdrvRequestFlags`).
    ReqFlags {
        /// The data may be dropped from the disk on a zero write.
        MAY_UNMAP = 1;
        /// The write is on the disk when it completes.
        FUA = 2;
        /// Store compressed.
        COMPRESSED = 4;
        /// The content does not change for the guest.
        UNCHANGED = 8;
        /// Wait for, and hold off, overlapping requests.
        SERIALISING = 16;
        /// A zero write that must not fall back to writing zeros.
        NO_FALLBACK = 32;
        /// The request is a zero write (set by detect-zeroes inside the request path).
        ZERO_WRITE = 64;
        /// MAY_UNMAP holds whatever the node's `discard` option says.
        KEEP_UNMAP = 256;
        /// Fail with EBUSY instead of waiting for another request.
        NO_WAIT = 128;
    }
}

bit_set! {
    /// What block status tells about a range (`BDRV_BLOCK_*`).
    StatusFlags {
        /// Reads come from this layer's file.
        DATA = 1;
        /// Reads as zeros.
        ZERO = 2;
        /// `map` is valid.
        OFFSET_VALID = 4;
        /// The content is defined by this layer.
        ALLOCATED = 8;
        /// The range reaches the end of the node.
        EOF = 16;
        /// Stored compressed.
        COMPRESSED = 32;
        /// The answer is that of the file child at `map`.
        RAW = 64;
        /// The file child may know that the data are zeros.
        RECURSE = 128;
    }
}

bit_set! {
    /// Permissions on a node (`BLK_PERM_*`).
    Perm {
        /// Reads return consistent data.
        CONSISTENT_READ = 1;
        /// May change content.
        WRITE = 2;
        /// May write without changing content.
        WRITE_UNCHANGED = 4;
        /// May change the length.
        RESIZE = 8;
        /// Everything.
        ALL = 15;
    }
}

impl Perm {
    /// The names in QEMU's order, joined by `, `.
    pub fn names(self) -> String {
        const NAMES: [(Perm, &str); 4] = [
            (Perm::CONSISTENT_READ, "consistent read"),
            (Perm::WRITE, "write"),
            (Perm::WRITE_UNCHANGED, "write unchanged"),
            (Perm::RESIZE, "resize"),
        ];
        let held: Vec<&str> = NAMES.iter().filter(|(p, _)| self.contains(*p)).map(|(_, n)| *n).collect();
        held.join(", ")
    }
}

/// The answer to a block-status request, for the first `bytes` of the range that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// What is known.
    pub flags: StatusFlags,
    /// How far the answer holds; never 0 for a non-empty question inside the node.
    pub bytes: u64,
    /// Where in `file` the range lies, bytes; meaningful with `OFFSET_VALID`.
    pub map: u64,
    /// The node that `map` is an offset in.
    pub file: Option<NodeId>,
}

impl BlockStatus {
    /// An answer without a mapping.
    pub fn new(flags: StatusFlags, bytes: u64) -> BlockStatus {
        BlockStatus { flags, bytes, map: 0, file: None }
    }
}
