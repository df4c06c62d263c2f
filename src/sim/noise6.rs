//! The IPv6 part of [`noise`](super::noise): a gateway's tables, and valid packets for each of its ways.

use std::net::Ipv6Addr;

use crate::{
    dataplane::{
        command::Command,
        forwarding::{Adjacency, Forwarding, Prefix6, Route},
        gateway::OutsideAddress6,
        nat::{BindingInit, Endpoint, Filtering, Mapping, NatConfig, Owner, Prefix64, Translation, token},
        route_table::RouteTable,
        testing6::{error6_packet, icmp6_packet, packet6, tcp6_packet, udp6_packet},
    },
    wire::{icmp6, ip4, ip6, tcp, write},
};

const US: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);
const SERVER: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), 53);
const HOST: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2), 1_000);
/// Of the same network, not resolved.
const OTHER_HOST: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 3), 1_000);

/// The NAT with IPv6; `ports` of the address of IPv6 as of the other.
pub(super) fn translate(nat: &mut NatConfig, ports: (u16, u16)) {
    nat.addresses6 = vec![OutsideAddress6 { address: US, first: ports.0, last: ports.1 }];
    nat.nat64 = Some(Prefix64::WELL_KNOWN);
}

/// The routes: hosts behind `inside`, everyone else behind interface 0.
pub(super) fn route(forwarding: &mut Forwarding, inside: u8) {
    let route = |prefix, interface| Route { prefix, gateway: None, interface, metric: 0 };
    forwarding.routes6 =
        RouteTable::new(&[route(Prefix6::of(SERVER.0, 32), 0), route(Prefix6::of(HOST.0, 64), inside)]);
    let known = |next_hop, interface| Adjacency { next_hop, mac: [2; 6], interface };
    forwarding.adjacencies6 = vec![known(SERVER.0, 0), known(HOST.0, inside)];
    if let Some(gateway) = &mut forwarding.gateway {
        gateway.routers6 = vec![None, None, Some(HOST.0)];
    }
}

/// The host has a UDP binding for each translation, in the last two of 16 places.
pub(super) fn tables(outside: Endpoint) -> Vec<Command> {
    let binding = |translation, address| BindingInit {
        owner: Owner::INSIDE,
        protocol: ip4::UDP,
        inside_address: token::host(translation, 0),
        inside_port: HOST.1,
        outside_address: address,
        outside_port: outside.1,
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::EndpointIndependent,
    };
    vec![
        Command::SetHost6 { place: 0, address: Some(HOST.0) },
        Command::SetBinding { index: 14, binding: binding(Translation::Nat66, token::outside(0)) },
        Command::SetBinding { index: 15, binding: binding(Translation::Nat64, outside.0) },
    ]
}

/// Packets of and for the hosts. `port` is that of their bindings, `server` one of IPv4.
pub(super) fn templates(port: u16, server: Endpoint, sequence: u64) -> Vec<Vec<u8>> {
    let named = (Prefix64::WELL_KNOWN.embed(server.0), server.1);
    let late = |mut packet: Vec<u8>| {
        packet[ip6::HOP_LIMIT] = 1;
        packet
    };
    let unbound = (OTHER_HOST.0, 2_000 + (sequence % 60_000) as u16);
    vec![
        udp6_packet(HOST, SERVER, b"hello"),
        udp6_packet(HOST, named, b"hello"),
        udp6_packet(HOST, named, &[7; 1300]),
        tcp6_packet(unbound, SERVER, tcp::SYN, &[2, 4, 5, 0xb4]),
        tcp6_packet(unbound, named, tcp::SYN, &[2, 4, 5, 0xb4]),
        icmp6_packet(HOST.0, SERVER.0, icmp6::ECHO_REQUEST, 0, &[0, 7, 0, 1]),
        udp6_packet(HOST, (US, port), b"hairpin"),
        udp6_packet(HOST, OTHER_HOST, b"as it is"),
        late(udp6_packet(HOST, SERVER, b"last hop")),
        error6_packet(HOST.0, SERVER.0, icmp6::UNREACHABLE, 4, [0; 4], &udp6_packet(SERVER, HOST, b"late")),
        error6_packet(HOST.0, named.0, icmp6::UNREACHABLE, 4, [0; 4], &udp6_packet(named, HOST, b"late")),
        udp6_packet(SERVER, (US, port), b"answer"),
        tcp6_packet(SERVER, (US, port), tcp::SYN, &[]),
        icmp6_packet(SERVER.0, US, icmp6::ECHO_REPLY, 0, &[0xa0, 0, 0, 1]),
        error6_packet(SERVER.0, US, icmp6::TIME_EXCEEDED, 0, [0; 4], &udp6_packet((US, port), SERVER, b"sent")),
    ]
}

/// True where the packet is one of the hosts'.
pub(super) fn is_from_inside(packet: &[u8]) -> bool {
    packet.get(ip6::SOURCE..ip6::SOURCE + 8) == Some(&HOST.0.octets()[..8])
}

/// Makes the checksum of whatever this is right, where it has one.
pub(super) fn repair(packet: &mut [u8]) {
    let Ok(header) = ip6::parse(packet) else { return };
    let transport = packet[header.header_length..header.total_length].to_vec();
    let long_enough = transport.len() >= tcp::HEADER_BYTES;
    if long_enough && matches!(header.protocol, ip4::UDP | ip4::TCP | ip6::ICMP) {
        let sealed = packet6(header.source, header.destination, header.protocol, &transport);
        write(packet, header.header_length, &sealed[ip6::HEADER_BYTES..]);
    }
}
