//! RFC 4787: NAT behavioral requirements for unicast UDP.

use super::*;
use crate::dataplane::{testing::udp_packet, tick::Tick};

fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    udp_packet(from, to, b"payload")
}

#[test]
fn req1_mapping_is_endpoint_independent() {
    let mut nat = Nat::new();
    let first = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    assert_eq!(nat.seen(&udp((HOST, 5000), (SERVER, 54))), first);
    assert_eq!(nat.seen(&udp((HOST, 5000), (OTHER_SERVER, 53))), first);
    assert_ne!(nat.seen(&udp((HOST, 5001), (SERVER, 53))), first);
    assert_ne!(nat.seen(&udp((OTHER_HOST, 5000), (SERVER, 53))), first);
    assert_eq!(nat.bindings(), 3);
}

#[test]
fn req2_a_host_has_one_outside_address_whatever_it_sends() {
    let mut nat = Nat::with(Setup { addresses: 2, ..Setup::default() });
    let mut seen = std::collections::HashSet::new();
    for host in 2..40 {
        let host = Ipv4Addr::new(10, 0, 0, host);
        let (address, _) = nat.seen(&udp((host, 1), (SERVER, 53)));
        seen.insert(address);
        assert!((2..5).all(|port| nat.seen(&udp((host, port), (OTHER_SERVER, 53))).0 == address), "paired pooling");
        assert_eq!(nat.seen(&segment((host, 1), (SERVER, 80), tcp::SYN, 1, 0)).0, address, "TCP, too");
        assert_eq!(nat.seen(&echo(icmp::ECHO_REQUEST, host, SERVER, 1)).0, address, "and ICMP");
    }
    assert_eq!(seen.len(), 2, "all addresses are used");
}

#[test]
fn req3_no_port_is_two_hosts() {
    let mut nat = Nat::with(Setup { ports: (2000, 2099), ..Setup::default() });
    let mut seen = std::collections::HashSet::new();
    for host in 0..100 {
        assert!(seen.insert(nat.seen(&udp((Ipv4Addr::new(10, 0, 1, host), 7), (SERVER, 53)))));
    }
    let out = nat.send_inside(&udp((HOST, 7), (SERVER, 53)));
    assert!(out.iter().all(|sent| sent.is_to_inside), "the one too many is refused, not overloaded");
    assert_eq!((nat.bindings(), nat.dropped(Reason::PortsExhausted)), (100, 1));
}

#[test]
fn req3a_a_port_above_1023_stays_above() {
    let mut nat = Nat::new();
    assert!((1024..1100).all(|port| nat.seen(&udp((HOST, port), (SERVER, 53))).1 >= 1024));
}

#[test]
fn req4_parity_is_kept() {
    let mut nat = Nat::new();
    assert!((5000..5050).all(|port| nat.seen(&udp((HOST, port), (SERVER, 53))).1 % 2 == port % 2));
}

#[test]
fn req5_a_mapping_lives_for_five_minutes_of_silence_and_no_longer() {
    let mut nat = Nat::new();
    let (_, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    nat.pass(300 * SECOND);
    assert!(nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))), "at least five minutes");
    nat.pass(SECOND);
    assert!(!nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))));
    assert_eq!(nat.dropped(Reason::NoMapping), 1);
    nat.assert_all_free();
}

#[test]
fn req5_with_coarse_ticks_a_mapping_lives_no_shorter_and_hardly_longer() {
    let mut nat = Nat::adjusted(|nat| nat.tick = Tick::from_millis(1000));
    nat.pass(SECOND / 2);
    let (_, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    nat.pass(300 * SECOND);
    assert!(nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))), "at least five minutes");
    nat.pass(3 * SECOND);
    assert!(!nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))), "to a tick, and the way to the worker and back");
    nat.assert_all_free();
}

#[test]
fn req6_what_goes_out_keeps_a_mapping_and_what_comes_in_does_not() {
    let mut nat = Nat::new();
    let (_, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    for _ in 0..3 {
        nat.pass(299 * SECOND);
        assert_eq!(nat.seen(&udp((HOST, 5000), (OTHER_SERVER, 9))).1, port);
    }
    for _ in 0..10 {
        nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port)));
        nat.pass(31 * SECOND);
    }
    assert_eq!(nat.bindings(), 0);
}

#[test]
fn req6_by_option_what_comes_in_keeps_a_mapping_too() {
    let mut nat = Nat::adjusted(|nat| nat.timers.is_refreshed_from_outside = true);
    let (_, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    for _ in 0..10 {
        assert!(nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))));
        nat.pass(299 * SECOND);
    }
    nat.pass(2 * SECOND);
    nat.assert_all_free();
}

#[test]
fn req8_filtering_is_endpoint_independent() {
    let mut nat = Nat::new();
    let (_, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    for from in [(SERVER, 53), (SERVER, 99), (OTHER_SERVER, 1), (ROUTER, 53)] {
        let out = nat.send_outside(&udp(from, (OUTSIDE[0], port)));
        assert_eq!((source(&out[0].packet), destination(&out[0].packet)), (from, (HOST, 5000)));
    }
}

#[test]
fn req9_two_hosts_reach_each_other_by_their_outside_addresses() {
    for workers in [1, 3] {
        let mut nat = Nat::with(Setup { workers, addresses: 2, ..Setup::default() });
        let one = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
        let other = nat.seen(&udp((OTHER_HOST, 6000), (SERVER, 53)));
        let out = nat.send_inside(&udp((HOST, 5000), other));
        assert_eq!((source(&out[0].packet), destination(&out[0].packet)), (one, (OTHER_HOST, 6000)));
        assert!(out[0].is_to_inside);
        let back = nat.send_inside(&udp((OTHER_HOST, 6000), one));
        assert_eq!((source(&back[0].packet), destination(&back[0].packet)), (other, (HOST, 5000)));
    }
}

#[test]
fn req10_no_payload_is_looked_into() {
    let mut nat = Nat::new();
    for port in [21, 53, 69, 1719, 5060] {
        let says_address = format!("PORT {} c=IN IP4 {HOST}", HOST.to_string().replace('.', ","));
        let out = nat.send_inside(&udp_packet((HOST, port), (SERVER, port), says_address.as_bytes()));
        assert_eq!(&out[0].packet[28..], says_address.as_bytes(), "port {port}");
    }
}

#[test]
fn req11_the_same_packets_are_treated_the_same_whatever_was_before() {
    let mut nat = Nat::new();
    for round in 0..3 {
        let ports: Vec<Endpoint> = (0..50).map(|port| nat.seen(&udp((HOST, 5000 + port), (SERVER, 53)))).collect();
        assert!((0..50).all(|port| nat.seen(&udp((HOST, 5000 + port), (ROUTER, 1))) == ports[usize::from(port)]));
        nat.pass((310 + round) * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn req12_an_icmp_error_ends_no_mapping_and_is_translated() {
    let mut nat = Nat::new();
    let sent = nat.send_inside(&udp((HOST, 5000), (SERVER, 53))).remove(0).packet;
    for code in 0..16 {
        let out = nat.send_outside(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, code, [0; 4], &sent));
        assert!(out[0].is_to_inside);
        assert_eq!(out[0].packet[21], code);
    }
    let (_, port) = source(&sent);
    assert!(nat.is_let_in(&udp((SERVER, 53), (OUTSIDE[0], port))));
}

#[test]
fn req13_what_is_too_big_and_must_not_be_fragmented_is_answered() {
    let mut nat = Nat::new();
    let out = nat.send_inside(&udp_packet((HOST, 5000), (SERVER, 53), &[0; 1480]));
    assert_eq!((out[0].is_to_inside, out[0].packet[20], out[0].packet[21]), (true, icmp::UNREACHABLE, 4));
    assert_eq!(out[0].packet[26..28], 1500u16.to_be_bytes());
    assert_eq!(nat.bindings(), 0);
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut nat = Nat::new();
    let mut packet = udp((HOST, 5000), (SERVER, 53));
    write(&mut packet, 20 + udp::CHECKSUM, &[0, 0]);
    nat.put(INSIDE_INTERFACE, &packet);
    let frames = nat.settle_unchecked();
    assert_eq!(read_u16(&frames[0].packet, 20 + udp::CHECKSUM), 0);
}

/// Fragments of a packet each, of many packets in every order of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn big(from: Endpoint, to: Endpoint) -> Vec<u8> {
    udp_packet(from, to, &(0..3000).map(|at| at as u8).collect::<Vec<_>>())
}

/// What the receiver puts together is what was sent, but for its ends and one hop.
#[track_caller]
fn assert_arrived(out: &[Sent], mut expected: Vec<u8>, identification: u16) {
    ip4::decrement_ttl(&mut expected);
    write(&mut expected, ip4::IDENTIFICATION, &identification.to_be_bytes());
    write(&mut expected, ip4::FRAGMENT, &[0, 0]);
    mend(&mut expected);
    assert_eq!(reassembled(out), expected);
}

#[test]
fn req13_what_may_be_fragmented_leaves_in_fragments_in_order() {
    let mut nat = Nat::new();
    let mut packet = udp_packet((HOST, 5000), (SERVER, 53), &[5; 1480]);
    write(&mut packet, ip4::FRAGMENT, &[0, 0]);
    mend(&mut packet);
    let out = nat.send_inside(&packet);
    let offsets: Vec<u16> = out.iter().map(|sent| read_u16(&sent.packet, ip4::FRAGMENT)).collect();
    assert_eq!(offsets, [ip4::MORE_FRAGMENTS, 1480 / 8]);
    let (address, port) = source(&out[0].packet);
    assert_arrived(&out, udp_packet((address, port), (SERVER, 53), &[5; 1480]), 0);
}

#[test]
fn req14_fragments_in_every_order_are_translated_both_ways() {
    for workers in [1, 3] {
        let mut nat = Nat::with(Setup { workers, ..Setup::default() });
        for (number, order) in (1..).zip(ORDERS) {
            let client = (HOST, 5000 + number);
            // The first packet of a flow is in fragments, too.
            let parts = fragments(&big(client, (SERVER, 53)), 1024, number);
            let out: Vec<Sent> = order.iter().flat_map(|at| nat.send_inside(&parts[*at])).collect();
            assert_eq!(out.len(), 3, "{order:?}");
            let first = out.iter().find(|sent| read_u16(&sent.packet, ip4::FRAGMENT) & ip4::OFFSET_MASK == 0);
            let outside = source(&first.expect("the first fragment goes out").packet);
            assert_arrived(&out, big(outside, (SERVER, 53)), number);

            let parts = fragments(&big((SERVER, 53), outside), 1024, number);
            let out: Vec<Sent> = order.iter().flat_map(|at| nat.send_outside(&parts[*at])).collect();
            assert_eq!(out.len(), 3, "{order:?}");
            assert!(out.iter().all(|sent| sent.is_to_inside));
            assert_arrived(&out, big((SERVER, 53), client), number);
        }
        nat.pass(303 * SECOND);
        nat.assert_all_free();
    }
}

#[test]
fn req14_fragments_of_two_hosts_with_one_identification_are_not_mixed() {
    let mut nat = Nat::new();
    let hosts = [(HOST, 5000), (OTHER_HOST, 5000)];
    let parts = hosts.map(|host| fragments(&big(host, (SERVER, 53)), 1024, 7));
    let mut out = [Vec::new(), Vec::new()];
    for at in [1, 0, 2] {
        for host in 0..2 {
            out[host].extend(nat.send_inside(&parts[host][at]));
        }
    }
    for out in out {
        let first = out.iter().find(|sent| read_u16(&sent.packet, ip4::FRAGMENT) & ip4::OFFSET_MASK == 0);
        let outside = source(&first.expect("the first fragment goes out").packet);
        assert_arrived(&out, big(outside, (SERVER, 53)), 7);
    }
}

#[test]
fn req14_a_flood_of_fragments_hurts_nothing_else() {
    let mut nat = Nat::new();
    let outside = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    for number in 0..20_000u32 {
        let stranger = (Ipv4Addr::from_bits(0xc633_6400 | number >> 8), 53);
        // Never the first one.
        let part = fragments(&big(stranger, outside), 1024, number as u16).remove(1);
        assert_eq!(nat.send_outside(&part), []);
        if number % 1000 == 0 {
            assert!(nat.is_let_in(&udp((SERVER, 53), outside)));
            nat.seen(&udp((HOST, 6000 + (number / 1000) as u16), (SERVER, 53)));
        }
    }
    assert!(nat.dropped(Reason::FragmentsFull) > 0, "what is held is bounded");
    nat.pass(3 * SECOND);
    let parts = fragments(&big((SERVER, 53), outside), 1024, 9);
    assert_eq!(parts.iter().map(|part| nat.send_outside(part).len()).sum::<usize>(), 3, "and fragments work again");
    nat.pass(303 * SECOND);
    nat.assert_all_free();
}

#[test]
fn req14_fragments_that_overlap_are_dropped() {
    let mut nat = Nat::new();
    let outside = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    let parts = fragments(&big((SERVER, 53), outside), 1024, 9);
    assert_eq!(nat.send_outside(&parts[0]).len(), 1);
    let mut overlapping = parts[1].clone();
    write(&mut overlapping, ip4::FRAGMENT, &(ip4::MORE_FRAGMENTS | (1016 / 8)).to_be_bytes());
    mend(&mut overlapping);
    assert_eq!(nat.send_outside(&overlapping), []);
    assert_eq!(nat.dropped(Reason::FragmentOverlap), 1);
}
