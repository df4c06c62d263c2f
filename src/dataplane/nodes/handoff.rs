//! Gives a packet to the worker that owns its slot or port.
//!
//! Path: relay_input | gateway_input | nat_out2in | icmp_error -> here -> another worker | drop.
//! Reads: worker, resume_at, everything of the packet.

use super::super::{
    driver::Frames,
    handoff::{self, About},
    packet::Bitmap,
    published::add,
};
use super::prelude::*;

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node { id: NodeId::Handoff, name: "handoff", next: &[], process: handoff };

fn handoff(context: &mut Context, frames: &mut Frames, batch: Bitmap) {
    for slot in batch {
        let packet = context.packets[slot];
        let bytes = packet.bytes(frames);
        let worker = usize::from(packet.worker);
        let ring = context.handoff.get_mut(worker).and_then(Option::as_mut);
        let about = About {
            node: packet.resume_at,
            received: packet.received,
            interface: packet.interface,
            protocol: packet.protocol,
            handoffs: packet.handoffs + 1,
            fragment: packet.fragment,
            ports: packet.ports,
            l3: packet.l3 - packet.offset,
            l4: packet.l4 - packet.offset,
            length: packet.length,
        };
        if !ring.is_some_and(|ring| handoff::push(ring, about, bytes)) {
            context.leave(slot, NodeId::Handoff, Verdict::Drop(Reason::HandoffFull));
            continue;
        }
        context.handed_to |= 1 << worker;
        add(&context.published.worker.handed_off, 1);
        context.finish(slot);
    }
}
