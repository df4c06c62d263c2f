//! The inside hosts of IPv6, for which tables have tokens ([`token`](crate::dataplane::nat::token)): who is at which
//! place of a worker. A host is there as long as something is held for it: its bindings, and a packet that asks for one.

use std::{collections::HashMap, net::Ipv6Addr};

use super::{Control, pools::Pool};
use crate::{
    Nanos,
    dataplane::{
        command::{Command, Flow6},
        nat::{BindingKey, token},
        reason::Reason,
    },
};

/// The hosts of one worker.
#[derive(Debug)]
pub(super) struct Hosts6 {
    places: Pool,
    by_address: HashMap<Ipv6Addr, u32>,
    /// Who is at a place, and how often it is held.
    by_place: Vec<Option<(Ipv6Addr, u32)>>,
}

impl Hosts6 {
    /// Room for `capacity` hosts.
    pub(super) fn new(capacity: u32) -> Self {
        let capacity = capacity.min(token::HOSTS_MAX);
        Self { places: Pool::new(capacity), by_address: HashMap::new(), by_place: Vec::new() }
    }

    /// Who is at a place.
    pub(super) fn address(&self, place: u32) -> Option<Ipv6Addr> {
        self.by_place.get(place as usize)?.map(|(address, _)| address)
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.by_address.len()
    }

    /// Holds the host with this address: its place, and whether it is new there. `None`: there is no room.
    fn hold(&mut self, address: Ipv6Addr) -> Option<(u32, bool)> {
        if let Some(&place) = self.by_address.get(&address) {
            self.hold_again(place);
            return Some((place, false));
        }
        let place = self.places.take()?;
        self.by_address.insert(address, place);
        if self.by_place.len() <= place as usize {
            self.by_place.resize(place as usize + 1, None);
        }
        self.by_place[place as usize] = Some((address, 1));
        Some((place, true))
    }

    fn hold_again(&mut self, place: u32) {
        if let Some(Some((_, held))) = self.by_place.get_mut(place as usize) {
            *held += 1;
        }
    }

    /// The other end of either. True where the host is gone.
    fn release(&mut self, place: u32) -> bool {
        let Some(Some((address, held))) = self.by_place.get_mut(place as usize) else { return false };
        *held -= 1;
        if *held > 0 {
            return false;
        }
        self.by_address.remove(address);
        self.by_place[place as usize] = None;
        self.places.give(place);
        true
    }
}

impl Control {
    /// A packet of an inside host of IPv6 waits because there is no binding for it.
    pub(super) fn on_no_binding6(&mut self, worker: usize, waiting: u32, flow: &Flow6, tcp_flags: u8, now: Nanos) {
        let Some(place) = self.hold_host6(worker, flow.address) else {
            self.counters.bindings_refused += 1;
            return self.refuse_packet(worker, waiting, Reason::TableFull);
        };
        let key = BindingKey {
            owner: flow.owner,
            protocol: flow.protocol,
            address: token::host(flow.translation, place),
            port: flow.port,
            remote: self.config.nat.is_endpoint_dependent.then_some(flow.remote),
        };
        self.on_no_binding(worker, waiting, key, flow.remote, tcp_flags, now);
        self.release_host6(worker, place);
    }

    /// Holds the host with this address; its worker knows it from now on, and so before its first binding. `None`: there is
    /// no room for it.
    pub(super) fn hold_host6(&mut self, worker: usize, address: Ipv6Addr) -> Option<u32> {
        let (place, is_new) = self.workers[worker].hosts.ip6.hold(address)?;
        if is_new {
            self.command(worker, Command::SetHost6 { place, address: Some(address) });
        }
        Some(place)
    }

    /// A binding of this host was made.
    pub(super) fn hold_host_of(&mut self, worker: usize, key: &BindingKey) {
        if let Some((_, place)) = token::host_of(key.address) {
            self.workers[worker].hosts.ip6.hold_again(place);
        }
    }

    /// A binding of this host is gone, at the worker, too.
    pub(super) fn release_host_of(&mut self, worker: usize, key: &BindingKey) {
        if let Some((_, place)) = token::host_of(key.address) {
            self.release_host6(worker, place);
        }
    }

    fn release_host6(&mut self, worker: usize, place: u32) {
        if self.workers[worker].hosts.ip6.release(place) {
            self.command(worker, Command::SetHost6 { place, address: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::harness::Net,
        dataplane::{
            command::{Event, PuntCause},
            gateway::OutsideAddress6,
            nat::{BindingInit, Owner, Prefix64, Translation},
        },
        wire::ip4,
    };

    /// A gateway with one outside address of each family.
    fn net() -> Net {
        Net::new(&["gw"], 1, |_, config| {
            config.nat.addresses6 = vec![OutsideAddress6 { address: host(0xffff), first: 5000, last: 5003 }];
            config.nat.nat64 = Some(Prefix64::WELL_KNOWN);
        })
    }

    /// The first UDP packet of a host's port waits under this ticket.
    fn ask(net: &mut Net, waiting: u32, address: Ipv6Addr, port: u16, translation: Translation) {
        let remote = ([198, 51, 100, 1].into(), 53);
        let flow = Flow6 { owner: Owner::INSIDE, translation, protocol: ip4::UDP, address, port, remote };
        let (now, cause) = (net.now, PuntCause::NoBinding6 { flow, tcp_flags: 0 });
        net.node("gw").control.on_event(0, Event::Punt { waiting, cause }, now);
        net.settle();
    }

    fn bindings(net: &mut Net) -> Vec<BindingInit> {
        net.node("gw").workers[0].bindings.values().copied().collect()
    }

    #[test]
    fn a_host_is_written_before_its_first_binding_and_goes_after_its_last_one() {
        let mut net = net();
        ask(&mut net, 1, host(1), 1000, Translation::Nat66);
        ask(&mut net, 2, host(1), 1000, Translation::Nat64);
        ask(&mut net, 3, host(2), 1000, Translation::Nat66);
        ask(&mut net, 4, host(2), 1000, Translation::Nat66);
        let made = bindings(&mut net);
        let outside: Vec<_> = made.iter().map(|binding| token::outside_of(binding.outside_address)).collect();
        assert_eq!(outside, [Some(0), None, Some(0)], "each translation has an address of its family");
        let inside: Vec<_> = made.iter().map(|binding| token::host_of(binding.inside_address)).collect();
        let expected = [(Translation::Nat66, 0), (Translation::Nat64, 0), (Translation::Nat66, 1)];
        assert_eq!(inside, expected.map(Some));
        assert_eq!(net.node("gw").workers[0].resumed, [1, 2, 3, 4]);
        assert_eq!(net.node("gw").control.workers[0].hosts.ip6.count(), 2);
        net.run(400 * crate::SECOND);
        assert_eq!(net.node("gw").control.workers[0].hosts.ip6.count(), 0);
        net.assert_all_free();
    }

    #[test]
    fn a_host_that_gets_no_binding_is_not_kept() {
        let mut net = net();
        for n in 0..6 {
            ask(&mut net, n, host(n as u16 + 1), 1000, Translation::Nat66);
        }
        assert_eq!(bindings(&mut net).len(), 4, "there are four ports");
        let refused = net.node("gw").workers[0].refused.clone();
        assert_eq!(refused, [4, 5].map(|waiting| (waiting, Reason::PortsExhausted)));
        assert_eq!(net.node("gw").control.workers[0].hosts.ip6.count(), 4);
    }

    fn host(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)
    }

    #[test]
    fn a_host_keeps_its_place_until_nothing_is_held_for_it() {
        let mut hosts = Hosts6::new(2);
        assert_eq!(hosts.hold(host(1)), Some((0, true)));
        assert_eq!(hosts.hold(host(1)), Some((0, false)));
        assert_eq!(hosts.hold(host(2)), Some((1, true)));
        assert_eq!(hosts.hold(host(3)), None, "there is no room");
        assert!(!hosts.release(0));
        assert_eq!(hosts.address(0), Some(host(1)));
        assert!(hosts.release(0) && !hosts.release(0));
        assert_eq!((hosts.hold(host(3)), hosts.address(0)), (Some((0, true)), Some(host(3))));
        assert_eq!(hosts.count(), 2);
    }
}
