//! The nodes, when they were last heard of, and what they measured. Sans-IO.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
};

use crate::{
    Nanos, SECOND, limits,
    rpc::messages::{
        FailureReason, LinkQuality, Neighbour, NodeInfo, NodeName, Register, Report, Topology, TopologyLink,
        is_node_name,
    },
    wire::relay::HopKey,
};

/// A node that has not reported for this long is left out of the topology: no client plans a path over it.
pub const SILENT_AFTER: Nanos = 5 * SECOND;

/// A node that has not reported for this long is no neighbour any more. Longer than [`SILENT_AFTER`], as a node that
/// has only lost its way to us still carries its sessions and can be reached by its neighbours.
pub const FORGOTTEN_AFTER: Nanos = 60 * SECOND;

/// Nodes that can be registered: each may be a neighbour of all others.
pub const NODES_MAX: usize = limits::PEERS_MAX + 1;

/// Which nodes are neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Links {
    /// All of each other.
    FullMesh,
    /// These pairs; in each the smaller name first.
    Pairs(BTreeSet<(NodeName, NodeName)>),
}

impl Links {
    /// The links between these pairs, in either order.
    pub fn pairs(pairs: impl IntoIterator<Item = (NodeName, NodeName)>) -> Self {
        Self::Pairs(pairs.into_iter().map(|(a, b)| if a <= b { (a, b) } else { (b, a) }).collect())
    }

    /// True where `a` and `b` are neighbours. No node is its own.
    pub fn joins(&self, a: &str, b: &str) -> bool {
        match self {
            Self::FullMesh => a != b,
            Self::Pairs(pairs) => pairs.contains(&(a.min(b).to_owned(), a.max(b).to_owned())) && a != b,
        }
    }
}

/// What is known of a node.
#[derive(Clone, Debug)]
pub struct Registered {
    /// As it presented itself.
    pub info: NodeInfo,
    probe_key: HopKey,
    /// When it registered or reported last.
    pub heard: Nanos,
    measured: BTreeMap<NodeName, LinkQuality>,
}

impl Registered {
    /// True where it was heard of within [`SILENT_AFTER`].
    pub fn is_live(&self, now: Nanos) -> bool {
        now.saturating_sub(self.heard) < SILENT_AFTER
    }
}

/// All nodes by name.
#[derive(Debug)]
pub struct Registry {
    links: Links,
    nodes: BTreeMap<NodeName, Registered>,
}

impl Registry {
    /// An empty registry.
    pub fn new(links: Links) -> Self {
        Self { links, nodes: BTreeMap::new() }
    }

    /// Takes a node in, or anew after its restart: its measurements are forgotten where its epoch has changed.
    ///
    /// # Errors
    /// [`FailureReason::BadRequest`] for a name or an address that cannot be, or is another live node's;
    /// [`FailureReason::Busy`] where there are [`NODES_MAX`] nodes already.
    pub fn register(&mut self, register: Register, now: Nanos) -> Result<(), FailureReason> {
        let Register { node: info, probe_key } = register;
        if !is_node_name(&info.name) || !is_reachable(info.control) || !is_reachable(info.data) {
            return Err(FailureReason::BadRequest);
        }
        if let Some(other) = self
            .nodes
            .values()
            .find(|other| other.info.name != info.name && other.is_live(now) && other.info.data == info.data)
        {
            tracing::warn!(node = info.name, other = other.info.name, address = %info.data, "two nodes, one address");
            return Err(FailureReason::BadRequest);
        }
        if let Some(known) = self.nodes.get_mut(&info.name) {
            if known.info.boot_epoch != info.boot_epoch {
                tracing::info!(node = info.name, "restarted");
                known.measured.clear();
            }
            (known.info, known.probe_key, known.heard) = (info, probe_key, now);
            return Ok(());
        }
        if self.nodes.len() >= NODES_MAX {
            self.nodes.retain(|_, node| now.saturating_sub(node.heard) < FORGOTTEN_AFTER);
        }
        if self.nodes.len() >= NODES_MAX {
            tracing::warn!(node = info.name, "refused: there are {NODES_MAX} nodes already");
            return Err(FailureReason::Busy);
        }
        tracing::info!(node = info.name, address = %info.data, "registered");
        let name = info.name.clone();
        self.nodes.insert(name, Registered { info, probe_key, heard: now, measured: BTreeMap::new() });
        Ok(())
    }

    /// Takes what a node measured, instead of all it measured before. What is not about a neighbour of it, or is not
    /// a number that can be, is left out.
    ///
    /// # Errors
    /// [`FailureReason::UnknownNode`] where the node has not registered under this epoch: it has to, again.
    pub fn report(&mut self, report: &Report, now: Nanos) -> Result<(), FailureReason> {
        let Some(node) = self.nodes.get_mut(&report.name).filter(|node| node.info.boot_epoch == report.boot_epoch)
        else {
            return Err(FailureReason::UnknownNode);
        };
        if !node.is_live(now) {
            tracing::info!(node = report.name, "is back");
        }
        node.heard = now;
        node.measured = report
            .links
            .iter()
            .filter(|link| self.links.joins(&report.name, &link.to) && (0.0..=1.0).contains(&link.quality.loss))
            .take(limits::PEERS_MAX)
            .map(|link| (link.to.clone(), link.quality))
            .collect();
        Ok(())
    }

    /// The neighbours of `name` heard of within [`FORGOTTEN_AFTER`], by name.
    pub fn neighbours_of(&self, name: &str, now: Nanos) -> Vec<Neighbour> {
        self.nodes
            .values()
            .filter(|node| self.links.joins(name, &node.info.name))
            .filter(|node| now.saturating_sub(node.heard) < FORGOTTEN_AFTER)
            .map(|node| Neighbour { node: node.info.clone(), probe_key: node.probe_key })
            .collect()
    }

    /// The live nodes and each direction of the links between them; one that was not measured yet has zero probes.
    pub fn topology(&self, now: Nanos) -> Topology {
        let live: Vec<&Registered> = self.nodes.values().filter(|node| node.is_live(now)).collect();
        let ends = live.iter().flat_map(|from| live.iter().map(move |to| (from, to)));
        let links = ends
            .filter(|(from, to)| self.links.joins(&from.info.name, &to.info.name))
            .map(|(from, to)| TopologyLink {
                from: from.info.name.clone(),
                to: to.info.name.clone(),
                quality: from.measured.get(&to.info.name).copied().unwrap_or_default(),
            })
            .collect();
        Topology { nodes: live.iter().map(|node| node.info.clone()).collect(), links }
    }

    /// All nodes, silent ones too, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Registered> {
        self.nodes.values()
    }
}

/// False for what cannot be the address of one node.
fn is_reachable(address: SocketAddrV4) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::rpc::messages::{LinkReport, Roles};

    pub(in crate::controller) fn register(name: &str, last: u8, boot_epoch: u64) -> Register {
        let address = |port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), port);
        Register {
            node: NodeInfo {
                name: name.to_owned(),
                control: address(4433),
                data: address(40000),
                roles: Roles { entry: true, relay: true, exit: true },
                boot_epoch,
            },
            probe_key: [last; 16],
        }
    }

    fn report(name: &str, boot_epoch: u64, to: &[(&str, f32)]) -> Report {
        let link = |(to, loss): &(&str, f32)| LinkReport {
            to: (*to).to_owned(),
            quality: LinkQuality { probes: 10, rtt_p50_us: 1000, loss: *loss, ..LinkQuality::default() },
        };
        Report { name: name.to_owned(), boot_epoch, links: to.iter().map(link).collect() }
    }

    fn registry(links: Links, names: &[&str]) -> Registry {
        let mut registry = Registry::new(links);
        for (last, name) in (1..).zip(names) {
            registry.register(register(name, last, 1), 0).unwrap();
        }
        registry
    }

    fn pairs(pairs: &[(&str, &str)]) -> Links {
        Links::pairs(pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())))
    }

    fn names(neighbours: &[Neighbour]) -> Vec<&str> {
        neighbours.iter().map(|neighbour| neighbour.node.name.as_str()).collect()
    }

    fn links_of(topology: &Topology) -> Vec<(&str, &str, u32)> {
        topology.links.iter().map(|link| (link.from.as_str(), link.to.as_str(), link.quality.probes)).collect()
    }

    #[test]
    fn neighbours_are_all_others_or_those_that_the_links_name() {
        let mesh = registry(Links::FullMesh, &["a", "b", "c"]);
        assert_eq!(names(&mesh.neighbours_of("b", 0)), ["a", "c"]);
        let chain = registry(pairs(&[("b", "a"), ("b", "c")]), &["a", "b", "c"]);
        assert_eq!(names(&chain.neighbours_of("b", 0)), ["a", "c"]);
        assert_eq!(names(&chain.neighbours_of("a", 0)), ["b"]);
        assert!(chain.neighbours_of("stranger", 0).is_empty());
        assert_eq!(links_of(&chain.topology(0)), [("a", "b", 0), ("b", "a", 0), ("b", "c", 0), ("c", "b", 0)]);
    }

    #[test]
    fn a_silent_node_leaves_the_topology_at_once_and_its_neighbours_later() {
        let mut registry = registry(Links::FullMesh, &["a", "b"]);
        registry.report(&report("a", 1, &[("b", 0.0)]), SILENT_AFTER - 1).unwrap();
        assert_eq!(registry.topology(SILENT_AFTER - 1).nodes.len(), 2);
        let topology = registry.topology(SILENT_AFTER);
        assert_eq!(topology.nodes.len(), 1);
        assert!(topology.links.is_empty(), "no link to a node that is not there");
        assert_eq!(names(&registry.neighbours_of("a", FORGOTTEN_AFTER - 1)), ["b"]);
        assert!(registry.neighbours_of("a", FORGOTTEN_AFTER).is_empty());

        registry.report(&report("b", 1, &[]), FORGOTTEN_AFTER + 1).unwrap();
        assert_eq!(names(&registry.neighbours_of("a", FORGOTTEN_AFTER + 1)), ["b"], "it is back");
    }

    #[test]
    fn another_boot_epoch_has_to_register_and_starts_without_measurements() {
        let mut registry = registry(Links::FullMesh, &["a", "b"]);
        registry.report(&report("a", 1, &[("b", 0.0)]), 1).unwrap();
        assert_eq!(registry.report(&report("a", 2, &[]), 2), Err(FailureReason::UnknownNode));
        assert_eq!(registry.report(&report("c", 1, &[]), 2), Err(FailureReason::UnknownNode));
        assert_eq!(links_of(&registry.topology(2))[0], ("a", "b", 10));
        registry.register(register("a", 1, 2), 3).unwrap();
        assert_eq!(links_of(&registry.topology(3))[0], ("a", "b", 0));
        assert_eq!(registry.report(&report("a", 1, &[]), 4), Err(FailureReason::UnknownNode), "the old process");
        assert_eq!(registry.neighbours_of("b", 4)[0].node.boot_epoch, 2);
    }

    #[test]
    fn registering_again_under_the_same_epoch_keeps_the_measurements() {
        let mut registry = registry(Links::FullMesh, &["a", "b"]);
        registry.report(&report("a", 1, &[("b", 0.0)]), 1).unwrap();
        registry.register(register("a", 1, 1), 2).unwrap();
        assert_eq!(links_of(&registry.topology(2))[0], ("a", "b", 10));
    }

    #[test]
    fn reports_about_strangers_and_numbers_that_cannot_be_are_left_out() {
        let mut registry = registry(pairs(&[("a", "b"), ("a", "d"), ("a", "e")]), &["a", "b", "c", "d", "e"]);
        let links = [("a", 0.0), ("b", 0.5), ("c", 0.0), ("d", f32::NAN), ("e", 1.5), ("nobody", 0.0)];
        registry.report(&report("a", 1, &links), 1).unwrap();
        let topology = registry.topology(1);
        let measured: Vec<_> = links_of(&topology).into_iter().filter(|(_, _, probes)| *probes > 0).collect();
        assert_eq!(measured, [("a", "b", 10)]);
    }

    #[test]
    fn an_address_of_nobody_or_of_another_live_node_is_refused() {
        let mut registry = registry(Links::FullMesh, &["a"]);
        assert_eq!(registry.register(register("b", 1, 1), 0), Err(FailureReason::BadRequest));
        registry.register(register("b", 1, 1), SILENT_AFTER).unwrap();
        let mut nowhere = register("c", 3, 1);
        nowhere.node.data.set_ip(Ipv4Addr::UNSPECIFIED);
        assert_eq!(registry.register(nowhere, 0), Err(FailureReason::BadRequest));
        assert_eq!(registry.register(register("No Name", 4, 1), 0), Err(FailureReason::BadRequest));
    }

    #[test]
    fn a_full_registry_refuses_the_new_and_makes_room_of_the_forgotten() {
        let mut registry = Registry::new(Links::FullMesh);
        for number in 0..NODES_MAX {
            let mut register = register(&format!("n{number}"), 1, 1);
            register.node.data.set_port(1024 + number as u16);
            registry.register(register, 0).unwrap();
        }
        assert_eq!(registry.register(register("late", 2, 1), 1), Err(FailureReason::Busy));
        registry.report(&report("n0", 1, &[]), 1).unwrap();
        registry.register(register("late", 2, 1), FORGOTTEN_AFTER).unwrap();
        assert_eq!(registry.nodes().count(), 2);
    }

    #[test]
    fn the_largest_topology_and_neighbour_list_fit_in_a_response() {
        use crate::rpc::{codec, messages::Response};
        let mut registry = Registry::new(Links::FullMesh);
        let name = |number: usize| format!("{number:0>63}");
        let all: Vec<String> = (0..NODES_MAX).map(name).collect();
        for (number, name) in all.iter().enumerate() {
            let mut register = register(name, 1, u64::MAX);
            register.node.data.set_port(1024 + number as u16);
            registry.register(register, 0).unwrap();
            let quality = LinkQuality {
                probes: u32::MAX,
                rtt_min_us: u32::MAX,
                rtt_p50_us: u32::MAX,
                rtt_p99_us: u32::MAX,
                jitter_us: u32::MAX,
                loss: 1.0,
            };
            let links = all.iter().map(|to| LinkReport { to: to.clone(), quality }).collect();
            let report = Report { name: name.clone(), boot_epoch: u64::MAX, links };
            codec::encode(&crate::rpc::messages::Request::Report(report.clone())).unwrap();
            registry.report(&report, 0).unwrap();
        }
        let bytes = codec::encode(&Response::Topology(registry.topology(0))).unwrap().len();
        assert!(bytes > limits::RESPONSE_BYTES_MAX / 4, "the limit is not far too large: {bytes}");
    }
}
