//! Flushing and closing an image, rewriting its header, the dirty bit.
//!
//! A flush writes L2 tables and refcounts and leaves durability to the caller; closing makes
//! everything durable and clears the dirty bit last. QEMU's source: `qcow2_co_flush_to_os`,
//! `qcow2_inactivate`, `qcow2_update_header` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{Block, ReqFlags};
use crate::errno::{Errno, Res};
use crate::store::Content;

use super::Qcow2;
use super::header::{INCOMPAT_DIRTY, encode_first_cluster};
use super::table::prefix_content;

impl Qcow2 {
    /// Hands cached metadata to the file (`bdrv_co_flush_to_os`); the caller flushes the file.
    pub async fn flush_to_os(self: &Rc<Self>, block: &Rc<Block>) -> Res<()> {
        let _locked = self.lock(block).await;
        self.write_caches(block).await
    }

    /// Stores bitmaps, makes metadata durable and clears the dirty bit. The caller has flushed the
    /// node. Failures only show on stderr: the image needs a repair then.
    pub async fn close(self: &Rc<Self>, block: &Rc<Block>) {
        if self.ejected.get() {
            return;
        }
        // Whoever closes a node hears of no error.
        let _ = self.inactivate(block).await;
    }

    /// Gives the image up in a clean state (`qcow2_inactivate`); the last thing that failed. Lost bitmaps are EINVAL.
    pub async fn inactivate(self: &Rc<Self>, block: &Rc<Block>) -> Res<()> {
        let mut clean = Ok(());
        if let Err(reason) = self.store_bitmaps(block, true).await {
            let (program, name) = (block.program, block.node(self.node).name.clone());
            block.report_stderr(format!(
                "{program}: Lost persistent bitmaps during inactivation of node '{name}': {reason}"
            ));
            clean = Err(Errno::EINVAL);
        }
        if self.read_only.get() {
            return clean;
        }
        if let Err(error) = self.cache_flush(block, &self.l2_cache).await {
            block.report_stderr(format!("{}: Failed to flush the L2 table cache: {error}", block.program));
            clean = Err(error);
        }
        if let Err(error) = self.cache_flush(block, &self.refcount_cache).await {
            block.report_stderr(format!("{}: Failed to flush the refcount block cache: {error}", block.program));
            clean = Err(error);
        }
        if clean.is_ok() {
            // A dirty bit that stays only costs a repair.
            let _ = self.mark_clean(block).await;
        }
        clean
    }

    /// Rewrites the first cluster; nothing is flushed.
    pub(super) async fn update_header(&self, block: &Rc<Block>) -> Res<()> {
        let bytes = encode_first_cluster(&mut self.header.borrow_mut(), &self.extras.borrow());
        let content = prefix_content(bytes.ok_or(Errno::ENOSPC)?, self.geo.cluster_size());
        block.co_pwrite(self.file(), 0, content, ReqFlags::NONE).await
    }

    /// Sets the dirty bit, durably, before the first refcount goes wrong.
    pub(super) async fn mark_dirty(&self, block: &Rc<Block>) -> Res<()> {
        let bits = self.header.borrow().incompatible;
        if bits & INCOMPAT_DIRTY != 0 {
            return Ok(());
        }
        let dirty = bits | INCOMPAT_DIRTY;
        self.write_sync(block, 72, Content::from_bytes(dirty.to_be_bytes())).await?;
        self.header.borrow_mut().incompatible = dirty;
        Ok(())
    }

    /// Clears the dirty bit once everything is durable.
    pub(super) async fn mark_clean(&self, block: &Rc<Block>) -> Res<()> {
        if self.header.borrow().incompatible & INCOMPAT_DIRTY == 0 {
            return Ok(());
        }
        self.header.borrow_mut().incompatible &= !INCOMPAT_DIRTY;
        self.flush_caches(block).await?;
        self.update_header(block).await
    }
}
