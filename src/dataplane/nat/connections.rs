//! The TCP connections of a binding, followed as far as a NAT must: is one open, opening, or over?
//!
//! RFC 7857 section 2.1 asks for the state machine of RFC 6146 section 3.5.2. Here it is, with two additions against
//! strangers who know addresses and ports but see no packets: a handshake counts only if it acknowledges what the
//! inside sent, and a RST from outside only if the inside host could accept it (RFC 5961 section 3.2). The inside is
//! trusted. A connection that was reset and goes on all the same is open again (RFC 6146, state TRANS).
//!
//! Mapping is endpoint-independent, so one binding carries any number of connections. Two are followed. Where more are
//! open at once the binding is *crowded* and has the long timer until it is idle for that long: at worst a port rests
//! late, never is an open connection cut.

use std::{mem::size_of, net::Ipv4Addr};

use super::binding::Endpoint;
use crate::wire::tcp::{self, Segment};

/// Connections of a binding that are followed.
const FOLLOWED: usize = 2;

/// Where a segment comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Origin {
    /// The inside host.
    Inside,
    /// A server, or anyone else out there.
    Outside,
}

/// How far the connections of a binding have come, taken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Phase {
    /// No handshake is complete.
    Opening,
    /// At least one connection is open.
    Established,
    /// All are over: both ends have sent FIN, or one RST.
    Closing,
}

const SYN_INSIDE: u8 = 1;
const SYN_OUTSIDE: u8 = 2;
const FIN_INSIDE: u8 = 4;
const FIN_OUTSIDE: u8 = 8;
/// The handshake is complete.
const OPEN: u8 = 16;
const RESET: u8 = 32;
/// The server offered window scaling: what the inside offered holds.
const IS_SCALED: u8 = 64;

/// The connections of one binding, field by field, so that they take 36 bytes of its cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Connections {
    /// What the inside host expects next of the server.
    expected: [u32; FOLLOWED],
    /// What comes after the last byte that the inside host sent.
    sent: [u32; FOLLOWED],
    remote_address: [Ipv4Addr; FOLLOWED],
    remote_port: [u16; FOLLOWED],
    /// The inside host's window, as in its last segment.
    window: [u16; FOLLOWED],
    /// The scale it offered (RFC 7323).
    scale: [u8; FOLLOWED],
    /// Zero: the place is unused.
    flags: [u8; FOLLOWED],
}

const _: () = assert!(size_of::<Connections>() == 36);

impl Connections {
    /// None.
    pub(super) const NONE: Self = Self {
        expected: [0; FOLLOWED],
        sent: [0; FOLLOWED],
        remote_address: [Ipv4Addr::UNSPECIFIED; FOLLOWED],
        remote_port: [0; FOLLOWED],
        window: [0; FOLLOWED],
        scale: [0; FOLLOWED],
        flags: [0; FOLLOWED],
    };

    /// How far they have come.
    #[inline]
    pub(super) fn phase(&self) -> Phase {
        let is_over = self.flags.map(is_over);
        match () {
            () if (0..FOLLOWED).any(|at| self.flags[at] & OPEN != 0 && !is_over[at]) => Phase::Established,
            () if is_over.contains(&true) && (0..FOLLOWED).all(|at| self.flags[at] == 0 || is_over[at]) => {
                Phase::Closing
            }
            () => Phase::Opening,
        }
    }

    /// A segment passes. Returns whether its connection is followed and still lives.
    #[inline]
    pub(super) fn on_segment(&mut self, from: Origin, remote: Endpoint, segment: &Segment) -> Standing {
        let place = match self.place_of(remote) {
            Some(place) => place,
            None if segment.flags & (tcp::SYN | tcp::RST) == tcp::SYN => match self.place_for_new(from) {
                Some(place) => {
                    self.begin(place, remote);
                    place
                }
                None => return Standing::Unknown,
            },
            None => return Standing::Unknown,
        };
        match from {
            Origin::Inside => self.on_inside(place, segment),
            Origin::Outside => self.on_outside(place, segment),
        }
        if is_over(self.flags[place]) { Standing::Over } else { Standing::Alive }
    }

    fn on_inside(&mut self, place: usize, segment: &Segment) {
        let flags = segment.flags;
        if flags & tcp::RST != 0 {
            self.flags[place] |= RESET;
            return;
        }
        if flags & tcp::SYN != 0 {
            if is_over(self.flags[place]) {
                self.flags[place] = 0;
            }
            if self.flags[place] & OPEN == 0 {
                self.sent[place] = segment.end();
                self.scale[place] = segment.scale.unwrap_or(0);
            }
            self.flags[place] |= SYN_INSIDE;
        } else {
            self.flags[place] &= !RESET;
            if is_later(segment.end(), self.sent[place]) {
                self.sent[place] = segment.end();
            }
            self.open_if_complete(place, flags);
        }
        if flags & tcp::ACK != 0 {
            self.expected[place] = segment.acknowledgement;
        }
        self.window[place] = segment.window;
        if flags & tcp::FIN != 0 {
            self.flags[place] |= FIN_INSIDE;
        }
    }

    fn on_outside(&mut self, place: usize, segment: &Segment) {
        let flags = segment.flags;
        // It acknowledges something the inside sent lately, which nobody knows who does not see it.
        let is_answer = flags & tcp::ACK != 0 && self.sent[place].wrapping_sub(segment.acknowledgement) <= 0xffff;
        if flags & tcp::RST != 0 {
            if self.accepts_reset(place, segment, is_answer) {
                self.flags[place] |= RESET;
            }
            return;
        }
        if flags & tcp::SYN != 0 {
            if is_over(self.flags[place]) {
                self.flags[place] = 0;
            }
            let is_first = self.flags[place] & SYN_OUTSIDE == 0;
            if is_first && (flags & tcp::ACK == 0 || is_answer) {
                self.expected[place] = segment.end();
                self.flags[place] |= SYN_OUTSIDE | if segment.scale.is_some() { IS_SCALED } else { 0 };
            }
            return;
        }
        if is_answer {
            self.open_if_complete(place, flags);
        }
        if flags & tcp::FIN != 0 && self.is_in_window(place, segment.end().wrapping_sub(1)) {
            self.flags[place] |= FIN_OUTSIDE;
        }
    }

    fn open_if_complete(&mut self, place: usize, flags: u8) {
        let both = SYN_INSIDE | SYN_OUTSIDE;
        if flags & tcp::ACK != 0 && self.flags[place] & both == both {
            self.flags[place] |= OPEN;
        }
    }

    fn accepts_reset(&self, place: usize, segment: &Segment, is_answer: bool) -> bool {
        if self.flags[place] & SYN_OUTSIDE == 0 {
            // The server refuses: of its own numbers the inside knows nothing yet.
            return is_answer && segment.acknowledgement == self.sent[place];
        }
        self.is_in_window(place, segment.sequence)
    }

    fn is_in_window(&self, place: usize, sequence: u32) -> bool {
        let scale = if self.flags[place] & IS_SCALED != 0 { self.scale[place].min(14) } else { 0 };
        let window = (u32::from(self.window[place]) << scale).max(1);
        sequence.wrapping_sub(self.expected[place]) <= window
    }

    fn begin(&mut self, place: usize, remote: Endpoint) {
        (self.remote_address[place], self.remote_port[place]) = remote;
        self.flags[place] = 0;
        self.expected[place] = 0;
        self.sent[place] = 0;
        self.window[place] = 0;
        self.scale[place] = 0;
    }

    #[inline]
    fn place_of(&self, remote: Endpoint) -> Option<usize> {
        (0..FOLLOWED)
            .find(|&at| self.flags[at] != 0 && self.remote_address[at] == remote.0 && self.remote_port[at] == remote.1)
    }

    /// An unused place, or that of a connection that is over. The inside may also have that of a handshake that does
    /// not end; should it end after all, its packets make the binding crowded.
    fn place_for_new(&self, from: Origin) -> Option<usize> {
        let find = |is_good: &dyn Fn(u8) -> bool| (0..FOLLOWED).find(|&at| is_good(self.flags[at]));
        find(&|flags| flags == 0)
            .or_else(|| find(&is_over))
            .or_else(|| if from == Origin::Inside { find(&|flags| flags & OPEN == 0) } else { None })
    }
}

/// What is known of the connection that a segment belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Followed, and not over.
    Alive,
    /// Followed, and over.
    Over,
    /// Not followed.
    Unknown,
}

const fn is_over(flags: u8) -> bool {
    let both = FIN_INSIDE | FIN_OUTSIDE;
    flags & RESET != 0 || flags & both == both
}

/// RFC 9293 section 3.4: sequence numbers wrap.
fn is_later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tcp::{ACK, FIN, RST, SYN};

    const SERVER: Endpoint = (Ipv4Addr::new(198, 51, 100, 1), 80);
    /// The client's first number, and the server's.
    const C: u32 = u32::MAX - 1;
    const S: u32 = 5_000;

    fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
        let scale = if flags & SYN != 0 { Some(2) } else { None };
        Segment { flags, sequence, acknowledgement, window: 1_000, payload: 0, scale }
    }

    /// Steps of one connection, and the phase after each.
    fn phases(connections: &mut Connections, steps: &[(Origin, u8, u32, u32)]) -> Vec<Phase> {
        let step = |&(from, flags, sequence, acknowledgement): &(Origin, u8, u32, u32)| {
            connections.on_segment(from, SERVER, &segment(flags, sequence, acknowledgement));
            connections.phase()
        };
        steps.iter().map(step).collect()
    }

    use Origin::{Inside, Outside};
    use Phase::{Closing, Established, Opening};

    fn established() -> Connections {
        let mut connections = Connections::NONE;
        let c = C.wrapping_add(1);
        let steps = [(Inside, SYN, C, 0), (Outside, SYN | ACK, S, c), (Inside, ACK, c, S + 1)];
        assert_eq!(phases(&mut connections, &steps), [Opening, Opening, Established]);
        connections
    }

    #[test]
    fn every_way_to_open_ends_established() {
        established();
        let c = C.wrapping_add(1);
        let simultaneous = [
            (Inside, SYN, C, 0),
            (Outside, SYN, S, 0),
            (Inside, SYN | ACK, C, S + 1),
            (Outside, SYN | ACK, S, c),
            (Inside, ACK, c, S + 1),
        ];
        assert_eq!(phases(&mut Connections::NONE.clone(), &simultaneous).last(), Some(&Established));
        let from_outside = [(Outside, SYN, S, 0), (Inside, SYN | ACK, C, S + 1), (Outside, ACK, S + 1, c)];
        assert_eq!(phases(&mut Connections::NONE.clone(), &from_outside), [Opening, Opening, Established]);
    }

    #[test]
    fn a_handshake_that_acknowledges_what_was_not_sent_opens_nothing() {
        let c = C.wrapping_add(1);
        let guessed = [
            (Inside, SYN, C, 0),
            (Outside, SYN | ACK, S, c.wrapping_add(70_000)),
            (Inside, ACK, c, S + 1),
            (Outside, ACK, S + 1, c),
        ];
        assert_eq!(phases(&mut Connections::NONE.clone(), &guessed), [Opening; 4]);
        let blind = [(Outside, SYN, S, 0), (Inside, SYN | ACK, C, S + 1), (Outside, ACK, S + 1, c.wrapping_add(9))];
        assert_eq!(phases(&mut Connections::NONE.clone(), &blind).last(), Some(&Opening));
    }

    #[test]
    fn a_half_closed_connection_is_open_until_the_other_end_closes_too() {
        let c = C.wrapping_add(1);
        let mut connections = established();
        let steps = [
            (Inside, FIN | ACK, c, S + 1),
            (Outside, ACK, S + 1, c.wrapping_add(1)),
            (Inside, ACK, c.wrapping_add(1), S + 500),
            (Outside, FIN | ACK, S + 500, c.wrapping_add(1)),
        ];
        assert_eq!(phases(&mut connections, &steps), [Established, Established, Established, Closing]);
        let again = [(Inside, SYN, 77, 0), (Outside, SYN | ACK, 99, 78), (Inside, ACK, 78, 100)];
        assert_eq!(phases(&mut connections, &again), [Opening, Opening, Established], "the port is used anew");
    }

    #[test]
    fn a_reset_counts_if_the_client_could_accept_it() {
        let c = C.wrapping_add(1);
        for (number, phase) in [
            (S + 1, Closing),
            (S + 1 + 4_000, Closing),
            (S + 1 + 4_001, Established),
            (S, Established),
            (S.wrapping_add(1 << 31), Established),
        ] {
            let mut connections = established();
            assert_eq!(phases(&mut connections, &[(Outside, RST, number, 0)]), [phase], "number {number}");
        }
        let refused = [(Inside, SYN, C, 0), (Outside, RST | ACK, 0, c)];
        assert_eq!(phases(&mut Connections::NONE.clone(), &refused).last(), Some(&Closing));
        for spoofed in [(Outside, RST | ACK, 0, c.wrapping_add(1)), (Outside, RST, 0, c)] {
            let steps = [(Inside, SYN, C, 0), spoofed];
            assert_eq!(phases(&mut Connections::NONE.clone(), &steps).last(), Some(&Opening));
        }
        assert_eq!(phases(&mut established(), &[(Inside, RST, 0, 0)]), [Closing], "the inside is trusted");
    }

    #[test]
    fn a_connection_that_goes_on_after_a_reset_is_open_again() {
        let c = C.wrapping_add(1);
        let steps = [(Outside, RST, S + 1, 0), (Outside, ACK, S + 1, c), (Inside, ACK, c, S + 1)];
        assert_eq!(phases(&mut established(), &steps), [Closing, Closing, Established]);
    }

    #[test]
    fn a_second_connection_keeps_the_binding_open_and_a_third_is_not_followed() {
        let mut connections = established();
        let other = (SERVER.0, 443);
        for (from, segment) in
            [(Inside, segment(SYN, 1, 0)), (Outside, segment(SYN | ACK, 9, 2)), (Inside, segment(ACK, 2, 10))]
        {
            assert_eq!(connections.on_segment(from, other, &segment), Standing::Alive);
        }
        assert_eq!(connections.on_segment(Inside, (SERVER.0, 8080), &segment(SYN, 1, 0)), Standing::Unknown);
        assert_eq!(phases(&mut connections, &[(Outside, RST, S + 1, 0)]), [Established]);
        assert_eq!(connections.on_segment(Outside, other, &segment(RST, 10, 0)), Standing::Over);
        assert_eq!(connections.phase(), Closing);
        assert_eq!(connections.on_segment(Inside, (SERVER.0, 8080), &segment(SYN, 1, 0)), Standing::Alive);
    }

    #[test]
    fn a_stranger_displaces_no_handshake_of_the_inside() {
        let mut connections = Connections::NONE;
        for port in [1, 2] {
            assert_eq!(connections.on_segment(Inside, (SERVER.0, port), &segment(SYN, 1, 0)), Standing::Alive);
        }
        assert_eq!(connections.on_segment(Outside, (SERVER.0, 3), &segment(SYN, 1, 0)), Standing::Unknown);
        assert_eq!(connections.on_segment(Inside, (SERVER.0, 3), &segment(SYN, 1, 0)), Standing::Alive);
    }
}
