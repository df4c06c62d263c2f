//! The gateway as the control core knows it: what its file says, the machine's addresses, and the static mappings.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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
        forwarding::Identity,
        gateway::{Gateway, OutsideAddress, StaticMapping, Transit},
        nat::{BindingInit, Filtering, Mapping, NatConfig, Owner, pool::PoolError, token},
    },
};

/// What the gateway does, and where this machine is.
#[derive(Debug)]
pub(super) struct GatewayState {
    config: Gateway,
    addresses: Vec<LocalAddress>,
    addresses6: Vec<LocalAddress<Ipv6Addr>>,
    /// Static mappings that are written, by [`StaticMapping::place`].
    written: BTreeMap<(u8, IpAddr, u16), Written>,
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

    /// What the XDP programs are to take of a node that is this and has these outside addresses.
    fn transit(&self, identity: &Identity, nat: &NatConfig) -> Transit {
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
        let (mut forwarded, mut forwarded6) = (Vec::new(), Vec::new());
        for StaticMapping { protocol, outside: (address, port), .. } in &self.config.mappings {
            match address {
                IpAddr::V4(address) => forwarded.push((*protocol, *address, *port)),
                IpAddr::V6(address) => forwarded6.push((*protocol, *address, *port)),
            }
        }
        let mut addresses: Vec<OutsideAddress> = nat.addresses.iter().filter(|o| !o.is_vacant()).copied().collect();
        // The first is the node's own, which is sent relay packets, too.
        addresses[0] = OutsideAddress { address: identity.address, first: identity.data_port, last: addresses[0].last };
        Transit {
            addresses,
            addresses6: nat.addresses6.iter().filter(|outside| !outside.is_vacant()).copied().collect(),
            forwarded,
            forwarded6,
            local,
            local6: self.addresses6.iter().map(|local| local.address).collect(),
            exempt: self.config.exempt.clone(),
            exempt6: self.config.exempt6.clone(),
        }
    }
}

impl Control {
    /// The gateway's file was read anew: from now on it is as `config` says. Interfaces must be what they were. Flows that
    /// there are go on, except those of static mappings that are gone. On an error nothing has changed.
    pub fn set_gateway(&mut self, config: Gateway, now: Nanos) -> Result<(), PoolError> {
        if self.gateway.is_none() {
            return Ok(());
        }
        self.set_pool(&config.addresses, &config.addresses6)?;
        if let Some(gateway) = &mut self.gateway {
            let is_draining = gateway.config.is_draining;
            gateway.config = Gateway { is_draining, ..config };
        }
        self.write_mappings(now);
        self.publish_gateway();
        Ok(())
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

    pub(super) fn publish_gateway(&mut self) {
        let Some(gateway) = &self.gateway else { return };
        let transit = gateway.transit(&self.config.identity, &self.config.nat);
        self.effects.push_back(Effect::Take(transit));
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
        let worker = self.config.identity.owner_of(mapping.inside.0);
        let Some((index, binding)) = self.static_binding(worker, &mapping) else {
            let outside = SocketAddr::from(mapping.outside);
            tracing::error!("no binding is free for the static mapping of {outside}; raise limits.bindings");
            return;
        };
        let key = binding.key();
        // The host may have spoken from there before, and got a port like anyone.
        if let Some(other) = self.workers[worker].find(&key) {
            self.free_binding(worker, other);
            self.workers[worker].by_key.remove(&key, other);
        }
        let held = NatBinding {
            key,
            lease: None,
            host: 0,
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

    /// A place for the binding of a static mapping, and what it is. A host of IPv6 is held for it. `None`: there is no room.
    fn static_binding(&mut self, worker: usize, mapping: &StaticMapping) -> Option<(u32, BindingInit)> {
        let outside_address = match mapping.outside.0 {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => self.config.nat.outside_token6(address)?,
        };
        if self.workers[worker].bindings.is_exhausted() {
            return None;
        }
        let inside_address = match (mapping.inside.0, mapping.translation()) {
            (IpAddr::V4(address), _) => address,
            (IpAddr::V6(address), translation) => token::host(translation?, self.hold_host6(worker, address)?),
        };
        let binding = BindingInit {
            owner: Owner::INSIDE,
            protocol: mapping.protocol,
            inside_address,
            inside_port: mapping.inside.1,
            outside_address,
            outside_port: mapping.outside.1,
            mapping: Mapping::EndpointIndependent,
            // Whoever knows the port may use it: that is what it is for.
            filtering: Filtering::EndpointIndependent,
        };
        Some((self.workers[worker].bindings.take()?, binding))
    }

    /// What servers know the static mapping by that this binding was made for.
    pub(super) fn static_outside(&self, worker: usize, index: u32) -> Option<SocketAddr> {
        let mut written = self.gateway.as_ref()?.written.values();
        let written = written.find(|written| (written.worker, written.index) == (worker, index))?;
        Some(written.mapping.outside.into())
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
            command::{Event, Flow6, PuntCause},
            forwarding::Prefix,
            gateway::OutsideAddress6,
            nat::{BindingKey, Prefix64, Translation},
            reason::Reason,
        },
        wire::{ip4, tcp},
    };

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const WORKERS: u8 = 2;

    fn mapping(port: u16, host: u8) -> StaticMapping {
        let (outside, inside) = ((OUTSIDE.into(), port), ([192, 168, 0, host].into(), 8000));
        StaticMapping { protocol: ip4::TCP, outside, inside }
    }

    fn gateway(mappings: &[StaticMapping]) -> Gateway {
        let own = OutsideAddress { address: OUTSIDE, first: 40_001, last: 40_999 };
        Gateway { addresses: vec![own], mappings: mappings.to_vec(), ..Gateway::default() }
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
        net.node("gw").control.set_gateway(gateway(&next), now).unwrap();
        net.settle();
        net.run(crate::SECOND);
        let mut after = written(&mut net).concat();
        after.sort_unstable();
        assert_eq!(after, [(81, 1), (82, 7), (90, 9)]);
        assert_eq!(net.node("gw").takes.forwarded, [81, 82, 90].map(|port| (ip4::TCP, OUTSIDE, port)));
    }

    #[test]
    fn a_host_that_spoke_first_is_given_its_static_mapping_all_the_same() {
        let mut net = net(&[]);
        let worker = ask(&mut net, 5, 8000);
        let first = written(&mut net)[worker][0].0;
        assert!(first > 40_000);
        let now = net.now;
        net.node("gw").control.set_gateway(gateway(&[mapping(80, 5)]), now).unwrap();
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

    const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);

    fn host6(number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, number)
    }

    /// To port 8000 of a host of IPv6.
    fn mapping6(outside: IpAddr, port: u16, host: u16) -> StaticMapping {
        StaticMapping { protocol: ip4::UDP, outside: (outside, port), inside: (host6(host).into(), 8000) }
    }

    fn net6(mappings: &[StaticMapping]) -> Net {
        let mut net = Net::new(&["gw"], WORKERS, |_, config| {
            config.nat.addresses6 = vec![OutsideAddress6 { address: OUTSIDE6, first: 5000, last: 5999 }];
            config.nat.nat64 = Some(Prefix64::WELL_KNOWN);
            config.gateway = Some(gateway(mappings));
        });
        net.settle();
        net
    }

    fn reload(net: &mut Net, mappings: &[StaticMapping]) {
        let now = net.now;
        let node = net.node("gw");
        let addresses6 = node.config.nat.addresses6.clone();
        node.control.set_gateway(Gateway { addresses6, ..gateway(mappings) }, now).unwrap();
        net.settle();
        net.run(crate::SECOND);
    }

    /// Outside address and port, translation and inside host of every binding.
    fn written6(net: &mut Net) -> Vec<(IpAddr, u16, Option<Translation>, Ipv6Addr)> {
        let node = net.node("gw");
        let mut all = Vec::new();
        for worker in &node.workers {
            for binding in worker.bindings.values() {
                let (translation, place) = token::host_of(binding.inside_address).unwrap();
                let outside = binding.outside_address;
                let outside = if token::is_reserved(outside) { OUTSIDE6.into() } else { outside.into() };
                all.push((outside, binding.outside_port, Some(translation), worker.hosts6[&place]));
            }
        }
        all.sort_unstable_by_key(|(outside, port, ..)| (*outside, *port));
        all
    }

    #[test]
    fn static_mappings_of_ipv6_are_written_to_the_workers_of_their_hosts_and_follow_the_file() {
        let (us, us6) = (IpAddr::from(OUTSIDE), IpAddr::from(OUTSIDE6));
        let all: Vec<StaticMapping> =
            (1..9).flat_map(|n| [mapping6(us, 80 + n, n), mapping6(us6, 80 + n, n)]).collect();
        let expected = |mapping: &StaticMapping| {
            let IpAddr::V6(host) = mapping.inside.0 else { panic!("a host of IPv6") };
            (mapping.outside.0, mapping.outside.1, mapping.translation(), host)
        };
        let mut net = net6(&all);
        let mut sorted = all.clone();
        sorted.sort_unstable_by_key(StaticMapping::place);
        assert_eq!(written6(&mut net), sorted.iter().map(expected).collect::<Vec<_>>());
        assert!(net.node("gw").workers.iter().all(|worker| !worker.bindings.is_empty()), "hosts of both workers");

        // One stays, one leads to another host, one is of the other family now.
        let next = [mapping6(us, 81, 1), mapping6(us6, 82, 7), mapping6(us6, 90, 3)];
        reload(&mut net, &next);
        assert_eq!(written6(&mut net), next.iter().map(expected).collect::<Vec<_>>());
        let takes = &net.node("gw").takes;
        assert_eq!(takes.forwarded, [(ip4::UDP, OUTSIDE, 81)]);
        assert_eq!(takes.forwarded6, [82, 90].map(|port| (ip4::UDP, OUTSIDE6, port)));
        let hosts = |net: &mut Net| net.node("gw").workers.iter().map(|worker| worker.hosts6.len()).sum::<usize>();
        assert_eq!(hosts(&mut net), 3, "a host is there as long as it has a mapping");
        net.run(3 * 3600 * crate::SECOND);
        assert_eq!(written6(&mut net).len(), 3);
        reload(&mut net, &[]);
        assert_eq!(hosts(&mut net), 0);
        net.assert_all_free();
    }

    #[test]
    fn a_static_mapping_may_be_of_an_address_that_comes_with_its_file_and_goes_with_the_next() {
        let mut net = net6(&[]);
        let other = OutsideAddress6 { address: host6(0xffff), first: 5000, last: 5999 };
        for _ in 0..2 {
            let (now, node) = (net.now, net.node("gw"));
            let addresses6 = vec![node.config.nat.addresses6[0], other];
            let file = gateway(&[mapping6(other.address.into(), 80, 1)]);
            node.control.set_gateway(Gateway { addresses6, ..file }, now).unwrap();
            net.settle();
            let node = net.node("gw");
            assert_eq!(node.takes.forwarded6, [(ip4::UDP, other.address, 80)]);
            let bindings: Vec<_> = node.workers.iter().flat_map(|worker| worker.bindings.values()).collect();
            assert_eq!((bindings.len(), token::outside_of(bindings[0].outside_address)), (1, Some(1)));
            reload(&mut net, &[]);
            net.run(2 * crate::SECOND);
            let takes = &net.node("gw").takes;
            assert_eq!((takes.addresses6.len(), takes.forwarded6.len()), (1, 0), "nothing is left of it");
            net.assert_all_free();
        }
    }

    #[test]
    fn a_host_of_ipv6_that_spoke_first_is_given_its_static_mapping_in_its_family_alone() {
        let mut net = net6(&[]);
        let worker = net.node("gw").config.identity.owner_of_host6(host6(5));
        for (waiting, translation) in [(1, Translation::Nat66), (2, Translation::Nat64)] {
            let (protocol, address, remote) = (ip4::UDP, host6(5), ([198, 51, 100, 1].into(), 53));
            let flow = Flow6 { owner: Owner::INSIDE, translation, protocol, address, port: 8000, remote };
            let (now, cause) = (net.now, PuntCause::NoBinding6 { flow, tcp_flags: 0 });
            net.node("gw").control.on_event(worker, Event::Punt { waiting, cause }, now);
            net.settle();
        }
        let before = written6(&mut net);
        reload(&mut net, &[mapping6(OUTSIDE6.into(), 80, 5)]);
        let mapped = (OUTSIDE6.into(), 80, Some(Translation::Nat66), host6(5));
        assert_eq!(written6(&mut net), [before[0], mapped], "the flow to IPv4 goes on as it was");
    }

    #[test]
    fn a_static_mapping_for_which_there_is_no_room_holds_no_host_and_comes_with_a_later_file() {
        let all: Vec<StaticMapping> = (1..4).map(|n| mapping6(OUTSIDE6.into(), 80 + n, n)).collect();
        let mut net = Net::new(&["gw"], 1, |_, config| {
            config.bindings = 2;
            config.nat.addresses6 = vec![OutsideAddress6 { address: OUTSIDE6, first: 5000, last: 5999 }];
            config.gateway = Some(gateway(&all));
        });
        net.settle();
        assert_eq!((written6(&mut net).len(), net.node("gw").workers[0].hosts6.len()), (2, 2));
        reload(&mut net, &all[1..]);
        assert_eq!(written6(&mut net).len(), 1, "the place of the first is free only now");
        reload(&mut net, &all[1..]);
        assert_eq!(written6(&mut net).len(), 2);
        reload(&mut net, &[]);
        net.assert_all_free();
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
        node.control.set_gateway(gateway(&[]), 0).unwrap();
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
        let identity = Net::new(&["gw"], WORKERS, |_, _| ()).node("gw").config.identity;
        assert_eq!(state.transit(&identity, &NatConfig::of(&identity)).local, expected.map(Ipv4Addr::from));
    }
}
