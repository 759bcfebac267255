//! The binary: everything is in [`backsim::cli`].

use backsim::cli::ExitCode;

fn main() -> ExitCode {
    backsim::cli::main(backsim::cli::engine::simulated)
}
