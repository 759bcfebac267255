//! `qemu-img check`: consistency of an image's metadata (`img_check` in QEMU's `qemu-img.c`).
use super::args::{Opt, Reader};
use super::process::{Outcome, Process, not_modelled};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[];

/// Runs the subcommand.
pub(super) async fn run(_: &Process, _: &Reader<'_>, _: &[String]) -> Outcome<i32> {
    Err(not_modelled("subcommand 'check'", "it comes soon"))
}
