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
        conntrack::{CtIndex, Link},
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
        outer::rewrite(frames, packet, &context.identity, &link_to(&known, key));
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
pub(in crate::dataplane) fn link_to(peer: &Peer, key: relay::HopKey) -> Link {
    Link { address: peer.address, port: peer.port, generation: 0, ct_index: CtIndex(0), key }
}
