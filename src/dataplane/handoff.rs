//! Packets on their way from the worker that received them to the one that owns their slot.
//!
//! Each worker has a UMEM of its own, so the bytes are copied: once into the ring, once out. The share of
//! packets that need it is `handed_off` over `received`; it is zero where RSS already steers by owner.

use super::{graph::NodeId, packet::Fragment};
use crate::{
    Nanos,
    limits::{FRAME_HEADROOM, HANDOFF_RING, PACKET_BYTES_MAX},
};

/// A packet between two workers.
pub struct HandedOver {
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
    /// The packet from its Ethernet header on.
    pub bytes: [u8; PACKET_BYTES_MAX],
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
