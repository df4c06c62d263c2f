//! `starnet reload` and `starnet drain`: change what a running gateway does, over its UNIX socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Failure, print, show::socket_of};
use crate::{
    control::show_nat::NatFilter,
    telemetry::{operator, show_nat},
};

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

#[derive(clap::Args, Debug)]
pub(super) struct ClearNat {
    #[command(flatten)]
    filter: NatFilter,
    /// All of them
    #[arg(long, conflicts_with_all = ["host", "protocol", "port", "outside", "state", "owner"])]
    all: bool,
    /// The socket of the node [default: the only one in /run/starnet]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Ways to disturb a node, and to see whether it felt that.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Debug {
    /// Have the control core do nothing for so long; established flows must not feel it
    Stall {
        /// How long, at most 1000
        milliseconds: u64,
        /// The socket of the node [default: the only one in /run/starnet]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Print the residence times of packets since the start, and how many had each, as JSON: [[nanoseconds, packets], ...]
    Residence {
        /// The socket of the node [default: the only one in /run/starnet]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

pub(super) fn debug(what: &Debug) -> Result<(), Failure> {
    match what {
        Debug::Stall { milliseconds, socket } => {
            order(&format!("stall {milliseconds}"), socket.as_deref())?;
            print(&format!("stalled: {milliseconds} ms\n"))
        }
        Debug::Residence { socket } => print(&format!("{}\n", order("residence", socket.as_deref())?)),
    }
}

/// Tables that can be cleared.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Clear {
    /// Free NAT bindings; static mappings and those of flow sessions stay
    Nat(ClearNat),
}

pub(super) fn clear(what: &Clear) -> Result<(), Failure> {
    let Clear::Nat(ClearNat { filter, all, socket }) = what;
    if *filter == NatFilter::default() && !all {
        return Err(Failure::Usage("say which bindings, or --all (see starnet clear nat --help)".to_owned()));
    }
    let count = show_nat::clear(&socket_of(socket.as_deref())?, filter).map_err(Failure::runtime)?;
    print(&format!("cleared: {count} bindings\n"))
}

pub(super) fn reload(arguments: &Reload) -> Result<(), Failure> {
    let done = order("reload", arguments.socket.as_deref())?;
    let [addresses, mappings, exempt, bindings] =
        ["addresses", "mappings", "exempt", "bindings"].map(|field| &done[field]);
    print(&format!(
        "reloaded: {mappings} static mappings, {exempt} exempt networks, {addresses} outside addresses; {bindings} bindings \
         go on\n"
    ))
}

pub(super) fn drain(arguments: &Drain) -> Result<(), Failure> {
    let done = order(if arguments.off { "undrain" } else { "drain" }, arguments.socket.as_deref())?;
    let what = if arguments.off { "taking new flows" } else { "draining" };
    print(&format!("{what}: {} bindings left\n", done["bindings"]))
}

fn order(name: &str, socket: Option<&Path>) -> Result<Value, Failure> {
    operator::ask(&socket_of(socket)?, name).map_err(Failure::runtime)
}
