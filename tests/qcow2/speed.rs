//! The hot path of copying an empty disk, measured.

use std::time::Instant;

use backsim::block::ReqFlags;
use backsim::block::open::CommonOptions;
use backsim::block::qcow2::Qcow2CreateOptions;
use backsim::store::Host;

use super::rig::Rig;

/// Zeroes a 1 TiB disk in chunks of 1 MiB, as a full backup of an empty disk does. The bound is
/// generous, for slow machines and unoptimised builds.
#[test]
fn zeroing_a_tebibyte_is_quick() {
    let rig = Rig::quiet(Host::memory());
    rig.create("big.img", Qcow2CreateOptions { size: 1 << 40, ..Default::default() });
    let node = rig.open("big.img", CommonOptions::default());
    let (block, qcow2) = (rig.block.clone(), node.qcow2().expect("qcow2"));
    let begin = Instant::now();
    let done = rig.request(async move {
        for chunk in 0..1 << 20u64 {
            qcow2.pwrite_zeroes(&block, chunk << 20, 1 << 20, ReqFlags::NONE).await?;
        }
        Ok::<_, backsim::errno::Errno>(())
    });
    assert_eq!(done, Ok(()));
    let first = begin.elapsed();
    let (block, qcow2) = (rig.block.clone(), node.qcow2().expect("qcow2"));
    let begin = Instant::now();
    let done = rig.request(async move {
        for _ in 0..1 << 20u64 {
            qcow2.pwrite_zeroes(&block, 0, 1 << 20, ReqFlags::NONE).await?;
        }
        Ok::<_, backsim::errno::Errno>(())
    });
    assert_eq!(done, Ok(()));
    let cached = begin.elapsed();
    let begin = Instant::now();
    rig.close(node);
    eprintln!("1 TiB: {first:?}; cached: {} ns a chunk; close: {:?}", cached.as_nanos() >> 20, begin.elapsed());
    assert!(first.as_secs() < 30, "{first:?}");
}
