//! The binary: everything is in [`backsim::cli`].
fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
