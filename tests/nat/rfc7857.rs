//! RFC 7857: updates to the other three.

use crate::{
    DEFAULT, IMPATIENT, Turn, answer, eventually,
    packet::{
        ACK,
        Host::{A, S, T},
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
