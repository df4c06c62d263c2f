//! What the control centre shows its operator: `topology` and `nodes`, as JSON and as columns.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::registry::Registry;
use crate::{
    MILLISECOND, Nanos,
    rpc::messages::{NodeName, Roles, Topology},
    telemetry::table::{Table, nanoseconds},
};

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// What it is willing to be.
    pub roles: Roles,
    /// Where it takes relay packets.
    pub data: SocketAddrV4,
    /// Where it answers control messages.
    pub control: SocketAddrV4,
    /// Random at each start; a string, as it has more digits than numbers in JSON are safe with.
    pub boot_epoch: String,
    /// In the topology; else it has been silent for too long.
    pub is_live: bool,
    /// Since it registered or reported last.
    pub heard_ms: u64,
}

/// The answer to a topic.
///
/// # Errors
/// With a text for the operator, where there is no such topic here.
pub fn answer(registry: &Registry, topic: &str, now: Nanos) -> Result<Value, String> {
    let value = match topic {
        "topology" => serde_json::to_value(registry.topology(now)),
        "nodes" => serde_json::to_value(nodes(registry, now)),
        _ => return Err(format!("the control centre shows topology and nodes, not '{topic}'")),
    };
    value.map_err(|error| error.to_string())
}

fn nodes(registry: &Registry, now: Nanos) -> Vec<NodeView> {
    let view = |node: &super::registry::Registered| NodeView {
        name: node.info.name.clone(),
        roles: node.info.roles,
        data: node.info.data,
        control: node.info.control,
        boot_epoch: format!("{:016x}", node.info.boot_epoch),
        is_live: node.is_live(now),
        heard_ms: now.saturating_sub(node.heard) / MILLISECOND,
    };
    registry.nodes().map(view).collect()
}

/// The topology as columns: one row a direction of a link.
pub fn topology_columns(topology: &Topology) -> String {
    let mut table = Table::new(["from", "to", ">probes", ">rtt min", ">rtt p50", ">rtt p99", ">jitter", ">loss"]);
    for link in &topology.links {
        let quality = &link.quality;
        let time = |us: u32| match quality.probes {
            0 => "?".to_owned(),
            _ => nanoseconds(u64::from(us) * 1000),
        };
        table.row([
            link.from.clone(),
            link.to.clone(),
            quality.probes.to_string(),
            time(quality.rtt_min_us),
            time(quality.rtt_p50_us),
            time(quality.rtt_p99_us),
            time(quality.jitter_us),
            if quality.probes == 0 { "?".to_owned() } else { format!("{:.1}%", quality.loss * 100.0) },
        ]);
    }
    if table.is_empty() { "no two neighbours are there\n".to_owned() } else { table.to_string() }
}

/// The nodes as columns.
pub fn node_columns(nodes: &[NodeView]) -> String {
    let mut table = Table::new(["node", "roles", "data", "control", "state", ">heard of"]);
    for node in nodes {
        let roles = [(node.roles.entry, "entry"), (node.roles.relay, "relay"), (node.roles.exit, "exit")];
        let roles: Vec<&str> = roles.into_iter().filter(|(has, _)| *has).map(|(_, role)| role).collect();
        table.row([
            node.name.clone(),
            roles.join(","),
            node.data.to_string(),
            node.control.to_string(),
            if node.is_live { "live" } else { "silent" }.to_owned(),
            format!("{} ago", nanoseconds(node.heard_ms * MILLISECOND)),
        ]);
    }
    if table.is_empty() { "no node has registered\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use super::{
        super::registry::{Links, tests::register},
        *,
    };
    use crate::{SECOND, rpc::messages::LinkQuality};

    fn registry() -> Registry {
        let mut registry = Registry::new(Links::FullMesh);
        registry.register(register("a", 1, 7), 0).unwrap();
        registry.register(register("b", 2, 7), 9 * SECOND).unwrap();
        registry
    }

    #[test]
    fn silent_nodes_are_shown_as_such() {
        let value = answer(&registry(), "nodes", 10 * SECOND).unwrap();
        let views: Vec<NodeView> = serde_json::from_value(value).unwrap();
        assert_eq!(
            node_columns(&views),
            "node  roles             data             control         state     heard of\n\
             a     entry,relay,exit  192.0.2.1:40000  192.0.2.1:4433  silent  10.0 s ago\n\
             b     entry,relay,exit  192.0.2.2:40000  192.0.2.2:4433  live    1.00 s ago\n"
        );
    }

    #[test]
    fn links_without_measurement_show_question_marks() {
        let value = answer(&registry(), "topology", 1).unwrap();
        let mut topology: Topology = serde_json::from_value(value).unwrap();
        topology.links[0].quality = LinkQuality {
            probes: 99,
            rtt_min_us: 1500,
            rtt_p50_us: 2000,
            rtt_p99_us: 30_000,
            jitter_us: 40,
            loss: 0.01,
        };
        assert_eq!(
            topology_columns(&topology),
            "from  to  probes  rtt min  rtt p50  rtt p99   jitter  loss\n\
             a     b       99  1.50 ms  2.00 ms  30.0 ms  40.0 us  1.0%\n\
             b     a        0        ?        ?        ?        ?     ?\n"
        );
        assert!(answer(&registry(), "weather", 0).unwrap_err().contains("'weather'"));
    }
}
