//! `starnet reload` and `starnet drain`: change what a running gateway does, over its UNIX socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Failure, print, show::socket_of};
use crate::telemetry::operator;

#[derive(clap::Args, Debug)]
pub(super) struct Reload {
    /// The socket of the node [default: the only one in /run/starnet]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Drain {
    /// Take new flows again
    #[arg(long)]
    off: bool,
    /// The socket of the node [default: the only one in /run/starnet]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn reload(arguments: &Reload) -> Result<(), Failure> {
    let done = order("reload", arguments.socket.as_deref())?;
    let [mappings, exempt, bindings] = ["mappings", "exempt", "bindings"].map(|field| &done[field]);
    print(&format!("reloaded: {mappings} static mappings, {exempt} exempt networks; {bindings} bindings go on\n"))
}

pub(super) fn drain(arguments: &Drain) -> Result<(), Failure> {
    let done = order(if arguments.off { "undrain" } else { "drain" }, arguments.socket.as_deref())?;
    let what = if arguments.off { "taking new flows" } else { "draining" };
    print(&format!("{what}: {} bindings left\n", done["bindings"]))
}

fn order(name: &str, socket: Option<&Path>) -> Result<Value, Failure> {
    operator::ask(&socket_of(socket)?, name).map_err(Failure::runtime)
}
