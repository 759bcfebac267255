//! Subcommands by name, and how each may end.

use super::args::{Opt, Reader, usage};
use super::process::{Outcome, Process, not_modelled};
use super::{bitmap, check, compare, convert, create, info, map, rebase, resize};

/// Subcommands of QEMU that are not modelled.
const NOT_MODELLED: &[&str] = &["amend", "bench", "commit", "dd", "measure", "snapshot"];
const MODELLED: &str = "bitmap, check, compare, convert, create, info, map, rebase, resize";

/// Runs the command line to its end; the exit status.
pub(super) async fn dispatch(process: &Process, args: &[String]) -> i32 {
    process.told(subcommand(process, args).await).unwrap_or_else(|exit| exit.status)
}

async fn subcommand(process: &Process, args: &[String]) -> Outcome<i32> {
    let quirks = process.block.quirks;
    let Some((name, args)) = args.split_first() else {
        return Err(usage(&quirks, None, "Not enough arguments"));
    };
    let reader = |table: &'static [Opt]| Reader { quirks: &quirks, subcommand: name, table };
    // Each on the heap: the frame of one must not be as large as that of the largest.
    match name.as_str() {
        "bitmap" => Box::pin(bitmap::run(process, &reader(bitmap::OPTIONS), args)).await,
        "check" => Box::pin(check::run(process, &reader(check::OPTIONS), args)).await,
        "compare" => Box::pin(compare::run(process, &reader(compare::OPTIONS), args)).await,
        "convert" => Box::pin(convert::run(process, &reader(convert::OPTIONS), args)).await,
        "create" => Box::pin(create::run(process, &reader(create::OPTIONS), args)).await,
        "info" => Box::pin(info::run(process, &reader(info::OPTIONS), args)).await,
        "map" => Box::pin(map::run(process, &reader(map::OPTIONS), args)).await,
        "rebase" => Box::pin(rebase::run(process, &reader(rebase::OPTIONS), args)).await,
        "resize" => Box::pin(resize::run(process, &reader(resize::OPTIONS), args)).await,
        option if option.starts_with('-') => {
            Err(not_modelled(&format!("option '{option}'"), "a subcommand comes first"))
        }
        name if NOT_MODELLED.contains(&name) => {
            Err(not_modelled(&format!("subcommand '{name}'"), &format!("there are {MODELLED}")))
        }
        name => Err(usage(&quirks, None, &format!("Command not found: {name}"))),
    }
}
