//! The express way in: what nearly every packet of a relay is, told by one look at its first bytes.
//!
//! `ip4_input` and `l4_classify` ask the same questions one after the other and know a reason for each answer. Here the
//! answers are put together without a branch between them. A packet that is in any way different takes the long way,
//! so this need not know why.

use super::{driver::Frames, forwarding::Identity, packet::Packet};
use crate::wire::{OVERLAY_BYTES, checksum, ethernet, ip4, read_u16, read_u32, relay, udp};

const IP: usize = ethernet::HEADER_BYTES;
const UDP: usize = IP + ip4::HEADER_BYTES;
const HEADERS: usize = IP + OVERLAY_BYTES;

/// EtherType, then the first byte of an IPv4 header without options.
const IP4_WITHOUT_OPTIONS: u32 = (ethernet::TYPE_IP4 as u32) << 16 | 0x4500;

/// The relay header of a whole, plain packet from a node to our data port; the packet is then as `l4_classify` leaves it.
#[inline]
pub(super) fn relay_header<'a>(
    packet: &mut Packet,
    frames: &'a mut Frames,
    identity: &Identity,
) -> Option<&'a [u8; relay::HEADER_BYTES]> {
    let bytes = packet.bytes(frames).first_chunk::<HEADERS>()?;
    let header: &[u8; ip4::HEADER_BYTES] = bytes[IP..].first_chunk().expect("it is in the chunk");
    let total_length = read_u16(header, ip4::TOTAL_LENGTH);
    let is_it = read_u32(bytes, IP - 2) & 0xffff_ff00 == IP4_WITHOUT_OPTIONS
        && (total_length >= OVERLAY_BYTES as u16)
            & (IP + usize::from(total_length) <= usize::from(packet.length))
            & (read_u16(header, ip4::FRAGMENT) & ip4::FRAGMENT_MASK == 0)
            & (header[ip4::PROTOCOL] == ip4::UDP)
            & (read_u32(header, ip4::DESTINATION) == identity.address.to_bits())
            & (read_u16(bytes, UDP + udp::DESTINATION) == identity.data_port)
            & (read_u16(bytes, UDP + udp::LENGTH) == total_length.wrapping_sub(ip4::HEADER_BYTES as u16))
            & (read_u16(bytes, UDP + udp::CHECKSUM) == 0)
            & checksum::is_valid(header);
    if !is_it {
        return None;
    }
    packet.length = IP as u16 + total_length;
    packet.l3 = packet.offset + IP as u16;
    packet.l4 = packet.offset + UDP as u16;
    packet.protocol = ip4::UDP;
    bytes.last_chunk()
}

const _: () = assert!(OVERLAY_BYTES == ip4::HEADER_BYTES + udp::HEADER_BYTES + relay::HEADER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::*;

    /// What the nodes of the long way ask, of a frame that begins at byte zero.
    fn is_plain(frame: &[u8]) -> bool {
        let Ok(header) = ip4::parse(&frame[IP..]) else { return false };
        let transport = &frame[IP..][..header.total_length][header.header_length..];
        ethernet::ether_type(frame) == Some(ethernet::TYPE_IP4)
            && header.header_length == ip4::HEADER_BYTES
            && !header.is_fragment()
            && (header.destination, header.protocol) == (US, ip4::UDP)
            && udp::checked_length(transport) == Some(transport.len())
            && transport.len() >= udp::HEADER_BYTES + relay::HEADER_BYTES
            && read_u16(transport, udp::DESTINATION) == DATA_PORT
            && read_u16(transport, udp::CHECKSUM) == 0
    }

    fn takes_it(bench: &mut Bench, frame: &[u8]) -> bool {
        bench.way(frame.to_vec())[0] == "ethernet_input > relay_input"
    }

    #[test]
    fn no_changed_bit_of_the_headers_lets_a_packet_in_that_the_long_way_would_refuse() {
        let mut bench = Bench::new();
        bench.relay();
        for padding in [0, 9] {
            let mut good = Relayed::up(1, 1, vec![7; 40]).frame();
            good.extend_from_slice(&vec![0xee; padding]);
            assert!(takes_it(&mut bench, &good));
            for bit in 12 * 8..(UDP + udp::HEADER_BYTES) * 8 {
                let mut frame = good.clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(takes_it(&mut bench, &frame), is_plain(&frame), "bit {bit}");
                // The same with a header checksum that is right again.
                let header = &mut frame[IP..UDP];
                header[ip4::CHECKSUM..ip4::CHECKSUM + 2].fill(0);
                let field = checksum::of(header);
                header[ip4::CHECKSUM..ip4::CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
                assert_eq!(takes_it(&mut bench, &frame), is_plain(&frame), "bit {bit}, checksum right");
            }
        }
    }

    #[test]
    fn a_packet_that_ends_early_takes_the_long_way() {
        let mut bench = Bench::new();
        bench.relay();
        let good = Relayed::up(1, 1, vec![7; 40]).frame();
        for length in 14..good.len() {
            assert!(!takes_it(&mut bench, &good[..length]), "{length} bytes");
        }
        let without_inner = Relayed::up(1, 1, vec![]).frame();
        assert!(takes_it(&mut bench, &without_inner));
    }
}
