//! Unsolicited SYNs from outside, held for six seconds (RFC 5382 REQ-4).
//!
//! Whoever opens a connection at the same moment as its other end must not be told "unreachable" because the SYN from
//! inside is a little later. So a SYN that nothing lets in is put aside without an answer; a SYN from inside to the same
//! place makes it forgotten; else its sender is told after six seconds. All wait equally long, so the table is a queue.

use super::Endpoint;
use crate::{Nanos, SECOND};

/// How long.
pub(in crate::dataplane) const HOLD: Nanos = 6 * SECOND;

/// SYNs held at a time. One that finds no place is never answered, which is allowed.
const PLACES: usize = 256;

/// Bytes kept of one; a longer one is never answered.
const BYTES: usize = 128;

/// A SYN as it came in.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataplane) struct HeldSyn {
    due: Nanos,
    outside: Endpoint,
    remote: Endpoint,
    /// The interface it came in by.
    pub(in crate::dataplane) interface: u8,
    is_forgotten: bool,
    length: u8,
    bytes: [u8; BYTES],
}

impl HeldSyn {
    /// The packet from its IP header on.
    pub(in crate::dataplane) fn packet(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The queue.
#[derive(Debug)]
pub struct HeldSyns {
    places: Box<[HeldSyn; PLACES]>,
    first: usize,
    count: usize,
}

impl HeldSyns {
    /// None.
    pub fn new() -> Self {
        let end = (std::net::Ipv4Addr::UNSPECIFIED, 0);
        let empty = HeldSyn {
            due: 0,
            outside: end,
            remote: end,
            interface: 0,
            is_forgotten: true,
            length: 0,
            bytes: [0; BYTES],
        };
        Self { places: Box::new([empty; PLACES]), first: 0, count: 0 }
    }

    /// A SYN from `remote` to `outside` that nothing lets in. A copy of one that is held already is not held, too.
    pub(in crate::dataplane) fn hold(
        &mut self,
        now: Nanos,
        interface: u8,
        remote: Endpoint,
        outside: Endpoint,
        packet: &[u8],
    ) {
        let is_copy = |held: &HeldSyn| held.remote == remote && held.outside == outside && !held.is_forgotten;
        if self.count == PLACES || packet.len() > BYTES || self.held().any(is_copy) {
            return;
        }
        let place = &mut self.places[(self.first + self.count) % PLACES];
        place.bytes[..packet.len()].copy_from_slice(packet);
        place.length = packet.len() as u8;
        (place.due, place.interface, place.remote, place.outside) = (now + HOLD, interface, remote, outside);
        place.is_forgotten = false;
        self.count += 1;
    }

    /// A SYN goes out from `outside` to `remote`.
    #[inline]
    pub(in crate::dataplane) fn forget(&mut self, remote: Endpoint, outside: Endpoint) {
        for at in 0..self.count {
            let held = &mut self.places[(self.first + at) % PLACES];
            held.is_forgotten |= held.remote == remote && held.outside == outside;
        }
    }

    /// True where none is held.
    #[inline]
    pub(in crate::dataplane) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The next one whose time is over.
    pub(in crate::dataplane) fn next(&mut self, now: Nanos) -> Option<HeldSyn> {
        while self.count > 0 {
            let held = self.places[self.first];
            if !held.is_forgotten && held.due > now {
                return None;
            }
            self.first = (self.first + 1) % PLACES;
            self.count -= 1;
            if !held.is_forgotten {
                return Some(held);
            }
        }
        None
    }

    fn held(&self) -> impl Iterator<Item = &HeldSyn> {
        (0..self.count).map(|at| &self.places[(self.first + at) % PLACES])
    }
}

impl Default for HeldSyns {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(BYTES <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn end(port: u16) -> Endpoint {
        (Ipv4Addr::new(192, 0, 2, 1), port)
    }

    #[test]
    fn each_comes_up_once_after_six_seconds_and_a_forgotten_one_never() {
        let mut held = HeldSyns::new();
        held.hold(0, 0, end(1), end(9), &[1; 40]);
        held.hold(5, 0, end(2), end(9), &[2; 40]);
        held.hold(6, 0, end(2), end(9), &[3; 40]);
        held.hold(7, 0, end(3), end(9), &[4; 40]);
        held.forget(end(2), end(9));
        assert!(held.next(HOLD - 1).is_none());
        assert_eq!(held.next(HOLD + 10).unwrap().packet(), [1; 40]);
        assert_eq!(held.next(HOLD + 10).unwrap().packet(), [4; 40]);
        assert!(held.next(HOLD + 10).is_none());
    }

    #[test]
    fn a_flood_finds_no_place_and_does_no_harm() {
        let mut held = HeldSyns::new();
        (0..1000).for_each(|port| held.hold(Nanos::from(port), 0, end(port), end(9), &[0; 40]));
        held.hold(1, 0, end(1), end(8), &[0; BYTES + 1]);
        assert_eq!(std::iter::from_fn(|| held.next(HOLD * 2)).count(), PLACES);
        held.hold(1, 0, end(1), end(9), &[0; 40]);
        assert_eq!(std::iter::from_fn(|| held.next(HOLD * 2)).count(), 1);
    }
}
