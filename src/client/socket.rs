//! The client's end of its hop to the entry: ordinary UDP sockets, read and written in batches.
//!
//! One socket a session, connected to the entry: the kernel then refuses datagrams from anyone else, and the port
//! tells which session a datagram is for.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrIn, recvmmsg, sendmmsg,
        sendmsg, setsockopt, socket, sockopt,
    },
};

use crate::wire::relay::HEADER_BYTES;

/// Datagrams moved by one system call.
pub const BATCH: usize = 64;

/// Datagrams of one length that the kernel takes as one and cuts again on the way out (UDP_SEGMENT): the most that
/// every kernel which can do so accepts.
const TRAIN_MAX: usize = 64;

/// And the bytes of them: what is left of an IPv4 packet.
const TRAIN_BYTES_MAX: usize = 65_507;

/// Bytes of one datagram's place: the largest inner packet and its header fit.
pub const DATAGRAM_BYTES: usize = 2048;

/// The first of the dynamic ports (RFC 6335).
const DYNAMIC_PORT_FIRST: u16 = 49_152;

/// Asked of the kernel for each socket, both ways; it gives what `net.core.[rw]mem_max` allows.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A socket connected to the entry's data address.
#[derive(Debug)]
pub struct SessionSocket {
    socket: UdpSocket,
    /// False once the kernel has refused to cut a train: it is too old, or the device cannot do without checksums.
    takes_trains: std::cell::Cell<bool>,
}

impl SessionSocket {
    /// Binds the port that the entry wishes for, if it is one of those that nobody is given by a registry and is free
    /// here, or else any, and connects it; non-blocking.
    pub fn connect(entry: SocketAddrV4, wish: u16) -> io::Result<Self> {
        let bind = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let wish = if wish >= DYNAMIC_PORT_FIRST { wish } else { 0 };
        let socket = bind(wish).or_else(|_| bind(0))?;
        socket.connect(entry)?;
        socket.set_nonblocking(true)?;
        enlarge_buffers(&socket);
        Ok(Self { socket, takes_trains: true.into() })
    }

    /// Where datagrams come from and go to at this end.
    pub fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends one datagram.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send(datagram).map(drop)
    }
}

impl std::os::fd::AsFd for SessionSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
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
    lengths: Box<[usize]>,
    count: usize,
    headers: MultiHeaders<SockaddrIn>,
}

impl Batch {
    /// An empty batch of `places`, of which there are [`BATCH`] at least.
    pub fn new(places: usize) -> Self {
        assert!(places >= BATCH, "what one system call moves must fit");
        Self {
            bytes: vec![[0; DATAGRAM_BYTES]; places].into_boxed_slice(),
            lengths: vec![0; places].into_boxed_slice(),
            count: 0,
            headers: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// True where there is no place left.
    pub fn is_full(&self) -> bool {
        self.count == self.bytes.len()
    }

    /// How many places are left.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.count
    }

    /// All free places, and where the lengths of what is put into them go: to be filled from the first one on and
    /// then brought forward one by one ([`Batch::bring`]).
    pub fn free_places(&mut self) -> (&mut [[u8; DATAGRAM_BYTES]], &mut [usize]) {
        (&mut self.bytes[self.count..], &mut self.lengths[self.count..])
    }

    /// Makes what lies in place `at` that of the next free place; returns the length given for it.
    pub fn bring(&mut self, at: usize) -> usize {
        if at != self.count {
            self.bytes.swap(at, self.count);
        }
        self.lengths[at]
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
            std::array::from_fn(|_| [IoSliceMut::new(places.next().expect("there are BATCH places at least"))]);
        let fd = socket.socket.as_raw_fd();
        let received = recvmmsg(fd, &mut self.headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        for message in received.into_iter().flatten() {
            self.lengths[self.count] = message.bytes;
            self.count += 1;
        }
        self.count
    }

    /// Sends all datagrams and empties the batch; returns how many the kernel did not take.
    ///
    /// A train, which is what a large TCP segment of the host becomes, goes down the host's IP stack as one.
    pub fn send(&mut self, socket: &SessionSocket) -> usize {
        let mut at = 0;
        let mut refused = 0;
        while at < self.count {
            let train = if socket.takes_trains.get() { self.train(at) } else { 1 };
            let result = match train {
                1 => self.send_singly(socket, at),
                _ => self.send_train(socket, at, train).map(|()| train),
            };
            match result {
                Ok(sent) if sent > 0 => at += sent,
                Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP) if train > 1 => {
                    socket.takes_trains.set(false);
                }
                Err(Errno::EAGAIN) => {
                    at += train;
                    refused += train;
                }
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

    /// How many datagrams from `at` on can leave as one: all of one length, but for the last, which may be shorter.
    fn train(&self, at: usize) -> usize {
        let length = self.lengths[at];
        let most = TRAIN_MAX.min(TRAIN_BYTES_MAX / length.max(1)).min(self.count - at);
        let lengths = &self.lengths[at..at + most];
        let same = lengths.iter().take_while(|other| **other == length).count();
        match lengths.get(same) {
            Some(last) if *last < length => same + 1,
            _ => same,
        }
    }

    fn send_train(&self, socket: &SessionSocket, at: usize, count: usize) -> nix::Result<()> {
        let slices: [IoSlice; TRAIN_MAX] = std::array::from_fn(|i| IoSlice::new(self.get(at + i.min(count - 1))));
        let each = self.lengths[at] as u16;
        let control = [ControlMessage::UdpGsoSegments(&each)];
        let fd = socket.socket.as_raw_fd();
        sendmsg::<SockaddrIn>(fd, &slices[..count], &control, MsgFlags::MSG_DONTWAIT, None).map(drop)
    }

    /// Datagrams up to the next train, one by one but in one system call.
    fn send_singly(&mut self, socket: &SessionSocket, at: usize) -> nix::Result<usize> {
        let most = BATCH.min(self.count - at);
        let is_train = |i: &usize| socket.takes_trains.get() && self.train(at + i) > 1;
        let count = (1..most).find(is_train).unwrap_or(most);
        let slices: [[IoSlice; 1]; BATCH] = std::array::from_fn(|i| {
            let place = at + i.min(count - 1);
            [IoSlice::new(&self.bytes[place][..self.lengths[place]])]
        });
        let fd = socket.socket.as_raw_fd();
        let no_addresses = [None::<SockaddrIn>; BATCH];
        let no_control: [ControlMessage; 0] = [];
        let sent = sendmmsg(fd, &mut self.headers, &slices[..count], no_addresses, no_control, MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (SessionSocket, UdpSocket) {
        let entry = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = entry.local_addr().unwrap() else { panic!("bound to IPv4") };
        let socket = SessionSocket::connect(address, 0).unwrap();
        entry.connect(socket.local_address().unwrap()).unwrap();
        (socket, entry)
    }

    #[test]
    fn the_port_that_the_entry_wishes_for_is_taken_where_it_is_free() {
        let (_, entry) = pair();
        let std::net::SocketAddr::V4(address) = entry.local_addr().unwrap() else { panic!("bound to IPv4") };
        let port = |socket: &SessionSocket| socket.local_address().unwrap().port();
        let free = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().max(DYNAMIC_PORT_FIRST);
        let first = SessionSocket::connect(address, free).unwrap();
        assert_eq!(port(&first), free);
        assert_ne!(port(&SessionSocket::connect(address, free).unwrap()), free, "it is taken");
        assert_ne!(port(&SessionSocket::connect(address, 7).unwrap()), 7);
    }

    #[test]
    fn a_batch_arrives_whole_and_in_order_both_ways() {
        let (socket, entry) = pair();
        let mut batch = Batch::new(BATCH);
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
    fn trains_of_all_shapes_arrive_as_the_datagrams_they_were_made_of() {
        let (socket, entry) = pair();
        entry.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        let sizes =
            [1400; 20].iter().chain(&[700, 700, 701, 64, 0, 64, 64, 63, 1]).chain(&[100; 70]).chain(&[3]).copied();
        for takes_trains in [true, false] {
            socket.takes_trains.set(takes_trains);
            let mut batch = Batch::new(256);
            for (i, size) in sizes.clone().enumerate() {
                batch.next_place()[..size].fill(i as u8);
                batch.push(size);
            }
            assert_eq!(batch.send(&socket), 0);
            assert_eq!(socket.takes_trains.get(), takes_trains, "the loopback device takes them");
            for (i, size) in sizes.clone().enumerate() {
                let mut bytes = [0; 2048];
                let length = entry.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..length], vec![i as u8; size], "datagram {i}");
            }
        }
    }

    #[test]
    fn what_is_brought_forward_leaves_out_what_was_not_wanted() {
        let mut batch = Batch::new(BATCH);
        let (places, lengths) = batch.free_places();
        for i in 0..4 {
            places[i][0] = i as u8;
            lengths[i] = i + 1;
        }
        for at in [0, 2, 3] {
            let length = batch.bring(at);
            batch.push(length);
        }
        assert_eq!([0, 1, 2].map(|at| (batch.get(at)[0], batch.get(at).len())), [(0, 1), (2, 3), (3, 4)]);
    }

    #[test]
    fn an_entry_that_refuses_costs_one_datagram_not_the_batch() {
        let (socket, entry) = pair();
        drop(entry);
        socket.send(b"provokes an ICMP error").unwrap();
        let mut batch = Batch::new(BATCH);
        for _ in 0..3 {
            batch.push(10);
        }
        assert!(batch.send(&socket) <= 3);
        assert_eq!((batch.receive(&socket), batch.len()), (0, 0));
    }
}
