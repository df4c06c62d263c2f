//! A server on the internet: echoes UDP, accepts or refuses TCP, answers pings, and keeps what it was sent. Of IPv6 it knows UDP
//! and pings.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::packets;
use crate::{
    dataplane::testing6::{error6_packet, has_valid_checksums6, icmp6_packet, udp6_packet},
    wire::{icmp, icmp6, ip4, ip6, read_u16, tcp, udp},
};

/// UDP port that echoes and TCP port that accepts. UDP to any other port is answered "port unreachable", a SYN to any
/// other by RST.
pub(super) const OPEN_PORT: u16 = 7;

/// UDP port that takes everything and answers nothing.
pub(super) const SILENT_PORT: u16 = 9;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: Ipv4Addr,
    pub(super) address6: Ipv6Addr,
    /// Every IP packet that came.
    pub(super) received: Vec<Vec<u8>>,
}

impl Server {
    pub(super) fn new(address: Ipv4Addr, address6: Ipv6Addr) -> Self {
        Self { address, address6, received: Vec::new() }
    }

    /// The source and payload of each UDP packet that came to `port`.
    pub(super) fn datagrams(&self, port: u16) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let parse = |packet: &Vec<u8>| {
            let (source, destination, payload) = packets::parse_udp(packet)?;
            (destination.port() == port).then(|| (source, payload.to_vec()))
        };
        self.received.iter().filter_map(parse).collect()
    }

    /// Takes a packet; the answer to it.
    pub(super) fn on_packet(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.received.push(packet.to_vec());
        if packet[0] >> 4 == 6 {
            return self.on_packet6(packet);
        }
        let protocol = ip4::parse(packet).expect("the exit sends well-formed packets").protocol;
        match protocol {
            ip4::UDP => {
                let (client, server, payload) = packets::parse_udp(packet).expect("a valid checksum");
                match server.port() {
                    OPEN_PORT => Some(packets::udp(server, client, payload)),
                    SILENT_PORT => None,
                    _ => Some(packets::unreachable(self.address, 3, packet)),
                }
            }
            ip4::TCP => {
                let (client, server, flags) = packets::parse_tcp(packet).expect("a valid checksum");
                if flags & (tcp::SYN | tcp::ACK | tcp::RST) != tcp::SYN {
                    return None;
                }
                let answer = if server.port() == OPEN_PORT { tcp::SYN } else { tcp::RST };
                Some(packets::tcp(server, client, answer | tcp::ACK))
            }
            _ => {
                let (client, server, message) = packets::parse_icmp(packet).expect("a valid checksum");
                let identifier = read_u16(message, icmp::IDENTIFIER);
                let payload = &message[icmp::HEADER_BYTES..];
                (message[icmp::TYPE] == icmp::ECHO_REQUEST)
                    .then(|| packets::echo(icmp::ECHO_REPLY, server, client, identifier, payload))
            }
        }
    }

    fn on_packet6(&self, packet: &[u8]) -> Option<Vec<u8>> {
        assert!(has_valid_checksums6(packet), "the exit sends well-formed packets");
        let header = ip6::parse(packet).expect("it was read in the line above");
        let (client, us, transport) = (header.source, header.destination, &packet[header.header_length..]);
        match header.protocol {
            ip4::UDP => {
                let ports = [udp::SOURCE, udp::DESTINATION].map(|at| read_u16(transport, at));
                match ports[1] {
                    OPEN_PORT => {
                        Some(udp6_packet((us, OPEN_PORT), (client, ports[0]), &transport[udp::HEADER_BYTES..]))
                    }
                    SILENT_PORT => None,
                    _ => Some(error6_packet(us, client, icmp6::UNREACHABLE, icmp6::CODE_PORT, [0; 4], packet)),
                }
            }
            ip6::ICMP if transport[icmp::TYPE] == icmp6::ECHO_REQUEST => {
                Some(icmp6_packet(us, client, icmp6::ECHO_REPLY, 0, &transport[icmp::IDENTIFIER..]))
            }
            _ => None,
        }
    }
}
