//! Route netlink (RFC 3549, rtnetlink(7)) as the mirror needs it: dump, request with answer, subscription.

use std::{io, os::fd::AsFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteHeader, RouteMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;

use super::KernelError;

/// RTNLGRP_LINK, RTNLGRP_NEIGH, and RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE and their likes of IPv6 in linux/rtnetlink.h.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// The kernel fills at most 32 KiB a datagram of a dump.
const BUFFER_BYTES: usize = 64 * 1024;

/// A dump that the kernel marks as inconsistent is asked for again this often, then taken as it is: the change
/// that spoilt it comes as an event, too.
const DUMP_ATTEMPTS: usize = 5;

/// A socket for requests: one request, its whole answer, the next request.
pub(super) struct Requests {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Requests {
    pub(super) fn open() -> Result<Self, KernelError> {
        let socket = open().map_err(|e| KernelError::netlink("open a socket", e))?;
        // Lets the kernel filter routes by table. Kernels before 4.20 do not know it; we filter in any case.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES], sequence: 0 })
    }

    /// All links.
    pub(super) fn links(&mut self) -> Result<Vec<LinkMessage>, KernelError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("list the interfaces", request, |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
    }

    /// All addresses of a family.
    pub(super) fn addresses(&mut self, family: AddressFamily) -> Result<Vec<AddressMessage>, KernelError> {
        let mut request = AddressMessage::default();
        request.header.family = family;
        self.dump("list the addresses", RouteNetlinkMessage::GetAddress(request), |answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
    }

    /// All neighbours of a family.
    pub(super) fn neighbours(&mut self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, KernelError> {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        self.dump("list the neighbours", RouteNetlinkMessage::GetNeighbour(request), |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        })
    }

    /// The routes of a family in the main table, each as `select` makes it.
    pub(super) fn routes<T>(
        &mut self,
        family: AddressFamily,
        select: impl Fn(&RouteMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let routes = self.dump("list the routes", RouteNetlinkMessage::GetRoute(request), |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => select(&route),
            _ => None,
        });
        match routes {
            // A namespace has no main table before its first route.
            Err(KernelError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// Makes the kernel resolve `address` as if it had a packet for it: a missing or failed entry is asked for by
    /// broadcast, a stale one verified by unicast, a fresh one left alone. Needs CAP_NET_ADMIN.
    pub(super) fn use_neighbour(&mut self, index: u32, address: std::net::IpAddr) -> io::Result<()> {
        self.set_neighbour(index, address, NeighbourState::None, NeighbourFlags::Use, NLM_F_CREATE)
    }

    /// Makes the kernel verify an entry that has a MAC address by unicast, however fresh it is. An error where there is none.
    pub(super) fn verify_neighbour(&mut self, index: u32, address: std::net::IpAddr) -> io::Result<()> {
        self.set_neighbour(index, address, NeighbourState::Probe, NeighbourFlags::empty(), 0)
    }

    fn set_neighbour(
        &mut self,
        index: u32,
        address: std::net::IpAddr,
        state: NeighbourState,
        flags: NeighbourFlags,
        netlink_flags: u16,
    ) -> io::Result<()> {
        let mut request = NeighbourMessage::default();
        request.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        request.header.ifindex = index;
        request.header.state = state;
        request.header.flags = flags;
        request.attributes.push(NeighbourAttribute::Destination(address.into()));
        self.send(RouteNetlinkMessage::NewNeighbour(request), NLM_F_ACK | netlink_flags)?;
        let mut result = None;
        while result.is_none() {
            let bytes = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            for message in Messages::of(&self.buffer[..bytes]) {
                if let NetlinkPayload::Error(answer) = message.payload
                    && message.header.sequence_number == self.sequence
                {
                    result = Some(if answer.code.is_some() { Err(answer.to_io()) } else { Ok(()) });
                }
            }
        }
        result.expect("the loop ended")
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn dump<T>(
        &mut self,
        action: &'static str,
        request: RouteNetlinkMessage,
        select: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for attempt in 1.. {
            self.send(request.clone(), NLM_F_DUMP).map_err(|e| KernelError::netlink(action, e))?;
            let (answers, is_consistent) = self.answers(&select).map_err(|e| KernelError::netlink(action, e))?;
            if is_consistent || attempt == DUMP_ATTEMPTS {
                return Ok(answers);
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The answers to a dump up to its end, and whether nothing changed while they were made.
    fn answers<T>(&mut self, select: impl Fn(RouteNetlinkMessage) -> Option<T>) -> io::Result<(Vec<T>, bool)> {
        let mut answers = Vec::new();
        let mut is_consistent = true;
        loop {
            let bytes = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            for message in Messages::of(&self.buffer[..bytes]) {
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an answer that an error cut short
                }
                is_consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.extend(select(answer)),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, is_consistent)),
                    _ => {}
                }
            }
        }
    }
}

/// A socket that hears of changes.
pub(super) struct Changes {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What [`Changes::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Changes, in order.
    Some(Vec<RouteNetlinkMessage>),
    /// None at this time.
    Nothing,
    /// The kernel had more to say than the receive buffer holds: some changes are lost for good.
    Overrun,
}

impl Changes {
    /// Subscribes. `receive_buffer` in bytes; the kernel caps it at net.core.rmem_max.
    pub(super) fn subscribe(receive_buffer: i32) -> Result<Self, KernelError> {
        let subscribe = || {
            let socket = open()?;
            socket.set_rx_buf_sz(receive_buffer)?;
            socket.set_non_blocking(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = subscribe().map_err(|e| KernelError::netlink("subscribe to changes", e))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES] })
    }

    /// One datagram of changes; does not block.
    pub(super) fn receive(&mut self) -> io::Result<Heard> {
        match self.socket.recv(&mut &mut self.buffer[..], 0) {
            Ok(bytes) => Ok(Heard::Some(
                Messages::of(&self.buffer[..bytes])
                    .filter_map(|message| match message.payload {
                        NetlinkPayload::InnerMessage(change) => Some(change),
                        _ => None,
                    })
                    .collect(),
            )),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Heard::Some(Vec::new())),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(Heard::Overrun),
            Err(e) => Err(e),
        }
    }

    /// Throws away what is queued. After an overrun the queue is older than the dump that follows, and the kernel
    /// queues nothing more until it is empty.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        while self.receive()? != Heard::Nothing {}
        Ok(())
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens a socket that hears the kernel only: a connected netlink socket refuses messages of other processes.
fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The messages of one datagram. One that cannot be read (an attribute of a newer kernel) is skipped.
struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn of(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl Iterator for Messages<'_> {
    type Item = NetlinkMessage<RouteNetlinkMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let length = NetlinkBuffer::new_checked(self.rest).ok()?.length() as usize;
            let (message, _) = self.rest.split_at(length);
            self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            match NetlinkMessage::deserialize(message) {
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%error, "a netlink message that cannot be read was skipped"),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour(index: u32) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        RouteNetlinkMessage::NewNeighbour(message)
    }

    fn inner(datagram: &[u8]) -> Vec<RouteNetlinkMessage> {
        Messages::of(datagram)
            .filter_map(|m| if let NetlinkPayload::InnerMessage(inner) = m.payload { Some(inner) } else { None })
            .collect()
    }

    #[test]
    fn an_unreadable_message_costs_only_itself() {
        let mut broken = bytes(neighbour(2));
        broken.extend_from_slice(&[3, 0, 1, 0]); // an attribute shorter than its own header
        let length = (broken.len() as u32).to_ne_bytes();
        broken[..4].copy_from_slice(&length);
        let datagram = [bytes(neighbour(1)), broken, bytes(neighbour(3))].concat();
        assert_eq!(inner(&datagram), [neighbour(1), neighbour(3)]);
    }

    #[test]
    fn no_datagram_makes_the_reader_panic_or_loop() {
        let whole = [bytes(neighbour(1)), bytes(neighbour(2))].concat();
        for cut in 0..whole.len() {
            assert!(inner(&whole[..cut]).len() <= 1);
        }
        for length in [0u32, 1, 15, 17, u32::MAX] {
            let mut lying = whole.clone();
            lying[..4].copy_from_slice(&length.to_ne_bytes());
            inner(&lying);
        }
    }
}
