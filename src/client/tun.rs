//! The TUN device: where the host's own IP stack meets the overlay.
//!
//! The device has the inside addresses as a /32 and a /128, the session's MTU and the configured routes; device and routes go
//! away with the client. Non-blocking. The kernel leaves it to us to cut large TCP segments (and trains of
//! datagrams) into packets, and takes back what of one connection came together as one: a system call moves up to 64 KiB.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::{
    config::TunConfig,
    inside::Inside,
    routes,
    socket::{BATCH, Batch},
};
use crate::wire::relay::HEADER_BYTES;

/// Packets that one read may bring. A segment of 64 KiB is this many where a packet carries 512 bytes of it; one that
/// is more is dropped, and its sender comes back with less.
pub const PACKETS_A_READ: usize = 128;

/// The largest packet, with what the kernel says of it in front.
const WHOLE_BYTES: usize = VIRTIO_NET_HDR_LEN + 65_535;

/// An address that is not usable after this long will not be.
const USABLE_WITHIN: Duration = Duration::from_secs(5);

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
    pub fn create(config: &TunConfig, inside: Inside) -> Result<Self, String> {
        let explain = |error: io::Error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "; run as root or with CAP_NET_ADMIN, or leave [tun] out",
                io::ErrorKind::NotFound => "; the kernel has no /dev/net/tun: load the module tun",
                io::ErrorKind::ResourceBusy => "; an interface of this name is in use: choose another tun.name",
                _ => "",
            };
            format!("TUN device '{}' cannot be made: {error}{advice}", config.name)
        };
        let mut builder =
            DeviceBuilder::new().name(config.name.clone()).ipv4(inside.ip4, 32, None).mtu(config.mtu).offload(true);
        if let Some(ip6) = inside.ip6 {
            builder = builder.ipv6(ip6, 128);
        }
        let device = builder.enable(true).build_sync().map_err(explain)?;
        device.set_nonblocking(true).map_err(explain)?;
        let index = device.if_index().map_err(explain)?;
        let explain = |field: &str, prefix: String, error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("route {prefix} ({field}) exists already: remove it, or leave it out of {field}")
            }
            _ => format!("route {prefix} ({field}) cannot be added: {error}"),
        };
        for &prefix in &config.routes {
            routes::add(prefix, index, inside.ip4).map_err(|error| explain("tun.routes", prefix.to_string(), error))?;
        }
        for (&prefix, ip6) in config.routes6.iter().zip(std::iter::repeat(inside.ip6).flatten()) {
            once_usable(|| routes::add(prefix, index, ip6))
                .map_err(|error| explain("tun.routes6", prefix.to_string(), error))?;
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

/// The kernel makes a new address of IPv6 usable a moment after it was added, by a worker of its own (there is nobody to ask
/// whether it is a duplicate); until then it refuses routes that have it as their source.
fn once_usable(add: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + USABLE_WITHIN;
    loop {
        match add() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
