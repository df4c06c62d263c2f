//! Checks the IPv4 header and that the packet is for this node.
//!
//! Path: ethernet_input -> here -> l4_classify | drop.
//! Reads: l3. Writes: l4, protocol, length (Ethernet padding is cut off).

use super::prelude::*;
use crate::{dataplane::packet::Packet, wire::ip4};

node!(Ip4Input, "ip4_input", [L4Classify], ip4_input);

fn ip4_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let header = match check(packet, frames) {
        Ok(header) => header,
        Err(reason) => return Verdict::Drop(reason),
    };
    if header.is_fragment() {
        return Verdict::Drop(Reason::Fragment);
    }
    if header.destination != context.identity.address {
        return Verdict::Drop(Reason::NotOurs);
    }
    Verdict::Next(NodeId::L4Classify)
}

/// Checks the IPv4 header at `l3` and sets what follows from it. Also done for an inner packet.
pub(super) fn check(packet: &mut Packet, frames: &mut Frames) -> Result<ip4::Header, Reason> {
    let header = ip4::parse(packet.ip(frames)).map_err(|malformed| match malformed {
        ip4::Malformed::TooShort => Reason::TooShort,
        ip4::Malformed::Version => Reason::BadVersion,
        ip4::Malformed::Length => Reason::BadLength,
        ip4::Malformed::Checksum => Reason::BadChecksum,
    })?;
    packet.length = packet.l3 - packet.offset + header.total_length as u16;
    packet.l4 = packet.l3 + header.header_length as u16;
    packet.protocol = header.protocol;
    Ok(header)
}
