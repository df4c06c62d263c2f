//! The overlay's own headers: outer IPv4, UDP and relay header, written in place or pushed.

use super::{conntrack::Link, driver::Frames, forwarding::Identity, packet::Packet};
use crate::{
    limits::PATHS_MAX,
    wire::{OVERLAY_BYTES, ethernet, ip4, relay, udp},
};

/// Time to live of relay packets: every node sends its own, so this counts routers of one hop.
const TTL: u8 = 64;

/// Where the relay header starts, from the IP header (which has no options on this side).
pub(super) const RELAY_AT: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES;

/// Where the inner packet starts, from the IP header.
pub(super) const INNER_AT: usize = OVERLAY_BYTES;

const _: () = assert!(PATHS_MAX <= u8::MAX as usize, "the path number is one byte");

/// Addresses a relay packet that has its headers already to the other end of `link`.
#[inline]
pub(super) fn rewrite(frames: &mut Frames, packet: &mut Packet, identity: &Identity, link: &Link) {
    let bytes = packet.ip(frames);
    let length = bytes.len() as u16;
    let header = relay::Header {
        kind: packet.kind,
        path: packet.path,
        generation: link.generation,
        ct_index: link.ct_index.0,
        sequence: packet.sequence,
    };
    ip4::emit(bytes, identity.address, link.address, ip4::UDP, length, TTL);
    let datagram = length - ip4::HEADER_BYTES as u16;
    udp::emit(&mut bytes[ip4::HEADER_BYTES..], identity.data_port, link.port, datagram);
    relay::emit(&mut bytes[RELAY_AT..], &header, &link.key);
    packet.destination = link.address;
}

/// Pushes the overlay's headers before the inner packet at `l3`, and addresses them to `link`'s other end.
#[inline]
pub(super) fn push(frames: &mut Frames, packet: &mut Packet, identity: &Identity, link: &Link) {
    place(packet, usize::from(packet.l3) - OVERLAY_BYTES);
    rewrite(frames, packet, identity, link);
}

/// Takes the overlay's headers off: `l3` is the inner packet's header from now on.
#[inline]
pub(super) fn pop(packet: &mut Packet) {
    place(packet, usize::from(packet.l3) + INNER_AT);
}

/// Lets the packet start with the IP header at `l3`, with room for an Ethernet header before it.
#[inline]
pub(super) fn place(packet: &mut Packet, l3: usize) {
    let end = packet.end();
    packet.l3 = l3 as u16;
    packet.l4 = (l3 + ip4::HEADER_BYTES) as u16;
    packet.offset = (l3 - ethernet::HEADER_BYTES) as u16;
    packet.length = (end - (l3 - ethernet::HEADER_BYTES)) as u16;
}
