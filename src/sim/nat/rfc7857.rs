//! RFC 7857: updates to the requirements of RFC 4787, 5382 and 5508. A test's name starts with the section's subject.

use std::collections::HashSet;

use super::{
    rfc5382::{C, CLIENT, S, WEB, connect, seconds_to_live},
    *,
};
use crate::{
    dataplane::testing::udp_packet,
    wire::tcp::{ACK, FIN, RST, SYN},
};

fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    udp_packet(from, to, b"payload")
}

#[test]
fn tcp_opening_open_and_closing_connections_have_timers_of_their_own() {
    let own_timers = |nat: &mut NatConfig| {
        nat.timers.tcp_opening = 100 * SECOND;
        nat.timers.tcp_established = 1000 * SECOND;
        nat.timers.tcp_closing = 50 * SECOND;
    };
    let mut nat = Nat::adjusted(own_timers);
    nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    assert_eq!(seconds_to_live(&mut nat), 101);
    connect(&mut nat, CLIENT, WEB);
    assert_eq!(seconds_to_live(&mut nat), 1001);
    let outside = connect(&mut nat, CLIENT, WEB);
    nat.seen(&segment(CLIENT, WEB, FIN | ACK, C + 1, S + 1));
    assert!(nat.is_let_in(&segment(WEB, outside, FIN | ACK, S + 1, C + 2)));
    assert_eq!(seconds_to_live(&mut nat), 51);
    nat.assert_all_free();
}

#[test]
fn tcp_a_handshake_that_acknowledges_nothing_the_client_sent_opens_nothing() {
    let mut nat = Nat::new();
    let outside = nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    assert!(nat.is_let_in(&segment(WEB, outside, SYN | ACK, S, C + 500_000)), "judged by the client, not by us");
    assert!(nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 500_000)));
    assert_eq!(seconds_to_live(&mut nat), 241, "still opening");
}

#[test]
fn tcp_a_half_closed_connection_keeps_the_long_timer_whoever_closed() {
    for is_closed_by_client in [true, false] {
        let mut nat = Nat::new();
        let outside = connect(&mut nat, CLIENT, WEB);
        if is_closed_by_client {
            nat.seen(&segment(CLIENT, WEB, FIN | ACK, C + 1, S + 1));
        } else {
            assert!(nat.is_let_in(&segment(WEB, outside, FIN | ACK, S + 1, C + 1)));
        }
        nat.pass(1000 * SECOND);
        assert_eq!(nat.bindings(), 1);
    }
}

#[test]
fn tcp_a_reset_is_translated_and_the_mapping_is_kept_for_four_minutes() {
    for is_from_inside in [true, false] {
        let mut nat = Nat::new();
        let outside = connect(&mut nat, CLIENT, WEB);
        let out = match is_from_inside {
            true => nat.send_inside(&segment(CLIENT, WEB, RST, C + 1, 0)),
            false => nat.send_outside(&segment(WEB, outside, RST, S + 1, 0)),
        };
        let ends = (source(&out[0].packet), destination(&out[0].packet));
        assert_eq!(ends, if is_from_inside { (outside, WEB) } else { (WEB, CLIENT) });
        nat.pass(239 * SECOND);
        assert!(nat.is_let_in(&segment(WEB, outside, ACK, S + 1, C + 1)));
        nat.pass(3 * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn tcp_a_reset_that_nobody_in_the_connection_can_have_sent_ends_nothing() {
    let mut nat = Nat::new();
    let outside = connect(&mut nat, CLIENT, WEB);
    for sequence in [0, S - 1, S + 1 + 70_000, S.wrapping_sub(1 << 31)] {
        assert!(nat.is_let_in(&segment(WEB, outside, RST, sequence, 0)));
        assert!(nat.is_let_in(&segment((SERVER, 81), outside, RST, S + 1, 0)), "another end is another connection");
    }
    nat.pass(300 * SECOND);
    assert_eq!(nat.bindings(), 1);
}

#[test]
fn port_overlap_is_not_used_whatever_the_destinations() {
    let mut nat = Nat::with(Setup { ports: (2000, 2001), ..Setup::default() });
    let one = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    assert_ne!(nat.seen(&udp((OTHER_HOST, 5000), (OTHER_SERVER, 99))), one);
    let third = nat.send_inside(&udp((HOST, 5001), (ROUTER, 1)));
    assert!(third[0].is_to_inside, "refused, though nobody else speaks to that destination");
}

#[test]
fn address_pooling_a_host_whose_address_is_full_is_refused_and_not_moved() {
    let adjust = |nat: &mut NatConfig| nat.keeps_parity = false;
    let mut nat = Nat::with(Setup { addresses: 2, ports: (2000, 2003), adjust, ..Setup::default() });
    let seen: HashSet<Ipv4Addr> = (0..4).map(|port| nat.seen(&udp((HOST, 5000 + port), (SERVER, 53))).0).collect();
    assert_eq!(seen.len(), 1);
    assert!(nat.send_inside(&udp((HOST, 6000), (SERVER, 53)))[0].is_to_inside);
    assert!(!seen.contains(&nat.seen(&udp((OTHER_HOST, 5000), (SERVER, 53))).0), "the other address has room");
}

#[test]
fn eim_protocols_have_mappings_of_their_own() {
    let mut nat = Nat::new();
    let of_udp = nat.seen(&udp((HOST, 5000), (SERVER, 80)));
    let of_tcp = connect(&mut nat, CLIENT, WEB);
    let of_icmp = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 5000));
    assert_eq!(nat.bindings(), 3);
    assert_eq!(nat.seen(&udp((HOST, 5000), (OTHER_SERVER, 81))), of_udp);
    assert_eq!(connect(&mut nat, CLIENT, (OTHER_SERVER, 81)), of_tcp);
    assert_eq!(nat.seen(&echo(icmp::ECHO_REQUEST, HOST, OTHER_SERVER, 5000)), of_icmp);
    assert_eq!(nat.bindings(), 3);
}

#[test]
fn eif_a_mapping_of_one_protocol_lets_in_no_other() {
    let mut nat = Nat::new();
    let (address, port) = nat.seen(&udp((HOST, 5000), (SERVER, 80)));
    assert!(nat.is_let_in(&udp((OTHER_SERVER, 1), (address, port))));
    assert!(!nat.is_let_in(&segment((SERVER, 80), (address, port), SYN, S, 0)));
    assert!(!nat.is_let_in(&echo(icmp::ECHO_REPLY, SERVER, address, port)));
}

#[test]
fn refresh_no_protocol_is_kept_by_what_comes_in() {
    let mut nat = Nat::new();
    let of_udp = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    let of_tcp = nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    let of_icmp = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 7));
    for _ in 0..31 {
        nat.send_outside(&udp((SERVER, 53), of_udp));
        nat.send_outside(&segment(WEB, of_tcp, SYN | ACK, S, C + 1));
        nat.send_outside(&echo(icmp::ECHO_REPLY, SERVER, of_icmp.0, of_icmp.1));
        nat.pass(10 * SECOND);
    }
    nat.assert_all_free();
}

#[test]
fn refresh_resets_and_errors_that_answer_a_stranger_keep_nothing() {
    let mut nat = Nat::new();
    let of_udp = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    let of_tcp = nat.seen(&segment(CLIENT, WEB, SYN, C, 0));
    let stranger = (OTHER_SERVER, 6);
    for _ in 0..31 {
        let heard = nat.send_outside(&udp(stranger, of_udp));
        if let [heard] = &heard[..] {
            let told = error(HOST, stranger.0, icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &heard.packet);
            assert!(!nat.send_inside(&told)[0].is_to_inside);
        }
        if nat.is_let_in(&segment(stranger, of_tcp, SYN, S, 0)) {
            nat.seen(&segment(CLIENT, stranger, RST | ACK, 0, S + 1));
        }
        nat.pass(10 * SECOND);
    }
    assert_eq!(nat.bindings(), 0, "a stranger cannot keep a mapping by what it has a host answer");
}

#[test]
fn parity_may_be_off() {
    let mut nat = Nat::adjusted(|nat| nat.keeps_parity = false);
    assert!((5000..5050).any(|port| nat.seen(&udp((HOST, port), (SERVER, 53))).1 % 2 != port % 2));
}

#[test]
fn port_randomisation_uses_the_whole_range_and_no_order() {
    let mut nat = Nat::with(Setup { bindings: 1024, ..Setup::default() });
    let ports: Vec<u16> = (0..400).map(|port| nat.seen(&udp((HOST, 5000 + port), (SERVER, 53))).1).collect();
    for quarter in 0..4u32 {
        let is_in = |port: &&u16| (u32::from(**port) - 1024) * 4 / 64_512 == quarter;
        assert!((60..140).contains(&ports.iter().filter(is_in).count()), "about a hundred in each quarter");
    }
    let ups = ports.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((150..250).contains(&ups), "up as often as down");
}

#[test]
fn ip_id_of_a_datagram_is_left_and_its_fragments_keep_the_one_they_share() {
    let mut nat = Nat::new();
    let mut packet = udp((HOST, 5000), (SERVER, 53));
    for identification in [0u16, 1, 0xffff] {
        write(&mut packet, ip4::IDENTIFICATION, &identification.to_be_bytes());
        mend(&mut packet);
        assert_eq!(read_u16(&nat.send_inside(&packet)[0].packet, ip4::IDENTIFICATION), identification);
        let parts = fragments(&udp_packet((HOST, 5000), (SERVER, 53), &[0; 100]), 48, identification);
        let out: Vec<Sent> = parts.iter().flat_map(|part| nat.send_inside(part)).collect();
        assert_eq!(out.len(), parts.len());
        assert!(out.iter().all(|sent| read_u16(&sent.packet, ip4::IDENTIFICATION) == identification));
    }
}

#[test]
fn ip_id_of_two_hosts_fragments_is_left_even_where_it_is_the_same() {
    // RFC 6864 section 5.3 would have it differ. It stays, as with Linux: who reassembles tells by the checksum.
    let mut nat = Nat::new();
    let mut halves = Vec::new();
    for host in [HOST, OTHER_HOST] {
        let parts = fragments(&udp_packet((host, 5000), (SERVER, 53), &[host.octets()[3]; 100]), 56, 7);
        let out: Vec<Sent> = parts.iter().flat_map(|part| nat.send_inside(part)).collect();
        assert!(out.iter().all(|sent| read_u16(&sent.packet, ip4::IDENTIFICATION) == 7));
        // By itself each is whole and right.
        reassembled(&out);
        halves.push(out);
    }
    // And what a receiver makes of the first half of one and the second of the other is wrong, and seen to be.
    let mut mixed = reassembled(&halves[0]);
    let start = mixed.len() - (halves[1][1].packet.len() - ip4::HEADER_BYTES);
    mixed[start..].copy_from_slice(&halves[1][1].packet[ip4::HEADER_BYTES..]);
    assert!(!has_valid_checksums(&mixed));
}

#[test]
fn icmp_a_querys_mapping_ends_with_its_last_session_and_not_before() {
    let mut nat = Nat::new();
    nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 7));
    nat.pass(50 * SECOND);
    let seen = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, OTHER_SERVER, 7));
    nat.pass(50 * SECOND);
    for server in [SERVER, OTHER_SERVER] {
        assert!(nat.is_let_in(&echo(icmp::ECHO_REPLY, server, seen.0, seen.1)));
    }
    nat.pass(11 * SECOND);
    nat.assert_all_free();
}

#[test]
fn hairpinning_of_an_error_about_an_error_or_a_query_to_ourselves_goes_nowhere() {
    let mut nat = Nat::new();
    let outside = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 7));
    // Who pings the gateway's address means the gateway: on a NIC its kernel has it, and here it is dropped.
    assert_eq!(nat.send_inside(&echo(icmp::ECHO_REQUEST, OTHER_HOST, outside.0, outside.1)), []);
    let quoted = error(outside.0, OTHER_HOST, icmp::UNREACHABLE, 1, [0; 4], &[0; 28]);
    assert_eq!(nat.send_inside(&error(OTHER_HOST, outside.0, icmp::UNREACHABLE, 1, [0; 4], &quoted)), []);
    assert_eq!(nat.bindings(), 1);
}
