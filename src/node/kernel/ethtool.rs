//! Notifications of what is changed with `ethtool`, by generic netlink (genetlink(7), ethtool-netlink in the kernel's documentation).
//!
//! What changed is not read out of them, since they do not come for everything: for the number of queues they do, for RSS
//! from Linux 6.17 on. Who hears one looks at all there is.

use std::{io, os::fd::AsFd};

use netlink_packet_core::{Emitable, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// GENL_ID_CTRL, the family of families, and its request for one.
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const NETLINK_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// NLMSG_ERROR.
const ERROR: u16 = 2;

/// The family, and the group of those who want to hear of changes.
const FAMILY: &str = "ethtool";
const GROUP: &str = "monitor";

/// A socket that hears of changes.
pub(super) struct EthtoolChanges {
    socket: Socket,
}

impl EthtoolChanges {
    /// Subscribes, in the network namespace of the calling thread. An error: the kernel has no such notifications.
    pub(super) fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&question(), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        socket.add_membership(group_of(&answer)?)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Takes all notifications that have come. True where there were any, or too many to be kept.
    pub(super) fn take(&mut self) -> bool {
        let mut has_heard = false;
        // Only how many there are counts: what does not fit is cut off.
        let mut first_bytes = [0; 64];
        loop {
            match self.socket.recv(&mut &mut first_bytes[..], 0) {
                Ok(_) => has_heard = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return has_heard,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel had more to say than fits.
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for EthtoolChanges {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for the family and its groups.
fn question() -> Vec<u8> {
    let name = [FAMILY.as_bytes(), &[0]].concat();
    let attribute_length = 4 + name.len();
    let mut header = NetlinkHeader::default();
    header.message_type = CONTROLLER;
    header.flags = NLM_F_REQUEST;
    header.sequence_number = 1;
    header.length = (NETLINK_HEADER + GENERIC_HEADER + attribute_length.next_multiple_of(4)) as u32;
    let mut bytes = vec![0; header.length as usize];
    header.emit(&mut bytes[..NETLINK_HEADER]);
    bytes[NETLINK_HEADER..][..2].copy_from_slice(&[CTRL_CMD_GETFAMILY, 1]);
    let attribute = &mut bytes[NETLINK_HEADER + GENERIC_HEADER..];
    attribute[..2].copy_from_slice(&(attribute_length as u16).to_ne_bytes());
    attribute[2..4].copy_from_slice(&CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    attribute[4..][..name.len()].copy_from_slice(&name);
    bytes
}

/// The number of the group, out of the answer.
fn group_of(answer: &[u8]) -> io::Result<u32> {
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if message.message_type() == ERROR {
        let code = message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        return Err(io::Error::from_raw_os_error(-code));
    }
    let attributes = message.payload().get(GENERIC_HEADER..).unwrap_or_default();
    let groups = find(attributes, CTRL_ATTR_MCAST_GROUPS).unwrap_or_default();
    let is_ours = |group: &&[u8]| {
        let name = find(group, CTRL_ATTR_MCAST_GRP_NAME);
        name.is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(name) == GROUP.as_bytes())
    };
    let groups: Vec<&[u8]> = all(groups).map(|(_, value)| value).collect();
    let group = groups.into_iter().find(is_ours).and_then(|group| find(group, CTRL_ATTR_MCAST_GRP_ID));
    let number = group.and_then(|id| Some(u32::from_ne_bytes(*id.first_chunk()?)));
    number.ok_or_else(|| io::Error::other("the kernel has no notifications of ethtool"))
}

/// The attributes in `bytes`, as far as they can be read: kind and value.
fn all(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let value = 4..usize::from(attribute.length());
        (attribute.kind(), &attribute.into_inner()[value])
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    all(bytes).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [((4 + value.len()) as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = (NETLINK_HEADER + GENERIC_HEADER + attributes.len()) as u32;
        header.message_type = CONTROLLER;
        let mut bytes = vec![0; NETLINK_HEADER + GENERIC_HEADER];
        header.emit(&mut bytes[..NETLINK_HEADER]);
        bytes.extend_from_slice(attributes);
        bytes
    }

    #[test]
    fn the_group_is_found_by_its_name() {
        let group = |name: &[u8], number: u32| {
            [attribute(CTRL_ATTR_MCAST_GRP_ID, &number.to_ne_bytes()), attribute(CTRL_ATTR_MCAST_GRP_NAME, name)]
                .concat()
        };
        let groups = [attribute(1, &group(b"other\0", 7)), attribute(2, &group(b"monitor\0", 8))].concat();
        let whole = answer(&[attribute(1, &[20, 0]), attribute(CTRL_ATTR_MCAST_GROUPS, &groups)].concat());
        assert_eq!(group_of(&whole).unwrap(), 8);
        assert!(group_of(&answer(&attribute(CTRL_ATTR_MCAST_GROUPS, &attribute(1, &group(b"other\0", 7))))).is_err());
        assert!((0..whole.len()).all(|length| group_of(&whole[..length]).is_err()));
    }

    #[test]
    fn the_kernels_error_is_told() {
        let mut header = NetlinkHeader::default();
        (header.length, header.message_type) = (36, ERROR);
        let mut bytes = vec![0; 36];
        header.emit(&mut bytes[..NETLINK_HEADER]);
        bytes[NETLINK_HEADER..][..4].copy_from_slice(&(-2i32).to_ne_bytes());
        assert_eq!(group_of(&bytes).unwrap_err().raw_os_error(), Some(2));
    }
}
