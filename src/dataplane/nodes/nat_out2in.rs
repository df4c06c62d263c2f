//! The exit's NAT in the other direction: a server's packet finds its session by port.
//!
//! Path: l4_classify | nat_in2out (hairpin) -> here -> exit_down | icmp_error | handoff | drop.
//! Reads: l3, l4, protocol. Writes: slot, kind.
//!
//! A port belongs to a worker by its number ([`Identity::owner_of_port`]), so the packet finds its owner
//! before any table is looked at. Packets from outside do not keep a UDP or ICMP binding alive (RFC 4787
//! REQ-6, RFC 7857 section 2): else a stranger could hold it open.
//!
//! [`Identity::owner_of_port`]: crate::dataplane::forwarding::Identity::owner_of_port

use std::net::Ipv4Addr;

use super::{
    nat_in2out::{error, largest_segment, reason_of},
    prelude::*,
};
use crate::{
    dataplane::nat::{self, Quote, Side},
    wire::{icmp, ip4, relay, tcp},
};

node!(NatOut2in, "nat_out2in", [ExitDown, IcmpError, Handoff], nat_out2in);

fn nat_out2in(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let ip = packet.ip(frames);
    let header_length = usize::from(packet.l4 - packet.l3);
    let Ok(header) = ip4::parse(ip) else { return Verdict::Drop(Reason::BadLength) };
    let transport = &ip[header_length..];

    // An ICMP error finds its binding by the sender of the packet it quotes: us.
    let quote = match header.protocol {
        ip4::ICMP if icmp::is_error(transport[icmp::TYPE]) => match nat::quote(transport) {
            Ok(quote) => Some(quote),
            Err(bad) => return Verdict::Drop(reason_of(bad)),
        },
        _ => None,
    };
    let (protocol, port, remote) = match &quote {
        Some(quote) if quote.source.0 != context.identity.address => return Verdict::Drop(Reason::NotOurs),
        Some(quote) => (quote.protocol, Some(quote.source.1), quote.destination),
        None => {
            let remote = nat::port(transport, header.protocol, Side::Source).unwrap_or_default();
            (header.protocol, nat::port(transport, header.protocol, Side::Destination), (header.source, remote))
        }
    };
    let Some(port) = port else { return Verdict::Drop(Reason::UnknownProtocol) };
    match context.identity.owner_of_port(port) {
        None => return Verdict::Drop(Reason::NotOurPort),
        Some(owner) if owner != context.index => return context.hand_off(slot, owner, NodeId::NatOut2in),
        Some(_) => {}
    }
    let Some(index) = context.bindings.find_outside(protocol, port) else { return Verdict::Drop(Reason::NoMapping) };
    let Some(&binding) = context.bindings.get(index) else { return Verdict::Drop(Reason::NoMapping) };
    if binding.remote.is_some_and(|server| server != remote) {
        return Verdict::Drop(Reason::NotRemote);
    }
    let init = context.fans[context.slots[binding.slot as usize].fan as usize].init;
    if header.ttl <= 1 {
        return error(context, slot, icmp::TIME_EXCEEDED, 0, 0);
    }
    if header.total_length > usize::from(init.mtu) {
        if !header.is_dont_fragment() {
            return Verdict::Drop(Reason::TooBig);
        }
        return error(context, slot, icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, init.mtu);
    }

    let inside = (binding.inside_address, binding.inside_port);
    let ip = packet.ip(frames);
    ip4::decrement_ttl(ip);
    match quote {
        Some(quote) => translate_error(ip, header_length, &quote, inside),
        None => {
            nat::translate(ip, header_length, protocol, Side::Destination, inside.0, inside.1);
            if protocol == ip4::TCP {
                tcp::clamp_mss(&mut ip[header_length..], largest_segment(init.mtu));
            }
        }
    }
    let stamp = &context.published.bindings[index as usize];
    if protocol == ip4::TCP && quote.is_none() {
        stamp.touch(context.tick, header.total_length);
    } else {
        stamp.count(header.total_length);
    }
    let packet = &mut context.packets[slot];
    packet.slot = binding.slot;
    packet.kind = relay::Kind::DataDown;
    Verdict::Next(NodeId::ExitDown)
}

/// RFC 5508 REQ-4: the quoted packet becomes the one the client sent, the error itself goes to the client. Who
/// sent the error stays: a router on the way is seen as itself.
fn translate_error(ip: &mut [u8], header_length: usize, quote: &Quote, inside: (Ipv4Addr, u16)) {
    ip4::replace_address(ip, ip4::DESTINATION, inside.0);
    nat::translate_quote(&mut ip[header_length..], quote, Side::Source, inside.0, inside.1);
}
