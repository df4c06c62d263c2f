//! A packet slot's metadata and sets of packet slots.

use std::{mem::size_of, net::Ipv4Addr, ops::Range};

use super::{
    conntrack::NO_BINDING,
    driver::{Frames, Received},
    graph::NodeId,
    nat::Owner,
};
use crate::{Nanos, limits::PACKET_SLOTS, wire::relay::Kind};

/// What is known of the packet in a slot: one cache line. Which fields are set, each node says.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Packet {
    /// The frame that holds it; owned by this slot.
    pub frame: u32,
    /// Where in the frame the packet starts: the Ethernet header's first byte.
    pub offset: u16,
    /// Bytes from there.
    pub length: u16,
    /// Where in the frame the IP header starts.
    pub l3: u16,
    /// Where in the frame the transport header starts.
    pub l4: u16,
    /// The interface it came from, or leaves by.
    pub interface: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Path number of the relay header.
    pub path: u8,
    /// Kind of the relay header.
    pub kind: Kind,
    /// The session's slot at this worker, or [`Packet::NO_SLOT`] for one of the gateway.
    pub slot: u32,
    /// The NAT binding that was made for it while it waited, or [`NO_BINDING`].
    pub binding: u32,
    /// The worker it is handed to.
    pub worker: u8,
    /// ICMP type of the error to be sent about it.
    pub icmp_type: u8,
    /// ICMP code of that error.
    pub icmp_code: u8,
    /// True: it came from a session's client and an error about it goes back there.
    pub from_inside: bool,
    /// MTU of the way ahead: for that error to tell, or for the packet to be cut to.
    pub mtu: u16,
    /// Sequence number of the relay header; of a packet of IPv6 that is to be cut, the identification of its parts.
    pub sequence: u64,
    /// When the sweep that received it began.
    pub received: Nanos,
    /// Where it goes: what the route lookup is made for.
    pub destination: Ipv4Addr,
    /// Where it goes on after it waited or was handed over.
    pub resume_at: NodeId,
    /// True: it waited for the control core or for another worker.
    pub has_waited: bool,
    /// How often it was handed over.
    pub handoffs: u8,
    /// Of a fragment: which one it is, once the ports of its packet are known.
    pub fragment: Fragment,
    /// Of a fragment: source and destination port of its packet.
    pub ports: (u16, u16),
    /// Of a fragment: which use of its slot it belongs to, for the slot may be another session's once it was held.
    pub generation: u16,
}

/// What is known of a packet's being a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// It is none, or nobody has looked yet.
    No,
    /// It has the transport header.
    First,
    /// It has not.
    Later,
}

const _: () = assert!(size_of::<Packet>() == 64, "a packet's metadata is one cache line");

impl Packet {
    /// The metadata of an empty slot.
    pub const EMPTY: Self = Self {
        frame: 0,
        offset: 0,
        length: 0,
        l3: 0,
        l4: 0,
        interface: 0,
        protocol: 0,
        path: 0,
        kind: Kind::DataUp,
        slot: 0,
        binding: NO_BINDING,
        worker: 0,
        icmp_type: 0,
        icmp_code: 0,
        from_inside: false,
        mtu: 0,
        sequence: 0,
        received: 0,
        destination: Ipv4Addr::UNSPECIFIED,
        resume_at: NodeId::Tx,
        has_waited: false,
        handoffs: 0,
        fragment: Fragment::No,
        ports: (0, 0),
        generation: 0,
    };

    /// In place of a slot: the packet belongs to no session but to the gateway ([`Owner::INSIDE`]).
    pub const NO_SLOT: u32 = u32::MAX;

    /// On whose behalf it is translated.
    #[inline]
    pub fn owner(&self) -> Owner {
        if self.slot == Self::NO_SLOT { Owner::INSIDE } else { Owner::session(self.slot) }
    }

    /// A packet as the driver received it.
    #[inline]
    pub fn received(from: &Received, now: Nanos) -> Self {
        Self {
            frame: from.frame,
            offset: from.offset,
            length: from.length,
            interface: from.interface,
            received: now,
            ..Self::EMPTY
        }
    }

    /// The frame's bytes that are the packet.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        usize::from(self.offset)..self.end()
    }

    /// One past its last byte in the frame.
    #[inline]
    pub fn end(&self) -> usize {
        usize::from(self.offset) + usize::from(self.length)
    }

    /// From the Ethernet header on.
    #[inline]
    pub fn bytes<'a>(&self, frames: &'a mut Frames) -> &'a mut [u8] {
        &mut frames.frame(self.frame)[self.range()]
    }

    /// From the IP header on.
    #[inline]
    pub fn ip<'a>(&self, frames: &'a mut Frames) -> &'a mut [u8] {
        &mut frames.frame(self.frame)[usize::from(self.l3)..self.end()]
    }

    /// The first `N` bytes from the IP header on; `None` where there are fewer.
    #[inline]
    pub fn headers<'a, const N: usize>(&self, frames: &'a mut Frames) -> Option<&'a mut [u8; N]> {
        let range = usize::from(self.l3)..usize::from(self.l3) + N;
        if range.end > self.end() {
            return None;
        }
        frames.frame(self.frame).get_mut(range)?.first_chunk_mut()
    }

    /// From the transport header on.
    #[inline]
    pub fn transport<'a>(&self, frames: &'a mut Frames) -> &'a mut [u8] {
        &mut frames.frame(self.frame)[usize::from(self.l4)..self.end()]
    }

    /// Bytes from the IP header on.
    #[inline]
    pub fn ip_length(&self) -> usize {
        self.end() - usize::from(self.l3)
    }
}

/// A set of packet slots: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bitmap([u64; PACKET_SLOTS / 64]);

impl Bitmap {
    /// All slots.
    pub const FULL: Self = Self([u64::MAX; PACKET_SLOTS / 64]);

    /// Puts a slot in.
    #[inline]
    pub fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    /// Takes a slot out.
    #[inline]
    pub fn remove(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }

    /// Puts slots in, the lowest being `64 * word`.
    #[inline]
    pub fn insert_word(&mut self, word: usize, slots: u64) {
        self.0[word] |= slots;
    }

    /// Its 64-bit words with their numbers, for loops in which each instruction counts.
    #[inline]
    pub fn words(self) -> impl Iterator<Item = (usize, u64)> {
        self.0.into_iter().enumerate()
    }

    /// Puts all slots of another set in.
    #[inline]
    pub fn insert_all(&mut self, other: Self) {
        for (word, slots) in other.words() {
            self.insert_word(word, slots);
        }
    }

    /// Takes the lowest `count` slots out, or all where there are fewer.
    pub fn take_lowest(&mut self, count: usize) -> Self {
        let mut taken = Self::default();
        let mut missing = count as u32;
        for (word, slots) in self.0.iter_mut().enumerate() {
            if missing == 0 {
                break;
            }
            // Nearly always all are there.
            let there = if *slots == u64::MAX { u64::BITS } else { slots.count_ones() };
            let left = match there {
                _ if there <= missing => 0,
                u64::BITS => u64::MAX << missing,
                _ => (0..missing).fold(*slots, |left, _| left & (left - 1)),
            };
            taken.0[word] = *slots & !left;
            *slots = left;
            missing -= there.min(missing);
        }
        taken
    }

    /// True where the slot is in.
    #[inline]
    pub fn contains(&self, slot: usize) -> bool {
        self.0[slot / 64] & 1 << (slot % 64) != 0
    }

    /// Takes the lowest slot out.
    #[inline]
    pub fn pop(&mut self) -> Option<usize> {
        for (i, word) in self.0.iter_mut().enumerate() {
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                return Some(i * 64 + bit);
            }
        }
        None
    }

    /// True where none is in.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; PACKET_SLOTS / 64]
    }
}

/// From the lowest slot to the highest.
impl Iterator for Bitmap {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        self.pop()
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.count();
        (count, Some(count))
    }

    // A loop in a loop: `next` would begin with the first word each time.
    #[inline]
    fn fold<T, F: FnMut(T, usize) -> T>(self, mut value: T, mut step: F) -> T {
        for (word, mut slots) in self.words() {
            while slots != 0 {
                value = step(value, (word * 64 + slots.trailing_zeros() as usize) % PACKET_SLOTS);
                slots &= slots - 1;
            }
        }
        value
    }

    // Several times a sweep: must not walk the bits. (An inherent `count(&self)` would not help, for a call on a
    // value finds `Iterator::count` first.)
    #[inline]
    fn count(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_back_what_was_put_in_in_order() {
        let mut set = Bitmap::default();
        for slot in [255, 0, 64, 63, 64] {
            set.insert(slot);
        }
        assert_eq!(set.count(), 4);
        assert_eq!(set.collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert_eq!(Bitmap::FULL.count(), PACKET_SLOTS);
    }

    #[test]
    fn the_lowest_slots_are_taken_out_whatever_is_missing() {
        for count in [0, 1, 63, 64, 65, 130, 300] {
            let mut free = Bitmap::FULL;
            for slot in [0, 5, 64, 127, 200] {
                free.0[slot / 64] &= !(1 << (slot % 64));
            }
            let all: Vec<_> = free.collect();
            let mut each = Vec::new();
            let taken = free.take_lowest(count);
            taken.for_each(|slot| each.push(slot));
            assert_eq!(each, all[..count.min(all.len())]);
            assert_eq!(taken.collect::<Vec<_>>(), each);
            assert_eq!(free.collect::<Vec<_>>(), all[count.min(all.len())..]);
        }
    }
}
