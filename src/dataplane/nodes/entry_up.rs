//! The client's packet at its entry: a copy down every path.
//!
//! Path: relay_input -> here -> ip_output (once a path) | drop.
//! Reads: l3, slot, kind, sequence. Writes: path, destination, and the same of the copies.
//!
//! The last path takes the packet itself, the others take copies: with one path nothing is copied.

use super::prelude::*;
use crate::{
    dataplane::outer,
    limits::PATHS_MAX,
    wire::{ip4, read_u16, read_u32, relay, udp},
};

node!(EntryUp, "entry_up", [IpOutput], entry_up);

fn entry_up(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let session = &mut context.slots[packet.slot as usize];
    let fan_index = session.fan as usize;
    let fan = &mut context.fans[fan_index];
    if packet.sequence > fan.newest_from_client {
        fan.newest_from_client = packet.sequence;
        if packet.kind == relay::Kind::KeepAliveUp {
            let ip = packet.ip(frames);
            session.up.address = read_u32(ip, ip4::SOURCE).into();
            session.up.port = read_u16(ip, ip4::HEADER_BYTES + udp::SOURCE);
        }
    }
    let Some(last) = fan.links.iter().rposition(Option::is_some) else { return Verdict::Drop(Reason::NoPath) };
    for path in 0..PATHS_MAX {
        let Some(link) = context.fans[fan_index].links[path] else { continue };
        let taken = if path == last {
            slot
        } else {
            match context.copy(frames, slot, NodeId::EntryUp, NodeId::IpOutput) {
                Some(copy) => copy,
                None => continue,
            }
        };
        let packet = &mut context.packets[taken];
        packet.path = path as u8;
        outer::rewrite(frames, packet, &context.identity, &link);
    }
    Verdict::Next(NodeId::IpOutput)
}
