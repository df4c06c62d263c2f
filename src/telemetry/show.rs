//! What `starnet show` shows: the figures as they go over the operator's socket (JSON).
//!
//! They are raw numbers with the unit in the field's name; [`columns`](super::columns) makes text of them.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{
    control::Summary,
    dataplane::rss::{Input, Inputs, Rss},
};

/// What can be asked of a node's or a control centre's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// The node in one page: addresses, ports, XDP mode, uptime, tables in use
    Node,
    /// Packets and bytes of each worker, and of all together
    Workers,
    /// The packet graph: packets and batches of each node, packets over each edge
    Graph,
    /// Sessions that this node is part of
    Sessions,
    /// Paths of those sessions: what arrived over each, and what came first
    Paths,
    /// Neighbour nodes: round trips, jitter and loss of the probes
    Peers,
    /// Packets dropped, by graph node and reason
    Drops,
    /// Time per packet in each graph node, and from rx to tx
    Latency,
    /// The NAT: its summary, flows, hosts or ports, some or all of them
    Nat,
    /// Links between all nodes (control centre)
    Topology,
    /// Registered nodes (control centre)
    Nodes,
}

impl Topic {
    /// Its name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Workers => "workers",
            Self::Graph => "graph",
            Self::Sessions => "sessions",
            Self::Paths => "paths",
            Self::Peers => "peers",
            Self::Drops => "drops",
            Self::Latency => "latency",
            Self::Nat => "nat",
            Self::Topology => "topology",
            Self::Nodes => "nodes",
        }
    }

    /// The topic of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        <Self as clap::ValueEnum>::from_str(name, false).ok()
    }
}

/// The node in one page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// The address others see.
    pub address: Ipv4Addr,
    /// UDP port of relay packets.
    pub data_port: u16,
    /// NAT ports, `FIRST-LAST`.
    pub nat_ports: String,
    /// Where it answers control messages; none: it has no part in an overlay.
    pub control: Option<SocketAddrV4>,
    /// What it is willing to be.
    pub roles: Vec<String>,
    /// The control centre, if it has one.
    pub controller: Option<SocketAddrV4>,
    /// True while the control centre answers.
    pub is_registered: bool,
    /// Random at each start.
    pub boot_epoch: String,
    /// `adaptive` or `busy`.
    pub idle: String,
    /// True where packets lie in hugepages.
    pub is_hugepages: bool,
    /// Interfaces it serves.
    pub interfaces: Vec<InterfaceView>,
    /// The core of each worker; none: not pinned.
    pub cores: Vec<Option<usize>>,
    /// Milliseconds since the control core last went round its loop.
    pub control_core_age_ms: u64,
    /// Conntrack slots in use.
    pub slots_used: u64,
    /// Conntrack slots there are.
    pub slots: u64,
    /// NAT bindings in use.
    pub bindings_used: u64,
    /// NAT bindings there are.
    pub bindings: u64,
    /// What the control core says; none: it did not answer in time.
    pub control_core: Option<Summary>,
}

/// An interface of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// How the XDP program is attached: `native` or `skb`.
    pub xdp: String,
    /// How the sockets are bound: `zerocopy` or `copy`.
    pub bind: String,
    /// How it spreads packets over its queues; none: it does not say.
    pub rss: Option<RssView>,
    /// How many rules of ours in its table steer packets to queues by their ports (ntuple filters), before its hash does.
    #[serde(default)]
    pub rules: usize,
    /// How often it has changed how it spreads, since the start of the node.
    #[serde(default)]
    pub rss_changes: u64,
    /// Seconds since it did last.
    #[serde(default)]
    pub rss_changed_s: Option<u64>,
    /// Receive queues it has; none: not known.
    #[serde(default)]
    pub queues: Option<u32>,
    /// Receive queues with an AF_XDP socket.
    #[serde(default)]
    pub sockets: Option<u32>,
    /// What is wrong with the number of queues, and what to do.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// How an interface spreads packets over its queues.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RssView {
    /// What it hashes.
    pub inputs: Inputs,
    /// By queue: how many entries of the table lead to it.
    pub entries: Vec<usize>,
}

impl RssView {
    /// Of what a NIC tells.
    pub fn of(rss: &Rss) -> Self {
        Self { inputs: rss.inputs(), entries: rss.entries() }
    }
}

impl std::fmt::Display for RssView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |input| match input {
            Some(Input::AddressesAndPorts) => "addresses and ports",
            Some(Input::Addresses) => "addresses only",
            None => "something else",
        };
        let queues: Vec<String> =
            (0..self.entries.len()).filter(|queue| self.entries[*queue] > 0).map(|queue| queue.to_string()).collect();
        let (udp, tcp) = (of(self.inputs.udp4), of(self.inputs.tcp4));
        write!(f, "UDP by {udp}, TCP by {tcp}, to queues {}", queues.join(" "))
    }
}

/// Counters of one worker; see `published::WorkerCounters`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the same fields as published::WorkerCounters, documented there")]
pub struct WorkerView {
    /// Number, or `all`.
    pub worker: String,
    pub core: Option<usize>,
    pub is_asleep: bool,
    pub sweeps: u64,
    pub busy_sweeps: u64,
    pub received: u64,
    pub received_bytes: u64,
    pub injected: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub dropped: u64,
    pub consumed: u64,
    pub punted: u64,
    pub held: u64,
    pub handed_off: u64,
    pub commands: u64,
    pub waiting: u64,
    pub slots_used: u64,
    pub bindings_used: u64,
    pub kernel_rx_dropped: u64,
    pub kernel_fill_empty: u64,
    /// What its tables take.
    pub table_bytes: u64,
    /// What of that lies on hugepages.
    pub table_bytes_huge: u64,
}

/// A node of the packet graph, all workers together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GraphNodeView {
    /// Its name.
    pub node: String,
    /// Packets that entered it.
    pub packets: u64,
    /// Batches in which it had any.
    pub batches: u64,
    /// Packets it dropped, all reasons.
    pub drops: u64,
    /// Where the others went.
    pub next: Vec<EdgeView>,
}

/// An edge of the packet graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EdgeView {
    /// The node it leads to.
    pub to: String,
    /// Packets that took it.
    pub packets: u64,
}

/// A drop counter, all workers together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropView {
    /// `<node>.drop.<reason>`.
    pub counter: String,
    /// Packets.
    pub packets: u64,
    /// What the reason means.
    pub meaning: String,
}

/// A distribution of times since the node's start, all workers together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LatencyView {
    /// The graph node; `residence`: from rx to tx; `waited`: that of packets the control core was asked about;
    /// `first_packet`: of those the first of a flow, until its binding was there.
    pub what: String,
    /// Packets measured.
    pub count: u64,
    /// Median, nanoseconds.
    pub p50_ns: u64,
    /// 90th percentile, nanoseconds.
    pub p90_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// 99.9th percentile, nanoseconds.
    pub p999_ns: u64,
    /// Longest, nanoseconds.
    pub max_ns: u64,
}

impl WorkerView {
    /// Adds the counters of `other`.
    pub fn add(&mut self, other: &Self) {
        self.sweeps += other.sweeps;
        self.busy_sweeps += other.busy_sweeps;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.injected += other.injected;
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
        self.dropped += other.dropped;
        self.consumed += other.consumed;
        self.punted += other.punted;
        self.held += other.held;
        self.handed_off += other.handed_off;
        self.commands += other.commands;
        self.waiting += other.waiting;
        self.slots_used += other.slots_used;
        self.bindings_used += other.bindings_used;
        self.kernel_rx_dropped += other.kernel_rx_dropped;
        self.kernel_fill_empty += other.kernel_fill_empty;
        self.table_bytes += other.table_bytes;
        self.table_bytes_huge += other.table_bytes_huge;
    }
}

/// One path of one session at this node. What arrived over it is known where paths merge: at the exit of packets
/// from the client, at the entry of packets to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// First eight hexadecimal digits of the session's number.
    pub session: String,
    /// What this node is in it.
    pub role: String,
    /// Number of the path.
    pub path: u8,
    /// The node towards the client; none at an entry.
    pub upstream: Option<String>,
    /// The node towards the server; none at an exit, or before it has answered.
    pub downstream: Option<String>,
    /// Authentic packets that arrived over it, duplicates of other paths included.
    pub received: Option<u64>,
    /// Packets of which this path brought the first copy.
    pub first: Option<u64>,
    /// Packets of the session that did not (yet) arrive over it.
    pub missing: Option<u64>,
    /// Why it is not in use.
    pub failure: Option<String>,
}

/// A session as its client sees it; the JSON has more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientSession {
    /// The session's number; none while it is being opened.
    pub session: Option<String>,
    /// `tunnel`, `udp` or `tcp`.
    pub kind: String,
    /// Source of the inner packets.
    pub source: String,
    /// The same of IPv6, for a tunnel that carries it.
    #[serde(default)]
    pub source6: Option<String>,
    /// Their destination, for a flow.
    pub server: Option<String>,
    /// `opening`, `waiting` or `ready`.
    pub state: String,
    /// The entry's name.
    pub entry: Option<String>,
    /// The exit's name.
    pub exit: Option<String>,
    /// Where the exit sends from.
    pub exit_address: Option<String>,
    /// The same of IPv6, where it sends that.
    #[serde(default)]
    pub exit_address6: Option<String>,
    /// Paths that are open.
    pub paths: usize,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Milliseconds since the exit was last heard of.
    pub heard_ms: Option<u64>,
}

/// A path as its client planned it; the JSON has more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientPath {
    /// The session's number.
    pub session: String,
    /// The path's number.
    pub path: usize,
    /// From entry to exit.
    pub nodes: Vec<String>,
    /// One way, microseconds, when it was planned.
    pub latency_us: u64,
    /// Probes lost, 0 to 1, when it was planned.
    pub loss: f64,
    /// `open`, or why not.
    pub state: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_found_by_its_name() {
        for topic in <Topic as clap::ValueEnum>::value_variants() {
            assert_eq!(Topic::from_name(topic.name()), Some(*topic));
        }
        assert_eq!(Topic::from_name("nosuch"), None);
    }
}
