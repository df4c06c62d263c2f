//! ICMP messages of one family in the words of the other (RFC 7915 sections 4.2 and 5.2): types, codes, and what stands
//! in the second word. `None`: a message that has no like, or is not for anybody beyond its link; it is dropped.

use crate::wire::{icmp, icmp6, ip4, ip6};

/// What IPv6's header is longer than IPv4's by.
pub(in crate::dataplane) const GROWTH: u16 = (ip6::HEADER_BYTES - ip4::HEADER_BYTES) as u16;

pub(in crate::dataplane) use ip6::MTU_MIN;

/// The first eight bytes of a message, the checksum apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Head {
    /// Type.
    pub(in crate::dataplane) kind: u8,
    /// Code.
    pub(in crate::dataplane) code: u8,
    /// The second word: pointer, MTU, or nothing.
    pub(in crate::dataplane) word: u32,
}

/// MTUs of the ways that the packets of both families take from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Mtus {
    pub(in crate::dataplane) ip4: u16,
    pub(in crate::dataplane) ip6: u16,
}

impl Mtus {
    /// Those of a way that ends in one family, and of which the rest is all that may be less. Zero: not known.
    pub(in crate::dataplane) fn to_host(is_ip6: bool, mtu: u16) -> Self {
        match (is_ip6, mtu) {
            (_, 0) => Self { ip4: 0, ip6: 0 },
            (true, ip6) => Self { ip4: ip6.saturating_sub(GROWTH), ip6 },
            (false, ip4) => Self { ip4, ip6: ip4.saturating_add(GROWTH) },
        }
    }
}

/// MTUs that there are (RFC 1191 section 7): what a router may mean that names none.
const PLATEAUS: [u16; 11] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];

/// The type of an echo message of IPv4 in IPv6.
#[inline]
pub(in crate::dataplane) fn query_to_ip6(kind: u8) -> Option<u8> {
    match kind {
        icmp::ECHO_REQUEST => Some(icmp6::ECHO_REQUEST),
        icmp::ECHO_REPLY => Some(icmp6::ECHO_REPLY),
        _ => None,
    }
}

/// The type of an echo message of IPv6 in IPv4.
#[inline]
pub(in crate::dataplane) fn query_to_ip4(kind: u8) -> Option<u8> {
    match kind {
        icmp6::ECHO_REQUEST => Some(icmp::ECHO_REQUEST),
        icmp6::ECHO_REPLY => Some(icmp::ECHO_REPLY),
        _ => None,
    }
}

/// An error of IPv4 in IPv6. `quoted`: the total length that the quoted packet's header names.
pub(in crate::dataplane) fn error_to_ip6(head: Head, quoted: u16, mtus: Mtus) -> Option<Head> {
    let (kind, code, word) = match (head.kind, head.code) {
        // "Protocol unreachable" is a parameter problem of IPv6: it points to the next header.
        (icmp::UNREACHABLE, 2) => (icmp6::PARAMETER_PROBLEM, icmp6::CODE_UNKNOWN_NEXT_HEADER, ip6::NEXT_HEADER as u32),
        (icmp::UNREACHABLE, icmp::CODE_PORT) => (icmp6::UNREACHABLE, icmp6::CODE_PORT, 0),
        (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED) => {
            let told = match head.word as u16 {
                0 => PLATEAUS.into_iter().find(|plateau| *plateau < quoted).unwrap_or(0),
                mtu => mtu,
            };
            let mtu = told.saturating_add(GROWTH).min(mtus.ip6).min(mtus.ip4.saturating_add(GROWTH));
            (icmp6::PACKET_TOO_BIG, 0, u32::from(mtu.max(MTU_MIN)))
        }
        (icmp::UNREACHABLE, 9 | 10 | icmp::CODE_PROHIBITED | 15) => (icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED, 0),
        (icmp::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => (icmp6::UNREACHABLE, icmp6::CODE_NO_ROUTE, 0),
        (icmp::TIME_EXCEEDED, code @ (0 | 1)) => (icmp6::TIME_EXCEEDED, code, 0),
        (icmp::PARAMETER_PROBLEM, 0 | 2) => {
            (icmp6::PARAMETER_PROBLEM, icmp6::CODE_ERRONEOUS_HEADER, pointer_to_ip6((head.word >> 24) as u8)?)
        }
        _ => return None,
    };
    Some(Head { kind, code, word })
}

/// An error of IPv6 in IPv4.
pub(in crate::dataplane) fn error_to_ip4(head: Head, mtus: Mtus) -> Option<Head> {
    const PROTOCOL: u8 = 2;
    const HOST: u8 = 1;
    const HOST_PROHIBITED: u8 = 10;
    let (kind, code, word) = match (head.kind, head.code) {
        (icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED) => (icmp::UNREACHABLE, HOST_PROHIBITED, 0),
        (icmp6::UNREACHABLE, icmp6::CODE_PORT) => (icmp::UNREACHABLE, icmp::CODE_PORT, 0),
        // No route, beyond the scope of the source, address unreachable.
        (icmp6::UNREACHABLE, 0 | 2 | 3) => (icmp::UNREACHABLE, HOST, 0),
        (icmp6::PACKET_TOO_BIG, _) => {
            let told = u16::try_from(head.word).unwrap_or(u16::MAX).saturating_sub(GROWTH);
            let mtu = told.min(mtus.ip4).min(mtus.ip6.saturating_sub(GROWTH));
            (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, u32::from(mtu))
        }
        (icmp6::TIME_EXCEEDED, code @ (0 | 1)) => (icmp::TIME_EXCEEDED, code, 0),
        (icmp6::PARAMETER_PROBLEM, icmp6::CODE_ERRONEOUS_HEADER) => {
            (icmp::PARAMETER_PROBLEM, 0, u32::from(pointer_to_ip4(head.word)?) << 24)
        }
        (icmp6::PARAMETER_PROBLEM, icmp6::CODE_UNKNOWN_NEXT_HEADER) => (icmp::UNREACHABLE, PROTOCOL, 0),
        _ => return None,
    };
    Some(Head { kind, code, word })
}

/// RFC 7915 figure 3: the field of IPv6's header that is like the one at this byte of IPv4's.
fn pointer_to_ip6(pointer: u8) -> Option<u32> {
    match pointer {
        0 | 1 => Some(u32::from(pointer)),
        2 | 3 => Some(ip6::PAYLOAD_LENGTH as u32),
        8 => Some(ip6::HOP_LIMIT as u32),
        9 => Some(ip6::NEXT_HEADER as u32),
        12..=15 => Some(ip6::SOURCE as u32),
        16..=19 => Some(ip6::DESTINATION as u32),
        _ => None,
    }
}

/// RFC 7915 figure 6: the other way round.
fn pointer_to_ip4(pointer: u32) -> Option<u8> {
    let at = match pointer {
        0 | 1 => pointer as usize,
        4 | 5 => ip4::TOTAL_LENGTH,
        6 => ip4::PROTOCOL,
        7 => ip4::TTL,
        8..=23 => ip4::SOURCE,
        24..=39 => ip4::DESTINATION,
        _ => return None,
    };
    Some(at as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTUS: Mtus = Mtus { ip4: 1500, ip6: 1500 };

    fn six(kind: u8, code: u8, word: u32) -> Option<(u8, u8, u32)> {
        error_to_ip6(Head { kind, code, word }, 1500, MTUS).map(|head| (head.kind, head.code, head.word))
    }

    fn four(kind: u8, code: u8, word: u32) -> Option<(u8, u8, u32)> {
        error_to_ip4(Head { kind, code, word }, MTUS).map(|head| (head.kind, head.code, head.word))
    }

    /// The numbers are those of RFC 7915, not our constants.
    #[test]
    fn every_code_of_ipv4_is_told_as_section_4_2_says() {
        for (code, expected) in [
            (0, Some((1, 0))),
            (1, Some((1, 0))),
            (2, Some((4, 1))),
            (3, Some((1, 4))),
            (4, Some((2, 0))),
            (5, Some((1, 0))),
            (6, Some((1, 0))),
            (7, Some((1, 0))),
            (8, Some((1, 0))),
            (9, Some((1, 1))),
            (10, Some((1, 1))),
            (11, Some((1, 0))),
            (12, Some((1, 0))),
            (13, Some((1, 1))),
            (14, None),
            (15, Some((1, 1))),
            (16, None),
        ] {
            assert_eq!(six(3, code, 1400).map(|(kind, code, _)| (kind, code)), expected, "code {code}");
        }
        assert_eq!(six(3, 2, 0), Some((4, 1, 6)), "it points to the next header");
        assert_eq!([six(11, 0, 0), six(11, 1, 0)], [Some((3, 0, 0)), Some((3, 1, 0))]);
        for kind in [4, 5, 9, 10, 13, 14, 15, 16, 17, 18, 200] {
            assert_eq!(six(kind, 0, 0), None, "type {kind}");
        }
        assert_eq!([0, 8, 13].map(query_to_ip6), [Some(129), Some(128), None]);
    }

    #[test]
    fn every_code_of_ipv6_is_told_as_section_5_2_says() {
        for (code, expected) in
            [(0, Some((3, 1))), (1, Some((3, 10))), (2, Some((3, 1))), (3, Some((3, 1))), (4, Some((3, 3))), (5, None)]
        {
            assert_eq!(four(1, code, 0).map(|(kind, code, _)| (kind, code)), expected, "code {code}");
        }
        assert_eq!([four(3, 0, 0), four(3, 1, 0)], [Some((11, 0, 0)), Some((11, 1, 0))]);
        assert_eq!((four(4, 1, 6), four(4, 2, 40)), (Some((3, 2, 0)), None));
        for kind in [100, 127, 130, 133, 134, 135, 136, 137, 200] {
            assert_eq!(four(kind, 0, 0), None, "type {kind}");
        }
        assert_eq!([128, 129, 135].map(query_to_ip4), [Some(8), Some(0), None]);
    }

    #[test]
    fn pointers_lead_to_the_like_field_or_the_error_is_dropped() {
        let to_six = |pointer: u32| six(12, 0, pointer << 24).map(|(_, _, word)| word);
        for (from, to) in [(0, 0), (1, 1), (2, 4), (3, 4), (8, 7), (9, 6), (12, 8), (15, 8), (16, 24), (19, 24)] {
            assert_eq!(to_six(from), Some(to), "byte {from}");
        }
        assert!([4, 5, 6, 7, 10, 11, 20, 255].into_iter().all(|pointer| to_six(pointer).is_none()));
        let to_four = |pointer| four(4, 0, pointer).map(|(_, _, word)| word >> 24);
        for (from, to) in [(0, 0), (1, 1), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12), (23, 12), (24, 16), (39, 16)] {
            assert_eq!(to_four(from), Some(to), "byte {from}");
        }
        assert!([2, 3, 40, 1000].into_iter().all(|pointer| to_four(pointer).is_none()));
        assert_eq!((six(12, 1, 0), six(12, 2, 0)), (None, Some((4, 0, 0))));
    }

    #[test]
    fn mtus_differ_by_the_headers_and_keep_to_the_links_and_the_minimum() {
        let six = |told, mtus, quoted| error_to_ip6(Head { kind: 3, code: 4, word: told }, quoted, mtus).unwrap().word;
        assert_eq!(six(1400, MTUS, 1500), 1420);
        assert_eq!(six(1490, MTUS, 1500), 1500, "not more than our own link");
        assert_eq!(six(1490, Mtus { ip4: 1400, ip6: 9000 }, 1500), 1420);
        assert_eq!(six(576, MTUS, 1500), 1280, "no link of IPv6 has less");
        assert_eq!(six(0, MTUS, 1500), 1500, "of an old router the plateau below the packet's length: 1492");
        assert_eq!(six(0, Mtus { ip4: 9000, ip6: 9000 }, 5000), 4372);
        assert_eq!(six(0, MTUS, 60), 1280);
        let four = |told, mtus| error_to_ip4(Head { kind: 2, code: 0, word: told }, mtus).unwrap().word;
        assert_eq!(four(1400, MTUS), 1380);
        assert_eq!(four(1400, Mtus { ip4: 1300, ip6: 1500 }), 1300);
        assert_eq!(four(1400, Mtus { ip4: 1500, ip6: 1280 }), 1260);
        assert_eq!(four(u32::MAX, MTUS), 1480);
    }
}
