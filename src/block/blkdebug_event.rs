//! The events that drivers tell to a blkdebug node beneath them.
//!
//! Names and order are those of QAPI's `BlkdebugEvent` (`qapi/block-core.json`).

macro_rules! events {
    ($($variant:ident $name:literal,)*) => {
        /// A place in a driver's code, as blkdebug rules name it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names are QEMU's; its documentation lists them without more words")]
        pub enum BlkdebugEvent {
            $($variant,)*
        }

        impl BlkdebugEvent {
            /// Every event, in QAPI's order.
            pub const ALL: &'static [BlkdebugEvent] = &[$(BlkdebugEvent::$variant,)*];

            /// The QAPI name.
            pub fn name(self) -> &'static str {
                match self { $(BlkdebugEvent::$variant => $name,)* }
            }
        }
    };
}

events! {
    L1Update "l1_update",
    L1GrowAllocTable "l1_grow_alloc_table",
    L1GrowWriteTable "l1_grow_write_table",
    L1GrowActivateTable "l1_grow_activate_table",
    L2Load "l2_load",
    L2Update "l2_update",
    L2UpdateCompressed "l2_update_compressed",
    L2AllocCowRead "l2_alloc_cow_read",
    L2AllocWrite "l2_alloc_write",
    ReadAio "read_aio",
    ReadBackingAio "read_backing_aio",
    ReadCompressed "read_compressed",
    WriteAio "write_aio",
    WriteCompressed "write_compressed",
    VmstateLoad "vmstate_load",
    VmstateSave "vmstate_save",
    CowRead "cow_read",
    CowWrite "cow_write",
    ReftableLoad "reftable_load",
    ReftableGrow "reftable_grow",
    ReftableUpdate "reftable_update",
    RefblockLoad "refblock_load",
    RefblockUpdate "refblock_update",
    RefblockUpdatePart "refblock_update_part",
    RefblockAlloc "refblock_alloc",
    RefblockAllocHookup "refblock_alloc_hookup",
    RefblockAllocWrite "refblock_alloc_write",
    RefblockAllocWriteBlocks "refblock_alloc_write_blocks",
    RefblockAllocWriteTable "refblock_alloc_write_table",
    RefblockAllocSwitchTable "refblock_alloc_switch_table",
    ClusterAlloc "cluster_alloc",
    ClusterAllocBytes "cluster_alloc_bytes",
    ClusterFree "cluster_free",
    FlushToOs "flush_to_os",
    FlushToDisk "flush_to_disk",
    PwritevRmwHead "pwritev_rmw_head",
    PwritevRmwAfterHead "pwritev_rmw_after_head",
    PwritevRmwTail "pwritev_rmw_tail",
    PwritevRmwAfterTail "pwritev_rmw_after_tail",
    Pwritev "pwritev",
    PwritevZero "pwritev_zero",
    PwritevDone "pwritev_done",
    EmptyImagePrepare "empty_image_prepare",
    L1ShrinkWriteTable "l1_shrink_write_table",
    L1ShrinkFreeL2Clusters "l1_shrink_free_l2_clusters",
    CorWrite "cor_write",
    ClusterAllocSpace "cluster_alloc_space",
    None "none",
}

impl BlkdebugEvent {
    /// The event called `name`.
    pub fn from_name(name: &str) -> Option<BlkdebugEvent> {
        BlkdebugEvent::ALL.iter().copied().find(|event| event.name() == name)
    }
}
