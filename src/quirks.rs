//! Versions and known defects as data: every difference of behaviour is one named field here.
//!
//! `compat:` picks a set; the model asks a field at the one place where it matters. A field that
//! re-enacts a defect which no release had (for exploration) is in [`Defects`] and false in every set.

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
            /// Mistakes put in on purpose.
            pub defects: Defects,
        }

        impl Quirks {
            /// The set of one version.
            pub const fn of(compat: Compat) -> Quirks {
                let is_10 = matches!(compat, Compat::Qemu100);
                Quirks { compat, $($name: is_10 == $since_10,)* defects: Defects::NONE }
            }
        }
    };
}

impl Quirks {
    /// The set of one version with the defects of these names; an unknown name is the error.
    pub fn with_defects<'a>(compat: Compat, names: impl IntoIterator<Item = &'a str>) -> Result<Quirks, String> {
        let mut quirks = Quirks::of(compat);
        for name in names {
            if !quirks.defects.set(name) {
                let known: Vec<&str> = DEFECTS.iter().map(|defect| defect.name).collect();
                return Err(format!("no defect is called '{name}'; there are: {}", known.join(", ")));
            }
        }
        Ok(quirks)
    }
}

/// A mistake that can be put back into the model: its name and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defect {
    /// The name in `defects:` and `--defect`.
    pub name: &'static str,
    /// What goes wrong, in one line.
    pub text: &'static str,
}

macro_rules! defects {
    ($($name:literal $field:ident: $text:literal;)*) => {
        /// Mistakes that such code has really made, put in on purpose so that exploration can be measured
        /// against them. All are off in every version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct Defects {
            $(#[doc = $text] pub $field: bool,)*
        }

        /// All defects, in the order in which they are listed.
        pub const DEFECTS: &[Defect] = &[$(Defect { name: $name, text: $text },)*];

        impl Defects {
            /// None at all.
            pub const NONE: Defects = Defects { $($field: false,)* };

            /// Switches the defect called `name` on; false if there is none.
            pub fn set(&mut self, name: &str) -> bool {
                match name {
                    $($name => self.$field = true,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

defects! {
    "cbw-ignores-in-flight" cbw_ignores_in_flight:
        "copy-before-write does not wait for a copy of the same cluster that is in flight";
    "copy-bit-cleared-late" copy_bit_cleared_late:
        "the copy bit is cleared after the copy instead of before";
    "failed-copy-loses-bits" failed_copy_loses_bits:
        "a copy that fails does not set its bits back";
    "successor-dropped" successor_dropped_on_failure:
        "the successor bitmap is dropped when the job fails";
    "pending-cancel-is-success" pending_cancel_is_success:
        "a cancel in pending counts as success for the bitmap";
    "always-forgets-uncopied" always_forgets_uncopied:
        "bitmap-mode always forgets what was not copied";
    "discard-bypasses-cbw" discard_bypasses_cbw:
        "a guest's discard passes without copy-before-write";
    "fleecing-read-unprotected" fleecing_read_unprotected:
        "a guest's write does not wait for a snapshot read of what it overwrites";
    "filter-leaves-early" filter_leaves_early:
        "the filter leaves before its last guest write has settled";
    "partial-tail-not-copied" partial_tail_not_copied:
        "the tail of a disk whose size is no multiple of the cluster is not copied";
    "stop-loses-chunk" stop_loses_chunk:
        "the error policy stop loses the chunk that failed when the job goes on";
    "group-finalizes-alone" group_finalizes_alone:
        "a grouped transaction finalizes one job though another has failed";
}

quirks! {
    /// 10.0: changes of the graph are made under a lock that drains all nodes (`block/graph-lock.c`).
    graph_lock: true;
    /// 10.0: the copy bitmap lives on the filter; 7.2: on the source (`block/copy-before-write.c`).
    copy_bitmap_on_filter: true;
    /// 10.0: what a snapshot reader finds copied must be allocated in the target, or the process aborts
    /// (`cbw_co_snapshot_block_status`).
    copied_is_asserted: true;
    /// 10.0: while a job's filter leaves, the node below is drained, and all above it; if that node ends with the filter, the
    /// process aborts (`bdrv_drop_filter`, `bdrv_do_drained_end`). 7.2: the filter is drained, and all above it.
    left_node_is_drained: true;
    /// 10.0: the filter takes CONSISTENT_READ on the source whenever it has a parent; 7.2: only with
    /// a writing parent (`cbw_child_perm`).
    cbw_always_reads: true;
    /// 10.0: transaction actions commit and clean last to first; 7.2: first to last (`blockdev.c`,
    /// `util/transactions.c`).
    transaction_reverse: true;
    /// 7.2: a transaction that fails removes a bitmap that it has added by its name; 10.0 by itself
    /// (`block_dirty_bitmap_add_abort`).
    rollback_by_name: false;
    /// 10.0: `grouped` is checked for all actions before the first is prepared.
    grouped_checked_first: true;
    /// 10.0 has `min-cluster-size`, `discard-source`, `block-job-change`, `active`, and says which node could not be
    /// flushed before a snapshot.
    since_9: true;
    /// 10.0: a machine that ends stops before it begins the drained section in which it cancels its jobs; 7.2 stops
    /// inside that section (`qemu_cleanup`).
    quit_stops_first: true;
    /// 7.2: the permissions below the node that a reopening came upon last are looked at first; 10.0: below the first
    /// (`bdrv_reopen_multiple`).
    reopen_refreshes_last_first: false;
    /// 10.0: each time that a reopening comes upon a node it drains it, but it ends that only once (`bdrv_reopen_queue_child`).
    reopen_counts_drains: true;
    /// 10.0: a drained section of all nodes reaches a job through the nodes below it; in 7.2 each node tells only those
    /// jobs and backends that use it themselves (`bdrv_drain_all_begin`).
    drain_all_climbs: true;
    /// 10.0: queries tell `format-specific` of a file too, though it is empty (`block/file-posix.c`).
    file_is_specific: true;
    /// 10.0: a refused block_resize names the op blocker; 7.2: `Device '(null)' is in use`.
    resize_names_blocker: true;
    /// 10.0: of what a snapshot reader discards, whole clusters are given up; 7.2 asserts that it asks for nothing else
    /// (`cbw_co_pdiscard_snapshot`).
    snapshot_discard_rounds: true;
    /// 7.2: a snapshot read whose done run ends inside the request reads new data from the source
    /// (`block/copy-before-write.c`).
    snapshot_done_lookup_wrong: false;
    /// 7.2: a zero write of a backend unmaps on a node without `discard: unmap` too, since the request does
    /// not pass the function that would drop the flag (`block/block-backend.c`).
    backend_keeps_unmap: false;
    /// 7.2: raw looks how long the node below is whenever it is asked for its own length (`has_variable_length`).
    raw_asks_for_length: false;
    /// 10.0: each node looks how long it is when it is reopened; 7.2: raw only.
    reopen_looks_at_length: true;
    /// 7.2: `cbw-timeout` in ns is kept in 32 bits.
    cbw_timeout_32_bits: false;
    /// 10.0: `qemu-img info` shows child nodes and a wider table of snapshots.
    img_shows_children: true;
    /// 10.0: `qemu-img map` shows `compressed` (8.2).
    img_map_compressed: true;
    /// 10.0.2 as Debian packages it: qemu-img's later texts for a wrong command line, and more long options.
    img_new_usage: true;
    /// 10.0: `qemu-img rebase` compares and writes whole clusters, compressed ones if asked to (8.2).
    img_rebase_in_clusters: true;
    /// 10.0: `Detected format of …` ends in a newline.
    img_hint_newline: true;
    /// 10.0: `qemu-img bitmap` stores bitmaps before the close-time flush and reports failures.
    img_bitmap_stores_first: true;
    /// 10.0: a hexadecimal size takes no suffix, a size may begin with its point, and a negative one is out of range
    /// instead of malformed (`util/cutils.c`).
    strtosz_strict: true;
    /// 10.0: qemu-io registers buffers (`-r`) and has commands for zones (`qemu-io-cmds.c`).
    io_zones_and_buffers: true;
}
