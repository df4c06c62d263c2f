//! Packets put aside for the control core: a new flow's first, or one whose next hop is being resolved.
//!
//! They keep their frame, so nothing is copied. A ticket names one: place (16 bits) and a count of the
//! place's uses (16 bits), so that an answer that comes twice finds nothing the second time.

use super::{graph::NodeId, packet::Packet, prefetch::prefetch};
use crate::limits::WAITING_MAX;

/// The table.
#[derive(Debug)]
pub struct Waiting {
    places: Box<[Place]>,
    free: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    uses: u16,
    held: Option<(Packet, NodeId)>,
}

const _: () = assert!(WAITING_MAX <= 1 << 16, "a ticket has 16 bits for the place");

impl Waiting {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            places: vec![Place { uses: 0, held: None }; WAITING_MAX].into_boxed_slice(),
            free: (0..WAITING_MAX as u16).rev().collect(),
        }
    }

    /// Puts a packet aside, to go on at `node`. `None`: the table is full.
    pub fn put(&mut self, packet: Packet, node: NodeId) -> Option<u32> {
        let index = self.free.pop()?;
        let place = &mut self.places[usize::from(index)];
        place.uses = place.uses.wrapping_add(1);
        place.held = Some((packet, node));
        Some(u32::from(place.uses) << 16 | u32::from(index))
    }

    /// Asks for the packet of a ticket.
    pub(super) fn prefetch(&self, ticket: u32) {
        if let Some(place) = self.places.get(usize::from(ticket as u16)) {
            prefetch(place);
        }
    }

    /// The packet of a ticket; `None` where it is not there any more.
    pub(super) fn get(&self, ticket: u32) -> Option<&Packet> {
        let place = self.places.get(usize::from(ticket as u16))?;
        place.held.as_ref().filter(|_| place.uses == (ticket >> 16) as u16).map(|(packet, _)| packet)
    }

    /// Takes the packet of a ticket out; `None` where it is not there any more.
    pub fn take(&mut self, ticket: u32) -> Option<(Packet, NodeId)> {
        let index = ticket as u16;
        let place = self.places.get_mut(usize::from(index))?;
        if place.uses != (ticket >> 16) as u16 {
            return None;
        }
        let held = place.held.take()?;
        self.free.push(index);
        Some(held)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        WAITING_MAX - self.free.len()
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_one_packet_once() {
        let mut waiting = Waiting::new();
        let first = waiting.put(Packet { frame: 7, ..Packet::EMPTY }, NodeId::IpOutput).unwrap();
        assert_eq!(waiting.take(first).map(|(packet, node)| (packet.frame, node)), Some((7, NodeId::IpOutput)));
        assert!(waiting.take(first).is_none());
        let second = waiting.put(Packet::EMPTY, NodeId::IpOutput).unwrap();
        assert!(waiting.take(first).is_none(), "an old ticket does not open a reused place");
        assert!(waiting.take(second).is_some());
        assert!(waiting.take(u32::MAX).is_none());
    }

    #[test]
    fn a_full_table_refuses() {
        let mut waiting = Waiting::new();
        for _ in 0..WAITING_MAX {
            assert!(waiting.put(Packet::EMPTY, NodeId::IpOutput).is_some());
        }
        assert!(waiting.put(Packet::EMPTY, NodeId::IpOutput).is_none());
        assert_eq!(waiting.count(), WAITING_MAX);
    }
}
