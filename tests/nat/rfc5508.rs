//! RFC 5508: ICMP.

use crate::{
    DEFAULT, IMPATIENT, LIMITED, Turn, answer, eventually,
    packet::{
        Host::{A, B, Gateway, R, S, T},
        Layer4, Packet, SYN, mapped,
    },
    question,
    rig::Side::{Inside, Outside},
};

/// Router alert, no operations, end of list.
const OPTIONS: [u8; 8] = [0x94, 4, 0, 0, 1, 1, 0, 0];

fn ping() -> Packet {
    Packet::ping(A.own(1), S, b"payload")
}

/// One packet of each protocol goes out; each as S sees it, and what A reads of an error about it.
fn three(turn: &mut Turn) -> [(Packet, &'static str); 3] {
    turn.inside(&question());
    turn.inside(&Packet::tcp(A.own(2), S.port(80), SYN, (100, 0), b""));
    turn.inside(&Packet::ping(A.own(3), S, b"payload"));
    [
        (Packet::udp(mapped(0), S.port(53), b"question"), "[udp A:+1 > S:53]"),
        (Packet::tcp(mapped(1), S.port(80), SYN, (100, 0), b""), "[tcp A:+2 > S:80]"),
        (Packet::ping(mapped(2), S, b"payload"), "[ping A:+3 > S]"),
    ]
}

#[test]
fn req1_queries_pass_and_an_identifier_is_one_hosts() {
    let mut turn = Turn::with(DEFAULT);
    assert_eq!(turn.inside(&ping()), ["Outside: ping Gateway:m0 > S"]);
    assert_eq!(turn.inside(&Packet::ping(A.own(1), T, b"")), ["Outside: ping Gateway:m0 > T"]);
    assert_eq!(turn.inside(&Packet::ping(B.own(1), S, b"")), ["Outside: ping Gateway:m1 > S"]);
    assert_eq!(turn.outside(&Packet::pong(S, mapped(0), b"")), ["Inside: pong S > A:+1"]);
    assert_eq!(turn.outside(&Packet::pong(S, mapped(1), b"")), ["Inside: pong S > B:+1"]);
}

#[test]
fn req1_timestamps_are_queries_too() {
    let mut turn = Turn::with(DEFAULT);
    assert_eq!(turn.inside(&Packet::timestamp(A.own(1), S)), ["Outside: timestamp request Gateway:m0 > S"]);
    assert_eq!(turn.inside(&Packet::timestamp(B.own(1), S)), ["Outside: timestamp request Gateway:m1 > S"]);
    assert_eq!(turn.outside(&Packet::timestamp_reply(S, mapped(0))), ["Inside: timestamp reply S > A:+1"]);
    let about = Packet::timestamp(mapped(0), S);
    let told = turn.outside(&Packet::error(R, Gateway, (11, 0), about, 8));
    assert_eq!(told, ["Inside: error 11/0 (0) R > A about [timestamp request A:+1 > S]"]);
}

#[test]
fn req2_a_query_is_waited_for_and_then_forgotten() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&ping());
    assert_eq!(turn.outside(&Packet::pong(S, mapped(0), b"")), ["Inside: pong S > A:+1"]);
    eventually("the mapping to end", || turn.outside(&Packet::pong(S, mapped(0), b"")).is_empty());
}

#[test]
fn req3_wrong_checksums_and_options_are_handled() {
    let mut turn = Turn::with(DEFAULT);
    for (seen, told) in three(&mut turn) {
        let error = |quoted: &Packet| Packet::error(R, Gateway, (3, 1), quoted.clone(), 8);
        let told = format!("Inside: error 3/1 (0) R > A about {told}");
        let broken = seen.clone().with(|packet| packet.is_header_checksum_wrong = true);
        assert!(turn.outside(&error(&broken)).is_empty(), "the quoted header's checksum is wrong");
        let mut wrong = error(&seen).bytes(&turn.names).expect("a packet");
        wrong[22] ^= 1;
        assert!(turn.put(Outside, &wrong).is_empty(), "the message's checksum is wrong");
        let with_options = seen.clone().with(|packet| packet.options = OPTIONS.to_vec());
        assert_eq!(turn.outside(&error(&with_options)), [told.as_str()]);
        let outer = error(&seen).with(|packet| packet.options = OPTIONS.to_vec());
        assert_eq!(turn.outside(&outer), [told.as_str()]);
    }
}

#[test]
fn req4_an_error_from_outside_reaches_the_host_with_the_packet_it_sent() {
    let mut turn = Turn::with(DEFAULT);
    for (seen, told) in three(&mut turn) {
        for (kind, code, rest) in [(3, 4, 1400), (11, 0, 0), (12, 0, 0)] {
            for bytes in [8, 100] {
                let told = format!("Inside: error {kind}/{code} ({rest}) R > A about {told}");
                assert_eq!(turn.outside(&Packet::error(R, Gateway, (kind, code), seen.clone(), bytes)), [told]);
            }
        }
    }
    let unknown = Packet::udp(turn.unused_port(), S.port(53), b"");
    assert!(turn.outside(&Packet::error(R, Gateway, (3, 1), unknown, 8)).is_empty(), "no mapping");
}

#[test]
fn req5_an_error_from_inside_reaches_the_server_with_the_packet_it_sent() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    turn.outside(&answer());
    let heard = Packet::udp(S.port(53), A.own(1), b"answer");
    let told = "Outside: error 3/3 (0) Gateway > S about [udp S:53 > Gateway:m0]";
    for bytes in [8, 100] {
        assert_eq!(turn.inside(&Packet::error(A, S, (3, 3), heard.clone(), bytes)), [told]);
    }
    let with_options = heard.with(|packet| packet.options = OPTIONS.to_vec());
    assert_eq!(turn.inside(&Packet::error(A, S, (3, 3), with_options, 8)), [told]);
    let stranger = Packet::udp(S.port(53), A.own(9), b"");
    assert!(turn.inside(&Packet::error(A, S, (3, 3), stranger, 8)).is_empty());
}

#[test]
fn req6_errors_keep_no_mapping() {
    let mut turn = Turn::with(IMPATIENT);
    turn.inside(&question());
    let error = Packet::error(R, Gateway, (3, 1), Packet::udp(mapped(0), S.port(53), b"question"), 8);
    assert_eq!(turn.outside(&error).len(), 1);
    eventually("the mapping to end", || turn.outside(&error).is_empty());
}

#[test]
fn req7_an_error_between_two_hosts_is_translated_both_ways() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&question());
    turn.inside(&Packet::udp(B.own(2), S.port(53), b""));
    turn.inside(&Packet::udp(A.own(1), mapped(1), b"hello"));
    let heard = Packet::udp(mapped(0), B.own(2), b"hello");
    for bytes in [8, 100] {
        let told = turn.inside(&Packet::error(B, Gateway, (3, 3), heard.clone(), bytes));
        assert_eq!(told, ["Inside: error 3/3 (0) Gateway > A about [udp A:+1 > Gateway:m1]"]);
    }
}

#[test]
fn req8_without_resources_the_sender_is_told_and_nothing_is_forwarded() {
    let mut turn = Turn::with(LIMITED);
    let from_b = |number| Packet::ping(B.own(number), S, b"");
    let told: Vec<_> = (1..6).map(|number| turn.inside(&from_b(number)).remove(0)).collect();
    let refused = |said: &String| said.starts_with("Inside: error 3/13 (0) GatewayInside > B about [ping B:+");
    assert!(told.iter().skip(2).all(refused), "{told:?}");
}

#[test]
fn req10_a_packet_whose_time_runs_out_here_is_answered() {
    let mut turn = Turn::with(DEFAULT);
    let told = "Inside: error 11/0 (0) GatewayInside > A about [udp A:+1 > S:53]";
    assert_eq!(turn.inside(&question().with(|packet| packet.ttl = 1)), [told]);
}

#[test]
fn req10_that_nobody_answers_on_the_link_is_told() {
    let turn = Turn::with(DEFAULT);
    let sent = crate::renumbered(question().bytes(&turn.names).expect("a packet"), 19, 99);
    turn.rig().send(Inside, &sent);
    eventually("host unreachable about the packet", || {
        let is_told = |packet: &[u8]| {
            packet[9] == 1
                && packet[20..22] == [3, 1]
                && packet[28 + 12..] == sent[12..]
                && packet[16..20] == [10, 0, 0, 2]
        };
        turn.rig().receive(crate::QUIET).iter().any(|(side, packet)| *side == Inside && is_told(packet))
    });
}

#[test]
fn req11_other_messages_and_errors_about_other_protocols_go_no_further() {
    let mut turn = Turn::with(DEFAULT);
    turn.inside(&ping());
    // Source quench, redirect, router solicitation, information and address mask requests.
    for kind in [4, 5, 10, 15, 17] {
        let error = Packet::error(A, S, (kind, 0), Packet::udp(S.port(53), A.own(1), b""), 8);
        assert!(turn.inside(&error).is_empty(), "type {kind}");
    }
    // GRE, IPIP, ESP, SCTP.
    for protocol in [47, 4, 50, 132] {
        let quoted = Packet::other(Gateway, S, protocol, &[0; 16]);
        assert!(matches!(quoted.layer4, Layer4::Other { .. }));
        assert!(turn.outside(&Packet::error(R, Gateway, (3, 2), quoted, 16)).is_empty(), "about protocol {protocol}");
        let quoted = Packet::other(S, A, protocol, &[0; 16]);
        assert!(turn.inside(&Packet::error(A, S, (3, 2), quoted, 16)).is_empty(), "about protocol {protocol}");
        assert!(turn.put(Inside, &Packet::other(A, S, protocol, &[0; 16]).bytes(&turn.names).unwrap()).is_empty());
    }
    assert_eq!(turn.outside(&Packet::pong(S, mapped(0), b"")), ["Inside: pong S > A:+1"]);
}
