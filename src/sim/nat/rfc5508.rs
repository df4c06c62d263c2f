//! RFC 5508: NAT behavioral requirements for ICMP.

use super::*;
use crate::dataplane::testing::{packet, udp_packet};

fn query(identifier: u16) -> Vec<u8> {
    echo(icmp::ECHO_REQUEST, HOST, SERVER, identifier)
}

/// A packet of each protocol as a host sends it, and as it leaves.
fn sent_and_seen(nat: &mut Nat) -> Vec<(Vec<u8>, Vec<u8>)> {
    let sent = [
        udp_packet((HOST, 5000), (SERVER, 53), b"question"),
        segment((HOST, 5000), (SERVER, 80), tcp::SYN, 1, 0),
        query(5000),
    ];
    sent.map(|packet| (packet.clone(), nat.send_inside(&packet).remove(0).packet)).to_vec()
}

/// The same packet with `options` in its header.
fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = [&packet[..20], options, &packet[20..]].concat();
    bytes[0] = 0x40 | (5 + options.len() / 4) as u8;
    let total = bytes.len() as u16;
    write(&mut bytes, ip4::TOTAL_LENGTH, &total.to_be_bytes());
    mend(&mut bytes);
    bytes
}

#[test]
fn req1_queries_pass_and_an_identifier_is_one_hosts() {
    let mut nat = Nat::new();
    let one = nat.seen(&query(7));
    assert_eq!(nat.seen(&echo(icmp::ECHO_REQUEST, HOST, OTHER_SERVER, 7)), one, "whomever it asks");
    let other = nat.seen(&echo(icmp::ECHO_REQUEST, OTHER_HOST, SERVER, 7));
    assert_ne!(one, other);
    for (host, seen) in [(HOST, one), (OTHER_HOST, other)] {
        let out = nat.send_outside(&echo(icmp::ECHO_REPLY, SERVER, seen.0, seen.1));
        assert_eq!(destination(&out[0].packet), (host, 7));
    }
    assert!(!nat.is_let_in(&echo(icmp::ECHO_REQUEST, SERVER, one.0, one.1)), "nobody pings through");
}

#[test]
fn req1_timestamps_are_queries_too() {
    let times = [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    let message = |kind, from, to, identifier: u16| {
        let rest = [&identifier.to_be_bytes()[..], &[0, 9], &times].concat();
        crate::dataplane::testing::icmp_packet(from, to, kind, 0, &rest)
    };
    for workers in [1, 3] {
        let mut nat = Nat::with(Setup { workers, ..Setup::default() });
        let sent = message(icmp::TIMESTAMP_REQUEST, HOST, SERVER, 7);
        let seen = nat.seen(&sent);
        assert_ne!(nat.seen(&message(icmp::TIMESTAMP_REQUEST, OTHER_HOST, SERVER, 7)), seen);
        let out = nat.send_outside(&message(icmp::TIMESTAMP_REPLY, SERVER, seen.0, seen.1));
        assert_eq!((destination(&out[0].packet), &out[0].packet[28..]), ((HOST, 7), &times[..]));
        assert!(!nat.is_let_in(&message(icmp::TIMESTAMP_REQUEST, SERVER, seen.0, seen.1)), "nobody asks through");
        assert_eq!(nat.send_inside(&message(icmp::TIMESTAMP_REPLY, HOST, SERVER, 7)), [], "nobody answers unasked");
        // Errors about it, of a router and of ours.
        let out = nat.send_outside(&error(
            ROUTER,
            seen.0,
            icmp::TIME_EXCEEDED,
            0,
            [0; 4],
            &message(icmp::TIMESTAMP_REQUEST, seen.0, SERVER, seen.1),
        ));
        assert_eq!(out[0].packet[28 + 20..], sent[20..], "about what the host sent");
        let mut late = sent.clone();
        late[ip4::TTL] = 1;
        mend(&mut late);
        assert_eq!(nat.send_inside(&late)[0].packet[20], icmp::TIME_EXCEEDED);
    }
}

#[test]
fn req2_a_query_is_waited_for_a_minute() {
    let mut nat = Nat::new();
    let seen = nat.seen(&query(7));
    nat.pass(60 * SECOND);
    assert!(nat.is_let_in(&echo(icmp::ECHO_REPLY, SERVER, seen.0, seen.1)));
    nat.pass(SECOND);
    assert!(!nat.is_let_in(&echo(icmp::ECHO_REPLY, SERVER, seen.0, seen.1)));
    nat.assert_all_free();
}

#[test]
fn req3_wrong_checksums_of_message_and_quoted_header_are_dropped_that_of_the_transport_does_not_matter() {
    let mut nat = Nat::new();
    for (_, seen) in sent_and_seen(&mut nat) {
        let good = error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &seen);
        let mut wrong_message = good.clone();
        wrong_message[20 + icmp::CHECKSUM] ^= 1;
        assert!(!nat.is_let_in(&wrong_message));
        let mut wrong_header = seen.clone();
        wrong_header[ip4::CHECKSUM] ^= 1;
        assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &wrong_header)));
        let mut wrong_payload = seen.clone();
        *wrong_payload.last_mut().expect("not empty") ^= 1;
        assert!(nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &wrong_payload)));
        assert!(nat.is_let_in(&good));
    }
}

#[test]
fn req3_options_in_the_outer_and_in_the_quoted_header_are_skipped() {
    let mut nat = Nat::new();
    for (sent, seen) in sent_and_seen(&mut nat) {
        // Router alert, no operation, end of list.
        let options = [0x94, 4, 0, 0, 1, 1, 0, 0];
        let quoted = with_options(&seen, &options);
        let out = nat.send_outside(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &quoted));
        assert_eq!(out[0].packet[28 + 12..28 + 16], HOST.octets());
        assert_eq!(out[0].packet[28 + 28..28 + 30], sent[20..22]);
        let outer = error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &seen);
        let out = nat.send_outside(&with_options(&outer, &options));
        assert_eq!(out[0].packet[20..28], options);
        assert_eq!(out[0].packet[36 + 12..36 + 16], HOST.octets());
    }
}

#[test]
fn req4_an_error_from_outside_reaches_the_host_with_the_packet_it_sent() {
    let mut nat = Nat::new();
    for (sent, seen) in sent_and_seen(&mut nat) {
        for (kind, code, word) in [
            (icmp::UNREACHABLE, 4, [0, 0, 5, 0]),
            (icmp::TIME_EXCEEDED, 0, [0; 4]),
            (icmp::PARAMETER_PROBLEM, 0, [9; 4]),
        ] {
            for length in [28, seen.len()] {
                let out = nat.send_outside(&error(ROUTER, OUTSIDE[0], kind, code, word, &seen[..length]));
                let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("not let in") };
                let header = ip4::parse(packet).unwrap();
                assert_eq!((header.source, header.destination), (ROUTER, HOST));
                assert_eq!((packet[20], packet[21], &packet[24..28]), (kind, code, &word[..]));
                let mut expected = sent.clone();
                ip4::decrement_ttl(&mut expected);
                assert_eq!(packet[28..], expected[..length], "exactly as the host sent it");
            }
        }
    }
}

#[test]
fn req4_an_error_without_a_mapping_is_dropped_and_changes_nothing() {
    let mut nat = Nat::new();
    for (_, seen) in sent_and_seen(&mut nat) {
        let mut other = seen.clone();
        other[if seen[ip4::PROTOCOL] == ip4::ICMP { 25 } else { 21 }] ^= 1;
        assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &other)));
    }
    assert_eq!(nat.bindings(), 3);
}

#[test]
fn req5_an_error_from_inside_reaches_the_server_with_the_packet_it_sent() {
    let mut nat = Nat::new();
    let (_, port) = nat.seen(&udp_packet((HOST, 5000), (SERVER, 53), b"question"));
    let answer = udp_packet((SERVER, 53), (OUTSIDE[0], port), b"late");
    let let_in = nat.send_outside(&answer).remove(0).packet;
    // The host itself, or a router behind the NAT.
    for from in [HOST, Ipv4Addr::new(10, 3, 3, 3)] {
        let out = nat.send_inside(&error(from, SERVER, icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &let_in));
        let [Sent { is_to_inside: false, packet }] = &out[..] else { panic!("not let out") };
        let header = ip4::parse(packet).unwrap();
        assert_eq!((header.source, header.destination), (OUTSIDE[0], SERVER));
        assert_eq!(packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PORT]);
        let mut expected = answer.clone();
        ip4::decrement_ttl(&mut expected);
        assert_eq!(packet[28..], expected);
    }
    let stranger = udp_packet((SERVER, 53), (HOST, 5001), b"");
    assert_eq!(nat.send_inside(&error(HOST, SERVER, icmp::UNREACHABLE, 3, [0; 4], &stranger)), []);
}

#[test]
fn req6_errors_keep_no_mapping_and_end_none() {
    let mut nat = Nat::new();
    let (_, seen) = sent_and_seen(&mut nat).remove(0);
    for _ in 0..10 {
        nat.pass(29 * SECOND);
        assert!(nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &seen)));
    }
    nat.pass(12 * SECOND);
    nat.assert_all_free();
}

#[test]
fn req7_an_error_between_two_hosts_is_translated_both_ways() {
    for workers in [1, 3] {
        let mut nat = Nat::with(Setup { workers, ..Setup::default() });
        let one = nat.seen(&udp_packet((HOST, 5000), (SERVER, 53), b""));
        let other = nat.seen(&udp_packet((OTHER_HOST, 6000), (SERVER, 53), b""));
        let sent = udp_packet((HOST, 5000), other, b"hello");
        let heard = nat.send_inside(&sent).remove(0).packet;
        assert_eq!(source(&heard), one);
        let out = nat.send_inside(&error(OTHER_HOST, one.0, icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &heard));
        let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("not let in") };
        let header = ip4::parse(packet).unwrap();
        assert_eq!((header.source, header.destination), (other.0, HOST), "as if from where it was sent to");
        let mut expected = sent;
        ip4::decrement_ttl(&mut expected);
        assert_eq!(packet[28..], expected);
    }
}

#[test]
fn req8_without_resources_the_sender_is_told_and_nothing_is_forwarded() {
    let mut nat = Nat::with(Setup { ports: (2000, 2001), ..Setup::default() });
    nat.seen(&query(1));
    nat.seen(&query(2));
    let out = nat.send_inside(&query(3));
    let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("it was forwarded: {out:?}") };
    assert_eq!(packet[20..22], [icmp::UNREACHABLE, icmp::CODE_PROHIBITED]);
    assert_eq!(nat.dropped(Reason::PortsExhausted), 1);
}

#[test]
fn req10_a_packet_whose_time_runs_out_here_is_answered() {
    let mut nat = Nat::new();
    for (mut sent, seen) in sent_and_seen(&mut nat) {
        sent[ip4::TTL] = 1;
        mend(&mut sent);
        let out = nat.send_inside(&sent);
        assert_eq!((out[0].is_to_inside, out[0].packet[20]), (true, icmp::TIME_EXCEEDED));
        assert_eq!(out[0].packet[28..], sent);
        drop(seen);
    }
}

#[test]
fn an_error_quoting_a_protocol_we_do_not_know_or_cut_short_is_dropped() {
    let mut nat = Nat::new();
    let (_, seen) = sent_and_seen(&mut nat).remove(0);
    for protocol in [0, 4, 41, 47, 50, 132, 255] {
        let quoted = packet(OUTSIDE[0], SERVER, protocol, &seen[20..]);
        assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &quoted)));
        let quoted = packet(SERVER, HOST, protocol, &[0; 16]);
        assert_eq!(nat.send_inside(&error(HOST, SERVER, icmp::UNREACHABLE, 1, [0; 4], &quoted)), []);
    }
    for length in 0..28 {
        assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &seen[..length])));
    }
    let of_error = error(OUTSIDE[0], SERVER, icmp::UNREACHABLE, 1, [0; 4], &seen);
    assert!(!nat.is_let_in(&error(ROUTER, OUTSIDE[0], icmp::UNREACHABLE, 1, [0; 4], &of_error)), "an error's error");
    assert_eq!(nat.bindings(), 3);
}

#[test]
fn req3_an_extension_behind_the_quoted_packet_stays_as_it_is() {
    let mut nat = Nat::new();
    // RFC 4884: the quoted packet is padded to 128 bytes, whose number of words stands in the header; then the extension
    // (RFC 4950: an MPLS label).
    let extension = [0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0, 0x0a, 0x31, 0xff];
    for (sent, seen) in sent_and_seen(&mut nat) {
        let mut quoted = seen.clone();
        quoted.resize(128, 0);
        quoted.extend_from_slice(&extension);
        let out = nat.send_outside(&error(ROUTER, OUTSIDE[0], icmp::TIME_EXCEEDED, 0, [0, 32, 0, 0], &quoted));
        let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("not let in") };
        assert_eq!((&packet[24..28], &packet[28 + 128..]), (&[0, 32, 0, 0][..], &extension[..]));
        let mut expected = sent;
        ip4::decrement_ttl(&mut expected);
        assert_eq!(packet[28..][..expected.len()], expected);
    }
    // And the other way.
    let (_, port) = nat.seen(&udp_packet((HOST, 5000), (SERVER, 53), b"question"));
    let let_in = nat.send_outside(&udp_packet((SERVER, 53), (OUTSIDE[0], port), b"late")).remove(0).packet;
    let mut quoted = let_in;
    quoted.resize(128, 0);
    quoted.extend_from_slice(&extension);
    let out = nat.send_inside(&error(HOST, SERVER, icmp::UNREACHABLE, icmp::CODE_PORT, [0, 32, 0, 0], &quoted));
    assert_eq!(out[0].packet[28 + 128..], extension);
    assert_eq!(out[0].packet[28 + 16..28 + 20], OUTSIDE[0].octets());
}

#[test]
fn req5_from_inside_options_and_eight_bytes_of_any_protocol_are_understood() {
    let mut nat = Nat::new();
    let options = [0x94, 4, 0, 0, 1, 1, 0, 0];
    for (sent, seen) in sent_and_seen(&mut nat) {
        let outside = source(&seen);
        let answer = match sent[ip4::PROTOCOL] {
            ip4::UDP => udp_packet((SERVER, 53), outside, b"answer"),
            ip4::TCP => segment((SERVER, 80), outside, tcp::SYN | tcp::ACK, 1, 2),
            _ => echo(icmp::ECHO_REPLY, SERVER, outside.0, outside.1),
        };
        let let_in = nat.send_outside(&answer).remove(0).packet;
        let quoted = with_options(&let_in, &options);
        for length in [quoted.len(), 36] {
            let told = error(HOST, SERVER, icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &quoted[..length]);
            for told in [with_options(&told, &options), told] {
                let out = nat.send_inside(&told);
                let [Sent { is_to_inside: false, packet }] = &out[..] else { panic!("not let out") };
                let mut expected = with_options(&answer, &options);
                ip4::decrement_ttl(&mut expected);
                assert_eq!(packet[packet.len() - length..], expected[..length]);
            }
        }
    }
}

#[test]
fn req7_between_two_hosts_eight_bytes_of_tcp_are_enough() {
    let mut nat = Nat::new();
    let one = nat.seen(&segment((HOST, 5000), (SERVER, 80), tcp::SYN, 1, 0));
    let other = nat.seen(&segment((OTHER_HOST, 6000), (SERVER, 80), tcp::SYN, 1, 0));
    let sent = segment((HOST, 5000), other, tcp::SYN, 1, 0);
    let heard = nat.send_inside(&sent).remove(0).packet;
    let told = error(OTHER_HOST, one.0, icmp::UNREACHABLE, icmp::CODE_PORT, [0; 4], &heard[..28]);
    let out = nat.send_inside(&told);
    let [Sent { is_to_inside: true, packet }] = &out[..] else { panic!("not let in") };
    assert_eq!(packet[12..20], [other.0.octets(), HOST.octets()].concat());
    assert_eq!((&packet[28 + 12..28 + 20], &packet[28 + 20..]), (&sent[12..20], &sent[20..28]));
}

#[test]
fn req10_a_packet_that_is_too_big_and_one_that_leads_nowhere_are_answered() {
    let mut nat = Nat::new();
    let too_big = udp_packet((HOST, 5000), (SERVER, 53), &[0; 1480]);
    let out = nat.send_inside(&too_big);
    assert_eq!((out[0].is_to_inside, &out[0].packet[20..22]), (true, &[icmp::UNREACHABLE, 4][..]));
    nat.lose_default_route();
    let out = nat.send_inside(&query(7));
    assert_eq!((out[0].is_to_inside, &out[0].packet[20..22]), (true, &[icmp::UNREACHABLE, icmp::CODE_NET][..]));
    assert_eq!(nat.bindings(), 0);
}

#[test]
fn req11_other_messages_go_neither_way() {
    let mut nat = Nat::new();
    let (_, seen) = sent_and_seen(&mut nat).remove(2);
    let passes = [icmp::UNREACHABLE, icmp::TIME_EXCEEDED, icmp::PARAMETER_PROBLEM];
    for kind in (0..=255).filter(|kind| !passes.contains(kind)) {
        if !icmp::is_reply(kind) {
            let from_outside = crate::dataplane::testing::icmp_packet(SERVER, OUTSIDE[0], kind, 0, &seen[24..]);
            assert!(!nat.is_let_in(&from_outside), "type {kind}");
        }
        if !icmp::is_request(kind) {
            let from_inside = crate::dataplane::testing::icmp_packet(HOST, SERVER, kind, 0, &query(5000)[24..]);
            assert_eq!(nat.send_inside(&from_inside), [], "type {kind}");
        }
    }
    assert_eq!(nat.bindings(), 3);
}
