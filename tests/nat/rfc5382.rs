//! RFC 5382: TCP.

use crate::{
    DEFAULT, FILTERING, IMPATIENT, Turn, eventually,
    packet::{
        ACK, FIN,
        Host::{A, B, Gateway, R, S, T},
        Packet, Point, RST, SYN, mapped,
    },
    rig::Side::{Inside, Outside},
};

/// A segment of A to S.
fn up(flags: u8, numbers: (u32, u32)) -> Packet {
    Packet::tcp(A.own(1), S.port(80), flags, numbers, b"")
}

/// And back.
fn down(flags: u8, numbers: (u32, u32)) -> Packet {
    Packet::tcp(S.port(80), mapped(0), flags, numbers, b"")
}

/// A's connection to S is open.
pub(crate) fn connect(turn: &mut Turn) {
    assert_eq!(turn.inside(&up(SYN, (100, 0))), ["Outside: tcp Gateway:m0 > S:80 flags 0x2 100/0"]);
    assert_eq!(turn.outside(&down(SYN | ACK, (900, 101))), ["Inside: tcp S:80 > A:+1 flags 0x12 900/101"]);
    assert_eq!(turn.inside(&up(ACK, (101, 901))), ["Outside: tcp Gateway:m0 > S:80 flags 0x10 101/901"]);
}

#[test]
fn req1_mapping_is_endpoint_independent() {
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    let other = Packet::tcp(A.own(1), T.port(443), SYN, (1, 0), b"");
    assert_eq!(turn.inside(&other), ["Outside: tcp Gateway:m0 > T:443 flags 0x2 1/0"]);
}

#[test]
fn req2_every_valid_sequence_passes_simultaneous_open_included() {
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    // Closed by one end, then by the other.
    assert_eq!(turn.outside(&down(FIN | ACK, (901, 101))).len(), 1);
    assert_eq!(turn.inside(&up(ACK, (101, 902))).len(), 1);
    assert_eq!(turn.inside(&up(FIN | ACK, (101, 902))).len(), 1);
    assert_eq!(turn.outside(&down(ACK, (902, 102))).len(), 1);

    let mut turn = {
        drop(turn);
        Turn::with(DEFAULT)
    };
    assert_eq!(turn.inside(&up(SYN, (100, 0))).len(), 1);
    assert_eq!(turn.outside(&down(SYN, (900, 0))), ["Inside: tcp S:80 > A:+1 flags 0x2 900/0"]);
    assert_eq!(turn.inside(&up(SYN | ACK, (100, 901))).len(), 1);
    assert_eq!(turn.outside(&down(SYN | ACK, (900, 101))).len(), 1);
    assert_eq!(turn.inside(&up(ACK, (101, 901))), ["Outside: tcp Gateway:m0 > S:80 flags 0x10 101/901"]);
}

#[test]
fn req2_a_connection_is_made_by_a_syn_only() {
    let mut turn = Turn::with(DEFAULT);
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        assert!(turn.inside(&up(flags, (100, 0))).is_empty());
    }
}

#[test]
fn req3_filtering_is_endpoint_independent_and_address_dependent_by_option() {
    let stranger = |port| Packet::tcp(T.port(port), mapped(0), SYN, (1, 0), b"");
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    assert_eq!(turn.outside(&stranger(7)), ["Inside: tcp T:7 > A:+1 flags 0x2 1/0"]);

    let mut turn = {
        drop(turn);
        Turn::with(FILTERING)
    };
    connect(&mut turn);
    assert!(turn.outside(&stranger(7)).is_empty());
    let other_port = Packet::tcp(S.port(7), mapped(0), SYN, (1, 0), b"");
    assert_eq!(turn.outside(&other_port), ["Inside: tcp S:7 > A:+1 flags 0x2 1/0"]);
}

#[test]
fn req4_an_unsolicited_syn_is_not_answered_at_once_but_refused_in_the_end() {
    let turn = Turn::with(DEFAULT);
    let syn = Packet::tcp(S.port(4000), Gateway.port(45_000), SYN, (1, 0), b"").bytes(&turn.names).expect("a packet");
    assert!(turn.put(Outside, &syn).is_empty());
    eventually("port unreachable about the SYN", || {
        let is_refusal = |packet: &[u8]| packet[9] == 1 && packet[20..22] == [3, 3] && packet[28..] == syn[..];
        turn.rig().receive(crate::QUIET).iter().any(|(side, packet)| *side == Outside && is_refusal(packet))
    });
}

#[test]
fn req5_an_open_connection_outlives_those_that_open_or_are_closed() {
    let mut turn = Turn::with(IMPATIENT);
    connect(&mut turn);
    let point = |number| -> (Point, Point) { (A.own(number), S.port(80)) };
    // One that never opens, and one that is reset.
    for (number, flags) in [(2, &[SYN][..]), (3, &[SYN, RST])] {
        let (from, to) = point(number);
        for flags in flags {
            turn.inside(&Packet::tcp(from, to, *flags, (100, 0), b""));
        }
    }
    for mapping in [1, 2] {
        let late = Packet::tcp(S.port(80), mapped(mapping), ACK, (1, 1), b"");
        eventually("the mapping to end", || turn.outside(&late).is_empty());
    }
    assert_eq!(turn.outside(&down(ACK, (901, 101))), ["Inside: tcp S:80 > A:+1 flags 0x10 901/101"]);
}

#[test]
fn req6_no_payload_is_looked_into() {
    let mut turn = Turn::with(DEFAULT);
    let ftp = |flags, numbers, payload: &[u8]| Packet::tcp(A.own(1), S.port(21), flags, numbers, payload);
    turn.inside(&ftp(SYN, (100, 0), b""));
    turn.outside(&Packet::tcp(S.port(21), mapped(0), SYN | ACK, (900, 101), b""));
    let command = b"PORT 10,0,0,2,19,136\r\n";
    let out = turn.put(Inside, &ftp(ACK, (101, 901), command).bytes(&turn.names).expect("a packet"));
    assert_eq!(out[0].1[40..], command[..]);
}

#[test]
fn req7_no_port_is_two_hosts() {
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    let of_other = Packet::tcp(B.own(1), S.port(80), SYN, (100, 0), b"");
    assert_eq!(turn.inside(&of_other), ["Outside: tcp Gateway:m1 > S:80 flags 0x2 100/0"]);
}

#[test]
fn req8_two_hosts_connect_by_their_outside_addresses() {
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    let syn = Packet::tcp(B.own(2), mapped(0), SYN, (1, 0), b"");
    assert_eq!(turn.inside(&syn), ["Inside: tcp Gateway:m1 > A:+1 flags 0x2 1/0"]);
    let answer = Packet::tcp(A.own(1), mapped(1), SYN | ACK, (5, 2), b"");
    assert_eq!(turn.inside(&answer), ["Inside: tcp Gateway:m0 > B:+2 flags 0x12 5/2"]);
}

#[test]
fn req9_and_req10_icmp_errors_are_translated_and_end_nothing() {
    let mut turn = Turn::with(DEFAULT);
    connect(&mut turn);
    for code in [0, 1, 2, 3, 5, 9, 10, 13] {
        let quoted = Packet::tcp(mapped(0), S.port(80), ACK, (101, 901), b"");
        let told = format!("Inside: error 3/{code} (0) R > A about [tcp A:+1 > S:80]");
        assert_eq!(turn.outside(&Packet::error(R, Gateway, (3, code), quoted, 8)), [told]);
    }
    assert_eq!(turn.outside(&down(ACK, (901, 101))), ["Inside: tcp S:80 > A:+1 flags 0x10 901/101"]);
}
