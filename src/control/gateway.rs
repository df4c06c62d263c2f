//! The gateway as the control core knows it: what its file says, the machine's addresses, and the static mappings.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    Control,
    interface::{Effect, LocalAddress},
    tables::NatBinding,
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        gateway::{Gateway, StaticMapping, Transit},
        nat::{BindingInit, BindingKey, Filtering, Mapping, Owner},
    },
};

/// What the gateway does, and where this machine is.
#[derive(Debug)]
pub(super) struct GatewayState {
    config: Gateway,
    addresses: Vec<LocalAddress>,
    addresses6: Vec<LocalAddress<Ipv6Addr>>,
    /// Static mappings that are written, by [`StaticMapping::place`].
    written: BTreeMap<(u8, Ipv4Addr, u16), Written>,
}

/// A static mapping at its worker.
#[derive(Clone, Copy, Debug)]
struct Written {
    mapping: StaticMapping,
    worker: usize,
    index: u32,
}

impl GatewayState {
    /// As its file says; nothing is written, and nothing is known of addresses yet.
    pub(super) fn new(config: Gateway) -> Self {
        Self { config, addresses: Vec::new(), addresses6: Vec::new(), written: BTreeMap::new() }
    }

    /// What the XDP programs are to take.
    fn transit(&self) -> Transit {
        let mut local: Vec<Ipv4Addr> = Vec::new();
        for LocalAddress { address, network, .. } in &self.addresses {
            local.push(*address);
            // A network of one or two addresses has no broadcast address (RFC 3021).
            if network.length < 31 {
                local.extend([network.address, network.last()]);
            }
        }
        local.sort_unstable();
        local.dedup();
        Transit {
            forwarded: self.config.mappings.iter().map(StaticMapping::place).collect(),
            local,
            local6: self.addresses6.iter().map(|local| local.address).collect(),
            exempt: self.config.exempt.clone(),
            exempt6: self.config.exempt6.clone(),
        }
    }
}

impl Control {
    /// The gateway's file was read anew: from now on it is as `config` says. Interfaces and outside addresses must be what
    /// they were. Flows that there are go on, except those of static mappings that are gone.
    pub fn set_gateway(&mut self, config: Gateway, now: Nanos) {
        let Some(gateway) = &mut self.gateway else { return };
        let is_draining = gateway.config.is_draining;
        gateway.config = Gateway { is_draining, ..config };
        self.write_mappings(now);
        self.publish_gateway();
    }

    /// Stops or starts taking new flows.
    pub fn set_draining(&mut self, is_draining: bool) {
        let Some(gateway) = &mut self.gateway else { return };
        gateway.config.is_draining = is_draining;
        self.adjacencies.is_changed = true;
    }

    /// True where the gateway takes no new flows.
    pub fn is_draining(&self) -> bool {
        self.gateway.as_ref().is_some_and(|gateway| gateway.config.is_draining)
    }

    /// Bindings of the gateway's hosts, static mappings aside.
    pub fn gateway_bindings(&self) -> u64 {
        let all = self.workers.iter().flat_map(|tables| &tables.nat).flatten();
        all.filter(|binding| binding.key.owner == Owner::INSIDE && !binding.is_static).count() as u64
    }

    /// The kernel's addresses changed: what goes there is the kernel's, and what is said about packets that came in
    /// there is said from there.
    pub(super) fn on_addresses(&mut self, addresses: Vec<LocalAddress>) {
        let Some(gateway) = &mut self.gateway else { return };
        gateway.addresses = addresses;
        self.publish_gateway();
    }

    /// The same for IPv6.
    pub(super) fn on_addresses6(&mut self, addresses: Vec<LocalAddress<Ipv6Addr>>) {
        let Some(gateway) = &mut self.gateway else { return };
        gateway.addresses6 = addresses;
        self.publish_gateway();
    }

    fn publish_gateway(&mut self) {
        let Some(gateway) = &self.gateway else { return };
        self.effects.push_back(Effect::Take(gateway.transit()));
        self.adjacencies.is_changed = true;
    }

    /// The gateway's part of the workers' snapshot.
    pub(super) fn gateway_snapshot(&self) -> Option<Gateway> {
        let gateway = self.gateway.as_ref()?;
        let interfaces = 0..gateway.config.realms.len();
        let routers = interfaces.clone().map(|interface| first_of(&gateway.addresses, interface)).collect();
        let routers6 = interfaces.map(|interface| first_of(&gateway.addresses6, interface)).collect();
        Some(Gateway { routers, routers6, ..gateway.config.clone() })
    }

    /// Frees static mappings that are gone or lead elsewhere, and writes the new ones.
    pub(super) fn write_mappings(&mut self, now: Nanos) {
        let Some(gateway) = &mut self.gateway else { return };
        let wanted = gateway.config.mappings.clone();
        let gone: Vec<Written> = gateway
            .written
            .extract_if(.., |_, written| !wanted.contains(&written.mapping))
            .map(|(_, gone)| gone)
            .collect();
        for Written { worker, index, .. } in gone {
            self.free_binding(worker, index);
        }
        for mapping in wanted {
            let is_written =
                self.gateway.as_ref().is_some_and(|gateway| gateway.written.contains_key(&mapping.place()));
            if !is_written {
                self.write_mapping(mapping, now);
            }
        }
    }

    fn write_mapping(&mut self, mapping: StaticMapping, now: Nanos) {
        let worker = self.config.identity.owner_of_host(mapping.inside.0);
        let binding = BindingInit {
            owner: Owner::INSIDE,
            protocol: mapping.protocol,
            inside_address: mapping.inside.0,
            inside_port: mapping.inside.1,
            outside_address: mapping.outside.0,
            outside_port: mapping.outside.1,
            mapping: Mapping::EndpointIndependent,
            // Whoever knows the port may use it: that is what it is for.
            filtering: Filtering::EndpointIndependent,
        };
        let key = binding.key();
        let Some(index) = self.workers[worker].bindings.take() else {
            let (outside, port) = mapping.outside;
            tracing::error!("no binding is free for the static mapping of {outside}:{port}; raise limits.bindings");
            return;
        };
        // The host may have spoken from there before, and got a port like anyone.
        if let Some(&other) = self.workers[worker].by_key.get(&key) {
            self.free_binding(worker, other);
        }
        let held = NatBinding {
            key,
            lease: None,
            since: now,
            due: 0,
            is_flow: true,
            is_static: true,
            is_free_pending: false,
            is_closing: false,
        };
        self.workers[worker].put_binding(index, held);
        self.command(worker, Command::SetBinding { index, binding });
        if let Some(gateway) = &mut self.gateway {
            gateway.written.insert(mapping.place(), Written { mapping, worker, index });
        }
    }
}

impl Control {
    /// Where the static mapping leads that the binding of this key was made for.
    pub(super) fn static_outside(&self, key: &BindingKey) -> Option<SocketAddr> {
        let written = self.gateway.as_ref()?.written.values().map(|written| written.mapping);
        let mapping = written
            .into_iter()
            .find(|mapping| (mapping.protocol, mapping.inside) == (key.protocol, (key.address, key.port)))?;
        Some(SocketAddr::new(mapping.outside.0.into(), mapping.outside.1))
    }
}

/// The first address of an interface, which is the primary one.
fn first_of<A: Copy>(addresses: &[LocalAddress<A>], interface: usize) -> Option<A> {
    addresses.iter().find(|local| local.interface.map(usize::from) == Some(interface)).map(|local| local.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::harness::Net,
        dataplane::{
            command::{Event, PuntCause},
            forwarding::Prefix,
            nat::BindingKey,
            reason::Reason,
        },
        wire::{ip4, tcp},
    };

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const WORKERS: u8 = 2;

    fn mapping(port: u16, host: u8) -> StaticMapping {
        StaticMapping { protocol: ip4::TCP, outside: (OUTSIDE, port), inside: ([192, 168, 0, host].into(), 8000) }
    }

    fn gateway(mappings: &[StaticMapping]) -> Gateway {
        Gateway { mappings: mappings.to_vec(), ..Gateway::default() }
    }

    fn net(mappings: &[StaticMapping]) -> Net {
        let mut net = Net::new(&["gw"], WORKERS, |_, config| config.gateway = Some(gateway(mappings)));
        net.settle();
        net
    }

    /// Outside port and inside host of every binding, by worker.
    fn written(net: &mut Net) -> Vec<Vec<(u16, u8)>> {
        let node = net.node("gw");
        let of = |binding: &BindingInit| (binding.outside_port, binding.inside_address.octets()[3]);
        node.workers.iter().map(|worker| worker.bindings.values().map(of).collect()).collect()
    }

    /// A host's first packet waits at its worker under ticket 7.
    fn ask(net: &mut Net, host: u8, port: u16) -> usize {
        let (address, now) = ([192, 168, 0, host].into(), net.now);
        let node = net.node("gw");
        let worker = node.config.identity.owner_of_host(address);
        let key = BindingKey { owner: Owner::INSIDE, protocol: ip4::TCP, address, port, remote: None };
        let cause = PuntCause::NoBinding { key, remote: ([8, 8, 8, 8].into(), 53), tcp_flags: tcp::SYN };
        node.control.on_event(worker, Event::Punt { waiting: 7, cause }, now);
        net.settle();
        worker
    }

    #[test]
    fn a_static_mapping_is_written_to_the_worker_of_its_host_and_follows_the_file() {
        let all: Vec<StaticMapping> = (1..9).map(|n| mapping(80 + u16::from(n), n)).collect();
        let mut net = net(&all);
        let before = written(&mut net);
        assert!(before.iter().all(|worker| !worker.is_empty()), "hosts of both workers");
        assert_eq!(before.concat().len(), 8);

        // One stays, one leads to another host, one is new; the others are gone.
        let now = net.now;
        let next = [mapping(81, 1), mapping(82, 7), mapping(90, 9)];
        net.node("gw").control.set_gateway(gateway(&next), now);
        net.settle();
        net.run(crate::SECOND);
        let mut after = written(&mut net).concat();
        after.sort_unstable();
        assert_eq!(after, [(81, 1), (82, 7), (90, 9)]);
        assert_eq!(net.node("gw").takes.forwarded, next.map(|mapping| mapping.place()));
    }

    #[test]
    fn a_host_that_spoke_first_is_given_its_static_mapping_all_the_same() {
        let mut net = net(&[]);
        let worker = ask(&mut net, 5, 8000);
        let first = written(&mut net)[worker][0].0;
        assert!(first > 40_000);
        let now = net.now;
        net.node("gw").control.set_gateway(gateway(&[mapping(80, 5)]), now);
        net.settle();
        net.run(crate::SECOND);
        assert_eq!(written(&mut net)[worker], [(80, 5)]);
        ask(&mut net, 5, 8000);
        assert_eq!(written(&mut net)[worker], [(80, 5)], "its packets find the static one");
    }

    #[test]
    fn a_static_mapping_outlives_every_timer() {
        let mut net = net(&[mapping(80, 5)]);
        net.run(3 * 3600 * crate::SECOND);
        assert_eq!(written(&mut net).concat(), [(80, 5)]);
    }

    #[test]
    fn a_gateway_that_drains_refuses_new_flows_and_keeps_the_old() {
        let mut net = net(&[mapping(80, 5)]);
        let worker = ask(&mut net, 3, 1000);
        net.node("gw").control.set_draining(true);
        net.settle();
        assert!(net.node("gw").workers[worker].forwarding.gateway.as_ref().unwrap().is_draining);
        ask(&mut net, 3, 1001);
        ask(&mut net, 3, 1000);
        let node = net.node("gw");
        assert_eq!(node.workers[worker].refused, [(7, Reason::Draining)]);
        assert_eq!(node.workers[worker].resumed.len(), 2, "a packet of a flow that there is goes on");
        assert_eq!(node.control.gateway_bindings(), 1, "what is left, the static mapping aside");
        // A file that is read anew does not end it.
        node.control.set_gateway(gateway(&[]), 0);
        assert!(node.control.is_draining());
        node.control.set_draining(false);
        ask(&mut net, 3, 1002);
        assert_eq!(net.node("gw").control.gateway_bindings(), 2);
    }

    #[test]
    fn what_is_for_this_machine_or_for_all_is_not_routed_on() {
        let local = |address: [u8; 4], length| LocalAddress {
            interface: Some(0),
            address: address.into(),
            network: Prefix::new(address.into(), length),
        };
        let mut state = GatewayState::new(Gateway::default());
        state.addresses = vec![local([10, 0, 0, 1], 24), local([192, 0, 2, 1], 32), local([10, 1, 0, 1], 31)];
        let expected = [[10, 0, 0, 0], [10, 0, 0, 1], [10, 0, 0, 255], [10, 1, 0, 1], [192, 0, 2, 1]];
        assert_eq!(state.transit().local, expected.map(Ipv4Addr::from));
    }
}
