//! Forwarded ports of hosts of IPv6: clients of IPv6 reach them by an outside address of IPv6 (NAPT66), clients of IPv4 by one of
//! IPv4 (NAT64, the static bindings of RFC 6146 section 3.5).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    rfc6146::{
        BOTH, HOST6, OUTSIDE6, SERVER6, Seen, answer, host, is_let_in, name, numbered, seen, segment_to, translate,
    },
    *,
};
use crate::{
    control::show_nat::{FlowView, NatFilter, NatPart, NatQuestion},
    dataplane::{
        nat::Translation,
        testing::udp_packet,
        testing6::{error6_packet, fragments6, joined6, tcp6_packet, udp6_packet},
    },
    wire::{icmp6, ip6},
};

/// The port that clients know, and the host's own.
const PORT: u16 = 80;
const INSIDE_PORT: u16 = 8080;
const KINDS: [Translation; 2] = [Translation::Nat66, Translation::Nat64];

/// The outside address that clients of a kind use.
fn outside(kind: Translation) -> IpAddr {
    match kind {
        Translation::Nat66 => OUTSIDE6.into(),
        Translation::Nat64 => OUTSIDE[0].into(),
    }
}

/// What a client of a kind sends to.
fn seen_at(kind: Translation, port: u16) -> Seen {
    match kind {
        Translation::Nat66 => Seen::Ip6((OUTSIDE6, port)),
        Translation::Nat64 => Seen::Ip4((OUTSIDE[0], port)),
    }
}

/// How an inside host knows who sends to it: a client of a kind.
fn client(kind: Translation) -> Ipv6Addr {
    match kind {
        Translation::Nat66 => SERVER6,
        Translation::Nat64 => name(SERVER),
    }
}

/// To port [`INSIDE_PORT`] of a host.
fn forwarded(kind: Translation, protocol: u8, port: u16, number: u16) -> StaticMapping {
    StaticMapping { protocol, outside: (outside(kind), port), inside: (host(number).into(), INSIDE_PORT) }
}

/// Both kinds of both protocols, to [`HOST6`].
fn all() -> Vec<StaticMapping> {
    let of = |kind| [ip4::TCP, ip4::UDP].map(|protocol| forwarded(kind, protocol, PORT, 2));
    KINDS.into_iter().flat_map(of).collect()
}

fn nat_with(mappings: Vec<StaticMapping>, workers: u8) -> Nat {
    Nat::with(Setup { workers, adjust: translate, mappings, ..Setup::default() })
}

/// A packet one hop on.
fn on(mut packet: Vec<u8>) -> Vec<u8> {
    packet[ip6::HOP_LIMIT] -= 1;
    packet
}

/// A client's datagram reaches the host as it should look there, and what the host answers comes from the forwarded port.
#[track_caller]
fn is_served(nat: &mut Nat, kind: Translation, port: u16, number: u16) {
    let to = seen_at(kind, port);
    let (client, inside) = ((client(kind), 40_000), (host(number), INSIDE_PORT));
    let packet = on(udp6_packet(client, inside, b"answer"));
    assert_eq!(nat.send_outside(&answer(client.0, client.1, to)), [Sent { is_to_inside: true, packet }]);
    assert_eq!(seen(nat, &udp6_packet(inside, client, b"back")), to);
}

#[test]
fn a_forwarded_port_takes_datagrams_of_clients_of_its_family_to_its_host_and_back() {
    for workers in [1, 3] {
        let mut nat = nat_with(all(), workers);
        for kind in KINDS {
            is_served(&mut nat, kind, PORT, 2);
            // As long as the file has it, without a packet.
            nat.pass(400 * SECOND);
            is_served(&mut nat, kind, PORT, 2);
        }
        assert_eq!(nat.bindings(), 4);
        nat.set_mappings(Vec::new());
        nat.assert_all_free();
    }
}

#[test]
fn a_forwarded_port_takes_connections_of_clients_of_its_family_to_its_host() {
    let (syn, ack, fin) = (tcp::SYN, tcp::ACK, tcp::FIN);
    for workers in [1, 3] {
        let mut nat = nat_with(all(), workers);
        for kind in KINDS {
            let (to, client) = (seen_at(kind, PORT), client(kind));
            // Who sends (the client: true), and what.
            for (is_inward, flags, numbers) in [
                (true, syn, (100, 0)),
                (false, syn | ack, (500, 101)),
                (true, ack, (101, 501)),
                (false, fin | ack, (501, 101)),
                (true, fin | ack, (101, 502)),
                (false, ack, (502, 102)),
            ] {
                let between = |from, to| numbered(tcp6_packet(from, to, flags, &[]), numbers);
                let inside = (HOST6, INSIDE_PORT);
                if is_inward {
                    let packet = on(between((client, 80), inside));
                    let out = nat.send_outside(&segment_to(client, to, flags, numbers));
                    assert_eq!(out, [Sent { is_to_inside: true, packet }], "{kind:?}");
                    continue;
                }
                let out = nat.send_inside(&between(inside, (client, 80)));
                assert_eq!((out.len(), out[0].is_to_inside), (1, false));
                match to {
                    Seen::Ip6(us) => assert_eq!(out[0].packet, on(between(us, (client, 80)))),
                    Seen::Ip4(us) => {
                        let expected = segment(us, (SERVER, 80), flags, numbers.0, numbers.1);
                        assert_eq!(out[0].packet[ip4::SOURCE..], expected[ip4::SOURCE..]);
                    }
                }
            }
        }
        nat.pass(3 * 3600 * SECOND);
        assert_eq!(nat.bindings(), 4);
    }
}

#[test]
fn a_forwarded_port_of_one_family_says_nothing_of_the_other() {
    for (number, kind) in KINDS.into_iter().enumerate() {
        let other = KINDS[1 - number];
        let mut nat = nat_with(vec![forwarded(kind, ip4::UDP, PORT, 2)], 1);
        assert!(!is_let_in(&mut nat, &answer(client(other), 40_000, seen_at(other, PORT))));
        let as_seen = seen(&mut nat, &udp6_packet((HOST6, INSIDE_PORT), (client(other), 53), b"x"));
        assert!(KINDS.iter().all(|kind| as_seen != seen_at(*kind, PORT)), "a port of the pool: {as_seen:?}");
        assert_eq!(seen(&mut nat, &udp6_packet((HOST6, INSIDE_PORT), (client(kind), 53), b"x")), seen_at(kind, PORT));
    }
}

#[test]
fn forwarded_ports_follow_the_file_and_other_flows_go_on() {
    for workers in [1, 3] {
        let mut nat = nat_with(Vec::new(), workers);
        let flows = |nat: &mut Nat| {
            BOTH.map(|server| {
                let as_seen = seen(nat, &udp6_packet((HOST6, 5000), (server(1), 53), b"x"));
                assert!(is_let_in(nat, &answer(server(1), 53, as_seen)));
                as_seen
            })
        };
        let before = flows(&mut nat);
        for kind in KINDS {
            let stranger = answer(client(kind), 40_000, seen_at(kind, PORT));
            assert!(nat.send_outside(&stranger).is_empty());
            nat.set_mappings(vec![forwarded(kind, ip4::UDP, PORT, 2), forwarded(kind, ip4::UDP, 81, 3)]);
            is_served(&mut nat, kind, PORT, 2);
            is_served(&mut nat, kind, 81, 3);
            // One leads elsewhere, the other has another port.
            nat.set_mappings(vec![forwarded(kind, ip4::UDP, PORT, 4), forwarded(kind, ip4::UDP, 82, 3)]);
            is_served(&mut nat, kind, PORT, 4);
            is_served(&mut nat, kind, 82, 3);
            assert!(!is_let_in(&mut nat, &answer(client(kind), 40_000, seen_at(kind, 81))));
            assert_eq!(flows(&mut nat), before);
            nat.set_mappings(Vec::new());
            assert!(nat.send_outside(&stranger).is_empty());
            assert_eq!(flows(&mut nat), before);
        }
        nat.pass(400 * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn a_host_that_spoke_from_its_port_before_it_was_forwarded_is_seen_by_it_from_then_on() {
    for kind in KINDS {
        let mut nat = nat_with(Vec::new(), 1);
        let sent = udp6_packet((HOST6, INSIDE_PORT), (client(kind), 53), b"x");
        let before = seen(&mut nat, &sent);
        nat.set_mappings(vec![forwarded(kind, ip4::UDP, PORT, 2)]);
        assert_eq!(seen(&mut nat, &sent), seen_at(kind, PORT));
        assert!(!is_let_in(&mut nat, &answer(client(kind), 53, before)));
        assert_eq!(nat.bindings(), 1);
    }
}

#[test]
fn inside_hosts_reach_forwarded_ports_by_the_outside_address() {
    let of_ip4 = StaticMapping { protocol: ip4::UDP, outside: (OUTSIDE[0].into(), 81), inside: (HOST.into(), 8081) };
    for workers in [1, 3] {
        let mut nat = nat_with([all(), vec![of_ip4]].concat(), workers);
        for kind in KINDS {
            let us = match kind {
                Translation::Nat66 => OUTSIDE6,
                Translation::Nat64 => name(OUTSIDE[0]),
            };
            // Another host, and the host itself.
            for from in [(host(3), 5000), (HOST6, 5000)] {
                let as_seen = match seen(&mut nat, &udp6_packet(from, (client(kind), 53), b"x")) {
                    Seen::Ip6(end) => end,
                    Seen::Ip4((address, port)) => (name(address), port),
                };
                let packet = on(udp6_packet(as_seen, (HOST6, INSIDE_PORT), b"hairpin"));
                let out = nat.send_inside(&udp6_packet(from, (us, PORT), b"hairpin"));
                assert_eq!(out, [Sent { is_to_inside: true, packet }], "{kind:?} from {from:?}");
                let packet = on(udp6_packet((us, PORT), from, b"back"));
                let out = nat.send_inside(&udp6_packet((HOST6, INSIDE_PORT), as_seen, b"back"));
                assert_eq!(out, [Sent { is_to_inside: true, packet }], "{kind:?} to {from:?}");
            }
        }
        // From IPv4 to IPv6 and back.
        let as_seen = nat.seen(&udp_packet((HOST, 5000), (SERVER, 53), b"x"));
        let out = nat.send_inside(&udp_packet((HOST, 5000), (OUTSIDE[0], PORT), b"hairpin"));
        assert_eq!(out[0].packet, on(udp6_packet((name(as_seen.0), as_seen.1), (HOST6, INSIDE_PORT), b"hairpin")));
        let out = nat.send_inside(&udp6_packet((HOST6, INSIDE_PORT), (name(as_seen.0), as_seen.1), b"back"));
        assert_eq!((source(&out[0].packet), destination(&out[0].packet)), ((OUTSIDE[0], PORT), (HOST, 5000)));
        // From IPv6 to a forwarded port of IPv4 and back.
        let out = nat.send_inside(&udp6_packet((HOST6, INSIDE_PORT), (name(OUTSIDE[0]), 81), b"hairpin"));
        assert_eq!((source(&out[0].packet), destination(&out[0].packet)), ((OUTSIDE[0], PORT), (HOST, 8081)));
        let out = nat.send_inside(&udp_packet((HOST, 8081), (OUTSIDE[0], PORT), b"back"));
        assert_eq!(out[0].packet, on(udp6_packet((name(OUTSIDE[0]), 81), (HOST6, INSIDE_PORT), b"back")));
        // A port that is nobody's is the machine's own.
        assert!(nat.send_inside(&udp6_packet((host(3), 5000), (OUTSIDE6, 82), b"x")).is_empty());
    }
}

#[test]
fn errors_about_a_forwarded_ports_packets_reach_host_and_client() {
    for workers in [1, 3] {
        let mut nat = nat_with(all(), workers);
        for kind in KINDS {
            let (inside, client) = ((HOST6, INSIDE_PORT), (client(kind), 40_000));
            let to_host = nat.send_outside(&answer(client.0, client.1, seen_at(kind, PORT)));
            let late = error6_packet(HOST6, client.0, icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4], &to_host[0].packet);
            let told = nat.send_inside(&late);
            assert_eq!((told.len(), told[0].is_to_inside), (1, false));
            let packet = &told[0].packet;
            match kind {
                Translation::Nat66 => {
                    let quoted = on(udp6_packet(client, (OUTSIDE6, PORT), b"answer"));
                    assert_eq!((packet[40], &packet[48..]), (icmp6::UNREACHABLE, &quoted[..]));
                }
                Translation::Nat64 => {
                    assert_eq!(packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PORT]);
                    assert_eq!(destination(&packet[28..]), (OUTSIDE[0], PORT));
                }
            }
            let sent = udp6_packet(inside, client, b"answer of the host");
            let out = nat.send_inside(&sent);
            let told = match kind {
                Translation::Nat66 => {
                    error6_packet(SERVER6, OUTSIDE6, icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4], &out[0].packet)
                }
                Translation::Nat64 => {
                    error(SERVER, OUTSIDE[0], icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &out[0].packet)
                }
            };
            let back = nat.send_outside(&told);
            assert_eq!((back.len(), back[0].is_to_inside), (1, true));
            assert_eq!(back[0].packet[40..42], [icmp6::UNREACHABLE, icmp6::CODE_PORT]);
            assert_eq!(back[0].packet[48..], on(sent), "as the host sent it, one router on");
        }
    }
}

#[test]
fn fragments_for_a_forwarded_port_reach_its_host_in_any_order() {
    let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    for workers in [1, 3] {
        let mut nat = nat_with(all(), workers);
        let (inside, client) = ((HOST6, INSIDE_PORT), (client(Translation::Nat66), 40_000));
        let whole = udp6_packet(client, (OUTSIDE6, PORT), &data);
        let parts = fragments6(&whole, 1200, 7);
        let out: Vec<Sent> = parts.iter().rev().flat_map(|part| nat.send_outside(part)).collect();
        assert!(out.iter().all(|sent| sent.is_to_inside));
        let packets = out.into_iter().map(|sent| sent.packet).collect();
        assert_eq!(joined6(packets), on(udp6_packet(client, inside, &data)));
        let whole = udp_packet((SERVER, 40_000), (OUTSIDE[0], PORT), &data);
        let parts = fragments(&whole, 1200, 7);
        let out: Vec<Sent> = parts.iter().rev().flat_map(|part| nat.send_outside(part)).collect();
        let packets = out.into_iter().map(|sent| sent.packet).collect();
        assert_eq!(joined6(packets), on(udp6_packet((name(SERVER), 40_000), inside, &data)));
    }
}

#[test]
fn a_forwarded_port_is_for_every_client_where_filters_and_mappings_are_for_one() {
    let adjust = |nat: &mut NatConfig| {
        translate(nat);
        nat.is_endpoint_dependent = true;
        nat.filtering = Filtering::AddressAndPortDependent;
    };
    let mut nat = Nat::with(Setup { adjust, mappings: all(), ..Setup::default() });
    for kind in KINDS {
        is_served(&mut nat, kind, PORT, 2);
        let server = BOTH[usize::from(kind == Translation::Nat66)];
        for number in 2..9 {
            assert!(is_let_in(&mut nat, &answer(server(number), 53, seen_at(kind, PORT))));
            let sent = udp6_packet((HOST6, INSIDE_PORT), (server(number), 53), b"x");
            assert_eq!(seen(&mut nat, &sent), seen_at(kind, PORT));
        }
    }
    assert_eq!(nat.bindings(), 4);
}

#[test]
fn forwarded_ports_are_shown_by_their_names_and_are_not_cleared() {
    let mut nat = nat_with(all(), 3);
    is_served(&mut nat, Translation::Nat64, PORT, 2);
    seen(&mut nat, &udp6_packet((HOST6, 5000), (SERVER6, 53), b"x"));
    let flows = |nat: &Nat, filter: NatFilter| -> Vec<FlowView> {
        let question = NatQuestion { part: NatPart::Flows, filter, after: None, limit: 100 };
        nat.control.nat_flows(&question, nat.now).rows
    };
    let with_state = NatFilter { state: Some("static".into()), ..NatFilter::default() };
    let mut rows = flows(&nat, with_state.clone());
    rows.sort_by_key(|row| (row.outside, row.protocol as u8));
    let ends: Vec<(SocketAddr, SocketAddr)> = rows.iter().map(|row| (row.outside, row.inside)).collect();
    let (four, six) = (SocketAddr::from((OUTSIDE[0], PORT)), SocketAddr::from((OUTSIDE6, PORT)));
    let inside = SocketAddr::from((HOST6, INSIDE_PORT));
    assert_eq!(ends, [(four, inside), (four, inside), (six, inside), (six, inside)]);
    assert!(rows.iter().all(|row| row.left_ms.is_none() && row.remote.is_none() && row.owner == "inside"));
    assert_eq!(rows.iter().map(|row| row.packets).sum::<u32>(), 2);
    let at_six = NatFilter { outside: Some(OUTSIDE6.into()), port: Some(PORT), ..NatFilter::default() };
    assert_eq!(flows(&nat, at_six).len(), 2);
    assert_eq!(flows(&nat, NatFilter { host: Some(HOST6.into()), ..NatFilter::default() }).len(), 5);

    assert_eq!(nat.control.clear_nat(&NatFilter::default(), None).0, 1, "the flow alone");
    nat.settle();
    assert_eq!((nat.bindings(), flows(&nat, with_state).len()), (4, 4));
    is_served(&mut nat, Translation::Nat66, PORT, 2);
}
