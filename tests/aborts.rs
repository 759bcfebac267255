//! Where an assertion of QEMU fails, or QEMU hangs, the simulated machine ends at the same step.
//!
//! A scenario that ends so has no transcript that `check` could replay.

use backsim::quirks::Compat;
use backsim::scenario::parse;
use backsim::scenario::run::Ending;
use backsim::scenario::simulate::{SimOptions, simulate};

fn ending(text: &str, compat: Compat) -> Ending {
    let cases = parse("aborts.yaml", text).expect("no mistakes").cases().expect("no mistakes");
    let options = SimOptions { compat: Some(compat), ..SimOptions::default() };
    simulate(&cases[0], options).expect("images are in memory").outcome.ending
}

/// 10.0 aborts at the step of this command, 7.2 goes on.
fn assert_only_10_0_aborts(text: &str, command: &str) {
    assert_eq!(ending(text, Compat::Qemu72), Ending::Passed);
    assert_aborts(text, Compat::Qemu100, command);
}

fn assert_aborts(text: &str, compat: Compat, command: &str) {
    let Ending::Failed { line, why, .. } = ending(text, compat) else { panic!("it passed") };
    let place = text.lines().position(|line| line.contains(command)).expect("the command");
    assert_eq!(line as usize, place + 1);
    assert!(why.starts_with("QEMU ended by itself: ") && why.contains("signal 6 (SIGABRT"), "{why}");
}

#[test]
fn a_fleecing_target_must_not_forget_zeros() {
    assert_only_10_0_aborts(include_str!("aborts/fleecing-target-forgets-zeros.yaml"), "blockdev-backup");
}

#[test]
fn a_filter_must_not_be_all_that_holds_the_node_below() {
    assert_only_10_0_aborts(include_str!("aborts/snapshot-below-a-filter.yaml"), "job-finalize");
}

#[test]
fn a_jobs_filter_must_not_carry_anothers_bitmap() {
    let text = include_str!("aborts/filter-on-a-filter.yaml");
    assert_aborts(text, Compat::Qemu72, "job-cancel");
    assert_eq!(ending(text, Compat::Qemu100), Ending::Passed);
}

#[test]
fn a_snapshot_must_be_given_up_in_whole_clusters() {
    let text = include_str!("aborts/part-of-a-snapshot-discarded.yaml");
    assert_aborts(text, Compat::Qemu72, "discard 160k 32k");
    assert_eq!(ending(text, Compat::Qemu100), Ending::Passed);
}

#[test]
fn a_machine_may_abort_while_it_is_told_to_end() {
    let text = include_str!("aborts/snapshot-below-a-filter.yaml");
    let (before, _) = text.split_once("  - execute: job-finalize").expect("the command");
    assert_only_10_0_aborts(&format!("{before}  - vm: shutdown\n"), "vm: shutdown");
}

#[test]
fn a_write_must_not_lie_behind_a_bitmap() {
    for compat in [Compat::Qemu72, Compat::Qemu100] {
        assert_aborts(include_str!("aborts/write-behind-a-bitmap.yaml"), compat, "write -P 1 2M");
        assert_aborts(include_str!("aborts/failed-growth.yaml"), compat, "write -P 1 1M");
    }
}

#[test]
fn a_node_must_not_change_its_length_unseen() {
    for compat in [Compat::Qemu72, Compat::Qemu100] {
        assert_aborts(include_str!("aborts/growing-source.yaml"), compat, "write -P 1 0");
        assert_aborts(include_str!("aborts/shrunk-below-a-filter.yaml"), compat, "write -P 1 512k");
        assert_aborts(include_str!("aborts/grown-below-a-bitmap.yaml"), compat, "write -P 1 1M");
        assert_aborts(include_str!("aborts/backup-of-a-grown-disk.yaml"), compat, "blockdev-backup");
    }
}

#[test]
fn a_refused_backup_gives_the_bitmap_back() {
    let text = include_str!("aborts/backup-of-a-grown-disk.yaml").replace("size: 128k", "size: 64k");
    for compat in [Compat::Qemu72, Compat::Qemu100] {
        assert_aborts(&text, compat, "blockdev-backup");
    }
    let (before, rest) = text.split_once("  - execute: blockdev-reopen").expect("the command");
    let (_, after) = rest.split_once("  - execute: ").expect("another command");
    let text = format!("{before}  - execute: {after}");
    assert_aborts(&text, Compat::Qemu72, "blockdev-backup");
    // There a node that was not reopened has its old length.
    assert_eq!(ending(&text, Compat::Qemu100), Ending::Passed);
}

#[test]
fn a_node_without_a_driver_must_not_be_reopened() {
    for compat in [Compat::Qemu72, Compat::Qemu100] {
        assert_aborts(include_str!("aborts/reopened-without-a-driver.yaml"), compat, "file: below}]}}");
    }
}

#[test]
fn a_refcount_block_must_lie_somewhere() {
    for compat in [Compat::Qemu72, Compat::Qemu100] {
        assert_aborts(include_str!("aborts/refblock-of-reserved-bits.yaml"), compat, "block_resize");
        assert_aborts(include_str!("aborts/refblock-of-reserved-bits-in-qemu-img.yaml"), compat, "--shrink");
    }
}

#[test]
fn a_node_that_is_reopened_twice_stays_drained() {
    let text = include_str!("aborts/reopened-twice.yaml");
    assert_eq!(ending(text, Compat::Qemu72), Ending::Passed);
    let Ending::Failed { why, .. } = ending(text, Compat::Qemu100) else { panic!("10.0 hangs") };
    assert!(why.contains("qemu-io waits for the end of a drained section"), "{why}");
}
