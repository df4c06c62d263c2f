//! The client's packet at its exit: the first copy is unwrapped, the others end here.
//!
//! Path: relay_input -> here -> nat_in2out | exit_down (a keep-alive's answer) | drop.
//! Reads: slot, path, kind, sequence. Writes: offset, length, l3, l4, kind, from_inside; the fan's window.

use super::prelude::*;
use crate::{
    dataplane::{outer, window::Reject},
    wire::relay,
};

node!(ExitUp, "exit_up", [NatIn2out, ExitDown], exit_up);

fn exit_up(context: &mut Context, _: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let fan = context.slots[packet.slot as usize].fan as usize;
    if let Err(reject) = context.fans[fan].merge(packet.path, packet.sequence) {
        return Verdict::Drop(match reject {
            Reject::Duplicate => Reason::Duplicate,
            Reject::TooOld => Reason::TooOld,
        });
    }
    if packet.kind == relay::Kind::KeepAliveUp {
        // What the client may have put behind the header is not sent back.
        packet.length = packet.l3 - packet.offset + outer::INNER_AT as u16;
        outer::pop(packet);
        packet.kind = relay::Kind::KeepAliveDown;
        return Verdict::Next(NodeId::ExitDown);
    }
    outer::pop(packet);
    packet.from_inside = true;
    Verdict::Next(NodeId::NatIn2out)
}
