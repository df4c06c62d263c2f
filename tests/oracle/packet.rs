//! Packets of a script, and what came out of a gateway told in words. Nothing here is shared with the code under test.

use std::{collections::HashMap, fmt::Write, net::Ipv4Addr};

/// Whoever sends and receives in the rig. Inside are A and B, outside S, T (servers) and R (a router).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    A,
    B,
    S,
    T,
    R,
    /// The gateway, by its outside address.
    Gateway,
    /// The gateway, by its inside address.
    GatewayInside,
}

impl Host {
    const ALL: [Self; 7] = [Self::A, Self::B, Self::S, Self::T, Self::R, Self::Gateway, Self::GatewayInside];

    pub(crate) fn address(self) -> Ipv4Addr {
        match self {
            Self::GatewayInside => Ipv4Addr::new(10, 0, 0, 1),
            Self::A => Ipv4Addr::new(10, 0, 0, 2),
            Self::B => Ipv4Addr::new(10, 0, 0, 3),
            Self::Gateway => Ipv4Addr::new(203, 0, 113, 1),
            Self::S => Ipv4Addr::new(203, 0, 113, 10),
            Self::T => Ipv4Addr::new(203, 0, 113, 20),
            Self::R => Ipv4Addr::new(203, 0, 113, 254),
        }
    }

    pub(crate) fn port(self, port: u16) -> Point {
        Point { host: self, port: Port::Fixed(port) }
    }

    /// A port that no other run of a case has: cases do not meet in the gateway's table.
    pub(crate) fn own(self, number: u16) -> Point {
        Point { host: self, port: Port::Own(number) }
    }
}

/// A port of the gateway's that hardly any mapping has, and another one each time the case is played.
pub(crate) fn unused(number: u16) -> Point {
    Point { host: Host::Gateway, port: Port::Unused(number) }
}

/// The gateway's outside address and the port (or identifier) of the case's mapping number `number`, in the order in which
/// they were seen.
pub(crate) fn mapped(number: usize) -> Point {
    Point { host: Host::Gateway, port: Port::Mapped(number) }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Port {
    Fixed(u16),
    Own(u16),
    Unused(u16),
    Mapped(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) host: Host,
    pub(crate) port: Port,
}

#[derive(Clone, Debug)]
pub(crate) enum Layer4 {
    Udp {
        payload: Vec<u8>,
        checksum: Checksum,
    },
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: Vec<u8>,
    },
    /// Echo or timestamp. The identifier is the inside's (or the mapping's) port.
    Query {
        kind: u8,
        payload: Vec<u8>,
    },
    /// `bytes` of the quoted packet.
    Error {
        kind: u8,
        code: u8,
        rest: u32,
        quote: Box<Packet>,
        bytes: usize,
    },
    Other {
        protocol: u8,
        bytes: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Right,
    Wrong,
    None,
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) source: Point,
    pub(crate) destination: Point,
    pub(crate) layer4: Layer4,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) is_dont_fragment: bool,
    /// Whole words.
    pub(crate) options: Vec<u8>,
    pub(crate) is_header_checksum_wrong: bool,
}

impl Packet {
    fn new(source: Point, destination: Point, layer4: Layer4) -> Self {
        let (options, is_header_checksum_wrong) = (Vec::new(), false);
        Self {
            source,
            destination,
            layer4,
            ttl: 64,
            tos: 0,
            id: 77,
            is_dont_fragment: true,
            options,
            is_header_checksum_wrong,
        }
    }

    pub(crate) fn udp(source: Point, destination: Point, payload: &[u8]) -> Self {
        Self::new(source, destination, Layer4::Udp { payload: payload.into(), checksum: Checksum::Right })
    }

    pub(crate) fn tcp(
        source: Point,
        destination: Point,
        flags: u8,
        (sequence, acknowledgement): (u32, u32),
        payload: &[u8],
    ) -> Self {
        Self::new(source, destination, Layer4::Tcp { flags, sequence, acknowledgement, payload: payload.into() })
    }

    pub(crate) fn ping(source: Point, destination: Host, payload: &[u8]) -> Self {
        Self::new(source, destination.port(0), Layer4::Query { kind: 8, payload: payload.into() })
    }

    pub(crate) fn pong(source: Host, destination: Point, payload: &[u8]) -> Self {
        Self::new(source.port(0), destination, Layer4::Query { kind: 0, payload: payload.into() })
    }

    /// A question for the time, all of it zero.
    pub(crate) fn timestamp(source: Point, destination: Host) -> Self {
        Self::new(source, destination.port(0), Layer4::Query { kind: 13, payload: vec![0; 12] })
    }

    /// The answer.
    pub(crate) fn timestamp_reply(source: Host, destination: Point) -> Self {
        Self::new(source.port(0), destination, Layer4::Query { kind: 14, payload: vec![0; 12] })
    }

    /// An ICMP error about `quote`, of which it has `bytes` after the IP header.
    pub(crate) fn error(source: Host, destination: Host, (kind, code): (u8, u8), quote: Self, bytes: usize) -> Self {
        let rest = if (kind, code) == (3, 4) { 1400 } else { 0 };
        let layer4 = Layer4::Error { kind, code, rest, quote: Box::new(quote), bytes };
        Self::new(source.port(0), destination.port(0), layer4)
    }

    pub(crate) fn other(source: Host, destination: Host, protocol: u8, bytes: &[u8]) -> Self {
        Self::new(source.port(0), destination.port(0), Layer4::Other { protocol, bytes: bytes.into() })
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// As an IP packet. `None` where it speaks of a mapping that there is not.
    pub(crate) fn bytes(&self, names: &Names) -> Option<Vec<u8>> {
        let (source, destination) = (self.source.host.address(), self.destination.host.address());
        let (from, to) = (names.resolve(self.source)?, names.resolve(self.destination)?);
        let (protocol, layer4) = match &self.layer4 {
            Layer4::Udp { payload, checksum } => {
                let mut bytes = [
                    &from.to_be_bytes()[..],
                    &to.to_be_bytes(),
                    &(8 + payload.len() as u16).to_be_bytes(),
                    &[0, 0],
                    payload,
                ]
                .concat();
                match checksum {
                    Checksum::Right => {
                        seal(&mut bytes, 6, pseudo(source, destination, 17));
                        // Zero says that there is none (RFC 768).
                        if bytes[6..8] == [0, 0] {
                            bytes[6..8].copy_from_slice(&[0xff, 0xff]);
                        }
                    }
                    Checksum::Wrong => bytes[6..8].copy_from_slice(&[0xba, 0xad]),
                    Checksum::None => {}
                }
                (17, bytes)
            }
            Layer4::Tcp { flags, sequence, acknowledgement, payload } => {
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                let numbers = [sequence.to_be_bytes(), acknowledgement.to_be_bytes()].concat();
                let mut bytes = [&ports[..], &numbers, &[0x50, *flags, 0xff, 0xff, 0, 0, 0, 0], payload].concat();
                seal(&mut bytes, 16, pseudo(source, destination, 6));
                (6, bytes)
            }
            Layer4::Query { kind, payload } => {
                let identifier = if matches!(kind, 0 | 14) { to } else { from };
                let mut bytes = [&[*kind, 0, 0, 0][..], &identifier.to_be_bytes(), &[0, 1], payload].concat();
                seal(&mut bytes, 2, 0);
                (1, bytes)
            }
            Layer4::Error { kind, code, rest, quote, bytes } => {
                let quoted = quote.bytes(names)?;
                let quoted = &quoted[..quoted.len().min(20 + quote.options.len() + bytes)];
                let mut bytes = [&[*kind, *code, 0, 0][..], &rest.to_be_bytes(), quoted].concat();
                seal(&mut bytes, 2, 0);
                (1, bytes)
            }
            Layer4::Other { protocol, bytes } => (*protocol, bytes.clone()),
        };
        let mut header = vec![0x40 | (5 + self.options.len() / 4) as u8, self.tos];
        header.extend(((20 + self.options.len() + layer4.len()) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend((u16::from(self.is_dont_fragment) << 14).to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        seal(&mut header, 10, 0);
        if self.is_header_checksum_wrong {
            header[10] ^= 0x55;
        }
        header.extend(layer4);
        Some(header)
    }
}

/// The packet in fragments of at most `size` bytes of payload (a multiple of eight).
pub(crate) fn fragments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(20);
    let last = payload.len().div_ceil(size) - 1;
    let cut = |(number, part): (usize, &[u8])| {
        let mut header = header.to_vec();
        header[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        let field = (number * size / 8) as u16 | if number == last { 0 } else { 0x2000 };
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[10..12].fill(0);
        seal(&mut header, 10, 0);
        [&header, part].concat()
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// The fragment with the eight bytes before it in front, which the fragment before it has as well.
pub(crate) fn overlapping(parts: &[Vec<u8>], number: usize) -> Vec<u8> {
    let (before, part) = (&parts[number - 1], &parts[number]);
    let mut packet = [&part[..20], &before[before.len() - 8..], &part[20..]].concat();
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let field = u16::from_be_bytes([packet[6], packet[7]]) - 1;
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet[10..12].fill(0);
    seal(&mut packet[..20], 10, 0);
    packet
}

/// Puts fragments together again; what is whole, or misses a part, stays as it is.
pub(crate) fn reassemble(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let field = |packet: &[u8]| u16::from_be_bytes([packet[6], packet[7]]);
    let (parts, mut whole): (Vec<_>, Vec<_>) = packets.into_iter().partition(|packet| field(packet) & 0x3fff != 0);
    let mut by_packet: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for part in parts {
        by_packet.entry([&part[4..6], &part[9..10], &part[12..20]].concat()).or_default().push(part);
    }
    for mut parts in by_packet.into_values() {
        parts.sort_by_key(|part| field(part) & 0x1fff);
        let mut end = 0;
        let is_gapless = parts.iter().all(|part| {
            let is_next = usize::from(field(part) & 0x1fff) * 8 == end;
            end += part.len() - 20;
            is_next
        });
        if !is_gapless || field(parts.last().expect("not empty")) & 0x2000 != 0 {
            whole.extend(parts);
            continue;
        }
        let mut packet = parts[0][..20].to_vec();
        parts.iter().for_each(|part| packet.extend(&part[20..]));
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6..8].fill(0);
        packet[10..12].fill(0);
        seal(&mut packet[..20], 10, 0);
        whole.push(packet);
    }
    whole
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the pseudo header but for the length.
fn pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: u32) -> u32 {
    sum(&destination.octets(), sum(&source.octets(), protocol))
}

/// Writes the checksum at `at`. A start other than zero is a pseudo header's sum, which lacks the length.
fn seal(bytes: &mut [u8], at: usize, start: u32) {
    let length = if start == 0 { 0 } else { bytes.len() as u32 };
    let checksum = !fold(sum(bytes, start + length));
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What the ports of one run of a case are called.
#[derive(Debug)]
pub(crate) struct Names {
    /// Own ports begin here.
    pub(crate) base: u16,
    /// Protocol and port at the gateway's outside address, in the order in which they were seen.
    pub(crate) mappings: Vec<(u8, u16)>,
}

impl Names {
    fn resolve(&self, point: Point) -> Option<u16> {
        match point.port {
            Port::Fixed(port) => Some(port),
            Port::Own(number) => Some(self.base + number),
            Port::Unused(number) => {
                let place = (u32::from(self.base) * 13 + u32::from(number) * 97) % 20_000;
                Some(40_000 + place as u16)
            }
            Port::Mapped(number) => self.mappings.get(number).map(|(_, port)| *port),
        }
    }

    fn host(&self, address: Ipv4Addr) -> String {
        Host::ALL
            .iter()
            .find(|host| host.address() == address)
            .map_or_else(|| address.to_string(), |host| format!("{host:?}"))
    }

    fn point(&mut self, protocol: u8, address: Ipv4Addr, port: u16) -> String {
        let host = self.host(address);
        if address == Host::Gateway.address() {
            let known = self.mappings.iter().position(|mapping| *mapping == (protocol, port));
            let number = known.unwrap_or_else(|| {
                self.mappings.push((protocol, port));
                self.mappings.len() - 1
            });
            return format!("{host}:m{number}");
        }
        match port.checked_sub(self.base) {
            Some(own @ 0..100) => format!("{host}:+{own}"),
            _ => format!("{host}:{port}"),
        }
    }

    /// A packet in words: all that a NAT might get wrong.
    pub(crate) fn describe(&mut self, packet: &[u8]) -> String {
        self.describe_to(packet, false)
    }

    fn describe_to(&mut self, packet: &[u8], is_quote: bool) -> String {
        if packet.len() < 20 {
            return format!("{} bytes that are no packet", packet.len());
        }
        let header_length = usize::from(packet[0] & 15) * 4;
        let (header, layer4) = packet.split_at(header_length.min(packet.len()));
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let (source, destination, protocol) = (address(12), address(16), header[9]);
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let two = |at: usize| layer4.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        let start = pseudo(source, destination, u32::from(protocol)) + layer4.len() as u32;
        let is_valid = |start| fold(sum(layer4, start)) == 0xffff;
        let mut said = String::new();
        let mut checksum = "";
        match protocol {
            _ if fragment & 0x1fff != 0 => said += &format!("fragment of protocol {protocol}"),
            6 | 17 => {
                let name = if protocol == 6 { "tcp" } else { "udp" };
                let from = self.point(protocol, source, two(0));
                let to = self.point(protocol, destination, two(2));
                said += &format!("{name} {from} > {to}");
                if protocol == 6 && !is_quote && layer4.len() >= 20 {
                    let four = |at| u32::from(two(at)) << 16 | u32::from(two(at + 2));
                    let _ = write!(said, " flags {:#x} {}/{}", layer4[13] & 0x3f, four(4), four(8));
                }
                checksum = match () {
                    () if protocol == 17 && two(6) == 0 => "none",
                    () if is_valid(start) => "right",
                    () => "wrong",
                };
            }
            1 => {
                checksum = if is_valid(0) { "right" } else { "wrong" };
                match layer4.first() {
                    Some(8) => said += &format!("ping {} > {}", self.point(1, source, two(4)), self.host(destination)),
                    Some(0) => said += &format!("pong {} > {}", self.host(source), self.point(1, destination, two(4))),
                    Some(13) => {
                        let from = self.point(1, source, two(4));
                        said += &format!("timestamp request {from} > {}", self.host(destination));
                    }
                    Some(14) => {
                        let from = self.host(source);
                        said += &format!("timestamp reply {from} > {}", self.point(1, destination, two(4)));
                    }
                    Some(kind) if layer4.len() >= 8 => {
                        let quote = self.describe_to(&layer4[8..], true);
                        let (code, rest) = (layer4[1], two(6));
                        let (from, to) = (self.host(source), self.host(destination));
                        said += &format!("error {kind}/{code} ({rest}) {from} > {to} about [{quote}]");
                    }
                    _ => said += "short ICMP",
                }
            }
            _ => said += &format!("protocol {protocol} {} > {}", self.host(source), self.host(destination)),
        }
        if is_quote {
            return said;
        }
        let _ = write!(said, ", {} bytes, ttl {}, checksum {checksum}", packet.len(), header[8]);
        if fragment & 0x4000 != 0 {
            said += ", df";
        }
        if header[1] != 0 {
            let _ = write!(said, ", tos {}", header[1]);
        }
        if header_length > 20 {
            let _ = write!(said, ", options {:02x?}", &header[20..]);
        }
        if fold(sum(header, 0)) != 0xffff {
            said += ", header checksum wrong";
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_told_as_it_was_made() {
        let mut names = Names { base: 20_000, mappings: vec![] };
        let question = Packet::udp(Host::A.own(1), Host::S.port(53), b"question");
        let bytes = question.bytes(&names).unwrap();
        assert_eq!(names.describe(&bytes), "udp A:+1 > S:53, 36 bytes, ttl 64, checksum right, df");
        let translated = Packet::udp(Host::Gateway.port(4711), Host::S.port(53), b"question").bytes(&names).unwrap();
        assert_eq!(names.describe(&translated), "udp Gateway:m0 > S:53, 36 bytes, ttl 64, checksum right, df");
        let error = Packet::error(Host::R, Host::Gateway, (3, 1), Packet::udp(mapped(0), Host::S.port(53), b"q"), 8);
        let error = error.bytes(&names).unwrap();
        let told = "error 3/1 (0) R > Gateway about [udp Gateway:m0 > S:53], 56 bytes, ttl 64, checksum right, df";
        assert_eq!(names.describe(&error), told);
        assert!(Packet::udp(Host::S.port(53), mapped(1), b"").bytes(&names).is_none());
    }

    #[test]
    fn fragments_in_any_order_make_the_packet_again() {
        let names = Names { base: 20_000, mappings: vec![] };
        let whole =
            Packet::udp(Host::A.own(1), Host::S.port(53), &[7; 1000]).with(|packet| packet.is_dont_fragment = false);
        let whole = whole.bytes(&names).unwrap();
        let mut parts = fragments(&whole, 400);
        assert_eq!(parts.len(), 3);
        parts.rotate_left(1);
        assert_eq!(reassemble(parts.clone()), [whole]);
        parts.pop();
        assert_eq!(reassemble(parts.clone()).len(), 2, "a part is missing");
    }
}
