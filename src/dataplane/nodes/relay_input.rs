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
    dataplane::conntrack::{CtIndex, Link, Role},
    limits::PATHS_MAX,
    wire::{ip4, read_u16, read_u32, relay, udp},
};

node!(RelayInput, "relay_input", [Probe, EntryUp, EntryDown, RelayForward, ExitUp, Handoff], relay_input);

fn relay_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let ip = packet.ip(frames);
    let payload = &ip[ip4::HEADER_BYTES + udp::HEADER_BYTES..];
    let header = match relay::parse(payload) {
        Ok(header) => header,
        Err(relay::Malformed::TooShort) => return Verdict::Drop(Reason::TooShort),
        Err(relay::Malformed::Version) => return Verdict::Drop(Reason::BadVersion),
        Err(relay::Malformed::Kind) => return Verdict::Drop(Reason::UnknownKind),
    };
    if header.kind.is_probe() {
        let packet = &mut context.packets[slot];
        packet.kind = header.kind;
        packet.sequence = header.sequence;
        return Verdict::Next(NodeId::Probe);
    }
    let ct_index = CtIndex(header.ct_index);
    if ct_index.worker() != context.index {
        if ct_index.worker() >= usize::from(context.identity.workers) {
            return Verdict::Drop(Reason::FreeSlot);
        }
        return context.hand_off(slot, ct_index.worker(), NodeId::RelayInput);
    }
    let Some(session) = context.slots.get(ct_index.slot() as usize) else { return Verdict::Drop(Reason::FreeSlot) };
    if session.role == Role::Free {
        return Verdict::Drop(Reason::FreeSlot);
    }
    if session.generation != header.generation {
        return Verdict::Drop(Reason::StaleGeneration);
    }
    let (link, next) = match (session.role, header.kind.is_up()) {
        (Role::Entry, true) => (&session.up, NodeId::EntryUp),
        (Role::Relay, true) => (&session.up, NodeId::RelayForward),
        (Role::Relay, false) => (&session.down, NodeId::RelayForward),
        (Role::Entry, false) | (Role::Exit, true) => {
            let fan = &context.fans[session.fan as usize];
            if usize::from(header.path) >= PATHS_MAX {
                return Verdict::Drop(Reason::WrongPath);
            }
            let Some(link) = &fan.links[usize::from(header.path)] else { return Verdict::Drop(Reason::WrongPath) };
            (link, if session.role == Role::Exit { NodeId::ExitUp } else { NodeId::EntryDown })
        }
        (Role::Exit, false) | (Role::Free, _) => return Verdict::Drop(Reason::WrongDirection),
    };
    let may_move = next == NodeId::EntryUp && header.kind == relay::Kind::KeepAliveUp;
    if !may_move && !is_from(ip, link) {
        return Verdict::Drop(Reason::WrongSource);
    }
    if !relay::is_authentic(payload, &link.key) {
        return Verdict::Drop(Reason::WrongTag);
    }
    let stamp = &context.published.slots[ct_index.slot() as usize];
    if header.kind.is_up() {
        stamp.touch(context.tick, packet.ip_length());
    } else {
        stamp.count(packet.ip_length());
    }
    let packet = &mut context.packets[slot];
    packet.slot = ct_index.slot();
    packet.path = header.path;
    packet.kind = header.kind;
    packet.sequence = header.sequence;
    Verdict::Next(next)
}

#[inline]
fn is_from(ip: &[u8], link: &Link) -> bool {
    read_u32(ip, ip4::SOURCE) == link.address.to_bits() && read_u16(ip, ip4::HEADER_BYTES + udp::SOURCE) == link.port
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
