//! Answers a neighbour's probe, and takes a neighbour's answer.
//!
//! Path: relay_input -> here -> ip_output | consumed | drop.
//! Reads: l3, kind, sequence, received. Writes: kind, destination.
//!
//! The answer is as long as the question and only goes to a node we know, so nobody can amplify or aim with it.
//! Both carry a tag under the key of the node that was asked; a probe has no slot.

use super::prelude::*;
use crate::{
    dataplane::{
        command::{Event, ProbeAnswer},
        conntrack::Link,
        forwarding::Peer,
        outer,
    },
    wire::{ip4, read_u16, read_u32, read_u64, relay, udp, write},
};

node!(Probe, "probe", [IpOutput], probe);

/// Offsets of the timestamps from the relay header.
pub(in crate::dataplane) const SENT: usize = relay::HEADER_BYTES;
const REMOTE_RECEIVED: usize = relay::HEADER_BYTES + 8;

fn probe(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let ip = packet.ip(frames);
    let (address, port) = (read_u32(ip, ip4::SOURCE), read_u16(ip, ip4::HEADER_BYTES + udp::SOURCE));
    let payload = &mut ip[outer::RELAY_AT..];
    if payload.len() != relay::HEADER_BYTES + relay::PROBE_BYTES {
        return Verdict::Drop(Reason::BadLength);
    }
    let peers = &context.routes.forwarding().peers;
    let Some(peer) =
        peers.iter().position(|peer| peer.is_active && peer.address.to_bits() == address && peer.port == port)
    else {
        return Verdict::Drop(Reason::UnknownPeer);
    };
    let known = peers[peer];
    let key = if packet.kind == relay::Kind::Probe { context.identity.probe_key } else { known.key };
    if !relay::is_authentic(payload, &key) {
        return Verdict::Drop(Reason::WrongTag);
    }
    if packet.kind == relay::Kind::Probe {
        write(payload, REMOTE_RECEIVED, &packet.received.to_be_bytes());
        let packet = &mut context.packets[slot];
        packet.kind = relay::Kind::ProbeReply;
        let link = link_to(&known);
        outer::rewrite_batched(frames, packet, &context.identity, &link, &key, &mut context.unsigned);
        return Verdict::Next(NodeId::IpOutput);
    }
    let answer = Event::ProbeAnswered(ProbeAnswer {
        peer: peer as u16,
        sequence: packet.sequence,
        sent: read_u64(payload, SENT),
        remote_received: read_u64(payload, REMOTE_RECEIVED),
        received: packet.received,
    });
    match context.events.push(answer) {
        Ok(()) => Verdict::Consumed,
        Err(_) => Verdict::Drop(Reason::EventRingFull),
    }
}

/// A probe goes to a node, not to one of its slots.
pub(in crate::dataplane) fn link_to(peer: &Peer) -> Link {
    Link { address: peer.address, port: peer.port, ..Link::NONE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{command::Command, testing::*};

    fn probe(kind: relay::Kind, key: relay::HopKey) -> Relayed {
        let inner = [7u64.to_be_bytes(), 8u64.to_be_bytes(), [0; 8]].concat();
        Relayed { kind, key, from: (DOWNSTREAM, DATA_PORT), generation: 0, ..Relayed::up(0, 42, inner) }
    }

    #[test]
    fn a_neighbours_probe_is_answered_with_our_time() {
        let mut bench = Bench::new();
        let out = bench.run(&[probe(relay::Kind::Probe, PROBE_KEY).frame()]);
        assert_eq!(bench.moved(), []);
        let got = sent(&out[0], &PROBE_KEY);
        assert!(got.is_authentic);
        assert_eq!((got.to, got.header.kind), ((DOWNSTREAM, DATA_PORT), relay::Kind::ProbeReply));
        assert_eq!(got.header.sequence, 42);
        assert_eq!((read_u64(&got.inner, 0), read_u64(&got.inner, 8)), (7, bench.now));
    }

    #[test]
    fn a_neighbours_answer_is_told_to_the_control_core() {
        let mut bench = Bench::new();
        assert!(bench.run(&[probe(relay::Kind::ProbeReply, PEER_KEY).frame()]).is_empty());
        assert_eq!(bench.moved(), []);
        let Ok(Event::ProbeAnswered(answer)) = bench.events.pop() else { panic!("not told") };
        let expected = ProbeAnswer { peer: 0, sequence: 42, sent: 7, remote_received: 8, received: bench.now };
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_probe_is_sent_on_command() {
        let mut bench = Bench::new();
        bench.commands.push(Command::SendProbe { peer: 0, sequence: 5 }).unwrap();
        let out = bench.sweep();
        let got = sent(&out[0], &PEER_KEY);
        assert!(got.is_authentic);
        assert_eq!((got.to, got.header.kind), ((DOWNSTREAM, DATA_PORT), relay::Kind::Probe));
        assert_eq!((got.header.sequence, read_u64(&got.inner, 0)), (5, bench.now));
    }

    #[test]
    fn strangers_wrong_tags_and_wrong_sizes_are_dropped() {
        let mut bench = Bench::new();
        let stranger = Relayed { from: (CLIENT, DATA_PORT), ..probe(relay::Kind::Probe, PROBE_KEY) };
        bench.expect_drop(stranger.frame(), "probe.drop.unknown_peer");
        bench.expect_drop(probe(relay::Kind::Probe, PEER_KEY).frame(), "probe.drop.wrong_tag");
        let long = Relayed { inner: vec![0; 200], ..probe(relay::Kind::Probe, PROBE_KEY) };
        bench.expect_drop(long.frame(), "probe.drop.bad_length");
    }
}
