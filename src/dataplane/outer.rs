//! The overlay's own headers: outer IPv4, UDP and relay header, written in place or pushed.

use super::{
    conntrack::{Link, SourcePorts},
    driver::Frames,
    forwarding::Identity,
    node_keys::NodeKeys,
    packet::Packet,
    tags::Tags,
};
use crate::{
    limits::{PACKET_SLOTS, PATHS_MAX},
    wire::{OVERLAY_BYTES, ethernet, ip4, relay, udp},
};

/// Time to live of relay packets: every node sends its own, so this counts routers of one hop.
const TTL: u8 = 64;

/// Where the relay header starts, from the IP header (which has no options on this side).
pub(super) const RELAY_AT: usize = ip4::HEADER_BYTES + udp::HEADER_BYTES;

/// Where the inner packet starts, from the IP header.
pub(super) const INNER_AT: usize = OVERLAY_BYTES;

const _: () = assert!(PATHS_MAX <= u8::MAX as usize, "the path number is one byte");

/// Relay headers to clients, and of probes, that are written but for their tags, which are made together ([`Tags`]).
pub(super) struct Unsigned {
    tags: Tags,
    /// Frame, and where in it the relay header starts.
    places: [(u32, u16); PACKET_SLOTS],
}

impl Unsigned {
    /// None.
    pub(super) fn new() -> Self {
        Self { tags: Tags::new(), places: [(0, 0); PACKET_SLOTS] }
    }

    #[inline]
    fn push(&mut self, frame: u32, at: u16, header: relay::Tagged, key: &relay::HopKey) {
        let place = self.tags.push(header, key);
        self.places[place] = (frame, at);
    }

    /// Makes and writes the tags of all of them, of which most batches have none.
    #[inline]
    pub(super) fn sign(&mut self, frames: &mut Frames) {
        if !self.tags.is_empty() {
            self.sign_some(frames);
        }
    }

    #[inline(never)]
    fn sign_some(&mut self, frames: &mut Frames) {
        for (tag, (frame, at)) in self.tags.make().iter().zip(&self.places) {
            relay::emit_tag(&mut frames.frame(*frame)[usize::from(*at)..], *tag);
        }
    }
}

/// Addresses a relay packet that has its headers already to the node at the other end of `link`.
#[inline(always)] // A fifth of it would be the call.
pub(super) fn rewrite(
    frames: &mut Frames,
    packet: &mut Packet,
    identity: &Identity,
    hop: (&Link, SourcePorts),
    keys: &NodeKeys,
) {
    let (bytes, tagged) = rewrite_untagged(frames, packet, identity, hop);
    relay::emit_tag(&mut bytes[RELAY_AT..], keys.tag(hop.0.key, tagged));
}

/// The same to a client, or for a probe: the tag is added by [`Unsigned::sign`].
#[inline]
pub(super) fn rewrite_batched(
    frames: &mut Frames,
    packet: &mut Packet,
    identity: &Identity,
    link: &Link,
    key: &relay::HopKey,
    unsigned: &mut Unsigned,
) {
    let (_, tagged) = rewrite_untagged(frames, packet, identity, (link, SourcePorts::default()));
    unsigned.push(packet.frame, packet.l3 + RELAY_AT as u16, tagged, key);
}

#[inline(always)]
fn rewrite_untagged<'a>(
    frames: &'a mut Frames,
    packet: &mut Packet,
    identity: &Identity,
    (link, ports): (&Link, SourcePorts),
) -> (&'a mut [u8; OVERLAY_BYTES], relay::Tagged) {
    let length = packet.ip_length() as u16;
    let bytes = packet.headers::<OVERLAY_BYTES>(frames).expect("a relay packet has all its headers");
    let header = relay::Header {
        kind: packet.kind,
        path: packet.path,
        generation: link.generation,
        ct_index: link.ct_index.0,
        sequence: packet.sequence,
    };
    ip4::emit(bytes, identity.address, link.address, ip4::UDP, length, TTL);
    let datagram = length - ip4::HEADER_BYTES as u16;
    let source = identity.data_port.wrapping_add(u16::from(ports.ours));
    udp::emit(&mut bytes[ip4::HEADER_BYTES..], source, link.port, datagram);
    packet.destination = link.address;
    let tagged = relay::emit_untagged(&mut bytes[RELAY_AT..], &header);
    (bytes, tagged)
}

/// Pushes the overlay's headers before the inner packet at `l3`, and addresses them to `link`'s other end.
#[inline]
pub(super) fn push(
    frames: &mut Frames,
    packet: &mut Packet,
    identity: &Identity,
    hop: (&Link, SourcePorts),
    keys: &NodeKeys,
) {
    place(packet, usize::from(packet.l3) - OVERLAY_BYTES);
    rewrite(frames, packet, identity, hop, keys);
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
