//! The server's packet at the client's entry: the first copy goes to the client, the others end here.
//!
//! Path: relay_input -> here -> ip_output | drop.
//! Reads: l3, slot, path, sequence. Writes: destination; the fan's window.
//!
//! The path number stays, so that the client sees which path won.

use super::prelude::*;
use crate::dataplane::{outer, window::Reject};

node!(EntryDown, "entry_down", [IpOutput], entry_down);

fn entry_down(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    if let Err(reject) = context.fans[session.fan as usize].merge(packet.path, packet.sequence) {
        return Verdict::Drop(match reject {
            Reject::Duplicate => Reason::Duplicate,
            Reject::TooOld => Reason::TooOld,
        });
    }
    if session.up.port == 0 {
        return Verdict::Drop(Reason::NoPath);
    }
    outer::rewrite(frames, packet, &context.identity, &session.up);
    Verdict::Next(NodeId::IpOutput)
}
