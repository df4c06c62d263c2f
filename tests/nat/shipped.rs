//! Bugs that other NATs shipped, with real packets.

use crate::{
    DEFAULT, IMPATIENT, Turn, answer, eventually,
    packet::{
        ACK,
        Host::{A, Gateway, R, S},
        Packet, SYN, mapped,
    },
    question,
    rfc5382::connect,
    rig::Side::{Inside, Outside},
};

#[test]
fn an_icmp_error_that_quotes_gre_or_ipip_crashes_nothing() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    for protocol in [47, 4] {
        for bytes in [0, 4, 8, 20, 28, 40] {
            let quoted = Packet::other(Gateway, S, protocol, &[0x45; 40]);
            assert!(turn.outside(&Packet::error(R, Gateway, (3, 2), quoted, bytes)).is_empty());
            let quoted = Packet::other(S, A, protocol, &[0x45; 40]);
            assert!(turn.inside(&Packet::error(A, S, (3, 2), quoted, bytes)).is_empty());
        }
    }
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"], "and it goes on");
}

#[test]
fn no_session_is_leaked_however_it_ends() {
    let mut turn = Turn::with(IMPATIENT);
    for number in 0..30 {
        let at = 3 * usize::from(number);
        turn.inside(&Packet::udp(A.own(number), S.port(53), b""));
        turn.inside(&Packet::tcp(A.own(number), S.port(80), SYN, (100, 0), b""));
        turn.inside(&Packet::ping(A.own(number), S, b""));
        // No answer, an answer, an answer and a reset.
        if number % 3 > 0 {
            turn.outside(&Packet::udp(S.port(53), mapped(at), b""));
            turn.outside(&Packet::tcp(S.port(80), mapped(at + 1), SYN | ACK, (900, 101), b""));
        }
        if number % 3 > 1 {
            turn.inside(&Packet::tcp(A.own(number), S.port(80), crate::packet::RST, (101, 0), b""));
        }
    }
    // And one that stays.
    let open = |flags, numbers| Packet::tcp(A.own(40), S.port(80), flags, numbers, b"");
    turn.inside(&open(SYN, (100, 0)));
    turn.outside(&Packet::tcp(S.port(80), mapped(90), SYN | ACK, (900, 101), b""));
    turn.inside(&open(ACK, (101, 901)));
    let all = format!("show nat flows --host {} --limit 0 --json", A.address());
    eventually("the open connection to be the only one", || {
        let shown = turn.rig().ask(&all);
        let is_shown = |number: &u16| shown.contains(&format!("\"{}:{}\"", A.address(), turn.names.base + number));
        (0..50).filter(is_shown).collect::<Vec<u16>>() == [40]
    });
}

#[test]
fn an_error_with_eight_bytes_of_tcp_is_read_as_no_more_than_that() {
    let mut turn = Turn::with(IMPATIENT);
    connect(&mut turn);
    // A reset, if one read on.
    let seen = Packet::tcp(mapped(0), S.port(80), crate::packet::RST, (101, 901), b"");
    let told = turn.outside(&Packet::error(R, Gateway, (3, 1), seen, 8));
    assert_eq!(told, ["Inside: error 3/1 (0) R > A about [tcp A:+1 > S:80]"]);
    // Longer than a closed one lives.
    turn.inside(&Packet::tcp(A.own(2), S.port(80), SYN, (1, 0), b""));
    let of_other = Packet::tcp(S.port(80), mapped(1), ACK, (1, 1), b"");
    eventually("the other mapping to end", || turn.outside(&of_other).is_empty());
    assert_eq!(turn.outside(&Packet::tcp(S.port(80), mapped(0), ACK, (901, 101), b"")).len(), 1);
}

#[test]
fn vignat_a_known_flow_is_rewritten_exactly_and_nothing_else_changes() {
    let turn = Turn::with(DEFAULT);
    for (sent, port, checksum) in [
        (question(), 20..22, 26..28),
        (Packet::tcp(A.own(1), S.port(80), SYN, (100, 0), b""), 20..22, 36..38),
        (Packet::ping(A.own(1), S, b"payload"), 24..26, 22..24),
    ] {
        let sent = sent.bytes(&turn.names).expect("a packet");
        let came = turn.put(Inside, &sent);
        let [(Outside, seen)] = &came[..] else { panic!("{came:02x?}") };
        assert_eq!((seen.len(), seen[8]), (sent.len(), sent[8] - 1));
        for at in (0..sent.len()).filter(|at| seen[*at] != sent[*at]) {
            // Time to live, header checksum, source address, and what belongs to the port.
            let may_change = matches!(at, 8 | 10..=15) || port.contains(&at) || checksum.contains(&at);
            assert!(may_change, "byte {at} of {sent:02x?}: {seen:02x?}");
        }
    }
}

#[test]
fn vignat_no_packet_crashes_it() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    let about = Packet::udp(mapped(0), S.port(53), b"question");
    let error = Packet::error(R, Gateway, (3, 4), about, 30);
    for (side, packet) in [
        (Inside, question()),
        (Inside, Packet::tcp(A.own(1), S.port(80), SYN, (1, 0), b"")),
        (Inside, Packet::ping(A.own(1), S, b"payload")),
        (Outside, answer()),
        (Outside, error),
    ] {
        let whole = packet.bytes(&turn.names).expect("its mapping was made");
        for at in 0..whole.len() {
            for length in [at.max(20), whole.len()] {
                let mut broken = whole[..length].to_vec();
                broken.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0xff);
                turn.rig().send(side, &broken);
            }
            if at % 16 == 0 {
                turn.rig().receive(crate::QUIET);
            }
        }
    }
    assert!(turn.is_running());
    crate::script::settle(turn.rig(), crate::QUIET);
    assert_eq!(turn.outside(&answer()), ["Inside: udp S:53 > A:+1"]);
}
