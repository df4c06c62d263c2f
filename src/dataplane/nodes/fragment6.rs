//! The IPv6 part of [`fragment`](super::fragment): cuts what NAT64 made of a packet that IPv4 would have cut on its way.
//!
//! A router of IPv6 cuts nothing (RFC 8200 section 5), but a translator stands for the sender: what may be fragmented and is
//! larger than every link carries leaves in parts (RFC 7915 section 4).

use super::prelude::*;
use crate::{
    dataplane::packet::{Bitmap, Packet},
    wire::{ethernet, ip4, ip6, write},
};

const FRAGMENT_HEADER: u8 = 44;
const HEADERS: usize = ip6::HEADER_BYTES + ip6::FRAGMENT_HEADER_BYTES;

/// What IPv4's header said of a packet's being a fragment, and which packet's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// The identification.
    pub(super) identification: u16,
    /// Flags and offset.
    pub(super) fragment: u16,
}

/// Has the packet leave in parts of at most `mtu` bytes, which share an identification. One that is a fragment itself is
/// one also where it fits.
pub(super) fn cut(packet: &mut Packet, mtu: u16, origin: Origin, next: NodeId) -> Verdict {
    packet.mtu = mtu;
    packet.sequence = u64::from(origin.fragment) << 16 | u64::from(origin.identification);
    packet.resume_at = next;
    Verdict::Next(NodeId::Fragment)
}

/// The parts leave in order, the first in the lowest slot. Reads: sequence, for the identification.
pub(super) fn fragment6(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let next = packet.resume_at;
    let ip = packet.ip(frames);
    let Some(&header) = ip.first_chunk::<{ ip6::HEADER_BYTES }>() else { return Verdict::Drop(Reason::TooShort) };
    let payload = ip.len() - ip6::HEADER_BYTES;
    let part = usize::from(packet.mtu).saturating_sub(HEADERS) / 8 * 8;
    if part == 0 || payload == 0 {
        return Verdict::Drop(Reason::TooBig);
    }
    let copies = payload.div_ceil(part) - 1;
    // All or nothing: the receiver has no use for some of them.
    if context.free.count() < copies || context.spare.len() < copies {
        return Verdict::Drop(Reason::NoSlot);
    }
    let mut slots = Bitmap::default();
    slots.insert(slot);
    for _ in 0..copies {
        slots.insert(context.copy(frames, slot, NodeId::Fragment, next).expect("room was checked above"));
    }
    for (number, slot) in slots.enumerate() {
        let start = number * part;
        place(frames, &mut context.packets[slot], &header, start, part.min(payload - start), number == copies);
    }
    Verdict::Next(next)
}

/// Lets `packet`, a copy of the whole, be the part whose payload is `length` bytes from `start` on: its headers are
/// written in front of them, nothing is moved.
fn place(
    frames: &mut Frames,
    packet: &mut Packet,
    header: &[u8; ip6::HEADER_BYTES],
    start: usize,
    length: usize,
    is_last: bool,
) {
    let l3 = usize::from(packet.l3) + ip6::HEADER_BYTES + start - HEADERS;
    packet.l3 = l3 as u16;
    packet.l4 = (l3 + HEADERS) as u16;
    packet.offset = (l3 - ethernet::HEADER_BYTES) as u16;
    packet.length = (ethernet::HEADER_BYTES + HEADERS + length) as u16;
    let (identification, origin) = (packet.sequence as u16, (packet.sequence >> 16) as u16);
    let ip = packet.ip(frames);
    ip[..ip6::HEADER_BYTES].copy_from_slice(header);
    let payload = (ip6::FRAGMENT_HEADER_BYTES + length) as u16;
    write(ip, ip6::PAYLOAD_LENGTH, &payload.to_be_bytes());
    ip[ip6::NEXT_HEADER] = FRAGMENT_HEADER;
    let has_more = !is_last || origin & ip4::MORE_FRAGMENTS != 0;
    let place = (((origin & ip4::OFFSET_MASK) << 3) + start as u16) | u16::from(has_more);
    write(ip, ip6::HEADER_BYTES, &[header[ip6::NEXT_HEADER], 0]);
    write(ip, ip6::HEADER_BYTES + 2, &place.to_be_bytes());
    write(ip, ip6::HEADER_BYTES + 4, &u32::from(identification).to_be_bytes());
}
