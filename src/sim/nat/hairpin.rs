//! A hairpinned packet that is too big for the way back is told so to its sender, as its sender counts and about the packet
//! it sent, whichever workers the two hosts have and whichever families they speak.

use std::net::Ipv6Addr;

use super::*;
use crate::{
    dataplane::{gateway::OutsideAddress6, nat::Prefix64, testing::udp_packet, testing6::udp6_packet},
    wire::{icmp6, ip6},
};

const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const PREFIX: &str = "2001:db8:64::/96";

/// What an inside link carries.
const MTU: u16 = 1400;
/// Bytes by which a packet of IPv6 is longer than one of IPv4.
const GROWTH: u16 = 20;

fn name(address: Ipv4Addr) -> Ipv6Addr {
    PREFIX.parse::<Prefix64>().unwrap().embed(address)
}

/// A gateway with two workers and a small inside link.
fn nat() -> Nat {
    let adjust = |nat: &mut NatConfig| {
        let OutsideAddress { first, last, .. } = nat.addresses[0];
        nat.addresses6 = vec![OutsideAddress6 { address: OUTSIDE6, first, last }];
        nat.nat64 = Some(PREFIX.parse().unwrap());
    };
    let mut nat = Nat::with(Setup { workers: 2, adjust, ..Setup::default() });
    let now = Interface { index: 3, mac: MACS[1], mtu: MTU, is_up: true };
    nat.control.on_kernel(KernelEvent::Interface { interface: INSIDE_INTERFACE, now }, nat.now);
    nat.settle();
    nat
}

fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 10 + number)
}

fn host6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x10 + u16::from(number))
}

/// How servers of IPv4, and those of IPv6, see a packet's sender.
fn seen6(nat: &mut Nat, packet: &[u8]) -> (IpAddr, u16) {
    let out = nat.send_inside(packet);
    assert_eq!((out.len(), out[0].is_to_inside), (1, false));
    let packet = &out[0].packet;
    match ip6::parse(packet).ok().filter(|_| is_ip6(packet)) {
        Some(header) => (header.source.into(), read_u16(packet, header.header_length)),
        None => {
            let (address, port) = source(packet);
            (address.into(), port)
        }
    }
}

/// The only packet that goes out, to a host.
#[track_caller]
fn told(nat: &mut Nat, packet: &[u8]) -> Vec<u8> {
    let mut out = nat.send_inside(packet);
    assert_eq!((out.len(), out.first().is_some_and(|sent| sent.is_to_inside)), (1, true), "{out:02x?}");
    out.remove(0).packet
}

/// The error says `mtu` and quotes what the host sent.
#[track_caller]
fn assert_told(nat: &mut Nat, sent: &[u8], mtu: u16) {
    let error = told(nat, sent);
    let header = ip4::parse(&error).unwrap();
    assert_eq!(header.destination, source(sent).0, "it reaches the sender");
    let message = &error[header.header_length..];
    assert_eq!(
        (message[0], message[1], read_u16(message, 6)),
        (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu)
    );
    let quoted = &message[icmp::HEADER_BYTES..];
    assert_eq!(
        (quoted[ip4::PROTOCOL], &quoted[12..40]),
        (sent[ip4::PROTOCOL], &sent[12..40]),
        "about the packet it sent"
    );
}

/// The same of IPv6.
#[track_caller]
fn assert_told6(nat: &mut Nat, sent: &[u8], mtu: u16) {
    let error = told(nat, sent);
    let (header, sent_header) = (ip6::parse(&error).unwrap(), ip6::parse(sent).unwrap());
    assert_eq!(header.destination, sent_header.source, "it reaches the sender");
    let message = &error[header.header_length..];
    assert_eq!(message[0], icmp6::PACKET_TOO_BIG);
    // A translated error names no more than its receiver's own link carries.
    let told = read_u32(message, icmp6::MTU);
    assert!((u32::from(MTU)..=u32::from(mtu)).contains(&told), "{told}, not {mtu}");
    let quoted = &message[icmp::HEADER_BYTES..];
    assert_eq!(quoted[8..48], sent[8..48], "about the packet it sent");
}

#[test]
fn a_hairpinned_packet_too_big_for_the_way_back_is_told_whichever_workers_the_hosts_have() {
    let mut nat = nat();
    let open = |nat: &mut Nat, number| nat.seen(&udp_packet((host(number), 6000), (SERVER, 53), b"x"));
    let outside: Vec<Endpoint> = (0..6).map(|number| open(&mut nat, number)).collect();
    for from in 0..6 {
        for (to, outside) in outside.iter().enumerate().filter(|(to, _)| *to != usize::from(from)) {
            let sent = |bytes: u16| udp_packet((host(from), 5000), *outside, &vec![7; usize::from(bytes) - 28]);
            assert_told(&mut nat, &sent(MTU + 1), MTU);
            let arrived = told(&mut nat, &sent(MTU));
            assert_eq!((arrived.len(), destination(&arrived).0), (usize::from(MTU), host(to as u8)));
        }
    }
}

#[test]
fn a_hairpinned_packet_of_ipv6_is_told_too_and_between_families_as_the_sender_counts() {
    let mut nat = nat();
    for to in 0..4u8 {
        // A host of IPv6 by both of its outside addresses, one of IPv4 by its only one.
        let by6 = seen6(&mut nat, &udp6_packet((host6(to), 6000), (SERVER6, 53), b"x"));
        let by4 = seen6(&mut nat, &udp6_packet((host6(to), 6000), (name(SERVER), 53), b"x"));
        let of4 = nat.seen(&udp_packet((host(to), 6000), (SERVER, 53), b"x"));
        let (IpAddr::V6(address6), IpAddr::V4(address4)) = (by6.0, by4.0) else { panic!("{by6:?} {by4:?}") };
        for from in (0..4u8).filter(|from| *from != to) {
            let ends = [((address6, by6.1), MTU), ((name(address4), by4.1), MTU), ((name(of4.0), of4.1), MTU + GROWTH)];
            for (end, mtu) in ends {
                let sent = udp6_packet((host6(from), 5000), end, &vec![7; usize::from(mtu) + 1 - 48]);
                assert_told6(&mut nat, &sent, mtu);
            }
            let sent = udp_packet((host(from), 5000), (address4, by4.1), &vec![7; usize::from(MTU - GROWTH) + 1 - 28]);
            assert_told(&mut nat, &sent, MTU - GROWTH);
        }
    }
    assert_eq!(nat.bindings(), 4 * 3 + 4 * 3, "three of those that are spoken to, three of those that speak");
}
