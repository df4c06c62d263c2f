//! A forwarded TCP connection: the local program's bytes on one side, segments of our own TCP on the other.
//!
//! Sans-IO. One smoltcp interface with one socket a connection: the packets of a connection travel in a session of
//! their own, so there is nothing to tell apart, and one connection's path MTU is not another's. What one end says
//! the other hears: a refusal or reset of the server ends the local connection with RST, a FIN becomes a
//! half-close, and who does not read stops the other's writing by the window.

mod device;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    net::SocketAddrV4,
};

use smoltcp::{
    iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet},
    socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State},
    time::{Duration, Instant},
    wire::{HardwareAddress, IpCidr},
};

use self::device::Queues;
use super::datagram::IcmpError;
use crate::Nanos;

/// Bytes of each of a connection's two buffers: the largest window. Untouched pages cost nothing.
const BUFFER_BYTES: usize = 512 * 1024;

/// A server that acknowledges nothing for this long is given up.
const TIMEOUT: Duration = Duration::from_secs(90);

/// An idle connection asks whether the server is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The smallest MTU believed from an ICMP error (RFC 791's minimum reassembly size: less is an attack).
const MTU_MIN: u16 = 576;

/// The local program's end.
pub trait Local: Read + Write {
    /// No more bytes will be written.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

impl Local for std::net::TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Both sides have said all they had to say.
    Closed,
    /// The server's host refused it.
    Refused,
    /// The server reset it, or stopped answering.
    Reset,
    /// The local program reset it.
    LocalReset,
    /// It could not be established.
    Unreachable(IcmpError),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Refused => f.write_str("refused by the server, or no answer from it"),
            Self::Reset => f.write_str("reset by the server, or no answer from it"),
            Self::LocalReset => f.write_str("reset by the local program"),
            Self::Unreachable(error) => write!(f, "{error}"),
        }
    }
}

/// A connection from a local program to a server.
pub struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    queues: Queues,
    source: SocketAddrV4,
    seed: u64,
    was_established: bool,
    /// The local program's FIN was passed on.
    local_finished: bool,
    /// The server's FIN was passed on.
    server_finished: bool,
    end: Option<End>,
}

impl Connection {
    /// Starts to connect; the SYN is among the packets to send at once. `seed` must be random.
    pub fn open(source: SocketAddrV4, server: SocketAddrV4, mtu: u16, seed: u64, now: Nanos) -> Self {
        let mut queues = Queues::new(mtu);
        let mut interface = interface(&mut queues, source, seed, now);
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let is_refused = socket.connect(interface.context(), server, source).is_err();
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let mut connection = Self {
            interface,
            sockets,
            handle,
            queues,
            source,
            seed,
            was_established: false,
            local_finished: false,
            server_finished: false,
            end: is_refused.then_some(End::Refused),
        };
        connection.poll(now);
        connection
    }

    /// A packet of the connection came; [`Connection::poll`] will look at it.
    pub fn receive(&mut self, packet: &[u8]) {
        let mut place = self.queues.place();
        place.extend_from_slice(packet);
        self.queues.arrived.push_back(place);
    }

    /// An ICMP error about the connection came. Before it is established an error that says "unreachable" ends it
    /// (RFC 5461, 4.1); afterwards only "fragmentation needed" matters (RFC 1191), TCP's own timer decides the rest.
    pub fn receive_error(&mut self, error: IcmpError, now: Nanos) {
        if error.is_too_big() {
            let mtu = error.mtu.max(MTU_MIN);
            if mtu < self.queues.mtu {
                self.queues.mtu = mtu;
                // smoltcp reads an interface's MTU once. The socket and its state are not the interface's.
                self.interface = interface(&mut self.queues, self.source, self.seed, now);
            }
        } else if !self.was_established && error.kind == crate::wire::icmp::UNREACHABLE {
            self.abort(End::Unreachable(error), now);
        }
    }

    /// The local program reset the connection: the server is told.
    pub fn local_reset(&mut self, now: Nanos) {
        self.abort(End::LocalReset, now);
    }

    /// Gives the connection up for another reason than its ends'; the server is told.
    pub fn give_up(&mut self, now: Nanos) {
        self.abort(End::Reset, now);
    }

    fn abort(&mut self, end: End, now: Nanos) {
        self.end.get_or_insert(end);
        self.sockets.get_mut::<Socket>(self.handle).abort();
        self.poll(now);
    }

    /// Looks at what came, and makes the packets that are due.
    pub fn poll(&mut self, now: Nanos) {
        if self.is_held() {
            while self.interface.poll_ingress_single(instant(now), &mut self.queues, &mut self.sockets)
                != PollIngressSingleResult::None
            {}
            return;
        }
        self.interface.poll(instant(now), &mut self.queues, &mut self.sockets);
        let state = self.sockets.get::<Socket>(self.handle).state();
        self.was_established |= !matches!(state, State::SynSent | State::Closed);
    }

    /// True while the end of TIME-WAIT must not come: smoltcp would then throw away what the local program has yet
    /// to read.
    fn is_held(&self) -> bool {
        let socket = self.sockets.get::<Socket>(self.handle);
        socket.state() == State::TimeWait && socket.can_recv()
    }

    /// When [`Connection::poll`] is due, if ever.
    pub fn deadline(&mut self, now: Nanos) -> Option<Nanos> {
        if self.is_held() {
            return None;
        }
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some((at.total_micros().max(0) as Nanos) * 1_000)
    }

    /// Hands over each packet that is to be sent.
    pub fn drain(&mut self, mut send: impl FnMut(&[u8])) {
        while let Some(packet) = self.queues.to_send.pop_front() {
            send(&packet);
            self.queues.recycle(packet);
        }
    }

    /// Moves bytes between the local program and the server until neither moves; to be called after each
    /// [`Connection::poll`] and whenever `local` can be read or written again. Poll again afterwards: bytes and
    /// window updates may be due.
    pub fn pump(&mut self, local: &mut impl Local) {
        if self.end.is_some() {
            return;
        }
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        let moved = to_server(socket, local, &mut self.local_finished)
            .and_then(|()| to_local(socket, local, &mut self.server_finished));
        if moved.is_err() {
            socket.abort();
            self.end = Some(End::LocalReset);
        } else if socket.state() == State::Closed {
            // Both FINs passed on and ours acknowledged: done. Anything else that closes the socket is a reset,
            // but what the server said before its FIN still goes to a slow local program.
            let is_clean = self.local_finished && socket.send_queue() == 0;
            self.end = match (is_clean, self.server_finished) {
                (true, true) => Some(End::Closed),
                (true, false) if socket.can_recv() => None,
                _ if self.was_established => Some(End::Reset),
                _ => Some(End::Refused),
            };
        }
    }

    /// True where the local end can be closed: both directions are finished (the server's end may linger).
    pub fn is_local_finished(&self) -> bool {
        self.local_finished && self.server_finished
    }

    /// How it ended, if it has. Packets (a RST) may still be there to send.
    pub fn end(&self) -> Option<End> {
        self.end
    }
}

fn to_server(socket: &mut Socket, local: &mut impl Local, is_finished: &mut bool) -> io::Result<()> {
    while !*is_finished && socket.can_send() {
        let read = socket.send(|room| match local.read(room) {
            Ok(length) => (length, Ok(length)),
            Err(error) => (0, Err(error)),
        });
        match read {
            Ok(Ok(0)) => {
                *is_finished = true;
                socket.close();
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    Ok(())
}

fn to_local(socket: &mut Socket, local: &mut impl Local, is_finished: &mut bool) -> io::Result<()> {
    while socket.can_recv() {
        let written = socket.recv(|bytes| match local.write(bytes) {
            Ok(length) => (length, Ok(length)),
            Err(error) => (0, Err(error)),
        });
        match written {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    if !*is_finished && socket.recv(|_| (0, ())) == Err(RecvError::Finished) {
        *is_finished = true;
        local.shutdown_write()?;
    }
    Ok(())
}

fn interface(queues: &mut Queues, source: SocketAddrV4, seed: u64, now: Nanos) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, queues, instant(now));
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new((*source.ip()).into(), 32)).expect("room for the first address");
    });
    interface.routes_mut().add_default_ipv4_route(*source.ip()).expect("room for the first route");
    interface
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now / 1_000) as i64)
}
