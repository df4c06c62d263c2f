//! A flow: a session and whoever uses it. What a session's end, a lost session or silence means to each kind of user.

use std::{
    io,
    net::{SocketAddrV4, TcpStream, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    carrier::Carrier,
    data::Shared,
    drops::Reason,
    forward::{
        datagram::{self, Inner},
        tcp::{Connection, End},
    },
    inside::Inside,
};
use crate::{Nanos, SECOND, rpc::messages::SessionKind, wire::ip4};

/// A UDP flow without packets either way for this long is closed (RFC 4787 REQ-5: not under two minutes).
const UDP_IDLE: Nanos = 120 * SECOND;

/// A session and its user.
pub(super) struct Flow {
    pub(super) carrier: Carrier,
    pub(super) user: User,
}

/// Who uses a session.
pub(super) enum User {
    /// The host, by the TUN device.
    Tun,
    /// A local peer of a UDP forward.
    Datagrams {
        /// The forward's number.
        forward: usize,
        /// The forward's socket.
        replies: UdpSocket,
        peer: SocketAddrV4,
        source: SocketAddrV4,
        server: SocketAddrV4,
        last_packet: Nanos,
        is_over: bool,
    },
    /// A connection of a TCP forward.
    Connection(Box<TcpFlow>),
}

/// A local connection and the one that stands for it in the overlay.
pub(super) struct TcpFlow {
    /// `None` once both directions are finished.
    local: Option<TcpStream>,
    /// `None` until the session is ready: connecting makes no sense before.
    connection: Option<Connection>,
    source: SocketAddrV4,
    server: SocketAddrV4,
    mtu: u16,
    end: Option<End>,
}

impl User {
    pub(super) fn datagrams(
        forward: usize,
        replies: UdpSocket,
        peer: SocketAddrV4,
        source: SocketAddrV4,
        server: SocketAddrV4,
        now: Nanos,
    ) -> Self {
        Self::Datagrams { forward, replies, peer, source, server, last_packet: now, is_over: false }
    }

    pub(super) fn connection(local: TcpStream, source: SocketAddrV4, server: SocketAddrV4, mtu: u16) -> Self {
        Self::Connection(Box::new(TcpFlow { local: Some(local), connection: None, source, server, mtu, end: None }))
    }

    /// A packet came for it. It may wait until [`User::deliver_rest`].
    pub(super) fn deliver(&mut self, packet: &[u8], shared: &mut Shared, now: Nanos) {
        match self {
            Self::Tun => {
                if shared.tun.as_mut().is_none_or(|tun| tun.put(packet).is_err()) {
                    shared.drops.count(Reason::DeliverFailed);
                }
            }
            Self::Datagrams { replies, peer, source, server, last_packet, .. } => {
                match datagram::unwrap(packet, ip4::UDP, *source, *server) {
                    Ok(Inner::Payload(payload)) => {
                        *last_packet = now;
                        if replies.send_to(payload, *peer).is_err() {
                            shared.drops.count(Reason::DeliverFailed);
                        }
                    }
                    Ok(Inner::Error(error)) => {
                        tracing::debug!("{peer} to {server}: {error}");
                        shared.drops.count(Reason::IcmpError);
                    }
                    Ok(Inner::Segment(_)) => shared.drops.count(Reason::NotFlow),
                    Err(reason) => shared.drops.count(reason),
                }
            }
            Self::Connection(tcp) => {
                let Some(connection) = &mut tcp.connection else { return shared.drops.count(Reason::NotFlow) };
                match datagram::unwrap(packet, ip4::TCP, tcp.source, tcp.server) {
                    Ok(Inner::Segment(segment)) => connection.receive(segment),
                    Ok(Inner::Error(error)) => {
                        tracing::debug!("connection to {}: {error}", tcp.server);
                        shared.drops.count(Reason::IcmpError);
                        connection.receive_error(error, now);
                    }
                    Ok(Inner::Payload(_)) => shared.drops.count(Reason::NotFlow),
                    Err(reason) => shared.drops.count(reason),
                }
            }
        }
    }
}

impl User {
    /// Nothing more has come for now.
    pub(super) fn deliver_rest(&mut self, shared: &mut Shared) {
        if let (Self::Tun, Some(tun)) = (self, &mut shared.tun)
            && tun.deliver().is_err()
        {
            shared.drops.count(Reason::DeliverFailed);
        }
    }
}

impl Flow {
    pub(super) fn is_tun(&self) -> bool {
        matches!(self.user, User::Tun)
    }

    /// For logs.
    pub(super) fn describe(&self) -> String {
        match self.carrier.kind() {
            SessionKind::Tunnel { inside, inside6 } => format!("the tunnel ({})", Inside { ip4: inside, ip6: inside6 }),
            SessionKind::Flow { protocol: ip4::TCP, server, .. } => format!("a TCP connection to {server}"),
            SessionKind::Flow { server, .. } => format!("a UDP flow to {server}"),
        }
    }

    /// The forward and local peer of a UDP flow.
    pub(super) fn peer(&self) -> Option<(usize, SocketAddrV4)> {
        match &self.user {
            User::Datagrams { forward, peer, .. } => Some((*forward, *peer)),
            _ => None,
        }
    }

    /// Sends the datagram whose payload of `length` bytes lies behind room for its headers.
    pub(super) fn send_datagram(&mut self, packet: &mut [u8], length: usize, shared: &mut Shared, now: Nanos) {
        let User::Datagrams { source, server, last_packet, .. } = &mut self.user else { return };
        *last_packet = now;
        let total = datagram::wrap(packet, *source, *server, length);
        self.carrier.send(&packet[..total], &mut shared.up, &mut shared.drops);
    }

    /// Something can be read from or written to the local connection again, or it is broken.
    pub(super) fn on_local(&mut self, is_broken: bool, shared: &mut Shared, now: Nanos) {
        if let User::Connection(tcp) = &mut self.user
            && is_broken
            && let Some(Ok(Some(_))) = tcp.local.as_ref().map(TcpStream::take_error)
        {
            match &mut tcp.connection {
                Some(connection) => connection.local_reset(now),
                None => tcp.end = Some(End::LocalReset),
            }
        }
        self.advance(shared, now);
    }

    /// The session could not be opened.
    pub(super) fn on_failed(&mut self, shared: &mut Shared, now: Nanos) {
        self.carrier.failed(&mut shared.drops, now);
        if let User::Connection(tcp) = &mut self.user {
            tcp.end.get_or_insert(End::Refused);
        }
    }

    /// The session was lost. A tunnel gets another. A flow's server would know nothing of the new session's port:
    /// its connection ends, its datagrams get a new flow when the next one comes.
    pub(super) fn on_lost(&mut self, shared: &mut Shared, now: Nanos) {
        match &mut self.user {
            User::Tun => self.carrier.open(&shared.opener),
            User::Datagrams { is_over, .. } => *is_over = true,
            User::Connection(tcp) => {
                if let Some(connection) = &mut tcp.connection {
                    connection.give_up(now);
                }
                tcp.end.get_or_insert(End::Reset);
            }
        }
    }

    /// The pause after a failure is over.
    pub(super) fn on_pause_over(&mut self, shared: &mut Shared) {
        match &mut self.user {
            User::Tun => self.carrier.open(&shared.opener),
            User::Datagrams { is_over, .. } => *is_over = true,
            User::Connection(_) => {}
        }
    }

    /// Moves a connection on as far as it goes; nothing to do for the others.
    pub(super) fn advance(&mut self, shared: &mut Shared, now: Nanos) {
        let User::Connection(tcp) = &mut self.user else { return };
        if tcp.connection.is_none() && tcp.end.is_none() && self.carrier.is_ready() {
            let seed = u64::from_ne_bytes(super::random());
            tcp.connection = Some(Connection::open(tcp.source, tcp.server, tcp.mtu, seed, now));
        }
        let Some(connection) = &mut tcp.connection else { return };
        connection.poll(now);
        if let Some(local) = &mut tcp.local {
            connection.pump(local);
            connection.poll(now);
        } else {
            connection.pump(&mut Gone);
        }
        connection.drain(|packet| self.carrier.send(packet, &mut shared.up, &mut shared.drops));
        self.carrier.flush(&mut shared.up, &mut shared.drops);
        if connection.is_local_finished() {
            tcp.local = None;
        }
        tcp.end = tcp.end.or(connection.end());
    }

    /// When something is due.
    pub(super) fn deadline(&mut self, now: Nanos) -> Nanos {
        let of_user = match &mut self.user {
            User::Tun => Nanos::MAX,
            User::Datagrams { last_packet, .. } => *last_packet + UDP_IDLE,
            User::Connection(tcp) => {
                tcp.connection.as_mut().and_then(|connection| connection.deadline(now)).unwrap_or(Nanos::MAX)
            }
        };
        of_user.min(self.carrier.deadline())
    }

    /// True where nobody uses it any more.
    pub(super) fn is_over(&self, now: Nanos) -> bool {
        match &self.user {
            User::Tun => false,
            User::Datagrams { last_packet, is_over, .. } => *is_over || now >= *last_packet + UDP_IDLE,
            User::Connection(tcp) => tcp.end.is_some(),
        }
    }

    /// Ends it: the local connection, if there is one, the way the other end did, and the session.
    pub(super) fn end(&mut self, shared: &mut Shared) {
        if let User::Connection(tcp) = &mut self.user {
            let end = tcp.end.unwrap_or(End::Reset);
            if end != End::Closed {
                tracing::debug!("connection to {}: {end}", tcp.server);
                tcp.local.iter().for_each(reset);
            }
            tcp.local = None;
        }
        self.carrier.close(&shared.opener);
    }
}

/// Makes closing this connection send RST instead of FIN.
pub(super) fn reset(local: &TcpStream) {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    // Where it fails the local program sees an orderly end; there is nothing better to do.
    let _ = setsockopt(local, sockopt::Linger, &at_once);
}

/// Stands for a local connection that is finished in both directions and closed.
struct Gone;

impl io::Read for Gone {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl super::forward::tcp::Local for Gone {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}
