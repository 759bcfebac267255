//! The `null-co` driver: a disk of a given size without content.

use serde_json::{Map, Value};

use crate::errno::Res;
use crate::sim::Nanos;
use crate::store::Content;

use super::flags::{BlockStatus, StatusFlags};
use super::graph::Block;
use super::node::NodeId;

/// State of a null node.
#[derive(Clone, Debug)]
pub struct NullDriver {
    /// `size`, bytes; QEMU's default is 1 GiB.
    pub size: u64,
    /// `latency-ns` of every request.
    pub latency: Nanos,
    /// `read-zeroes`: whether reads are known to return zeros.
    pub read_zeroes: bool,
    /// `size` as it was given, bytes.
    pub given_size: Option<i64>,
    /// `read-zeroes` as it was given.
    pub given_read_zeroes: Option<bool>,
}

impl NullDriver {
    /// With these options, as far as they were given.
    pub fn new(given_size: Option<i64>, given_read_zeroes: Option<bool>, latency: Nanos) -> NullDriver {
        NullDriver {
            size: given_size.map_or(1 << 30, i64::unsigned_abs),
            latency,
            read_zeroes: given_read_zeroes.unwrap_or(false),
            given_size,
            given_read_zeroes,
        }
    }

    /// The options that its file name shows, if any was given.
    pub fn options(&self) -> Map<String, Value> {
        let size = self.given_size.map(|size| ("size".to_owned(), Value::from(size)));
        let zeroes = self.given_read_zeroes.map(|on| ("read-zeroes".to_owned(), Value::from(on)));
        size.into_iter().chain(zeroes).collect()
    }

    /// What every request does: nothing, after the configured time.
    pub async fn request(&self, block: &Block) -> Res<()> {
        if self.latency > 0 {
            block.sim.sleep(self.latency).await;
        }
        Ok(())
    }

    /// Reads; without `read-zeroes` QEMU leaves the buffer as it is, here it is zeros too.
    pub async fn read(&self, block: &Block, bytes: u64) -> Res<Content> {
        self.request(block).await?;
        Ok(Content::zeros(bytes))
    }

    /// Block status (`null_co_block_status`).
    pub fn status(&self, node: NodeId, offset: u64, bytes: u64) -> BlockStatus {
        let zero = if self.read_zeroes { StatusFlags::ZERO } else { StatusFlags::NONE };
        BlockStatus { flags: StatusFlags::OFFSET_VALID | zero, bytes, map: offset, file: Some(node) }
    }
}
