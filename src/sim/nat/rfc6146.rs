//! RFC 6146: stateful NAT64, and the same requirements for NAPT66, which has none of its own: both have one machine
//! with the NAT of IPv4.

use std::{collections::HashMap, net::Ipv6Addr};

use super::*;
use crate::{
    dataplane::{
        forwarding::Prefix6,
        gateway::OutsideAddress6,
        nat::Prefix64,
        testing::udp_packet,
        testing6::{error6_packet, icmp6_packet, tcp6_packet, udp6_packet},
    },
    wire::{icmp6, ip6},
};

pub(super) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);
pub(super) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
pub(super) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const OTHER_SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

pub(super) type Endpoint6 = (Ipv6Addr, u16);

/// The hosts' network inside, everyone else outside.
pub(super) fn routes() -> Vec<Route<Ipv6Addr>> {
    let route = |prefix, interface| Route { prefix, gateway: None, interface, metric: 0 };
    vec![
        route(Prefix6::of(Ipv6Addr::UNSPECIFIED, 0), OUTSIDE_INTERFACE),
        route(Prefix6::of(HOST6, 64), INSIDE_INTERFACE),
    ]
}

pub(super) fn translate(nat: &mut NatConfig) {
    let own = nat.addresses[0];
    nat.addresses6 = vec![OutsideAddress6 { address: OUTSIDE6, first: own.first, last: own.last }];
    nat.nat64 = Some(Prefix64::WELL_KNOWN);
}

fn nat() -> Nat {
    Nat::adjusted(translate)
}

pub(super) fn name(address: Ipv4Addr) -> Ipv6Addr {
    Prefix64::WELL_KNOWN.embed(address)
}

pub(super) fn host(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, number)
}

/// To a server of IPv4 by its name, and to one of IPv6.
pub(super) const BOTH: [fn(u8) -> Ipv6Addr; 2] = [
    |number| name(Ipv4Addr::new(198, 51, 100, number)),
    |number| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16),
];

/// How the server sees a packet's sender, in whichever family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Seen {
    Ip4(Endpoint),
    Ip6(Endpoint6),
}

fn seen_in(packet: &[u8]) -> Seen {
    if !is_ip6(packet) {
        return Seen::Ip4(source(packet));
    }
    let header = ip6::parse(packet).expect("a packet that parses");
    let at = if header.protocol == ip6::ICMP { icmp::IDENTIFIER } else { udp::SOURCE };
    Seen::Ip6((header.source, read_u16(packet, header.header_length + at)))
}

#[track_caller]
pub(super) fn seen(nat: &mut Nat, packet: &[u8]) -> Seen {
    let out = nat.send_inside(packet);
    assert_eq!((out.len(), out[0].is_to_inside), (1, false), "one packet goes out: {out:02x?}");
    seen_in(&out[0].packet)
}

/// A server's UDP packet to whom it sees.
pub(super) fn answer(server: Ipv6Addr, port: u16, to: Seen) -> Vec<u8> {
    match to {
        Seen::Ip4(to) => udp_packet((Prefix64::WELL_KNOWN.extract(server).unwrap(), port), to, b"answer"),
        Seen::Ip6(to) => udp6_packet((server, port), to, b"answer"),
    }
}

/// A server's TCP segment to whom it sees.
pub(super) fn segment_to(server: Ipv6Addr, to: Seen, flags: u8, numbers: (u32, u32)) -> Vec<u8> {
    match to {
        Seen::Ip4(to) => segment((Prefix64::WELL_KNOWN.extract(server).unwrap(), 80), to, flags, numbers.0, numbers.1),
        Seen::Ip6(to) => numbered(tcp6_packet((server, 80), to, flags, &[]), numbers),
    }
}

pub(super) fn numbered(packet: Vec<u8>, (sequence, acknowledgement): (u32, u32)) -> Vec<u8> {
    let header = ip6::parse(&packet).unwrap();
    let mut segment = packet[ip6::HEADER_BYTES..].to_vec();
    write(&mut segment, tcp::SEQUENCE, &sequence.to_be_bytes());
    write(&mut segment, tcp::ACKNOWLEDGEMENT, &acknowledgement.to_be_bytes());
    write(&mut segment, tcp::WINDOW, &1000u16.to_be_bytes());
    crate::dataplane::testing6::packet6(header.source, header.destination, ip4::TCP, &segment)
}

pub(super) fn is_let_in(nat: &mut Nat, packet: &[u8]) -> bool {
    nat.send_outside(packet).iter().any(|sent| sent.is_to_inside)
}

#[test]
fn s3_5_1_1_mapping_is_endpoint_independent() {
    for server in BOTH {
        let mut nat = nat();
        let first = seen(&mut nat, &udp6_packet((HOST6, 5000), (server(1), 53), b"x"));
        assert_eq!(seen(&mut nat, &udp6_packet((HOST6, 5000), (server(1), 54), b"x")), first);
        assert_eq!(seen(&mut nat, &udp6_packet((HOST6, 5000), (server(2), 53), b"x")), first);
        assert_ne!(seen(&mut nat, &udp6_packet((HOST6, 5001), (server(1), 53), b"x")), first);
        assert_ne!(seen(&mut nat, &udp6_packet((host(3), 5000), (server(1), 53), b"x")), first);
        assert_eq!(nat.bindings(), 3);
    }
}

#[test]
fn s3_5_1_1_a_host_has_a_binding_of_one_port_for_each_family_and_ipv4_shares_the_pool() {
    let mut nat = nat();
    let sixty_four = seen(&mut nat, &udp6_packet((HOST6, 5000), (name(SERVER), 53), b"x"));
    let sixty_six = seen(&mut nat, &udp6_packet((HOST6, 5000), (SERVER6, 53), b"x"));
    let forty_four = seen(&mut nat, &udp_packet((HOST, 5000), (SERVER, 53), b"x"));
    assert!(matches!((sixty_four, sixty_six), (Seen::Ip4(_), Seen::Ip6(_))));
    assert_ne!(forty_four, sixty_four, "one port of one address is one host's");
    let out = nat.send_outside(&answer(name(SERVER), 53, sixty_four));
    let mut expected = udp6_packet((name(SERVER), 53), (HOST6, 5000), b"answer");
    expected[ip6::HOP_LIMIT] -= 1;
    assert_eq!(out[0].packet, expected);
    let out = nat.send_outside(&answer(name(SERVER), 53, forty_four));
    assert_eq!(destination(&out[0].packet), (HOST, 5000));
}

#[test]
fn s3_5_1_1_only_packets_from_inside_keep_a_udp_session_alive_for_five_minutes() {
    for server in BOTH {
        let mut nat = nat();
        let sent = udp6_packet((HOST6, 5000), (server(1), 53), b"x");
        let seen = seen(&mut nat, &sent);
        nat.pass(200 * SECOND);
        nat.send_inside(&sent);
        nat.pass(299 * SECOND);
        assert!(is_let_in(&mut nat, &answer(server(1), 53, seen)));
        nat.pass(2 * SECOND);
        assert!(!is_let_in(&mut nat, &answer(server(1), 53, seen)));
        nat.assert_all_free();
    }
}

#[test]
fn s3_5_2_2_an_established_connection_lives_for_two_hours_and_four_minutes_and_a_closed_one_for_four() {
    let (syn, ack, fin) = (tcp::SYN, tcp::ACK, tcp::FIN);
    for server in BOTH {
        for is_closed in [false, true] {
            let mut nat = nat();
            let inside = |flags, numbers| numbered(tcp6_packet((HOST6, 5000), (server(1), 80), flags, &[]), numbers);
            let seen = seen(&mut nat, &inside(syn, (100, 0)));
            assert!(is_let_in(&mut nat, &segment_to(server(1), seen, syn | ack, (500, 101))));
            nat.send_inside(&inside(ack, (101, 501)));
            if is_closed {
                nat.send_inside(&inside(fin | ack, (101, 501)));
                assert!(is_let_in(&mut nat, &segment_to(server(1), seen, fin | ack, (501, 102))));
            }
            let lives = if is_closed { 240 } else { (2 * 60 + 4) * 60 };
            nat.pass((lives - 1) * SECOND);
            assert_eq!(nat.bindings(), 1, "closed: {is_closed}");
            nat.pass(2 * SECOND);
            nat.assert_all_free();
        }
    }
}

#[test]
fn s3_5_2_2_a_handshake_that_does_not_end_is_forgotten_after_four_minutes() {
    for server in BOTH {
        let mut nat = nat();
        seen(&mut nat, &tcp6_packet((HOST6, 5000), (server(1), 80), tcp::SYN, &[]));
        nat.pass(239 * SECOND);
        assert_eq!(nat.bindings(), 1);
        nat.pass(2 * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn s3_5_2_2_only_a_syn_from_inside_makes_a_binding() {
    for server in BOTH {
        let mut nat = nat();
        for flags in [tcp::ACK, tcp::RST, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK] {
            assert!(nat.send_inside(&tcp6_packet((HOST6, 5000), (server(1), 80), flags, &[])).is_empty());
        }
        assert_eq!((nat.bindings(), nat.dropped(Reason::NotSyn)), (0, 4));
    }
}

#[test]
fn s3_5_2_2_an_unsolicited_syn_is_held_for_six_seconds() {
    let mut nat = nat();
    let to = Seen::Ip6((OUTSIDE6, 5000));
    assert!(nat.send_outside(&segment_to(SERVER6, to, tcp::SYN, (1, 0))).is_empty());
    let told = nat.pass(7 * SECOND);
    assert_eq!((told.len(), told[0].packet[40..42] == [icmp6::UNREACHABLE, icmp6::CODE_PORT]), (1, true));
    // A SYN from inside that crosses it on the way takes it back.
    let seen = seen(&mut nat, &tcp6_packet((HOST6, 5000), (OTHER_SERVER6, 80), tcp::SYN, &[]));
    assert!(is_let_in(&mut nat, &segment_to(SERVER6, seen, tcp::SYN, (1, 0))), "filtering is endpoint-independent");
}

#[test]
fn s3_5_3_an_icmp_query_session_lives_for_a_minute() {
    for server in BOTH {
        let mut nat = nat();
        let ping = icmp6_packet(HOST6, server(1), icmp6::ECHO_REQUEST, 0, &[0, 7, 0, 1, 1, 2, 3]);
        let seen = seen(&mut nat, &ping);
        let reply = match seen {
            Seen::Ip4((address, id)) => echo(icmp::ECHO_REPLY, Ipv4Addr::new(198, 51, 100, 1), address, id),
            Seen::Ip6((address, id)) => {
                let [high, low] = id.to_be_bytes();
                icmp6_packet(server(1), address, icmp6::ECHO_REPLY, 0, &[high, low, 0, 1])
            }
        };
        let out = nat.send_outside(&reply);
        assert_eq!((out[0].packet[40], read_u16(&out[0].packet, 44)), (icmp6::ECHO_REPLY, 7));
        nat.pass(59 * SECOND);
        assert_eq!(nat.bindings(), 1);
        nat.pass(2 * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn s3_5_address_dependent_filtering_lets_in_only_whom_the_host_sent_to() {
    for server in BOTH {
        for (filtering, other_port) in
            [(Filtering::AddressDependent, true), (Filtering::AddressAndPortDependent, false)]
        {
            let adjust: fn(&mut NatConfig) = match filtering {
                Filtering::AddressDependent => |nat| {
                    translate(nat);
                    nat.filtering = Filtering::AddressDependent;
                },
                _ => |nat| {
                    translate(nat);
                    nat.filtering = Filtering::AddressAndPortDependent;
                },
            };
            let mut nat = Nat::adjusted(adjust);
            let seen = seen(&mut nat, &udp6_packet((HOST6, 5000), (server(1), 53), b"x"));
            assert!(is_let_in(&mut nat, &answer(server(1), 53, seen)));
            assert_eq!(is_let_in(&mut nat, &answer(server(1), 54, seen)), other_port);
            assert!(!is_let_in(&mut nat, &answer(server(2), 53, seen)));
        }
    }
}

#[test]
fn s3_5_an_endpoint_dependent_nat_shares_a_port_between_servers() {
    let adjust = |nat: &mut NatConfig| {
        nat.is_endpoint_dependent = true;
        nat.addresses[0].last = nat.addresses[0].first + 1;
        translate(nat);
    };
    for server in BOTH {
        let mut nat = Nat::adjusted(adjust);
        let all: Vec<Seen> =
            (1..20).map(|number| seen(&mut nat, &udp6_packet((HOST6, 5000), (server(number), 53), b"x"))).collect();
        for (number, seen) in (1..20).zip(&all) {
            let out = nat.send_outside(&answer(server(number), 53, *seen));
            assert_eq!(ip6::parse(&out[0].packet).unwrap().source, server(number));
        }
        assert_eq!(nat.bindings(), 19);
    }
}

#[test]
fn s3_4_errors_reach_the_host_and_keep_or_end_nothing() {
    let mut nat = nat();
    let sent = udp6_packet((HOST6, 5000), (name(SERVER), 33_434), b"traceroute");
    let out = nat.send_inside(&sent);
    let told = error(ROUTER, OUTSIDE[0], icmp::TIME_EXCEEDED, 0, [0; 4], &out[0].packet);
    nat.pass(290 * SECOND);
    let back = nat.send_outside(&told);
    assert_eq!((back.len(), back[0].packet[40]), (1, icmp6::TIME_EXCEEDED));
    let mut quoted = sent.clone();
    quoted[ip6::HOP_LIMIT] -= 1;
    assert_eq!(back[0].packet[48..], quoted, "as the host sent it, one router on");
    nat.pass(9 * SECOND);
    assert_eq!(nat.bindings(), 1);
    nat.pass(2 * SECOND);
    nat.assert_all_free();
    assert!(nat.send_outside(&told).is_empty(), "without a binding it is nobody's");
    let late = udp6_packet((name(SERVER), 53), (HOST6, 5000), b"late");
    let error = error6_packet(HOST6, name(SERVER), icmp6::UNREACHABLE, 4, [0; 4], &late);
    assert!(nat.send_inside(&error).is_empty());
    assert_eq!(nat.bindings(), 0, "an error makes no binding");
}

#[test]
fn s3_8_hosts_reach_each_other_by_their_outside_addresses() {
    for server in BOTH {
        let mut nat = nat();
        let to_outside = |seen| match seen {
            Seen::Ip4((address, port)) => (name(address), port),
            Seen::Ip6(end) => end,
        };
        let first = seen(&mut nat, &udp6_packet((host(2), 5000), (server(1), 53), b"x"));
        let second = seen(&mut nat, &udp6_packet((host(3), 6000), (server(1), 53), b"x"));
        let out = nat.send_inside(&udp6_packet((host(2), 5000), to_outside(second), b"hairpin"));
        assert!(out[0].is_to_inside);
        let mut expected = udp6_packet(to_outside(first), (host(3), 6000), b"hairpin");
        expected[ip6::HOP_LIMIT] -= 1;
        assert_eq!(out[0].packet, expected, "with the outside source");
    }
}

#[test]
fn s3_5_a_flow_that_finds_no_port_is_refused_and_never_forwarded_untranslated() {
    let adjust = |nat: &mut NatConfig| {
        nat.addresses[0].last = nat.addresses[0].first + 2;
        translate(nat);
    };
    for server in BOTH {
        let mut nat = Nat::adjusted(adjust);
        let all: Vec<_> =
            (0..3).map(|port| seen(&mut nat, &udp6_packet((HOST6, 5000 + port), (server(1), 53), b"x"))).collect();
        let refused = nat.send_inside(&udp6_packet((HOST6, 6000), (server(1), 53), b"x"));
        assert!(refused.iter().all(|sent| sent.is_to_inside));
        assert_eq!(refused[0].packet[40..42], [icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED]);
        assert!(all.iter().all(|seen| is_let_in(&mut nat, &answer(server(1), 53, *seen))), "the old go on");
        nat.pass(400 * SECOND);
        nat.assert_all_free();
    }
}

/// Hosts, ports, servers and times at random, over two workers, some ports forwarded: every answer reaches whom it is for, as the
/// model (a map) says, and nothing is left in the end.
#[test]
fn random_flows_of_all_three_translations_find_their_hosts_and_leave_nothing_behind() {
    // Host, port and way (as below) of those that are forwarded, and from where.
    let forwarded: [((u64, u16, usize), Seen); 4] = [
        ((5, 1003, 0), Seen::Ip4((OUTSIDE[0], 80))),
        ((6, 1004, 1), Seen::Ip6((OUTSIDE6, 80))),
        ((5, 1003, 1), Seen::Ip6((OUTSIDE6, 81))),
        ((7, 1005, 2), Seen::Ip4((OUTSIDE[0], 82))),
    ];
    let mapping = |((number, port, way), outside): ((u64, u16, usize), Seen)| {
        let outside = match outside {
            Seen::Ip4((address, port)) => (address.into(), port),
            Seen::Ip6((address, port)) => (address.into(), port),
        };
        let inside = match way {
            2 => Ipv4Addr::new(10, 0, 0, number as u8).into(),
            _ => host(number as u16).into(),
        };
        StaticMapping { protocol: ip4::UDP, outside, inside: (inside, port) }
    };
    let mappings = forwarded.map(mapping).to_vec();
    let mut nat = Nat::with(Setup { workers: 2, bindings: 2048, adjust: translate, mappings, ..Setup::default() });
    let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below| draws.below(below);
    let mut model: HashMap<Seen, (u64, u16, usize)> =
        forwarded.into_iter().map(|(inside, outside)| (outside, inside)).collect();
    for round in 0..4000 {
        let (number, port, way) = (2 + draw(40), 1000 + draw(8) as u16, draw(3) as usize);
        let server = 1 + draw(5) as u8;
        let sent = match way {
            2 => udp_packet(
                (Ipv4Addr::new(10, 0, 0, number as u8), port),
                (Ipv4Addr::new(198, 51, 100, server), 53),
                b"x",
            ),
            way => udp6_packet((host(number as u16), port), (BOTH[way](server), 53), b"x"),
        };
        let seen = seen(&mut nat, &sent);
        let known = *model.entry(seen).or_insert((number, port, way));
        assert_eq!(known, (number, port, way), "round {round}: a port of two hosts");
        let its = forwarded.iter().find(|(inside, _)| *inside == known);
        assert!(its.is_none_or(|(_, outside)| *outside == seen), "round {round}: not as forwarded");
        let (seen, (number, port, way)) =
            *model.iter().nth(draw(model.len() as u64) as usize).map(|(s, k)| (*s, *k)).as_ref().unwrap();
        let named = BOTH[if way == 1 { 1 } else { 0 }](server);
        let out = nat.send_outside(&answer(named, 53, seen));
        assert_eq!(out.len(), 1, "round {round}");
        match way {
            2 => assert_eq!(destination(&out[0].packet), (Ipv4Addr::new(10, 0, 0, number as u8), port)),
            _ => {
                let header = ip6::parse(&out[0].packet).unwrap();
                let to = read_u16(&out[0].packet, 40 + udp::DESTINATION);
                assert_eq!((header.source, header.destination, to), (named, host(number as u16), port));
            }
        }
    }
    assert_eq!(nat.bindings(), model.len() as u64);
    nat.pass(400 * SECOND);
    assert_eq!(nat.bindings(), forwarded.len() as u64);
    nat.set_mappings(Vec::new());
    nat.assert_all_free();
}
