//! Puts a packet aside and asks the control core.
//!
//! Path: nat_in2out | ip_output -> here -> the waiting table | drop.
//! Reads: resume_at, and the cause in `Context::punts`. Writes: has_waited.
//!
//! Nothing here waits: where the table or the ring is full the packet is dropped and the flow's next one asks.

use super::super::{
    command::Event,
    packet::{Bitmap, Packet},
    published::add,
};
use super::prelude::*;

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node { id: NodeId::Punt, name: "punt", next: &[], process: punt };

/// Places in the event ring kept for the answers to commands: losing one of those would leak a slot.
pub(in crate::dataplane) const RESERVED_FOR_ANSWERS: usize = 256;

fn punt(context: &mut Context, _: &mut Frames, mut batch: Bitmap) {
    let room = context.events.slots().saturating_sub(RESERVED_FOR_ANSWERS);
    let asked = batch.take_lowest(room);
    batch.for_each(|slot| context.leave(slot, NodeId::Punt, Verdict::Drop(Reason::EventRingFull)));

    let mut refused = Bitmap::default();
    let Context { packets, punts, waiting, free, .. } = context;
    let events = asked.filter_map(|slot| {
        let packet = Packet { has_waited: true, ..packets[slot] };
        let Some(waiting) = waiting.put(packet, packet.resume_at) else {
            refused.insert(slot);
            return None;
        };
        // Its frame has a new owner.
        free.insert(slot);
        Some(Event::Punt { waiting, cause: punts[slot] })
    });
    // At once: to write into the ring takes a line away from the control core, which looks at it all the time.
    let chunk = context.events.write_chunk_uninit(asked.count()).expect("room was checked above");
    let punted = chunk.fill_from_iter(events);
    add(&context.published.worker.punted, punted as u64);
    refused.for_each(|slot| context.leave(slot, NodeId::Punt, Verdict::Drop(Reason::WaitingFull)));
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
