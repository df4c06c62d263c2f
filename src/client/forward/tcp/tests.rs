//! A connection against another smoltcp as its server, behind a path of 10 ms that may lose packets.

use std::collections::VecDeque;

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
        let mut queues = Queues::new(1500);
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
