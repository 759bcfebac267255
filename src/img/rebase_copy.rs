//! The copying of `qemu-img rebase`: where an image has nothing of its own and its two backing files differ, it gets what
//! the old one has.
//!
//! Must never write where both are the same, nor read what the image has itself. QEMU's source: the loop of `img_rebase`
//! in `qemu-img.c`.

use std::rc::Rc;

use crate::block::{Block, NodeId, ReqFlags};
use crate::store::Content;

/// The buffer, bytes.
const BUFFER_BYTES: u64 = 2 << 20;
/// In what units older versions compare, bytes.
const SECTOR_BYTES: u64 = 512;

/// A backing file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) node: NodeId,
    /// Its length, bytes.
    pub(super) bytes: u64,
}

/// What is to be compared with what.
pub(super) struct RebaseCopy {
    pub(super) block: Rc<Block>,
    pub(super) image: NodeId,
    /// The image's length.
    pub(super) bytes: u64,
    pub(super) old: Option<Base>,
    pub(super) new: Option<Base>,
    /// The new one, if it is of the old chain.
    pub(super) prefix: Option<NodeId>,
    /// A cluster of the image, bytes.
    pub(super) unit: u64,
    /// Whole clusters are compared and written.
    pub(super) in_clusters: bool,
    /// As compressed clusters.
    pub(super) compress: bool,
}

impl RebaseCopy {
    /// Copies, in a coroutine; the error is the whole message.
    pub(super) async fn run(self) -> Result<(), String> {
        let mut offset = 0;
        while offset < self.bytes {
            let (differs, bytes) = self.look(offset, BUFFER_BYTES.min(self.bytes - offset)).await?;
            let (start, bytes) = match (differs, self.in_clusters) {
                (false, _) => {
                    offset += bytes;
                    continue;
                }
                // The old backing file's clusters may be smaller: no cluster of the image is to be filled twice.
                (true, true) => self.widen(offset, bytes),
                (true, false) => (offset, bytes),
            };
            offset = start + self.compare(start, bytes).await?;
        }
        Ok(())
    }

    /// Whether the two may differ from `offset` on, and for how many bytes that holds.
    async fn look(&self, offset: u64, most: u64) -> Result<(bool, u64), String> {
        let failed = |error| format!("error while reading image metadata: {error}");
        let (own, bytes) = self.block.co_is_allocated(self.image, offset, most).await.map_err(failed)?;
        let (false, Some(prefix), Some(old)) = (own, self.prefix, self.old) else { return Ok((!own, bytes)) };
        let above = self.block.co_is_allocated_above(old.node, Some(prefix), offset, bytes).await.map_err(failed)?;
        match above {
            // Behind its end the old one reads as zeros, whatever the new one has there.
            (_, 0) => Ok((true, bytes)),
            above => Ok(above),
        }
    }

    fn widen(&self, offset: u64, bytes: u64) -> (u64, u64) {
        let start = offset / self.unit * self.unit;
        let end = (offset + bytes).next_multiple_of(self.unit).min(self.bytes);
        (start, end - start)
    }

    /// Compares a range, or the beginning of it, and writes what differs; how much of it was compared.
    async fn compare(&self, start: u64, bytes: u64) -> Result<u64, String> {
        let mut bytes = bytes;
        if !self.in_clusters {
            // Nothing is compared across the end of either.
            for base in [self.old, self.new].into_iter().flatten() {
                if start < base.bytes {
                    bytes = bytes.min(base.bytes - start);
                }
            }
        }
        let old = self.read(self.old, start, bytes, "old").await?;
        let new = self.read(self.new, start, bytes, "new").await?;
        let unit = if self.in_clusters { self.unit } else { SECTOR_BYTES };
        let end_of_old = self.old.map_or(0, |base| base.bytes);
        let mut done = 0;
        while done < bytes {
            let (differs, length) = run_of(&old, &new, done, unit);
            if differs {
                let piece = (start + done < end_of_old).then(|| old.slice(done, length));
                self.write(start + done, length, piece).await?;
            }
            done += length;
        }
        Ok(bytes)
    }

    /// What a backing file has in a range, with zeros behind its end.
    async fn read(&self, base: Option<Base>, start: u64, bytes: u64, which: &str) -> Result<Content, String> {
        let there = base.map_or(0, |base| base.bytes.saturating_sub(start)).min(bytes);
        let Some(base) = base.filter(|_| there > 0) else { return Ok(Content::zeros(bytes)) };
        let content = self.block.co_pread(base.node, start, there, ReqFlags::NONE).await;
        let content = content.map_err(|_| format!("error while reading from {which} backing file"))?;
        Ok(if there == bytes { content } else { content.concat(Content::zeros(bytes - there)) })
    }

    async fn write(&self, at: u64, bytes: u64, content: Option<Content>) -> Result<(), String> {
        let flags = if self.compress { ReqFlags::COMPRESSED } else { ReqFlags::NONE };
        let written = match content {
            Some(content) => self.block.co_pwrite(self.image, at, content, flags).await,
            None => self.block.co_pwrite_zeroes(self.image, at, bytes, ReqFlags::NONE).await,
        };
        written.map_err(|error| format!("Error while writing to COW image: {error}"))
    }
}

/// Whether the two differ from `from` on, unit by unit, and for how many bytes that holds.
fn run_of(old: &Content, new: &Content, from: u64, unit: u64) -> (bool, u64) {
    let total = old.len();
    let differs = |at: u64| {
        let bytes = unit.min(total - at);
        (old.slice(at, bytes).first_difference(&new.slice(at, bytes)).is_some(), bytes)
    };
    let (first, mut length) = differs(from);
    while from + length < total {
        let (next, bytes) = differs(from + length);
        if next != first {
            break;
        }
        length += bytes;
    }
    (first, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_units_change_from_equal_to_different() {
        let old = Content::zeros(2048);
        let new = Content::zeros(700).concat(Content::pattern(1, 10)).concat(Content::zeros(1338));
        assert_eq!(run_of(&old, &new, 0, 512), (false, 512));
        assert_eq!(run_of(&old, &new, 512, 512), (true, 512));
        assert_eq!(run_of(&old, &new, 1024, 512), (false, 1024));
        assert_eq!(run_of(&old, &new, 0, 65_536), (true, 2048));
    }
}
