//! Checks the IPv6 header; tells packets for this node from those that a gateway passes on.
//!
//! Path: ethernet_input -> here -> gateway6_input | nat6_out2in | sv_reassembly (a fragment) | drop.
//! Reads: l3. Writes: l4, protocol, length (Ethernet padding is cut off).
//!
//! Nodes speak IPv4 with each other, so what comes to an address of ours is an answer to a host of the gateway, or to a
//! client.

use super::prelude::*;
use crate::{
    dataplane::{gateway::Realm, packet::Packet},
    wire::ip6,
};

node!(Ip6Input, "ip6_input", [Gateway6Input, Nat6Out2in, SvReassembly], ip6_input);

fn ip6_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let header = match check(packet, frames) {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    match context.routes.realm(context.packets[slot].interface) {
        Realm::Outside | Realm::Neither if context.is_ours6(header.destination) => {
            Verdict::Next(if header.is_fragment() { NodeId::SvReassembly } else { NodeId::Nat6Out2in })
        }
        Realm::Inside | Realm::Outside => Verdict::Next(NodeId::Gateway6Input),
        Realm::Neither => Verdict::Drop(Reason::NotOurs),
    }
}

/// Checks the IPv6 header at `l3` and sets what follows from it. Also done for an inner packet.
pub(super) fn check(packet: &mut Packet, frames: &mut Frames) -> Result<ip6::Header, Reason> {
    let header = ip6::parse(packet.ip(frames)).map_err(|malformed| match malformed {
        ip6::Malformed::TooShort => Reason::TooShort,
        ip6::Malformed::Version => Reason::BadVersion,
        ip6::Malformed::Length => Reason::BadLength,
        ip6::Malformed::Extensions => Reason::ExtensionHeaders,
        ip6::Malformed::SourceRoute => Reason::SourceRoute,
    })?;
    packet.length = packet.l3 - packet.offset + header.total_length as u16;
    packet.l4 = packet.l3 + header.header_length as u16;
    packet.protocol = header.protocol;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{testing::*, testing6::*},
        wire::{ip6, write},
    };

    fn mangled(at: usize, value: u8) -> Vec<u8> {
        let mut ip = udp6_packet((SERVER6, 53), (US6, 41_000), b"payload");
        ip[at] = value;
        frame6(&ip)
    }

    #[test]
    fn each_fault_of_the_header_has_its_reason() {
        let mut bench = Bench::gateway6();
        bench.expect_drop(frame6(&[0x60; 39]), "ip6_input.drop.too_short");
        bench.expect_drop(mangled(0, 0x45), "ip6_input.drop.bad_version");
        bench.expect_drop(mangled(ip6::PAYLOAD_LENGTH + 1, 200), "ip6_input.drop.bad_length");
        let mut many = udp6_packet((SERVER6, 53), (US6, 41_000), b"payload");
        (0..9).for_each(|_| many = with_destination_options(&many));
        bench.expect_drop(frame6(&many), "ip6_input.drop.extension_headers");
        let mut routed = with_destination_options(&udp6_packet((SERVER6, 53), (US6, 41_000), b"payload"));
        routed[ip6::NEXT_HEADER] = 43;
        write(&mut routed, 43, &[1]);
        bench.expect_drop(frame6(&routed), "ip6_input.drop.source_route");
    }

    #[test]
    fn ethernet_padding_is_cut_off() {
        let mut bench = Bench::gateway6();
        let mut padded = udp6_packet((INSIDE6, 1000), (NEIGHBOUR6, 53), b"x");
        let length = padded.len();
        padded.extend_from_slice(&[0xee; 9]);
        let out = bench.run_at6(1, &[padded]);
        assert_eq!(bench.moved(), []);
        assert_eq!(out[0].1.len(), 14 + length);
    }
}
