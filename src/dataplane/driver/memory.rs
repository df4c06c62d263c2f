//! A driver without a network: packets are put in and taken out by the test, the simulator or a benchmark.

use std::{collections::VecDeque, time::Duration};

use super::{super::packet::Bitmap, Driver, DriverStatistics, Frames, Received, Transmit};
use crate::limits::{FRAME_HEADROOM, FRAME_SIZE, PACKET_BYTES_MAX};

/// The driver.
#[derive(Debug)]
pub struct MemoryDriver {
    // Boxed and never touched but through `frames` while this lives.
    _memory: Box<[u8]>,
    frames: Frames,
    free: Vec<u32>,
    incoming: VecDeque<(u8, Vec<u8>)>,
    outgoing: Vec<(u8, Vec<u8>)>,
    /// Buffers of packets that came in, for those that go out.
    buffers: Vec<Vec<u8>>,
    transmit_room: usize,
}

impl MemoryDriver {
    /// A driver with `count` frames.
    pub fn new(count: u32) -> Self {
        let mut memory = vec![0u8; count as usize * FRAME_SIZE].into_boxed_slice();
        // SAFETY: the memory lives as long as `self` and nothing else touches it.
        let frames = unsafe { Frames::new(memory.as_mut_ptr(), count) };
        Self {
            _memory: memory,
            frames,
            free: (0..count).rev().collect(),
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            buffers: Vec::new(),
            transmit_room: usize::MAX,
        }
    }

    /// A packet, Ethernet header included, comes in by `interface`. One that no frame holds is cut off.
    pub fn put(&mut self, interface: u8, packet: &[u8]) {
        let mut bytes = self.buffers.pop().unwrap_or_else(empty);
        bytes.extend_from_slice(&packet[..packet.len().min(PACKET_BYTES_MAX)]);
        self.incoming.push_back((interface, bytes));
    }

    /// Makes room: neither the next `packets` that come in nor as many that go out allocate or free anything.
    pub fn reserve(&mut self, packets: usize) {
        self.outgoing.reserve(packets);
        self.buffers.reserve(2 * packets);
        while self.buffers.len() < packets {
            self.buffers.push(empty());
        }
    }

    /// Everything sent since the last call, by interface.
    pub fn take(&mut self) -> Vec<(u8, Vec<u8>)> {
        std::mem::take(&mut self.outgoing)
    }

    /// Frames nobody holds.
    pub fn free_frames(&self) -> usize {
        self.free.len()
    }

    /// From now on `transmit` takes this many packets a call at most: a full ring.
    pub fn limit_transmit(&mut self, room: usize) {
        self.transmit_room = room;
    }
}

/// A buffer that every packet fits.
fn empty() -> Vec<u8> {
    Vec::with_capacity(PACKET_BYTES_MAX)
}

impl Driver for MemoryDriver {
    fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    fn receive(&mut self, into: &mut [Received]) -> usize {
        let mut count = 0;
        while count < into.len() && !self.incoming.is_empty() {
            let Some(frame) = self.free.pop() else { break };
            let (interface, mut packet) = self.incoming.pop_front().expect("not empty");
            self.frames.frame(frame)[FRAME_HEADROOM..FRAME_HEADROOM + packet.len()].copy_from_slice(&packet);
            into[count] = Received { frame, offset: FRAME_HEADROOM as u16, length: packet.len() as u16, interface };
            if self.buffers.len() < self.buffers.capacity() {
                packet.clear();
                self.buffers.push(packet);
            }
            count += 1;
        }
        count
    }

    fn allocate(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn release(&mut self, frame: u32) {
        debug_assert!(!self.free.contains(&frame), "frame {frame} was released twice");
        self.free.push(frame);
    }

    fn transmit(&mut self, batch: &[Transmit], refused: &mut Bitmap) {
        for (place, packet) in batch.iter().enumerate() {
            if place >= self.transmit_room {
                refused.insert(place);
                continue;
            }
            let range = usize::from(packet.offset)..usize::from(packet.offset) + usize::from(packet.length);
            let mut bytes = self.buffers.pop().unwrap_or_else(empty);
            bytes.extend_from_slice(&self.frames.frame(packet.frame)[range]);
            self.outgoing.push((packet.interface, bytes));
            self.free.push(packet.frame);
        }
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Duration) {}

    fn statistics(&mut self) -> DriverStatistics {
        DriverStatistics::default()
    }
}
