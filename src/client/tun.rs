//! The TUN device: where the host's own IP stack meets the overlay.
//!
//! The device has the inside address as a /32, the session's MTU and the configured routes; device and routes go
//! away with the client. Non-blocking, one packet a system call.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::{config::TunConfig, drops::Reason, routes};
use crate::wire::ip4;

/// The device.
pub struct Tun {
    device: SyncDevice,
    index: u32,
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
        Ok(Self { device, index })
    }

    /// The kernel's number of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Reads the next packet, where there is one; an error that is not "none" is the device's end.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.device.recv(packet) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands a packet to the host's IP stack.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).map(drop)
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
