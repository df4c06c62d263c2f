//! RFC 6888: common requirements for carrier-grade NATs, those that a test can check.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::dataplane::testing::udp_packet;

fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    udp_packet(from, to, b"payload")
}

fn is_prohibited(out: &[Sent], sent: &[u8]) -> bool {
    matches!(out, [Sent { is_to_inside: true, packet }]
        if packet[20..22] == [icmp::UNREACHABLE, icmp::CODE_PROHIBITED] && packet[28..] == *sent)
}

#[test]
fn req3_the_addresses_of_a_pool_need_not_be_neighbours() {
    let mut nat = Nat::with(Setup { addresses: 2, ports: (2000, 2003), ..Setup::default() });
    let hosts = (0..8).map(|host| Ipv4Addr::new(10, 0, 2, host));
    let seen: HashSet<Endpoint> = hosts.map(|host| nat.seen(&udp((host, 1), (SERVER, 53)))).collect();
    assert_eq!(seen.len(), 8);
    assert!(OUTSIDE.iter().all(|address| seen.iter().filter(|(seen, _)| seen == address).count() == 4));
}

#[test]
fn req4_a_host_has_no_more_ports_than_it_may_and_others_have_theirs() {
    let mut nat = Nat::adjusted(|nat| nat.ports_a_host = 3);
    let kept: Vec<Endpoint> = (1..=3).map(|port| nat.seen(&udp((HOST, port), (SERVER, 53)))).collect();
    let fourth = udp((HOST, 4), (SERVER, 53));
    assert!(is_prohibited(&nat.send_inside(&fourth), &fourth));
    assert_eq!(nat.dropped(Reason::HostLimit), 1);
    nat.seen(&segment((HOST, 4), (SERVER, 80), tcp::SYN, 1, 0));
    nat.seen(&udp((OTHER_HOST, 4), (SERVER, 53)));
    assert!((1..=3).all(|port| nat.seen(&udp((HOST, port), (SERVER, 99))) == kept[usize::from(port) - 1]));
}

#[test]
fn req5_a_host_has_no_more_bindings_than_it_may() {
    let mut nat = Nat::adjusted(|nat| nat.bindings_a_host = 2);
    nat.seen(&udp((HOST, 1), (SERVER, 53)));
    nat.seen(&segment((HOST, 4), (SERVER, 80), tcp::SYN, 1, 0));
    let third = echo(icmp::ECHO_REQUEST, HOST, SERVER, 1);
    assert!(is_prohibited(&nat.send_inside(&third), &third));
    nat.pass(301 * SECOND);
    nat.seen(&third);
}

#[test]
fn req6_exempt_destinations_are_reached_untranslated() {
    let exempt = vec![Prefix::new(OTHER_SERVER, 32)];
    let mut nat = Nat::with(Setup { exempt, ..Setup::default() });
    assert_eq!(nat.seen(&udp((HOST, 5000), (OTHER_SERVER, 53))), (HOST, 5000));
    let out = nat.send_outside(&udp((OTHER_SERVER, 53), (HOST, 5000)));
    assert_eq!((source(&out[0].packet), destination(&out[0].packet)), ((OTHER_SERVER, 53), (HOST, 5000)));
    assert_eq!(nat.bindings(), 0);
    assert_eq!(nat.seen(&udp((HOST, 5000), (SERVER, 53))).0, OUTSIDE[0]);
}

#[test]
fn req13_every_port_of_the_pool_is_used_before_a_host_is_refused() {
    let adjust = |nat: &mut NatConfig| nat.keeps_parity = false;
    let mut nat = Nat::with(Setup { ports: (2000, 2499), bindings: 1024, adjust, ..Setup::default() });
    let ports: HashSet<u16> = (0..500).map(|port| nat.seen(&udp((HOST, 5000 + port), (SERVER, 53))).1).collect();
    assert_eq!(ports.len(), 500);
    let more = udp((HOST, 9000), (SERVER, 53));
    assert!(is_prohibited(&nat.send_inside(&more), &more));
}

#[test]
fn req8_a_port_serves_nobody_for_two_minutes_after_its_use() {
    let mut nat = Nat::with(Setup { ports: (2000, 2000), ..Setup::default() });
    nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 1));
    nat.pass(61 * SECOND);
    assert_eq!(nat.bindings(), 0);
    let other = echo(icmp::ECHO_REQUEST, OTHER_HOST, SERVER, 1);
    assert!(is_prohibited(&nat.send_inside(&other), &other));
    nat.pass(118 * SECOND);
    assert!(is_prohibited(&nat.send_inside(&other), &other));
    nat.pass(2 * SECOND);
    assert_eq!(nat.seen(&other), (OUTSIDE[0], 2000));
}

#[test]
fn req11_without_resources_the_new_is_refused_and_the_old_is_kept() {
    let mut nat = Nat::with(Setup { bindings: 4, ..Setup::default() });
    let kept: Vec<Endpoint> = (1..=4).map(|port| nat.seen(&udp((HOST, port), (SERVER, 53)))).collect();
    for port in 5..50 {
        let more = udp((HOST, port), (SERVER, 53));
        assert!(is_prohibited(&nat.send_inside(&more), &more), "told, and never forwarded as it is");
    }
    assert_eq!((nat.bindings(), nat.dropped(Reason::TableFull)), (4, 45));
    for (port, outside) in (1..).zip(kept) {
        assert_eq!(nat.seen(&udp((HOST, port), (SERVER, 53))), outside);
        assert!(nat.is_let_in(&udp((SERVER, 53), outside)));
    }
}

#[test]
fn req12_blocks_of_ports_are_a_hosts_alone_and_are_given_back() {
    let setup = || Setup { ports: (2000, 2255), adjust: |nat| nat.port_block = 64, ..Setup::default() };
    let mut nat = Nat::with(setup());
    let mut owner: HashMap<u16, Ipv4Addr> = HashMap::new();
    for (host, ports) in [(HOST, 65), (OTHER_HOST, 2), (SERVER_LIKE, 1)] {
        for inside in 1..=ports {
            let (_, port) = nat.seen(&udp((host, inside), (SERVER, 53)));
            assert_eq!(*owner.entry((port - 2000) / 64).or_insert(host), host, "a block is one host's");
        }
    }
    assert_eq!(owner.len(), 4);
    let fourth = udp((Ipv4Addr::new(10, 0, 0, 9), 1), (SERVER, 53));
    assert!(is_prohibited(&nat.send_inside(&fourth), &fourth));
    nat.pass(301 * SECOND);
    nat.assert_all_free();
    assert!(is_prohibited(&nat.send_inside(&fourth), &fourth), "the blocks rest");
    nat.pass(121 * SECOND);
    nat.seen(&fourth);
}

const SERVER_LIKE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

#[test]
fn req15_ports_are_not_guessable_from_those_before() {
    let mut nat = Nat::new();
    let ports: Vec<u16> = (0..100).map(|port| nat.seen(&udp((HOST, 5000 + port), (SERVER, 53))).1).collect();
    assert!(ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count() < 5);
}

#[test]
fn endpoint_dependent_mapping_has_more_flows_than_ports() {
    for workers in [1, 2] {
        let adjust = |nat: &mut NatConfig| nat.is_endpoint_dependent = true;
        let mut nat = Nat::with(Setup { ports: (2000, 2007), workers, adjust, ..Setup::default() });
        let mut seen = HashMap::new();
        for server in 0..20u8 {
            for inside in 0..4 {
                let remote = (Ipv4Addr::new(198, 51, 100, server), 53);
                let outside = nat.seen(&udp((HOST, 5000 + inside), remote));
                assert!(seen.insert((outside, remote), inside).is_none(), "a port is one's towards one server");
            }
        }
        assert_eq!(nat.bindings(), 80);
        for (&(outside, remote), inside) in &seen {
            let out = nat.send_outside(&udp(remote, outside));
            assert_eq!(destination(&out[0].packet), (HOST, 5000 + inside));
            assert!(!nat.is_let_in(&udp((remote.0, 54), outside)));
        }
        let reply = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 9));
        assert!(nat.is_let_in(&echo(icmp::ECHO_REPLY, SERVER, reply.0, reply.1)));
        nat.pass(301 * SECOND);
        nat.assert_all_free();
    }
}
