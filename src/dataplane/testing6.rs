//! For the tests of IPv6: packets by their fields, and a gateway that translates them.

use std::net::Ipv6Addr;

use super::{
    command::Command,
    conntrack::NO_BINDING,
    forwarding::{Adjacency, Prefix6, Route},
    gateway::OutsideAddress6,
    handoff::{self, Handoff},
    nat::{BindingInit, Endpoint, Filtering, Mapping, NatConfig, Owner, Prefix64, Translation, token},
    route_table::RouteTable,
    testing::{Bench, DATA_PORT, INSIDE, INSIDE_ROUTER, US, frame, identity},
};
use crate::wire::{checksum, ethernet, icmp, ip4, ip6, tcp, udp, write};

pub(crate) const US6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);
pub(crate) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub(crate) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe);
pub(crate) const INSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
pub(crate) const INSIDE_ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
pub(crate) const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2);
pub(crate) const OFFICE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// The first of the ports that servers see at US6.
pub(crate) const PORT6: u16 = DATA_PORT + 1;

impl Bench {
    /// The gateway of [`Bench::gateway`] with IPv6: INSIDE6 is a host behind interface 1, NEIGHBOUR6 one behind interface 2,
    /// everyone else of 2001:db8::/32 behind interface 0, where OFFICE6 is exempt from translation. NAT64 has the
    /// well-known prefix.
    pub(crate) fn gateway6() -> Self {
        Self::at6(0, 1, handoff::mesh(1).remove(0))
    }

    /// Worker `index` of `workers` of it.
    pub(crate) fn at6(index: usize, workers: u8, ends: Handoff) -> Self {
        let own = identity(workers);
        let outside = OutsideAddress6 { address: US6, first: own.nat_port_first, last: own.nat_port_last };
        let mut nat = NatConfig::of(&own);
        nat.addresses6.push(outside);
        nat.nat64 = Some(Prefix64::WELL_KNOWN);
        let mut bench = Self::translating(index, nat, workers, ends);
        bench.gateway();
        let mut forwarding = bench.worker.context().routes.forwarding().clone();
        let route = |prefix, interface| Route { prefix, gateway: None, interface, metric: 0 };
        forwarding.routes6 = RouteTable::new(&[
            route(Prefix6::of(SERVER6, 32), 0),
            route(Prefix6::of(INSIDE6, 64), 1),
            route(Prefix6::of(NEIGHBOUR6, 64), 2),
        ]);
        let known = [(0, SERVER6), (0, ROUTER6), (0, OFFICE6), (1, INSIDE6), (2, NEIGHBOUR6)];
        forwarding.adjacencies6 = known
            .map(|(interface, next_hop)| Adjacency { next_hop, mac: [2, 0, 0, 0, 6, interface], interface })
            .into();
        forwarding.adjacencies6.sort_unstable_by_key(|adjacency| (adjacency.interface, adjacency.next_hop));
        if let Some(gateway) = &mut forwarding.gateway {
            gateway.routers = vec![Some(US), Some(INSIDE_ROUTER), None];
            gateway.routers6 = vec![None, Some(INSIDE_ROUTER6), None];
            gateway.exempt6 = vec![Prefix6::of(OFFICE6, 48)];
        }
        bench.tell(Command::SetForwarding(Box::new(forwarding)));
        while bench.events.pop().is_ok() {}
        bench
    }

    /// An exit that translates IPv6, with the session of [`Bench::exit`] over one path: its client is INSIDE and INSIDE6. Everyone
    /// else of 2001:db8::/32 is behind interface 0, where nothing is sent to NEIGHBOUR6. `change` is made to its NAT.
    pub(crate) fn exit6(change: impl FnOnce(&mut NatConfig)) -> Self {
        let own = identity(1);
        let mut nat = NatConfig::of(&own);
        nat.addresses6.push(OutsideAddress6 { address: US6, first: own.nat_port_first, last: own.nat_port_last });
        nat.nat64 = Some(Prefix64::WELL_KNOWN);
        change(&mut nat);
        let mut bench = Self::translating(0, nat, 1, handoff::mesh(1).remove(0));
        let mut forwarding = bench.worker.context().routes.forwarding().clone();
        let route = Route { prefix: Prefix6::of(SERVER6, 32), gateway: None, interface: 0, metric: 0 };
        forwarding.routes6 = RouteTable::new(&[route]);
        forwarding.adjacencies6 =
            [SERVER6, ROUTER6].map(|next_hop| Adjacency { next_hop, mac: [2, 0, 0, 0, 6, 0], interface: 0 }).into();
        forwarding.policy.deny6 = vec![Prefix6::of(NEIGHBOUR6, 64)];
        bench.tell(Command::SetForwarding(Box::new(forwarding)));
        while bench.events.pop().is_ok() {}
        bench.exit(1, NO_BINDING);
        bench
    }

    /// Packets of IPv6 come in by `interface`, framed for it; one sweep passes; what goes out, and by which interface.
    pub(crate) fn run_at6(&mut self, interface: u8, packets: &[Vec<u8>]) -> Vec<(u8, Vec<u8>)> {
        self.run_framed(interface, packets, frame6)
    }

    /// INSIDE6:`inside` is `outside` of US6, or of US, to servers.
    pub(crate) fn bind6(&mut self, translation: Translation, protocol: u8, inside: u16, outside: u16) {
        self.bind6_for(Owner::INSIDE, translation, protocol, inside, outside);
    }

    /// The same on behalf of `owner`.
    pub(crate) fn bind6_for(
        &mut self,
        owner: Owner,
        translation: Translation,
        protocol: u8,
        inside: u16,
        outside: u16,
    ) {
        let index = if translation == Translation::Nat66 { 6 } else { 4 };
        self.bind6_at(index, owner, translation, protocol, inside, outside);
    }

    /// The same as binding `index`.
    pub(crate) fn bind6_at(
        &mut self,
        index: u32,
        owner: Owner,
        translation: Translation,
        protocol: u8,
        inside: u16,
        outside: u16,
    ) {
        let address = if translation == Translation::Nat66 { token::outside(0) } else { US };
        self.tell(Command::SetHost6 { place: 3, address: Some(INSIDE6) });
        let binding = BindingInit {
            owner,
            protocol,
            inside_address: token::host(translation, 3),
            inside_port: inside,
            outside_address: address,
            outside_port: outside,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
        };
        self.tell(Command::SetBinding { index, binding });
    }

    /// INSIDE:`inside` is the same port of US as `outside` to servers.
    pub(crate) fn bind4(&mut self, protocol: u8, inside: u16, outside: Endpoint) {
        let binding = BindingInit {
            owner: Owner::INSIDE,
            protocol,
            inside_address: INSIDE,
            inside_port: inside,
            outside_address: outside.0,
            outside_port: outside.1,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
        };
        self.tell(Command::SetBinding { index: 9, binding });
    }
}

/// An Ethernet frame around an IPv6 packet.
pub(crate) fn frame6(ip: &[u8]) -> Vec<u8> {
    let mut bytes = frame(ip);
    write(&mut bytes, 12, &ethernet::TYPE_IP6.to_be_bytes());
    bytes
}

/// An IPv6 packet with right checksums; `transport`'s checksum field is filled in.
pub(crate) fn packet6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ip6::HEADER_BYTES];
    bytes.extend_from_slice(transport);
    ip6::emit(&mut bytes, source, destination, protocol, transport.len() as u16, 64);
    let at = match protocol {
        ip4::UDP => udp::CHECKSUM,
        ip4::TCP => tcp::CHECKSUM,
        _ => icmp::CHECKSUM,
    };
    write(&mut bytes, ip6::HEADER_BYTES + at, &[0, 0]);
    let sum = ip6::pseudo_header(source, destination, protocol, transport.len() as u32);
    let field = match !checksum::fold(checksum::sum(transport_of(&bytes), sum)) {
        0 if protocol == ip4::UDP => 0xffff,
        field => field,
    };
    write(&mut bytes, ip6::HEADER_BYTES + at, &field.to_be_bytes());
    bytes
}

fn transport_of(packet: &[u8]) -> &[u8] {
    &packet[ip6::HEADER_BYTES..]
}

/// A UDP packet.
pub(crate) fn udp6_packet(source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; udp::HEADER_BYTES];
    datagram.extend_from_slice(payload);
    let length = datagram.len() as u16;
    udp::emit(&mut datagram, source.1, destination.1, length);
    packet6(source.0, destination.0, ip4::UDP, &datagram)
}

/// A TCP segment with these flags and options.
pub(crate) fn tcp6_packet(source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16), flags: u8, options: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; tcp::HEADER_BYTES];
    segment.extend_from_slice(options);
    segment[12] = ((segment.len() / 4) as u8) << 4;
    segment[tcp::FLAGS] = flags;
    write(&mut segment, tcp::SOURCE, &source.1.to_be_bytes());
    write(&mut segment, tcp::DESTINATION, &destination.1.to_be_bytes());
    packet6(source.0, destination.0, ip4::TCP, &segment)
}

/// An ICMPv6 message: type, code, then the rest after the checksum.
pub(crate) fn icmp6_packet(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    packet6(source, destination, ip6::ICMP, &message)
}

/// An ICMPv6 error about `quoted`; what stands in the second word is `word`.
pub(crate) fn error6_packet(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    code: u8,
    word: [u8; 4],
    quoted: &[u8],
) -> Vec<u8> {
    icmp6_packet(source, destination, kind, code, &[&word, quoted].concat())
}

/// The same packet with an extension header of eight bytes that says nothing.
pub(crate) fn with_destination_options(packet: &[u8]) -> Vec<u8> {
    const DESTINATION_OPTIONS: u8 = 60;
    let mut bytes = packet.to_vec();
    bytes.splice(40..40, [packet[ip6::NEXT_HEADER], 0, 1, 4, 0, 0, 0, 0]);
    bytes[ip6::NEXT_HEADER] = DESTINATION_OPTIONS;
    let length = (bytes.len() - ip6::HEADER_BYTES) as u16;
    write(&mut bytes, ip6::PAYLOAD_LENGTH, &length.to_be_bytes());
    bytes
}

/// A packet in fragments that have `bytes` of it each, a multiple of eight.
pub(crate) fn fragments6(packet: &[u8], bytes: usize, identification: u32) -> Vec<Vec<u8>> {
    const FRAGMENT: u8 = 44;
    let parts = transport_of(packet).chunks(bytes).enumerate();
    let last = transport_of(packet).len().div_ceil(bytes) - 1;
    let fragment = |(number, part): (usize, &[u8])| {
        let place = (number * bytes) as u16 | u16::from(number < last);
        let mut fragment = packet[..ip6::HEADER_BYTES].to_vec();
        fragment.extend([packet[ip6::NEXT_HEADER], 0]);
        fragment.extend(place.to_be_bytes());
        fragment.extend(identification.to_be_bytes());
        fragment.extend(part);
        fragment[ip6::NEXT_HEADER] = FRAGMENT;
        let length = (ip6::FRAGMENT_HEADER_BYTES + part.len()) as u16;
        write(&mut fragment, ip6::PAYLOAD_LENGTH, &length.to_be_bytes());
        fragment
    };
    parts.map(fragment).collect()
}

/// The packet that these are all fragments of, in any order. Panics where they do not fit together.
pub(crate) fn joined6(mut fragments: Vec<Vec<u8>>) -> Vec<u8> {
    let place = |fragment: &Vec<u8>| ip6::parse(fragment).unwrap().fragment.unwrap();
    fragments.sort_by_key(place);
    let mut whole = fragments[0][..ip6::HEADER_BYTES].to_vec();
    whole[ip6::NEXT_HEADER] = fragments[0][ip6::HEADER_BYTES];
    for fragment in &fragments {
        assert_eq!(usize::from(place(fragment) & !7), whole.len() - ip6::HEADER_BYTES, "no gap and no overlap");
        assert_eq!(fragment[..4], fragments[0][..4]);
        assert_eq!(fragment[8..42], fragments[0][8..42], "addresses and identification");
        whole.extend_from_slice(&fragment[ip6::HEADER_BYTES + ip6::FRAGMENT_HEADER_BYTES..]);
    }
    assert_eq!(place(fragments.last().unwrap()) & 1, 0, "the last one says so");
    let length = (whole.len() - ip6::HEADER_BYTES) as u16;
    write(&mut whole, ip6::PAYLOAD_LENGTH, &length.to_be_bytes());
    whole
}

/// True where all checksums of an IPv6 packet are right, and its lengths.
pub(crate) fn has_valid_checksums6(packet: &[u8]) -> bool {
    let Ok(header) = ip6::parse(packet) else { return false };
    let transport = &packet[header.header_length..];
    let sum = ip6::pseudo_header(header.source, header.destination, header.protocol, transport.len() as u32);
    header.total_length == packet.len() && checksum::fold(checksum::sum(transport, sum)) == 0xffff
}
