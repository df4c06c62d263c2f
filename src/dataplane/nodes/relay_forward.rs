//! A relay: the packet goes on to the other end of its slot, under that hop's key.
//!
//! Path: relay_input -> here -> ip_output.
//! Reads: l3, slot, kind, path, sequence. Writes: destination.
//!
//! The header has the same size on every hop, so nothing moves.

use super::prelude::*;
use crate::dataplane::outer;

node!(RelayForward, "relay_forward", [IpOutput], relay_forward);

fn relay_forward(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    let link = if packet.kind.is_up() { &session.down } else { &session.up };
    outer::rewrite(frames, packet, &context.identity, link);
    Verdict::Next(NodeId::IpOutput)
}
