//! Tells a packet's sender by ICMP why it goes no further (RFC 792, RFC 1812 section 4.3.2).
//!
//! Path: gateway_input | nat_in2out | nat_out2in -> here -> exit_down (to the client) | ip_output (to a server) | handoff |
//! drop.
//! Reads: l3, from_inside, slot, icmp_type, icmp_code, mtu. Writes: offset, length, l3, l4, kind, destination.
//!
//! A hairpinned packet has one of our own addresses as its sender once it comes to the worker of the host it is for. The
//! error goes back to the worker of the host that sent it, and through the NAT there like one from a router outside.
//!
//! That a host is unreachable shows only after the NAT, when its next hop has not answered: that error is made between two
//! sweeps ([`host_unreachable`]).
//!
//! Sent only within a budget a tick, and never about an ICMP error, a fragment's tail, or a packet from an
//! address that is nobody's (RFC 1122 section 3.2.2).

use super::prelude::*;
use crate::{
    Nanos, SECOND,
    dataplane::{
        gateway::Realm,
        nat::{
            Endpoint,
            rewrite::{self, Side},
        },
        outer,
        packet::{Fragment, Packet},
        tick::Tick,
    },
    wire::{checksum, icmp, ip4, relay, write},
};

node!(IcmpError, "icmp_error", [ExitDown, IpOutput, Handoff], icmp_error);

/// ICMP errors a worker sends a second, at most.
const ERRORS_A_SECOND: u32 = 1000;

/// Those of a tick.
pub(in crate::dataplane) fn budget(tick: Tick) -> u32 {
    (Nanos::from(ERRORS_A_SECOND) * tick.times(1) / SECOND) as u32
}

/// The error, its own headers included, is at most as long as every host must accept (RFC 1812 4.3.2.3).
const LENGTH_MAX: usize = 576;

/// Bytes before the quoted packet.
const HEADERS: usize = ip4::HEADER_BYTES + icmp::HEADER_BYTES;

fn icmp_error(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let mut packet = context.packets[slot];
    if let Err(reason) = become_error(context, frames, &mut packet) {
        return Verdict::Drop(reason);
    }
    context.packets[slot] = packet;
    if context.bindings.outside().contains(packet.destination) {
        let quote = rewrite::quote(packet.transport(frames)).ok();
        return hand_back(context, slot, quote.map(|quote| (quote.protocol, quote.source)), NodeId::NatOut2in);
    }
    Verdict::Next(if packet.from_inside { NodeId::ExitDown } else { NodeId::IpOutput })
}

/// An error about a hairpinned packet of this protocol and outside endpoint goes to the worker that has them.
pub(super) fn hand_back(
    context: &mut Context,
    slot: usize,
    sender: Option<(u8, Endpoint)>,
    resume_at: NodeId,
) -> Verdict {
    match sender.and_then(|(protocol, outside)| context.owner_of(protocol, outside)) {
        Some(owner) if owner != context.index => {
            // It is a packet of its own, and the last one: nothing is said about an error.
            context.packets[slot].handoffs = 0;
            context.hand_off(slot, owner, resume_at)
        }
        _ => Verdict::Drop(Reason::ErrorUnanswered),
    }
}

/// The packet becomes the error about it, to its sender.
pub(in crate::dataplane) fn become_error(
    context: &mut Context,
    frames: &mut Frames,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let Ok(header) = ip4::parse(packet.ip(frames)) else { return Err(Reason::ErrorUnanswered) };
    let is_error = header.protocol == ip4::ICMP
        && packet.transport(frames).first().is_none_or(|kind| !icmp::is_request(*kind) && !icmp::is_reply(*kind));
    let source = header.source;
    let is_nobody = source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback();
    if is_error || is_nobody || header.fragment & 0x1fff != 0 || context.icmp_budget == 0 {
        return Err(Reason::ErrorUnanswered);
    }
    context.icmp_budget -= 1;

    let quoted = header.total_length.min(LENGTH_MAX - HEADERS);
    packet.length = packet.l3 - packet.offset + quoted as u16;
    outer::place(packet, usize::from(packet.l3) - HEADERS);
    packet.protocol = ip4::ICMP;
    packet.destination = source;
    packet.kind = relay::Kind::DataDown;
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
    Ok(())
}

/// A packet that has been through the NAT, if it needed to, cannot be delivered: nobody answers at its next hop. It becomes
/// "host unreachable", and the node is returned that the error starts at: it takes the NAT's way back, so that it quotes
/// what its receiver sent or was sent. `None`: there is nobody to tell.
pub(in crate::dataplane) fn host_unreachable(
    context: &mut Context,
    frames: &mut Frames,
    packet: &mut Packet,
) -> Option<NodeId> {
    let header = ip4::parse(packet.ip(frames)).ok()?;
    let is_relayed = header.protocol == ip4::UDP && {
        let transport = packet.transport(frames);
        let [from, to] = [Side::Source, Side::Destination].map(|side| rewrite::port(transport, ip4::UDP, side));
        let ends = from.zip(to).map(|(from, to)| ((header.source, from), (header.destination, to)));
        ends.is_some_and(|(source, destination)| context.is_relayed(source, destination))
    };
    if is_relayed {
        return None;
    }
    packet.icmp_type = icmp::UNREACHABLE;
    packet.icmp_code = icmp::CODE_HOST;
    packet.mtu = 0;
    packet.from_inside = false;
    packet.slot = Packet::NO_SLOT;
    packet.fragment = Fragment::No;
    become_error(context, frames, packet).ok()?;
    let (from, to) = (*context.routes.lookup(header.source), *context.routes.lookup(header.destination));
    let is_from_us = context.is_ours(header.source);
    let is_to_host = to.realm == Realm::Inside && (is_from_us || from.realm == Realm::Outside && !from.is_exempt);
    Some(match () {
        () if is_to_host => NodeId::NatIn2out,
        () if is_from_us => NodeId::NatOut2in,
        () => NodeId::IpOutput,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            command::{Command, Event, PuntCause},
            conntrack::NO_BINDING,
            nat::Owner,
            testing::*,
        },
        limits::TICK,
    };

    #[test]
    fn no_more_errors_than_the_budget_are_sent_a_tick() {
        let mut bench = Bench::new();
        bench.exit(1, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let big = frame(&udp_packet((SERVER, 53), (US, 41_000), &[0; 1400]));
        let flood = vec![big; budget(Tick::DEFAULT) as usize + 5];
        assert_eq!(bench.run(&flood).len(), budget(Tick::DEFAULT) as usize);
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

    /// Has a packet wait in vain for `next_hop`; what is sent then.
    fn in_vain(bench: &mut Bench, interface: u8, ip: &[u8]) -> Vec<(u8, Vec<u8>)> {
        assert_eq!(bench.run_at(interface, &[ip.to_vec()]), []);
        let Ok(Event::Punt { waiting, cause: PuntCause::NoAdjacency { .. } }) = bench.events.pop() else {
            panic!("it does not wait for a next hop: {:?}", bench.moved())
        };
        bench.commands.push(Command::Refuse { waiting, reason: Reason::Unresolved }).unwrap();
        bench.run_at(interface, &[])
    }

    /// No next hop is known.
    fn gateway_of_the_deaf() -> Bench {
        let mut bench = Bench::new();
        bench.gateway();
        bench.bind_for(Owner::INSIDE, ip4::UDP, 1000, 41_000, None);
        bench
    }

    fn forget(bench: &mut Bench, interface: u8) {
        bench.change_forwarding(|forwarding| {
            forwarding.adjacencies.retain(|adjacency| adjacency.interface != interface)
        });
    }

    #[test]
    fn a_host_hears_that_the_router_outside_does_not_answer_about_the_packet_it_sent() {
        let mut bench = gateway_of_the_deaf();
        forget(&mut bench, 0);
        let sent = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
        let out = in_vain(&mut bench, 1, &sent);
        assert_eq!(out.len(), 1, "{:?}", bench.moved());
        let (interface, ip) = (out[0].0, &out[0].1[14..]);
        assert_eq!((interface, &ip[16..20], &ip[20..22]), (1, &INSIDE.octets()[..], &[3, 1][..]));
        assert!(has_valid_checksums(ip));
        let mut expected = sent;
        ip4::decrement_ttl(&mut expected);
        assert_eq!(ip[28..], expected);
    }

    #[test]
    fn a_server_hears_that_an_inside_host_does_not_answer_and_not_who_it_is() {
        let mut bench = gateway_of_the_deaf();
        forget(&mut bench, 1);
        let sent = udp_packet((SERVER, 53), (US, 41_000), b"answer");
        let out = in_vain(&mut bench, 0, &sent);
        assert_eq!(out.len(), 1, "{:?}", bench.moved());
        let (interface, ip) = (out[0].0, &out[0].1[14..]);
        assert_eq!((interface, &ip[12..16], &ip[16..20]), (0, &US.octets()[..], &SERVER.octets()[..]));
        assert_eq!(ip[20..22], [3, 1]);
        assert!(has_valid_checksums(ip));
        let mut expected = sent;
        ip4::decrement_ttl(&mut expected);
        assert_eq!(ip[28..], expected);
    }
}
