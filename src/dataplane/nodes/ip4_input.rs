//! Checks the IPv4 header; tells packets for this node from those that a gateway passes on.
//!
//! Path: ethernet_input -> here -> l4_classify | gateway_input | sv_reassembly | drop.
//! Reads: l3. Writes: l4, protocol, length (Ethernet padding is cut off).

use super::prelude::*;
use crate::{
    dataplane::{gateway::Realm, packet::Packet},
    wire::{ip4, read_u16, udp},
};

node!(Ip4Input, "ip4_input", [L4Classify, GatewayInput, SvReassembly], ip4_input);

fn ip4_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let header = match check(packet, frames) {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    let packet = *packet;
    let is_ours = context.is_ours(header.destination);
    match context.routes.realm(packet.interface) {
        Realm::Inside if !(is_ours && is_relay(context, frames, &packet, &header)) => {
            return Verdict::Next(NodeId::GatewayInput);
        }
        Realm::Outside if !is_ours => return Verdict::Next(NodeId::GatewayInput),
        _ => {}
    }
    if !is_ours {
        return Verdict::Drop(Reason::NotOurs);
    }
    // Relay packets are never fragments, so it is one from a server.
    Verdict::Next(if header.is_fragment() { NodeId::SvReassembly } else { NodeId::L4Classify })
}

/// Inside hosts may be clients of the overlay, too.
fn is_relay(context: &Context, frames: &mut Frames, packet: &Packet, header: &ip4::Header) -> bool {
    let transport = packet.transport(frames);
    header.protocol == ip4::UDP
        && !header.is_fragment()
        && header.destination == context.identity.address
        && transport.len() >= udp::HEADER_BYTES
        && read_u16(transport, udp::DESTINATION) == context.identity.data_port
}

/// Checks the IPv4 header at `l3` and sets what follows from it. Also done for an inner packet.
#[inline]
pub(super) fn check(packet: &mut Packet, frames: &mut Frames) -> Result<ip4::Header, Reason> {
    let header = ip4::parse(packet.ip(frames)).map_err(|malformed| match malformed {
        ip4::Malformed::TooShort => Reason::TooShort,
        ip4::Malformed::Version => Reason::BadVersion,
        ip4::Malformed::Length => Reason::BadLength,
        ip4::Malformed::Checksum => Reason::BadChecksum,
    })?;
    if ip4::has_source_route(&packet.ip(frames)[..header.header_length]) {
        return Err(Reason::SourceRoute);
    }
    packet.length = packet.l3 - packet.offset + header.total_length as u16;
    packet.l4 = packet.l3 + header.header_length as u16;
    packet.protocol = header.protocol;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::testing::*,
        wire::{checksum, ip4, write},
    };

    fn mangled(at: usize, value: u8, fix_checksum: bool) -> Vec<u8> {
        let mut ip = udp_packet((UPSTREAM, 1), (US, DATA_PORT), b"payload");
        ip[at] = value;
        if fix_checksum {
            write(&mut ip, ip4::CHECKSUM, &[0, 0]);
            let field = checksum::of(&ip[..20]);
            write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
        }
        frame(&ip)
    }

    #[test]
    fn each_fault_of_the_header_has_its_reason() {
        let mut bench = Bench::new();
        bench.expect_drop(frame(&[0x45; 19]), "ip4_input.drop.too_short");
        bench.expect_drop(mangled(0, 0x65, true), "ip4_input.drop.bad_version");
        bench.expect_drop(mangled(0, 0x44, true), "ip4_input.drop.bad_length");
        bench.expect_drop(mangled(3, 250, true), "ip4_input.drop.bad_length");
        bench.expect_drop(mangled(8, 1, false), "ip4_input.drop.bad_checksum");
        bench.expect_drop(mangled(19, 77, true), "ip4_input.drop.not_ours");
    }

    #[test]
    fn a_way_of_the_senders_choice_is_not_taken() {
        let mut bench = Bench::new();
        for option in [131, 137] {
            let mut ip = udp_packet((UPSTREAM, 1), (US, DATA_PORT), b"payload");
            // Behind a no-operation, and of a length that is no multiple of four.
            ip.splice(20..20, [1, option, 7, 4, 192, 0, 2, 9]);
            ip[0] = 0x47;
            let length = ip.len() as u16;
            write(&mut ip, ip4::TOTAL_LENGTH, &length.to_be_bytes());
            write(&mut ip, ip4::CHECKSUM, &[0, 0]);
            let field = checksum::of(&ip[..28]);
            write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
            bench.expect_drop(frame(&ip), "ip4_input.drop.source_route");
        }
    }

    #[test]
    fn ethernet_padding_is_cut_off() {
        let mut bench = Bench::new();
        bench.relay();
        let mut padded = Relayed::up(1, 1, vec![]).frame();
        padded.extend_from_slice(&[0xee; 9]);
        let out = bench.run(&[padded]);
        assert_eq!(bench.moved(), []);
        assert!(sent(&out[0], &DOWN_KEY).inner.is_empty());
    }
}
