//! Keeps a session for whoever has packets to send: opened when needed, watched while open, and opened again.
//!
//! Packets that come before the session is ready wait, in bounds; they leave in order once the first keep-alive is
//! answered.

use std::{collections::VecDeque, io};

use super::{
    drops::{Drops, Reason},
    inside::Inside,
    opener::{OpenSession, Opener, Order},
    session::{Due, Received, Session},
    socket::{Batch, SessionSocket},
};
use crate::{MILLISECOND, Nanos, SECOND, rpc::messages::SessionKind, wire::relay::HEADER_BYTES};

/// Packets that wait for a session.
const WAITING_MAX: usize = 256;

/// Pause after the first failure to open; doubled at each further one.
const PAUSE_FIRST: Nanos = 500 * MILLISECOND;

/// Longest pause.
const PAUSE_MAX: Nanos = 15 * SECOND;

/// Between two looks at whether the entry is to be asked about the session.
const LOOK: Nanos = 2 * SECOND;

/// Between two questions about the paths of a tunnel where all is well.
const CHECK: Nanos = 10 * SECOND;

/// The exit was not heard for this long though it was asked: something broke.
const OVERDUE: Nanos = 7 * SECOND;

/// An open session and the socket it uses.
pub(super) struct Live {
    /// Its data plane.
    pub(super) session: Session,
    /// Its hop to the entry.
    pub(super) socket: SessionSocket,
    /// How it was opened.
    pub(super) details: OpenSession,
    /// When it was opened.
    pub(super) since: Nanos,
    /// When it is looked at next.
    look_at: Nanos,
    /// When the entry was last asked how the paths do, or said so.
    checked: Nanos,
}

impl Live {
    /// Asks the entry about the session, now and then, and where the exit is overdue: the entry may have been started
    /// anew, or a path may have come or gone.
    fn look(&mut self, ticket: u64, kind: SessionKind, opener: &Opener, now: Nanos) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        let is_overdue = now >= self.session.heard() + OVERDUE;
        let is_watched = matches!(kind, SessionKind::Tunnel { .. }) && now >= self.checked + CHECK;
        if is_overdue || is_watched {
            self.checked = now;
            let (session, plan) = (self.details.id, self.details.plan.clone());
            opener.order(Order::Check { ticket, kind, session, plan });
        }
    }

    /// Takes over how the paths are now. False where the session is another one, under the same number.
    fn refresh(&mut self, details: &OpenSession) -> bool {
        let (before, now) = (&self.details.opened, &details.opened);
        if (before.entry, before.key) != (now.entry, now.key) {
            return false;
        }
        for (number, (path, before)) in self.details.plan.paths.iter().zip(&before.paths).enumerate() {
            match &now.paths[number] {
                None if before.is_some() => tracing::info!("path {number} ({path}) is open now"),
                Some(failure) if before.is_none() => tracing::warn!("path {number} ({path}) is down: {failure}"),
                _ => {}
            }
        }
        self.details.opened = details.opened.clone();
        true
    }
}

/// What the entry's answer about a session means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// It goes on.
    Same,
    /// The entry had lost it, and opened it anew.
    Anew,
    /// Nobody here has it any more.
    Unknown,
}

enum State {
    /// An order is out.
    Opening,
    /// The last attempt failed; nothing happens until then.
    Pausing {
        until: Nanos,
    },
    Open(Box<Live>),
}

/// What time brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// Nothing the owner need know.
    Nothing,
    /// The session was lost and closed. [`Carrier::open`] opens another.
    Lost,
    /// The pause after a failure is over. [`Carrier::open`] tries again.
    PauseOver,
}

/// A session over time.
pub(super) struct Carrier {
    ticket: u64,
    kind: SessionKind,
    mtu: usize,
    state: State,
    waiting: VecDeque<Vec<u8>>,
    failures: u32,
}

impl Carrier {
    /// Orders the first session. Orders carry `ticket`, and so do their answers.
    pub(super) fn new(ticket: u64, kind: SessionKind, mtu: u16, opener: &Opener) -> Self {
        let mut carrier =
            Self { ticket, kind, mtu: usize::from(mtu), state: State::Opening, waiting: VecDeque::new(), failures: 0 };
        carrier.open(opener);
        carrier
    }

    /// Orders a session; what waits goes on waiting.
    pub(super) fn open(&mut self, opener: &Opener) {
        self.state = State::Opening;
        opener.order(Order::Open { ticket: self.ticket, kind: self.kind });
    }

    /// What it carries.
    pub(super) fn kind(&self) -> SessionKind {
        self.kind
    }

    /// The open session, if any.
    pub(super) fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Open(live) => Some(live),
            _ => None,
        }
    }

    /// True where packets leave at once.
    pub(super) fn is_ready(&self) -> bool {
        self.live().is_some_and(|live| live.session.is_ready())
    }

    /// The session was opened. An error where the entry cannot be reached from here.
    pub(super) fn opened(&mut self, details: OpenSession, now: Nanos) -> io::Result<&Live> {
        let inside = match self.kind {
            SessionKind::Tunnel { inside, inside6 } => Inside { ip4: inside, ip6: inside6 },
            SessionKind::Flow { source, .. } => Inside::from(*source.ip()),
        };
        let socket = SessionSocket::connect(details.opened.entry.data, details.opened.entry.source_port)?;
        self.failures = 0;
        let session = Session::new(&details.opened, inside, now);
        self.state =
            State::Open(Box::new(Live { session, socket, details, since: now, look_at: now + LOOK, checked: now }));
        Ok(self.live().expect("it was opened in the line above"))
    }

    /// The entry has answered a question about the session that `details` is of.
    pub(super) fn checked(&mut self, details: &OpenSession) -> Checked {
        match &mut self.state {
            State::Open(live) if live.details.id != details.id => Checked::Unknown,
            State::Open(live) => match live.refresh(details) {
                true => Checked::Same,
                false => Checked::Anew,
            },
            State::Opening | State::Pausing { .. } => Checked::Unknown,
        }
    }

    /// The session could not be opened: what waits is dropped, and a pause begins.
    pub(super) fn failed(&mut self, drops: &mut Drops, now: Nanos) {
        drops.add(Reason::SessionFailed, self.waiting.len() as u64);
        self.waiting.clear();
        let pause = (PAUSE_FIRST << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        self.state = State::Pausing { until: now + pause };
    }

    /// Ends the session, if there is one.
    pub(super) fn close(&mut self, opener: &Opener) {
        if let State::Open(live) = std::mem::replace(&mut self.state, State::Opening) {
            opener.order(Order::Close { entry: live.details.plan.entry, session: live.details.id });
        }
    }

    /// When [`Carrier::tick`] is due.
    pub(super) fn deadline(&self) -> Nanos {
        match &self.state {
            State::Opening => Nanos::MAX,
            State::Pausing { until } => *until,
            State::Open(live) => live.session.deadline().min(live.look_at),
        }
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, opener: &Opener, drops: &mut Drops, now: Nanos) -> Tick {
        match &mut self.state {
            State::Opening => Tick::Nothing,
            State::Pausing { until } if now < *until => Tick::Nothing,
            State::Pausing { .. } => Tick::PauseOver,
            State::Open(live) => match live.session.poll(now) {
                Due::Nothing => {
                    live.look(self.ticket, self.kind, opener, now);
                    Tick::Nothing
                }
                Due::KeepAlive(datagram) => {
                    if live.socket.send(&datagram).is_err() {
                        drops.count(Reason::SendFailed);
                    }
                    live.look(self.ticket, self.kind, opener, now);
                    Tick::Nothing
                }
                Due::Lost => {
                    self.close(opener);
                    Tick::Lost
                }
            },
        }
    }

    /// Sends an inner packet. What is put into `up` leaves at [`Carrier::flush`]; in between `up` serves no other.
    pub(super) fn send(&mut self, packet: &[u8], up: &mut Batch, drops: &mut Drops) {
        if packet.len() > self.mtu {
            return drops.count(Reason::TooBig);
        }
        up.next_inner()[..packet.len()].copy_from_slice(packet);
        self.submit(packet.len(), up, drops);
    }

    /// Sends the inner packet of `length` bytes that is in the next place of `up` already.
    pub(super) fn submit(&mut self, length: usize, up: &mut Batch, drops: &mut Drops) {
        if length > self.mtu {
            return drops.count(Reason::TooBig);
        }
        let datagram = &mut up.next_place()[..HEADER_BYTES + length];
        match &mut self.state {
            State::Open(live) if live.session.is_ready() => {
                live.session.seal(datagram);
                up.push(HEADER_BYTES + length);
                if up.is_full() {
                    self.flush(up, drops);
                }
            }
            State::Pausing { .. } => drops.count(Reason::SessionFailed),
            _ if self.waiting.len() >= WAITING_MAX => drops.count(Reason::NotReady),
            _ => self.waiting.push_back(datagram.to_vec()),
        }
    }

    /// Hands what is in `up` to the kernel.
    pub(super) fn flush(&mut self, up: &mut Batch, drops: &mut Drops) {
        if up.is_empty() {
            return;
        }
        let refused = match &self.state {
            State::Open(live) => up.send(&live.socket),
            _ => up.len(),
        };
        drops.add(Reason::SendFailed, refused as u64);
        up.clear();
    }

    /// Reads what has arrived into `down`; returns how many datagrams. [`Carrier::receive`] then looks at each.
    pub(super) fn arrived(&mut self, down: &mut Batch) -> usize {
        match &self.state {
            State::Open(live) => down.receive(&live.socket),
            _ => 0,
        }
    }

    /// Checks one datagram; returns the inner packet, if it carries one.
    pub(super) fn receive<'a>(&mut self, datagram: &'a [u8], drops: &mut Drops, now: Nanos) -> Option<&'a [u8]> {
        let State::Open(live) = &mut self.state else { return None };
        match live.session.receive(datagram, now) {
            Ok(Received::Packet(range)) => Some(&datagram[range]),
            Ok(Received::KeepAlive) => None,
            Err(reason) => {
                drops.count(reason);
                None
            }
        }
    }

    /// Sends what has waited, where the session is ready by now.
    pub(super) fn release(&mut self, up: &mut Batch, drops: &mut Drops) {
        if self.waiting.is_empty() || !self.is_ready() {
            return;
        }
        for datagram in std::mem::take(&mut self.waiting) {
            up.next_place()[..datagram.len()].copy_from_slice(&datagram);
            self.submit(datagram.len() - HEADER_BYTES, up, drops);
        }
        self.flush(up, drops);
    }
}
