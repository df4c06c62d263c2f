//! What the kernel says of an interface, as far as AF_XDP cares: index, MTU, queues, the XDP program on it.
//!
//! Asked by netlink and ioctl, which answer for the calling thread's network namespace; /sys answers for the one it was
//! mounted in.

use std::{
    io, mem,
    os::fd::{AsRawFd, RawFd},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;

use super::{error::Error, program::AttachMode};
use crate::dataplane::rss::Queues;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The kernel's index.
    pub(super) index: u32,
    /// Bytes of IP packet.
    pub(super) mtu: u32,
    /// The XDP program on it: its id, and where it sits.
    pub(super) program: Option<(u32, AttachMode)>,
}

/// Looks up an interface by name.
pub(super) fn find(name: &str) -> Result<Link, Error> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.into()));
    let message = call(RouteNetlinkMessage::GetLink(request), 0).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV | libc::ERANGE | libc::EINVAL) => Error::NoInterface { name: name.into() },
        _ => Error::system(format!("interface {name}: asking for it"), error),
    })?;
    let Some(RouteNetlinkMessage::NewLink(reply)) = message else {
        return Err(Error::NoInterface { name: name.into() });
    };
    let mut link = Link { index: reply.header.index, mtu: 0, program: None };
    for attribute in &reply.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(xdp) => link.program = attached_program(xdp),
            _ => {}
        }
    }
    Ok(link)
}

fn attached_program(attributes: &[LinkXdp]) -> Option<(u32, AttachMode)> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    })?;
    let is_generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    Some((id, if is_generic { AttachMode::Generic } else { AttachMode::Native }))
}

/// Takes off the XDP program that was attached by netlink. The kernel refuses (EBUSY) where a living process holds it
/// by a bpf_link.
pub(super) fn detach(index: u32, mode: AttachMode) -> io::Result<()> {
    set_program(index, -1, mode)
}

/// Attaches the XDP program of this descriptor by netlink, which outlives the process; -1 detaches.
pub(super) fn set_program(index: u32, program: RawFd, mode: AttachMode) -> io::Result<()> {
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let flags = match mode {
        AttachMode::Native => XDP_FLAGS_DRV_MODE,
        AttachMode::Generic => XDP_FLAGS_SKB_MODE,
    };
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(program), LinkXdp::Flags(flags)]));
    call(RouteNetlinkMessage::SetLink(request), NLM_F_ACK).map(|_| ())
}

/// One request, one answer.
fn call(request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).map_err(io::Error::other)?;
    match reply.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// Its receive queues. An interface whose driver does not tell has one.
pub fn receive_queues(name: &str) -> Result<Queues, Error> {
    /// `struct ethtool_channels` of include/uapi/linux/ethtool.h.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        rx_max: u32,
        tx_max: u32,
        other_max: u32,
        combined_max: u32,
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    const ETHTOOL_GCHANNELS: u32 = 0x3c;

    let failed = |error| Error::system(format!("interface {name}: asking for its queues"), error);
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: plain integers and pointers, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Error::NoInterface { name: name.into() });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: the request names a zero-terminated interface and points to a `struct ethtool_channels` that outlives the
    // call, as ETHTOOL_GCHANNELS asks for.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 {
        let Channels { rx, combined, rx_max, combined_max, .. } = channels;
        return Ok(Queues { rx, combined, rx_max, combined_max });
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Ok(Queues::ONE),
        Some(libc::ENODEV) => Err(Error::NoInterface { name: name.into() }),
        _ => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_with_one_queue_and_no_program() {
        let link = find("lo").unwrap();
        assert_eq!((link.index, link.program), (1, None));
        assert!(link.mtu > 0);
        assert_eq!(receive_queues("lo").unwrap(), Queues::ONE);
    }

    #[test]
    fn an_absent_interface_is_named_in_the_error() {
        for name in ["starnet-none", "a-name-that-is-longer-than-the-kernel-allows"] {
            assert!(find(name).unwrap_err().to_string().contains(name));
            assert!(receive_queues(name).unwrap_err().to_string().contains(name));
        }
    }
}
