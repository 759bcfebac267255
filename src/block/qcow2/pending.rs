//! Stand-ins until persistent bitmaps are merged.
use std::rc::Rc;

use super::Qcow2;
use crate::block::Block;

#[allow(missing_docs)]
impl Qcow2 {
    pub async fn can_store_new_bitmap(self: &Rc<Self>, _: &Rc<Block>, _: &str, _: u64) -> Result<(), String> {
        Ok(())
    }
    pub async fn remove_persistent_bitmap(self: &Rc<Self>, _: &Rc<Block>, _: &str) -> Result<(), String> {
        Ok(())
    }
    pub async fn reopen_read_only(self: &Rc<Self>, _: &Rc<Block>) -> Result<(), String> {
        Ok(())
    }
    pub async fn reopen_read_write(self: &Rc<Self>, _: &Rc<Block>) {}
}
