//! Tells relay packets from answers of servers.
//!
//! Path: ip4_input -> here -> relay_input | nat_out2in | drop.
//! Reads: l3, l4, protocol. Writes: nothing.
//!
//! The XDP program has made the same choice already; here it is made again because frames also come from
//! elsewhere (another driver, a program of an older version), and a node must not trust what it can check.

use std::net::Ipv4Addr;

use super::{prelude::*, relay_input::ask_for_session};
use crate::{
    dataplane::nat::rewrite::{self as nat, Side},
    wire::{icmp, ip4, read_u16, read_u32, relay, tcp, udp},
};

node!(L4Classify, "l4_classify", [RelayInput, NatOut2in], l4_classify);

fn l4_classify(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let has_options = packet.l4 - packet.l3 != ip4::HEADER_BYTES as u16;
    let identity = &context.identity;
    let ip = packet.ip(frames);
    let [source, destination] = [ip4::SOURCE, ip4::DESTINATION].map(|at| Ipv4Addr::from_bits(read_u32(ip, at)));
    let transport = &ip[usize::from(packet.l4 - packet.l3)..];
    let port = match packet.protocol {
        ip4::UDP => {
            let Some(length) = udp::checked_length(transport) else { return Verdict::Drop(Reason::BadLength) };
            let port = read_u16(transport, udp::DESTINATION);
            if port == identity.data_port && destination == identity.address {
                return match () {
                    () if has_options => Verdict::Drop(Reason::Ip4Options),
                    () if length != transport.len() => Verdict::Drop(Reason::BadLength),
                    // Nodes send zero (none); a client's kernel sends a real one.
                    () if !udp::is_checksum_valid(source, destination, transport) => Verdict::Drop(Reason::BadChecksum),
                    () => {
                        if transport.len() >= udp::HEADER_BYTES + relay::HEADER_BYTES {
                            ask_for_session(context, &transport[udp::HEADER_BYTES..]);
                        }
                        Verdict::Next(NodeId::RelayInput)
                    }
                };
            }
            Some(port)
        }
        ip4::TCP => {
            if tcp::checked_header_length(transport).is_none() {
                return Verdict::Drop(Reason::BadLength);
            }
            nat::port(transport, ip4::TCP, Side::Destination)
        }
        ip4::ICMP => match transport.first() {
            Some(_) if transport.len() < icmp::HEADER_BYTES => return Verdict::Drop(Reason::TooShort),
            Some(kind) if icmp::is_reply(*kind) => nat::port(transport, ip4::ICMP, Side::Destination),
            Some(kind) if icmp::is_error(*kind) => return Verdict::Next(NodeId::NatOut2in),
            _ => return Verdict::Drop(Reason::UnknownProtocol),
        },
        _ => return Verdict::Drop(Reason::UnknownProtocol),
    };
    match port.and_then(|port| context.owner_of(packet.protocol, (destination, port))) {
        Some(_) => Verdict::Next(NodeId::NatOut2in),
        None => Verdict::Drop(Reason::NotOurPort),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::testing::*,
        wire::{icmp, ip4, tcp, udp, write},
    };

    #[test]
    fn what_is_not_ours_is_dropped_by_reason() {
        let mut bench = Bench::new();
        let udp = |port| frame(&udp_packet((SERVER, 53), (US, port), b"x"));
        bench.expect_drop(udp(DATA_PORT - 1), "l4_classify.drop.not_our_port");
        bench.expect_drop(udp(DATA_PORT + 10_000), "l4_classify.drop.not_our_port");
        let reset = tcp_packet((SERVER, 80), (US, 22), tcp::RST, &[]);
        bench.expect_drop(frame(&reset), "l4_classify.drop.not_our_port");
        let echo = icmp_packet(SERVER, US, icmp::ECHO_REQUEST, 0, &[0xa0, 0, 0, 1]);
        bench.expect_drop(frame(&echo), "l4_classify.drop.unknown_protocol");
        bench.expect_drop(frame(&packet(SERVER, US, 47, &[0; 8])), "l4_classify.drop.unknown_protocol");
        bench.expect_drop(frame(&packet(SERVER, US, ip4::ICMP, &[0; 5])), "l4_classify.drop.too_short");
        bench.expect_drop(frame(&packet(SERVER, US, ip4::TCP, &[0; 20])), "l4_classify.drop.bad_length");
    }

    #[test]
    fn a_wrong_outer_checksum_or_length_is_dropped() {
        let mut bench = Bench::new();
        let mut ip = udp_packet((UPSTREAM, 1), (US, DATA_PORT), b"payload");
        ip[27] ^= 1;
        bench.expect_drop(frame(&ip), "l4_classify.drop.bad_checksum");
        let mut ip = udp_packet((UPSTREAM, 1), (US, DATA_PORT), b"payload");
        write(&mut ip, 20 + udp::LENGTH, &200u16.to_be_bytes());
        bench.expect_drop(frame(&ip), "l4_classify.drop.bad_length");
        write(&mut ip, 20 + udp::LENGTH, &9u16.to_be_bytes());
        bench.expect_drop(frame(&ip), "l4_classify.drop.bad_length");
    }
}
