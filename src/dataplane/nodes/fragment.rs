//! Cuts a packet that is too big for the way ahead and may be fragmented (RFC 791 section 3.2; RFC 4787 REQ-13).
//!
//! Path: gateway_input | nat_in2out | nat_out2in -> here -> exit_down | ip_output | ip6_output (each part) | drop.
//! Reads: l3, mtu, resume_at. Writes: offset, length, l3, l4.
//!
//! The parts leave in order, which receivers are quickest with: what is visited next goes by slot numbers, so the
//! first part lies in the lowest slot.

use super::{fragment6::fragment6, prelude::*};
use crate::{
    dataplane::packet::{Bitmap, Packet},
    wire::{checksum, ethernet, ip4, read_u16, write},
};

node!(Fragment, "fragment", [ExitDown, IpOutput, Ip6Output], fragment);

/// On to `next`, in parts where it is larger than `mtu`. That it may be fragmented was seen before.
#[inline]
pub(super) fn unless_too_big(packet: &mut Packet, mtu: u16, next: NodeId) -> Verdict {
    if mtu == 0 || packet.ip_length() <= usize::from(mtu) {
        return Verdict::Next(next);
    }
    packet.mtu = mtu;
    packet.resume_at = next;
    Verdict::Next(NodeId::Fragment)
}

fn fragment(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let next = packet.resume_at;
    let ip = packet.ip(frames);
    if ip[0] >> 4 == 6 {
        return fragment6(context, frames, slot);
    }
    let header = Header::of(ip);
    let payload = ip.len() - header.bytes().len();
    let part = (usize::from(packet.mtu).saturating_sub(header.bytes().len())) / 8 * 8;
    if part == 0 {
        return Verdict::Drop(Reason::TooBig);
    }
    if header.offset() + payload > usize::from(u16::MAX) {
        // Behind the end of the largest packet there is nothing (the ping of death), nor room in the field for where that is.
        return Verdict::Drop(Reason::BadLength);
    }
    let copies = payload.div_ceil(part) - 1;
    // All or nothing: the receiver has no use for some of them.
    if context.free.count() < copies || context.spare.len() < copies {
        return Verdict::Drop(Reason::NoSlot);
    }
    let mut slots = Bitmap::default();
    slots.insert(slot);
    for _ in 0..copies {
        let copy = context.copy(frames, slot, NodeId::Fragment, next).expect("room was checked above");
        slots.insert(copy);
    }
    for (number, slot) in slots.enumerate() {
        let start = number * part;
        header.place(frames, &mut context.packets[slot], start, part.min(payload - start), number == copies);
    }
    Verdict::Next(next)
}

/// The header of the whole.
struct Header {
    space: [u8; 60],
    length: usize,
}

impl Header {
    fn of(ip: &[u8]) -> Self {
        let length = usize::from(ip[0] & 0xf) * 4;
        let mut space = [0; 60];
        space[..length].copy_from_slice(&ip[..length]);
        Self { space, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.space[..self.length]
    }

    /// Where its payload begins in that of the packet of which it may be a fragment itself.
    fn offset(&self) -> usize {
        usize::from(read_u16(self.bytes(), ip4::FRAGMENT) & ip4::OFFSET_MASK) * 8
    }

    /// Lets `packet`, a copy of the whole, be the part whose payload is `length` bytes from `start` on: its header is
    /// written in front of them, nothing is moved.
    fn place(&self, frames: &mut Frames, packet: &mut Packet, start: usize, length: usize, is_last: bool) {
        let mut header = [0; 60];
        let header_length = if start == 0 { self.whole(&mut header) } else { self.tail(&mut header) };
        let old = read_u16(self.bytes(), ip4::FRAGMENT);
        let more = if is_last { old & ip4::MORE_FRAGMENTS } else { ip4::MORE_FRAGMENTS };
        let total = (header_length + length) as u16;
        write(&mut header, ip4::TOTAL_LENGTH, &total.to_be_bytes());
        write(&mut header, ip4::FRAGMENT, &(((old & ip4::OFFSET_MASK) + (start / 8) as u16) | more).to_be_bytes());
        write(&mut header, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&header[..header_length]);
        write(&mut header, ip4::CHECKSUM, &field.to_be_bytes());

        let l3 = usize::from(packet.l3) + self.length + start - header_length;
        packet.l3 = l3 as u16;
        packet.l4 = (l3 + header_length) as u16;
        packet.offset = (l3 - ethernet::HEADER_BYTES) as u16;
        packet.length = ethernet::HEADER_BYTES as u16 + total;
        packet.ip(frames)[..header_length].copy_from_slice(&header[..header_length]);
    }

    /// The first part has all of it.
    fn whole(&self, header: &mut [u8; 60]) -> usize {
        *header = self.space;
        self.length
    }

    /// The others have only those options that say so (RFC 791 section 3.1, the copied flag).
    fn tail(&self, header: &mut [u8; 60]) -> usize {
        const COPIED: u8 = 0x80;
        header[..ip4::HEADER_BYTES].copy_from_slice(&self.space[..ip4::HEADER_BYTES]);
        let mut end = ip4::HEADER_BYTES;
        for option in ip4::options(self.bytes()) {
            if option[0] & COPIED != 0 {
                header[end..end + option.len()].copy_from_slice(option);
                end += option.len();
            }
        }
        let length = end.next_multiple_of(4);
        header[0] = 0x40 | (length / 4) as u8;
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{conntrack::NO_BINDING, testing::*};

    fn may_be_fragmented(mut ip: Vec<u8>, options: &[u8]) -> Vec<u8> {
        ip.splice(20..20, options.iter().copied());
        ip[0] = 0x40 | (5 + options.len() / 4) as u8;
        let length = ip.len() as u16;
        write(&mut ip, ip4::TOTAL_LENGTH, &length.to_be_bytes());
        write(&mut ip, ip4::IDENTIFICATION, &[7, 7]);
        write(&mut ip, ip4::FRAGMENT, &[0, 0]);
        write(&mut ip, ip4::CHECKSUM, &[0, 0]);
        let field = checksum::of(&ip[..20 + options.len()]);
        write(&mut ip, ip4::CHECKSUM, &field.to_be_bytes());
        ip
    }

    /// A thousand bytes of a larger packet; where they belong is `field`.
    fn part_at(field: u16) -> Vec<u8> {
        let mut part = may_be_fragmented(packet(INSIDE, NEIGHBOUR, ip4::UDP, &[5; 1000]), &[]);
        write(&mut part, ip4::FRAGMENT, &field.to_be_bytes());
        write(&mut part, ip4::CHECKSUM, &[0, 0]);
        let sum = checksum::of(&part[..20]);
        write(&mut part, ip4::CHECKSUM, &sum.to_be_bytes());
        part
    }

    /// Puts parts together that came in order; their headers must be right.
    fn together(parts: &[&[u8]]) -> Vec<u8> {
        let mut payload = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let header = ip4::parse(part).unwrap();
            assert_eq!(usize::from(header.fragment & ip4::OFFSET_MASK) * 8, payload.len(), "in order, without a gap");
            assert_eq!(header.fragment & ip4::MORE_FRAGMENTS != 0, number + 1 < parts.len());
            assert_eq!(part[ip4::IDENTIFICATION..ip4::FRAGMENT], [7, 7]);
            payload.extend(&part[header.header_length..header.total_length]);
        }
        payload
    }

    #[test]
    fn a_large_answer_reaches_the_client_in_parts_that_fit_the_tunnel() {
        let mut bench = Bench::new();
        bench.exit(2, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let data: Vec<u8> = (0..1460u32).map(|n| n as u8).collect();
        let answer = may_be_fragmented(udp_packet((SERVER, 53), (US, 41_000), &data), &[]);
        let out = bench.run(&[frame(&answer)]);
        assert_eq!(bench.moved(), []);
        let inner: Vec<_> = out.iter().map(|frame| sent(frame, &UP_KEY)).collect();
        assert_eq!(inner.len(), 4, "two parts over two paths");
        assert!(inner.iter().all(|got| got.is_authentic && got.inner.len() <= usize::from(INSIDE_MTU)));
        let mut parts: Vec<_> = inner.iter().map(|got| (got.header.sequence, &got.inner[..])).collect();
        parts.sort_unstable();
        parts.dedup();
        let parts: Vec<_> = parts.into_iter().map(|(_, inner)| inner).collect();
        assert_eq!(together(&parts)[8..], data);
    }

    #[test]
    fn parts_leave_in_order_with_the_options_that_belong_to_each() {
        let mut bench = Bench::new();
        bench.gateway();
        bench.change_forwarding(|forwarding| forwarding.interfaces[2].mtu = 600);
        // Security (copied) and record route (not copied), padded.
        let options = [0x82, 4, 9, 9, 7, 7, 4, 0, 0, 0, 0, 0];
        let data: Vec<u8> = (0..1400u32).map(|n| n as u8).collect();
        let sent = may_be_fragmented(udp_packet((INSIDE, 1000), (NEIGHBOUR, 53), &data), &options);
        let out = bench.run_at(1, &[sent]);
        assert_eq!(bench.moved(), []);
        let parts: Vec<&[u8]> = out.iter().map(|(_, frame)| &frame[ethernet::HEADER_BYTES..]).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| part.len() <= 600));
        assert_eq!(parts[0][20..32], options);
        assert_eq!((parts[1][0], &parts[1][20..24]), (0x46, &options[..4]));
        assert_eq!(together(&parts)[8..], data);
    }

    #[test]
    fn a_fragment_behind_the_end_of_the_largest_packet_is_dropped() {
        let mut bench = Bench::new();
        bench.gateway();
        bench.change_forwarding(|forwarding| forwarding.interfaces[2].mtu = 600);
        let last = (65_535 - 1000) / 8;
        assert_eq!(bench.run_at(1, &[part_at(last)]).len(), 2);
        assert_eq!(bench.moved(), []);
        assert!(bench.run_at(1, &[part_at(last + 1)]).is_empty());
        assert_eq!(bench.moved(), [("fragment.drop.bad_length".to_owned(), 1)]);
    }

    #[test]
    fn a_part_is_cut_again_and_keeps_its_place() {
        let mut bench = Bench::new();
        bench.gateway();
        bench.change_forwarding(|forwarding| forwarding.interfaces[2].mtu = 600);
        let out = bench.run_at(1, &[part_at(ip4::MORE_FRAGMENTS | 100)]);
        let fields: Vec<_> =
            out.iter().map(|(_, frame)| read_u16(&frame[ethernet::HEADER_BYTES..], ip4::FRAGMENT)).collect();
        assert_eq!(fields, [ip4::MORE_FRAGMENTS | 100, ip4::MORE_FRAGMENTS | (100 + 576 / 8)]);
    }
}
