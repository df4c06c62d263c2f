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

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{conntrack::NO_BINDING, testing::*},
        limits::{PACKET_SLOTS, WAITING_MAX},
    };

    #[test]
    fn a_full_table_drops_the_newest_and_counts_it() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        for n in 0..WAITING_MAX as u64 + 3 {
            bench.worker.driver().put(0, &Relayed::up(3, n + 1, udp_packet((INSIDE, 1), (SERVER, 2), b"")).frame());
        }
        for _ in 0..=WAITING_MAX / PACKET_SLOTS {
            bench.sweep();
        }
        assert_eq!(bench.moved(), [("punt.drop.waiting_full".to_owned(), 3)]);
    }
}
