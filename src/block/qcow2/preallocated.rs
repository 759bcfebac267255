//! Images of which less is on the host's disk than is mapped: metadata were preallocated, or holes punched.
//!
//! Of such an image, and only of such, block status asks the file as well whether data are holes. QEMU's
//! source: `qcow2_detect_metadata_preallocation` in `block/qcow2-refcount.c`.

use std::rc::Rc;

use crate::block::{Block, Driver};
use crate::errno::Res;

use super::Qcow2;

impl Qcow2 {
    /// Whether mapped clusters may be holes; found out once, by the first question for a status.
    pub(super) async fn may_have_holes(&self, block: &Rc<Block>) -> bool {
        if let Some(known) = self.preallocated.get() {
            return known;
        }
        let _locked = self.lock(block).await;
        // Without an answer QEMU goes on as if there were no holes.
        let found = self.find_holes(block).await.unwrap_or(false);
        self.preallocated.set(Some(found));
        found
    }

    /// Whether clearly more clusters are in use than the file has on the disk.
    async fn find_holes(&self, block: &Rc<Block>) -> Res<bool> {
        let file = block.node(self.file());
        if matches!(&*file.driver.borrow(), Driver::Blkdebug(_)) {
            // Does not know what the file takes.
            return Ok(false);
        }
        let Some(on_disk) = block.allocated_size(self.file()) else { return Ok(false) };
        let real = on_disk / self.geo.cluster_size();
        let threshold = (real * 10 / 9).max(real + 2);
        let clusters = file.length.get().div_ceil(self.geo.cluster_size());
        let mut used = 0;
        for cluster in 0..clusters {
            if used >= threshold {
                break;
            }
            used += u64::from(self.get_refcount(block, cluster).await? > 0);
        }
        Ok(used >= threshold)
    }
}
