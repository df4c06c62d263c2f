//! The XDP program, run by the kernel (BPF_PROG_TEST_RUN) on real packets. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN:
//! without them every test fails with the text of `Error::Privilege`.

use aya::{TestRun, TestRunOptions};

use super::*;
use crate::{
    limits::PORT_MAPPINGS_MAX,
    wire::{ethernet, icmp, ip4, tcp, udp},
};

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ALSO_OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const FIRST: u16 = 40000;
const LAST: u16 = 49999;
const XDP_PASS: u32 = 2;

fn program() -> Program {
    load(&reserved())
}

fn reserved() -> Reserved {
    Reserved::new(&[OURS, ALSO_OURS], FIRST..=LAST)
}

fn load(reserved: &Reserved) -> Program {
    load_at(reserved, Realm::Neither)
}

fn load_at(reserved: &Reserved, realm: Realm) -> Program {
    Program::load(reserved, realm).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the packet through the program; exactly the one counter must move.
#[track_caller]
fn expect(program: &mut Program, packet: &[u8], verdict: Verdict) {
    let before = program.verdicts().unwrap();
    let run = TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() };
    let result = program.xdp().test_run(run).unwrap();
    // With no socket in the map a redirect falls back to XDP_PASS, so the counters tell what was decided.
    assert_eq!(result.return_value, XDP_PASS);
    let mut expected = before;
    expected[verdict as usize] += 1;
    let named = |counters: &Verdicts| -> Vec<_> {
        Verdict::ALL.iter().filter(|v| counters[**v as usize] != before[**v as usize]).map(|v| v.name()).collect()
    };
    let after = program.verdicts().unwrap();
    assert_eq!(named(&after), named(&expected), "counters that moved");
    assert_eq!(after, expected);
}

fn packet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2; ethernet::HEADER_BYTES];
    bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An IPv4 packet with `options` (whole words).
fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ip4::HEADER_BYTES];
    let total = ip4::HEADER_BYTES + options.len() + payload.len();
    ip4::emit(&mut bytes, source, destination, protocol, total as u16, 64);
    bytes[0] = 0x40 | (5 + options.len() / 4) as u8;
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    bytes
}

fn from_outside(protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet(ethernet::TYPE_IP4, &ip(OTHER, OURS, protocol, &[], payload))
}

fn ports(header: usize, source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = vec![0; header + 4];
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.to_be_bytes());
    bytes
}

fn udp_datagram(source: u16, destination: u16) -> Vec<u8> {
    ports(udp::HEADER_BYTES, source, destination)
}

fn tcp_segment(source: u16, destination: u16) -> Vec<u8> {
    ports(tcp::HEADER_BYTES, source, destination)
}

fn icmp_message(kind: u8, identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend_from_slice(&identifier.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(payload);
    bytes
}

/// An ICMP error from a router on the way, about `quote`.
fn error_about(kind: u8, quote: &[u8]) -> Vec<u8> {
    from_outside(ip4::ICMP, &icmp_message(kind, 0, quote))
}

#[test]
fn udp_and_tcp_go_to_the_socket_exactly_inside_the_port_range() {
    let mut program = program();
    for (port, is_ours) in [(FIRST - 1, false), (FIRST, true), (LAST, true), (LAST + 1, false), (22, false)] {
        let (udp, tcp) =
            if is_ours { (Verdict::XskUdp, Verdict::XskTcp) } else { (Verdict::PassPort, Verdict::PassPort) };
        // The source port must not matter: it is in the range in one of the two.
        expect(&mut program, &from_outside(ip4::UDP, &udp_datagram(FIRST, port)), udp);
        expect(&mut program, &from_outside(ip4::TCP, &tcp_segment(443, port)), tcp);
    }
}

#[test]
fn every_address_of_ours_counts_and_no_other() {
    let mut program = program();
    let to = |address| packet(ethernet::TYPE_IP4, &ip(OTHER, address, ip4::UDP, &[], &udp_datagram(1, FIRST)));
    expect(&mut program, &to(ALSO_OURS), Verdict::XskUdp);
    expect(&mut program, &to(OTHER), Verdict::PassAddress);
    expect(&mut program, &to(Ipv4Addr::new(1, 2, 0, 192)), Verdict::PassAddress);
}

#[test]
fn each_address_has_a_range_of_its_own() {
    let addresses = [(OURS, FIRST, LAST), (ALSO_OURS, 1, 7)];
    let addresses = addresses.map(|(address, first, last)| OutsideAddress { address, first, last }).to_vec();
    let transit = Transit { addresses, ..Transit::default() };
    let mut program = load(&Reserved { transit, ..reserved() });
    let to = |address, port| packet(ethernet::TYPE_IP4, &ip(OTHER, address, ip4::UDP, &[], &udp_datagram(1, port)));
    expect(&mut program, &to(OURS, FIRST), Verdict::XskUdp);
    expect(&mut program, &to(OURS, 7), Verdict::PassPort);
    expect(&mut program, &to(ALSO_OURS, 7), Verdict::XskUdp);
    expect(&mut program, &to(ALSO_OURS, FIRST), Verdict::PassPort);
}

#[test]
fn a_reply_to_a_query_goes_to_the_socket_by_its_identifier_and_a_request_never_does() {
    let mut program = program();
    for (kind, identifier, verdict) in [
        (icmp::ECHO_REPLY, FIRST, Verdict::XskIcmpQuery),
        (icmp::ECHO_REPLY, LAST, Verdict::XskIcmpQuery),
        (icmp::ECHO_REPLY, FIRST - 1, Verdict::PassIcmpIdentifier),
        (icmp::ECHO_REPLY, LAST + 1, Verdict::PassIcmpIdentifier),
        (icmp::ECHO_REQUEST, FIRST, Verdict::PassIcmpType),
        (5, FIRST, Verdict::PassIcmpType),
        (icmp::TIMESTAMP_REPLY, FIRST, Verdict::XskIcmpQuery),
        (icmp::TIMESTAMP_REPLY, LAST + 1, Verdict::PassIcmpIdentifier),
        (icmp::TIMESTAMP_REQUEST, FIRST, Verdict::PassIcmpType),
    ] {
        expect(&mut program, &from_outside(ip4::ICMP, &icmp_message(kind, identifier, &[])), verdict);
    }
}

#[test]
fn an_icmp_error_goes_to_the_socket_where_it_quotes_a_packet_of_ours() {
    let mut program = program();
    let echo = icmp_message(icmp::ECHO_REQUEST, FIRST, &[]);
    let timestamp = icmp_message(icmp::TIMESTAMP_REQUEST, FIRST, &[0; 12]);
    for kind in [icmp::UNREACHABLE, icmp::TIME_EXCEEDED, icmp::PARAMETER_PROBLEM] {
        for (protocol, sent) in [
            (ip4::UDP, udp_datagram(LAST, 53)),
            (ip4::TCP, tcp_segment(FIRST, 443)),
            (ip4::ICMP, echo.clone()),
            (ip4::ICMP, timestamp.clone()),
        ] {
            let quote = ip(OURS, OTHER, protocol, &[], &sent);
            expect(&mut program, &error_about(kind, &quote), Verdict::XskIcmpError);
            // A router may quote no more than eight bytes behind the header (RFC 792).
            expect(&mut program, &error_about(kind, &quote[..28]), Verdict::XskIcmpError);
            let with_options = ip(OURS, OTHER, protocol, &[1; 12], &sent);
            expect(&mut program, &error_about(kind, &with_options), Verdict::XskIcmpError);
        }
    }
}

#[test]
fn an_icmp_error_about_a_packet_that_is_not_ours_goes_to_the_kernel() {
    let mut program = program();
    let ours = udp_datagram(FIRST, 53);
    let mut fragment = ip(OURS, OTHER, ip4::UDP, &[], &ours);
    fragment[ip4::FRAGMENT..][..2].copy_from_slice(&[0, 1]);
    for quote in [
        ip(OURS, OTHER, ip4::UDP, &[], &udp_datagram(FIRST - 1, FIRST)),
        ip(OURS, OTHER, ip4::TCP, &[], &tcp_segment(LAST + 1, FIRST)),
        ip(OURS, OTHER, ip4::ICMP, &[], &icmp_message(icmp::ECHO_REQUEST, LAST + 1, &[])),
        ip(OURS, OTHER, ip4::ICMP, &[], &icmp_message(icmp::ECHO_REPLY, FIRST, &[])),
        ip(OURS, OTHER, ip4::ICMP, &[], &icmp_message(icmp::TIMESTAMP_REPLY, FIRST, &[])),
        ip(OURS, OTHER, 47, &[], &ours),
        ip(OTHER, OURS, ip4::UDP, &[], &ours),
        fragment,
    ] {
        expect(&mut program, &error_about(icmp::UNREACHABLE, &quote), Verdict::PassIcmpQuote);
    }
}

#[test]
fn the_transport_header_is_found_behind_ip_options() {
    let mut program = program();
    for words in [1, 5, 10] {
        let options = vec![1; words * 4];
        let to = |port| packet(ethernet::TYPE_IP4, &ip(OTHER, OURS, ip4::UDP, &options, &udp_datagram(1, port)));
        expect(&mut program, &to(FIRST), Verdict::XskUdp);
        expect(&mut program, &to(53), Verdict::PassPort);
    }
}

#[test]
fn only_the_first_fragment_has_ports_to_go_by() {
    let mut program = program();
    let mut bytes = from_outside(ip4::UDP, &udp_datagram(1, FIRST));
    for (fragment, verdict) in [
        (0x2000_u16, Verdict::XskUdp),
        (0x2001, Verdict::PassFragment),
        (0x0001, Verdict::PassFragment),
        (0x1fff, Verdict::PassFragment),
        (0x4000, Verdict::XskUdp),
    ] {
        bytes[ethernet::HEADER_BYTES + ip4::FRAGMENT..][..2].copy_from_slice(&fragment.to_be_bytes());
        expect(&mut program, &bytes, verdict);
    }
}

#[test]
fn what_is_not_ipv4_goes_to_the_kernel() {
    let mut program = program();
    let inner = ip(OTHER, OURS, ip4::UDP, &[], &udp_datagram(1, FIRST));
    let mut tagged = vec![0, 7, 8, 0];
    tagged.extend_from_slice(&inner);
    for (ethertype, payload) in
        [(0x0806, &inner), (0x86dd, &inner), (0x8100, &tagged), (0x88a8, &tagged), (0x0008, &inner)]
    {
        expect(&mut program, &packet(ethertype, payload), Verdict::PassNotIpv4);
    }
    expect(&mut program, &from_outside(47, &udp_datagram(1, FIRST)), Verdict::PassProtocol);
    expect(&mut program, &from_outside(132, &udp_datagram(1, FIRST)), Verdict::PassProtocol);
}

#[test]
fn a_packet_cut_short_anywhere_goes_to_the_kernel() {
    let mut program = program();
    let quote = ip(OURS, OTHER, ip4::UDP, &[1; 8], &udp_datagram(FIRST, 53)[..8]);
    for whole in [
        from_outside(ip4::UDP, &udp_datagram(1, FIRST)[..8]),
        from_outside(ip4::TCP, &tcp_segment(1, FIRST)[..20]),
        from_outside(ip4::ICMP, &icmp_message(icmp::ECHO_REPLY, FIRST, &[])),
        error_about(icmp::UNREACHABLE, &quote),
    ] {
        // BPF_PROG_TEST_RUN takes no packet shorter than an Ethernet header.
        for length in ethernet::HEADER_BYTES..whole.len() {
            expect(&mut program, &whole[..length], Verdict::PassMalformed);
        }
        // The same with a total length that admits to it, and Ethernet padding that hides it.
        for length in ethernet::HEADER_BYTES + ip4::HEADER_BYTES..whole.len() {
            let mut short = whole.clone();
            let total = (length - ethernet::HEADER_BYTES) as u16;
            short[ethernet::HEADER_BYTES + ip4::TOTAL_LENGTH..][..2].copy_from_slice(&total.to_be_bytes());
            expect(&mut program, &short[..length], Verdict::PassMalformed);
            short.resize(whole.len() + 20, 0);
            expect(&mut program, &short, Verdict::PassMalformed);
        }
    }
}

#[test]
fn lying_header_fields_go_to_the_kernel() {
    let mut program = program();
    let whole = from_outside(ip4::UDP, &udp_datagram(1, FIRST));
    for (at, value) in [(0, 0x44), (0, 0x40), (0, 0x65), (0, 0x4f), (2, 0xff), (3, 19), (3, 0)] {
        let mut bytes = whole.clone();
        bytes[ethernet::HEADER_BYTES + at] = value;
        expect(&mut program, &bytes, Verdict::PassMalformed);
    }
    for (at, value) in [(0, 0x44), (0, 0x65), (0, 0x4f)] {
        let mut quote = ip(OURS, OTHER, ip4::UDP, &[], &udp_datagram(FIRST, 53));
        quote[at] = value;
        expect(&mut program, &error_about(icmp::UNREACHABLE, &quote), Verdict::PassMalformed);
    }
}

#[test]
fn an_empty_range_and_no_address_take_nothing() {
    let datagram = from_outside(ip4::UDP, &udp_datagram(1, FIRST));
    #[expect(clippy::reversed_empty_ranges)]
    let empty = Reserved::new(&[OURS], 1..=0);
    expect(&mut load(&empty), &datagram, Verdict::PassPort);
    let nowhere = Reserved { transit: Transit::default(), ..reserved() };
    expect(&mut load(&nowhere), &datagram, Verdict::PassAddress);
}

const INSIDE_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const INSIDE_US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OFFICE: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);

fn transit() -> Transit {
    Transit {
        forwarded: vec![(ip4::TCP, OURS, 80), (ip4::UDP, ALSO_OURS, 53)],
        local: vec![OURS, ALSO_OURS, INSIDE_US, Ipv4Addr::new(10, 0, 0, 255)],
        exempt: vec!["10.9.0.0/16".parse().unwrap()],
        ..reserved().transit
    }
}

fn gateway(realm: Realm) -> Program {
    load_at(&Reserved { takes_fragments: true, transit: transit(), ..reserved() }, realm)
}

fn transit_packet(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet(ethernet::TYPE_IP4, &ip(source, destination, protocol, &[], payload))
}

#[test]
fn an_inside_host_is_routed_on_whatever_it_sends_but_to_this_machine() {
    let mut program = gateway(Realm::Inside);
    let to = |destination, protocol, payload: &[u8]| transit_packet(INSIDE_HOST, destination, protocol, payload);
    for (protocol, payload) in [
        (ip4::UDP, udp_datagram(5, 53)),
        (ip4::TCP, tcp_segment(5, 22)),
        (ip4::ICMP, icmp_message(8, 7, &[])),
        (47, vec![]),
    ] {
        expect(&mut program, &to(OTHER, protocol, &payload), Verdict::XskRouted);
        expect(&mut program, &to(INSIDE_US, protocol, &payload), Verdict::PassLocal);
    }
    let mut fragment = to(OTHER, ip4::UDP, &[1; 16]);
    fragment[ethernet::HEADER_BYTES + ip4::FRAGMENT..][..2].copy_from_slice(&[0, 9]);
    expect(&mut program, &fragment, Verdict::XskRouted);
    // DHCP, name services and routing protocols.
    let dhcp = udp_datagram(68, 67);
    for group in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 1, 1, 1)] {
        expect(&mut program, &to(group, ip4::UDP, &dhcp), Verdict::PassNotUnicast);
    }
    expect(&mut program, &to(Ipv4Addr::new(10, 0, 0, 255), ip4::UDP, &dhcp), Verdict::PassLocal);
    let mut broadcast = to(OTHER, ip4::UDP, &dhcp);
    broadcast[..6].fill(0xff);
    expect(&mut program, &broadcast, Verdict::PassNotUnicast);
    expect(&mut program, &packet(0x0806, &[0; 28]), Verdict::PassNotIpv4);
}

#[test]
fn to_our_outside_addresses_an_inside_host_reaches_what_everyone_does() {
    let mut program = gateway(Realm::Inside);
    let to = |protocol, payload: &[u8]| transit_packet(INSIDE_HOST, OURS, protocol, payload);
    expect(&mut program, &to(ip4::UDP, &udp_datagram(5, FIRST)), Verdict::XskUdp);
    expect(&mut program, &to(ip4::TCP, &tcp_segment(5, 80)), Verdict::XskTcp);
    expect(&mut program, &to(ip4::TCP, &tcp_segment(5, 22)), Verdict::PassPort);
    expect(&mut program, &to(ip4::ICMP, &icmp_message(icmp::ECHO_REQUEST, FIRST, &[])), Verdict::PassIcmpType);
}

#[test]
fn a_forwarded_port_is_taken_at_its_address_and_protocol_alone() {
    let mut program = gateway(Realm::Outside);
    for (address, protocol, port, verdict) in [
        (OURS, ip4::TCP, 80, Verdict::XskTcp),
        (OURS, ip4::TCP, 81, Verdict::PassPort),
        (OURS, ip4::UDP, 80, Verdict::PassPort),
        (ALSO_OURS, ip4::TCP, 80, Verdict::PassPort),
        (ALSO_OURS, ip4::UDP, 53, Verdict::XskUdp),
    ] {
        let payload = if protocol == ip4::TCP { tcp_segment(5, port) } else { udp_datagram(5, port) };
        expect(&mut program, &transit_packet(OTHER, address, protocol, &payload), verdict);
    }
    let quote = ip(OURS, OTHER, ip4::TCP, &[], &tcp_segment(80, 5));
    expect(&mut program, &error_about(icmp::UNREACHABLE, &quote), Verdict::XskIcmpError);
    let quote = ip(OURS, OTHER, ip4::UDP, &[], &udp_datagram(80, 5));
    expect(&mut program, &error_about(icmp::UNREACHABLE, &quote), Verdict::PassIcmpQuote);
}

#[test]
fn from_outside_only_exempt_networks_reach_inside_hosts_as_they_are() {
    let mut program = gateway(Realm::Outside);
    let datagram = udp_datagram(5, 53);
    expect(&mut program, &transit_packet(OFFICE, INSIDE_HOST, ip4::UDP, &datagram), Verdict::XskExempt);
    expect(&mut program, &transit_packet(OFFICE, INSIDE_US, ip4::UDP, &datagram), Verdict::PassLocal);
    expect(&mut program, &transit_packet(OFFICE, OURS, ip4::UDP, &datagram), Verdict::PassPort);
    expect(&mut program, &transit_packet(OTHER, INSIDE_HOST, ip4::UDP, &datagram), Verdict::PassAddress);
    let mut neither = gateway(Realm::Neither);
    expect(&mut neither, &transit_packet(OFFICE, INSIDE_HOST, ip4::UDP, &datagram), Verdict::PassAddress);
}

#[test]
fn fragments_follow_the_one_that_has_the_ports() {
    let mut program = gateway(Realm::Outside);
    let fragment = |port, identification: u16, offset: u16| {
        let mut bytes = from_outside(ip4::UDP, &udp_datagram(5, port));
        bytes[ethernet::HEADER_BYTES + ip4::IDENTIFICATION..][..2].copy_from_slice(&identification.to_be_bytes());
        bytes[ethernet::HEADER_BYTES + ip4::FRAGMENT..][..2].copy_from_slice(&offset.to_be_bytes());
        bytes
    };
    expect(&mut program, &fragment(FIRST, 1, 0x2000), Verdict::XskUdp);
    expect(&mut program, &fragment(FIRST, 1, 0x2001), Verdict::XskFragment);
    expect(&mut program, &fragment(53, 2, 0x2000), Verdict::PassPort);
    expect(&mut program, &fragment(FIRST, 2, 0x2001), Verdict::PassFragment);
    expect(&mut program, &fragment(FIRST, 2, 0x0002), Verdict::PassFragment);
    expect(&mut program, &fragment(53, 3, 0x0001), Verdict::XskFragment);
}

#[test]
fn what_is_taken_changes_while_the_program_runs() {
    let mut program = gateway(Realm::Outside);
    let mut rules = program.rules.take().unwrap();
    rules.set(&Transit { forwarded: vec![(ip4::TCP, OURS, 8080)], ..reserved().transit }).unwrap();
    let to = |port| transit_packet(OTHER, OURS, ip4::TCP, &tcp_segment(5, port));
    expect(&mut program, &to(80), Verdict::PassPort);
    expect(&mut program, &to(8080), Verdict::XskTcp);
    expect(&mut program, &transit_packet(OFFICE, INSIDE_HOST, ip4::UDP, &udp_datagram(5, 53)), Verdict::PassAddress);
    rules.set(&transit()).unwrap();
    expect(&mut program, &transit_packet(OFFICE, INSIDE_US, ip4::UDP, &udp_datagram(5, 53)), Verdict::PassLocal);
}

#[test]
fn addresses_come_and_go_while_the_program_runs() {
    let mut program = program();
    let mut rules = program.rules.take().unwrap();
    let udp = |address, port| packet(ethernet::TYPE_IP4, &ip(OTHER, address, ip4::UDP, &[], &udp_datagram(1, port)));
    let third = Ipv4Addr::new(203, 0, 113, 77);
    let of = |addresses: &[(Ipv4Addr, u16)]| {
        let outside =
            |(address, first): &(Ipv4Addr, u16)| OutsideAddress { address: *address, first: *first, last: LAST };
        Transit { addresses: addresses.iter().map(outside).collect(), ..Transit::default() }
    };
    rules.set(&of(&[(OURS, FIRST), (third, 1024)])).unwrap();
    expect(&mut program, &udp(OURS, FIRST), Verdict::XskUdp);
    expect(&mut program, &udp(third, 1024), Verdict::XskUdp);
    expect(&mut program, &udp(ALSO_OURS, FIRST), Verdict::PassAddress);
    rules.set(&of(&[(ALSO_OURS, FIRST), (third, FIRST)])).unwrap();
    expect(&mut program, &udp(OURS, FIRST), Verdict::PassAddress);
    expect(&mut program, &udp(ALSO_OURS, FIRST), Verdict::XskUdp);
    expect(&mut program, &udp(third, 1024), Verdict::PassPort);
}

#[test]
fn as_many_forwarded_ports_as_there_may_be_change_at_once() {
    let mut program = gateway(Realm::Outside);
    let mut rules = program.rules.take().unwrap();
    let all = |first: u16| (first..first + PORT_MAPPINGS_MAX as u16).map(|port| (ip4::TCP, OURS, port)).collect();
    for first in [1000, 3000] {
        rules.set(&Transit { forwarded: all(first), ..transit() }).unwrap();
        let last = first + PORT_MAPPINGS_MAX as u16 - 1;
        for (port, verdict) in [
            (first - 1, Verdict::PassPort),
            (first, Verdict::XskTcp),
            (last, Verdict::XskTcp),
            (last + 1, Verdict::PassPort),
        ] {
            expect(&mut program, &transit_packet(OTHER, OURS, ip4::TCP, &tcp_segment(5, port)), verdict);
        }
    }
}

#[test]
fn each_verdict_has_its_counter() {
    let counters = program().verdicts().unwrap();
    assert_eq!(counters, [0; Verdict::COUNT]);
    let map: PerCpuArray<_, u64> = program().ebpf.take_map("verdicts").unwrap().try_into().unwrap();
    assert_eq!(map.len() as usize, Verdict::COUNT);
}

mod ip6_tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::{
        dataplane::{gateway::OutsideAddress6, nat::Prefix64, testing6::*},
        wire::{icmp6, ip6},
    };

    const OURS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff, 0, 0, 0, 1);
    const ALSO_LOCAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
    const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    const OFFICE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

    fn transit6() -> Transit {
        let addresses6 = vec![OutsideAddress6 { address: OURS6, first: FIRST, last: LAST }];
        let local6 = vec![OURS6, ALSO_LOCAL];
        Transit { addresses6, local6, exempt6: vec!["2001:db8:9::/48".parse().unwrap()], ..transit() }
    }

    fn gateway6(realm: Realm) -> Program {
        load_at(&Reserved { takes_ip6: true, transit: transit6(), ..reserved() }, realm)
    }

    fn framed(ip: &[u8]) -> Vec<u8> {
        packet(ethernet::TYPE_IP6, ip)
    }

    #[test]
    fn answers_to_hosts_go_to_the_socket_and_what_is_the_machines_to_the_kernel() {
        let mut program = gateway6(Realm::Outside);
        for (port, udp, tcp) in [
            (FIRST - 1, Verdict::PassPort, Verdict::PassPort),
            (FIRST, Verdict::XskUdp, Verdict::XskTcp),
            (LAST, Verdict::XskUdp, Verdict::XskTcp),
            (LAST + 1, Verdict::PassPort, Verdict::PassPort),
        ] {
            expect(&mut program, &framed(&udp6_packet((SERVER, FIRST), (OURS6, port), b"x")), udp);
            expect(&mut program, &framed(&tcp6_packet((SERVER, 443), (OURS6, port), tcp::SYN, &[])), tcp);
        }
        let icmp = |kind, rest: &[u8]| framed(&icmp6_packet(SERVER, OURS6, kind, 0, rest));
        let [high, low] = FIRST.to_be_bytes();
        expect(&mut program, &icmp(icmp6::ECHO_REPLY, &[high, low, 0, 1]), Verdict::XskIcmpQuery);
        expect(&mut program, &icmp(icmp6::ECHO_REPLY, &[0, 1, 0, 1]), Verdict::PassIcmpIdentifier);
        // Echo requests, and neighbour discovery, without which nothing works.
        for kind in [icmp6::ECHO_REQUEST, 133, 134, 135, 136, 137] {
            expect(&mut program, &icmp(kind, &[0; 20]), Verdict::PassIcmpType);
        }
        let quote = |port| [&[0; 4], &udp6_packet((OURS6, port), (SERVER, 53), b"x")[..]].concat();
        for kind in 1..=4 {
            expect(&mut program, &icmp(kind, &quote(FIRST)), Verdict::XskIcmpError);
            expect(&mut program, &icmp(kind, &quote(FIRST - 1)), Verdict::PassIcmpQuote);
        }
        let of_another = [&[0; 4], &udp6_packet((ALSO_LOCAL, FIRST), (SERVER, 53), b"x")[..]].concat();
        expect(&mut program, &icmp(icmp6::UNREACHABLE, &of_another), Verdict::PassIcmpQuote);
        expect(&mut program, &icmp(icmp6::UNREACHABLE, &[0; 30]), Verdict::PassMalformed);
        expect(&mut program, &framed(&packet6(SERVER, OURS6, 47, &[0; 8])), Verdict::PassProtocol);
        let with_options = with_destination_options(&udp6_packet((SERVER, 1), (OURS6, FIRST), b"x"));
        expect(&mut program, &framed(&with_options), Verdict::PassProtocol);
        expect(&mut program, &framed(&udp6_packet((OFFICE, 1), (HOST, 2), b"x")), Verdict::XskExempt);
        expect(&mut program, &framed(&udp6_packet((SERVER, 1), (HOST, 2), b"x")), Verdict::PassAddress);
    }

    #[test]
    fn fragments_follow_the_one_that_has_the_ports() {
        let mut program = gateway6(Realm::Outside);
        let mut send = |port, identification: u32, place: usize, verdict| {
            let whole = udp6_packet((SERVER, 53), (OURS6, port), &[7; 40]);
            expect(&mut program, &framed(&fragments6(&whole, 16, identification)[place]), verdict);
        };
        send(FIRST, 1, 0, Verdict::XskUdp);
        send(FIRST, 1, 1, Verdict::XskFragment);
        send(FIRST, 1, 2, Verdict::XskFragment);
        send(80, 2, 0, Verdict::PassPort);
        send(80, 2, 1, Verdict::PassFragment);
        send(80, 2, 2, Verdict::PassFragment);
        send(80, 3, 1, Verdict::XskFragment);
    }

    #[test]
    fn what_hosts_want_routed_on_goes_to_the_socket() {
        let mut program = gateway6(Realm::Inside);
        let sent = |to| framed(&udp6_packet((HOST, 1), (to, 53), b"x"));
        expect(&mut program, &sent(SERVER), Verdict::XskRouted);
        expect(&mut program, &sent(Prefix64::WELL_KNOWN.embed(OTHER)), Verdict::XskRouted);
        expect(&mut program, &sent(ALSO_LOCAL), Verdict::PassLocal);
        expect(&mut program, &sent(OURS6), Verdict::PassLocal);
        expect(&mut program, &framed(&udp6_packet((HOST, 1), (OURS6, FIRST), b"hairpin")), Verdict::XskRouted);
        expect(&mut program, &sent("fe80::1".parse().unwrap()), Verdict::PassLocal);
        expect(&mut program, &sent("ff02::1".parse().unwrap()), Verdict::PassNotUnicast);
        let from_link = udp6_packet(("fe80::2".parse().unwrap(), 1), (SERVER, 53), b"x");
        expect(&mut program, &framed(&from_link), Verdict::PassLocal);
        let mut to_all = sent(SERVER);
        to_all[0] = 0x33;
        expect(&mut program, &to_all, Verdict::PassNotUnicast);
        expect(&mut program, &sent(SERVER)[..14 + ip6::HEADER_BYTES - 1], Verdict::PassMalformed);
        let mut lying = sent(SERVER);
        lying[14 + ip6::PAYLOAD_LENGTH] = 1;
        expect(&mut program, &lying, Verdict::PassMalformed);
    }

    #[test]
    fn a_forwarded_port_is_taken_at_its_address_and_protocol_alone() {
        let to = |protocol, address, port| match protocol {
            ip4::UDP => framed(&udp6_packet((SERVER, 5), (address, port), b"x")),
            _ => framed(&tcp6_packet((SERVER, 5), (address, port), tcp::SYN, &[])),
        };
        let mut program = gateway6(Realm::Outside);
        expect(&mut program, &to(ip4::TCP, OURS6, 80), Verdict::PassPort);
        let mut rules = program.rules.take().unwrap();
        let forwarded6 = vec![(ip4::TCP, OURS6, 80), (ip4::UDP, OURS6, 53)];
        let transit = Transit { forwarded6, local6: Vec::new(), ..transit6() };
        rules.set(&transit).unwrap();
        for (protocol, port, verdict) in [
            (ip4::TCP, 80, Verdict::XskTcp),
            (ip4::TCP, 53, Verdict::PassPort),
            (ip4::UDP, 80, Verdict::PassPort),
            (ip4::UDP, 53, Verdict::XskUdp),
        ] {
            expect(&mut program, &to(protocol, OURS6, port), verdict);
        }
        expect(&mut program, &to(ip4::TCP, ALSO_LOCAL, 80), Verdict::PassAddress);
        let quoting = |quoted: Vec<u8>| {
            framed(&icmp6_packet(SERVER, OURS6, icmp6::UNREACHABLE, 0, &[&[0; 4], &quoted[..]].concat()))
        };
        let answer = |protocol| match protocol {
            ip4::UDP => udp6_packet((OURS6, 80), (SERVER, 5), b"x"),
            _ => tcp6_packet((OURS6, 80), (SERVER, 5), tcp::ACK, &[]),
        };
        expect(&mut program, &quoting(answer(ip4::TCP)), Verdict::XskIcmpError);
        expect(&mut program, &quoting(answer(ip4::UDP)), Verdict::PassIcmpQuote);
        rules.set(&transit6()).unwrap();
        expect(&mut program, &to(ip4::TCP, OURS6, 80), Verdict::PassPort);
    }

    #[test]
    fn to_our_outside_addresses_an_inside_host_reaches_what_everyone_does() {
        let mut program = gateway6(Realm::Inside);
        let mut rules = program.rules.take().unwrap();
        rules.set(&Transit { forwarded6: vec![(ip4::UDP, OURS6, 53)], ..transit6() }).unwrap();
        let whole = |port| udp6_packet((HOST, 1), (OURS6, port), &[7; 40]);
        expect(&mut program, &framed(&whole(53)), Verdict::XskRouted);
        expect(&mut program, &framed(&whole(54)), Verdict::PassLocal);
        for (identification, port, verdict) in [(1, 53, Verdict::XskRouted), (2, 54, Verdict::PassLocal)] {
            for part in fragments6(&whole(port), 16, identification) {
                expect(&mut program, &framed(&part), verdict);
            }
        }
    }

    #[test]
    fn a_node_that_does_not_translate_it_leaves_ipv6_to_the_kernel() {
        for realm in [Realm::Neither, Realm::Inside, Realm::Outside] {
            let mut program = load_at(&Reserved { transit: transit(), ..reserved() }, realm);
            expect(&mut program, &framed(&udp6_packet((HOST, 1), (SERVER, 53), b"x")), Verdict::PassNotIpv4);
        }
    }
}
