//! Versions and known defects as data: every difference of behaviour is one named field here.
//!
//! `compat:` picks a set; the model asks a field at the one place where it matters. A field that
//! re-enacts a defect which no release had (for exploration) is false in every set.

/// Which QEMU's observable behaviour is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Compat {
    /// 7.2.22, as Debian 12 packages it.
    #[default]
    Qemu72,
    /// 10.0.2, as Debian 13 packages it.
    Qemu100,
}

impl Compat {
    /// All known sets, oldest first.
    pub const ALL: [Compat; 2] = [Compat::Qemu72, Compat::Qemu100];

    /// The name in `compat:` and `--compat`.
    pub fn name(self) -> &'static str {
        match self {
            Compat::Qemu72 => "qemu-7.2",
            Compat::Qemu100 => "qemu-10.0",
        }
    }

    /// The set called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Compat> {
        Compat::ALL.into_iter().find(|c| c.name() == name)
    }
}

macro_rules! quirks {
    ($($(#[$doc:meta])* $name:ident: $since_10:expr;)*) => {
        /// The differences between versions that a user can see; each names the version in which it
        /// holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Quirks {
            /// The set that the fields come from.
            pub compat: Compat,
            $($(#[$doc])* pub $name: bool,)*
        }

        impl Quirks {
            /// The set of one version.
            pub fn of(compat: Compat) -> Quirks {
                let is_10 = compat == Compat::Qemu100;
                Quirks { compat, $($name: is_10 == $since_10,)* }
            }
        }
    };
}

quirks! {
    /// 10.0: changes of the graph are made under a lock that drains all nodes (`block/graph-lock.c`).
    graph_lock: true;
    /// 10.0: the copy bitmap lives on the filter; 7.2: on the source (`block/copy-before-write.c`).
    copy_bitmap_on_filter: true;
    /// 10.0: the filter takes CONSISTENT_READ on the source whenever it has a parent; 7.2: only with
    /// a writing parent (`cbw_child_perm`).
    cbw_always_reads: true;
    /// 10.0: transaction actions commit and clean last to first; 7.2: first to last (`blockdev.c`,
    /// `util/transactions.c`).
    transaction_reverse: true;
    /// 10.0: `grouped` is checked for all actions before the first is prepared.
    grouped_checked_first: true;
    /// 10.0 has `min-cluster-size`, `discard-source`, `block-job-change`, `active`.
    since_9: true;
    /// 10.0: a refused block_resize names the op blocker; 7.2: `Device '(null)' is in use`.
    resize_names_blocker: true;
    /// 7.2: a snapshot read whose done run ends inside the request reads new data from the source
    /// (`block/copy-before-write.c`).
    snapshot_done_lookup_wrong: false;
    /// 7.2: `cbw-timeout` in ns is kept in 32 bits.
    cbw_timeout_32_bits: false;
    /// 10.0: `qemu-img info` shows child nodes and a wider table of snapshots.
    img_shows_children: true;
    /// 10.0: `qemu-img map` shows `compressed` (8.2).
    img_map_compressed: true;
    /// 10.0.2 as Debian packages it: qemu-img's later texts for a wrong command line, and more long options.
    img_new_usage: true;
    /// 10.0: `Detected format of …` ends in a newline.
    img_hint_newline: true;
    /// 10.0: `qemu-img bitmap` stores bitmaps before the close-time flush and reports failures.
    img_bitmap_stores_first: true;
}
