//! The pool of outside addresses while the gateway runs: an address that the file names is given out at once; of one that it
//! names no longer nothing new is given, and what there is goes on.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv6Addr,
};

use super::*;
use crate::{
    control::show_nat::{NatAnswer, NatFilter, NatPart, NatQuestion},
    dataplane::{gateway::OutsideAddress6, testing::udp_packet, testing6::udp6_packet},
    wire::ip6,
};

const FIRST: Ipv4Addr = OUTSIDE[0];
const SECOND_ADDRESS: Ipv4Addr = OUTSIDE[1];
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 78);

fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    udp_packet(from, to, b"x")
}

fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, number)
}

/// Two addresses, two workers.
fn nat() -> Nat {
    Nat::with(Setup { workers: 2, addresses: 2, ..Setup::default() })
}

/// A new flow of each of forty hosts: what each is seen as.
fn forty(nat: &mut Nat, port: u16) -> HashMap<u8, Endpoint> {
    (1..=40).map(|number| (number, nat.seen(&udp((host(number), port), (SERVER, 53))))).collect()
}

fn addresses_of(seen: &HashMap<u8, Endpoint>) -> HashSet<Ipv4Addr> {
    seen.values().map(|(address, _)| *address).collect()
}

/// The host that a server's answer reaches.
fn reached(nat: &mut Nat, outside: Endpoint) -> Option<Endpoint> {
    let out = nat.send_outside(&udp((SERVER, 53), outside));
    out.first().filter(|sent| sent.is_to_inside).map(|sent| destination(&sent.packet))
}

#[test]
fn an_address_that_is_added_is_given_to_new_hosts_at_once_and_answers_come_back() {
    let mut nat = Nat::with(Setup { workers: 2, ..Setup::default() });
    let before = forty(&mut nat, 5000);
    assert_eq!(addresses_of(&before), HashSet::from([FIRST]));
    nat.set_addresses(&[FIRST, THIRD]).unwrap();
    for (number, outside) in &before {
        assert_eq!(reached(&mut nat, *outside), Some((host(*number), 5000)), "a flow that there was goes on");
        let next = nat.seen(&udp((host(*number), 6000), (SERVER, 53)));
        assert_eq!(next.0, FIRST, "a host keeps its address (RFC 4787 REQ-2)");
    }
    let mut new = HashSet::new();
    for number in 101..=140 {
        let outside = nat.seen(&udp((host(number), 5000), (SERVER, 53)));
        assert_eq!(reached(&mut nat, outside), Some((host(number), 5000)));
        new.insert(outside.0);
    }
    assert_eq!(new, HashSet::from([FIRST, THIRD]));
}

#[test]
fn an_address_that_was_full_is_not_the_last_word_once_another_is_added() {
    let mut nat = Nat::with(Setup { ports: (2000, 2003), ..Setup::default() });
    for port in 1..=4 {
        nat.seen(&udp((HOST, port), (SERVER, 53)));
    }
    let sent = udp((OTHER_HOST, 1), (SERVER, 53));
    assert!(nat.send_inside(&sent).iter().all(|sent| sent.is_to_inside), "refused");
    nat.set_addresses(&[FIRST, THIRD]).unwrap();
    assert_eq!(nat.seen(&sent).0, THIRD);
}

#[test]
fn flows_of_a_withdrawn_address_go_on_and_nothing_new_is_given_of_it() {
    let mut nat = nat();
    let before = forty(&mut nat, 5000);
    assert_eq!(addresses_of(&before), HashSet::from([FIRST, SECOND_ADDRESS]));
    nat.set_addresses(&[FIRST]).unwrap();
    for _ in 0..3 {
        nat.pass(200 * SECOND);
        for (number, outside) in &before {
            assert_eq!(nat.seen(&udp((host(*number), 5000), (OTHER_SERVER, 53))), *outside, "it goes on");
            assert_eq!(reached(&mut nat, *outside), Some((host(*number), 5000)));
        }
    }
    let after = forty(&mut nat, 6000);
    assert_eq!(addresses_of(&after), HashSet::from([FIRST]), "those that had the other moved, too");
    (101..=120).for_each(|number| assert_eq!(nat.seen(&udp((host(number), 5000), (SERVER, 53))).0, FIRST));
}

#[test]
fn a_host_that_moved_has_one_address_for_all_that_is_new_and_comes_back_to_none() {
    let mut nat = nat();
    let of_second: Vec<u8> = forty(&mut nat, 5000)
        .into_iter()
        .filter_map(|(number, outside)| (outside.0 == SECOND_ADDRESS).then_some(number))
        .collect();
    nat.set_addresses(&[FIRST, THIRD]).unwrap();
    let moved: HashMap<u8, Ipv4Addr> =
        of_second.iter().map(|n| (*n, nat.seen(&udp((host(*n), 6000), (SERVER, 53))).0)).collect();
    assert!(moved.values().all(|address| *address != SECOND_ADDRESS));
    nat.set_addresses(&[FIRST, SECOND_ADDRESS, THIRD]).unwrap();
    for (number, address) in moved {
        for to in [(SERVER, 53), (OTHER_SERVER, 443)] {
            let sent = segment((host(number), 7000), to, tcp::SYN, 1, 0);
            assert_eq!(nat.seen(&sent).0, address, "whatever it sends");
        }
    }
}

#[test]
fn a_withdrawn_address_is_out_of_the_pool_when_its_last_port_has_rested() {
    let mut nat = nat();
    let seen = forty(&mut nat, 5000);
    let (number, old) = seen.iter().find(|(_, outside)| outside.0 == SECOND_ADDRESS).map(|(n, o)| (*n, *o)).unwrap();
    nat.set_addresses(&[FIRST]).unwrap();
    // From inside, what goes there is hairpinned for as long as it is ours.
    let to_it = udp((host(200), 1), old);
    assert_eq!(nat.send_inside(&to_it).iter().map(|sent| destination(&sent.packet)).next(), Some((host(number), 5000)));
    nat.pass(300 * SECOND + SECOND);
    nat.assert_all_free();
    assert_eq!(rows_of(&nat, SECOND_ADDRESS).len(), 6, "its ports rest");
    assert!(rows_of(&nat, SECOND_ADDRESS).iter().all(|is_withdrawn| *is_withdrawn));
    nat.pass(121 * SECOND);
    assert!(rows_of(&nat, SECOND_ADDRESS).is_empty());
    let out = nat.send_inside(&udp((host(201), 1), (SECOND_ADDRESS, old.1)));
    assert!(out.len() == 1 && !out[0].is_to_inside, "it is a server like any");

    // Its number is another's, of which everything is free.
    nat.set_addresses(&[FIRST, THIRD]).unwrap();
    let again = forty(&mut nat, 5000);
    assert_eq!(addresses_of(&again), HashSet::from([FIRST, THIRD]));
    for (number, outside) in again {
        assert_eq!(reached(&mut nat, outside), Some((host(number), 5000)));
    }
    assert_eq!(reached(&mut nat, old), None);
}

/// Whether each row that `show nat ports` has of an address says that it was withdrawn.
fn rows_of(nat: &Nat, address: Ipv4Addr) -> Vec<bool> {
    let filter = NatFilter { outside: Some(address.into()), ..NatFilter::default() };
    let question = NatQuestion { part: NatPart::Ports, filter, after: None, limit: 100 };
    let NatAnswer::Ports(rows) = nat.control.answer_nat(&question, nat.now) else { panic!("another part") };
    rows.iter().map(|row| row.is_withdrawn).collect()
}

#[test]
fn a_host_whose_last_address_is_out_of_the_pool_is_given_another_while_flows_of_an_older_one_go_on() {
    let mut nat = nat();
    let seen = forty(&mut nat, 5000);
    let (number, old) = seen.iter().find(|(_, outside)| outside.0 == SECOND_ADDRESS).map(|(n, o)| (*n, *o)).unwrap();
    nat.set_addresses(&[THIRD]).unwrap();
    assert_eq!(nat.seen(&udp((host(number), 6000), (SERVER, 53))).0, THIRD);
    nat.set_addresses(&[FIRST]).unwrap();
    for _ in 0..5 {
        assert_eq!(nat.seen(&udp((host(number), 5000), (SERVER, 53))), old, "it goes on");
        nat.pass(100 * SECOND);
    }
    assert!(rows_of(&nat, THIRD).is_empty());
    assert_eq!(nat.seen(&udp((host(number), 7000), (SERVER, 53))).0, FIRST);
    assert_eq!(nat.seen(&udp((host(number), 5000), (SERVER, 53))), old);
}

#[test]
fn flows_of_a_withdrawn_address_can_be_ended() {
    let mut nat = nat();
    forty(&mut nat, 5000);
    nat.set_addresses(&[SECOND_ADDRESS]).unwrap();
    let filter = NatFilter { outside: Some(FIRST.into()), ..NatFilter::default() };
    let (cleared, _) = nat.control.clear_nat(&filter, None);
    assert!(cleared > 0);
    nat.settle();
    assert_eq!(nat.bindings(), 40 - cleared);
    assert_eq!(addresses_of(&forty(&mut nat, 5000)), HashSet::from([SECOND_ADDRESS]));
}

#[test]
fn blocks_of_a_withdrawn_address_are_given_back_and_new_ones_are_of_another() {
    let adjust = |nat: &mut NatConfig| nat.port_block = 64;
    let mut nat = Nat::with(Setup { bindings: 1024, addresses: 2, ports: (2000, 2255), adjust, ..Setup::default() });
    let (address, port) = nat.seen(&udp((HOST, 5000), (SERVER, 53)));
    let other = if address == FIRST { SECOND_ADDRESS } else { FIRST };
    nat.set_addresses(&[other]).unwrap();
    // Both ends of both blocks have traffic, and only the old binding is of the old one.
    for inside in 5001..5066 {
        assert_eq!(nat.seen(&udp((HOST, inside), (SERVER, 53))).0, other);
    }
    assert_eq!(nat.seen(&udp((HOST, 5000), (SERVER, 53))), (address, port));
    let question = NatQuestion { part: NatPart::Hosts, filter: NatFilter::default(), after: None, limit: 10 };
    let NatAnswer::Hosts(page) = nat.control.answer_nat(&question, nat.now) else { panic!("another part") };
    assert_eq!((page.rows.len(), page.rows[0].blocks.len(), page.rows[0].bindings), (1, 3, 66));
    nat.pass(301 * SECOND);
    nat.assert_all_free();
    nat.pass(121 * SECOND);
    nat.set_addresses(&[FIRST, SECOND_ADDRESS]).unwrap();
    // Every block of both addresses can be had: eight hosts of 64 ports.
    for number in 1..=8 {
        for inside in 1..=64 {
            nat.seen(&udp((host(number), inside), (SERVER, 53)));
        }
    }
}

#[test]
fn a_forwarded_port_goes_with_its_address() {
    let mut nat = nat();
    let mapping =
        StaticMapping { protocol: ip4::UDP, outside: (SECOND_ADDRESS.into(), 80), inside: (HOST.into(), 8080) };
    nat.set_mappings(vec![mapping]);
    assert_eq!(reached(&mut nat, (SECOND_ADDRESS, 80)), Some((HOST, 8080)));
    nat.file.mappings.clear();
    nat.set_addresses(&[FIRST]).unwrap();
    nat.pass(2 * SECOND);
    assert_eq!((nat.bindings(), rows_of(&nat, SECOND_ADDRESS).len()), (0, 0), "nothing kept it");
    assert_eq!(reached(&mut nat, (SECOND_ADDRESS, 80)), None);
}

#[test]
fn a_forwarded_port_may_be_of_an_address_that_is_new() {
    let mut nat = nat();
    nat.file.mappings =
        vec![StaticMapping { protocol: ip4::UDP, outside: (THIRD.into(), 80), inside: (HOST.into(), 8080) }];
    nat.set_addresses(&[FIRST, SECOND_ADDRESS, THIRD]).unwrap();
    assert_eq!(reached(&mut nat, (THIRD, 80)), Some((HOST, 8080)));
}

#[test]
fn addresses_of_ipv6_come_and_go_in_the_same_way() {
    let outside6 = |number| Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, number);
    let server6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    let mut nat = Nat::adjusted(|nat| {
        let OutsideAddress { first, last, .. } = nat.addresses[0];
        let outside =
            |number| OutsideAddress6 { address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, number), first, last };
        nat.addresses6 = vec![outside(1), outside(2)];
    });
    let pool = |nat: &mut Nat, numbers: &[u16]| {
        let known = nat.file.addresses6[0];
        let named = numbers.iter().map(|number| OutsideAddress6 { address: outside6(*number), ..known });
        nat.file.addresses6 = named.collect();
        nat.reload();
    };
    let seen = |nat: &mut Nat, host: u16, port| {
        let from = (Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host), port);
        let out = nat.send_inside(&udp6_packet(from, (server6, 53), b"x"));
        let header = ip6::parse(&out[0].packet).unwrap();
        let outside = (header.source, read_u16(&out[0].packet, header.header_length + udp::SOURCE));
        let back = nat.send_outside(&udp6_packet((server6, 53), outside, b"x"));
        let header = ip6::parse(&back[0].packet).unwrap();
        let to = (header.destination, read_u16(&back[0].packet, header.header_length + udp::DESTINATION));
        assert_eq!((back[0].is_to_inside, to), (true, from), "the answer finds its host");
        outside
    };
    let before: Vec<_> = (1..=30).map(|host| seen(&mut nat, host, 5000)).collect();
    pool(&mut nat, &[1, 3]);
    for (host, outside) in (1..).zip(&before) {
        assert_eq!(seen(&mut nat, host, 5000), *outside, "it goes on");
        assert_ne!(seen(&mut nat, host, 6000).0, outside6(2), "and nothing new is of the second");
    }
    assert!((31..=60).any(|host| seen(&mut nat, host, 5000).0 == outside6(3)));
    nat.pass(422 * SECOND);
    pool(&mut nat, &[1, 4]);
    assert_eq!(nat.control.nat_ports(&NatFilter { outside: Some(outside6(2).into()), ..NatFilter::default() }), []);
    assert!((61..=90).any(|host| seen(&mut nat, host, 5000).0 == outside6(4)), "which has the number of the second");
}

#[test]
fn a_pool_that_cannot_be_is_refused_whole() {
    let mut nat = nat();
    let before = forty(&mut nat, 5000);
    let other = OutsideAddress { address: SECOND_ADDRESS, first: 9000, last: 9001 };
    let file = Gateway { addresses: vec![other], ..nat.file.clone() };
    let said = nat.control.set_gateway(file, nat.now).unwrap_err().to_string();
    assert!(said.starts_with("gateway.ports: 192.0.2.77 has the ports 1024-65535 until"), "{said}");
    let all: Vec<Ipv4Addr> = (0..129).map(|number| Ipv4Addr::new(203, 0, 113, number)).collect();
    let said = nat.set_addresses(&all).unwrap_err();
    assert!(said.starts_with("gateway.addresses: 203.0.113.126 is one too many"), "{said}");
    assert_eq!(addresses_of(&forty(&mut nat, 6000)), addresses_of(&before), "nothing was reloaded");
}

#[test]
fn what_went_to_an_address_that_is_ours_now_goes_there_no_more() {
    let mut nat = nat();
    let sent = udp((HOST, 5000), (THIRD, 53));
    for _ in 0..3 {
        nat.seen(&sent);
    }
    nat.pass(SECOND);
    nat.set_addresses(&[FIRST, SECOND_ADDRESS, THIRD]).unwrap();
    assert!(nat.send_inside(&sent).is_empty(), "nobody has that port of it");
    nat.pass(SECOND);
    assert!(nat.send_inside(&sent).is_empty());
}

#[test]
fn addresses_change_at_random_and_every_answer_finds_its_host() {
    let mut nat = Nat::with(Setup { workers: 2, bindings: 4096, ..Setup::default() });
    let pool: Vec<Ipv4Addr> = [FIRST].into_iter().chain((100..110).map(|n| Ipv4Addr::new(192, 0, 2, n))).collect();
    let mut draws = Draws(0x2545_f491_4f6c_dd1d);
    let mut random = |below| draws.below(below);
    let mut live: HashMap<Endpoint, (Endpoint, Nanos)> = HashMap::new();
    let mut given = vec![FIRST];
    for _ in 0..3000 {
        match random(20) {
            0 => {
                given = pool.iter().copied().filter(|_| random(3) > 0).collect();
                if given.is_empty() {
                    given.push(pool[random(11) as usize]);
                }
                nat.set_addresses(&given).unwrap();
            }
            1 => drop(nat.pass(random(100) * SECOND)),
            _ => {
                let inside = (host(random(60) as u8), 1000 + random(20) as u16);
                let outside = nat.seen(&udp(inside, (SERVER, 53)));
                let now = nat.now;
                match live.get(&inside) {
                    Some((known, since)) if now < since + 299 * SECOND => assert_eq!(outside, *known),
                    Some((known, _)) if outside == *known => {}
                    _ => assert!(given.contains(&outside.0), "{} is not given any more", outside.0),
                }
                assert_eq!(reached(&mut nat, outside), Some(inside));
                live.insert(inside, (outside, now));
            }
        }
    }
    nat.pass(301 * SECOND);
    nat.assert_all_free();
    nat.set_addresses(&[FIRST]).unwrap();
    nat.pass(122 * SECOND);
    assert!(pool[1..].iter().all(|address| rows_of(&nat, *address).is_empty()), "only its own is left");
}

/// What `flow` is translated to, and that the answer finds it.
fn asks_and_is_answered(nat: &mut Nat, inside: Endpoint, server: Endpoint) -> Endpoint {
    let outside = nat.seen(&udp(inside, server));
    let out = nat.send_outside(&udp(server, outside));
    assert_eq!(
        out.iter().map(|sent| (sent.is_to_inside, destination(&sent.packet))).collect::<Vec<_>>(),
        [(true, inside)]
    );
    outside
}

#[test]
fn addresses_and_forwarded_ports_change_together_at_random_and_all_that_there_is_finds_its_host() {
    let setups: [fn() -> Setup; 4] = [
        || Setup { workers: 3, bindings: 4096, adjust: |nat| nat.is_endpoint_dependent = true, ..Setup::default() },
        || Setup { workers: 2, bindings: 4096, adjust: |nat| nat.port_block = 64, ..Setup::default() },
        || Setup {
            bindings: 4096,
            ports: (2000, 2063),
            adjust: |nat| nat.is_endpoint_dependent = true,
            ..Setup::default()
        },
        || Setup { workers: 3, bindings: 4096, ports: (5000, 5999), ..Setup::default() },
    ];
    let pool: Vec<Ipv4Addr> = [FIRST].into_iter().chain((100..106).map(|n| Ipv4Addr::new(192, 0, 2, n))).collect();
    let servers = [(SERVER, 53), (SERVER, 54), (OTHER_SERVER, 53)];
    for (number, setup) in (1..).zip(setups) {
        let mut nat = Nat::with(setup());
        let mut draws = Draws(0x2545_f491_4f6c_dd1d * number);
        let mut random = |below: usize| draws.below(below as u64) as usize;
        let mut live: HashMap<(Endpoint, Endpoint), (Endpoint, Nanos)> = HashMap::new();
        let mut given = vec![FIRST];
        for _ in 0..1000 {
            match random(20) {
                0 | 1 => {
                    given = pool.iter().copied().filter(|_| random(3) > 0).collect();
                    if given.is_empty() {
                        given.push(pool[random(pool.len())]);
                    }
                    let mapping = |n: u8, outside: Ipv4Addr| StaticMapping {
                        protocol: ip4::UDP,
                        outside: (outside.into(), 80 + u16::from(n) % 4),
                        inside: (host(n).into(), 8080),
                    };
                    let mut mappings: Vec<StaticMapping> = Vec::new();
                    for n in 0..12 {
                        let new = mapping(n, given[random(given.len())]);
                        if random(2) == 0 && mappings.iter().all(|known| known.place() != new.place()) {
                            mappings.push(new);
                        }
                    }
                    nat.file.mappings = in_order(mappings);
                    nat.set_addresses(&given).unwrap();
                }
                2 => drop(nat.pass(random(100) as u64 * SECOND)),
                3 => {
                    for (outside, port) in pool.iter().flat_map(|address| (80..84).map(move |port| (*address, port))) {
                        let leads = |mapping: &&StaticMapping| mapping.outside == (outside.into(), port);
                        let host = nat.file.mappings.iter().find(leads).map(|mapping| mapping.inside);
                        let got = reached(&mut nat, (outside, port)).map(|(host, port)| (host.into(), port));
                        assert_eq!(got, host, "{outside}:{port}");
                    }
                    for mapping in nat.file.mappings.clone() {
                        let (IpAddr::V4(inside), IpAddr::V4(outside)) = (mapping.inside.0, mapping.outside.0) else {
                            unreachable!("of IPv4")
                        };
                        let seen = asks_and_is_answered(&mut nat, (inside, 8080), servers[random(3)]);
                        assert_eq!(seen, (outside, mapping.outside.1));
                    }
                }
                _ => {
                    let (inside, server) = ((host(random(40) as u8), 1000 + random(3) as u16), servers[random(3)]);
                    let outside = asks_and_is_answered(&mut nat, inside, server);
                    let now = nat.now;
                    match live.get(&(inside, server)) {
                        Some((known, since)) if now < since + 299 * SECOND => assert_eq!(outside, *known),
                        Some((known, _)) if outside == *known => {}
                        // Without endpoint dependence it may be that of a flow to another server.
                        _ if live.iter().any(|((other, _), known)| *other == inside && known.0 == outside) => {}
                        _ => assert!(given.contains(&outside.0), "{} is not given any more", outside.0),
                    }
                    live.insert((inside, server), (outside, now));
                }
            }
        }
        nat.file.mappings.clear();
        nat.set_addresses(&[FIRST]).unwrap();
        nat.pass(301 * SECOND);
        nat.assert_all_free();
        nat.pass(122 * SECOND);
        assert!(pool[1..].iter().all(|address| rows_of(&nat, *address).is_empty()), "only its own is left");
    }
}
