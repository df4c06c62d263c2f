//! The client's end of its hop to the entry: ordinary UDP sockets, read and written in batches.
//!
//! One socket a session, connected to the entry: the kernel then refuses datagrams from anyone else, and the port
//! tells which session a datagram is for.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrIn, recvmmsg, sendmmsg, setsockopt, socket,
    sockopt,
};

use crate::wire::relay::HEADER_BYTES;

/// Datagrams moved by one system call.
pub const BATCH: usize = 64;

/// Bytes of one datagram's place: the largest inner packet and its header fit.
pub const DATAGRAM_BYTES: usize = 2048;

/// Asked of the kernel for each socket, both ways; it gives what `net.core.[rw]mem_max` allows.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A socket connected to the entry's data address.
#[derive(Debug)]
pub struct SessionSocket(UdpSocket);

impl SessionSocket {
    /// Binds any port and connects it; non-blocking.
    pub fn connect(entry: SocketAddrV4) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(entry)?;
        socket.set_nonblocking(true)?;
        enlarge_buffers(&socket);
        Ok(Self(socket))
    }

    /// Where datagrams come from and go to at this end.
    pub fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        self.0.local_addr()
    }

    /// Sends one datagram.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.0.send(datagram).map(drop)
    }
}

impl std::os::fd::AsFd for SessionSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks for large buffers; a smaller one than asked for works too.
fn enlarge_buffers(socket: &UdpSocket) {
    let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
    let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
    // With CAP_NET_ADMIN the limit does not hold.
    let _ = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES);
    let _ = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES);
}

/// A UDP socket for the local programs of a forward; non-blocking.
pub fn listen_udp(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket);
    Ok(socket)
}

/// A TCP socket for the local programs of a forward; non-blocking, and with a port that a restarted client gets again.
pub fn listen_tcp(address: SocketAddrV4) -> io::Result<std::net::TcpListener> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    nix::sys::socket::bind(listener.as_raw_fd(), &SockaddrIn::from(address))?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1024)?)?;
    Ok(listener.into())
}

/// Places for datagrams on their way in or out, allocated once.
pub struct Batch {
    bytes: Box<[[u8; DATAGRAM_BYTES]]>,
    lengths: [usize; BATCH],
    count: usize,
    headers: MultiHeaders<SockaddrIn>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            bytes: vec![[0; DATAGRAM_BYTES]; BATCH].into_boxed_slice(),
            lengths: [0; BATCH],
            count: 0,
            headers: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// True where there is no place left.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    /// How many datagrams are in.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True where there is no datagram.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The next free place, to be filled and then taken by [`Batch::push`]. Panics where the batch is full.
    pub fn next_place(&mut self) -> &mut [u8; DATAGRAM_BYTES] {
        &mut self.bytes[self.count]
    }

    /// The part of the next free place where the inner packet goes.
    pub fn next_inner(&mut self) -> &mut [u8] {
        &mut self.next_place()[HEADER_BYTES..]
    }

    /// The first `length` bytes of the place that [`Batch::next_place`] gave are a datagram.
    pub fn push(&mut self, length: usize) {
        self.lengths[self.count] = length;
        self.count += 1;
    }

    /// Datagram `at`.
    pub fn get(&self, at: usize) -> &[u8] {
        &self.bytes[at][..self.lengths[at]]
    }

    /// Forgets all datagrams.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Replaces the content by what has arrived, at most [`BATCH`] datagrams; returns how many. A pending error of
    /// the socket (the entry's host refused a datagram) counts as nothing arrived.
    pub fn receive(&mut self, socket: &SessionSocket) -> usize {
        self.count = 0;
        let mut places = self.bytes.iter_mut();
        let mut slices: [[IoSliceMut; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(places.next().expect("there are BATCH places"))]);
        let fd = socket.0.as_raw_fd();
        let received = recvmmsg(fd, &mut self.headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        for message in received.into_iter().flatten() {
            self.lengths[self.count] = message.bytes;
            self.count += 1;
        }
        self.count
    }

    /// Sends all datagrams and empties the batch; returns how many the kernel did not take.
    pub fn send(&mut self, socket: &SessionSocket) -> usize {
        let mut at = 0;
        let mut refused = 0;
        while at < self.count {
            match self.send_from(socket, at) {
                Ok(sent) if sent > 0 => at += sent,
                // The error may be one that an earlier datagram brought about (ECONNREFUSED): the kernel reports
                // it once, before sending. The datagram is given up, the next one may pass.
                _ => {
                    at += 1;
                    refused += 1;
                }
            }
        }
        self.count = 0;
        refused
    }

    fn send_from(&mut self, socket: &SessionSocket, at: usize) -> nix::Result<usize> {
        let count = self.count - at;
        let slices: [[IoSlice; 1]; BATCH] = std::array::from_fn(|i| {
            let place = at + i.min(count - 1);
            [IoSlice::new(&self.bytes[place][..self.lengths[place]])]
        });
        let fd = socket.0.as_raw_fd();
        let no_addresses = [None::<SockaddrIn>; BATCH];
        let no_control: [nix::sys::socket::ControlMessage; 0] = [];
        let sent = sendmmsg(fd, &mut self.headers, &slices[..count], no_addresses, no_control, MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (SessionSocket, UdpSocket) {
        let entry = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = entry.local_addr().unwrap() else { panic!("bound to IPv4") };
        let socket = SessionSocket::connect(address).unwrap();
        entry.connect(socket.local_address().unwrap()).unwrap();
        (socket, entry)
    }

    #[test]
    fn a_batch_arrives_whole_and_in_order_both_ways() {
        let (socket, entry) = pair();
        let mut batch = Batch::new();
        for i in 0..BATCH {
            batch.next_place()[..100].fill(i as u8);
            batch.push(i + 1);
        }
        assert!(batch.is_full());
        assert_eq!(batch.send(&socket), 0);
        assert!(batch.is_empty());
        for i in 0..BATCH {
            let mut bytes = [0; 2048];
            let length = entry.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..length], vec![i as u8; i + 1]);
            entry.send(&bytes[..length]).unwrap();
        }
        assert_eq!(batch.receive(&socket), BATCH);
        for i in 0..BATCH {
            assert_eq!(batch.get(i), vec![i as u8; i + 1]);
        }
        assert_eq!(batch.receive(&socket), 0);
    }

    #[test]
    fn an_entry_that_refuses_costs_one_datagram_not_the_batch() {
        let (socket, entry) = pair();
        drop(entry);
        socket.send(b"provokes an ICMP error").unwrap();
        let mut batch = Batch::new();
        for _ in 0..3 {
            batch.push(10);
        }
        assert!(batch.send(&socket) <= 3);
        assert_eq!((batch.receive(&socket), batch.len()), (0, 0));
    }
}
