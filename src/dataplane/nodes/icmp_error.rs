//! Tells a packet's sender by ICMP why it goes no further (RFC 792, RFC 1812 section 4.3.2).
//!
//! Path: gateway_input | nat_in2out | nat_out2in -> here -> exit_down (to the client) | ip_output (to a server) | drop.
//! Reads: l3, from_inside, slot, icmp_type, icmp_code, mtu. Writes: offset, length, l3, l4, kind, destination.
//!
//! Sent only within a budget a tick, and never about an ICMP error, a fragment's tail, or a packet from an
//! address that is nobody's (RFC 1122 section 3.2.2).

use super::prelude::*;
use crate::{
    dataplane::outer,
    wire::{checksum, icmp, ip4, relay, write},
};

node!(IcmpError, "icmp_error", [ExitDown, IpOutput], icmp_error);

/// ICMP errors a worker sends a tick, at most: 1000 a second.
pub(in crate::dataplane) const ERRORS_A_TICK: u32 = 100;

/// The error, its own headers included, is at most as long as every host must accept (RFC 1812 4.3.2.3).
const LENGTH_MAX: usize = 576;

/// Bytes before the quoted packet.
const HEADERS: usize = ip4::HEADER_BYTES + icmp::HEADER_BYTES;

fn icmp_error(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let Ok(header) = ip4::parse(packet.ip(frames)) else { return Verdict::Drop(Reason::ErrorUnanswered) };
    let is_error = header.protocol == ip4::ICMP
        && packet.transport(frames).first().is_none_or(|kind| !matches!(*kind, icmp::ECHO_REQUEST | icmp::ECHO_REPLY));
    let source = header.source;
    let is_nobody = source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback();
    if is_error || is_nobody || header.fragment & 0x1fff != 0 || context.icmp_budget == 0 {
        return Verdict::Drop(Reason::ErrorUnanswered);
    }
    context.icmp_budget -= 1;

    let quoted = header.total_length.min(LENGTH_MAX - HEADERS);
    packet.length = packet.l3 - packet.offset + quoted as u16;
    outer::place(packet, usize::from(packet.l3) - HEADERS);
    packet.protocol = ip4::ICMP;
    packet.destination = source;
    packet.kind = relay::Kind::DataDown;
    let packet = *packet;
    // Its sender knows us as the router on its link; a client of the overlay, as the exit.
    let gateway = context.routes.forwarding().gateway.as_ref().filter(|_| !packet.from_inside);
    let from = gateway.and_then(|gateway| gateway.router(packet.interface)).unwrap_or(context.identity.address);
    let ip = packet.ip(frames);
    let length = ip.len() as u16;
    ip4::emit(ip, from, source, ip4::ICMP, length, 64);
    ip4::set_type_of_service(ip, ip4::INTERNETWORK_CONTROL);
    let message = &mut ip[ip4::HEADER_BYTES..];
    message[..icmp::HEADER_BYTES].fill(0);
    message[icmp::TYPE] = packet.icmp_type;
    message[icmp::CODE] = packet.icmp_code;
    write(message, icmp::NEXT_HOP_MTU, &packet.mtu.to_be_bytes());
    let field = checksum::of(message);
    write(message, icmp::CHECKSUM, &field.to_be_bytes());
    Verdict::Next(if packet.from_inside { NodeId::ExitDown } else { NodeId::IpOutput })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{conntrack::NO_BINDING, testing::*},
        limits::TICK,
    };

    #[test]
    fn no_more_errors_than_the_budget_are_sent_a_tick() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let big = frame(&udp_packet((SERVER, 53), (US, 41_000), &[0; 1400]));
        let flood = vec![big; ERRORS_A_TICK as usize + 5];
        assert_eq!(bench.run(&flood).len(), ERRORS_A_TICK as usize);
        assert_eq!(bench.moved(), [("icmp_error.drop.error_unanswered".to_owned(), 5)]);
        bench.now += TICK;
        assert_eq!(bench.run(&flood[..1]).len(), 1);
    }

    #[test]
    fn no_error_is_sent_about_an_error_or_to_nobody() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let quoted = udp_packet((US, 41_000), (SERVER, 53), b"question");
        let rest: Vec<u8> = [0; 4].into_iter().chain(quoted).collect();
        let mut error = icmp_packet(ROUTER, US, icmp::UNREACHABLE, 1, &rest);
        error[ip4::TTL] = 1;
        write(&mut error, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&error[..20]);
        write(&mut error, ip4::CHECKSUM, &field.to_be_bytes());
        bench.expect_drop(frame(&error), "icmp_error.drop.error_unanswered");
        let nobody = std::net::Ipv4Addr::new(224, 0, 0, 1);
        let big = udp_packet((nobody, 53), (US, 41_000), &[0; 1400]);
        bench.expect_drop(frame(&big), "icmp_error.drop.error_unanswered");
    }
}
