//! What the control core knows of a session at this node.
//!
//! A session owns exactly one slot here, so the slot's [`CtIndex`] names it. Others name it by [`Name`].

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use super::{interface::RequestId, repair::Care};
use crate::{
    Nanos,
    dataplane::conntrack::{CtIndex, FanInit, Link, NO_BINDING, NodeKey, SOURCE_PORTS, SourcePorts},
    limits::PATHS_MAX,
    rpc::messages::{Failure, FailureReason, LinkEnd, NodeName, Open, Opened, SessionId, SessionKind},
    wire::relay::HopKey,
};

/// Requests for the same thing that can wait for its end; the oldest is answered with `Busy` for a further one.
pub(super) const WAITERS_MAX: usize = 8;

/// How the nodes of a path name a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    /// The entry: this node, or another one.
    pub(super) entry: NodeName,
    /// The client's number for it.
    pub(super) session: SessionId,
    /// A relay has one slot a path; entry and exit one for all.
    pub(super) path: Option<u8>,
}

/// The node at the other end of a hop, as it was when the hop was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) name: NodeName,
    pub(super) control: SocketAddrV4,
    pub(super) data: SocketAddrV4,
    pub(super) boot_epoch: u64,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot is reserved; the worker knows nothing of it.
    Opening,
    /// Written to the worker.
    Open,
    /// Idle: the worker was asked to free it if it still is.
    Ageing,
    /// Nobody can name it any more; the worker was told to free it.
    Closing,
}

impl State {
    /// Its name on screen.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Ageing => "ageing",
            Self::Closing => "closing",
        }
    }
}

/// A session at this node.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: Name,
    pub(super) generation: u16,
    /// Whose token it was.
    pub(super) client: String,
    pub(super) kind: SessionKind,
    pub(super) state: State,
    /// When the state became `Opening` or `Open`.
    pub(super) since: Nanos,
    /// A FreeSlot is on its way to the worker or its answer back. Never two.
    pub(super) is_free_pending: bool,
    pub(super) part: Part,
}

/// What the session does here.
#[derive(Debug)]
pub(super) enum Part {
    Entry(Entry),
    Relay(Relay),
    /// The eight paths make it large; most sessions of a node may be relays.
    Exit(Box<Exit>),
}

/// Who reads how a session's paths merge.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// The operator.
    Operator(RequestId),
    /// The control core itself, of an entry's session.
    Watch { ct_index: CtIndex, generation: u16 },
}

/// The entry's part.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where the client opened it from.
    pub(super) source: Ipv4Addr,
    pub(super) open: Open,
    pub(super) fan: u32,
    /// Key of the client's hop.
    pub(super) key: HopKey,
    /// The port that the client is asked to send from.
    pub(super) client_port: u16,
    pub(super) exit_address: Ipv4Addr,
    pub(super) exit_address6: Option<Ipv6Addr>,
    /// By path number.
    pub(super) paths: Vec<EntryPath>,
    /// By path number.
    pub(super) care: [Care; PATHS_MAX],
    /// Highest sequence number from the exit at the last visit.
    pub(super) highest: u64,
    /// When the session is visited next.
    pub(super) visit_due: Nanos,
    pub(super) waiters: Vec<RequestId>,
    /// Counted in `Control::half_open`: the client has not sent a packet yet.
    pub(super) is_half_open: bool,
}

/// A path at its entry.
#[derive(Debug)]
pub(super) enum EntryPath {
    /// Asked for; not for the first time where it has a failure.
    Calling { to: NodeName, exchange: u64, failure: Option<Failure> },
    /// Set up.
    Up { next: Hop, link: Link, ports: SourcePorts },
    /// Not, or not any more.
    Down(Failure),
}

/// A relay's part.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) upstream: Hop,
    /// The upstream's end.
    pub(super) up: LinkEnd,
    /// The port that the upstream sends from.
    pub(super) up_port: u16,
    /// Key of the upstream hop.
    pub(super) key: NodeKey,
    pub(super) down: RelayDown,
    pub(super) waiters: Vec<RequestId>,
}

/// The downstream side of a relay.
#[derive(Debug)]
pub(super) enum RelayDown {
    /// Asked for.
    Calling { exchange: u64 },
    /// Set up.
    Up { next: Hop, link: Link, exit_address: Ipv4Addr, exit_address6: Option<Ipv6Addr> },
}

/// The exit's part.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) fan: u32,
    /// A flow's one binding.
    pub(super) flow_binding: Option<u32>,
    /// All bindings, a flow's included.
    pub(super) bindings: BTreeSet<u32>,
    /// By path number.
    pub(super) paths: [Option<ExitPath>; PATHS_MAX],
}

/// A path at its exit.
#[derive(Clone, Debug)]
pub(super) struct ExitPath {
    pub(super) upstream: Hop,
    pub(super) up: LinkEnd,
    /// The port that the upstream sends from.
    pub(super) up_port: u16,
    pub(super) key: NodeKey,
}

impl Session {
    /// What the client is told of it.
    pub(super) fn opened(entry: &Entry, end: LinkEnd) -> Opened {
        let paths = entry.paths.iter().map(|path| match path {
            EntryPath::Down(failure) => Some(failure.clone()),
            EntryPath::Calling { failure: Some(failure), .. } => Some(failure.clone()),
            EntryPath::Calling { to, .. } => Some(Failure { hop: to.clone(), reason: FailureReason::Pending }),
            EntryPath::Up { .. } => None,
        });
        Opened {
            entry: end,
            key: entry.key,
            exit_address: entry.exit_address,
            exit_address6: entry.exit_address6,
            paths: paths.collect(),
        }
    }

    /// Its fan, where it has one.
    pub(super) fn fan(&self) -> Option<u32> {
        match &self.part {
            Part::Entry(entry) => Some(entry.fan),
            Part::Exit(exit) => Some(exit.fan),
            Part::Relay(_) => None,
        }
    }

    /// Requests that wait for it; none do any more.
    pub(super) fn take_waiters(&mut self) -> Vec<RequestId> {
        match &mut self.part {
            Part::Entry(entry) => std::mem::take(&mut entry.waiters),
            Part::Relay(relay) => std::mem::take(&mut relay.waiters),
            Part::Exit(_) => Vec::new(),
        }
    }
}

/// The link to the other end of a hop.
pub(super) fn link(end: LinkEnd, key: NodeKey) -> Link {
    Link { address: *end.data.ip(), port: end.data.port(), generation: end.generation, ct_index: end.ct_index, key }
}

/// The ports of a hop: we were told to send from `ours`, the other end from `theirs`.
pub(super) fn source_ports(own: SocketAddrV4, ours: u16, other: SocketAddrV4, theirs: u16) -> SourcePorts {
    let above = |port: u16, data: SocketAddrV4| {
        debug_assert!(port.wrapping_sub(data.port()) < SOURCE_PORTS, "checked where it came from");
        port.wrapping_sub(data.port()) as u8
    };
    SourcePorts { ours: above(ours, own), theirs: above(theirs, other) }
}

/// A hop as its upstream knows it once it is set up.
#[derive(Clone, Debug)]
pub(super) struct Downstream {
    pub(super) next: Hop,
    pub(super) link: Link,
    pub(super) ports: SourcePorts,
    pub(super) exit_address: Ipv4Addr,
    pub(super) exit_address6: Option<Ipv6Addr>,
}

/// What a session's inner packets are held to; a flow's have a binding, too.
pub(super) fn terms(kind: SessionKind, binding: Option<u32>, mtu: u16) -> FanInit {
    let (inside, inside6) = match kind {
        SessionKind::Tunnel { inside, inside6 } => (inside, inside6),
        SessionKind::Flow { source, .. } => (*source.ip(), None),
    };
    let inside6 = inside6.unwrap_or(Ipv6Addr::UNSPECIFIED);
    FanInit { inside, inside6, binding: binding.unwrap_or(NO_BINDING), mtu }
}
