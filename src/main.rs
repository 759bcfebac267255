//! The binary: everything is in [`backsim::cli`].

use backsim::cli::ExitCode;

/// A run makes and drops many small objects; docs/speed.md has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    backsim::cli::main(backsim::cli::engine::simulated)
}
