//! What `starnet show` shows as columns: for reading, so figures may be rounded.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    show::{ClientPath, ClientSession, DropView, GraphNodeView, LatencyView, NodeView, PathRow, Topic, WorkerView},
    table::{self, Table},
};
use crate::{
    control::{PeerView, SessionView},
    controller,
};

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
        let spread = match (&interface.rss, interface.rules) {
            (Some(rss), 0) => rss.to_string(),
            (None, 0) => "it does not say how".to_owned(),
            (Some(rss), rules) => format!("by {rules} rules of ours by ports, else {rss}"),
            (None, rules) => format!("by {rules} rules of ours by ports, else it does not say how"),
        };
        let changed = interface.rss_changed_s.map_or_else(String::new, |seconds| {
            let ago = table::uptime(Duration::from_secs(seconds));
            format!("; changes since the start: {}, the last one {ago} ago", interface.rss_changes)
        });
        row("spreads", spread + &changed);
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
}
