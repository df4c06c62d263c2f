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
    In2out,
    /// An exit: a server's packet is translated, wrapped, and sent over `paths` paths.
    Out2in,
}

/// A case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) path: Path,
    /// Sessions; packets come in random order of them.
    pub(crate) sessions: u32,
    /// NAT bindings over all sessions; packets come in random order of them.
    pub(crate) flows: u32,
    /// Paths of a session.
    pub(crate) paths: u8,
    /// Ethernet frame, bytes; the smallest that the path allows where that is more.
    pub(crate) size: usize,
    /// Packets the driver gives at a time, at most.
    pub(crate) burst: usize,
}

impl Case {
    /// Reads `relay sessions=1000 size=64 ...`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let [path, options @ ..] = arguments else { return Err("name a path: relay, entry, in2out or out2in".into()) };
        let path = match path.as_str() {
            "relay" => Path::Relay,
            "entry" => Path::Entry,
            "in2out" => Path::In2out,
            "out2in" => Path::Out2in,
            other => return Err(format!("'{other}' is no path: relay, entry, in2out or out2in")),
        };
        let mut case = Self { path, sessions: 1, flows: 1, paths: 1, size: 64, burst: 256 };
        for option in options {
            let (name, value) = option.split_once('=').ok_or_else(|| format!("'{option}' is not name=value"))?;
            match name {
                "sessions" => case.sessions = number(option, value)?,
                "flows" => case.flows = number(option, value)?,
                "paths" => case.paths = number(option, value)?,
                "size" => case.size = number(option, value)?,
                "burst" => case.burst = number(option, value)?,
                _ => return Err(format!("'{option}': there are sessions, flows, paths, size and burst")),
            }
        }
        Ok(case)
    }
}

fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("'{option}' is not a number in range"))
}
