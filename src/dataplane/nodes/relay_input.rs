//! Authenticates a relay packet: slot, generation, source address, tag, in this order, cheapest first.
//!
//! Path: l4_classify -> here -> probe | entry_up | entry_down | relay_forward | exit_up | handoff | drop.
//! Reads: l3, l4. Writes: slot, path, kind, sequence; the slot's stamp.
//!
//! A keep-alive from the client is exempt from the source check until its tag is verified: it is how an entry
//! learns the client's address, and learns a new one when the client roams. Only packets from the client's
//! side keep a session alive: a server that goes on sending to a client that left must not.

use super::prelude::*;
use crate::{
    dataplane::{
        conntrack::{CtIndex, Link, RelayPorts, Role, SourcePorts},
        onwards::Onwards,
        outer::RELAY_AT,
        packet::Bitmap,
        tags::Tags,
    },
    limits::PACKET_SLOTS,
    wire::{OVERLAY_BYTES, ip4, read_u16, read_u32, relay, udp},
};

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node {
    id: NodeId::RelayInput,
    name: "relay_input",
    next: &[NodeId::Probe, NodeId::EntryUp, NodeId::EntryDown, NodeId::RelayForward, NodeId::ExitUp, NodeId::Handoff],
    process: relay_input,
};

/// In passes over the batch: each asks for the memory that the next one reads, and the tags of clients' packets are made
/// together. A relay's sessions were asked for by the node before ([`ask_for_session`]).
fn relay_input(context: &mut Context, frames: &mut Frames, batch: Bitmap) {
    let mut onwards = Onwards::new(NodeId::RelayInput, NodeId::RelayForward);
    batch.for_each(|slot| {
        let Some(ip) = context.packets[slot].headers(frames) else {
            return context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::TooShort));
        };
        match look_up(context, ip, slot) {
            Ok(NodeId::RelayForward) => admit(context, &Claim::of(ip), slot, NodeId::RelayForward, &mut onwards),
            Ok(next) => context.claims.wait(slot, next),
            Err(verdict) => context.leave(slot, NodeId::RelayInput, verdict),
        }
    });
    for place in 0..std::mem::take(&mut context.claims.waiting_count) {
        let (slot, next) = context.claims.waiting[place];
        let slot = usize::from(slot);
        let claim = Claim::of(context.packets[slot].headers(frames).expect("they were looked up"));
        match next {
            NodeId::EntryUp => admit_client(context, &claim, slot),
            _ => admit(context, &claim, slot, next, &mut onwards),
        }
    }
    verify_clients(context, &mut onwards);
    onwards.finish(context);
}

/// What a packet says of itself.
struct Claim {
    tagged: relay::Tagged,
    tag: u64,
    /// Source address and port.
    source: (u32, u16),
}

impl Claim {
    #[inline]
    fn of(ip: &[u8; OVERLAY_BYTES]) -> Self {
        let payload = &ip[RELAY_AT..];
        let source = (read_u32(ip, ip4::SOURCE), read_u16(ip, ip4::HEADER_BYTES + udp::SOURCE));
        Self { tagged: relay::Tagged::of(payload), tag: relay::read_tag(payload), source }
    }
}

/// Packets and what they claim, between the passes.
pub(in crate::dataplane) struct Claims {
    /// Clients' packets whose tags are being made.
    tags: Tags,
    /// The same, in the same order: packet slot and the tag it came with.
    claimants: [(u8, u64); PACKET_SLOTS],
    /// Those for whose path's memory was asked.
    waiting_count: usize,
    waiting: [(u8, NodeId); PACKET_SLOTS],
}

const _: () = assert!(PACKET_SLOTS <= 256, "a byte holds a packet slot");

impl Claims {
    /// None.
    pub(in crate::dataplane) fn new() -> Self {
        let waiting = [(0, NodeId::RelayInput); PACKET_SLOTS];
        Self { tags: Tags::new(), claimants: [(0, 0); PACKET_SLOTS], waiting_count: 0, waiting }
    }

    #[inline]
    fn push(&mut self, slot: usize, claim: &Claim, key: &relay::HopKey) {
        let place = self.tags.push(claim.tagged, key);
        self.claimants[place] = (slot as u8, claim.tag);
    }

    #[inline]
    fn wait(&mut self, slot: usize, next: NodeId) {
        self.waiting[self.waiting_count] = (slot as u8, next);
        self.waiting_count += 1;
    }
}

/// Asks for the line of the session that a relay header names. Nothing is checked: it may be the wrong one, and nothing else
/// comes of it.
#[inline]
pub(in crate::dataplane) fn ask_for_session(context: &Context, header: &[u8]) {
    context.slots.prefetch(CtIndex(read_u32(header, relay::CT_INDEX)).slot() as usize);
}

/// Slot, generation, direction. Where the session is spread over paths, asks for the memory of this one.
#[inline]
fn look_up(context: &mut Context, ip: &[u8; OVERLAY_BYTES], slot: usize) -> Result<NodeId, Verdict> {
    let packet = &mut context.packets[slot];
    let header = match relay::parse(&ip[RELAY_AT..]) {
        Ok(header) => header,
        Err(relay::Malformed::TooShort) => return Err(Verdict::Drop(Reason::TooShort)),
        Err(relay::Malformed::Version) => return Err(Verdict::Drop(Reason::BadVersion)),
        Err(relay::Malformed::Kind) => return Err(Verdict::Drop(Reason::UnknownKind)),
    };
    packet.kind = header.kind;
    packet.sequence = header.sequence;
    if header.kind.is_probe() {
        return Err(Verdict::Next(NodeId::Probe));
    }
    let ct_index = CtIndex(header.ct_index);
    if ct_index.worker() != context.index {
        if ct_index.worker() >= usize::from(context.identity.workers) {
            return Err(Verdict::Drop(Reason::FreeSlot));
        }
        return Err(context.hand_off(slot, ct_index.worker(), NodeId::RelayInput));
    }
    packet.slot = ct_index.slot();
    packet.path = header.path;
    let Some(session) = context.slots.get(ct_index.slot() as usize) else {
        return Err(Verdict::Drop(Reason::FreeSlot));
    };
    if session.role == Role::Free {
        return Err(Verdict::Drop(Reason::FreeSlot));
    }
    if session.generation != header.generation {
        return Err(Verdict::Drop(Reason::StaleGeneration));
    }
    let next = match (session.role, header.kind.is_up()) {
        (Role::Relay, _) => return Ok(NodeId::RelayForward),
        (Role::Entry, true) => NodeId::EntryUp,
        (Role::Entry, false) => NodeId::EntryDown,
        (Role::Exit, true) => NodeId::ExitUp,
        (Role::Exit, false) | (Role::Free, _) => return Err(Verdict::Drop(Reason::WrongDirection)),
    };
    let fan = &context.fans[session.fan as usize];
    match next {
        NodeId::EntryUp => fan.prefetch_from_client(header.sequence),
        _ => fan.prefetch(header.path, header.sequence),
    }
    Ok(next)
}

/// Source address and tag of a packet from a node.
#[inline(always)] // A relay's packets skip most of it.
fn admit(context: &mut Context, claim: &Claim, slot: usize, next: NodeId, onwards: &mut Onwards) {
    let Some((link, ports)) = hop_of(context, slot, next) else {
        return context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::WrongPath));
    };
    if claim.source != source_of(link, ports) {
        return context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::WrongSource));
    }
    if !relay::is_same_tag(context.node_keys.tag(link.key, claim.tagged), claim.tag) {
        return context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::WrongTag));
    }
    stamp(context, slot);
    onwards.push(context, slot, next);
}

/// Source address of a packet from a client, which must be a new one. That is only a look: what is marked must be authentic.
/// What passes is only held back by its tag.
fn admit_client(context: &mut Context, claim: &Claim, slot: usize) {
    let packet = &context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    // It may come from an address that we do not know: its tag will tell.
    let may_move = packet.kind == relay::Kind::KeepAliveUp;
    if claim.source != source_of(&session.up, SourcePorts::default()) && !may_move {
        return context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::WrongSource));
    }
    let fan = &context.fans[session.fan as usize];
    match fan.check_from_client(packet.sequence) {
        Ok(()) => context.claims.push(slot, claim, &fan.client_key),
        Err(reject) => context.leave(slot, NodeId::RelayInput, Verdict::Drop(reject.into())),
    }
}

/// Makes the tags of clients' packets. What has the right one goes on.
fn verify_clients(context: &mut Context, onwards: &mut Onwards) {
    if context.claims.tags.is_empty() {
        return;
    }
    let count = context.claims.tags.make().len();
    for place in 0..count {
        let (slot, tag) = context.claims.claimants[place];
        let slot = usize::from(slot);
        if !relay::is_same_tag(context.claims.tags.made(place), tag) {
            context.leave(slot, NodeId::RelayInput, Verdict::Drop(Reason::WrongTag));
            continue;
        }
        stamp(context, slot);
        onwards.push(context, slot, NodeId::EntryUp);
    }
}

/// The hop that a node's packet came over, if the session has it.
#[inline]
fn hop_of(context: &Context, slot: usize, next: NodeId) -> Option<(&Link, SourcePorts)> {
    let packet = &context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    match next {
        NodeId::RelayForward if packet.kind.is_up() => Some((&session.up, RelayPorts::from_bits(session.fan).up)),
        NodeId::RelayForward => Some((&session.down, RelayPorts::from_bits(session.fan).down)),
        _ => context.fans[session.fan as usize].link(packet.path),
    }
}

/// Where packets over a hop come from.
#[inline]
fn source_of(link: &Link, ports: SourcePorts) -> (u32, u16) {
    (link.address.to_bits(), link.port.wrapping_add(u16::from(ports.theirs)))
}

/// An authentic packet came.
#[inline]
fn stamp(context: &Context, slot: usize) {
    let packet = &context.packets[slot];
    let stamp = context.slots.stamp(packet.slot as usize).expect("it was looked up");
    if packet.kind.is_up() {
        stamp.touch(context.tick, packet.ip_length());
    } else {
        stamp.count(packet.ip_length());
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{command::Command, testing::*},
        wire::relay::Kind,
    };

    #[test]
    fn a_packet_must_pass_slot_generation_source_and_tag() {
        let mut bench = Bench::new();
        bench.relay();
        let good = || Relayed::up(1, 1, vec![0; 40]);
        bench.expect_drop(Relayed { ct_index: 5, ..good() }.frame(), "relay_input.drop.free_slot");
        bench.expect_drop(Relayed { ct_index: 0x00ff_ffff, ..good() }.frame(), "relay_input.drop.free_slot");
        bench.expect_drop(Relayed { ct_index: 0x0100_0001, ..good() }.frame(), "relay_input.drop.free_slot");
        bench.expect_drop(Relayed { generation: 6, ..good() }.frame(), "relay_input.drop.stale_generation");
        bench.expect_drop(Relayed { from: (CLIENT, DATA_PORT), ..good() }.frame(), "relay_input.drop.wrong_source");
        bench.expect_drop(Relayed { from: (UPSTREAM, 1), ..good() }.frame(), "relay_input.drop.wrong_source");
        bench.expect_drop(Relayed { key: DOWN_KEY, ..good() }.frame(), "relay_input.drop.wrong_tag");
        assert_eq!(bench.run(&[good().frame()]).len(), 1);
        assert_eq!(bench.moved(), []);
    }

    #[test]
    fn a_packet_from_the_wrong_side_is_dropped() {
        let mut bench = Bench::new();
        bench.relay();
        bench.exit(2, crate::dataplane::conntrack::NO_BINDING);
        let backwards = Relayed { kind: Kind::DataDown, ..Relayed::up(1, 1, vec![]) };
        bench.expect_drop(backwards.frame(), "relay_input.drop.wrong_source");
        bench.expect_drop(Relayed::down(3, 1, vec![]).frame(), "relay_input.drop.wrong_direction");
        bench.expect_drop(Relayed { path: 2, ..Relayed::up(3, 1, vec![]) }.frame(), "relay_input.drop.wrong_path");
        bench.expect_drop(Relayed { path: 200, ..Relayed::up(3, 1, vec![]) }.frame(), "relay_input.drop.wrong_path");
    }

    #[test]
    fn a_freed_slot_refuses_its_old_packets() {
        let mut bench = Bench::new();
        bench.relay();
        bench.tell(Command::FreeSlot { slot: 1, generation: GENERATION, idle_since: None });
        bench.expect_drop(Relayed::up(1, 1, vec![]).frame(), "relay_input.drop.free_slot");
    }

    #[test]
    fn malformed_headers_are_dropped_by_reason() {
        let mut bench = Bench::new();
        let with = |payload: &[u8]| frame(&udp_packet((UPSTREAM, DATA_PORT), (US, DATA_PORT), payload));
        bench.expect_drop(with(&[0x11; 23]), "relay_input.drop.too_short");
        bench.expect_drop(with(&[0x21; 24]), "relay_input.drop.bad_version");
        bench.expect_drop(with(&[0x1f; 24]), "relay_input.drop.unknown_kind");
    }
}
