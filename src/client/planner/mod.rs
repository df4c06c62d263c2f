//! Which paths a session takes: pure, from the topology alone.
//!
//! **Cost** of a link, in microseconds: `rtt_p50 / 2 + loss x 200 000 + 50`. One way of the median round trip;
//! what a loss costs its victim, spread over all packets (200 ms: the usual smallest retransmission timer of TCP,
//! and an eternity for a voice or game packet); and a node's share, so that fewer hops win a tie. A direction
//! without probes takes the figures of the opposite one. A link nothing is known of costs 1 s, a link on which
//! every probe was lost 10 s: usable, but last.
//!
//! **Choice**: the largest set, up to the number asked for, of node-disjoint paths with the smallest total cost;
//! filled up with the next-best paths that share the fewest nodes and links with those chosen. A path whose
//! latency is above twice that of the fastest plus 5 ms is left out, except where fewer than two would remain:
//! its copies would always come last.
//!
//! **Roles** are respected: paths begin at an `entry`, end at an `exit`, and only a `relay` stands between. Where
//! the client names no entry or exit, the pair is taken that offers the most disjoint paths (up to the number
//! asked for), then the cheapest ones.

mod graph;

use std::collections::BTreeMap;

use self::graph::{Graph, Path};
use crate::{
    limits::{HOPS_MAX, PATHS_MAX},
    rpc::messages::{LinkQuality, NodeInfo, NodeName, Topology},
};

/// Cost of losing everything, per link, microseconds.
const LOSS_US: f64 = 200_000.0;

/// A node's share in the cost of a link, microseconds.
const HOP_US: u64 = 50;

/// Cost of a link without measurements, microseconds.
const UNMEASURED_US: u64 = 1_000_000;

/// Cost of a link on which every probe was lost, microseconds.
const DEAD_US: u64 = 10_000_000;

/// A path is too slow above this multiple of the fastest one's latency ...
const FAR_RATIO: u64 = 2;

/// ... plus this, microseconds.
const FAR_SLACK_US: u64 = 5_000;

/// Next-best paths looked at when filling up.
const CANDIDATES: usize = 64;

/// What the client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The first node, or any.
    pub entry: Option<NodeName>,
    /// The last node, or any.
    pub exit: Option<NodeName>,
    /// Paths, 1 to [`PATHS_MAX`].
    pub paths: usize,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the client sends to.
    pub entry: NodeInfo,
    /// Where its packets leave the overlay.
    pub exit: NodeInfo,
    /// From entry to exit; the path number is the index. Cheapest first, never empty.
    pub paths: Vec<PlannedPath>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PlannedPath {
    /// From entry to exit, both included.
    pub nodes: Vec<NodeName>,
    /// One way, microseconds, as far as measured.
    pub latency_us: u64,
    /// Probes lost between entry and exit, 0 to 1, as far as measured.
    pub loss: f64,
    /// False where a link of it has no measurements.
    pub is_measured: bool,
}

impl std::fmt::Display for PlannedPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.nodes.join(" > "))?;
        if self.is_measured {
            write!(f, " ({:.1} ms, {:.1}% loss)", self.latency_us as f64 / 1000.0, self.loss * 100.0)
        } else {
            write!(f, " (not measured)")
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The node named is not in the topology.
    #[error("{role} node '{name}' is not known to the control centre now; known: {known}")]
    UnknownNode {
        /// "entry" or "exit".
        role: &'static str,
        /// As the client was told.
        name: NodeName,
        /// The nodes that could be it.
        known: String,
    },
    /// The node named is not willing.
    #[error("node '{name}' does not serve as {role}; those that do: {known}")]
    NotWilling {
        /// "entry" or "exit".
        role: &'static str,
        /// As the client was told.
        name: NodeName,
        /// The nodes that could be it.
        known: String,
    },
    /// The same node is to be both.
    #[error("entry and exit are both '{0}': they must be different nodes")]
    SameNode(NodeName),
    /// Nothing connects them.
    #[error("no path from {entry} to {exit}: {nodes} nodes and {links} links are known")]
    NoPath {
        /// A name, or "any entry".
        entry: String,
        /// A name, or "any exit".
        exit: String,
        /// Nodes in the topology.
        nodes: usize,
        /// Links in the topology.
        links: usize,
    },
}

/// Plans a session's paths.
pub fn plan(topology: &Topology, wishes: &Wishes) -> Result<Plan, PlanError> {
    let map = Map::new(topology);
    let entries = map.choices("entry", wishes.entry.as_ref(), |node| node.roles.entry)?;
    let exits = map.choices("exit", wishes.exit.as_ref(), |node| node.roles.exit)?;
    if let (Some(entry), Some(exit)) = (&wishes.entry, &wishes.exit)
        && entry == exit
    {
        return Err(PlanError::SameNode(entry.clone()));
    }
    let wanted = wishes.paths.clamp(1, PATHS_MAX);
    let pairs = entries.iter().flat_map(|&entry| exits.iter().map(move |&exit| (entry, exit)));
    let best = pairs
        .filter(|(entry, exit)| entry != exit)
        .filter_map(|(entry, exit)| map.choose(entry, exit, wanted))
        .min_by_key(|chosen| (usize::MAX - chosen.disjoint, chosen.costs.clone()));
    let Some(best) = best else {
        return Err(PlanError::NoPath {
            entry: wishes.entry.clone().unwrap_or_else(|| "any entry".into()),
            exit: wishes.exit.clone().unwrap_or_else(|| "any exit".into()),
            nodes: topology.nodes.len(),
            links: topology.links.len(),
        });
    };
    let first = &best.paths[0];
    Ok(Plan {
        entry: map.nodes[first[0]].clone(),
        exit: map.nodes[first[first.len() - 1]].clone(),
        paths: best.paths.iter().map(|path| map.describe(path)).collect(),
    })
}

/// Paths between one pair of nodes.
struct Chosen {
    /// Cheapest first.
    paths: Vec<Path>,
    costs: Vec<u64>,
    /// How many of them share no node.
    disjoint: usize,
}

/// The topology with numbers for names.
struct Map {
    /// Ordered by name.
    nodes: Vec<NodeInfo>,
    links: BTreeMap<(usize, usize), LinkQuality>,
}

impl Map {
    fn new(topology: &Topology) -> Self {
        let mut nodes = topology.nodes.clone();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes.dedup_by(|a, b| a.name == b.name);
        let number = |name: &NodeName| nodes.binary_search_by(|node| node.name.cmp(name)).ok();
        let links = topology
            .links
            .iter()
            .filter_map(|link| Some(((number(&link.from)?, number(&link.to)?), link.quality)))
            .filter(|((from, to), _)| from != to)
            .collect();
        Self { nodes, links }
    }

    /// The nodes that may have a role: the one wished for, or all that are willing.
    fn choices(
        &self,
        role: &'static str,
        wish: Option<&NodeName>,
        is_willing: impl Fn(&NodeInfo) -> bool,
    ) -> Result<Vec<usize>, PlanError> {
        let willing: Vec<usize> = (0..self.nodes.len()).filter(|&node| is_willing(&self.nodes[node])).collect();
        let Some(name) = wish else { return Ok(willing) };
        let known = || match willing.is_empty() {
            true => "none".to_owned(),
            false => willing.iter().map(|&node| self.nodes[node].name.as_str()).collect::<Vec<_>>().join(", "),
        };
        match self.nodes.binary_search_by(|node| node.name.cmp(name)) {
            Ok(node) if willing.contains(&node) => Ok(vec![node]),
            Ok(_) => Err(PlanError::NotWilling { role, name: name.clone(), known: known() }),
            Err(_) => Err(PlanError::UnknownNode { role, name: name.clone(), known: known() }),
        }
    }

    /// Up to `wanted` paths from `entry` to `exit`, or `None` where there is none at all.
    fn choose(&self, entry: usize, exit: usize, wanted: usize) -> Option<Chosen> {
        let graph = self.graph(entry, exit);
        let is_short = |path: &Path| path.len() <= HOPS_MAX;
        let candidates: Vec<Path> = graph.simple_paths(entry, exit, CANDIDATES).into_iter().filter(is_short).collect();
        let fastest = candidates.iter().map(|path| self.latency_us(path)).min()?;
        let is_far = |path: &Path| self.latency_us(path) > fastest * FAR_RATIO + FAR_SLACK_US;

        // More disjoint paths are better until they have to be far ones; two are wanted in any case.
        let sets = graph.disjoint_paths(entry, exit, wanted);
        let fits = |set: &&Vec<Path>| set.iter().all(is_short) && (set.len() <= 2 || !set.iter().any(is_far));
        let mut paths = sets.iter().rev().find(fits).cloned().unwrap_or_default();
        let disjoint = paths.len();

        while paths.len() < wanted {
            let next = candidates
                .iter()
                .filter(|path| !paths.contains(path) && (paths.len() < 2 || !is_far(path)))
                .min_by_key(|path| (shared(path, &paths), graph.cost(path)));
            match next {
                Some(path) => paths.push(path.clone()),
                None => break,
            }
        }
        paths.sort_by_key(|path| (graph.cost(path), path.clone()));
        Some(Chosen { costs: paths.iter().map(|path| graph.cost(path)).collect(), paths, disjoint })
    }

    /// The links a path from `entry` to `exit` may take.
    fn graph(&self, entry: usize, exit: usize) -> Graph {
        let may_be_inside = |node: usize| self.nodes[node].roles.relay && node != entry && node != exit;
        let mut graph = Graph::new(self.nodes.len());
        for &(from, to) in self.links.keys() {
            if (from == entry || may_be_inside(from)) && (to == exit || may_be_inside(to)) {
                graph.add(from, to, cost(self.quality(from, to)));
            }
        }
        graph
    }

    /// What is known of a link, if need be from its other direction.
    fn quality(&self, from: usize, to: usize) -> Option<&LinkQuality> {
        let measured = |pair| self.links.get(&pair).filter(|quality: &&LinkQuality| quality.probes > 0);
        measured((from, to)).or_else(|| measured((to, from)))
    }

    fn latency_us(&self, path: &Path) -> u64 {
        path.windows(2).map(|pair| latency_us(self.quality(pair[0], pair[1]))).sum()
    }

    fn describe(&self, path: &Path) -> PlannedPath {
        let qualities: Vec<_> = path.windows(2).map(|pair| self.quality(pair[0], pair[1])).collect();
        let measured = || qualities.iter().copied().flatten();
        PlannedPath {
            nodes: path.iter().map(|&node| self.nodes[node].name.clone()).collect(),
            latency_us: measured().map(|quality| u64::from(quality.rtt_p50_us) / 2).sum(),
            loss: 1.0 - measured().map(|quality| 1.0 - loss(quality)).product::<f64>(),
            is_measured: qualities.iter().all(Option::is_some),
        }
    }
}

/// How many nodes and links a path has in common with others.
fn shared(path: &Path, others: &[Path]) -> usize {
    let nodes = |other: &Path| path[1..path.len() - 1].iter().filter(|node| other.contains(node)).count();
    let links = |other: &Path| path.windows(2).filter(|link| other.windows(2).any(|theirs| theirs == *link)).count();
    others.iter().map(|other| nodes(other) + links(other)).sum()
}

/// Unanswered probes, 0 to 1; a figure that is none counts as total loss.
fn loss(quality: &LinkQuality) -> f64 {
    let loss = f64::from(quality.loss);
    if loss.is_nan() { 1.0 } else { loss.clamp(0.0, 1.0) }
}

fn latency_us(quality: Option<&LinkQuality>) -> u64 {
    match quality {
        None => UNMEASURED_US,
        Some(quality) if loss(quality) >= 1.0 => DEAD_US,
        Some(quality) => u64::from(quality.rtt_p50_us) / 2,
    }
}

fn cost(quality: Option<&LinkQuality>) -> u64 {
    let penalty = quality.map_or(0.0, |quality| loss(quality) * LOSS_US);
    latency_us(quality) + penalty as u64 + HOP_US
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::rpc::messages::{Roles, TopologyLink};

    fn node(text: &str) -> NodeInfo {
        let (name, roles) = text.split_once(':').unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1);
        NodeInfo {
            name: name.into(),
            control: address,
            data: address,
            roles: Roles { entry: roles.contains('e'), relay: roles.contains('r'), exit: roles.contains('x') },
            boot_epoch: 1,
        }
    }

    /// `nodes` as "name:roles" with roles of e, r, x; `links` as (from, to, one-way ms, loss), each measured in
    /// both directions.
    fn topology(nodes: &str, links: &[(&str, &str, u32, f32)]) -> Topology {
        let quality =
            |ms: u32, loss| LinkQuality { probes: 100, rtt_p50_us: ms * 2000, loss, ..LinkQuality::default() };
        let both = |&(from, to, ms, loss): &(&str, &str, u32, f32)| {
            [(from, to), (to, from)].map(|(from, to)| TopologyLink {
                from: from.into(),
                to: to.into(),
                quality: quality(ms, loss),
            })
        };
        Topology { nodes: nodes.split_whitespace().map(node).collect(), links: links.iter().flat_map(both).collect() }
    }

    fn wishes(entry: &str, exit: &str, paths: usize) -> Wishes {
        let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Wishes { entry: name(entry), exit: name(exit), paths }
    }

    fn paths(topology: &Topology, wishes: &Wishes) -> Vec<String> {
        plan(topology, wishes).unwrap().paths.iter().map(|path| path.nodes.join(" ")).collect()
    }

    #[test]
    fn two_relays_give_two_disjoint_paths_fastest_first() {
        let topology = topology(
            "in:e r1:r r2:r out:x",
            &[("in", "r1", 10, 0.0), ("r1", "out", 10, 0.0), ("in", "r2", 5, 0.0), ("r2", "out", 5, 0.0)],
        );
        let plan = plan(&topology, &wishes("", "", 2)).unwrap();
        assert_eq!((plan.entry.name.as_str(), plan.exit.name.as_str()), ("in", "out"));
        assert_eq!(plan.paths[0].nodes, ["in", "r2", "out"]);
        assert_eq!(plan.paths[1].nodes, ["in", "r1", "out"]);
        assert_eq!((plan.paths[0].latency_us, plan.paths[0].is_measured), (10_000, true));
    }

    #[test]
    fn a_greedy_shortest_path_would_leave_no_disjoint_second_one() {
        let trap = topology(
            "s:e a:r b:r c:r d:r t:x",
            &[
                ("s", "a", 10, 0.0),
                ("a", "b", 10, 0.0),
                ("b", "t", 10, 0.0),
                ("a", "d", 14, 0.0),
                ("d", "t", 10, 0.0),
                ("s", "c", 14, 0.0),
                ("c", "b", 10, 0.0),
            ],
        );
        assert_eq!(paths(&trap, &wishes("s", "t", 1)), ["s a b t"]);
        assert_eq!(paths(&trap, &wishes("s", "t", 2)), ["s a d t", "s c b t"]);
    }

    #[test]
    fn loss_makes_a_fast_link_dear() {
        let topology = topology(
            "in:e r1:r r2:r out:x",
            &[("in", "r1", 1, 0.2), ("r1", "out", 1, 0.0), ("in", "r2", 10, 0.0), ("r2", "out", 10, 0.0)],
        );
        assert_eq!(paths(&topology, &wishes("in", "out", 1)), ["in r2 out"]);
    }

    #[test]
    fn roles_say_where_a_node_may_stand() {
        let topology = topology(
            "in:e in2:e r:r out:x out2:x",
            &[
                ("in", "in2", 1, 0.0),
                ("in2", "out", 1, 0.0),
                ("in", "out2", 1, 0.0),
                ("out2", "out", 1, 0.0),
                ("in", "r", 20, 0.0),
                ("r", "out", 20, 0.0),
            ],
        );
        assert_eq!(paths(&topology, &wishes("in", "out", 3)), ["in r out"]);
        let refused = plan(&topology, &wishes("r", "out", 1)).unwrap_err();
        assert_eq!(refused.to_string(), "node 'r' does not serve as entry; those that do: in, in2");
        let refused = plan(&topology, &wishes("in", "nowhere", 1)).unwrap_err();
        assert!(refused.to_string().contains("'nowhere' is not known") && refused.to_string().contains("out, out2"));
    }

    #[test]
    fn far_paths_are_left_out_beyond_the_second() {
        let far = topology(
            "in:e a:r b:r c:r out:x",
            &[
                ("in", "a", 10, 0.0),
                ("a", "out", 10, 0.0),
                ("in", "b", 100, 0.0),
                ("b", "out", 100, 0.0),
                ("in", "c", 110, 0.0),
                ("c", "out", 110, 0.0),
            ],
        );
        assert_eq!(paths(&far, &wishes("in", "out", 3)), ["in a out", "in b out"]);
        let near = topology(
            "in:e a:r b:r c:r out:x",
            &[
                ("in", "a", 10, 0.0),
                ("a", "out", 10, 0.0),
                ("in", "b", 11, 0.0),
                ("b", "out", 11, 0.0),
                ("in", "c", 22, 0.0),
                ("c", "out", 22, 0.0),
            ],
        );
        assert_eq!(paths(&near, &wishes("in", "out", 3)).len(), 3);
    }

    #[test]
    fn where_no_disjoint_path_is_left_the_one_that_shares_least_is_added() {
        let neck = topology(
            "in:e a:r b:r neck:r out:x",
            &[
                ("in", "a", 10, 0.0),
                ("in", "b", 12, 0.0),
                ("a", "neck", 1, 0.0),
                ("b", "neck", 1, 0.0),
                ("neck", "out", 1, 0.0),
                ("a", "b", 1, 0.0),
            ],
        );
        assert_eq!(paths(&neck, &wishes("in", "out", 2)), ["in a neck out", "in b neck out"]);
    }

    #[test]
    fn links_without_measurements_are_used_last_and_dead_ones_after_them() {
        let mut topology = topology(
            "in:e a:r b:r c:r out:x",
            &[
                ("in", "a", 100, 0.0),
                ("a", "out", 100, 0.0),
                ("in", "b", 0, 0.0),
                ("b", "out", 0, 0.0),
                ("in", "c", 1, 1.0),
                ("c", "out", 1, 0.0),
            ],
        );
        for link in topology.links.iter_mut().filter(|link| link.from == "b" || link.to == "b") {
            link.quality = LinkQuality::default();
        }
        assert_eq!(paths(&topology, &wishes("in", "out", 3)), ["in a out", "in b out"]);
        topology.nodes.retain(|node| node.name != "a");
        let plan = plan(&topology, &wishes("in", "out", 2)).unwrap();
        assert_eq!(plan.paths[0].nodes, ["in", "b", "out"]);
        assert!(!plan.paths[0].is_measured);
        assert_eq!(plan.paths[1].nodes, ["in", "c", "out"]);
    }

    #[test]
    fn one_measured_direction_serves_for_both() {
        let mut topology = topology("in:e out:x", &[("in", "out", 7, 0.0)]);
        topology.links[0].quality = LinkQuality::default();
        assert_eq!(plan(&topology, &wishes("in", "out", 1)).unwrap().paths[0].latency_us, 7_000);
    }

    #[test]
    fn without_a_wish_the_pair_with_more_disjoint_paths_wins_then_the_cheaper() {
        let topology = topology(
            "in1:e in2:e a:r b:r out:x",
            &[
                ("in1", "out", 1, 0.0),
                ("in2", "a", 20, 0.0),
                ("a", "out", 20, 0.0),
                ("in2", "b", 20, 0.0),
                ("b", "out", 20, 0.0),
            ],
        );
        assert_eq!(plan(&topology, &wishes("", "", 1)).unwrap().entry.name, "in1");
        assert_eq!(plan(&topology, &wishes("", "", 2)).unwrap().entry.name, "in2");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let empty = Topology { nodes: vec![], links: vec![] };
        assert!(matches!(plan(&empty, &wishes("", "", 2)), Err(PlanError::NoPath { nodes: 0, .. })));
        let one = topology("all:erx", &[]);
        assert_eq!(plan(&one, &wishes("all", "all", 2)), Err(PlanError::SameNode("all".into())));
        let mut poisoned = topology("in:e out:x", &[("in", "out", 7, f32::NAN)]);
        poisoned.links[0].from = "ghost".into();
        assert!(plan(&poisoned, &wishes("in", "out", 2)).is_err());
    }

    #[test]
    fn no_path_is_longer_than_a_session_may_have() {
        let names: Vec<String> = (0..10).map(|i| format!("n{i}")).collect();
        let mut nodes = names.iter().map(|name| format!("{name}:r")).collect::<Vec<_>>();
        nodes[0] = "n0:e".into();
        nodes[9] = "n9:x".into();
        let links: Vec<_> = names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str(), 1, 0.0)).collect();
        assert!(plan(&topology(&nodes.join(" "), &links), &wishes("n0", "n9", 1)).is_err());
    }
}
