//! Other options for an open image, and what becomes of its bitmaps then.
//!
//! Whatever may fail is done, or checked, in the preparation; the caches are written there, and begin anew when the
//! reopening is certain. Must never let a bitmap change while its node may not be written. QEMU's source:
//! `qcow2_reopen_prepare`, `qcow2_update_options` and `qcow2_reopen_commit_post` in `block/qcow2.c`.

use std::rc::Rc;

use crate::bitmap::BitmapId;
use crate::block::Block;
use crate::errno::Res;

use super::Qcow2;
use super::bitmap_format::IN_USE;
use super::bitmap_store::is_stored;
use super::open::{cache_shape, check_sizes};
use super::options::Qcow2Options;

impl Qcow2 {
    /// What it was opened, or opened again, with.
    pub fn options(&self) -> Qcow2Options {
        self.options.borrow().clone()
    }

    /// Prepares for other options. An error without words is one of which QEMU says nothing more either.
    pub async fn prepare_reopen(
        self: &Rc<Self>,
        block: &Rc<Block>,
        options: &Qcow2Options,
        read_only: bool,
    ) -> Result<(), Option<String>> {
        self.check_options(block, options)?;
        self.flush_caches_in_words(block).await?;
        if self.uses_lazy_refcounts() && !self.lazy_refcounts_with(options) {
            let cleaned = self.mark_clean(block).await;
            cleaned.map_err(|error| format!("Failed to disable lazy refcounts: {error}"))?;
        }
        if read_only {
            // Of an image that is read-only already this asks the same: a bitmap which was made since can't be stored.
            self.store_bitmaps(block, false).await?;
            self.set_bitmaps_readonly(block);
            self.make_clean(block).await.map_err(|_| None)?;
        }
        Ok(())
    }

    /// What the options ask for must be possible.
    fn check_options(&self, block: &Block, options: &Qcow2Options) -> Result<(), String> {
        check_sizes(block, options)?;
        cache_shape(&self.header.borrow(), options).map(|_| ())
    }

    /// Writes both caches; tells which of them could not be written.
    pub(super) async fn flush_caches_in_words(&self, block: &Rc<Block>) -> Result<(), String> {
        let flushed = self.cache_flush(block, &self.l2_cache).await;
        flushed.map_err(|error| format!("Failed to flush the L2 table cache: {error}"))?;
        let flushed = self.cache_flush(block, &self.refcount_cache).await;
        flushed.map_err(|error| format!("Failed to flush the refcount block cache: {error}"))
    }

    /// Flushes, and clears the dirty bit.
    async fn make_clean(&self, block: &Rc<Block>) -> Res<()> {
        block.co_flush(self.node).await?;
        self.mark_clean(block).await
    }

    /// The reopening is certain: from now on the options hold.
    pub fn commit_reopen(&self, options: Qcow2Options, read_only: bool) {
        *self.options.borrow_mut() = options;
        self.read_only.set(read_only);
        self.reshape_caches();
    }

    /// The node and all others of the reopening have their options, and this one may be written: its bitmaps are
    /// marked in use and may change. A failure only shows on stderr, and bitmaps stay read-only.
    pub async fn finish_reopen(self: &Rc<Self>, block: &Rc<Block>) {
        if let Err(reason) = self.make_bitmaps_writable(block).await {
            let (program, name) = (block.program, block.node(self.node).name.clone());
            block.report_stderr(format!("{program}: {name}: Failed to make dirty bitmaps writable: {reason}"));
        }
    }

    fn set_bitmaps_readonly(&self, block: &Block) {
        let node = block.node(self.node);
        let mut list = node.bitmaps.borrow_mut();
        let ids: Vec<BitmapId> = list.iter().filter(|(_, bitmap)| is_stored(bitmap)).map(|(id, _)| id).collect();
        for id in ids {
            if let Some(bitmap) = list.get_mut(id) {
                bitmap.readonly = true;
            }
        }
    }

    async fn make_bitmaps_writable(&self, block: &Rc<Block>) -> Result<(), String> {
        let mut stored = self.read_directory(block).await?;
        let node = block.node(self.node);
        let mut writable = Vec::new();
        let mut changed = false;
        for entry in &mut stored {
            let list = node.bitmaps.borrow();
            let (name, file) = (&entry.name, block.filename(node.id));
            let id = list.find(name);
            let Some((id, bitmap)) = id.and_then(|id| list.get(id).map(|bitmap| (id, bitmap))) else {
                return Err(format!("Unexpected bitmap '{name}' in image '{file}'"));
            };
            let wrong = match (entry.flags & IN_USE != 0, bitmap.readonly, bitmap.inconsistent) {
                (false, false, _) => "is not marked IN_USE in the image 'F' and not marked readonly in RAM",
                (false, true, true) => "is inconsistent but is not marked IN_USE in the image 'F'",
                (true, true, false) => "is marked IN_USE in the image 'F' but it is readonly and consistent in RAM",
                _ => "",
            };
            if !wrong.is_empty() {
                return Err(format!("Corruption: bitmap '{name}' {}", wrong.replace("'F'", &format!("'{file}'"))));
            }
            changed |= entry.flags & IN_USE == 0;
            entry.flags |= IN_USE;
            writable.push(id);
        }
        if changed {
            let updated = self.rewrite_directory_in_place(block, &stored).await;
            updated.map_err(|error| format!("Cannot update bitmap directory: {error}"))?;
        }
        let mut list = node.bitmaps.borrow_mut();
        for id in writable {
            if let Some(bitmap) = list.get_mut(id) {
                bitmap.readonly = false;
            }
        }
        Ok(())
    }
}
