//! An inner packet on its way to the client: numbered, wrapped, a copy down every path.
//!
//! Path: exit_up (keep-alive) | nat_out2in | icmp_error -> here -> ip_output (once a path) | drop.
//! Reads: l3, slot, kind. Writes: sequence, path, offset, length, l3, l4, destination.

use super::prelude::*;
use crate::{dataplane::outer, limits::PATHS_MAX};

node!(ExitDown, "exit_down", [IpOutput], exit_down);

fn exit_down(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let fan_index = context.slots[packet.slot as usize].fan as usize;
    let fan = &mut context.fans[fan_index];
    let Some(last) = fan.links.iter().rposition(Option::is_some) else { return Verdict::Drop(Reason::NoPath) };
    packet.sequence = fan.next_sequence;
    fan.next_sequence += 1;
    for path in 0..PATHS_MAX {
        let Some(link) = context.fans[fan_index].links[path] else { continue };
        let taken = if path == last {
            slot
        } else {
            match context.copy(frames, slot, NodeId::ExitDown, NodeId::IpOutput) {
                Some(copy) => copy,
                None => continue,
            }
        };
        let packet = &mut context.packets[taken];
        packet.path = path as u8;
        outer::push(frames, packet, &context.identity, &link);
    }
    Verdict::Next(NodeId::IpOutput)
}
