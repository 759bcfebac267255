//! The order of members on QEMU's wire.
//!
//! QEMU prints a dictionary in the order of its hash buckets. Transcripts sort members, so this
//! matters only where the first of several members decides (an unexpected one) and for `qemu-img`'s JSON.

/// The bucket of a key in QEMU's `QDict` (`qobject/qdict.c`), 0 to 511.
pub fn bucket(key: &str) -> u32 {
    let seed = 0x238F_13AFu32.wrapping_mul(key.len() as u32);
    let sum =
        key.bytes().enumerate().fold(seed, |value, (i, byte)| value.wrapping_add(u32::from(byte) << (i * 5 % 24)));
    1_103_515_243u32.wrapping_mul(sum).wrapping_add(12345) % 512
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn events_and_errors_come_in_the_order_of_real_qemu() {
        for order in [
            &["timestamp", "event", "data"][..],
            &["class", "desc"],
            &["seconds", "microseconds"],
            &["device", "len", "offset", "speed", "type", "error"],
            &["name", "recording", "persistent", "busy", "granularity", "count"],
        ] {
            let buckets: Vec<u32> = order.iter().map(|key| bucket(key)).collect();
            assert!(buckets.is_sorted(), "{order:?}: {buckets:?}");
        }
    }
}
