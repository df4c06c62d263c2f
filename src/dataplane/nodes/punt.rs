//! Puts a packet aside and asks the control core.
//!
//! Path: nat_in2out | ip_output -> here -> the waiting table | drop.
//! Reads: resume_at, and the cause in `Context::punts`. Writes: has_waited.
//!
//! Nothing here waits: where the table or the ring is full the packet is dropped and the flow's next one asks.

use super::super::{command::Event, packet::Bitmap, published::add};
use super::prelude::*;

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node { id: NodeId::Punt, name: "punt", next: &[], process: punt };

/// Places in the event ring kept for the answers to commands: losing one of those would leak a slot.
pub(in crate::dataplane) const RESERVED_FOR_ANSWERS: usize = 256;

fn punt(context: &mut Context, _: &mut Frames, batch: Bitmap) {
    for slot in batch {
        let mut packet = context.packets[slot];
        packet.has_waited = true;
        if context.events.slots() <= RESERVED_FOR_ANSWERS {
            context.leave(slot, NodeId::Punt, Verdict::Drop(Reason::EventRingFull));
            continue;
        }
        let Some(waiting) = context.waiting.put(packet, packet.resume_at) else {
            context.leave(slot, NodeId::Punt, Verdict::Drop(Reason::WaitingFull));
            continue;
        };
        let event = Event::Punt { waiting, cause: context.punts[slot] };
        context.events.push(event).expect("room was checked above");
        add(&context.published.worker.punted, 1);
        context.finish_without_frame(slot);
    }
}
