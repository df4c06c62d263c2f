//! Packets that begin in a sweep and did not come from the driver: handed over by other workers, made here, or held here until
//! their time.

use super::Worker;
use crate::{
    dataplane::{driver::Driver, graph::NodeId, handoff, packet::Packet, reason::Reason},
    limits::FRAME_HEADROOM,
    wire::{ethernet, icmp, icmp6, ip4},
};

impl<D: Driver> Worker<D> {
    /// Tells those whose SYN was let in by nobody for six seconds that nobody listens.
    pub(super) fn answer_held_syns(&mut self) {
        while !self.context.held_syns.is_empty()
            && self.room() > 0
            && let Some(frame) = self.context.spare.pop()
        {
            let Some(held) = self.context.held_syns.next(self.context.now) else {
                self.context.spare.push(frame);
                return;
            };
            let l3 = FRAME_HEADROOM + ethernet::HEADER_BYTES;
            let (icmp_type, icmp_code, node) = match held.packet()[0] >> 4 {
                6 => (icmp6::UNREACHABLE, icmp6::CODE_PORT, NodeId::Icmp6Error),
                _ => (icmp::UNREACHABLE, icmp::CODE_PORT, NodeId::IcmpError),
            };
            let packet = Packet {
                frame,
                offset: FRAME_HEADROOM as u16,
                length: (ethernet::HEADER_BYTES + held.packet().len()) as u16,
                l3: l3 as u16,
                l4: (l3 + ip4::HEADER_BYTES) as u16,
                interface: held.interface,
                icmp_type,
                icmp_code,
                received: self.context.now,
                has_waited: true,
                ..Packet::EMPTY
            };
            packet.ip(self.driver.frames()).copy_from_slice(held.packet());
            self.context.inject(packet, node).expect("there is room");
        }
    }

    /// Lets fragments go on whose first one has come, and ends those for which it did not.
    pub(super) fn release_fragments(&mut self) {
        while let Some(packet) = self.context.reassembly.next_lost() {
            self.end_waiting(packet, NodeId::SvReassembly, Reason::FragmentTimeout);
        }
        while self.context.reassembly.has_ready()
            && self.room() > 0
            && let Some(packet) = self.context.reassembly.next_ready()
        {
            self.context.inject(packet, NodeId::SvReassembly).expect("there is room");
        }
    }

    /// As long as there is more room than is `kept`; every worker has its turn to be the first. True where there were any.
    pub(super) fn take_handed_over(&mut self, kept: usize) -> bool {
        let (mut from, mut is_handed_some) = (self.from_first, false);
        for _ in 0..self.from_workers.len() {
            if self.from_workers[from].as_ref().is_some_and(|ring| !ring.is_empty()) {
                self.take_handed_over_by(from, kept);
                is_handed_some = true;
            }
            from = self.after(from);
        }
        is_handed_some
    }

    /// The worker whose turn comes after that of `worker`.
    #[inline]
    pub(super) fn after(&self, worker: usize) -> usize {
        if worker + 1 < self.from_workers.len() { worker + 1 } else { 0 }
    }

    fn take_handed_over_by(&mut self, from: usize, kept: usize) {
        while self.from_workers[from].as_ref().is_some_and(|ring| !ring.is_empty())
            && self.room() > kept
            && !self.context.spare.is_empty()
        {
            let Some(Ok(chunk)) = self.from_workers[from].as_mut().map(|ring| ring.read_chunk(1)) else { break };
            let over = &chunk.as_slices().0[0];
            let frame = self.context.spare.pop().expect("checked above");
            let (about, bytes) = (over.about, over.bytes());
            self.driver.frames().frame(frame)[handoff::OFFSET..handoff::OFFSET + bytes.len()].copy_from_slice(bytes);
            let packet = Packet {
                frame,
                offset: handoff::OFFSET as u16,
                length: about.length,
                l3: handoff::OFFSET as u16 + about.l3,
                l4: handoff::OFFSET as u16 + about.l4,
                interface: about.interface,
                protocol: about.protocol,
                received: about.received,
                has_waited: true,
                handoffs: about.handoffs,
                fragment: about.fragment,
                ports: about.ports,
                ..Packet::EMPTY
            };
            chunk.commit_all();
            self.context.inject(packet, about.node).expect("there is room");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::dataplane::testing::*;

    #[test]
    fn what_others_hand_over_leaves_room_for_what_comes_in_here() {
        let mut rings = handoff::mesh(3);
        let mut benches: Vec<_> = (0..3).rev().map(|at| Bench::at(at, 3, rings.pop().unwrap())).collect();
        let mut ours = benches.pop().unwrap();
        ours.relay();
        let frame = |n| Relayed::up(1, n, vec![]).frame();
        for (from, other) in (1..).zip(&mut benches) {
            for sweep in 0..4 {
                let burst: Vec<_> = (1..=256).map(|n| frame(from * 10_000 + sweep * 256 + n)).collect();
                other.run(&burst);
            }
        }
        let burst: Vec<_> = (1..=100).map(frame).collect();
        let received = |bench: &Bench| bench.worker.context().published.worker.received.load(Relaxed);
        let before = received(&ours);
        let waiting = |bench: &Bench| -> Vec<usize> {
            bench.worker.from_workers.iter().flatten().map(rtrb::Consumer::slots).collect()
        };
        assert_eq!(waiting(&ours), [1024, 1024]);
        ours.run(&burst);
        assert_eq!(received(&ours) - before, 100);
        (0..2).for_each(|_| drop(ours.sweep()));
        assert!(waiting(&ours).iter().all(|count| *count < 1024), "each has its turn: {:?}", waiting(&ours));
        (0..20).for_each(|_| drop(ours.sweep()));
        assert_eq!(waiting(&ours), [0, 0]);
    }
}
