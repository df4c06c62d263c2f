//! An inner packet on its way to the client: numbered, wrapped, a copy down every path.
//!
//! Path: exit_up (keep-alive) | nat_out2in | icmp_error -> here -> ip_output (once a path) | drop.
//! Reads: l3, slot, kind. Writes: sequence, path, offset, length, l3, l4, destination.

use super::prelude::*;
use crate::dataplane::outer;

node!(ExitDown, "exit_down", [IpOutput], exit_down);

fn exit_down(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let fan_index = context.slots[packet.slot as usize].fan as usize;
    let fan = &mut context.fans[fan_index];
    packet.sequence = fan.next_sequence;
    fan.next_sequence += 1;
    context.fan_out(frames, slot, fan_index, NodeId::ExitDown, outer::push)
}
