//! The express way in: what nearly every packet of the overlay is, told by one look at its first bytes.
//!
//! `ip4_input` and `l4_classify` ask the same questions one after the other and know a reason for each answer. Here the
//! answers are put together without a branch between them. A packet that is in any way different takes the long way,
//! so this need not know why.

use super::{driver::Frames, forwarding::Identity, packet::Packet};
use crate::wire::{OVERLAY_BYTES, checksum, ethernet, ip4, read_u16, read_u32, relay, udp, write};

const IP: usize = ethernet::HEADER_BYTES;
const UDP: usize = IP + ip4::HEADER_BYTES;
const HEADERS: usize = IP + OVERLAY_BYTES;

/// The headers of IPv4 and UDP and a little of what follows, in words that are compared at once.
type Words = [u64; 4];
const COMPARED: usize = size_of::<Words>();
const _: () = assert!(COMPARED >= ip4::HEADER_BYTES + udp::HEADER_BYTES && COMPARED <= OVERLAY_BYTES);

/// What the packets of the express way have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Express {
    /// Which of their bits are the same in all of them.
    mask: Words,
    /// What these are.
    common: Words,
}

impl Express {
    /// For the packets to this node.
    pub(super) fn new(identity: &Identity) -> Self {
        let (mut mask, mut common) = ([0; COMPARED], [0; COMPARED]);
        let mut must = |at: usize, bits: &[u8], value: &[u8]| {
            write(&mut mask, at, bits);
            write(&mut common, at, value);
        };
        must(0, &[0xff], &[0x45]); // IPv4, no options
        must(ip4::FRAGMENT, &ip4::FRAGMENT_MASK.to_be_bytes(), &[0; 2]);
        must(ip4::PROTOCOL, &[0xff], &[ip4::UDP]);
        must(ip4::DESTINATION, &[0xff; 4], &identity.address.octets());
        must(UDP - IP + udp::DESTINATION, &[0xff; 2], &identity.data_port.to_be_bytes());
        Self { mask: words(&mask), common: words(&common) }
    }

    /// The relay header of a whole, plain packet to our data port; the packet is then as `l4_classify` leaves it.
    #[inline]
    pub(super) fn relay_header<'a>(
        &self,
        packet: &mut Packet,
        frames: &'a mut Frames,
    ) -> Option<&'a [u8; relay::HEADER_BYTES]> {
        let whole = packet.bytes(frames);
        let bytes = whole.first_chunk::<HEADERS>()?;
        let ip = bytes[IP..].first_chunk().expect("it is in the chunk");
        let total_length = read_u16(ip, ip4::TOTAL_LENGTH);
        let differs = words(ip)
            .iter()
            .zip(self.mask)
            .zip(self.common)
            .fold(0, |bits, ((word, mask), common)| bits | (word & mask) ^ common);
        let is_it = (differs == 0)
            & (read_u16(bytes, IP - 2) == ethernet::TYPE_IP4)
            & (total_length >= OVERLAY_BYTES as u16)
            & (IP + usize::from(total_length) <= usize::from(packet.length))
            & (read_u16(bytes, UDP + udp::LENGTH) == total_length.wrapping_sub(ip4::HEADER_BYTES as u16))
            & checksum::is_valid(&ip[..ip4::HEADER_BYTES]);
        // Nodes send no UDP checksum; a client's kernel does.
        if !is_it
            || read_u16(bytes, UDP + udp::CHECKSUM) != 0 && !is_datagram_valid(&whole[IP..][..total_length.into()])
        {
            return None;
        }
        packet.length = IP as u16 + total_length;
        packet.l3 = packet.offset + IP as u16;
        packet.l4 = packet.offset + UDP as u16;
        packet.protocol = ip4::UDP;
        bytes.last_chunk()
    }
}

/// Of a whole packet of IPv4 without options.
#[inline(never)] // The packets of nodes keep their registers.
fn is_datagram_valid(ip: &[u8]) -> bool {
    let [source, destination] = [ip4::SOURCE, ip4::DESTINATION].map(|at| read_u32(ip, at).into());
    udp::is_checksum_valid(source, destination, &ip[ip4::HEADER_BYTES..])
}

/// As the CPU reads them.
#[inline]
fn words(bytes: &[u8; COMPARED]) -> Words {
    std::array::from_fn(|word| u64::from_ne_bytes(*bytes[word * 8..].first_chunk().expect("it is in the chunk")))
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
            && udp::is_checksum_valid(header.source, header.destination, transport)
    }

    fn takes_it(bench: &mut Bench, frame: &[u8]) -> bool {
        bench.way(frame.to_vec())[0] == "ethernet_input > relay_input"
    }

    #[test]
    fn no_changed_bit_of_the_headers_lets_a_packet_in_that_the_long_way_would_refuse() {
        let mut bench = Bench::new();
        bench.relay();
        for (padding, has_checksum) in [(0, false), (9, false), (0, true), (9, true)] {
            let mut good = Relayed::up(1, 1, vec![7; 41]).frame();
            if has_checksum {
                let datagram = &mut good[UDP..];
                let length = datagram.len() as u16;
                let sum = checksum::sum(datagram, checksum::pseudo_header(UPSTREAM, US, ip4::UDP, length));
                write(datagram, udp::CHECKSUM, &(!checksum::fold(sum)).to_be_bytes());
            }
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
