//! `starnet client`: what of its file the command line overrides.

use std::path::PathBuf;

use super::Failure;
use crate::{
    client::{
        self,
        config::{self, Forward, Overrides},
    },
    limits,
};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Its TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Carry a local port to a server: udp:LISTEN=SERVER or tcp:LISTEN=SERVER, each IP:PORT (needs no root;
    /// may be given several times; replaces those of the file)
    #[arg(long = "forward", value_name = "FORWARD")]
    forwards: Vec<Forward>,
    /// The entry node [default: as in the file, else the best]
    #[arg(long, value_name = "NODE")]
    entry: Option<String>,
    /// The exit node [default: as in the file, else the best]
    #[arg(long, value_name = "NODE")]
    exit: Option<String>,
    /// Paths to use at once [default: as in the file, else 2]
    #[arg(long, value_name = "COUNT", value_parser = paths)]
    paths: Option<usize>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config, forwards, entry, exit, paths } = arguments;
    let overrides = Overrides { entry, exit, paths, forwards };
    let config = config::load(&config, &overrides).map_err(|error| Failure::Usage(error.to_string()))?;
    client::run(config).map_err(Failure::runtime)
}

fn paths(text: &str) -> Result<usize, String> {
    let allowed = 1..=limits::PATHS_MAX;
    text.parse().ok().filter(|paths| allowed.contains(paths)).ok_or(format!("1 to {}", limits::PATHS_MAX))
}
