//! RFC 7857: updates to the other three.

use crate::{
    DEFAULT, IMPATIENT, TINY, TINY_POOL, Turn, answer, eventually,
    packet::{
        ACK, FIN,
        Host::{A, B, Gateway, R, S, T},
        Packet, RST, SYN, mapped,
    },
    question,
    rfc5382::connect,
    rig::Side::Inside,
};

#[test]
fn tcp_a_reset_is_translated_and_ends_the_mapping_after_its_timer_only() {
    let mut turn = Turn::with(IMPATIENT);
    connect(&mut turn);
    let reset = Packet::tcp(S.port(80), mapped(0), RST, (901, 0), b"");
    assert_eq!(turn.outside(&reset), ["Inside: tcp S:80 > A:+1 flags 0x4 901/0"]);
    let late = Packet::tcp(S.port(80), mapped(0), ACK, (901, 101), b"");
    assert_eq!(turn.outside(&late).len(), 1, "it is kept for a while");
    eventually("the mapping to end", || turn.outside(&late).is_empty());
}

#[test]
fn tcp_a_reset_that_nobody_in_the_connection_can_have_sent_ends_nothing() {
    let mut turn = Turn::with(IMPATIENT);
    connect(&mut turn);
    let spoofed = Packet::tcp(S.port(80), mapped(0), RST, (900_000_000, 0), b"");
    assert_eq!(turn.outside(&spoofed).len(), 1, "judged by the host");
    // Longer than the timer of a closed one, as another mapping shows that began later.
    turn.inside(&Packet::tcp(A.own(2), S.port(80), SYN, (1, 0), b""));
    let of_other = Packet::tcp(S.port(80), mapped(1), ACK, (1, 1), b"");
    eventually("the other mapping to end", || turn.outside(&of_other).is_empty());
    assert_eq!(turn.outside(&Packet::tcp(S.port(80), mapped(0), ACK, (901, 101), b"")).len(), 1);
}

#[test]
fn eif_a_mapping_of_one_protocol_lets_in_no_other() {
    let mut turn = Turn::with(DEFAULT);
    let (_, port) = turn.seen(&question());
    turn.names.mappings.push((17, port));
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
    assert!(turn.outside(&Packet::tcp(S.port(53), mapped(0), ACK, (1, 1), b"")).is_empty());
    assert!(turn.outside(&Packet::pong(S, mapped(0), b"")).is_empty());
}

#[test]
fn refresh_what_answers_a_stranger_keeps_nothing() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&question());
    let stranger = Packet::udp(T.port(6), mapped(0), b"knock");
    let refusal = Packet::error(A, T, (3, 3), Packet::udp(T.port(6), A.own(1), b"knock"), 8);
    eventually("the mapping to end", || {
        let is_over = turn.outside(&stranger).is_empty();
        if !is_over {
            turn.inside(&refusal);
        }
        is_over
    });
}

#[test]
fn port_randomisation_uses_the_whole_range_and_no_order() {
    let mut turn = Turn::with(DEFAULT);
    let ports: Vec<u16> = (0..60).map(|number| turn.seen(&Packet::udp(A.own(number), S.port(53), b"")).1).collect();
    // A chance of one in 2^29 for each half of the range to stay empty.
    assert!(ports.iter().any(|port| *port < 50_000) && ports.iter().any(|port| *port >= 50_000), "{ports:?}");
    assert!(ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count() < 10, "{ports:?}");
}

#[test]
fn ip_id_of_a_datagram_is_left() {
    let turn = Turn::with(DEFAULT);
    for id in [0u16, 1, 0xffff] {
        let packet = question().with(|packet| (packet.id, packet.is_dont_fragment) = (id, false));
        let out = turn.put(Inside, &packet.bytes(&turn.names).expect("a packet"));
        assert_eq!(out[0].1[4..6], id.to_be_bytes());
    }
}

/// A connection that is only being opened, until its timer ends it: others that began before and live are open.
fn wait_for_an_opening_one_to_end(turn: &mut Turn) {
    turn.inside(&Packet::tcp(A.own(9), S.port(80), SYN, (1, 0), b""));
    let to_it = Packet::tcp(S.port(80), mapped(1), ACK, (1, 1), b"");
    eventually("the mapping of the opening connection to end", || turn.outside(&to_it).is_empty());
}

#[test]
fn tcp_a_handshake_that_acknowledges_nothing_the_host_sent_opens_nothing() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&Packet::tcp(A.own(1), S.port(80), SYN, (100, 0), b""));
    let forged = Packet::tcp(S.port(80), mapped(0), SYN | ACK, (900, 500_000), b"");
    assert_eq!(turn.outside(&forged).len(), 1, "judged by the host");
    eventually("the mapping to end, for nothing was opened", || turn.outside(&forged).is_empty());
}

#[test]
fn tcp_a_half_closed_connection_keeps_the_long_timer_whoever_closed() {
    for is_closed_by_host in [true, false] {
        let mut turn = Turn::with(IMPATIENT);
        connect(&mut turn);
        let fin = Packet::tcp(S.port(80), mapped(0), FIN | ACK, (901, 101), b"");
        match is_closed_by_host {
            true => turn.inside(&Packet::tcp(A.own(1), S.port(80), FIN | ACK, (101, 901), b"")),
            false => turn.outside(&fin),
        };
        wait_for_an_opening_one_to_end(&mut turn);
        assert_eq!(turn.outside(&Packet::tcp(S.port(80), mapped(0), ACK, (901, 101), b"")).len(), 1);
    }
}

#[test]
fn port_overlap_is_not_used_whatever_the_destinations() {
    let mut turn = Turn::with(TINY);
    for number in 0..8 {
        turn.seen(&Packet::ping(A.own(number), S, b""));
    }
    let told = turn.inside(&Packet::ping(A.own(8), R, b""));
    assert_eq!(told, ["Inside: error 3/13 (0) GatewayInside > A about [ping A:+8 > R]"]);
}

#[test]
fn parity_may_be_off() {
    let mut turn = Turn::with(TINY);
    // Eight ports that are even, or odd, inside: with parity four of them would find none.
    let ports = (0..8).map(|number| turn.seen(&Packet::tcp(A.own(2 * number), S.port(80), SYN, (1, 0), b"")).1);
    assert_eq!(ports.collect::<std::collections::BTreeSet<u16>>().len(), 8);
}

#[test]
fn address_pooling_a_host_whose_address_is_full_is_refused_and_not_moved() {
    let mut turn = Turn::with(TINY_POOL);
    let from_a = |number| Packet::udp(A.own(number), S.port(53), b"");
    let addresses: Vec<_> = (1..5).map(|number| turn.seen(&from_a(number)).0).collect();
    assert!(addresses.iter().all(|address| *address == addresses[0]), "{addresses:?}");
    let told = turn.inside(&from_a(5));
    assert_eq!(told, ["Inside: error 3/13 (0) GatewayInside > A about [udp A:+5 > S:53]"]);
    let (other, _) = turn.seen(&Packet::udp(B.own(1), S.port(53), b""));
    assert_ne!(other, addresses[0], "where there is room, for who has no address yet");
}

#[test]
fn eim_protocols_have_mappings_of_their_own() {
    let mut turn = Turn::with(DEFAULT);
    for to in [S, T] {
        assert_eq!(
            turn.inside(&Packet::udp(A.own(1), to.port(53), b"")),
            [format!("Outside: udp Gateway:m0 > {to:?}:53")]
        );
        let syn = turn.inside(&Packet::tcp(A.own(1), to.port(80), SYN, (1, 0), b""));
        assert_eq!(syn, [format!("Outside: tcp Gateway:m1 > {to:?}:80 flags 0x2 1/0")]);
        assert_eq!(turn.inside(&Packet::ping(A.own(1), to, b"")), [format!("Outside: ping Gateway:m2 > {to:?}")]);
    }
}

#[test]
fn refresh_no_protocol_is_kept_by_what_comes_in() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&question());
    turn.inside(&Packet::tcp(A.own(1), S.port(80), SYN, (100, 0), b""));
    turn.inside(&Packet::ping(A.own(1), S, b""));
    for from_outside in
        [answer(), Packet::tcp(S.port(80), mapped(1), ACK, (900, 1), b""), Packet::pong(S, mapped(2), b"")]
    {
        eventually("the mapping to end, however much comes in", || turn.outside(&from_outside).is_empty());
    }
}

#[test]
fn icmp_a_querys_mapping_ends_with_its_last_session_and_not_before() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&Packet::ping(A.own(1), S, b""));
    turn.inside(&Packet::ping(B.own(1), S, b""));
    eventually("that of B to end, which asked once", || {
        assert_eq!(turn.inside(&Packet::ping(A.own(1), T, b"")), ["Outside: ping Gateway:m0 > T"]);
        turn.outside(&Packet::pong(S, mapped(1), b"")).is_empty()
    });
    assert_eq!(turn.outside(&Packet::pong(S, mapped(0), b"")), ["Inside: pong S > A:+1"]);
    eventually("that of A to end", || turn.outside(&Packet::pong(T, mapped(0), b"")).is_empty());
}

#[test]
fn hairpinning_of_a_query_is_for_the_gateway() {
    let mut turn = Turn::with(DEFAULT);
    assert_eq!(turn.seen(&Packet::ping(A.own(1), S, b"")).0, Gateway.address());
    let ping = Packet::ping(B.own(1), Gateway, b"");
    let came = turn.put(Inside, &ping.bytes(&turn.names).expect("a packet"));
    assert!(came.iter().all(|(side, packet)| *side == Inside && packet[16..20] == B.address().octets()), "{came:02x?}");
    assert!(came.len() == 1 && came[0].1[20] == 0, "the machine answers for itself");
    assert!(turn.outside(&Packet::ping(S.own(1), Gateway, b"")).iter().all(|told| told.starts_with("Outside")));
}
