//! The packet script: what a NAT is asked to do, must not do, and is attacked with.

use crate::{
    packet::{
        ACK, Checksum, FIN,
        Host::{A, B, Gateway, GatewayInside, R, S, T},
        Layer4, Packet, RST, SYN, mapped, unused,
    },
    rig::Side::{Inside, Outside},
    script::Case,
};

/// All cases but the random ones.
pub(crate) fn all() -> Vec<Case> {
    [udp(), tcp(), icmp(), icmp_errors(), fragments(), headers(), others()].concat()
}

fn question() -> Packet {
    Packet::udp(A.own(1), S.port(53), b"question")
}

fn answer() -> Packet {
    Packet::udp(S.port(53), mapped(0), b"an answer")
}

fn udp() -> Vec<Case> {
    vec![
        Case::new("udp: question and answer").inside(question()).outside(answer()).inside(question()),
        Case::new("udp: two servers")
            .inside(question())
            .inside(Packet::udp(A.own(1), T.port(53), b"question"))
            .outside(answer()),
        Case::new("udp: two ports of a host").inside(question()).inside(Packet::udp(A.own(2), S.port(53), b"other")),
        Case::new("udp: one port of two hosts")
            .inside(question())
            .inside(Packet::udp(B.own(1), S.port(53), b"of B"))
            .outside(Packet::udp(S.port(53), mapped(0), b"to A"))
            .outside(Packet::udp(S.port(53), mapped(1), b"to B")),
        Case::new("udp: another port of the server answers").inside(question()).outside(Packet::udp(
            S.port(54),
            mapped(0),
            b"from elsewhere",
        )),
        Case::new("udp: another server answers").inside(question()).outside(Packet::udp(
            T.port(53),
            mapped(0),
            b"from elsewhere",
        )),
        Case::new("udp: unsolicited").outside(Packet::udp(S.port(53), unused(78), b"hello?")),
        Case::new("udp: unsolicited to a port below the range").outside(Packet::udp(
            S.port(53),
            Gateway.port(53),
            b"hello?",
        )),
        Case::new("udp: empty").inside(Packet::udp(A.own(1), S.port(53), b"")).outside(Packet::udp(
            S.port(53),
            mapped(0),
            b"",
        )),
        Case::new("udp: odd length").inside(Packet::udp(A.own(1), S.port(53), b"odd")).outside(Packet::udp(
            S.port(53),
            mapped(0),
            b"also",
        )),
        Case::new("udp: no checksum")
            .inside(question().with(|packet| set_checksum(packet, Checksum::None)))
            .outside(answer().with(|packet| set_checksum(packet, Checksum::None))),
        Case::new("udp: wrong checksum from inside")
            .inside(question().with(|packet| set_checksum(packet, Checksum::Wrong))),
        Case::new("udp: wrong checksum from outside")
            .inside(question())
            .outside(answer().with(|packet| set_checksum(packet, Checksum::Wrong))),
        Case::new("udp: hairpin")
            .inside(question())
            .inside(Packet::udp(B.own(2), mapped(0), b"neighbour"))
            .inside(Packet::udp(A.own(1), mapped(1), b"yes?")),
        Case::new("udp: hairpin to itself").inside(question()).inside(Packet::udp(A.own(1), mapped(0), b"me")),
        Case::new("udp: hairpin to nobody").inside(Packet::udp(A.own(1), unused(79), b"anyone?")),
        Case::new("udp: from port 0").inside(Packet::udp(A.port(0), S.port(53), b"zero")),
        Case::new("udp: to port 0").inside(Packet::udp(A.own(1), S.port(0), b"zero")),
        Case::new("udp: well-known source port")
            .inside(Packet::udp(A.port(500), S.port(500), b"ike"))
            .outside(Packet::udp(S.port(500), mapped(0), b"ike")),
    ]
}

fn set_checksum(packet: &mut Packet, wanted: Checksum) {
    if let Layer4::Udp { checksum, .. } = &mut packet.layer4 {
        *checksum = wanted;
    }
}

/// A segment from A to S.
fn up(flags: u8, numbers: (u32, u32), payload: &[u8]) -> Packet {
    Packet::tcp(A.own(1), S.port(80), flags, numbers, payload)
}

/// A segment from S to A.
fn down(flags: u8, numbers: (u32, u32), payload: &[u8]) -> Packet {
    Packet::tcp(S.port(80), mapped(0), flags, numbers, payload)
}

fn connected(name: &str) -> Case {
    Case::new(name).inside(up(SYN, (100, 0), b"")).outside(down(SYN | ACK, (900, 101), b"")).inside(up(
        ACK,
        (101, 901),
        b"",
    ))
}

fn tcp() -> Vec<Case> {
    vec![
        connected("tcp: request, response, close by the client")
            .inside(up(ACK, (101, 901), b"request"))
            .outside(down(ACK, (901, 108), b"response"))
            .inside(up(FIN | ACK, (108, 909), b""))
            .outside(down(FIN | ACK, (909, 109), b""))
            .inside(up(ACK, (109, 910), b"")),
        connected("tcp: close by the server, half open for a while")
            .outside(down(FIN | ACK, (901, 101), b""))
            .inside(up(ACK, (101, 902), b"still talking"))
            .outside(down(ACK, (902, 114), b""))
            .inside(up(FIN | ACK, (114, 902), b""))
            .outside(down(ACK, (902, 115), b"")),
        connected("tcp: reset by the server").outside(down(RST | ACK, (901, 101), b"")),
        connected("tcp: reset by the client").inside(up(RST, (101, 0), b"")),
        connected("tcp: a reset out of the window changes nothing")
            .outside(down(RST, (900_000_000, 0), b""))
            .inside(up(ACK, (101, 901), b"still here"))
            .outside(down(ACK, (901, 111), b"good")),
        Case::new("tcp: refused").inside(up(SYN, (100, 0), b"")).outside(down(RST | ACK, (0, 101), b"")),
        Case::new("tcp: simultaneous open")
            .inside(up(SYN, (100, 0), b""))
            .outside(down(SYN, (900, 0), b""))
            .inside(up(SYN | ACK, (100, 901), b""))
            .outside(down(SYN | ACK, (900, 101), b""))
            .inside(up(ACK, (101, 901), b"open")),
        Case::new("tcp: the SYN comes twice")
            .inside(up(SYN, (100, 0), b""))
            .inside(up(SYN, (100, 0), b""))
            .outside(down(SYN | ACK, (900, 101), b"")),
        Case::new("tcp: starts with ACK").inside(up(ACK, (100, 900), b"")),
        Case::new("tcp: starts with data").inside(up(ACK, (100, 900), b"in the middle")),
        Case::new("tcp: starts with SYN and ACK").inside(up(SYN | ACK, (100, 900), b"")),
        Case::new("tcp: starts with FIN").inside(up(FIN | ACK, (100, 900), b"")),
        Case::new("tcp: starts with RST").inside(up(RST, (100, 0), b"")),
        Case::new("tcp: all flags").inside(up(0x3f, (100, 0), b"")),
        Case::new("tcp: no flags").inside(up(0, (100, 0), b"")),
        Case::new("tcp: SYN and FIN").inside(up(SYN | FIN, (100, 0), b"")),
        Case::new("tcp: SYN and RST").inside(up(SYN | RST, (100, 0), b"")),
        Case::new("tcp: SYN with data").inside(up(SYN, (100, 0), b"early")).outside(down(SYN | ACK, (900, 106), b"")),
        Case::new("tcp: an unsolicited SYN").outside(Packet::tcp(S.port(80), unused(80), SYN, (900, 0), b"")),
        Case::new("tcp: an unsolicited SYN and ACK").outside(Packet::tcp(
            S.port(80),
            unused(81),
            SYN | ACK,
            (900, 1),
            b"",
        )),
        Case::new("tcp: another server's SYN at a mapping").inside(up(SYN, (100, 0), b"")).outside(Packet::tcp(
            T.port(80),
            mapped(0),
            SYN,
            (500, 0),
            b"",
        )),
        Case::new("tcp: one port to two servers").inside(up(SYN, (100, 0), b"")).inside(Packet::tcp(
            A.own(1),
            T.port(80),
            SYN,
            (300, 0),
            b"",
        )),
        connected("tcp: data, then the same connection anew")
            .inside(up(FIN | ACK, (101, 901), b""))
            .outside(down(FIN | ACK, (901, 102), b""))
            .inside(up(ACK, (102, 902), b""))
            .inside(up(SYN, (70_000, 0), b""))
            .outside(down(SYN | ACK, (80_000, 70_001), b"")),
        connected("tcp: retransmission").inside(up(ACK, (101, 901), b"again")).inside(up(ACK, (101, 901), b"again")),
        connected("tcp: far out of the window").inside(up(ACK, (2_000_000_000, 901), b"lost")),
        Case::new("tcp: hairpin").inside(up(SYN, (100, 0), b"")).inside(Packet::tcp(
            B.own(2),
            mapped(0),
            SYN,
            (700, 0),
            b"",
        )),
    ]
}

fn icmp() -> Vec<Case> {
    vec![
        Case::new("icmp: ping").inside(Packet::ping(A.own(1), S, b"ping")).outside(Packet::pong(S, mapped(0), b"ping")),
        Case::new("icmp: one identifier of two hosts")
            .inside(Packet::ping(A.own(1), S, b"of A"))
            .inside(Packet::ping(B.own(1), S, b"of B"))
            .outside(Packet::pong(S, mapped(1), b"of B"))
            .outside(Packet::pong(S, mapped(0), b"of A")),
        Case::new("icmp: one identifier to two servers").inside(Packet::ping(A.own(1), S, b"1")).inside(Packet::ping(
            A.own(1),
            T,
            b"2",
        )),
        Case::new("icmp: a reply nobody asked for").outside(Packet::pong(S, unused(82), b"?")),
        Case::new("icmp: a reply by another host").inside(Packet::ping(A.own(1), S, b"ping")).outside(Packet::pong(
            T,
            mapped(0),
            b"ping",
        )),
        Case::new("icmp: an echo reply from inside").inside(
            Packet::ping(A.own(1), S, b"")
                .with(|packet| packet.layer4 = Layer4::Query { kind: 0, payload: b"?".to_vec() }),
        ),
        Case::new("icmp: ping with one hop to live")
            .inside(Packet::ping(A.own(1), S, b"trace").with(|packet| packet.ttl = 1)),
        Case::new("icmp: ping of the gateway from inside").inside(Packet::ping(A.own(1), GatewayInside, b"you?")),
        Case::new("icmp: ping of the gateway's other address").inside(Packet::ping(A.own(1), Gateway, b"you?")),
        Case::new("icmp: ping of the gateway from outside").outside(Packet::ping(S.port(7), Gateway, b"you?")),
        Case::new("icmp: empty ping").inside(Packet::ping(A.own(1), S, b"")).outside(Packet::pong(S, mapped(0), b"")),
        Case::new("icmp: large ping").inside(Packet::ping(A.own(1), S, &[7; 1300])).outside(Packet::pong(
            S,
            mapped(0),
            &[7; 1300],
        )),
        Case::new("icmp: wrong checksum").inside(Packet::other(A, S, 1, &[8, 0, 1, 2, 50, 0, 0, 1])),
        Case::new("icmp: timestamp")
            .inside(Packet::timestamp(A.own(1), S))
            .outside(Packet::timestamp_reply(S, mapped(0))),
        Case::new("icmp: a timestamp nobody asked for").outside(Packet::timestamp_reply(S, unused(1))),
        Case::new("icmp error: about a timestamp request")
            .inside(Packet::timestamp(A.own(1), S))
            .outside(Packet::error(R, Gateway, (3, 1), Packet::timestamp(mapped(0), S), 8)),
        Case::new("icmp: redirect from outside").inside(question()).outside(Packet::error(
            R,
            Gateway,
            (5, 1),
            sent_question(),
            8,
        )),
        Case::new("icmp: source quench").inside(question()).outside(Packet::error(
            R,
            Gateway,
            (4, 0),
            sent_question(),
            8,
        )),
        Case::new("icmp: router advertisement").outside(Packet::other(
            R,
            Gateway,
            1,
            &with_sum(&[9, 0, 0, 0, 0, 2, 0, 60]),
        )),
    ]
}

fn with_sum(bytes: &[u8]) -> Vec<u8> {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    let mut bytes = bytes.to_vec();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A's question as it looks outside.
fn sent_question() -> Packet {
    Packet::udp(mapped(0), S.port(53), b"question").with(|packet| packet.ttl = 63)
}

fn icmp_errors() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, codes) in [(3, 0..=15), (11, 0..=1), (12, 0..=2)] {
        for code in codes {
            cases.push(
                Case::new(format!("icmp error: {kind}/{code} about udp"))
                    .inside(question())
                    .outside(Packet::error(R, Gateway, (kind, code), sent_question(), 8))
                    .outside(answer()),
            );
        }
    }
    let sent_syn = || Packet::tcp(mapped(0), S.port(80), SYN, (100, 0), b"").with(|packet| packet.ttl = 63);
    let sent_ping = || Packet::ping(mapped(0), S, b"ping").with(|packet| packet.ttl = 63);
    for (name, quoted) in [("8 bytes", 8), ("all", 1000)] {
        cases.extend([
            Case::new(format!("icmp error: about udp, quoting {name}")).inside(question()).outside(Packet::error(
                S,
                Gateway,
                (3, 3),
                sent_question(),
                quoted,
            )),
            Case::new(format!("icmp error: about tcp, quoting {name}"))
                .inside(up(SYN, (100, 0), b""))
                .outside(Packet::error(R, Gateway, (3, 1), sent_syn(), quoted))
                .outside(down(SYN | ACK, (900, 101), b"")),
            Case::new(format!("icmp error: about ping, quoting {name}"))
                .inside(Packet::ping(A.own(1), S, b"ping"))
                .outside(Packet::error(R, Gateway, (11, 0), sent_ping(), quoted))
                .outside(Packet::pong(S, mapped(0), b"ping")),
            Case::new(format!("icmp error: by the client about the answer, quoting {name}"))
                .inside(question())
                .outside(answer())
                .inside(Packet::error(A, S, (3, 3), received_answer(), quoted)),
        ]);
    }
    let error = |quote, bytes| Packet::error(R, Gateway, (3, 1), quote, bytes);
    cases.extend([
        Case::new("icmp error: about a mapping there is not")
            .outside(error(Packet::udp(unused(83), S.port(53), b"?"), 8)),
        Case::new("icmp error: about another server")
            .inside(question())
            .outside(error(Packet::udp(mapped(0), T.port(53), b"?"), 8)),
        Case::new("icmp error: about the answer").inside(question()).outside(error(answer(), 8)),
        Case::new("icmp error: about gre").outside(error(Packet::other(Gateway, S, 47, &[0; 40]), 8)),
        Case::new("icmp error: about ipip").outside(error(Packet::other(Gateway, S, 4, &[0x45; 40]), 28)),
        Case::new("icmp error: about an icmp error")
            .inside(question())
            .outside(error(Packet::error(Gateway, S, (3, 3), answer(), 8), 36)),
        Case::new("icmp error: four bytes of the quote").inside(question()).outside(error(sent_question(), 4)),
        Case::new("icmp error: no byte of the quote").inside(question()).outside(error(sent_question(), 0)),
        Case::new("icmp error: options in the quote")
            .inside(question())
            .outside(error(sent_question().with(|packet| packet.options = vec![1, 1, 1, 0]), 8)),
        Case::new("icmp error: options in front")
            .inside(question())
            .outside(error(sent_question(), 8).with(|packet| packet.options = vec![1, 1, 1, 0])),
        Case::new("icmp error: wrong checksum in the quoted header")
            .inside(question())
            .outside(error(sent_question().with(|packet| packet.is_header_checksum_wrong = true), 8)),
        Case::new("icmp error: from inside about nothing").inside(Packet::error(
            A,
            S,
            (3, 3),
            Packet::udp(S.port(53), A.own(9), b"?"),
            8,
        )),
        Case::new("icmp error: from another host inside").inside(question()).outside(answer()).inside(Packet::error(
            B,
            S,
            (3, 3),
            received_answer(),
            8,
        )),
    ]);
    cases
}

/// S's answer as A received it.
fn received_answer() -> Packet {
    Packet::udp(S.port(53), A.own(1), b"an answer").with(|packet| packet.ttl = 63)
}

fn fragments() -> Vec<Case> {
    let large = |from, to| Packet::udp(from, to, &(0..2000u32).map(|n| n as u8).collect::<Vec<_>>());
    let out = || large(A.own(1), S.port(53));
    let back = || large(S.port(53), mapped(0));
    let mut cases = Vec::new();
    for (name, order) in [
        ("in order", &[0, 1, 2][..]),
        ("backwards", &[2, 1, 0]),
        ("first one last", &[1, 2, 0]),
        ("last one first", &[2, 0, 1]),
        ("one twice", &[0, 1, 1, 2]),
        ("the first missing", &[1, 2]),
        ("the last missing", &[0, 1]),
    ] {
        cases.push(Case::new(format!("fragments: from inside, {name}")).in_fragments(Inside, out(), 800, order));
        cases.push(Case::new(format!("fragments: from outside, {name}")).inside(question()).in_fragments(
            Outside,
            back(),
            800,
            order,
        ));
    }
    cases.push(
        Case::new("fragments: of a ping, both ways")
            .in_fragments(Inside, Packet::ping(A.own(1), S, &[7; 2000]), 800, &[0, 1, 2])
            .in_fragments(Outside, Packet::pong(S, mapped(0), &[7; 2000]), 800, &[0, 1, 2]),
    );
    for overlapping in [1, 2] {
        let case = Case::new(format!("fragments: number {overlapping} overlaps"));
        cases.push(case.in_overlapping_fragments(Inside, out(), 800, overlapping));
    }
    cases.push(Case::new("fragments: tiny").in_fragments(Inside, question(), 8, &[0, 1]));
    cases.push(Case::new("fragments: of an answer nobody asked for").in_fragments(
        Outside,
        large(S.port(53), unused(84)),
        800,
        &[0, 1, 2],
    ));
    cases
}

fn headers() -> Vec<Case> {
    let mut cases = Vec::new();
    for ttl in [0, 1, 2, 255] {
        cases.push(
            Case::new(format!("header: ttl {ttl}"))
                .inside(question().with(|packet| packet.ttl = ttl))
                .inside(question())
                .outside(answer().with(|packet| packet.ttl = ttl)),
        );
    }
    cases.extend([
        Case::new("header: type of service")
            .inside(question().with(|packet| packet.tos = 0xb8))
            .outside(answer().with(|packet| packet.tos = 3)),
        Case::new("header: may be fragmented").inside(question().with(|packet| packet.is_dont_fragment = false)),
        Case::new("header: no-operation options")
            .inside(question().with(|packet| packet.options = vec![1, 1, 1, 1]))
            .outside(answer().with(|packet| packet.options = vec![1, 1, 1, 1])),
        Case::new("header: source route")
            .inside(question().with(|packet| packet.options = vec![131, 7, 4, 203, 0, 113, 20, 0])),
        Case::new("header: unknown option").inside(question().with(|packet| packet.options = vec![0x9e, 4, 0, 0])),
        Case::new("header: wrong checksum").inside(question().with(|packet| packet.is_header_checksum_wrong = true)),
        Case::new("header: wrong checksum from outside")
            .inside(question())
            .outside(answer().with(|packet| packet.is_header_checksum_wrong = true)),
        Case::new("header: too big for the way out").inside(Packet::udp(A.own(1), S.port(53), &[7; 1440])),
        Case::new("header: too big for the way out, may be fragmented")
            .inside(Packet::udp(A.own(1), S.port(53), &[7; 1440]).with(|packet| packet.is_dont_fragment = false)),
        Case::new("header: short udp").inside(Packet::other(A, S, 17, &[0, 1, 0, 2, 0])),
        Case::new("header: short tcp").inside(Packet::other(A, S, 6, &[0; 12])),
        Case::new("header: short icmp").inside(Packet::other(A, S, 1, &[8, 0, 0])),
        Case::new("header: udp length too long").inside(Packet::other(A, S, 17, &[0x30, 1, 0, 53, 0, 200, 0, 0, 1, 2])),
        Case::new("header: udp length too short").inside(Packet::other(A, S, 17, &[0x30, 1, 0, 53, 0, 4, 0, 0, 1, 2])),
    ]);
    cases
}

fn others() -> Vec<Case> {
    let mut cases: Vec<_> = [2, 4, 41, 47, 50, 51, 89, 112, 132, 136, 253]
        .into_iter()
        .map(|protocol| {
            Case::new(format!("protocol {protocol}: out and back"))
                .inside(Packet::other(A, S, protocol, &[0x11; 32]))
                .outside(Packet::other(S, Gateway, protocol, &[0x22; 32]))
        })
        .collect();
    cases.push(Case::new("inside to inside").inside(Packet::udp(A.own(1), B.own(2), b"neighbour")));
    cases.push(Case::new("from outside to an inside address").outside(Packet::udp(S.port(53), A.own(1), b"routed in")));
    cases.push(Case::new("from inside with an outside source").inside(Packet::udp(T.port(53), S.own(1), b"spoofed")));
    cases.push(Case::new("from outside with an inside source").outside(Packet::udp(B.own(1), unused(85), b"spoofed")));
    cases.push(Case::new("from outside with the gateway's source").outside(Packet::udp(
        Gateway.port(1),
        unused(86),
        b"spoofed",
    )));
    cases.push(Case::new("from inside to the gateway's own port").inside(Packet::udp(
        A.own(1),
        GatewayInside.port(4711),
        b"service?",
    )));
    cases
}
