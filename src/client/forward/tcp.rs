//! A forwarded TCP connection: the local program's bytes on one side, segments of our own TCP on the other.
//!
//! Sans-IO. One smoltcp interface with one socket a connection: the packets of a connection travel in a session of
//! their own, so there is nothing to tell apart, and one connection's path MTU is not another's. What one end says
//! the other hears: a refusal or reset of the server ends the local connection with RST, a FIN becomes a
//! half-close, and who does not read stops the other's writing by the window.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::SocketAddrV4,
};

use smoltcp::{
    iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State},
    time::{Duration, Instant},
    wire::{HardwareAddress, IpCidr},
};

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
        let mut queues = Queues { arrived: VecDeque::new(), to_send: VecDeque::new(), spare: Vec::new(), mtu };
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

/// The device under smoltcp: packets that came, packets to send, and memory to use again.
struct Queues {
    arrived: VecDeque<Vec<u8>>,
    to_send: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    mtu: u16,
}

impl Queues {
    fn place(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(usize::from(self.mtu)))
    }

    fn recycle(&mut self, mut packet: Vec<u8>) {
        if self.spare.len() < super::super::socket::BATCH {
            packet.clear();
            self.spare.push(packet);
        }
    }
}

impl Device for Queues {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Place<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Place<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Place(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Place<'_>> {
        Some(Place(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Place<'a>(&'a mut Queues);

impl TxToken for Place<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = self.0.place();
        packet.resize(length, 0);
        let result = f(&mut packet);
        self.0.to_send.push_back(packet);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MILLISECOND, SECOND,
        client::forward::datagram::{
            Inner,
            tests::{SERVER, SOURCE, icmp_error},
            unwrap,
        },
        wire::{icmp, ip4},
    };

    /// The local program: bytes it will write, bytes it has read, and how many it is willing to read.
    #[derive(Default)]
    struct Program {
        writes: VecDeque<u8>,
        has_finished: bool,
        is_reset: bool,
        read: Vec<u8>,
        willing: usize,
        saw_end: bool,
    }

    impl Read for Program {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.is_reset {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if self.writes.is_empty() && !self.has_finished {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.writes.read(into)
        }
    }

    impl Write for Program {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.willing - self.read.len());
            if length == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.read.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Local for Program {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.saw_end = true;
            Ok(())
        }
    }

    /// A server's host: another smoltcp, behind a path of 10 ms that may lose packets.
    struct World {
        connection: Connection,
        program: Program,
        interface: Interface,
        sockets: SocketSet<'static>,
        handle: SocketHandle,
        queues: Queues,
        now: Nanos,
        packets: usize,
        /// Every so many packets one is lost; zero: none.
        lose_each: usize,
        largest: usize,
    }

    impl World {
        fn new(is_listening: bool) -> Self {
            let mut queues =
                Queues { arrived: VecDeque::new(), to_send: VecDeque::new(), spare: Vec::new(), mtu: 1500 };
            let interface = interface(&mut queues, SERVER, 1, 0);
            let buffer = || SocketBuffer::new(vec![0; 65_536]);
            let mut socket = Socket::new(buffer(), buffer());
            if is_listening {
                socket.listen(SERVER).unwrap();
            }
            let mut sockets = SocketSet::new(Vec::new());
            let handle = sockets.add(socket);
            Self {
                connection: Connection::open(SOURCE, SERVER, 1400, 2, 0),
                program: Program { willing: usize::MAX, ..Program::default() },
                interface,
                sockets,
                handle,
                queues,
                now: 0,
                packets: 0,
                lose_each: 0,
                largest: 0,
            }
        }

        fn server(&mut self) -> &mut Socket<'static> {
            self.sockets.get_mut(self.handle)
        }

        /// What the data loop does with a connection, and 10 ms on the way.
        fn step(&mut self) {
            self.connection.poll(self.now);
            self.connection.pump(&mut self.program);
            self.connection.poll(self.now);
            let mut up = Vec::new();
            self.connection.drain(|packet| up.push(packet.to_vec()));
            self.interface.poll(instant(self.now), &mut self.queues, &mut self.sockets);
            let down: Vec<_> = self.queues.to_send.drain(..).collect();
            self.now += 10 * MILLISECOND;
            for packet in up {
                self.largest = self.largest.max(packet.len());
                if self.passes() {
                    self.queues.arrived.push_back(packet);
                }
            }
            for packet in down {
                if self.passes() {
                    assert!(matches!(unwrap(&packet, ip4::TCP, SOURCE, SERVER), Ok(Inner::Segment(_))));
                    self.connection.receive(&packet);
                }
            }
        }

        fn passes(&mut self) -> bool {
            self.packets += 1;
            self.lose_each == 0 || !self.packets.is_multiple_of(self.lose_each)
        }

        /// Steps until `is_done`, reading and writing nothing at the server; gives up after ten virtual minutes.
        fn until(&mut self, is_done: impl Fn(&mut Self) -> bool) {
            while !is_done(self) {
                assert!(self.now < 600 * SECOND, "state {:?}, end {:?}", self.server().state(), self.connection.end());
                self.step();
            }
        }

        fn established() -> Self {
            let mut world = Self::new(true);
            world.until(|world| world.server().state() == State::Established);
            world
        }

        /// Lets the server read all there is into `read`, step by step, until it has `length` bytes.
        fn server_reads(&mut self, length: usize) -> Vec<u8> {
            let mut read = Vec::new();
            while read.len() < length {
                assert!(self.now < 600 * SECOND, "{} of {length} bytes", read.len());
                self.step();
                while self.server().can_recv() {
                    self.server().recv(|bytes| (bytes.len(), read.extend_from_slice(bytes))).unwrap();
                }
            }
            read
        }

        /// Lets the server write `bytes`.
        fn server_writes(&mut self, bytes: &[u8]) {
            let mut at = 0;
            while at < bytes.len() {
                assert!(self.now < 600 * SECOND, "{at} of {} bytes", bytes.len());
                if self.server().can_send() {
                    at += self.server().send_slice(&bytes[at..]).unwrap();
                }
                self.step();
            }
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn bytes_pass_both_ways_and_both_closes_end_it_cleanly() {
        let mut world = World::established();
        world.program.writes.extend(bytes(300_000));
        assert_eq!(world.server_reads(300_000), bytes(300_000));
        world.server_writes(&bytes(300_000));
        world.until(|world| world.program.read.len() == 300_000);
        assert_eq!(world.program.read, bytes(300_000));

        world.program.has_finished = true;
        world.until(|world| world.server().state() == State::CloseWait);
        world.server().close();
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.connection.end(), Some(End::Closed));
        assert!(world.program.saw_end && world.connection.is_local_finished());
    }

    #[test]
    fn after_the_local_program_has_finished_the_server_may_go_on() {
        let mut world = World::established();
        world.program.writes.extend(b"request");
        world.program.has_finished = true;
        assert_eq!(world.server_reads(7), b"request");
        world.until(|world| world.server().state() == State::CloseWait);
        world.server_writes(&bytes(200_000));
        world.server().close();
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.program.read, bytes(200_000));
        assert_eq!(world.connection.end(), Some(End::Closed));
    }

    #[test]
    fn after_the_server_has_finished_the_local_program_may_go_on() {
        let mut world = World::established();
        world.server().close();
        world.until(|world| world.program.saw_end);
        assert_eq!(world.connection.end(), None);
        world.program.writes.extend(bytes(200_000));
        assert_eq!(world.server_reads(200_000), bytes(200_000));
        world.program.has_finished = true;
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.connection.end(), Some(End::Closed));
    }

    #[test]
    fn a_refusal_ends_it_after_one_round_trip() {
        let mut world = World::new(false);
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.connection.end(), Some(End::Refused));
        assert!(world.now <= 50 * MILLISECOND, "{} ns", world.now);
    }

    #[test]
    fn a_reset_of_either_side_reaches_the_other() {
        let mut world = World::established();
        world.server().abort();
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.connection.end(), Some(End::Reset));

        let mut world = World::established();
        world.program.is_reset = true;
        world.until(|world| world.server().state() == State::Closed);
        assert_eq!(world.connection.end(), Some(End::LocalReset));

        let mut world = World::established();
        world.connection.local_reset(world.now);
        world.until(|world| world.server().state() == State::Closed);
    }

    #[test]
    fn a_reset_in_the_middle_of_a_close_is_no_clean_end() {
        let mut world = World::established();
        world.program.writes.extend(bytes(10));
        world.program.has_finished = true;
        world.until(|world| world.server().state() == State::CloseWait);
        world.server().abort();
        world.until(|world| world.connection.end().is_some());
        assert_eq!(world.connection.end(), Some(End::Reset));
    }

    #[test]
    fn who_does_not_read_stops_the_other() {
        let mut world = World::established();
        world.program.willing = 1_000;
        let mut sent = 0;
        for _ in 0..500 {
            if world.server().can_send() {
                sent += world.server().send_slice(&bytes(65_536)).unwrap();
            }
            world.step();
        }
        assert_eq!(world.program.read.len(), 1_000);
        assert!(sent < 1_000 + BUFFER_BYTES + 3 * 65_536, "{sent} bytes were taken");
        world.program.willing = usize::MAX;
        world.until(|world| world.program.read.len() == sent);

        let mut world = World::established();
        world.program.writes.extend(bytes(2_000_000));
        for _ in 0..500 {
            world.step();
        }
        assert!(world.program.writes.len() > 2_000_000 - BUFFER_BYTES - 65_536 - 1);
        assert_eq!(world.server_reads(2_000_000), bytes(2_000_000));
    }

    #[test]
    fn lost_packets_are_repeated() {
        let mut world = World::established();
        world.lose_each = 13;
        world.program.writes.extend(bytes(300_000));
        assert_eq!(world.server_reads(300_000), bytes(300_000));
    }

    #[test]
    fn what_the_server_said_before_its_fin_reaches_a_slow_program() {
        for program_is_first in [true, false] {
            let mut world = World::established();
            world.program.willing = 0;
            if program_is_first {
                world.program.has_finished = true;
                world.until(|world| world.server().state() == State::CloseWait);
            }
            world.server_writes(&bytes(1_000));
            world.server().close();
            world.until(|world| world.now > 5 * SECOND);
            world.program.has_finished = true;
            world.until(|world| world.now > 60 * SECOND);
            assert_eq!((world.connection.end(), world.server().state()), (None, State::Closed));
            world.program.willing = usize::MAX;
            world.until(|world| world.connection.end().is_some());
            assert_eq!((world.program.read.len(), world.connection.end()), (1_000, Some(End::Closed)));
        }
    }

    /// What `unwrap` makes of an ICMP error about the first packet of a connection.
    fn error(kind: u8, code: u8, mtu: u16) -> IcmpError {
        let mut quoted = vec![0; 40];
        ip4::emit(&mut quoted, *SOURCE.ip(), *SERVER.ip(), ip4::TCP, 40, 64);
        quoted[20..22].copy_from_slice(&SOURCE.port().to_be_bytes());
        quoted[22..24].copy_from_slice(&SERVER.port().to_be_bytes());
        match unwrap(&icmp_error(kind, code, mtu, &quoted), ip4::TCP, SOURCE, SERVER) {
            Ok(Inner::Error(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unreachable_ends_a_connection_that_is_being_made_and_no_other() {
        let mut world = World::new(true);
        world.connection.receive_error(error(icmp::UNREACHABLE, 1, 0), 0);
        assert!(matches!(world.connection.end(), Some(End::Unreachable(_))));

        let mut world = World::established();
        world.connection.receive_error(error(icmp::UNREACHABLE, 1, 0), world.now);
        assert_eq!(world.connection.end(), None);
    }

    #[test]
    fn fragmentation_needed_makes_segments_smaller() {
        let mut world = World::established();
        world.program.writes.extend(bytes(100_000));
        world.server_reads(50_000);
        assert_eq!(world.largest, 1400);
        let now = world.now;
        world.connection.receive_error(error(icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, 1200), now);
        world.connection.receive_error(error(icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, 1300), now);
        world.largest = 0;
        world.program.writes.extend(bytes(100_000));
        world.server_reads(100_000);
        assert_eq!(world.largest, 1200);
        world.connection.receive_error(error(icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, 1), now);
        assert_eq!(world.connection.queues.mtu, MTU_MIN);
    }
}
