//! What `starnet show` shows: the figures as they go over the operator's socket (JSON), and as columns.
//!
//! The JSON has raw numbers with the unit in the field's name; the columns are for reading and may round.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::table::{self, Table};
use crate::{
    control::{PeerView, SessionView, Summary},
    controller,
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
    /// How often that has changed since the start of the node.
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

/// Leaves out what is zero throughout: drop counters, edges nothing took, times nothing was measured of.
pub fn without_zeroes(topic: Topic, value: Value) -> Value {
    let is_kept = |item: &Value, field: &str| item[field].as_u64() != Some(0);
    let Value::Array(mut items) = value else { return value };
    match topic {
        Topic::Drops => items.retain(|item| is_kept(item, "packets")),
        Topic::Latency => items.retain(|item| is_kept(item, "count")),
        Topic::Graph => {
            for item in &mut items {
                if let Some(Value::Array(edges)) = item.get_mut("next") {
                    edges.retain(|edge| is_kept(edge, "packets"));
                }
            }
        }
        _ => {}
    }
    Value::Array(items)
}

/// An answer as columns. An error says what the answer is not, which happens between different versions.
pub fn columns(topic: Topic, value: Value) -> Result<String, String> {
    Ok(match topic {
        Topic::Node => node(&read(value)?),
        Topic::Workers => workers(&read::<Vec<WorkerView>>(value)?),
        Topic::Graph => graph(&read::<Vec<GraphNodeView>>(value)?),
        Topic::Drops => drops(&read::<Vec<DropView>>(value)?),
        Topic::Latency => latency(&read::<Vec<LatencyView>>(value)?),
        // A client has an entry and an exit for each session, a node one role.
        Topic::Sessions if has_field(&value, "exit") => client_sessions(&read::<Vec<ClientSession>>(value)?),
        Topic::Paths if has_field(&value, "nodes") => client_paths(&read::<Vec<ClientPath>>(value)?),
        Topic::Sessions => sessions(&read::<Vec<SessionView>>(value)?),
        Topic::Paths => paths(&read::<Vec<PathRow>>(value)?),
        Topic::Peers => peers(&read::<Vec<PeerView>>(value)?),
        Topic::Nat => return Err("the NAT is asked about in parts".to_owned()),
        Topic::Topology => controller::show::topology_columns(&read(value)?),
        Topic::Nodes => controller::show::node_columns(&read::<Vec<_>>(value)?),
    })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("the answer is not understood: {error}"))
}

fn has_field(rows: &Value, field: &str) -> bool {
    rows.get(0).is_some_and(|row| row.get(field).is_some())
}

fn node(view: &NodeView) -> String {
    let mut table = Table::new(["", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row(
        "node",
        format!("{}, starnet {}, up {}", view.name, view.version, table::uptime(Duration::from_secs(view.uptime_s))),
    );
    row("address", format!("{}, data port {}, NAT ports {}", view.address, view.data_port, view.nat_ports));
    row("roles", view.roles.join(", "));
    if let Some(control) = view.control {
        row("control", control.to_string());
    }
    let state = if view.is_registered { "registered" } else { "not answering" };
    if let Some(controller) = view.controller {
        row("controller", format!("{controller}, {state}"));
    }
    row("boot epoch", view.boot_epoch.clone());
    for interface in &view.interfaces {
        row("interface", format!("{}, XDP {}, AF_XDP {}", interface.name, interface.xdp, interface.bind));
        let rss = interface.rss.as_ref().map_or("it does not say how".to_owned(), RssView::to_string);
        let changed = interface.rss_changed_s.map_or_else(String::new, |seconds| {
            let ago = table::uptime(Duration::from_secs(seconds));
            format!("; changes since the start: {}, the last one {ago} ago", interface.rss_changes)
        });
        row("spreads", rss + &changed);
        if let Some(trouble) = &interface.trouble {
            row("TROUBLE", trouble.clone());
        }
    }
    row("frames in", if view.is_hugepages { "hugepages" } else { "4 KiB pages" }.to_owned());
    let cores: Vec<String> = view.cores.iter().map(|core| core_name(*core)).collect();
    row("workers", format!("{}, on core {}, idle policy {}", view.cores.len(), cores.join(" "), view.idle));
    row("slots", format!("{} of {} used", view.slots_used, view.slots));
    row("bindings", format!("{} of {} used", view.bindings_used, view.bindings));
    row("control core", format!("last went round {} ms ago", view.control_core_age_ms));
    match &view.control_core {
        None => row("", "did not answer in time".to_owned()),
        Some(core) => {
            row("peers", core.peers.to_string());
            row(
                "sessions",
                format!("{} as entry, {} as exit, {} paths as relay", core.entries, core.exits, core.relays),
            );
            let counters = &core.counters;
            row(
                "since start",
                format!(
                    "{} opens ({} failed), {} setups ({} failed), {} sessions aged, {} bindings made ({} refused)",
                    counters.opens,
                    counters.opens_failed,
                    counters.setups,
                    counters.setups_failed,
                    counters.aged,
                    counters.bindings_made,
                    counters.bindings_refused,
                ),
            );
        }
    }
    table.to_string()
}

fn core_name(core: Option<usize>) -> String {
    core.map_or_else(|| "any".to_owned(), |core| core.to_string())
}

fn workers(views: &[WorkerView]) -> String {
    let mut traffic = Table::new([
        "worker",
        "core",
        "state",
        ">received",
        ">bytes",
        ">injected",
        ">sent",
        ">bytes",
        ">dropped",
        ">for us",
        ">punted",
        ">held",
        ">handed off",
    ]);
    let mut work = Table::new([
        "worker",
        ">sweeps",
        ">busy",
        ">commands",
        ">waiting",
        ">slots",
        ">bindings",
        ">rx ring full",
        ">fill ring empty",
        ">tables",
        ">on hugepages",
    ]);
    for view in views {
        traffic.row([
            view.worker.clone(),
            if view.worker == "all" { String::new() } else { core_name(view.core) },
            match (view.worker.as_str(), view.is_asleep) {
                ("all", _) => "",
                (_, true) => "asleep",
                (_, false) => "awake",
            }
            .to_owned(),
            view.received.to_string(),
            table::bytes(view.received_bytes),
            view.injected.to_string(),
            view.sent.to_string(),
            table::bytes(view.sent_bytes),
            view.dropped.to_string(),
            view.consumed.to_string(),
            view.punted.to_string(),
            view.held.to_string(),
            format!("{} ({:.1} %)", view.handed_off, 100.0 * view.handed_off as f64 / view.received.max(1) as f64),
        ]);
        work.row([
            view.worker.clone(),
            view.sweeps.to_string(),
            view.busy_sweeps.to_string(),
            view.commands.to_string(),
            view.waiting.to_string(),
            view.slots_used.to_string(),
            view.bindings_used.to_string(),
            view.kernel_rx_dropped.to_string(),
            view.kernel_fill_empty.to_string(),
            table::bytes(view.table_bytes),
            table::bytes(view.table_bytes_huge),
        ]);
    }
    format!("{traffic}\n{work}")
}

fn graph(views: &[GraphNodeView]) -> String {
    let mut table = Table::new(["node", ">packets", ">batches", ">a batch", ">dropped", "next"]);
    for view in views {
        let next: Vec<String> = view.next.iter().map(|edge| format!("{} {}", edge.to, edge.packets)).collect();
        let a_batch = if view.batches == 0 { 0.0 } else { view.packets as f64 / view.batches as f64 };
        table.row([
            view.node.clone(),
            view.packets.to_string(),
            view.batches.to_string(),
            format!("{a_batch:.1}"),
            view.drops.to_string(),
            next.join(", "),
        ]);
    }
    table.to_string()
}

fn drops(views: &[DropView]) -> String {
    let mut table = Table::new(["counter", ">packets", "meaning"]);
    for view in views {
        table.row([view.counter.clone(), view.packets.to_string(), view.meaning.clone()]);
    }
    if table.is_empty() { "nothing was dropped\n".to_owned() } else { table.to_string() }
}

fn latency(views: &[LatencyView]) -> String {
    let mut table = Table::new(["time in", ">packets", ">p50", ">p90", ">p99", ">p99.9", ">max"]);
    for view in views {
        let [p50, p90, p99, p999, max] =
            [view.p50_ns, view.p90_ns, view.p99_ns, view.p999_ns, view.max_ns].map(table::nanoseconds);
        table.row([view.what.clone(), view.count.to_string(), p50, p90, p99, p999, max]);
    }
    if table.is_empty() { "no packet was measured yet\n".to_owned() } else { table.to_string() }
}

fn sessions(views: &[SessionView]) -> String {
    let mut table = Table::new([
        "session",
        "role",
        "state",
        "carries",
        "client",
        "entry",
        ">slot",
        ">paths",
        ">packets",
        ">bytes",
        ">bindings",
        ">idle",
    ]);
    for view in views {
        let usable = view.paths.iter().filter(|path| path.failure.is_none()).count();
        table.row([
            view.session.clone(),
            view.role.clone(),
            view.state.clone(),
            view.kind.clone(),
            view.client.clone(),
            view.entry.clone(),
            format!("{}/{}", view.ct_index.worker(), view.ct_index.slot()),
            format!("{usable} of {}", view.paths.len()),
            view.packets.to_string(),
            table::bytes(view.bytes),
            view.bindings.to_string(),
            table::nanoseconds(view.idle_ms * crate::MILLISECOND),
        ]);
    }
    if table.is_empty() { "no sessions\n".to_owned() } else { table.to_string() }
}

fn paths(rows: &[PathRow]) -> String {
    let mut table = Table::new([
        "session",
        "role",
        ">path",
        "upstream",
        "downstream",
        ">received",
        ">first here",
        ">missing",
        "state",
    ]);
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let name = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for row in rows {
        table.row([
            row.session.clone(),
            row.role.clone(),
            row.path.to_string(),
            name(&row.upstream),
            name(&row.downstream),
            number(row.received),
            number(row.first),
            number(row.missing),
            row.failure.clone().unwrap_or_else(|| "in use".to_owned()),
        ]);
    }
    if table.is_empty() { "no paths\n".to_owned() } else { table.to_string() }
}

fn client_sessions(sessions: &[ClientSession]) -> String {
    let mut table = Table::new([
        "session",
        "carries",
        "from",
        "to",
        "state",
        "entry",
        "exit",
        "exit address",
        ">paths",
        ">age",
        ">heard",
    ]);
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let both = |address: &str, address6: &Option<String>| match address6 {
        Some(address6) => format!("{address} {address6}"),
        None => address.to_owned(),
    };
    for session in sessions {
        table.row([
            session.session.as_deref().map_or("-", |number| number.get(..8).unwrap_or(number)).to_owned(),
            session.kind.clone(),
            both(&session.source, &session.source6),
            text(&session.server),
            session.state.clone(),
            text(&session.entry),
            text(&session.exit),
            both(&text(&session.exit_address), &session.exit_address6),
            session.paths.to_string(),
            table::uptime(Duration::from_secs(session.age_s)),
            session.heard_ms.map_or_else(|| "-".to_owned(), |ms| table::nanoseconds(ms * crate::MILLISECOND)),
        ]);
    }
    table.to_string()
}

fn client_paths(paths: &[ClientPath]) -> String {
    let mut table = Table::new(["session", ">path", "nodes", ">latency", ">loss", "state"]);
    for path in paths {
        table.row([
            path.session.get(..8).unwrap_or(&path.session).to_owned(),
            path.path.to_string(),
            path.nodes.join(" > "),
            table::nanoseconds(path.latency_us * 1_000),
            format!("{:.1}%", path.loss * 100.0),
            path.state.clone(),
        ]);
    }
    table.to_string()
}

fn peers(views: &[PeerView]) -> String {
    let mut table = Table::new(["node", "address", "state", ">probes", ">rtt min", ">p50", ">p99", ">jitter", ">loss"]);
    for view in views {
        let state = match (view.is_active, view.is_resolved) {
            (false, _) => "gone",
            (true, false) => "unresolved",
            (true, true) => "up",
        };
        let quality = &view.quality;
        let time = |micros: u32| match quality.probes {
            0 => "-".to_owned(),
            _ => table::nanoseconds(u64::from(micros) * 1_000),
        };
        table.row([
            view.name.clone(),
            view.address.to_string(),
            state.to_owned(),
            quality.probes.to_string(),
            time(quality.rtt_min_us),
            time(quality.rtt_p50_us),
            time(quality.rtt_p99_us),
            time(quality.jitter_us),
            format!("{:.1}%", quality.loss * 100.0),
        ]);
    }
    if table.is_empty() { "no peers\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drops_show_the_counters_that_are_not_zero() {
        let counters = json!([
            { "counter": "ip4_input.drop.bad_checksum", "packets": 0, "meaning": "The header's checksum is wrong." },
            { "counter": "relay_input.drop.wrong_tag", "packets": 3, "meaning": "Not this hop's key." },
        ]);
        let shown = columns(Topic::Drops, without_zeroes(Topic::Drops, counters)).unwrap();
        assert_eq!(
            shown,
            "counter                     packets  meaning\n\
             relay_input.drop.wrong_tag        3  Not this hop's key.\n"
        );
    }

    #[test]
    fn the_graph_shows_edges_that_were_taken() {
        let nodes = json!([{ "node": "rx", "packets": 10, "batches": 4, "drops": 1,
            "next": [{ "to": "ip4_input", "packets": 9 }, { "to": "punt", "packets": 0 }] }]);
        let shown = columns(Topic::Graph, without_zeroes(Topic::Graph, nodes)).unwrap();
        assert_eq!(
            shown,
            "node  packets  batches  a batch  dropped  next\n\
             rx         10        4      2.5        1  ip4_input 9\n"
        );
    }

    #[test]
    fn a_clients_paths_are_shown_by_their_nodes() {
        let rows = json!([{ "session": "00112233445566778899aabbccddeeff", "path": 1, "nodes": ["a", "r", "b"],
            "latency_us": 12_300, "loss": 0.0125, "is_measured": true, "state": "open" }]);
        assert_eq!(
            columns(Topic::Paths, rows).unwrap(),
            "session   path  nodes      latency  loss  state\n\
             00112233     1  a > r > b  12.3 ms  1.2%  open\n"
        );
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        let error = columns(Topic::Drops, json!([{ "counter": 1 }])).unwrap_err();
        assert!(error.starts_with("the answer is not understood: "), "{error}");
    }

    #[test]
    fn a_topic_is_found_by_its_name() {
        for topic in <Topic as clap::ValueEnum>::value_variants() {
            assert_eq!(Topic::from_name(topic.name()), Some(*topic));
        }
        assert_eq!(Topic::from_name("nosuch"), None);
    }
}
