//! The binary: everything is in [`backsim::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    backsim::cli::main(backsim::cli::engine::simulated)
}
