//! The rules of one dirty bitmap, each shown once, and against a list of booleans.

use super::*;
use proptest::prelude::*;

const K: u64 = 1024;

fn dirty(size: u64, granularity: u64, areas: &[(u64, u64)]) -> DirtyBitmap {
    let mut bitmap = DirtyBitmap::new(size, granularity, None).unwrap();
    for &(offset, bytes) in areas {
        bitmap.set(offset, bytes);
    }
    bitmap
}

#[test]
fn granularity_is_a_power_of_two_in_qemus_range() {
    for bad in [0, 256, 513, 3 * K, 1 << 32, u64::MAX] {
        let fault = DirtyBitmap::new(K, bad, None).map(|_| ());
        assert_eq!(fault, Err(BitmapFault::Granularity));
    }
    assert!(DirtyBitmap::new(K, 512, None).is_ok());
    assert!(DirtyBitmap::new(u64::MAX, 1 << 31, None).is_ok());
    assert_eq!(DirtyBitmap::new(u64::MAX, 512, None).map(|_| ()), Err(BitmapFault::TooBig));
}

#[test]
fn the_default_follows_the_cluster_size_within_limits() {
    assert_eq!(default_granularity(Some(512)), 4096);
    assert_eq!(default_granularity(Some(2 << 20)), 65536);
    assert_eq!(default_granularity(Some(8192)), 8192);
    assert_eq!(default_granularity(Some(0)), 65536);
    assert_eq!(default_granularity(None), 65536);
}

#[test]
fn marking_rounds_outward_and_cleaning_inward() {
    let mut bitmap = dirty(100 * K, 64 * K, &[(1, 1)]);
    assert_eq!(bitmap.count_bytes(), 64 * K);
    bitmap.set(64 * K, 1);
    assert_eq!(bitmap.count_bytes(), 128 * K, "the last granule counts whole");
    bitmap.reset(1, 100 * K);
    assert_eq!(bitmap.next_zero(0, u64::MAX), Some(64 * K));
    bitmap.reset(0, 64 * K - 1);
    assert!(bitmap.is_set(0));
    bitmap.reset(0, 64 * K);
    assert_eq!(bitmap.count_bytes(), 0);
}

#[test]
fn an_area_begins_where_asked_and_ends_at_the_disk() {
    let bitmap = dirty(100 * K, 64 * K, &[(0, 100 * K)]);
    assert_eq!(bitmap.next_dirty_area(10, u64::MAX, u64::MAX), Some((10, 100 * K - 10)));
    assert_eq!(bitmap.next_dirty_area(0, u64::MAX, 7), Some((0, 7)));
    assert_eq!(bitmap.next_dirty_area(0, 70 * K, u64::MAX), Some((0, 70 * K)));
    assert_eq!(bitmap.next_dirty_area(100 * K, u64::MAX, u64::MAX), None);
    assert_eq!(bitmap.next_dirty_area(0, 0, u64::MAX), None);
    assert_eq!(bitmap.next_dirty_area(0, u64::MAX, 0), None);
}

#[test]
fn growing_adds_clean_granules_and_shrinking_forgets() {
    let mut bitmap = dirty(128 * K, 64 * K, &[(0, 128 * K)]);
    bitmap.truncate(1 << 20).unwrap();
    assert_eq!(bitmap.count_bytes(), 128 * K);
    bitmap.truncate(64 * K).unwrap();
    bitmap.truncate(128 * K).unwrap();
    assert_eq!(bitmap.count_bytes(), 64 * K);
}

#[test]
fn cleared_bits_come_back_also_after_a_resize() {
    let mut bitmap = dirty(128 * K, 64 * K, &[(64 * K, 1)]);
    let kept = bitmap.clear_keeping();
    assert_eq!(bitmap.count_bytes(), 0);
    bitmap.truncate(256 * K).unwrap();
    bitmap.set(0, 1);
    bitmap.restore(kept);
    assert_eq!(bitmap.dirty_areas().collect::<Vec<_>>(), [(64 * K, 64 * K)]);
}

#[test]
fn states_are_refused_in_order_and_in_qemus_words() {
    let mut bitmap = DirtyBitmap::new(K, 512, Some("b0")).unwrap();
    assert_eq!(bitmap.check(Allow::NOTHING), Ok(()));
    bitmap.inconsistent = true;
    let text = |bitmap: &DirtyBitmap, allow| bitmap.check(allow).unwrap_err().to_string();
    assert_eq!(text(&bitmap, Allow::READONLY), "Bitmap 'b0' is inconsistent and cannot be used");
    assert_eq!(bitmap.check(Allow::INCONSISTENT), Ok(()));
    bitmap.readonly = true;
    assert_eq!(text(&bitmap, Allow::NOTHING), "Bitmap 'b0' is readonly and cannot be modified");
    bitmap.busy = true;
    assert_eq!(
        text(&bitmap, Allow::NOTHING),
        "Bitmap 'b0' is currently in use by another operation and cannot be used"
    );
}

#[test]
fn sizes_must_agree_in_a_merge() {
    let fault = dirty(K, 512, &[]).merge_from(&dirty(2 * K, 512, &[])).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "Bitmaps are of different sizes (destination size is 1024, source size is 2048) \
         and can't be merged"
    );
}

#[test]
fn the_stored_form_is_words_and_at_least_one() {
    let bitmap = dirty(100 * K, 64 * K, &[(64 * K, 1)]);
    assert_eq!(bitmap.serialize(0, u64::MAX), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(dirty(0, 512, &[]).serialized_len(), 8);
    assert_eq!(dirty(65 * 512, 512, &[]).serialized_len(), 16);
    assert!(bitmap.any_serialized(0, 1));
    assert!(!bitmap.any_serialized(1, u64::MAX));
    let mut other = dirty(100 * K, 64 * K, &[]);
    other.deserialize_ones(0, 8);
    assert_eq!(other.count_bytes(), 128 * K, "no bit beyond the disk");
}

proptest! {
    /// Every byte of the disk is looked at on its own: dirty after the merge exactly if its
    /// granule held or touches a granule that was dirty.
    #[test]
    fn merging_marks_every_granule_touched(
        size in 0u64..40_000,
        (fine, coarse) in (9u32..13, 9u32..15),
        target in prop::collection::vec((0u64..40_000, 0u64..3000), 0..4),
        source in prop::collection::vec((0u64..40_000, 0u64..3000), 0..4),
    ) {
        let mut merged = dirty(size, 1 << fine, &target);
        let before = merged.clone();
        let from = dirty(size, 1 << coarse, &source);
        merged.merge_from(&from).unwrap();
        let mut naive: Vec<bool> = (0..size).map(|at| before.is_set(at)).collect();
        for at in 0..size {
            if from.is_set(at) {
                let granule = at >> fine << fine;
                let end = (granule + (1 << fine)).min(size);
                naive[granule as usize..end as usize].fill(true);
            }
        }
        for at in 0..size {
            prop_assert_eq!(merged.is_set(at), naive[at as usize], "at byte {}", at);
        }
    }

    #[test]
    fn searches_agree_with_single_bytes(
        size in 1u64..20_000,
        areas in prop::collection::vec((0u64..20_000, 0u64..3000), 0..4),
        (offset, len, max) in (0u64..21_000, 0u64..9000, 1u64..5000),
    ) {
        let bitmap = dirty(size, 1024, &areas);
        let end = (offset + len).min(size);
        let find = |from: u64, end: u64, set| (from..end).find(|&at| bitmap.is_set(at) == set);
        prop_assert_eq!(bitmap.next_dirty(offset, len), find(offset, end, true));
        prop_assert_eq!(bitmap.next_zero(offset, len), find(offset, end, false));
        let area = find(offset, end, true).map(|start| {
            let end = end.min(start + max);
            (start, find(start, end, false).unwrap_or(end) - start)
        });
        prop_assert_eq!(bitmap.next_dirty_area(offset, offset + len, max), area);
    }
}
