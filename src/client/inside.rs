//! The client's addresses inside the overlay: what its inner packets are from, and what those it is sent are to.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::drops::Reason;
use crate::wire::{ip4, ip6};

/// One of IPv4, and perhaps one of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Of IPv4.
    pub ip4: Ipv4Addr,
    /// Of IPv6; none: the session carries no IPv6.
    pub ip6: Option<Ipv6Addr>,
}

impl From<Ipv4Addr> for Inside {
    fn from(ip4: Ipv4Addr) -> Self {
        Self { ip4, ip6: None }
    }
}

impl Inside {
    /// May this packet of the host go into the overlay? Its checksums may be trusted, only the form is looked at.
    #[inline]
    pub fn admit(&self, packet: &[u8]) -> Result<(), Reason> {
        let (length, is_from_us) = match version(packet) {
            6 => {
                let header = ip6::parse_quoted(packet).map_err(|_| Reason::NotIp)?;
                (header.total_length, Some(header.source) == self.ip6)
            }
            _ => {
                let header = ip4::parse_quoted(packet).map_err(|_| Reason::NotIp)?;
                (header.total_length, header.source == self.ip4)
            }
        };
        match is_from_us {
            _ if length != packet.len() => Err(Reason::NotIp),
            true => Ok(()),
            false => Err(Reason::NotInside),
        }
    }

    /// Is this packet from the overlay for us? Its length, for what is behind it is not part of it.
    #[inline]
    pub fn accept(&self, packet: &[u8]) -> Result<usize, Reason> {
        let (length, is_for_us) = match version(packet) {
            6 => {
                let header = ip6::parse(packet).map_err(|_| Reason::NotIp)?;
                (header.total_length, Some(header.destination) == self.ip6)
            }
            _ => {
                let header = ip4::parse(packet).map_err(|_| Reason::NotIp)?;
                (header.total_length, header.destination == self.ip4)
            }
        };
        if is_for_us { Ok(length) } else { Err(Reason::NotForUs) }
    }
}

impl Display for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ip6 {
            None => write!(f, "{}", self.ip4),
            Some(ip6) => write!(f, "{}, {ip6}", self.ip4),
        }
    }
}

#[inline]
fn version(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |first| first >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Inside =
        Inside { ip4: Ipv4Addr::new(100, 64, 0, 2), ip6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)) };
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    fn four(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; 28];
        ip4::emit(&mut packet, source, destination, ip4::UDP, 28, 64);
        packet
    }

    fn six(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut packet = vec![0; 48];
        ip6::emit(&mut packet, source, destination, ip4::UDP, 8, 64);
        packet
    }

    #[test]
    fn only_well_formed_packets_from_an_inside_address_are_admitted() {
        let sent = six(INSIDE.ip6.unwrap(), SERVER6);
        for (packet, other) in [(four(INSIDE.ip4, SERVER), four(SERVER, SERVER)), (sent, six(SERVER6, SERVER6))] {
            assert_eq!(INSIDE.admit(&packet), Ok(()));
            assert_eq!(INSIDE.admit(&packet[..packet.len() - 1]), Err(Reason::NotIp));
            assert_eq!(INSIDE.admit(&[&packet[..], &[0]].concat()), Err(Reason::NotIp));
            assert_eq!(INSIDE.admit(&other), Err(Reason::NotInside));
        }
        assert_eq!(INSIDE.admit(&[]), Err(Reason::NotIp));
        assert_eq!(INSIDE.admit(&[0x50; 60]), Err(Reason::NotIp));
    }

    #[test]
    fn only_packets_to_an_inside_address_are_accepted_and_padding_is_cut_off() {
        let received = six(SERVER6, INSIDE.ip6.unwrap());
        for (packet, other) in [(four(SERVER, INSIDE.ip4), four(SERVER, SERVER)), (received, six(SERVER6, SERVER6))] {
            assert_eq!(INSIDE.accept(&packet), Ok(packet.len()));
            assert_eq!(INSIDE.accept(&[&packet[..], &[0; 3]].concat()), Ok(packet.len()));
            assert_eq!(INSIDE.accept(&packet[..packet.len() - 1]), Err(Reason::NotIp));
            assert_eq!(INSIDE.accept(&other), Err(Reason::NotForUs));
        }
    }

    #[test]
    fn without_an_address_of_ipv6_nothing_of_it_passes() {
        let inside = Inside { ip6: None, ..INSIDE };
        assert_eq!(inside.admit(&six(Ipv6Addr::UNSPECIFIED, SERVER6)), Err(Reason::NotInside));
        assert_eq!(inside.accept(&six(SERVER6, INSIDE.ip6.unwrap())), Err(Reason::NotForUs));
    }
}
