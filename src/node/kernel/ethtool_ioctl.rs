//! The ethtool ioctl: what a driver tells of its NIC and does to it (`linux/ethtool.h`).

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `TCP_V4_FLOW` and so on: kinds of packets.
pub(super) const TCP4: u32 = 1;
pub(super) const UDP4: u32 = 2;
pub(super) const TCP6: u32 = 5;
pub(super) const UDP6: u32 = 6;

/// Words of `struct ethtool_rxnfc`.
pub(super) const RXNFC_WORDS: usize = 48;

/// One ethtool request; the driver writes its answer over it.
pub(super) fn ask(name: &str, request: &mut [u32]) -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte as libc::c_char);
    let ifru_data = request.as_mut_ptr().cast();
    let mut ifreq = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data } };
    // SAFETY: the kernel reads and writes `ifreq`, which lives, and what `ifru_data` points to: no more than the
    // structure of the command with what follows it in the sizes that it names, for which `request` has room.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) }).map(drop)
}
