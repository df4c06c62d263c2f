//! What one process of the benchmark measures, from its command line.

use std::str::FromStr;

/// What the packets go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// A relay: verify, find the slot, rewrite under the next hop's key.
    Relay,
    /// An entry: a copy down each of `paths` paths.
    Entry,
    /// An exit: of `paths` copies the first is unwrapped and translated.
    ExitUp,
    /// An exit: a server's packet is translated, wrapped, and sent over `paths` paths.
    ExitDown,
    /// A gateway: an inside host's packet is translated.
    NatIn2out,
    /// A gateway: a server's packet is translated.
    NatOut2in,
}

/// A case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) path: Path,
    /// Sessions of the overlay, or inside hosts of a gateway; packets come in random order of them.
    pub(crate) sessions: u32,
    /// NAT bindings over all sessions; packets come in random order of them.
    pub(crate) flows: u32,
    /// Paths of a session.
    pub(crate) paths: u8,
    /// Ethernet frame, bytes; the smallest that the path allows where that is more.
    pub(crate) size: usize,
    /// Packets the driver gives at a time, at most.
    pub(crate) burst: usize,
    /// Workers, each in a thread and on a core of its own.
    pub(crate) workers: u8,
    /// Every flow has a binding from the start.
    pub(crate) is_bound: bool,
    /// 0: nodes are neither counted nor timed.
    pub(crate) watched: u8,
    /// 1: packets come in at another worker than their session's; 2: and that has a core of its own.
    pub(crate) handed: u8,
}

const PATHS: &str = "relay, entry, exit-up, exit-down, nat-in2out or nat-out2in";

impl Path {
    /// True where packets come from or go to the overlay.
    pub(crate) fn has_sessions(self) -> bool {
        !matches!(self, Self::NatIn2out | Self::NatOut2in)
    }

    /// True where packets are translated.
    pub(crate) fn has_bindings(self) -> bool {
        !matches!(self, Self::Relay | Self::Entry)
    }
}

impl Case {
    /// Reads `relay sessions=1000 size=64 ...`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let [path, options @ ..] = arguments else { return Err(format!("name a path: {PATHS}")) };
        let path = match path.as_str() {
            "relay" => Path::Relay,
            "entry" => Path::Entry,
            "exit-up" => Path::ExitUp,
            "exit-down" => Path::ExitDown,
            "nat-in2out" => Path::NatIn2out,
            "nat-out2in" => Path::NatOut2in,
            other => return Err(format!("'{other}' is no path: {PATHS}")),
        };
        let mut case = Self {
            path,
            sessions: 1,
            flows: 1,
            paths: 1,
            size: 64,
            burst: 256,
            workers: 1,
            is_bound: true,
            watched: 1,
            handed: 0,
        };
        for option in options {
            let (name, value) = option.split_once('=').ok_or_else(|| format!("'{option}' is not name=value"))?;
            match name {
                "sessions" => case.sessions = number(option, value)?,
                "flows" => case.flows = number(option, value)?,
                "paths" => case.paths = number(option, value)?,
                "size" => case.size = number(option, value)?,
                "burst" => case.burst = number(option, value)?,
                "workers" => case.workers = number(option, value)?,
                "watched" => case.watched = number(option, value)?,
                "handed" => case.handed = number(option, value)?,
                _ => {
                    return Err(format!(
                        "'{option}': there are sessions, flows, paths, size, burst, workers, watched, handed"
                    ));
                }
            }
        }
        match (case.handed, case.path, case.workers) {
            (0, ..) | (1 | 2, Path::Relay | Path::Entry, 1) => Ok(case),
            _ => Err("handed=1 or 2 is for relay and entry, and brings its own two workers".into()),
        }
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("'{option}' is not a number in range"))
}
