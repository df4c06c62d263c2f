//! Structured logs on stderr: warnings and a few lines at start, unless asked for more.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `RUST_LOG` wins over `verbose` (0: info and above of ours, 1: debug, 2: all).
pub(super) fn start(verbose: u8) {
    let default = match verbose {
        0 => "warn,starnet=info",
        1 => "info,starnet=debug",
        _ => "debug,starnet=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let is_terminal = io::stderr().is_terminal();
    fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).with_target(verbose > 0).init();
}
