//! Moving metadata tables between the cache and the file, in an order that survives a power cut.
//!
//! Before a table of a cache that depends on the other cache is written, that other cache is made
//! durable; see the dependencies in `refcount.rs`, `link.rs` and `compressed.rs`. Nothing outside
//! this file may write an L2 table or a refcount block. QEMU's source: `block/qcow2-cache.c`.

use std::rc::Rc;

use crate::block::{BlkdebugEvent, Block, BoxFuture, ReqFlags};
use crate::errno::{Errno, Res};

use super::Qcow2;
use super::cache::{Cache, CacheKind, TableRef};
use super::overlap::Area;
use super::table::{Table, content_prefix};

impl Qcow2 {
    /// The table at `offset`, read if it is not cached.
    #[inline]
    pub(super) async fn cache_get<'a, T: Table>(
        &'a self,
        block: &Rc<Block>,
        cache: &'a Cache<T>,
        offset: u64,
    ) -> Res<TableRef<'a, T>> {
        if offset.is_multiple_of(cache.entry_bytes())
            && offset != 0
            && let Some(table) = cache.lookup(offset)
        {
            return Ok(table);
        }
        self.cache_miss(block, cache, offset, true).await
    }

    /// A place for a new table at `offset`, all zeros; the old content of the file is not read.
    pub(super) async fn cache_get_empty<'a, T: Table>(
        &'a self,
        block: &Rc<Block>,
        cache: &'a Cache<T>,
        offset: u64,
    ) -> Res<TableRef<'a, T>> {
        if let Some(table) = cache.lookup(offset) {
            return Ok(table);
        }
        self.cache_miss(block, cache, offset, false).await
    }

    fn cache_miss<'a: 'b, 'b, T: Table>(
        &'a self,
        block: &'b Rc<Block>,
        cache: &'a Cache<T>,
        offset: u64,
        read: bool,
    ) -> BoxFuture<'b, Res<TableRef<'a, T>>> {
        Box::pin(async move {
            if !offset.is_multiple_of(cache.entry_bytes()) {
                let name = match cache.kind {
                    CacheKind::L2 => "L2 table",
                    CacheKind::Refcount => "refcount block",
                };
                let message = format!("Cannot get entry from {name} cache: Offset {offset:#x} is unaligned");
                self.signal_corruption(block, true, None, message).await;
                return Err(Errno::EIO);
            }
            // Two tables at most are in use at a time, and no cache has fewer entries.
            let index = cache.victim(offset).ok_or(Errno::ENOMEM)?;
            self.cache_write_entry(block, cache, index).await?;
            cache.forget(index);
            if !read {
                return Ok(cache.fill(index, offset, T::default()));
            }
            if cache.kind == CacheKind::L2 {
                block.debug_event(self.file(), BlkdebugEvent::L2Load).await;
            }
            let content = block.co_pread(self.file(), offset, cache.entry_bytes(), ReqFlags::NONE).await?;
            Ok(cache.fill(index, offset, T::decode(content_prefix(&content))))
        })
    }

    /// Writes one entry if it is dirty, after what it depends on.
    async fn cache_write_entry<T: Table>(&self, block: &Rc<Block>, cache: &Cache<T>, index: usize) -> Res<()> {
        let (offset, dirty) = cache.entry(index);
        if !dirty || offset == 0 {
            return Ok(());
        }
        if cache.depends.get() {
            self.flush_dependency(block, cache.kind).await?;
        } else if cache.depends_on_flush.get() {
            block.co_flush(self.file()).await?;
            cache.depends_on_flush.set(false);
        }
        let (own, event) = match cache.kind {
            CacheKind::L2 => (Area::ActiveL2, BlkdebugEvent::L2Update),
            CacheKind::Refcount => (Area::RefcountBlock, BlkdebugEvent::RefblockUpdatePart),
        };
        self.check_overlap(block, Some(own), offset, cache.entry_bytes()).await?;
        block.debug_event(self.file(), event).await;
        let content = cache.content(index);
        block.co_pwrite(self.file(), offset, content, ReqFlags::NONE).await?;
        cache.set_clean(index);
        Ok(())
    }

    /// Makes durable what the cache of this kind depends on.
    fn flush_dependency<'a>(&'a self, block: &'a Rc<Block>, kind: CacheKind) -> BoxFuture<'a, Res<()>> {
        Box::pin(async move {
            match kind {
                CacheKind::L2 => {
                    self.cache_flush(block, &self.refcount_cache).await?;
                    self.l2_cache.depends.set(false);
                    self.l2_cache.depends_on_flush.set(false);
                }
                CacheKind::Refcount => {
                    self.cache_flush(block, &self.l2_cache).await?;
                    self.refcount_cache.depends.set(false);
                    self.refcount_cache.depends_on_flush.set(false);
                }
            }
            Ok(())
        })
    }

    /// Writes all dirty tables in index order. An entry that fails does not stop the others; the
    /// last error counts, but ENOSPC is remembered over any later one.
    pub(super) async fn cache_write<T: Table>(&self, block: &Rc<Block>, cache: &Cache<T>) -> Res<()> {
        let mut result = Ok(());
        let mut next = 0;
        while let Some(index) = cache.next_dirty(next) {
            let outcome = self.cache_write_entry(block, cache, index).await;
            if outcome.is_err() && result != Err(Errno::ENOSPC) {
                result = outcome;
            }
            next = index + 1;
        }
        result
    }

    /// Writes all dirty tables and makes them durable.
    pub(super) async fn cache_flush<T: Table>(&self, block: &Rc<Block>, cache: &Cache<T>) -> Res<()> {
        let result = self.cache_write(block, cache).await;
        if result.is_ok() {
            block.co_flush(self.file()).await?;
        }
        result
    }

    /// From now on the L2 cache is written only after the refcount cache is durable. For that what the latter depends on is
    /// written first; if that fails, the order stays as it was and nobody is told, since QEMU's callers do not look at what
    /// `qcow2_cache_set_dependency` returns.
    pub(super) async fn l2_depends_on_refcounts(&self, block: &Rc<Block>) {
        if !self.refcount_cache.depends.get() || self.flush_dependency(block, CacheKind::Refcount).await.is_ok() {
            self.l2_cache.depends.set(true);
        }
    }

    /// From now on the refcount cache is written only after the L2 cache is durable; else as
    /// [`Qcow2::l2_depends_on_refcounts`].
    pub(super) async fn refcounts_depend_on_l2(&self, block: &Rc<Block>) {
        if !self.l2_cache.depends.get() || self.flush_dependency(block, CacheKind::L2).await.is_ok() {
            self.refcount_cache.depends.set(true);
        }
    }

    /// Writes both caches, without making them durable. With the dirty bit set refcounts stay.
    pub(super) async fn write_caches(&self, block: &Rc<Block>) -> Res<()> {
        self.cache_write(block, &self.l2_cache).await?;
        if self.needs_accurate_refcounts() {
            self.cache_write(block, &self.refcount_cache).await?;
        }
        Ok(())
    }

    /// Writes both caches and makes them durable.
    pub(super) async fn flush_caches(&self, block: &Rc<Block>) -> Res<()> {
        self.write_caches(block).await?;
        block.co_flush(self.file()).await
    }
}
