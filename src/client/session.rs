//! One open session, as the client's data plane sees it: sans-IO.
//!
//! Up: a sequence number, a header and its tag in front of each inner packet. Down: version, kind, slot, replay
//! window (looked up before the tag, which costs more; marked after it) and the inner packet's destination. That
//! a packet comes from the entry is the kernel's work: the session's UDP socket is connected to it.
//!
//! Keep-alives bind the client's address at the entry, so no data is sent before the first answer
//! ([`Session::is_ready`]): data that overtook the first keep-alive would be dropped there. One is sent each
//! 100 ms until answered, then each 5 s, and each 1 s while an answer is overdue. 15 s without an answer: the
//! session is lost.

use std::ops::Range;

use super::{drops::Reason, inside::Inside};
use crate::{
    MILLISECOND, Nanos, SECOND,
    dataplane::window::{Reject, Window},
    rpc::messages::Opened,
    wire::relay::{self, HEADER_BYTES, Header, HopKey, Kind},
};

/// Between two keep-alives before the first answer.
const KEEP_ALIVE_FIRST: Nanos = 100 * MILLISECOND;

/// Between two keep-alives when all is well.
const KEEP_ALIVE: Nanos = 5 * SECOND;

/// An answer that takes longer is overdue; then also the time between two keep-alives.
const KEEP_ALIVE_OVERDUE: Nanos = SECOND;

/// Without an answer for this long, the session is lost.
pub const LOST_AFTER: Nanos = 15 * SECOND;

/// What time demands of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Send this keep-alive.
    KeepAlive([u8; HEADER_BYTES]),
    /// The session is lost: open another.
    Lost,
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The answer to a keep-alive.
    KeepAlive,
    /// An inner packet for this client: where in the datagram it is.
    Packet(Range<usize>),
}

/// What passed, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Inner packets sent.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Inner packets received.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Keep-alives sent.
    pub keep_alives_sent: u64,
    /// Answers to them.
    pub keep_alives_received: u64,
}

/// An open session.
#[derive(Clone, Debug)]
pub struct Session {
    ct_index: u32,
    generation: u16,
    key: HopKey,
    inside: Inside,
    sequence: u64,
    window: Window,
    /// When the last keep-alive was sent.
    asked: Option<Nanos>,
    /// When the last answer came, or the session was opened.
    heard: Nanos,
    is_ready: bool,
    counters: Counters,
}

impl Session {
    /// The session the entry opened, for inner packets from and to `inside`.
    pub fn new(opened: &Opened, inside: Inside, now: Nanos) -> Self {
        Self {
            ct_index: opened.entry.ct_index.0,
            generation: opened.entry.generation,
            key: opened.key,
            inside,
            sequence: 0,
            window: Window::default(),
            asked: None,
            heard: now,
            is_ready: false,
            counters: Counters::default(),
        }
    }

    /// True once a keep-alive was answered: the entry knows the client's address and the paths work.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// What passed so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When the last answer to a keep-alive came, or the session was opened.
    pub fn heard(&self) -> Nanos {
        self.heard
    }

    /// Writes the header of an inner packet that starts at [`HEADER_BYTES`] of `datagram` and fills the rest of it.
    #[inline]
    pub fn seal(&mut self, datagram: &mut [u8]) {
        self.counters.sent += 1;
        self.counters.sent_bytes += (datagram.len() - HEADER_BYTES) as u64;
        self.emit(datagram, Kind::DataUp);
    }

    #[inline]
    fn emit(&mut self, datagram: &mut [u8], kind: Kind) {
        self.sequence += 1;
        let header =
            Header { kind, path: 0, generation: self.generation, ct_index: self.ct_index, sequence: self.sequence };
        relay::emit(datagram, &header, &self.key);
    }

    /// When [`Session::poll`] has something to say.
    pub fn deadline(&self) -> Nanos {
        let lost = self.heard + LOST_AFTER;
        let Some(asked) = self.asked else { return self.heard };
        let next = match () {
            () if !self.is_ready => asked + KEEP_ALIVE_FIRST,
            () if self.heard < asked => asked + KEEP_ALIVE_OVERDUE,
            () => asked + KEEP_ALIVE,
        };
        next.min(lost)
    }

    /// What is due at `now`.
    pub fn poll(&mut self, now: Nanos) -> Due {
        if now >= self.heard + LOST_AFTER {
            return Due::Lost;
        }
        if now < self.deadline() {
            return Due::Nothing;
        }
        self.asked = Some(now);
        self.counters.keep_alives_sent += 1;
        let mut keep_alive = [0; HEADER_BYTES];
        self.emit(&mut keep_alive, Kind::KeepAliveUp);
        Due::KeepAlive(keep_alive)
    }

    /// Checks a datagram from the entry.
    #[inline]
    pub fn receive(&mut self, datagram: &[u8], now: Nanos) -> Result<Received, Reason> {
        let header = relay::parse(datagram).map_err(|malformed| match malformed {
            relay::Malformed::TooShort => Reason::TooShort,
            relay::Malformed::Version => Reason::BadVersion,
            relay::Malformed::Kind => Reason::UnknownKind,
        })?;
        if !matches!(header.kind, Kind::DataDown | Kind::KeepAliveDown) {
            return Err(Reason::WrongDirection);
        }
        if (header.ct_index, header.generation) != (0, 0) {
            return Err(Reason::WrongSlot);
        }
        self.window.check(header.sequence).map_err(|reject| match reject {
            Reject::Duplicate => Reason::Duplicate,
            Reject::TooOld => Reason::TooOld,
        })?;
        if !relay::is_authentic(datagram, &self.key) {
            return Err(Reason::WrongTag);
        }
        self.window.mark(header.sequence);
        if header.kind == Kind::KeepAliveDown {
            self.heard = now;
            self.is_ready = true;
            self.counters.keep_alives_received += 1;
            return Ok(Received::KeepAlive);
        }
        let length = self.inside.accept(&datagram[HEADER_BYTES..])?;
        self.counters.received += 1;
        self.counters.received_bytes += length as u64;
        Ok(Received::Packet(HEADER_BYTES..HEADER_BYTES + length))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::{dataplane::conntrack::CtIndex, rpc::messages::LinkEnd, wire::ip4};

    pub(in crate::client) const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const KEY: HopKey = [9; 16];

    pub(in crate::client) fn opened() -> Opened {
        Opened {
            entry: LinkEnd {
                data: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000),
                ct_index: CtIndex(0x0100_0203),
                generation: 77,
                source_port: 0,
            },
            key: KEY,
            exit_address: SERVER,
            exit_address6: None,
            paths: vec![None, None],
        }
    }

    fn session() -> Session {
        Session::new(&opened(), INSIDE.into(), 0)
    }

    /// What the entry would send down.
    pub(in crate::client) fn down(kind: Kind, sequence: u64, inner: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; HEADER_BYTES];
        datagram.extend_from_slice(inner);
        relay::emit(&mut datagram, &Header { kind, path: 1, generation: 0, ct_index: 0, sequence }, &KEY);
        datagram
    }

    fn inner(destination: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; 28];
        ip4::emit(&mut packet, SERVER, destination, ip4::UDP, 28, 64);
        packet
    }

    #[test]
    fn what_is_sent_carries_the_entrys_slot_and_a_rising_sequence_under_its_key() {
        let mut session = session();
        for sequence in 1..4 {
            let mut datagram = vec![0; HEADER_BYTES + 28];
            session.seal(&mut datagram);
            assert!(relay::is_authentic(&datagram, &KEY));
            let header = Header { kind: Kind::DataUp, path: 0, generation: 77, ct_index: 0x0100_0203, sequence };
            assert_eq!(relay::parse(&datagram), Ok(header));
        }
        let Due::KeepAlive(datagram) = session.poll(0) else { panic!("a keep-alive is due at once") };
        let header = relay::parse(&datagram).unwrap();
        assert_eq!((header.kind, header.sequence), (Kind::KeepAliveUp, 4), "keep-alives share the sequence");
        assert_eq!(session.counters().sent_bytes, 3 * 28);
    }

    #[test]
    fn a_packet_for_us_is_taken_once_and_without_padding() {
        let mut session = session();
        let mut datagram = down(Kind::DataDown, 5, &inner(INSIDE));
        datagram.extend_from_slice(&[0; 6]);
        assert_eq!(session.receive(&datagram, 1), Ok(Received::Packet(24..52)));
        assert_eq!(session.receive(&datagram, 1), Err(Reason::Duplicate));
        assert_eq!(session.receive(&down(Kind::DataDown, 4, &inner(INSIDE)), 1), Ok(Received::Packet(24..52)));
        assert_eq!(session.receive(&down(Kind::KeepAliveDown, 100_000, &[]), 1), Ok(Received::KeepAlive));
        assert_eq!(session.receive(&down(Kind::DataDown, 6, &inner(INSIDE)), 1), Err(Reason::TooOld));
        assert_eq!((session.counters().received, session.counters().received_bytes), (2, 56));
    }

    #[test]
    fn what_is_not_ours_is_refused_with_its_reason() {
        let good = down(Kind::DataDown, 1, &inner(INSIDE));
        let with = |at: usize, value: u8| {
            let mut datagram = good.clone();
            datagram[at] = value;
            datagram
        };
        for (datagram, reason) in [
            (good[..23].to_vec(), Reason::TooShort),
            (with(0, 0x22), Reason::BadVersion),
            (with(0, 0x1f), Reason::UnknownKind),
            (with(0, 0x11), Reason::WrongDirection),
            (with(3, 1), Reason::WrongSlot),
            (with(7, 1), Reason::WrongSlot),
            (with(1, 7), Reason::WrongTag),
            (with(23, good[23] ^ 1), Reason::WrongTag),
            (down(Kind::DataDown, 1, &inner(SERVER)), Reason::NotForUs),
            (down(Kind::DataDown, 1, &[0x60; 40]), Reason::NotIp),
            (down(Kind::DataDown, 0, &inner(INSIDE)), Reason::TooOld),
        ] {
            let mut session = session();
            assert_eq!(session.receive(&datagram, 0), Err(reason));
            assert_eq!(session.counters(), Counters::default(), "{reason:?}");
        }
    }

    #[test]
    fn a_forged_packet_does_not_move_the_window() {
        let mut session = session();
        let mut forged = down(Kind::DataDown, 1 << 40, &inner(INSIDE));
        forged[20] ^= 1;
        assert_eq!(session.receive(&forged, 0), Err(Reason::WrongTag));
        assert!(session.receive(&down(Kind::DataDown, 1, &inner(INSIDE)), 0).is_ok());
    }

    /// Polls at every deadline until `until` and returns when keep-alives were sent (ms) and whether it was lost.
    fn run(session: &mut Session, from: Nanos, until: Nanos) -> (Vec<u64>, bool) {
        let (mut sent, mut now) = (Vec::new(), from);
        while now < until {
            match session.poll(now) {
                Due::KeepAlive(_) => sent.push(now / MILLISECOND),
                Due::Lost => return (sent, true),
                Due::Nothing => {}
            }
            now = session.deadline().max(now + 1);
        }
        (sent, false)
    }

    #[test]
    fn keep_alives_are_frequent_until_the_first_answer_and_rare_after_it() {
        let mut session = session();
        assert_eq!(run(&mut session, 0, 350 * MILLISECOND), (vec![0, 100, 200, 300], false));
        assert!(!session.is_ready());
        session.receive(&down(Kind::KeepAliveDown, 1, &[]), 350 * MILLISECOND).unwrap();
        assert!(session.is_ready());
        assert_eq!(run(&mut session, 350 * MILLISECOND, 5_400 * MILLISECOND), (vec![5_300], false));
    }

    #[test]
    fn an_overdue_answer_makes_them_more_frequent_and_silence_loses_the_session() {
        let mut session = session();
        run(&mut session, 0, MILLISECOND);
        session.receive(&down(Kind::KeepAliveDown, 1, &[]), 20 * MILLISECOND).unwrap();
        let (sent, is_lost) = run(&mut session, 20 * MILLISECOND, 60 * SECOND);
        assert_eq!(sent, (5..15).map(|second| second * 1_000).chain([15_000]).collect::<Vec<_>>());
        assert!(is_lost);
        assert_eq!(session.deadline(), 20 * MILLISECOND + LOST_AFTER);
    }

    #[test]
    fn data_alone_does_not_keep_a_session_that_does_not_answer() {
        let mut session = session();
        run(&mut session, 0, MILLISECOND);
        session.receive(&down(Kind::DataDown, 1, &inner(INSIDE)), 14 * SECOND).unwrap();
        assert_eq!(session.poll(LOST_AFTER), Due::Lost);
    }
}
