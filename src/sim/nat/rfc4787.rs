//! RFC 4787: NAT behavioral requirements for unicast UDP.

use super::*;
use crate::dataplane::testing::udp_packet;

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
