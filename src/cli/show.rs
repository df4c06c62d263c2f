//! `starnet show`: asks a running process over its UNIX socket.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Failure, print};
use crate::{
    control::show_nat::{Cursor, NatFilter, NatPart},
    node::RUN_DIRECTORY,
    telemetry::{
        operator,
        show::{self, Topic},
        show_nat,
    },
};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// What to show
    topic: Topic,
    /// Of the NAT: which part [default: summary]
    part: Option<NatPart>,
    #[command(flatten)]
    filter: NatFilter,
    /// Of the NAT's flows and hosts: rows at most; 0: all
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    limit: usize,
    /// Of the NAT's flows and hosts: go on behind what an earlier answer ended with
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
    /// The socket of the process [default: the only one in /run/starnet]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON: raw numbers, the unit in the field's name
    #[arg(long)]
    json: bool,
    /// Also show what is zero: all drop counters, all edges of the graph
    #[arg(long)]
    all: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let topic = arguments.topic;
    let socket = socket_of(arguments.socket.as_deref())?;
    if topic == Topic::Nat {
        return show_nat(arguments, &socket);
    }
    if arguments.part.is_some() {
        return Err(Failure::Usage(
            "only 'nat' has parts: starnet show nat flows (see starnet show --help)".to_owned(),
        ));
    }
    let answer: Value = operator::ask(&socket, topic.name()).map_err(Failure::runtime)?;
    let answer = if arguments.all { answer } else { show::without_zeroes(topic, answer) };
    if arguments.json {
        let text = serde_json::to_string_pretty(&answer).map_err(Failure::runtime)?;
        return print(&format!("{text}\n"));
    }
    print(&show::columns(topic, answer).map_err(Failure::Runtime)?)
}

fn show_nat(arguments: &Arguments, socket: &Path) -> Result<(), Failure> {
    let part = arguments.part.unwrap_or(NatPart::Summary);
    let Arguments { filter, after, limit, .. } = arguments;
    let answer = show_nat::ask(socket, part, filter, *after, *limit).map_err(Failure::runtime)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&answer).map_err(Failure::runtime)?;
        return print(&format!("{text}\n"));
    }
    print(&show_nat::columns(part, answer).map_err(Failure::Runtime)?)
}

/// The socket to ask: the one named, or the only one there is.
pub(super) fn socket_of(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(socket) => Ok(socket.to_owned()),
        None => only_socket(Path::new(RUN_DIRECTORY)),
    }
}

/// The socket to ask where none was named.
fn only_socket(directory: &Path) -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sockets: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "sock")).collect();
    sockets.sort();
    match sockets.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::Usage(format!("no socket in {}: say which with --socket", directory.display()))),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Failure::Usage(format!("several sockets, say which with --socket: {}", names.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_socket_needs_no_name_and_two_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        let refusal = || match only_socket(folder.path()).unwrap_err() {
            Failure::Usage(text) | Failure::Runtime(text) => text,
        };
        assert!(refusal().starts_with("no socket in "));
        file("ports");
        file("a.sock");
        assert_eq!(only_socket(folder.path()).unwrap(), folder.path().join("a.sock"));
        file("b.sock");
        assert!(refusal().starts_with("several sockets, say which with --socket: "));
    }
}
