//! The `headrest` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    headrest::cli::run(std::env::args_os())
}
