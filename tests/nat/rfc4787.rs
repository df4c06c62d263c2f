//! RFC 4787: UDP.

use crate::{
    DEFAULT, IMPATIENT, POOL, Turn, answer, eventually,
    packet::{
        self,
        Host::{A, B, Gateway, R, S, T},
        Packet, mapped,
    },
    question,
    rig::Side::{Inside, Outside},
};

fn large(from: packet::Point, to: packet::Point) -> Packet {
    Packet::udp(from, to, &(0..2000u32).map(|n| n as u8).collect::<Vec<_>>())
}

#[test]
fn req1_mapping_is_endpoint_independent() {
    let mut turn = Turn::with(DEFAULT);
    assert_eq!(turn.inside(&question()), ["Outside: udp Gateway:m0 > S:53"]);
    assert_eq!(turn.inside(&Packet::udp(A.own(1), S.port(54), b"")), ["Outside: udp Gateway:m0 > S:54"]);
    assert_eq!(turn.inside(&Packet::udp(A.own(1), T.port(53), b"")), ["Outside: udp Gateway:m0 > T:53"]);
    assert_eq!(turn.inside(&Packet::udp(A.own(2), S.port(53), b"")), ["Outside: udp Gateway:m1 > S:53"]);
}

#[test]
fn req2_a_host_has_one_outside_address_whatever_it_sends() {
    let mut turn = Turn::with(POOL);
    for host in [A, B] {
        let (address, _) = turn.seen(&Packet::udp(host.own(1), S.port(53), b""));
        for number in 2..6 {
            assert_eq!(turn.seen(&Packet::udp(host.own(number), T.port(number), b"")).0, address);
        }
        assert_eq!(turn.seen(&Packet::tcp(host.own(1), S.port(80), packet::SYN, (1, 0), b"")).0, address);
        assert_eq!(turn.seen(&Packet::ping(host.own(1), S, b"")).0, address);
    }
}

#[test]
fn req3_no_port_is_two_hosts() {
    let mut turn = Turn::with(DEFAULT);
    assert_eq!(turn.inside(&question()), ["Outside: udp Gateway:m0 > S:53"]);
    assert_eq!(turn.inside(&Packet::udp(B.own(1), S.port(53), b"")), ["Outside: udp Gateway:m1 > S:53"]);
    assert_eq!(turn.inside(&Packet::udp(B.own(1), T.port(9), b"")), ["Outside: udp Gateway:m1 > T:9"]);
}

#[test]
fn req3a_and_req4_a_port_stays_above_1023_and_its_parity_is_kept() {
    let mut turn = Turn::with(DEFAULT);
    for number in 0..20 {
        let (_, port) = turn.seen(&Packet::udp(A.own(number), S.port(53), b""));
        assert_eq!((port >= 1024, port % 2), (true, number % 2));
    }
}

#[test]
fn req5_a_mapping_ends_when_its_timer_does() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&question());
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
    eventually("the mapping to end", || turn.outside(&answer()).is_empty());
}

#[test]
fn req6_what_goes_out_keeps_a_mapping() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&question());
    turn.inside(&Packet::udp(B.own(2), S.port(53), b"only once"));
    let of_other = Packet::udp(S.port(53), mapped(1), b"answer");
    // What comes in for B keeps nothing; A goes on asking and keeps what it has meanwhile.
    eventually("the other mapping to end", || {
        assert_eq!(turn.inside(&question()), ["Outside: udp Gateway:m0 > S:53"]);
        turn.outside(&of_other).is_empty()
    });
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
}

#[test]
fn req8_filtering_is_endpoint_independent() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    assert_eq!(turn.outside(&Packet::udp(S.port(99), mapped(0), b"")), ["Inside: udp S:99 > A:+1"]);
    assert_eq!(turn.outside(&Packet::udp(T.port(53), mapped(0), b"")), ["Inside: udp T:53 > A:+1"]);
    let unsolicited = Packet::udp(S.port(53), turn.unused_port(), b"");
    assert!(turn.outside(&unsolicited).is_empty());
}

#[test]
fn req9_two_hosts_reach_each_other_by_their_outside_addresses() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    turn.inside(&Packet::udp(B.own(2), S.port(53), b""));
    assert_eq!(turn.inside(&Packet::udp(B.own(2), mapped(0), b"")), ["Inside: udp Gateway:m1 > A:+1"]);
    assert_eq!(turn.inside(&Packet::udp(A.own(1), mapped(1), b"")), ["Inside: udp Gateway:m0 > B:+2"]);
}

#[test]
fn req10_no_payload_is_looked_into() {
    let turn = Turn::with(DEFAULT);
    for port in [21, 69, 1719, 5060] {
        let says_address = format!("PORT 10,0,0,2,19,136 c=IN IP4 {}", A.address());
        let packet = Packet::udp(A.own(port % 50), S.port(port), says_address.as_bytes());
        let out = turn.put(Inside, &packet.bytes(&turn.names).expect("a packet"));
        assert_eq!(&out[0].1[28..], says_address.as_bytes());
    }
}

#[test]
fn req11_the_same_packets_are_treated_the_same_whatever_was_between() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    for number in 2..30 {
        turn.inside(&Packet::udp(B.own(number), T.port(number), b""));
        assert_eq!(turn.inside(&question()), ["Outside: udp Gateway:m0 > S:53"]);
        assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
    }
}

#[test]
fn req12_an_icmp_error_ends_no_mapping_and_is_translated() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    for code in [0, 1, 2, 3, 5, 9, 10, 13] {
        let quoted = Packet::udp(mapped(0), S.port(53), b"question");
        let told = format!("Inside: error 3/{code} (0) R > A about [udp A:+1 > S:53]");
        assert_eq!(turn.outside(&Packet::error(R, Gateway, (3, code), quoted, 8)), [told]);
    }
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
}

#[test]
fn req13_too_big_is_answered_or_cut() {
    let mut turn = Turn::with(DEFAULT);
    let too_big = Packet::udp(A.own(1), S.port(53), &[7; 1390]);
    let told = "Inside: error 3/4 (1400) GatewayInside > A about [udp A:+1 > S:53]";
    assert_eq!(turn.inside(&too_big), [told]);
    let too_big = too_big.with(|packet| packet.is_dont_fragment = false);
    let came = turn.put(Inside, &too_big.bytes(&turn.names).expect("a packet"));
    let fields: Vec<_> = came.iter().map(|(side, packet)| (*side, packet[6] & 0xe0, packet[7])).collect();
    assert_eq!(fields, [(Outside, 0x20, 0), (Outside, 0, 1376u16.div_euclid(8) as u8)], "in order");
}

#[test]
fn req14_fragments_in_every_order_are_translated_both_ways() {
    let mut turn = Turn::with(DEFAULT);
    for (number, order) in (1..).zip([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]) {
        let mapping = usize::from(number) - 1;
        let out = turn.fragments(Inside, large(A.own(number), S.port(53)), number, &order);
        assert_eq!(out, [format!("Outside: udp Gateway:m{mapping} > S:53")], "{order:?}");
        let back = turn.fragments(Outside, large(S.port(53), mapped(mapping)), number, &order);
        assert_eq!(back, [format!("Inside: udp S:53 > A:+{number}")], "{order:?}");
    }
}

#[test]
fn req14_a_flood_of_fragments_hurts_nothing_else() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    for round in 0..20u16 {
        for id in 0..500 {
            let packet =
                large(T.port(53), mapped(0)).with(|p| (p.id, p.is_dont_fragment) = (1000 + round * 500 + id, false));
            let parts = packet::fragments(&packet.bytes(&turn.names).expect("a packet"), 800);
            // Never the first one.
            turn.rig().send(Outside, &parts[1]);
        }
        assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
        assert_eq!(turn.inside(&Packet::udp(A.own(2 + round), S.port(53), b"")).len(), 1, "a new flow");
    }
    // Those that wait are given up, and fragments of others are translated again.
    let mut id = 20_000;
    eventually("room for fragments", || {
        id += 1;
        turn.fragments(Outside, large(S.port(53), mapped(0)), id, &[1, 0, 2]) == ["Inside: udp S:53 > A:+1"]
    });
}

#[test]
fn req14_fragments_that_overlap_are_dropped() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    let packet = large(S.port(53), mapped(0)).with(|packet| (packet.id, packet.is_dont_fragment) = (77, false));
    let parts = packet::fragments(&packet.bytes(&turn.names).expect("a packet"), 800);
    assert_eq!(turn.put(Outside, &parts[0]).len(), 1);
    assert!(turn.put(Outside, &packet::overlapping(&parts, 1)).is_empty());
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let turn = Turn::with(DEFAULT);
    let mut packet = question().bytes(&turn.names).expect("a packet");
    packet[26..28].fill(0);
    assert_eq!(turn.put(Inside, &packet)[0].1[26..28], [0, 0]);
}
