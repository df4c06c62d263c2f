//! Packets on their way from the worker that received them to the one that owns their slot.
//!
//! Each worker has a UMEM of its own, so the bytes are copied: once into the ring, once out; a place in the ring is as long
//! as the longest packet, and of that only what the packet has is touched. The share of packets that need it is
//! `handed_off` over `received`; it is zero where RSS already steers by owner ([`super::rss`]).

use std::{mem::MaybeUninit, slice};

use super::{graph::NodeId, packet::Fragment};
use crate::{
    Nanos,
    limits::{FRAME_HEADROOM, HANDOFF_RING, PACKET_BYTES_MAX},
};

/// A packet between two workers. Made by [`push`] alone, in its place in the ring.
pub struct HandedOver {
    /// What is known of it.
    pub about: About,
    /// From its Ethernet header on; the first `about.length` are written.
    bytes: [MaybeUninit<u8>; PACKET_BYTES_MAX],
}

/// What is known of a packet between two workers.
#[derive(Clone, Copy)]
pub struct About {
    /// The node it goes on at.
    pub node: NodeId,
    /// When it was received.
    pub received: Nanos,
    /// The interface it came from.
    pub interface: u8,
    /// IP protocol.
    pub protocol: u8,
    /// How often it was handed over, this time included.
    pub handoffs: u8,
    /// Which fragment it is, where the ports of its packet are known.
    pub fragment: Fragment,
    /// And those ports.
    pub ports: (u16, u16),
    /// Where the IP header starts in `bytes`.
    pub l3: u16,
    /// Where the transport header starts in `bytes`.
    pub l4: u16,
    /// Bytes of the packet.
    pub length: u16,
}

impl HandedOver {
    /// The packet from its Ethernet header on.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `push` has written `length` bytes, which is no more than there are.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().cast(), usize::from(self.about.length)) }
    }
}

/// Puts a packet into the ring. False where it is full, or the packet too long.
#[inline]
pub fn push(ring: &mut rtrb::Producer<HandedOver>, about: About, packet: &[u8]) -> bool {
    assert_eq!(packet.len(), usize::from(about.length), "it says how long it is");
    if packet.len() > PACKET_BYTES_MAX {
        return false;
    }
    let Ok(mut chunk) = ring.write_chunk_uninit(1) else { return false };
    let place = chunk.as_mut_slices().0[0].as_mut_ptr();
    // SAFETY: the place is ours until it is committed, and the packet fits. Afterwards `about` and so many bytes as it
    // says are written; the other bytes need not be.
    unsafe {
        (&raw mut (*place).about).write(about);
        (&raw mut (*place).bytes).cast::<u8>().copy_from_nonoverlapping(packet.as_ptr(), packet.len());
        chunk.commit_all();
    }
    true
}

/// Where a handed-over packet is put in its new frame.
pub const OFFSET: usize = FRAME_HEADROOM;

/// A worker's ends of the rings from and to the others; its own place is `None`.
#[derive(Default)]
pub struct Handoff {
    /// From each worker.
    pub from: Vec<Option<rtrb::Consumer<HandedOver>>>,
    /// To each worker.
    pub to: Vec<Option<rtrb::Producer<HandedOver>>>,
}

/// The rings between `workers` workers: a ring for each ordered pair.
pub fn mesh(workers: usize) -> Vec<Handoff> {
    let mut all: Vec<Handoff> = (0..workers)
        .map(|_| Handoff { from: (0..workers).map(|_| None).collect(), to: (0..workers).map(|_| None).collect() })
        .collect();
    for from in 0..workers {
        for to in (0..workers).filter(|to| *to != from) {
            let (producer, consumer) = rtrb::RingBuffer::new(HANDOFF_RING);
            all[from].to[to] = Some(producer);
            all[to].from[from] = Some(consumer);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(length: u16) -> About {
        let (interface, protocol, handoffs, fragment, ports) = (1, 17, 1, Fragment::No, (5, 6));
        About {
            node: NodeId::RelayInput,
            received: 7,
            interface,
            protocol,
            handoffs,
            fragment,
            ports,
            l3: 14,
            l4: 34,
            length,
        }
    }

    #[test]
    fn packets_of_all_lengths_come_out_as_they_went_in_and_a_full_ring_takes_no_more() {
        let mut ends = mesh(2);
        let (mut second, mut first) = (ends.pop().unwrap(), ends.pop().unwrap());
        let (to, from) = (first.to[1].as_mut().unwrap(), second.from[0].as_mut().unwrap());
        let packet: Vec<u8> = (0..=PACKET_BYTES_MAX).map(|n| n as u8).collect();
        for _ in 0..3 {
            for length in [0, 1, 94, PACKET_BYTES_MAX] {
                assert!(push(to, about(length as u16), &packet[..length]));
            }
            for length in [0, 1, 94, PACKET_BYTES_MAX] {
                let over = from.pop().unwrap();
                assert_eq!((over.about.received, over.bytes()), (7, &packet[..length]));
            }
        }
        assert!(!push(to, about(PACKET_BYTES_MAX as u16 + 1), &packet), "longer than any frame");
        let count = (0..).take_while(|_| push(to, about(1), &packet[..1])).count();
        assert_eq!(count, HANDOFF_RING);
        assert!(from.pop().is_ok() && push(to, about(1), &packet[..1]));
    }
}
