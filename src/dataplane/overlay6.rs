//! Tests: a client of the overlay that speaks IPv6, at its exit. What a host of the gateway has in common with it is tested at
//! the nodes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    command::{Command, Event, Flow6, PuntCause},
    conntrack::{CtIndex, SourcePorts},
    nat::{NatConfig, Owner, Prefix64, Translation},
    testing::*,
    testing6::*,
};
use crate::{
    dataplane::conntrack::{FanInit, Link, NO_BINDING, Role},
    wire::{
        icmp, icmp6, ip4, ip6, read_u16, read_u32,
        relay::Kind,
        tcp::{self, SYN},
        write,
    },
};

const OWNER: u32 = 3;
const ROUTER_OF_CLIENTS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The client's packets at the exit, each with a sequence number of its own.
struct Exit {
    bench: Bench,
    sequence: u64,
}

impl Exit {
    fn new(change: impl FnOnce(&mut NatConfig)) -> Self {
        Self { bench: Bench::exit6(change), sequence: 0 }
    }

    fn bind(&mut self, translation: Translation, protocol: u8, inside: u16, outside: u16) {
        self.bench.bind6_for(Owner::session(OWNER), translation, protocol, inside, outside);
    }

    fn frame(&mut self, inner: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        Relayed::up(OWNER, self.sequence, inner.to_vec()).frame()
    }

    /// What leaves for a server when the client sends this.
    fn up(&mut self, inner: &[u8]) -> Vec<u8> {
        let frame = self.frame(inner);
        let out = self.bench.run(&[frame]);
        assert_eq!((self.bench.moved(), out.len()), (vec![], 1));
        let ip = out[0][14..].to_vec();
        assert!(if ip[0] >> 4 == 6 { has_valid_checksums6(&ip) } else { has_valid_checksums(&ip) });
        ip
    }

    /// What the client is sent when this packet is there.
    fn down(&mut self, packet: Vec<u8>) -> Vec<u8> {
        let out = self.bench.run(&[packet]);
        assert_eq!((self.bench.moved(), out.len()), (vec![], 1));
        to_client(&out[0])
    }

    /// What the client is told when it sends this.
    fn told(&mut self, inner: &[u8]) -> Vec<u8> {
        let frame = self.frame(inner);
        self.down(frame)
    }

    fn expect_drop(&mut self, inner: &[u8], counter: &str) {
        let frame = self.frame(inner);
        self.bench.expect_drop(frame, counter);
    }
}

fn sent_inner(frame: &[u8]) -> Vec<u8> {
    sent(frame, &UP_KEY).inner
}

fn to_client(frame: &[u8]) -> Vec<u8> {
    let got = sent(frame, &UP_KEY);
    assert!(got.is_authentic && has_valid_checksums6(&got.inner));
    assert_eq!((got.header.kind, got.to.0), (Kind::DataDown, UPSTREAM));
    got.inner
}

fn name(address: Ipv4Addr) -> Ipv6Addr {
    Prefix64::WELL_KNOWN.embed(address)
}

fn passed_router(mut packet: Vec<u8>) -> Vec<u8> {
    packet[ip6::HOP_LIMIT] -= 1;
    packet
}

#[test]
fn a_clients_flow_is_rewritten_exactly_both_ways_and_nothing_else_changes() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
    let got = exit.up(&udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question"));
    assert_eq!(got, passed_router(udp6_packet((US6, PORT6), (SERVER6, 53), b"question")));
    let got = exit.down(frame6(&udp6_packet((SERVER6, 53), (US6, PORT6), b"answer")));
    assert_eq!(got, passed_router(udp6_packet((SERVER6, 53), (INSIDE6, 1000), b"answer")));
}

#[test]
fn pings_and_errors_about_its_packets_reach_the_client() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat66, ip4::ICMP, 7, PORT6);
    let got = exit.up(&icmp6_packet(INSIDE6, SERVER6, icmp6::ECHO_REQUEST, 0, &[0, 7, 0, 1]));
    assert_eq!(read_u16(&got, 40 + icmp::IDENTIFIER), PORT6);
    let [high, low] = PORT6.to_be_bytes();
    let got = exit.down(frame6(&icmp6_packet(SERVER6, US6, icmp6::ECHO_REPLY, 0, &[high, low, 0, 1])));
    assert_eq!((got[40], read_u16(&got, 40 + icmp::IDENTIFIER)), (icmp6::ECHO_REPLY, 7));
    exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
    let quoted = udp6_packet((US6, PORT6), (SERVER6, 33_434), b"traceroute");
    for (kind, code, word) in [
        (icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4]),
        (icmp6::PACKET_TOO_BIG, 0, [0, 0, 5, 0x14]),
        (icmp6::TIME_EXCEEDED, 0, [0; 4]),
    ] {
        let got = exit.down(frame6(&error6_packet(ROUTER6, US6, kind, code, word, &quoted)));
        let header = ip6::parse(&got).unwrap();
        assert_eq!((header.source, header.destination), (ROUTER6, INSIDE6), "the router is seen as itself");
        assert_eq!((got[40], got[41], &got[44..48]), (kind, code, &word[..]));
        assert_eq!(got[48..], udp6_packet((INSIDE6, 1000), (SERVER6, 33_434), b"traceroute"));
    }
}

#[test]
fn the_exit_tells_the_client_what_it_cannot_send_on() {
    let mut exit = Exit::new(|_| {});
    let mut late = udp6_packet((INSIDE6, 1000), (SERVER6, 33_434), b"traceroute");
    late[ip6::HOP_LIMIT] = 1;
    let lost = udp6_packet((INSIDE6, 1000), ("2a00::1".parse().unwrap(), 53), b"nowhere");
    for (packet, kind, code) in [(late, icmp6::TIME_EXCEEDED, 0), (lost, icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE)] {
        let got = exit.told(&packet);
        let header = ip6::parse(&got).unwrap();
        assert_eq!((header.source, header.destination), (US6, INSIDE6));
        assert_eq!((got[40], got[41], &got[48..]), (kind, code, &packet[..]));
    }
    exit.bench.change_forwarding(|forwarding| forwarding.interfaces[0].mtu = 1340);
    while exit.bench.events.pop().is_ok() {}
    let got = exit.told(&udp6_packet((INSIDE6, 1000), (SERVER6, 53), &[7; 1300]));
    assert_eq!((got[40], read_u32(&got, 44), got.len()), (icmp6::PACKET_TOO_BIG, 1340, 1280));
}

#[test]
fn an_exit_without_ipv6_says_so_at_once() {
    let mut exit = Exit::new(|nat| {
        nat.addresses6.clear();
        nat.nat64 = None;
    });
    for to in [SERVER6, name(SERVER)] {
        let got = exit.told(&udp6_packet((INSIDE6, 1000), (to, 53), b"x"));
        let header = ip6::parse(&got).unwrap();
        assert_eq!((header.source, header.destination), (ROUTER_OF_CLIENTS, INSIDE6));
        assert_eq!((got[40], got[41]), (icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE));
    }
    assert!(exit.bench.events.pop().is_err(), "the control core is not asked");
}

#[test]
fn policy_is_checked_before_anything_is_allocated() {
    let mut exit = Exit::new(|_| {});
    let udp = |from, to| udp6_packet((from, 1), (to, 53), b"x");
    exit.expect_drop(&udp(INSIDE6, NEIGHBOUR6), "nat6_in2out.drop.denied");
    exit.expect_drop(&udp(INSIDE6, US6), "nat6_in2out.drop.denied");
    exit.expect_drop(&udp(INSIDE6, name(PRIVATE)), "nat6_in2out.drop.denied");
    exit.expect_drop(&udp(INSIDE6, name(US)), "nat6_in2out.drop.denied");
    exit.expect_drop(&udp(SERVER6, SERVER6), "nat6_in2out.drop.not_inside");
    exit.expect_drop(&udp(Ipv6Addr::UNSPECIFIED, SERVER6), "nat6_in2out.drop.not_inside");
    for to in [SERVER6, name(SERVER)] {
        exit.expect_drop(&tcp6_packet((INSIDE6, 1), (to, 25), SYN, &[]), "nat6_in2out.drop.denied");
        exit.expect_drop(&tcp6_packet((INSIDE6, 1), (to, 80), tcp::ACK, &[]), "nat6_in2out.drop.not_syn");
    }
    exit.expect_drop(&[0x60; 39], "nat6_in2out.drop.too_short");
    exit.expect_drop(&[&[0x50][..], &[0; 59]].concat(), "nat_in2out.drop.bad_version");
    assert!(exit.bench.events.pop().is_err(), "the control core is not asked");
}

#[test]
fn a_session_without_an_inside_address_of_ipv6_carries_none() {
    let mut exit = Exit::new(|_| {});
    let init = FanInit { inside: INSIDE, mtu: 1400, ..FanInit::NONE };
    exit.bench.tell(Command::InitFan { fan: 1, init, client_key: [0; 16] });
    let link = Link { address: UPSTREAM, port: DATA_PORT, generation: 1, ct_index: CtIndex(9), key: UP };
    exit.bench.tell(Command::SetFanLink { fan: 1, path: 0, link: Some((link, SourcePorts::default())) });
    for source in [INSIDE6, Ipv6Addr::UNSPECIFIED] {
        exit.expect_drop(&udp6_packet((source, 1), (SERVER6, 53), b"x"), "nat6_in2out.drop.not_inside");
    }
}

#[test]
fn the_first_packet_of_a_flow_asks_for_the_session() {
    let mut exit = Exit::new(|_| {});
    let frame = exit.frame(&udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question"));
    assert!(exit.bench.run(&[frame]).is_empty());
    let Ok(Event::Punt { waiting, cause: PuntCause::NoBinding6 { flow, tcp_flags: 0 } }) = exit.bench.events.pop()
    else {
        panic!("nothing punted")
    };
    let remote = (exit.bench.worker.context().hosts6.remote(SERVER6), 53);
    let (owner, translation) = (Owner::session(OWNER), Translation::Nat66);
    assert_eq!(flow, Flow6 { owner, translation, protocol: ip4::UDP, address: INSIDE6, port: 1000, remote });
    exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
    exit.bench.commands.push(Command::Resume { waiting }).unwrap();
    assert_eq!(exit.bench.sweep().len(), 1);
}

#[test]
fn a_syn_announces_no_more_than_the_tunnel_carries() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat66, ip4::TCP, 1000, PORT6);
    let mss = [2, 4, 5, 0xb4];
    let got = exit.up(&tcp6_packet((INSIDE6, 1000), (SERVER6, 80), SYN, &mss));
    let largest = INSIDE_MTU - 60;
    assert_eq!(read_u16(&got, 62), largest);
    let got = exit.down(frame6(&tcp6_packet((SERVER6, 80), (US6, PORT6), SYN | tcp::ACK, &mss)));
    assert_eq!(read_u16(&got, 62), largest);
    exit.bind(Translation::Nat64, ip4::TCP, 1000, 41_000);
    let got = exit.up(&tcp6_packet((INSIDE6, 1000), (name(SERVER), 80), SYN, &mss));
    assert_eq!(read_u16(&got, 42), largest);
    let got = exit.down(frame(&tcp_packet((SERVER, 80), (US, 41_000), SYN | tcp::ACK, &mss)));
    assert_eq!(read_u16(&got, 62), largest);
}

#[test]
fn what_the_tunnel_does_not_carry_is_told_to_the_server() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
    let big = udp6_packet((SERVER6, 53), (US6, PORT6), &vec![7; usize::from(INSIDE_MTU) - 47]);
    let out = exit.bench.run(&[frame6(&big)]);
    let got = &out[0][14..];
    assert_eq!((got[40], read_u32(got, 44)), (icmp6::PACKET_TOO_BIG, u32::from(INSIDE_MTU)));
    let fits = exit.down(frame6(&udp6_packet((SERVER6, 53), (US6, PORT6), &vec![7; usize::from(INSIDE_MTU) - 48])));
    assert_eq!(fits.len(), usize::from(INSIDE_MTU));
}

#[test]
fn a_client_of_ipv6_speaks_to_the_internet_of_ipv4_through_the_prefix() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat64, ip4::UDP, 1000, 41_000);
    let got = exit.up(&udp6_packet((INSIDE6, 1000), (name(SERVER), 53), b"question"));
    let header = ip4::parse(&got).unwrap();
    assert_eq!((header.source, header.destination, &got[28..]), (US, SERVER, &b"question"[..]));
    let got = exit.down(frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer")));
    assert_eq!(got, passed_router(udp6_packet((name(SERVER), 53), (INSIDE6, 1000), b"answer")));
    // What IPv4 may cut is cut for the client, too.
    let mut large = udp_packet((SERVER, 53), (US, 41_000), &[7; 1340]);
    write(&mut large, ip4::FRAGMENT, &[0, 0]);
    write(&mut large, ip4::CHECKSUM, &[0, 0]);
    let field = crate::wire::checksum::of(&large[..20]);
    write(&mut large, ip4::CHECKSUM, &field.to_be_bytes());
    let out = exit.bench.run(&[frame(&large)]);
    assert_eq!((exit.bench.moved(), out.len()), (vec![], 2));
    for part in &out {
        let inner = sent(part, &UP_KEY).inner;
        assert!(ip6::parse(&inner).unwrap().is_fragment() && inner.len() <= 1280);
    }
}

#[test]
fn fragments_are_translated_in_any_order_both_ways() {
    let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0]] {
        let mut exit = Exit::new(|_| {});
        exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
        exit.bind(Translation::Nat64, ip4::UDP, 1000, 41_000);
        let in_order = |packet: &[u8]| {
            let parts = fragments6(packet, 1200, 0xabcd_1234);
            order.map(|number| parts[number].clone())
        };
        let sent = in_order(&udp6_packet((INSIDE6, 1000), (SERVER6, 53), &data)).map(|part| exit.frame(&part));
        let mut out = exit.bench.run(&sent);
        out.extend(exit.bench.sweep());
        let got = joined6(out.iter().map(|frame| frame[14..].to_vec()).collect());
        assert_eq!(got, passed_router(udp6_packet((US6, PORT6), (SERVER6, 53), &data)), "{order:?}");

        let answer = udp6_packet((SERVER6, 53), (US6, PORT6), &data);
        let mut out = exit.bench.run(&in_order(&answer).map(|part| frame6(&part)));
        out.extend(exit.bench.sweep());
        let got = joined6(out.iter().map(|frame| sent_inner(frame)).collect());
        assert_eq!(got, passed_router(udp6_packet((SERVER6, 53), (INSIDE6, 1000), &data)), "{order:?}");

        let sent = in_order(&udp6_packet((INSIDE6, 1000), (name(SERVER), 53), &data)).map(|part| exit.frame(&part));
        let mut out = exit.bench.run(&sent);
        out.extend(exit.bench.sweep());
        out.sort_by_key(|frame| read_u16(frame, 14 + ip4::FRAGMENT) & ip4::OFFSET_MASK);
        let expected = udp_packet((US, 41_000), (SERVER, 53), &data);
        let mut payload = Vec::new();
        for (number, part) in out.iter().enumerate() {
            let header = ip4::parse(&part[14..]).unwrap();
            assert_eq!((header.source, header.destination, header.ttl), (US, SERVER, 63));
            let more = if number < 2 { ip4::MORE_FRAGMENTS } else { 0 };
            assert_eq!(header.fragment, (payload.len() / 8) as u16 | more);
            assert_eq!(read_u16(part, 14 + ip4::IDENTIFICATION), 0x1234);
            payload.extend_from_slice(&part[34..]);
        }
        assert_eq!((out.len(), &payload[..]), (3, &expected[20..]), "{order:?}");
    }
}

#[test]
fn pings_in_fragments_are_translated_but_not_to_ipv4() {
    let mut exit = Exit::new(|_| {});
    exit.bind(Translation::Nat66, ip4::ICMP, 7, PORT6);
    let ping = |to| {
        let rest = [&[0, 7, 0, 1][..], &[9; 2000]].concat();
        fragments6(&icmp6_packet(INSIDE6, to, icmp6::ECHO_REQUEST, 0, &rest), 1200, 5)
    };
    let sent: Vec<_> = ping(SERVER6).iter().map(|part| exit.frame(part)).collect();
    let out = exit.bench.run(&sent);
    let got = joined6(out.iter().map(|frame| frame[14..].to_vec()).collect());
    assert!(has_valid_checksums6(&got) && read_u16(&got, 40 + icmp::IDENTIFIER) == PORT6);
    let sent: Vec<_> = ping(name(SERVER)).iter().map(|part| exit.frame(part)).collect();
    assert!(exit.bench.run(&sent).is_empty());
    assert_eq!(exit.bench.moved(), [("nat6_in2out.drop.fragment".to_owned(), 2)]);
}

#[test]
fn two_clients_with_the_same_address_do_not_mix() {
    let mut exit = Exit::new(|_| {});
    let init = FanInit { inside: INSIDE, inside6: INSIDE6, binding: NO_BINDING, mtu: INSIDE_MTU };
    exit.bench.tell(Command::InitFan { fan: 2, init, client_key: [0; 16] });
    let link = Link { address: DOWNSTREAM, port: DATA_PORT, generation: 1, ct_index: CtIndex(9), key: DOWN };
    exit.bench.tell(Command::SetFanLink { fan: 2, path: 0, link: Some((link, SourcePorts::default())) });
    let (up, down) = (Link::NONE, Link::NONE);
    let role = Role::Exit;
    exit.bench.tell(Command::SetSlot { slot: 4, generation: GENERATION, role, fan: 2, up, down });
    exit.bind(Translation::Nat66, ip4::UDP, 1000, PORT6);
    let question = udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question");
    assert_eq!(exit.up(&question)[..], passed_router(udp6_packet((US6, PORT6), (SERVER6, 53), b"question")));
    // The other client's packet, of the same address and port, has no binding.
    let from_other = Relayed { from: (DOWNSTREAM, DATA_PORT), key: DOWN_KEY, ..Relayed::up(4, 1, question) };
    assert!(exit.bench.run(&[from_other.frame()]).is_empty());
    let Ok(Event::Punt { cause: PuntCause::NoBinding6 { flow, .. }, .. }) = exit.bench.events.pop() else {
        panic!("nothing punted")
    };
    assert_eq!(flow.owner, Owner::session(4));
    exit.bench.bind6_at(2, Owner::session(4), Translation::Nat66, ip4::UDP, 1000, PORT6 + 1);
    for (port, key, to) in [(PORT6, UP_KEY, UPSTREAM), (PORT6 + 1, DOWN_KEY, DOWNSTREAM)] {
        let out = exit.bench.run(&[frame6(&udp6_packet((SERVER6, 53), (US6, port), b"answer"))]);
        let got = sent(&out[0], &key);
        assert_eq!((got.is_authentic, got.to.0), (true, to));
        assert_eq!(got.inner, passed_router(udp6_packet((SERVER6, 53), (INSIDE6, 1000), b"answer")));
    }
}
