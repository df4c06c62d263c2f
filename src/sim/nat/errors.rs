//! Damaged and forged ICMP errors, through each translation and both ways. Nothing panics; what goes out is an error about a
//! packet of a flow that there is, to the end of it that sent the packet; and the flows are as they were before.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    rfc6146::{BOTH, HOST6, translate},
    *,
};
use crate::{
    dataplane::{
        nat::Prefix64,
        testing::udp_packet,
        testing6::{error6_packet, icmp6_packet, tcp6_packet, udp6_packet},
    },
    wire::icmp6,
};

/// Address, and port or identifier.
type End = (IpAddr, u16);

/// A flow that an error may be about.
#[derive(Clone, Debug)]
struct Flow {
    /// What the host sent, and as the server got it.
    sent: [Vec<u8>; 2],
    /// What the server answered, and as the host got it.
    answer: [Vec<u8>; 2],
}

/// An error that is wrong in some way.
#[derive(Clone, Debug)]
struct Forged {
    flow: usize,
    is_from_inside: bool,
    kind: usize,
    code: u8,
    word: [u8; 4],
    /// Bytes of the quoted packet that are left.
    kept: usize,
    /// What is written over it, and where.
    changes: Vec<(usize, [u8; 2])>,
    /// The checksum of a quoted header of IPv4 is right in spite of that.
    is_mended: bool,
    /// Bytes behind the quote.
    padding: usize,
    /// The checksum of the message is wrong by that.
    off: u8,
}

impl Forged {
    /// One that is right, with `kept` bytes of the packet.
    fn whole(flow: usize, is_from_inside: bool, kept: usize) -> Self {
        let (kind, code, word) = (0, 0, [0; 4]);
        let (changes, is_mended, padding, off) = (vec![], false, 0, 0);
        Self { flow, is_from_inside, kind, code, word, kept, changes, is_mended, padding, off }
    }
}

fn forged() -> impl Strategy<Value = Forged> {
    let field = prop_oneof![any::<[u8; 2]>(), Just([0; 2]), Just([0xff; 2]), (0..70u8).prop_map(|low| [0, low])];
    let changes = prop::collection::vec((0..70usize, field), 0..3);
    // RFC 4884: a length in words is the second byte of the second word, or the first one.
    let word = prop_oneof![any::<[u8; 4]>(), Just([0; 4]), (0..40u8).prop_map(|words| [words, words, 0, 0])];
    let kept = prop_oneof![0..70usize, Just(1500)];
    let whole = (0..9usize, any::<bool>(), 0..4usize, 0..16u8, word, kept);
    let off = prop_oneof![9 => Just(0u8), 1 => any::<u8>()];
    (whole, changes, any::<bool>(), prop_oneof![Just(0), 0..1300usize], off).prop_map(
        |((flow, is_from_inside, kind, code, word, kept), changes, is_mended, padding, off)| Forged {
            flow,
            is_from_inside,
            kind,
            code,
            word,
            kept,
            changes,
            is_mended,
            padding,
            off,
        },
    )
}

/// Protocol as the tables know it, sender and receiver, where a packet or quote names them.
fn ends(packet: &[u8]) -> Option<(u8, End, End)> {
    let (protocol, at, source, destination): (_, _, IpAddr, IpAddr) = match packet.first()? >> 4 {
        6 => {
            let header = ip6::parse_quoted(packet).ok()?;
            (header.protocol, header.header_length, header.source.into(), header.destination.into())
        }
        _ => {
            let header = ip4::parse_quoted(packet).ok()?;
            (header.protocol, header.header_length, header.source.into(), header.destination.into())
        }
    };
    let transport = packet.get(at..).filter(|transport| transport.len() >= 8)?;
    let (protocol, [from, to]) = match protocol {
        ip4::ICMP | ip6::ICMP => (ip4::ICMP, [icmp::IDENTIFIER; 2]),
        other => (other, [udp::SOURCE, udp::DESTINATION]),
    };
    Some((protocol, (source, read_u16(transport, from)), (destination, read_u16(transport, to))))
}

/// The packet that an error quotes. Panics where this is no error.
fn quoted(packet: &[u8]) -> &[u8] {
    let (is_error, at) = if is_ip6(packet) {
        let header = ip6::parse(packet).unwrap();
        let is_icmp = header.protocol == ip6::ICMP;
        (is_icmp && icmp6::is_error(packet[header.header_length]), header.header_length)
    } else {
        let header = ip4::parse(packet).unwrap();
        let is_icmp = header.protocol == ip4::ICMP;
        (is_icmp && icmp::is_error(packet[header.header_length]), header.header_length)
    };
    assert!(is_error, "no error: {packet:02x?}");
    &packet[at + icmp::HEADER_BYTES..]
}

impl Forged {
    /// The error, and the packet that it quotes.
    fn packet(&self, flow: &Flow) -> (Vec<u8>, Vec<u8>) {
        let about = if self.is_from_inside { &flow.answer[1] } else { &flow.sent[1] };
        let (_, (sender, _), (receiver, _)) = ends(about).unwrap();
        let mut quoted = about.clone();
        quoted.truncate(self.kept);
        for (at, field) in &self.changes {
            if at + 2 <= quoted.len() {
                write(&mut quoted, *at, field);
            }
        }
        let header = usize::from(quoted.first().unwrap_or(&0) & 0xf) * 4;
        if self.is_mended && receiver.is_ipv4() && (ip4::HEADER_BYTES..=quoted.len()).contains(&header) {
            mend(&mut quoted);
        }
        quoted.resize(quoted.len() + self.padding, 0x5a);
        let mut packet = match (receiver, sender) {
            (IpAddr::V4(host), IpAddr::V4(to)) => {
                let kind =
                    [icmp::UNREACHABLE, icmp::TIME_EXCEEDED, icmp::PARAMETER_PROBLEM, icmp::UNREACHABLE][self.kind];
                error(if self.is_from_inside { host } else { ROUTER }, to, kind, self.code, self.word, &quoted)
            }
            (IpAddr::V6(host), IpAddr::V6(to)) => {
                let kind = [icmp6::UNREACHABLE, icmp6::TIME_EXCEEDED, icmp6::PARAMETER_PROBLEM, icmp6::PACKET_TOO_BIG]
                    [self.kind];
                let from = if self.is_from_inside { host } else { BOTH[1](9) };
                error6_packet(from, to, kind, self.code, self.word, &quoted)
            }
            _ => unreachable!("a packet of one family"),
        };
        let at = if is_ip6(&packet) { ip6::HEADER_BYTES } else { ip4::HEADER_BYTES };
        packet[at + icmp::CHECKSUM] ^= self.off;
        (packet, quoted)
    }
}

/// Flows of UDP, TCP and ICMP through NAT44, NAT64 and NAPT66.
fn flows(nat: &mut Nat) -> Vec<Flow> {
    let mut flows = Vec::new();
    let query = [0x12, 0x34, 0, 1, 7, 7];
    let mut sent = vec![
        udp_packet((HOST, 5000), (SERVER, 53), b"question"),
        segment((HOST, 5000), (SERVER, 80), tcp::SYN, 1, 0),
        echo(icmp::ECHO_REQUEST, HOST, SERVER, 0x1234),
    ];
    for server in BOTH {
        sent.extend([
            udp6_packet((HOST6, 5000), (server(1), 53), b"question"),
            tcp6_packet((HOST6, 5000), (server(1), 80), tcp::SYN, &[]),
            icmp6_packet(HOST6, server(1), icmp6::ECHO_REQUEST, 0, &query),
        ]);
    }
    for sent in sent {
        let seen = nat.send_inside(&sent).remove(0).packet;
        let answer = match ends(&seen).unwrap() {
            (ip4::UDP, (IpAddr::V4(to), port), (IpAddr::V4(from), _)) => udp_packet((from, 53), (to, port), b"answer"),
            (ip4::UDP, (IpAddr::V6(to), port), (IpAddr::V6(from), _)) => udp6_packet((from, 53), (to, port), b"answer"),
            (ip4::TCP, (IpAddr::V4(to), port), (IpAddr::V4(from), _)) => {
                segment((from, 80), (to, port), tcp::SYN | tcp::ACK, 9, 2)
            }
            (ip4::TCP, (IpAddr::V6(to), port), (IpAddr::V6(from), _)) => {
                tcp6_packet((from, 80), (to, port), tcp::SYN | tcp::ACK, &[])
            }
            (_, (IpAddr::V4(to), identifier), (IpAddr::V4(from), _)) => echo(icmp::ECHO_REPLY, from, to, identifier),
            (_, (IpAddr::V6(to), identifier), (IpAddr::V6(from), _)) => {
                let rest = [&identifier.to_be_bytes()[..], &query[2..]].concat();
                icmp6_packet(from, to, icmp6::ECHO_REPLY, 0, &rest)
            }
            _ => unreachable!("a packet of one family"),
        };
        let got = nat.send_outside(&answer).remove(0);
        assert!(got.is_to_inside);
        flows.push(Flow { sent: [sent, seen], answer: [answer, got.packet] });
    }
    flows
}

/// Sends it. True where something went out, which is then as it must be.
fn passes(nat: &mut Nat, flows: &[Flow], forged: &Forged) -> bool {
    let (packet, quote) = forged.packet(&flows[forged.flow]);
    let out = match forged.is_from_inside {
        true => nat.send_inside(&packet),
        false => nat.send_outside(&packet),
    };
    let Some(sent) = out.first() else { return false };
    assert_eq!((out.len(), sent.is_to_inside), (1, !forged.is_from_inside), "{forged:?}");
    // Whose packet the error says it is about, before and behind the gateway.
    let (protocol, sender, receiver) = ends(&quote).expect("nothing else can be translated");
    let inside = |flow: &Flow| ends(&flow.sent[0]).unwrap();
    let seen = |flow: &Flow| ends(&flow.sent[1]).unwrap();
    let new = ends(quoted(&sent.packet)).expect("the ports of the quoted packet stay");
    let (_, (from, _), (to, _)) = ends(&sent.packet).unwrap();
    if forged.is_from_inside {
        let is_it = |flow: &&Flow| {
            inside(flow).0 == protocol && inside(flow).1 == receiver && {
                // A host has an end for each family of servers.
                is_named(sender.0) == is_named(inside(flow).2.0)
            }
        };
        let flow = flows.iter().find(is_it).expect("a flow that there is");
        assert_eq!((new.0, new.2), (protocol, seen(flow).1), "{forged:?}");
        assert_eq!(from, seen(flow).1.0, "it comes from the host as it is seen");
        assert_eq!(to, seen(&flows[forged.flow]).2.0, "and goes where the host sent it");
    } else {
        let is_it = |flow: &&Flow| seen(flow).0 == protocol && seen(flow).1 == sender;
        let flow = flows.iter().find(is_it).expect("a flow that there is");
        assert_eq!((new.0, new.1), (protocol, inside(flow).1), "{forged:?}");
        assert_eq!(to, inside(flow).1.0, "it goes to the host");
    }
    true
}

/// True for a server of IPv4 by its name in IPv6.
fn is_named(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if Prefix64::WELL_KNOWN.contains(address))
}

/// Nothing is left of the errors.
fn assert_as_before(nat: &mut Nat, flows: &[Flow]) {
    assert_eq!(nat.bindings(), flows.len() as u64);
    assert_eq!(nat.published[0].worker.waiting.load(Relaxed), 0);
    assert_eq!(nat.workers[0].driver().free_frames(), FRAMES as usize - PACKET_SLOTS);
    for Flow { sent, answer } in flows {
        let out = nat.send_inside(&sent[0]);
        assert_eq!(out.len(), 1);
        assert_eq!(ends(&out[0].packet), ends(&sent[1]), "it is seen as before");
        let out = nat.send_outside(&answer[0]);
        assert_eq!((out.len(), &out[0].packet), (1, &answer[1]), "and answers find it");
    }
}

#[test]
fn whole_errors_of_every_flow_pass_both_ways() {
    let mut nat = Nat::adjusted(translate);
    let flows = flows(&mut nat);
    assert_eq!(flows.len(), 9);
    for flow in 0..flows.len() {
        for is_from_inside in [false, true] {
            for kept in [48, 1500] {
                let forged = Forged::whole(flow, is_from_inside, kept);
                assert!(passes(&mut nat, &flows, &forged), "{forged:?}");
                assert!(!passes(&mut nat, &flows, &Forged { off: 1, ..forged }));
            }
        }
    }
    assert_as_before(&mut nat, &flows);
}

#[test]
fn a_quote_that_names_any_length_is_translated_as_far_as_it_goes() {
    let mut nat = Nat::adjusted(translate);
    let flows = flows(&mut nat);
    for flow in 0..flows.len() {
        for is_from_inside in [false, true] {
            for length in [0, 1, 39, 0x7fff, 65_515, 65_516, 65_535u16] {
                let at = if is_ip6(&flows[flow].sent[usize::from(!is_from_inside)]) { 4 } else { 2 };
                let changes = vec![(at, length.to_be_bytes())];
                let forged = Forged { changes, is_mended: true, ..Forged::whole(flow, is_from_inside, 1500) };
                assert!(passes(&mut nat, &flows, &forged), "{forged:?}");
            }
        }
    }
    assert_as_before(&mut nat, &flows);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_error_goes_to_whom_it_is_about_or_nowhere(all in prop::collection::vec(forged(), 1..150)) {
        let mut nat = Nat::adjusted(translate);
        let flows = flows(&mut nat);
        for forged in &all {
            passes(&mut nat, &flows, forged);
        }
        assert_as_before(&mut nat, &flows);
    }
}
