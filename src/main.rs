//! The program: see [`starnet::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    starnet::cli::main()
}
