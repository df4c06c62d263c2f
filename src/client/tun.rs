//! The TUN device: where the host's own IP stack meets the overlay.
//!
//! The device has the inside address as a /32, the session's MTU and the configured routes; device and routes go
//! away with the client. Non-blocking. The kernel leaves it to us to cut large TCP segments (and trains of
//! datagrams) into packets, and takes back what of one connection came together as one: a system call moves up to 64 KiB.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
};

use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::{
    config::TunConfig,
    drops::Reason,
    routes,
    socket::{BATCH, Batch},
};
use crate::wire::{ip4, relay::HEADER_BYTES};

/// Packets that one read may bring. A segment of 64 KiB is this many where a packet carries 512 bytes of it; one that
/// is more is dropped, and its sender comes back with less.
pub const PACKETS_A_READ: usize = 128;

/// The largest packet, with what the kernel says of it in front.
const WHOLE_BYTES: usize = VIRTIO_NET_HDR_LEN + 65_535;

/// The device.
pub struct Tun {
    device: SyncDevice,
    index: u32,
    /// A packet as the kernel gave it, before it is cut.
    whole: Box<[u8]>,
    /// On the way to the host: those at the front, each with room for the packets of its connection that follow it.
    arrived: Vec<Vec<u8>>,
    arrived_count: usize,
    joins: GROTable,
}

/// What a read brought.
pub enum Read {
    /// So many packets.
    Packets(usize),
    /// A packet that could not be cut.
    Bad,
    /// Nothing: there is none now.
    Nothing,
}

impl Tun {
    /// Creates the device and its routes. The error says what to do.
    pub fn create(config: &TunConfig, inside: Ipv4Addr) -> Result<Self, String> {
        let explain = |error: io::Error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "; run as root or with CAP_NET_ADMIN, or leave [tun] out",
                io::ErrorKind::NotFound => "; the kernel has no /dev/net/tun: load the module tun",
                io::ErrorKind::ResourceBusy => "; an interface of this name is in use: choose another tun.name",
                _ => "",
            };
            format!("TUN device '{}' cannot be made: {error}{advice}", config.name)
        };
        let device = DeviceBuilder::new()
            .name(config.name.clone())
            .ipv4(inside, 32, None)
            .mtu(config.mtu)
            .offload(true)
            .enable(true)
            .build_sync()
            .map_err(explain)?;
        device.set_nonblocking(true).map_err(explain)?;
        let index = device.if_index().map_err(explain)?;
        for &prefix in &config.routes {
            routes::add(prefix, index, inside).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    format!("route {prefix} (tun.routes) exists already: remove it, or leave it out of tun.routes")
                }
                _ => format!("route {prefix} (tun.routes) cannot be added: {error}"),
            })?;
        }
        Ok(Self {
            device,
            index,
            whole: vec![0; WHOLE_BYTES].into_boxed_slice(),
            arrived: (0..BATCH).map(|_| Vec::with_capacity(WHOLE_BYTES)).collect(),
            arrived_count: 0,
            joins: GROTable::default(),
        })
    }

    /// The kernel's number of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Reads what is next into the free places of `batch`, of which there must be [`PACKETS_A_READ`], each packet behind
    /// room for the relay header. An error is the device's end.
    pub fn read(&mut self, batch: &mut Batch) -> io::Result<Read> {
        let (places, lengths) = batch.free_places();
        loop {
            match self.device.recv_multiple(&mut self.whole, places, lengths, HEADER_BYTES) {
                Ok(count) => return Ok(Read::Packets(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not the kernel's: the packet was read, and is not what it is said to be, or too many.
                Err(error) if error.raw_os_error().is_none() => return Ok(Read::Bad),
                Err(error) => return Err(error),
            }
        }
    }

    /// Has a packet wait for [`Tun::deliver`], so that it may leave together with others.
    pub fn put(&mut self, packet: &[u8]) -> io::Result<()> {
        let place = &mut self.arrived[self.arrived_count];
        place.clear();
        place.resize(VIRTIO_NET_HDR_LEN, 0);
        place.extend_from_slice(packet);
        self.arrived_count += 1;
        if self.arrived_count == self.arrived.len() { self.deliver() } else { Ok(()) }
    }

    /// Hands what waits to the host's IP stack. An error where it did not take all of it.
    pub fn deliver(&mut self) -> io::Result<()> {
        let count = std::mem::take(&mut self.arrived_count);
        if count == 0 {
            return Ok(());
        }
        self.device.send_multiple(&mut self.joins, &mut self.arrived[..count], VIRTIO_NET_HDR_LEN).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// May this packet of the host go into the overlay?
#[inline]
pub fn admit(packet: &[u8], inside: Ipv4Addr) -> Result<(), Reason> {
    // The host's own packets: their checksums may be trusted, only the form is looked at.
    let header = ip4::parse_quoted(packet).map_err(|_| Reason::NotIp4)?;
    if header.total_length != packet.len() {
        return Err(Reason::NotIp4);
    }
    if header.source != inside { Err(Reason::NotInside) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

    #[test]
    fn only_well_formed_packets_from_the_inside_address_are_admitted() {
        let mut packet = vec![0; 28];
        ip4::emit(&mut packet, INSIDE, Ipv4Addr::new(198, 51, 100, 1), ip4::UDP, 28, 64);
        assert_eq!(admit(&packet, INSIDE), Ok(()));
        assert_eq!(admit(&packet, Ipv4Addr::new(100, 64, 0, 3)), Err(Reason::NotInside));
        assert_eq!(admit(&packet[..27], INSIDE), Err(Reason::NotIp4));
        assert_eq!(admit(&[], INSIDE), Err(Reason::NotIp4));
        packet[0] = 0x60;
        assert_eq!(admit(&packet, INSIDE), Err(Reason::NotIp4));
    }
}
