//! What the kernel said, and what follows from it for the control core. Sans-IO: messages and `now` in, events out.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, address::AddressMessage, neighbour::NeighbourMessage};

use super::{
    family::Family,
    messages::{Entry, Link, parse_local_address, parse_neighbour},
};
use crate::{
    Nanos, SECOND,
    control::{KernelEvent, LocalAddress},
    dataplane::forwarding::{Interface, Route},
    wire::ethernet::Mac,
};

/// A resolved neighbour is asked for again this often. AF_XDP traffic does not tell the kernel that an entry is in
/// use: without this it would go stale, be collected after a minute or so, and never be verified.
pub(super) const REFRESH: Nanos = 30 * SECOND;

/// A neighbour in the mirror; one that failed is not kept.
#[derive(Clone, Copy, Debug)]
enum Neighbour {
    Pending,
    Up {
        mac: Mac,
        is_static: bool,
        /// When the kernel was last asked for it, or first told of it.
        asked: Nanos,
    },
}

/// The mirror: what the control core was told last.
pub(super) struct Mirror {
    interfaces: Vec<Interface>,
    routes: Option<Vec<Route>>,
    routes6: Option<Vec<Route<Ipv6Addr>>>,
    addresses: Option<Vec<LocalAddress>>,
    addresses6: Option<Vec<LocalAddress<Ipv6Addr>>>,
    neighbours: HashMap<(u8, IpAddr), Neighbour>,
}

impl Mirror {
    /// A mirror of nothing but `interfaces`, in the driver's order.
    pub(super) fn new(interfaces: Vec<Interface>) -> Self {
        Self { interfaces, routes: None, routes6: None, addresses: None, addresses6: None, neighbours: HashMap::new() }
    }

    pub(super) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// A change. True where routes may have changed, too: the kernel drops the routes of a link that goes down and
    /// of an address that is removed without a word about them, so any of these changes is a reason to look anew.
    pub(super) fn on_change(
        &mut self,
        change: &RouteNetlinkMessage,
        now: Nanos,
        events: &mut Vec<KernelEvent>,
    ) -> bool {
        match change {
            RouteNetlinkMessage::NewLink(link) => self.on_link(&Link::parse(link), events),
            // Of another family it tells that the link left a bridge, not that it is gone.
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                let is_route_change = self.on_link(&Link { is_up: false, ..Link::parse(link) }, events);
                self.on_removed(link.header.index, events);
                is_route_change
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                self.on_neighbour(message, false, now, events);
                false
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                self.on_neighbour(message, true, now, events);
                false
            }
            RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_) => true,
            _ => false,
        }
    }

    fn on_link(&mut self, link: &Link, events: &mut Vec<KernelEvent>) -> bool {
        let Some(number) = self.interfaces.iter().position(|interface| interface.index == link.index) else {
            return false;
        };
        let old = &mut self.interfaces[number];
        // What a message does not say stays: RTM_DELLINK need not repeat everything.
        let mtu = if link.mtu == 0 { old.mtu } else { link.mtu };
        let now = Interface { index: old.index, mac: link.mac.unwrap_or(old.mac), mtu, is_up: link.is_up };
        if *old == now {
            return false;
        }
        let is_route_change = old.is_up != now.is_up;
        *old = now;
        events.push(KernelEvent::Interface { interface: number as u8, now });
        is_route_change
    }

    fn on_removed(&self, index: u32, events: &mut Vec<KernelEvent>) {
        if let Some(number) = self.interfaces.iter().position(|interface| interface.index == index) {
            events.push(KernelEvent::InterfaceRemoved { interface: number as u8 });
        }
    }

    fn on_neighbour(
        &mut self,
        message: &NeighbourMessage,
        is_removed: bool,
        now: Nanos,
        events: &mut Vec<KernelEvent>,
    ) -> Option<(u8, IpAddr)> {
        let number = self.interfaces.iter().position(|interface| interface.index == message.header.ifindex)?;
        let (address, entry) = parse_neighbour(message, is_removed)?;
        let key = (number as u8, address);
        self.on_entry(key, entry, now, events);
        Some(key)
    }

    fn on_entry(&mut self, key: (u8, IpAddr), entry: Entry, now: Nanos, events: &mut Vec<KernelEvent>) {
        let (interface, address) = key;
        let old = self.neighbours.get(&key).copied();
        match entry {
            Entry::Up { mac, is_static } => {
                let asked = match old {
                    Some(Neighbour::Up { asked, mac: old_mac, .. }) => {
                        if old_mac != mac {
                            events.push(KernelEvent::NeighbourUp { interface, address, mac });
                        }
                        asked
                    }
                    _ => {
                        events.push(KernelEvent::NeighbourUp { interface, address, mac });
                        now
                    }
                };
                self.neighbours.insert(key, Neighbour::Up { mac, is_static, asked });
            }
            Entry::Pending => {
                // An entry that was up and is asked for anew keeps its last MAC address until that fails.
                self.neighbours.entry(key).or_insert(Neighbour::Pending);
            }
            Entry::Failed => {
                // Told even of one never heard of: someone waits for the answer.
                self.neighbours.remove(&key);
                events.push(KernelEvent::NeighbourGone { interface, address });
            }
            Entry::Removed => {
                if self.neighbours.remove(&key).is_some() {
                    events.push(KernelEvent::NeighbourGone { interface, address });
                }
            }
        }
    }

    /// All links as they are now. One of ours that is missing was removed.
    pub(super) fn on_links(&mut self, links: &[Link], events: &mut Vec<KernelEvent>) {
        for index in self.interfaces.iter().map(|interface| interface.index).collect::<Vec<_>>() {
            if let Some(link) = links.iter().find(|link| link.index == index) {
                self.on_link(link, events);
            } else {
                self.on_link(&Link { index, name: String::new(), mac: None, mtu: 0, is_up: false }, events);
                self.on_removed(index, events);
            }
        }
    }

    /// All neighbours as they are now.
    pub(super) fn on_neighbours(&mut self, all: &[NeighbourMessage], now: Nanos, events: &mut Vec<KernelEvent>) {
        let seen: HashSet<_> =
            all.iter().filter_map(|message| self.on_neighbour(message, false, now, events)).collect();
        let missing: Vec<_> = self.neighbours.keys().filter(|key| !seen.contains(key)).copied().collect();
        for key in missing {
            self.on_entry(key, Entry::Removed, now, events);
        }
    }

    /// All routes as they are now.
    pub(super) fn on_routes(&mut self, routes: Vec<Route>, events: &mut Vec<KernelEvent>) {
        if self.routes.as_ref() != Some(&routes) {
            self.routes = Some(routes.clone());
            events.push(KernelEvent::Routes(routes));
        }
    }

    /// The same of IPv6.
    pub(super) fn on_routes6(&mut self, routes: Vec<Route<Ipv6Addr>>, events: &mut Vec<KernelEvent>) {
        if self.routes6.as_ref() != Some(&routes) {
            self.routes6 = Some(routes.clone());
            events.push(KernelEvent::Routes6(routes));
        }
    }

    /// All addresses of both families as they are now.
    pub(super) fn on_addresses(
        &mut self,
        all: &[AddressMessage],
        all6: &[AddressMessage],
        events: &mut Vec<KernelEvent>,
    ) {
        let addresses: Vec<_> = all.iter().filter_map(|message| self.parse_address::<Ipv4Addr>(message)).collect();
        if self.addresses.as_ref() != Some(&addresses) {
            self.addresses = Some(addresses.clone());
            events.push(KernelEvent::Addresses(addresses));
        }
        let addresses: Vec<_> = all6.iter().filter_map(|message| self.parse_address::<Ipv6Addr>(message)).collect();
        if self.addresses6.as_ref() != Some(&addresses) {
            self.addresses6 = Some(addresses.clone());
            events.push(KernelEvent::Addresses6(addresses));
        }
    }

    fn parse_address<A: Family>(&self, message: &AddressMessage) -> Option<LocalAddress<A>> {
        let address: A = A::of(parse_local_address(message)?)?;
        let number = self.interfaces.iter().position(|interface| interface.index == message.header.index);
        let network = address.prefix(message.header.prefix_len.min(A::LENGTH))?;
        Some(LocalAddress { interface: number.map(|number| number as u8), address, network })
    }

    /// A neighbour the control core asks for. A known one is told again, for the kernel has no news of it, and true is
    /// returned where it is to be verified whether it still is there.
    pub(super) fn on_resolve(&mut self, key: (u8, IpAddr), now: Nanos, events: &mut Vec<KernelEvent>) -> bool {
        let Some(Neighbour::Up { mac, asked, is_static }) = self.neighbours.get_mut(&key) else { return false };
        *asked = now;
        events.push(KernelEvent::NeighbourUp { interface: key.0, address: key.1, mac: *mac });
        !*is_static
    }

    /// The kernel refused to resolve a neighbour: it will not be heard of, so this is the answer.
    pub(super) fn on_resolve_refused(&mut self, key: (u8, IpAddr), events: &mut Vec<KernelEvent>) {
        if !matches!(self.neighbours.get(&key), Some(Neighbour::Up { .. })) {
            events.push(KernelEvent::NeighbourGone { interface: key.0, address: key.1 });
        }
    }

    /// The neighbours to be asked for again now; they count as asked.
    pub(super) fn refresh(&mut self, now: Nanos) -> Vec<(u8, IpAddr)> {
        let mut due = Vec::new();
        for (key, neighbour) in &mut self.neighbours {
            if let Neighbour::Up { asked, is_static: false, .. } = neighbour
                && now >= *asked + REFRESH
            {
                *asked = now;
                due.push(*key);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
    };

    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const MAC: Mac = [2, 0, 0, 0, 0, 2];

    fn interfaces() -> Vec<Interface> {
        [7, 9].map(|index| Interface { index, mac: [2, 0, 0, 0, 1, index as u8], mtu: 1500, is_up: true }).to_vec()
    }

    fn neighbour(interface: u32, state: NeighbourState, mac: Option<Mac>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = interface;
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(PEER)));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    /// Applies a neighbour message to the mirror; what comes out.
    fn apply(mirror: &mut Mirror, message: NeighbourMessage, is_removed: bool) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        let change = if is_removed {
            RouteNetlinkMessage::DelNeighbour(message)
        } else {
            RouteNetlinkMessage::NewNeighbour(message)
        };
        assert!(!mirror.on_change(&change, 0, &mut events), "a neighbour changes no route");
        events
    }

    const UP: KernelEvent = KernelEvent::NeighbourUp { interface: 1, address: IpAddr::V4(PEER), mac: MAC };
    const GONE: KernelEvent = KernelEvent::NeighbourGone { interface: 1, address: IpAddr::V4(PEER) };

    #[test]
    fn equal_routes_are_told_once() {
        let mut mirror = Mirror::new(interfaces());
        let all = vec![Route { prefix: "0.0.0.0/0".parse().unwrap(), gateway: Some(PEER), interface: 0, metric: 0 }];
        let mut events = Vec::new();
        mirror.on_routes(all.clone(), &mut events);
        mirror.on_routes(all.clone(), &mut events);
        assert_eq!(events, [KernelEvent::Routes(all)]);
        mirror.on_routes(vec![], &mut events);
        assert_eq!(events[1..], [KernelEvent::Routes(vec![])]);
    }

    #[test]
    fn having_no_route_at_all_is_told_at_the_start() {
        let mut events = Vec::new();
        Mirror::new(interfaces()).on_routes(vec![], &mut events);
        assert_eq!(events, [KernelEvent::Routes(vec![])]);
    }

    #[test]
    fn every_usable_state_is_up_and_told_once() {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        for state in [Reachable, Stale, Delay, Probe, Permanent, Noarp] {
            let mut mirror = Mirror::new(interfaces());
            assert_eq!(apply(&mut mirror, neighbour(9, state, Some(MAC)), false), [UP], "{state}");
            assert_eq!(apply(&mut mirror, neighbour(9, Stale, Some(MAC)), false), [], "{state}");
        }
    }

    #[test]
    fn a_neighbour_that_moves_to_another_mac_is_told_again() {
        let mut mirror = Mirror::new(interfaces());
        apply(&mut mirror, neighbour(9, NeighbourState::Reachable, Some([2; 6])), false);
        assert_eq!(apply(&mut mirror, neighbour(9, NeighbourState::Stale, Some(MAC)), false), [UP]);
    }

    #[test]
    fn resolution_that_fails_is_told_and_so_is_one_given_up() {
        for (state, is_removed) in [(NeighbourState::Failed, false), (NeighbourState::Incomplete, true)] {
            let mut mirror = Mirror::new(interfaces());
            assert_eq!(apply(&mut mirror, neighbour(9, NeighbourState::Incomplete, None), false), []);
            assert_eq!(apply(&mut mirror, neighbour(9, state, None), is_removed), [GONE]);
            assert_eq!(apply(&mut mirror, neighbour(9, state, None), true), [], "told already");
        }
    }

    #[test]
    fn a_neighbour_asked_for_anew_keeps_its_mac_until_that_fails() {
        let mut mirror = Mirror::new(interfaces());
        apply(&mut mirror, neighbour(9, NeighbourState::Stale, Some(MAC)), false);
        assert_eq!(apply(&mut mirror, neighbour(9, NeighbourState::Incomplete, None), false), []);
        let mut events = Vec::new();
        mirror.on_resolve((1, PEER.into()), 0, &mut events);
        assert_eq!(events, [UP], "the kernel has no news, so the answer is what is known");
        assert_eq!(apply(&mut mirror, neighbour(9, NeighbourState::Failed, None), false), [GONE]);
    }

    #[test]
    fn multicast_macs_and_those_of_other_interfaces_are_no_neighbours() {
        let mut mirror = Mirror::new(interfaces());
        assert_eq!(apply(&mut mirror, neighbour(9, NeighbourState::Noarp, Some([1, 0, 0x5e, 0, 0, 1])), false), []);
        assert_eq!(apply(&mut mirror, neighbour(8, NeighbourState::Reachable, Some(MAC)), false), []);
    }

    #[test]
    fn a_dump_tells_only_the_differences_and_removes_what_is_missing() {
        let mut mirror = Mirror::new(interfaces());
        let mut events = Vec::new();
        let dump = [neighbour(9, NeighbourState::Stale, Some(MAC))];
        mirror.on_neighbours(&dump, 0, &mut events);
        mirror.on_neighbours(&dump, 0, &mut events);
        assert_eq!(events, [UP]);
        mirror.on_neighbours(&[], 0, &mut events);
        assert_eq!(events, [UP, GONE]);
    }

    #[test]
    fn a_learnt_neighbour_is_refreshed_every_thirty_seconds_and_a_static_one_never() {
        let mut mirror = Mirror::new(interfaces());
        apply(&mut mirror, neighbour(9, NeighbourState::Reachable, Some(MAC)), false);
        apply(&mut mirror, neighbour(7, NeighbourState::Permanent, Some(MAC)), false);
        assert_eq!(mirror.refresh(REFRESH - 1), []);
        assert_eq!(mirror.refresh(REFRESH), [(1, PEER.into())]);
        assert_eq!(mirror.refresh(2 * REFRESH - 1), [], "asked for already");
        // That the kernel confirms it does not put the next question off.
        apply(&mut mirror, neighbour(9, NeighbourState::Stale, Some(MAC)), false);
        assert_eq!(mirror.refresh(2 * REFRESH), [(1, PEER.into())]);
    }

    #[test]
    fn a_refused_request_is_answered_unless_the_neighbour_is_known() {
        let mut mirror = Mirror::new(interfaces());
        let mut events = Vec::new();
        mirror.on_resolve_refused((1, PEER.into()), &mut events);
        assert_eq!(events, [GONE]);
        apply(&mut mirror, neighbour(9, NeighbourState::Reachable, Some(MAC)), false);
        mirror.on_resolve_refused((1, PEER.into()), &mut events);
        assert_eq!(events, [GONE], "it holds its last MAC address");
    }

    fn link(index: u32, flags: LinkFlags, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.attributes = vec![LinkAttribute::Address(vec![2, 0, 0, 0, 1, index as u8]), LinkAttribute::Mtu(mtu)];
        message
    }

    #[test]
    fn an_interface_that_is_gone_is_told_and_one_that_left_a_bridge_is_not() {
        const REMOVED: KernelEvent = KernelEvent::InterfaceRemoved { interface: 1 };
        let mut bridge_port = link(9, LinkFlags::Up, 1500);
        bridge_port.header.interface_family = AddressFamily::Bridge;
        let mut events = Vec::new();
        let mut mirror = Mirror::new(interfaces());
        assert!(!mirror.on_change(&RouteNetlinkMessage::DelLink(bridge_port), 0, &mut events));
        assert_eq!(events, []);
        mirror.on_change(&RouteNetlinkMessage::DelLink(link(9, LinkFlags::Up, 1500)), 0, &mut events);
        assert_eq!(events.last(), Some(&REMOVED));
        assert_eq!(events.len(), 2, "first that it is down: {events:?}");

        events.clear();
        let still_there = Link::parse(&link(7, LinkFlags::Up | LinkFlags::LowerUp, 1500));
        Mirror::new(interfaces()).on_links(&[still_there], &mut events);
        assert_eq!(events.last(), Some(&REMOVED), "the message was lost; the dump shows it");
    }

    #[test]
    fn carrier_mtu_and_removal_of_our_interfaces_are_told() {
        let both = LinkFlags::Up | LinkFlags::LowerUp;
        let mut mirror = Mirror::new(interfaces());
        let mut told = |change: RouteNetlinkMessage| {
            let mut events = Vec::new();
            let is_route_change = mirror.on_change(&change, 0, &mut events);
            let now = events.first().map(|event| match event {
                KernelEvent::Interface { interface: 1, now } => (now.is_up, now.mtu),
                other => panic!("{other:?}"),
            });
            (now, is_route_change)
        };
        assert_eq!(told(RouteNetlinkMessage::NewLink(link(9, both, 1500))), (None, false), "nothing new");
        assert_eq!(told(RouteNetlinkMessage::NewLink(link(9, both, 1400))), (Some((true, 1400)), false));
        assert_eq!(told(RouteNetlinkMessage::NewLink(link(9, LinkFlags::Up, 1400))), (Some((false, 1400)), true));
        assert_eq!(told(RouteNetlinkMessage::NewLink(link(9, both, 70_000))), (Some((true, u16::MAX)), true));
        assert_eq!(told(RouteNetlinkMessage::DelLink(link(9, both, 1400))), (Some((false, 1400)), true));
        assert_eq!(told(RouteNetlinkMessage::NewLink(link(8, both, 1400))), (None, false), "not ours");
    }
}
