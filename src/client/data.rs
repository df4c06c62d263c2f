//! The data thread: sleeps in epoll, moves packets between local programs and sessions, in batches, and never waits
//! for anything else.
//!
//! ```text
//!   TUN device ----------+
//!   UDP forward (peers) -+--> flow --> session --> UDP socket --> entry
//!   TCP connections -----+
//! ```
//!
//! A flow is whoever has a session: the TUN device has one for all its packets, each local peer of a UDP forward and
//! each connection of a TCP forward has one of its own.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Instant,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    carrier::{Carrier, Checked, Tick},
    config::{ClientConfig, Forward, Protocol},
    drops::{Drops, Reason},
    flow::{Flow, User},
    forward::datagram::HEADERS_BYTES,
    inside::Inside,
    mailbox::{Letter, Reader},
    opener::{OpenError, OpenSession, Opener, Order},
    routes,
    socket::{self, Batch, DATAGRAM_BYTES},
    tun::{self, Read, Tun},
    view,
};
use crate::{MILLISECOND, Nanos, rpc::messages::SessionKind, wire::ip4};

/// Flows of forwards at a time.
const FLOWS_MAX: usize = 1024;

/// Packets taken from one source before the others have their turn.
const TURN: usize = 4 * socket::BATCH;

/// Places of the batch on its way up: it is sent when one more read from the TUN device might not fit.
const UP_PLACES: usize = 2 * tun::PACKETS_A_READ;

/// First source port of forwarded flows (RFC 6335: the dynamic ports).
const PORT_FIRST: u16 = 49_152;

/// What an epoll event is about: the kind in the upper eight bits, a number in the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Mailbox,
    Tun,
    Listener(usize),
    /// The session's socket of a flow.
    Session(u64),
    /// The local connection of a flow.
    Local(u64),
}

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Mailbox => 0,
            Self::Tun => 1 << 56,
            Self::Listener(number) => 2 << 56 | number as u64,
            Self::Session(flow) => 3 << 56 | flow,
            Self::Local(flow) => 4 << 56 | flow,
        }
    }

    fn of(token: u64) -> Option<Self> {
        let number = token & ((1 << 56) - 1);
        match token >> 56 {
            0 => Some(Self::Mailbox),
            1 => Some(Self::Tun),
            2 => Some(Self::Listener(number as usize)),
            3 => Some(Self::Session(number)),
            4 => Some(Self::Local(number)),
            _ => None,
        }
    }
}

/// A forwarded port.
struct Listener {
    forward: Forward,
    socket: ListenerSocket,
}

enum ListenerSocket {
    /// And the flow of each local peer.
    Udp(UdpSocket, HashMap<SocketAddrV4, u64>),
    Tcp(TcpListener),
}

/// What flows need of the thread they run in.
pub(super) struct Shared {
    pub(super) opener: Opener,
    pub(super) drops: Drops,
    /// On the way to the entry. Empty between two flows.
    pub(super) up: Batch,
    pub(super) tun: Option<Tun>,
}

/// The thread's state.
pub(super) struct Data {
    config: ClientConfig,
    started: Instant,
    epoll: Epoll,
    mailbox: Reader,
    shared: Shared,
    down: Batch,
    listeners: Vec<Listener>,
    flows: HashMap<u64, Flow>,
    next_flow: u64,
    tun_flow: Option<u64>,
    /// No flow's deadline is before this; it may be earlier than needed.
    wake_at: Nanos,
}

impl Data {
    /// Opens the forwarded ports. The error names the forward.
    pub(super) fn new(config: ClientConfig, tun: Option<Tun>, opener: Opener, mailbox: Reader) -> Result<Self, String> {
        let failed = |error: nix::Error| format!("epoll cannot be used: {error}");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let watch = |what: &dyn AsFdDyn, source: Source| {
            epoll.add(what.fd(), EpollEvent::new(EpollFlags::EPOLLIN, source.token())).map_err(failed)
        };
        watch(&mailbox, Source::Mailbox)?;
        if let Some(tun) = &tun {
            watch(tun, Source::Tun)?;
        }
        let mut listeners = Vec::new();
        for (number, &forward) in config.forwards.iter().enumerate() {
            let failed = |error: io::Error| format!("--forward {forward}: {} cannot be bound: {error}", forward.listen);
            let socket = match forward.protocol {
                Protocol::Udp => {
                    let socket = socket::listen_udp(forward.listen).map_err(failed)?;
                    watch(&socket, Source::Listener(number))?;
                    ListenerSocket::Udp(socket, HashMap::new())
                }
                Protocol::Tcp => {
                    let socket = socket::listen_tcp(forward.listen).map_err(failed)?;
                    watch(&socket, Source::Listener(number))?;
                    ListenerSocket::Tcp(socket)
                }
            };
            listeners.push(Listener { forward, socket });
        }
        Ok(Self {
            config,
            started: Instant::now(),
            epoll,
            mailbox,
            shared: Shared { opener, drops: Drops::default(), up: Batch::new(UP_PLACES), tun },
            down: Batch::new(socket::BATCH),
            listeners,
            flows: HashMap::new(),
            next_flow: 0,
            tun_flow: None,
            wake_at: Nanos::MAX,
        })
    }

    fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos() as Nanos
    }

    /// Carries packets until it is told to stop; then closes all sessions. An error where going on is pointless.
    pub(super) fn run(mut self) -> Result<(), String> {
        let Inside { ip4: inside, ip6: inside6 } = self.config.inside;
        if self.shared.tun.is_some() {
            self.tun_flow = Some(self.add_flow(SessionKind::Tunnel { inside, inside6 }, User::Tun));
        } else {
            // Sessions come with the first packets; whether there will be any to have is told now.
            self.shared.opener.order(Order::Plan);
        }
        let mut events = [EpollEvent::empty(); 64];
        let result = loop {
            let sleep = self.wake_at.saturating_sub(self.now()).div_ceil(MILLISECOND);
            let timeout = EpollTimeout::from(sleep.min(10_000) as u16);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => break Err(format!("epoll failed: {error}")),
            };
            let outcome = events[..count].iter().try_for_each(|event| self.on_event(*event));
            match outcome.and_then(|()| self.on_time()) {
                Ok(()) => {}
                Err(Stop::Asked) => break Ok(()),
                Err(Stop::Failed(error)) => break Err(error),
            }
        };
        for flow in self.flows.values_mut() {
            flow.end(&mut self.shared);
        }
        result
    }

    fn on_event(&mut self, event: EpollEvent) -> Result<(), Stop> {
        let now = self.now();
        match Source::of(event.data()) {
            Some(Source::Mailbox) => {
                for letter in self.mailbox.read() {
                    self.on_letter(letter, now)?;
                }
            }
            Some(Source::Tun) => self.on_tun()?,
            Some(Source::Listener(number)) => match self.listeners[number].socket {
                ListenerSocket::Udp(..) => self.on_datagrams(number, now),
                ListenerSocket::Tcp(_) => self.on_connections(number),
            },
            Some(Source::Session(id)) => self.on_session(id, now),
            Some(Source::Local(id)) => {
                let is_broken = event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.on_local(is_broken, &mut self.shared, now);
                    self.settle(id, now);
                }
            }
            None => {}
        }
        Ok(())
    }

    fn on_letter(&mut self, letter: Letter, now: Nanos) -> Result<(), Stop> {
        match letter {
            Letter::Stop => Err(Stop::Asked),
            Letter::Question { topic, reply } => {
                let _ = reply.send(view::answer(&topic, &self.flows, &self.shared.drops, now));
                Ok(())
            }
            Letter::Planned(Ok(plan)) => {
                let paths: Vec<String> = plan.paths.iter().map(ToString::to_string).collect();
                let (entry, exit) = (&plan.entry.name, &plan.exit.name);
                tracing::info!("ready: entry {entry}, exit {exit}, paths: {}", paths.join("; "));
                Ok(())
            }
            Letter::Planned(Err(error)) if error.is_final() => Err(Stop::Failed(format!("no paths: {error}"))),
            Letter::Planned(Err(error)) => {
                tracing::warn!("no paths yet: {error}");
                Ok(())
            }
            Letter::Checked { ticket, details } => self.on_checked(ticket, *details, now),
            Letter::Opened { ticket, result: Ok(details) } => self.on_opened(ticket, *details, now),
            Letter::Opened { ticket, result: Err(error) } => self.on_open_failed(ticket, &error, now),
        }
    }

    fn on_opened(&mut self, id: u64, details: OpenSession, now: Nanos) -> Result<(), Stop> {
        let entry = details.opened.entry.data;
        if let Some(tun) = &self.shared.tun {
            is_outside(tun, "the entry", *entry.ip())?;
        }
        let Some(flow) = self.flows.get_mut(&id) else {
            // Its owner has gone meanwhile.
            self.shared.opener.order(Order::Close { entry: details.plan.entry, session: details.id });
            return Ok(());
        };
        log_opened(&details, flow.carrier.kind());
        let watched = flow.carrier.opened(details, now).and_then(|live| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Session(id).token());
            Ok(self.epoll.add(live.socket.as_fd(), event)?)
        });
        if let Err(error) = watched {
            tracing::warn!("the entry's data address {entry} cannot be used: {error}");
            flow.carrier.close(&self.shared.opener);
            flow.on_failed(&mut self.shared, now);
        }
        self.on_flow_time(id, now);
        Ok(())
    }

    fn on_checked(&mut self, id: u64, details: OpenSession, now: Nanos) -> Result<(), Stop> {
        match self.flows.get_mut(&id).map_or(Checked::Unknown, |flow| flow.carrier.checked(&details)) {
            Checked::Same => Ok(()),
            Checked::Anew => {
                tracing::warn!("{} was started anew and has opened the session again", details.plan.entry.name);
                self.on_opened(id, details, now)
            }
            // It was given up meanwhile; by asking it may have been opened again.
            Checked::Unknown => {
                self.shared.opener.order(Order::Close { entry: details.plan.entry, session: details.id });
                Ok(())
            }
        }
    }

    fn on_open_failed(&mut self, id: u64, error: &OpenError, now: Nanos) -> Result<(), Stop> {
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(()) };
        if flow.is_tun() && error.is_final() {
            return Err(Stop::Failed(format!("no session: {error}")));
        }
        tracing::warn!("no session for {}: {error}", flow.describe());
        flow.on_failed(&mut self.shared, now);
        self.settle(id, now);
        Ok(())
    }

    /// Packets of the host, through the TUN device.
    fn on_tun(&mut self) -> Result<(), Stop> {
        let Shared { tun: Some(tun), up, drops, .. } = &mut self.shared else { return Ok(()) };
        let Some(flow) = self.tun_flow.and_then(|id| self.flows.get_mut(&id)) else { return Ok(()) };
        let mut taken = 0;
        while taken < TURN {
            if up.room() < tun::PACKETS_A_READ {
                flow.carrier.flush(up, drops);
            }
            let count = match tun.read(up) {
                Ok(Read::Packets(count)) => count,
                Ok(Read::Bad) => {
                    drops.count(Reason::NotCut);
                    continue;
                }
                Ok(Read::Nothing) => break,
                Err(error) => return Err(Stop::Failed(format!("the TUN device is gone: {error}"))),
            };
            taken += count;
            let first = up.len();
            for at in first..first + count {
                let length = up.bring(at);
                match self.config.inside.admit(&up.next_inner()[..length]) {
                    Ok(()) => flow.carrier.submit(length, up, drops),
                    Err(reason) => drops.count(reason),
                }
            }
        }
        flow.carrier.flush(up, drops);
        Ok(())
    }

    /// Datagrams of local programs, at a forwarded UDP port.
    fn on_datagrams(&mut self, number: usize, now: Nanos) {
        let mut packet = [0; DATAGRAM_BYTES];
        let room = usize::from(self.config.mtu()) - HEADERS_BYTES;
        let mut last = None;
        for _ in 0..TURN {
            let ListenerSocket::Udp(socket, peers) = &self.listeners[number].socket else { return };
            // One byte more than may be sent: what is cut short there is told from what fits.
            let (length, peer) = match socket.recv_from(&mut packet[HEADERS_BYTES..][..=room]) {
                Ok((length, SocketAddr::V4(peer))) => (length, peer),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The error of an earlier reply to a peer that is gone; the kernel tells it once.
                Err(_) => continue,
            };
            if length > room {
                self.shared.drops.count(Reason::TooBig);
                continue;
            }
            let Some(id) = peers.get(&peer).copied().or_else(|| self.add_peer(number, peer, now)) else { continue };
            // The batch holds packets of one flow at a time.
            if last != Some(id) {
                self.flush(last);
                last = Some(id);
            }
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.send_datagram(&mut packet, length, &mut self.shared, now);
            }
        }
        self.flush(last);
    }

    fn flush(&mut self, flow: Option<u64>) {
        if let Some(flow) = flow.and_then(|id| self.flows.get_mut(&id)) {
            flow.carrier.flush(&mut self.shared.up, &mut self.shared.drops);
        }
    }

    fn add_peer(&mut self, number: usize, peer: SocketAddrV4, now: Nanos) -> Option<u64> {
        if self.flows.len() >= FLOWS_MAX {
            self.shared.drops.count(Reason::FlowsFull);
            return None;
        }
        let ListenerSocket::Udp(socket, _) = &self.listeners[number].socket else { return None };
        let replies = socket.try_clone().map_err(|error| tracing::warn!("no flow for {peer}: {error}")).ok()?;
        let (source, server) = (self.next_source(), self.listeners[number].forward.server);
        let user = User::datagrams(number, replies, peer, source, server, now);
        let id = self.add_flow(SessionKind::Flow { protocol: ip4::UDP, source, server }, user);
        if let ListenerSocket::Udp(_, peers) = &mut self.listeners[number].socket {
            peers.insert(peer, id);
        }
        Some(id)
    }

    /// Connections of local programs, at a forwarded TCP port.
    fn on_connections(&mut self, number: usize) {
        for _ in 0..TURN {
            let ListenerSocket::Tcp(listener) = &self.listeners[number].socket else { return };
            let local = match listener.accept() {
                Ok((local, _)) => local,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of file descriptors, or a connection that ended before it was taken.
                    tracing::debug!("{}: {error}", self.listeners[number].forward);
                    return;
                }
            };
            if self.flows.len() >= FLOWS_MAX {
                self.shared.drops.count(Reason::FlowsFull);
                super::flow::reset(&local);
                continue;
            }
            if let Err(error) = self.add_connection(number, local) {
                tracing::warn!("{}: connection dropped: {error}", self.listeners[number].forward);
            }
        }
    }

    fn add_connection(&mut self, number: usize, local: TcpStream) -> io::Result<()> {
        local.set_nonblocking(true)?;
        local.set_nodelay(true)?;
        let (source, server) = (self.next_source(), self.listeners[number].forward.server);
        let event = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&local, EpollEvent::new(event, Source::Local(self.next_flow).token()))?;
        let user = User::connection(local, source, server, self.config.mtu());
        self.add_flow(SessionKind::Flow { protocol: ip4::TCP, source, server }, user);
        Ok(())
    }

    /// What came from the entry for a flow.
    fn on_session(&mut self, id: u64, now: Nanos) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        for _ in 0..TURN / socket::BATCH {
            let count = flow.carrier.arrived(&mut self.down);
            for at in 0..count {
                if let Some(packet) = flow.carrier.receive(self.down.get(at), &mut self.shared.drops, now) {
                    flow.user.deliver(packet, &mut self.shared, now);
                }
            }
            flow.user.deliver_rest(&mut self.shared);
            if count < socket::BATCH {
                break;
            }
        }
        flow.carrier.release(&mut self.shared.up, &mut self.shared.drops);
        flow.advance(&mut self.shared, now);
        self.settle(id, now);
    }

    /// Does what is due, where something is.
    fn on_time(&mut self) -> Result<(), Stop> {
        let now = self.now();
        if now < self.wake_at {
            return Ok(());
        }
        self.wake_at = Nanos::MAX;
        let ids: Vec<u64> = self.flows.keys().copied().collect();
        for id in ids {
            self.on_flow_time(id, now);
        }
        Ok(())
    }

    fn on_flow_time(&mut self, id: u64, now: Nanos) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.deadline(now) <= now {
            match flow.carrier.tick(&self.shared.opener, &mut self.shared.drops, now) {
                Tick::Nothing => {}
                Tick::Lost => {
                    tracing::warn!("the session of {} is lost: no sign of the exit for 15 s", flow.describe());
                    flow.on_lost(&mut self.shared, now);
                }
                Tick::PauseOver => flow.on_pause_over(&mut self.shared),
            }
            flow.advance(&mut self.shared, now);
        }
        self.settle(id, now);
    }

    /// After anything happened to a flow: takes it out where it has ended, else remembers its deadline.
    fn settle(&mut self, id: u64, now: Nanos) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if !flow.is_over(now) {
            self.wake_at = self.wake_at.min(flow.deadline(now));
            return;
        }
        flow.end(&mut self.shared);
        if let Some((number, peer)) = flow.peer()
            && let ListenerSocket::Udp(_, peers) = &mut self.listeners[number].socket
        {
            peers.remove(&peer);
        }
        self.flows.remove(&id);
    }

    fn add_flow(&mut self, kind: SessionKind, user: User) -> u64 {
        let id = self.next_flow;
        self.next_flow += 1;
        let carrier = Carrier::new(id, kind, self.config.mtu(), &self.shared.opener);
        self.flows.insert(id, Flow { carrier, user });
        id
    }

    /// Our end of a new flow.
    fn next_source(&self) -> SocketAddrV4 {
        let port = PORT_FIRST + (self.next_flow % u64::from(u16::MAX - PORT_FIRST + 1)) as u16;
        SocketAddrV4::new(self.config.inside.ip4, port)
    }
}

/// Why the thread ends.
enum Stop {
    Asked,
    Failed(String),
}

/// An error where packets to `address` would go into the tunnel that they carry.
pub(super) fn check_outside(tun: &Tun, what: &str, address: Ipv4Addr) -> Result<(), String> {
    match routes::interface_to(address) {
        Ok(interface) if interface == tun.index() => Err(format!(
            "{what} ({address}) would be reached through the tunnel itself: leave it out of tun.routes, \
             or give it a route of its own"
        )),
        _ => Ok(()),
    }
}

fn is_outside(tun: &Tun, what: &str, address: Ipv4Addr) -> Result<(), Stop> {
    check_outside(tun, what, address).map_err(Stop::Failed)
}

fn log_opened(details: &OpenSession, kind: SessionKind) {
    let is_tun = matches!(kind, SessionKind::Tunnel { .. });
    let paths = details.plan.paths.iter().zip(&details.opened.paths);
    let open: Vec<String> = paths.filter(|(_, failure)| failure.is_none()).map(|(path, _)| path.to_string()).collect();
    let (entry, exit, address) = (&details.plan.entry.name, &details.plan.exit.name, details.opened.exit_address);
    let text = format!("session open: entry {entry}, exit {exit} ({address}), paths: {}", open.join("; "));
    if is_tun {
        tracing::info!("{text}")
    } else {
        tracing::debug!("{text}")
    }
    if let SessionKind::Tunnel { inside6: Some(_), .. } = kind
        && details.opened.exit_address6.is_none()
    {
        tracing::warn!("exit {exit} has no address of IPv6: it carries that to its NAT64 prefix at most");
    }
}

/// Anything with a file descriptor, behind a reference.
trait AsFdDyn {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsFdDyn for T {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_its_event_is_about() {
        for source in [
            Source::Mailbox,
            Source::Tun,
            Source::Listener(3),
            Source::Session(0),
            Source::Session((1 << 56) - 1),
            Source::Local(9),
        ] {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(u64::MAX), None);
    }
}
