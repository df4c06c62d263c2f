//! Every control message: one [`Request`] and one [`Response`] a stream, in postcard encoding behind a
//! four-byte big-endian length. `docs/WIRE.md` has the bytes.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use serde::{Deserialize, Serialize};

use crate::{dataplane::conntrack::CtIndex, wire::relay::HopKey};

/// ALPN of this version of the messages.
pub const ALPN: &[u8] = b"starnet/2";

/// Name of a node: one DNS label. Its certificate is for `NAME.node.starnet`.
pub type NodeName = String;

/// True where `name` may be the name of a node: a DNS label (RFC 1123, 2.1) in lower case.
pub fn is_node_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A session's number: random, chosen by the client, so that a request sent twice opens one session.
pub type SessionId = [u8; 16];

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Node to control centre, at start and after a restart of either.
    Register(Register),
    /// Node to control centre, once a second: what the node measured; answered with its neighbours.
    Report(Report),
    /// Client to control centre: nodes and what lies between them.
    Topology {
        /// Issued by the control centre.
        token: String,
    },
    /// Client to entry: open a session over these paths.
    Open(Open),
    /// Client to entry: end it.
    Close {
        /// Issued by the control centre.
        token: String,
        /// Which.
        session: SessionId,
    },
    /// Node to the next node of a path.
    Setup(Setup),
    /// Node to the next node of a path: end it.
    Teardown(Teardown),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To Register and Report.
    Neighbours(Neighbours),
    /// To Topology.
    Topology(Topology),
    /// To Open.
    Opened(Opened),
    /// To Setup.
    SetUp(SetUp),
    /// To Close and Teardown.
    Closed,
    /// It could not be done; nothing is left allocated for it.
    Failed(Failure),
}

/// Why a request failed, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason} (at {hop})")]
pub struct Failure {
    /// The node that refused, or whose answer did not come.
    pub hop: NodeName,
    /// Why.
    pub reason: FailureReason,
}

/// The reasons for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureReason {
    /// The message is malformed or breaks a limit.
    BadRequest,
    /// No valid certificate or token, or not for this.
    Unauthorised,
    /// The token has expired.
    TokenExpired,
    /// The token does not allow this exit, this many paths or sessions.
    NotAllowed,
    /// The next hop is not a neighbour of this node.
    UnknownNode,
    /// The next hop could not be reached or did not answer in time.
    Unreachable,
    /// No slot is free.
    SlotsExhausted,
    /// No NAT port is free.
    PortsExhausted,
    /// The exit's policy forbids the destination.
    DestinationDenied,
    /// The ring to a worker is full.
    Busy,
    /// There is no such session.
    UnknownSession,
    /// The path was set up, and nothing arrives over it any more.
    Silent,
    /// The next hop was asked and has not answered yet.
    Pending,
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "the request is malformed",
            Self::Unauthorised => "no valid certificate or token",
            Self::TokenExpired => "the token has expired",
            Self::NotAllowed => "the token does not allow this",
            Self::UnknownNode => "the next node is not a neighbour",
            Self::Unreachable => "the next node did not answer in time",
            Self::SlotsExhausted => "no slot is free",
            Self::PortsExhausted => "no NAT port is free",
            Self::DestinationDenied => "the exit's policy forbids the destination",
            Self::Busy => "the node is too busy",
            Self::UnknownSession => "there is no such session",
            Self::Silent => "nothing arrives over the path any more",
            Self::Pending => "the next node has not answered yet",
        })
    }
}

/// A node as others reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// Where it answers control messages.
    pub control: SocketAddrV4,
    /// Where it takes relay packets.
    pub data: SocketAddrV4,
    /// What it is willing to be.
    pub roles: Roles,
    /// Random at each start: a changed epoch says that its slots are gone.
    pub boot_epoch: u64,
}

/// What a node is willing to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Takes sessions from clients.
    pub entry: bool,
    /// Forwards between nodes.
    pub relay: bool,
    /// Sends to servers.
    pub exit: bool,
}

impl Roles {
    /// No part in the overlay.
    pub const NONE: Self = Self { entry: false, relay: false, exit: false };
}

/// A node presents itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The node.
    pub node: NodeInfo,
    /// Key of the probes it will receive; given to its neighbours.
    pub probe_key: HopKey,
}

/// What a node measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The node.
    pub name: NodeName,
    /// As registered; an unknown one is answered with `UnknownNode`, and the node registers anew.
    pub boot_epoch: u64,
    /// One a neighbour.
    pub links: Vec<LinkReport>,
}

/// One direction of one link, measured by its sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The neighbour.
    pub to: NodeName,
    /// Round trips, and what got lost of them.
    pub quality: LinkQuality,
}

/// Quality of a link over the last window of probes.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct LinkQuality {
    /// Probes the figures are from; zero: nothing is known yet.
    pub probes: u32,
    /// Smallest round trip, microseconds.
    pub rtt_min_us: u32,
    /// Median round trip, microseconds.
    pub rtt_p50_us: u32,
    /// 99th percentile of the round trip, microseconds.
    pub rtt_p99_us: u32,
    /// Mean difference of successive round trips (RFC 3550, 6.4.1), microseconds.
    pub jitter_us: u32,
    /// Unanswered probes, 0 to 1.
    pub loss: f32,
}

/// What a node needs to know of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbours {
    /// Nodes it may send to and hear from.
    pub nodes: Vec<Neighbour>,
    /// Ed25519 key that client tokens are signed with.
    pub token_key: [u8; 32],
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The node.
    pub node: NodeInfo,
    /// Key of probes to it.
    pub probe_key: HopKey,
}

/// All a client plans with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Nodes heard of in the last seconds.
    pub nodes: Vec<NodeInfo>,
    /// Links between them, each direction.
    pub links: Vec<TopologyLink>,
}

/// A directed link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyLink {
    /// The node that measured.
    pub from: NodeName,
    /// Its neighbour.
    pub to: NodeName,
    /// What it measured.
    pub quality: LinkQuality,
}

/// What a session carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionKind {
    /// Any packet from this inside address, or these two.
    Tunnel {
        /// Source address of the inner packets.
        inside: Ipv4Addr,
        /// The same of IPv6; none: the session carries no IPv6.
        inside6: Option<Ipv6Addr>,
    },
    /// Packets of one flow.
    Flow {
        /// TCP (6) or UDP (17).
        protocol: u8,
        /// Source of the inner packets.
        source: SocketAddrV4,
        /// Their destination.
        server: SocketAddrV4,
    },
}

/// A client opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Issued by the control centre.
    pub token: String,
    /// The same in every retry.
    pub session: SessionId,
    /// What it carries.
    pub kind: SessionKind,
    /// Largest inner packet the client wants, bytes.
    pub mtu: u16,
    /// Each from entry to exit, both included; all with the same ends. At most `PATHS_MAX`.
    pub paths: Vec<Vec<NodeName>>,
}

/// The other end of a hop, for the one who sends to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEnd {
    /// Where to send.
    pub data: SocketAddrV4,
    /// Its slot.
    pub ct_index: CtIndex,
    /// Its slot's generation.
    pub generation: u16,
    /// The UDP port to send from, so that packets arrive where the slot is: of a node its data port, or one of the 255
    /// above it; of a client any, zero if it does not matter.
    pub source_port: u16,
}

impl LinkEnd {
    /// True where both are the same use of the same slot.
    pub fn is_same_slot(&self, other: &Self) -> bool {
        (self.data, self.ct_index, self.generation) == (other.data, other.ct_index, other.generation)
    }
}

/// The session is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The entry's end of the client's hop.
    pub entry: LinkEnd,
    /// Key of the client's hop.
    pub key: HopKey,
    /// Where the exit sends from.
    pub exit_address: Ipv4Addr,
    /// The same of IPv6, where it sends that.
    pub exit_address6: Option<Ipv6Addr>,
    /// By path number: open, or why not. At least one is open.
    pub paths: Vec<Option<Failure>>,
}

/// A node asks the next one to take part in a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The client's token: each node checks it.
    pub token: String,
    /// The entry; with `session` it names the session at the exit.
    pub entry: NodeName,
    /// The session.
    pub session: SessionId,
    /// What it carries.
    pub kind: SessionKind,
    /// Largest inner packet, bytes.
    pub mtu: u16,
    /// Path number.
    pub path: u8,
    /// The rest of the path, the receiver of this message first.
    pub route: Vec<NodeName>,
    /// The sender's end of this hop. A repeated Setup carries the same one; another one is another attempt.
    pub upstream: LinkEnd,
    /// The sender's boot epoch.
    pub boot_epoch: u64,
}

/// The path is set up from the answering node on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUp {
    /// The answering node's end of this hop.
    pub downstream: LinkEnd,
    /// Key of this hop, made by the answering node: the same one for all sessions of the node that asks.
    pub key: HopKey,
    /// Where the exit sends from.
    pub exit_address: Ipv4Addr,
    /// The same of IPv6, where it sends that.
    pub exit_address6: Option<Ipv6Addr>,
    /// The answering node's boot epoch.
    pub boot_epoch: u64,
}

/// A node ends a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teardown {
    /// The entry.
    pub entry: NodeName,
    /// The session.
    pub session: SessionId,
    /// Path number.
    pub path: u8,
    /// As in the Setup this ends, but for the port, which says nothing: a late Teardown of one attempt must not end the
    /// next.
    pub upstream: LinkEnd,
}
