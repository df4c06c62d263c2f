//! Bugs that other NATs shipped, each as a test that it is not here; and what VigNAT (Zaostrovnykh et al., SIGCOMM 2017)
//! proved of itself.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::{
    control::show_nat::{FlowView, NatFilter, NatPart, NatQuestion},
    dataplane::testing::{icmp_packet, packet, udp_packet},
};

const GRE: u8 = 47;
const IPIP: u8 = 4;

fn question(port: u16) -> Vec<u8> {
    udp_packet((HOST, port), (SERVER, 53), b"question")
}

/// A packet of each protocol as a host sends it.
fn of_each(host: Ipv4Addr, port: u16) -> [Vec<u8>; 3] {
    [
        udp_packet((host, port), (SERVER, 53), b"question"),
        segment((host, port), (SERVER, 80), tcp::SYN, 1, 0),
        echo(icmp::ECHO_REQUEST, host, SERVER, port),
    ]
}

/// An answer to a packet that a server saw.
fn answer(seen: &[u8]) -> Vec<u8> {
    let (from, to) = (source(seen), destination(seen));
    match seen[ip4::PROTOCOL] {
        ip4::UDP => udp_packet(to, from, b"answer"),
        ip4::TCP => segment(to, from, tcp::SYN | tcp::ACK, 9, 2),
        _ => echo(icmp::ECHO_REPLY, to.0, from.0, from.1),
    }
}

/// All flows, page by page, the gateway doing `meanwhile` between two.
fn listed(nat: &mut Nat, limit: usize, mut meanwhile: impl FnMut(&mut Nat)) -> Vec<FlowView> {
    let mut question = NatQuestion { part: NatPart::Flows, filter: NatFilter::default(), after: None, limit };
    let mut rows = Vec::new();
    loop {
        let page = nat.control.nat_flows(&question, nat.now);
        rows.extend(page.rows);
        question.after = page.next;
        if question.after.is_none() {
            return rows;
        }
        meanwhile(nat);
    }
}

/// The table as it can be told from outside, counters included.
fn table(nat: &mut Nat) -> String {
    format!("{:?}", listed(nat, 1000, |_| ()))
}

#[test]
fn an_icmp_error_that_quotes_gre_or_ipip_crashes_nothing() {
    let mut nat = Nat::new();
    let (_, port) = nat.seen(&question(5000));
    let before = table(&mut nat);
    let inner = udp_packet((OUTSIDE[0], port), (SERVER, 53), b"question");
    for protocol in [GRE, IPIP] {
        for length in 0..=20 + inner.len() {
            // Whose bytes look like a flow that there is.
            for contents in [inner.clone(), inner[20..].to_vec(), vec![0; inner.len()], vec![0xff; inner.len()]] {
                let from_us = packet(OUTSIDE[0], SERVER, protocol, &contents);
                let cut = &from_us[..length.min(from_us.len())];
                assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 2, [0; 4], cut)));
                let to_host = packet(SERVER, HOST, protocol, &contents);
                let cut = &to_host[..length.min(to_host.len())];
                assert_eq!(nat.send_inside(&error(HOST, SERVER, icmp::UNREACHABLE, 2, [0; 4], cut)), []);
            }
        }
    }
    assert_eq!(table(&mut nat), before);
    assert_eq!(nat.seen(&question(5000)), (OUTSIDE[0], port), "and it goes on");
}

#[test]
fn running_out_of_ports_crashes_nothing_and_forwards_nothing_untranslated() {
    for workers in [1, 2] {
        let adjust = |nat: &mut NatConfig| nat.keeps_parity = false;
        let mut nat = Nat::with(Setup { workers, ports: (2000, 2007), adjust, ..Setup::default() });
        let mut got = HashSet::new();
        for round in 0..10 {
            let mut refused = 0;
            for host in 2..7 {
                for port in 5000..5006 {
                    for sent in of_each(Ipv4Addr::new(10, 0, 0, host), port) {
                        let out = nat.send_inside(&sent);
                        let [Sent { is_to_inside, packet }] = &out[..] else { panic!("{out:02x?}") };
                        if *is_to_inside {
                            assert_eq!(packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PROHIBITED]);
                            refused += 1;
                        } else {
                            assert!(OUTSIDE.contains(&source(packet).0), "untranslated: {packet:02x?}");
                            got.insert((sent[ip4::PROTOCOL], source(packet)));
                        }
                    }
                }
                nat.pass(TICK);
            }
            assert!(refused >= 5 * 6 * 3 - 3 * 8, "round {round}: {refused}");
            // Fragments find none, either.
            let big = udp_packet((OTHER_HOST, 9000), (SERVER, 53), &[7; 2000]);
            let out: Vec<Sent> = fragments(&big, 800, round).iter().flat_map(|part| nat.send_inside(part)).collect();
            assert!(out.iter().all(|sent| sent.is_to_inside), "{out:02x?}");
            nat.pass(13 * SECOND);
        }
        assert!((3..=24).contains(&got.len()), "{got:?}");
        nat.pass(400 * SECOND);
        nat.assert_all_free();
        nat.pass(121 * SECOND);
        nat.seen(&question(5000));
    }
}

#[test]
fn hairpinned_icmp_reaches_the_host_it_is_for() {
    // From the host itself, and from a router between the two hosts.
    for (workers, from) in
        [(1, OTHER_HOST), (3, OTHER_HOST), (1, Ipv4Addr::new(10, 9, 9, 9)), (3, [10, 9, 9, 9].into())]
    {
        let mut nat = Nat::with(Setup { workers, ..Setup::default() });
        for (number, [sent, other]) in [
            [question(5000), udp_packet((OTHER_HOST, 6000), (SERVER, 53), b"question")],
            [
                segment((HOST, 5000), (SERVER, 80), tcp::SYN, 1, 0),
                segment((OTHER_HOST, 6000), (SERVER, 80), tcp::SYN, 1, 0),
            ],
        ]
        .into_iter()
        .enumerate()
        {
            let (one, other) = (nat.seen(&sent), nat.seen(&other));
            let hairpin = match number {
                0 => udp_packet((HOST, 5000), other, b"hello"),
                _ => segment((HOST, 5000), other, tcp::SYN, 1, 0),
            };
            let heard = nat.send_inside(&hairpin).remove(0).packet;
            assert_eq!((source(&heard), destination(&heard)), (one, (OTHER_HOST, 6000)));
            for (kind, code) in [(icmp::UNREACHABLE, icmp::CODE_PORT), (icmp::TIME_EXCEEDED, 0)] {
                let out = nat.send_inside(&error(from, one.0, kind, code, [0; 4], &heard));
                let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("{out:02x?}") };
                let header = ip4::parse(packet).unwrap();
                assert_eq!((header.source, header.destination), (OUTSIDE[0], HOST));
                let mut expected = hairpin.clone();
                ip4::decrement_ttl(&mut expected);
                assert_eq!((&packet[20..22], &packet[28..]), (&[kind, code][..], &expected[..]));
            }
        }
        // A query turns round nowhere: whom it would be for cannot be told.
        let outside = nat.seen(&echo(icmp::ECHO_REQUEST, HOST, SERVER, 7));
        assert_eq!(nat.send_inside(&echo(icmp::ECHO_REQUEST, OTHER_HOST, outside.0, outside.1)), []);
        assert_eq!(nat.send_inside(&echo(icmp::ECHO_REPLY, OTHER_HOST, outside.0, outside.1)), []);
    }
}

#[test]
fn no_session_is_leaked_however_it_ends() {
    let mut nat = Nat::adjusted(|nat| nat.bindings_a_host = 40);
    for round in 0..3u32 {
        for port in 5000..5020 {
            for sent in of_each(HOST, port) {
                // Cut off at any time: no answer, an answer, a reset, an error.
                let out = nat.send_inside(&sent);
                let Some(seen) = out.iter().find(|sent| !sent.is_to_inside).map(|sent| sent.packet.clone()) else {
                    continue;
                };
                if port % 4 > 0 {
                    nat.send_outside(&answer(&seen));
                }
                if port % 4 > 1 {
                    nat.send_outside(&error(ROUTER, source(&seen).0, icmp::UNREACHABLE, 1, [0; 4], &seen));
                }
                if port % 4 > 2 && sent[ip4::PROTOCOL] == ip4::TCP {
                    nat.send_inside(&segment((HOST, port), (SERVER, 80), tcp::RST, 2, 0));
                }
            }
            nat.pass(TICK);
        }
        assert_ne!(nat.dropped(Reason::HostLimit), 0, "round {round}: some found no room");
        nat.pass(400 * SECOND);
        nat.assert_all_free();
    }
    assert_eq!(nat.control.nat_summary()[0].hosts, 0);
}

#[test]
fn no_live_session_is_killed_by_ageing() {
    let mut nat = Nat::with(Setup { workers: 2, ..Setup::default() });
    let connection = super::rfc5382::connect(&mut nat, (HOST, 4000), (SERVER, 80));
    let seen: Vec<Endpoint> = (5000..5020).map(|port| nat.seen(&question(port))).collect();
    // Each speaks at its own time, the last of them just in time, while thousands of others come and are aged.
    for second in 0..1200u16 {
        nat.pass(SECOND);
        for (port, outside) in (5000..5020).zip(&seen) {
            if second % (port - 5000 + 280) == 0 {
                assert_eq!(nat.seen(&question(port)), *outside, "after {second} s");
            }
        }
        nat.seen(&echo(icmp::ECHO_REQUEST, OTHER_HOST, SERVER, second));
        nat.seen(&segment((OTHER_HOST, 5000 + second % 100), (SERVER, 80), tcp::SYN, 1, 0));
    }
    assert!(nat.is_let_in(&segment((SERVER, 80), connection, tcp::ACK, super::rfc5382::S + 1, super::rfc5382::C + 1)));
    for (port, outside) in (5000..5020).zip(seen) {
        assert!(nat.is_let_in(&udp_packet((SERVER, 53), outside, b"still there")), "port {port}");
    }
}

#[test]
fn a_flow_does_not_stick_to_a_next_hop_that_is_gone() {
    let (one, other) = (Ipv4Addr::new(192, 0, 2, 251), Ipv4Addr::new(192, 0, 2, 252));
    let mut nat = Nat::new();
    nat.route_by(one);
    let seen = nat.seen(&question(5000));
    assert_eq!(nat.next_hop, mac_of(one.into()));
    nat.route_by(other);
    assert_eq!(nat.seen(&question(5000)), seen, "the same flow");
    assert_eq!(nat.next_hop, mac_of(other.into()), "by the other way");
    // The next hop's address moves to another machine.
    let moved = [2, 0, 0, 0, 7, 7];
    nat.control.on_kernel(
        KernelEvent::NeighbourUp { interface: OUTSIDE_INTERFACE, address: other.into(), mac: moved },
        nat.now,
    );
    nat.settle();
    assert_eq!(nat.seen(&question(5000)), seen);
    assert_eq!(nat.next_hop, moved);
}

#[test]
fn an_answer_finds_its_host_whatever_queue_it_comes_in_by() {
    let workers = 4;
    let mut nat = Nat::with(Setup { workers, ..Setup::default() });
    for port in 5000..5030 {
        for sent in of_each(HOST, port) {
            let inward = usize::from(port % u16::from(workers));
            let out = nat.send_inside_by(inward, &sent);
            let [Sent { is_to_inside: false, packet: seen }] = &out[..] else { panic!("{out:02x?}") };
            for queue in 0..usize::from(workers) {
                let out = nat.send_outside_by(queue, &answer(seen));
                let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("queue {queue}: {out:02x?}") };
                assert_eq!(destination(packet), (HOST, port));
                let told = error(ROUTER, source(seen).0, icmp::TIME_EXCEEDED, 0, [0; 4], &seen[..28]);
                let out = nat.send_outside_by(queue, &told);
                let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("queue {queue}: {out:02x?}") };
                assert_eq!(packet[16..20], HOST.octets());
            }
        }
    }
    // Fragments of one answer, each by another queue.
    let outside = nat.seen(&question(5000));
    let big = udp_packet((SERVER, 53), outside, &[7; 2000]);
    let parts = fragments(&big, 600, 77);
    let out: Vec<Sent> = parts
        .iter()
        .enumerate()
        .flat_map(|(queue, part)| nat.send_outside_by(queue % usize::from(workers), part))
        .collect();
    assert_eq!((out.len(), destination(&reassembled(&out))), (parts.len(), (HOST, 5000)));
}

#[test]
fn a_listing_ends_and_misses_nobody_while_flows_come_and_go() {
    let mut nat = Nat::with(Setup { workers: 2, bindings: 4096, ..Setup::default() });
    let steady: HashSet<u16> = (5000..5100).collect();
    for port in &steady {
        nat.seen(&question(*port));
    }
    let mut next = 0u16;
    let mut pages = 0;
    let rows = listed(&mut nat, 16, |nat| {
        // More come than are on a page, and those of before end.
        for _ in 0..50 {
            nat.seen(&echo(icmp::ECHO_REQUEST, OTHER_HOST, SERVER, next));
            next = next.wrapping_add(1);
        }
        nat.pass(2 * SECOND);
        pages += 1;
        assert!(pages < 1000, "it ends");
    });
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.inside.ip() == HOST) {
        *seen.entry(row.inside.port()).or_default() += 1;
    }
    assert_eq!(seen.len(), steady.len());
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[test]
fn an_error_with_eight_bytes_of_tcp_is_read_as_no_more_than_that() {
    let mut nat = Nat::new();
    let outside = super::rfc5382::connect(&mut nat, (HOST, 5000), (SERVER, 80));
    let sent = segment((HOST, 5000), (SERVER, 80), tcp::RST | tcp::FIN, 77, 88);
    let seen = segment(outside, (SERVER, 80), tcp::RST | tcp::FIN, 77, 88);
    let before = listed(&mut nat, 10, |_| ()).remove(0).state;
    // With padding behind it, as of a short Ethernet frame, or without.
    for length in 28..=40 {
        let told = error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &seen[..length]);
        let out = nat.send_outside(&told);
        let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("{length}: {out:02x?}") };
        let end = 28 + length.min(36);
        assert_eq!((packet.len(), &packet[28 + 12..end]), (28 + length, &sent[12..length.min(36)]), "{length}");
    }
    assert_eq!(listed(&mut nat, 10, |_| ()).remove(0).state, before, "flags that are quoted were not sent");
    nat.pass(3600 * SECOND);
    assert!(nat.is_let_in(&segment((SERVER, 80), outside, tcp::ACK, super::rfc5382::S + 1, super::rfc5382::C + 1)));
}

#[test]
fn vignat_a_known_flow_is_rewritten_exactly_and_nothing_else_changes() {
    let mut nat = Nat::new();
    for sent in of_each(HOST, 5000) {
        let seen = nat.send_inside(&sent).remove(0).packet;
        let differ = |a: &[u8], b: &[u8]| (0..a.len()).filter(|at| a[*at] != b[*at]).collect::<Vec<_>>();
        let (port, checksum) = match sent[ip4::PROTOCOL] {
            ip4::UDP => (20..22, 26..28),
            ip4::TCP => (20..22, 36..38),
            _ => (24..26, 22..24),
        };
        let may_change = |at: &usize| matches!(*at, 8 | 10..=15) || port.contains(at) || checksum.contains(at);
        assert_eq!(seen.len(), sent.len());
        assert!(differ(&sent, &seen).iter().all(may_change), "{:?}", differ(&sent, &seen));
        let back = answer(&seen);
        let got = nat.send_outside(&back).remove(0).packet;
        let port = if sent[ip4::PROTOCOL] == ip4::ICMP { 24..26 } else { 22..24 };
        let may_change =
            |at: &usize| matches!(*at, 8 | 10 | 11 | 16..=19) || port.contains(at) || checksum.contains(at);
        assert!(differ(&back, &got).iter().all(may_change), "{:?}", differ(&back, &got));
        assert_eq!(destination(&got), (HOST, 5000));
    }
}

#[test]
fn vignat_an_unknown_outside_packet_is_dropped_and_the_table_unchanged() {
    let mut nat = Nat::new();
    let known: HashSet<u16> = of_each(HOST, 5000).iter().map(|sent| nat.seen(sent).1).collect();
    let before = table(&mut nat);
    for port in (0..=u16::MAX).step_by(7).filter(|port| !known.contains(port)) {
        for unknown in [
            udp_packet((SERVER, 53), (OUTSIDE[0], port), b"knock"),
            segment((SERVER, 80), (OUTSIDE[0], port), tcp::ACK, 1, 2),
            echo(icmp::ECHO_REPLY, SERVER, OUTSIDE[0], port),
        ] {
            assert_eq!(nat.send_outside(&unknown), [], "port {port}");
        }
    }
    assert_eq!(table(&mut nat), before);
}

#[test]
fn vignat_at_a_full_table_the_packet_is_dropped_and_the_table_unchanged() {
    let mut nat = Nat::with(Setup { bindings: 9, ..Setup::default() });
    for port in 5000..5003 {
        for sent in of_each(HOST, port) {
            nat.seen(&sent);
        }
    }
    let before = table(&mut nat);
    for port in 6000..6030 {
        for sent in of_each(OTHER_HOST, port) {
            assert!(nat.send_inside(&sent).iter().all(|sent| sent.is_to_inside));
        }
    }
    assert_eq!(table(&mut nat), before);
    assert_eq!(nat.dropped(Reason::TableFull), 90);
}

#[test]
fn vignat_no_packet_crashes_it() {
    let mut nat = Nat::new();
    let seen: Vec<Vec<u8>> = of_each(HOST, 5000).iter().map(|sent| nat.send_inside(sent).remove(0).packet).collect();
    let mut corpus = of_each(HOST, 5000).to_vec();
    corpus.extend(seen.iter().map(|seen| answer(seen)));
    corpus.extend(seen.iter().map(|seen| error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 4, [0, 0, 5, 0], seen)));
    corpus.push(icmp_packet(HOST, SERVER, icmp::UNREACHABLE, 3, &[&[0; 4], &answer(&seen[0])[..]].concat()));
    corpus.extend(fragments(&udp_packet((HOST, 5000), (SERVER, 53), &[7; 1200]), 600, 5));
    for packet in corpus {
        for length in (20..=packet.len()).rev().step_by(5) {
            for at in (0..length.min(80)).step_by(3) {
                for value in [0, 0xff, packet[at] ^ 1] {
                    let mut broken = packet[..length].to_vec();
                    broken[at] = value;
                    if at != 2 && at != 3 {
                        write(&mut broken, ip4::TOTAL_LENGTH, &(length as u16).to_be_bytes());
                    }
                    // Some of the headers are valid, so that what is behind them is read.
                    if at % 2 == 0 && length >= usize::from(broken[0] & 0xf) * 4 {
                        mend(&mut broken);
                    }
                    nat.put(INSIDE_INTERFACE, &broken);
                    nat.put(OUTSIDE_INTERFACE, &broken);
                }
            }
            nat.settle_unchecked();
        }
        nat.pass(TICK);
    }
    nat.pass(8000 * SECOND);
    nat.assert_all_free();
}
