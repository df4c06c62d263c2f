//! Receive-side scaling: which of a NIC's queues a packet arrives at.
//!
//! A NIC hashes addresses and ports of what it receives (Toeplitz, under its key) and looks the queue up in a table by
//! the hash. Whoever knows key and table knows the queue beforehand, and can choose a port by which a packet arrives
//! where its slot or binding is: a queue belongs to one worker.
//!
//! The hash is linear (that of `a ^ b` is that of `a` xor that of `b`), so each byte of the input has a table of its own,
//! and trying another port costs two look-ups.

use std::net::{IpAddr, Ipv4Addr};

use crate::wire::ip4;

/// Bytes of the longest input: two addresses of IPv6 and two ports.
const INPUT_BYTES: usize = 36;

/// Bytes of a key that serves it: a bit of the input counts for the 32 bits of the key from its place on.
pub const KEY_BYTES: usize = INPUT_BYTES + 4;

/// What a NIC hashes of a packet that has ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Source and destination address.
    Addresses,
    /// Both ports, too.
    AddressesAndPorts,
}

/// That, of each protocol; `None`: something else, and where packets go is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Inputs {
    pub tcp4: Option<Input>,
    pub udp4: Option<Input>,
    pub tcp6: Option<Input>,
    pub udp6: Option<Input>,
}

impl Inputs {
    /// Ports are hashed wherever there are ports.
    pub const ALL: Self = {
        let all = Some(Input::AddressesAndPorts);
        Self { tcp4: all, udp4: all, tcp6: all, udp6: all }
    };
}

/// How one NIC spreads what it receives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rss {
    toeplitz: Toeplitz,
    /// The queue, by the hash modulo the length.
    table: Vec<u16>,
    inputs: Inputs,
}

/// How many receive queues a NIC has, as `ethtool -l` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queues {
    /// Those for receiving alone.
    pub rx: u32,
    /// Those for receiving and sending.
    pub combined: u32,
    /// The most that `rx` can be set to.
    pub rx_max: u32,
    /// The most that `combined` can be set to.
    pub combined_max: u32,
}

impl Queues {
    /// Of an interface that does not tell.
    pub const ONE: Self = Self { rx: 1, combined: 0, rx_max: 1, combined_max: 0 };

    /// All that receive.
    pub fn count(self) -> u32 {
        (self.rx + self.combined).max(1)
    }

    /// What makes them `count`. `None`: the NIC cannot have as many.
    pub fn command(self, interface: &str, count: u32) -> Option<String> {
        let (kind, count, max) = match self.combined_max {
            0 => ("rx", count, self.rx_max),
            max => ("combined", count.saturating_sub(self.rx), max),
        };
        (1..=max).contains(&count).then(|| format!("ethtool -L {interface} {kind} {count}"))
    }
}

/// Source and destination of a packet, as its receiver sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Tuple {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

impl Tuple {
    /// Of a packet of IPv4.
    pub fn v4(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let [source, destination] = [source, destination].map(|(address, port)| (address.into(), port));
        Self { protocol, source, destination }
    }
}

/// An end of a [`Tuple`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum End {
    Source,
    Destination,
}

impl Rss {
    /// A NIC with this key and table. `None`: the key is too short, or there is no table.
    pub fn new(key: &[u8], table: Vec<u16>, inputs: Inputs) -> Option<Self> {
        let toeplitz = Toeplitz::new(key.first_chunk()?);
        (!table.is_empty()).then_some(Self { toeplitz, table, inputs })
    }

    /// The queue at which an unfragmented packet arrives; `None`: not known.
    pub fn queue(&self, tuple: &Tuple) -> Option<usize> {
        let input = self.input(tuple)?;
        Some(self.queue_of(self.toeplitz.hash(tuple, input)))
    }

    /// The queue by the port at one end of `tuple`, whatever port it has there. `None`: the port makes no difference, or
    /// it is not known which.
    pub fn by_port(&self, tuple: &Tuple, end: End) -> Option<RssByPort<'_>> {
        let input = self.input(tuple).filter(|input| *input == Input::AddressesAndPorts)?;
        let mut zero = *tuple;
        let at = ports_at(tuple);
        let at = match end {
            End::Source => {
                zero.source.1 = 0;
                at
            }
            End::Destination => {
                zero.destination.1 = 0;
                at + 2
            }
        };
        Some(RssByPort { rss: self, hash: self.toeplitz.hash(&zero, input), at })
    }

    /// True where it goes by the ports of UDP and TCP over IPv4.
    pub fn tells_ports(&self) -> bool {
        let Inputs { tcp4, udp4, .. } = self.inputs;
        [tcp4, udp4] == [Some(Input::AddressesAndPorts); 2]
    }

    /// What is hashed.
    pub fn inputs(&self) -> Inputs {
        self.inputs
    }

    /// How many entries of the table lead to each queue.
    pub fn entries(&self) -> Vec<usize> {
        let mut entries = vec![0; self.table.iter().max().map_or(0, |last| usize::from(*last) + 1)];
        self.table.iter().for_each(|queue| entries[usize::from(*queue)] += 1);
        entries
    }

    fn input(&self, tuple: &Tuple) -> Option<Input> {
        match (tuple.protocol, tuple.source.0.is_ipv4()) {
            (ip4::TCP, true) => self.inputs.tcp4,
            (ip4::UDP, true) => self.inputs.udp4,
            (ip4::TCP, false) => self.inputs.tcp6,
            (ip4::UDP, false) => self.inputs.udp6,
            _ => Some(Input::Addresses),
        }
    }

    fn queue_of(&self, hash: u32) -> usize {
        usize::from(self.table[hash as usize % self.table.len()])
    }
}

/// Tells queues by the port at one end of otherwise equal packets.
#[derive(Clone, Copy, Debug)]
pub struct RssByPort<'a> {
    rss: &'a Rss,
    /// That of port zero.
    hash: u32,
    /// Where the port is in the input.
    at: usize,
}

impl RssByPort<'_> {
    /// The queue at which a packet with `port` arrives.
    pub fn queue(&self, port: u16) -> usize {
        self.rss.queue_of(self.hash ^ self.rss.toeplitz.part(self.at, &port.to_be_bytes()))
    }
}

/// Where the source port is in the input; the destination port is behind it.
fn ports_at(tuple: &Tuple) -> usize {
    if tuple.source.0.is_ipv4() { 8 } else { 32 }
}

/// The hash under one key: what each value of each byte of the input contributes.
#[derive(Clone, PartialEq, Eq)]
struct Toeplitz {
    parts: Box<[[u32; 256]; INPUT_BYTES]>,
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Toeplitz")
    }
}

impl Toeplitz {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut parts = Box::new([[0; 256]; INPUT_BYTES]);
        for (at, part) in parts.iter_mut().enumerate() {
            let window = key[at..at + 5].iter().fold(0u64, |window, byte| window << 8 | u64::from(*byte));
            for (value, hash) in part.iter_mut().enumerate() {
                let bits = (0..8).filter(|bit| value & 0x80 >> bit != 0);
                *hash = bits.fold(0, |hash, bit| hash ^ (window >> (8 - bit)) as u32);
            }
        }
        Self { parts }
    }

    /// What `bytes` contribute that are at `at` of the input.
    #[inline]
    fn part(&self, at: usize, bytes: &[u8]) -> u32 {
        bytes.iter().zip(&self.parts[at..]).fold(0, |hash, (byte, part)| hash ^ part[usize::from(*byte)])
    }

    fn hash(&self, tuple: &Tuple, input: Input) -> u32 {
        let (source, destination) = (tuple.source, tuple.destination);
        let addresses = match (source.0, destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.part(0, &source.octets()) ^ self.part(4, &destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.part(0, &source.octets()) ^ self.part(16, &destination.octets())
            }
            _ => unreachable!("both ends of a packet are of one family"),
        };
        let at = ports_at(tuple);
        match input {
            Input::Addresses => addresses,
            Input::AddressesAndPorts => {
                addresses ^ self.part(at, &source.1.to_be_bytes()) ^ self.part(at + 2, &destination.1.to_be_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of Microsoft's verification suite ("Verifying the RSS hash calculation").
    const KEY: [u8; KEY_BYTES] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn assert_hashes(destination: &str, source: &str, addresses: u32, with_ports: u32) {
        let [source, destination] = [source, destination].map(|end| end.parse::<std::net::SocketAddr>().unwrap());
        let tuple = Tuple {
            protocol: ip4::TCP,
            source: (source.ip(), source.port()),
            destination: (destination.ip(), destination.port()),
        };
        let toeplitz = Toeplitz::new(&KEY);
        assert_eq!(toeplitz.hash(&tuple, Input::Addresses), addresses, "{tuple:?}");
        assert_eq!(toeplitz.hash(&tuple, Input::AddressesAndPorts), with_ports, "{tuple:?}");
    }

    #[test]
    fn the_published_vectors_of_ipv4_hold() {
        assert_hashes("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178);
        assert_hashes("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea);
        assert_hashes("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a);
        assert_hashes("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f);
        assert_hashes("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2);
    }

    #[test]
    fn the_published_vectors_of_ipv6_hold() {
        assert_hashes("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d);
        assert_hashes("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf);
        let (destination, source) = ("[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251");
        assert_hashes(destination, source, 0x4b61_e985, 0x02d1_feef);
    }

    fn tuple(protocol: u8) -> Tuple {
        Tuple::v4(protocol, (Ipv4Addr::new(66, 9, 149, 187), 2794), (Ipv4Addr::new(161, 142, 100, 80), 1766))
    }

    #[test]
    fn the_queue_is_the_table_entry_of_the_hash() {
        let table: Vec<u16> = (0..100).collect();
        let rss = |inputs| Rss::new(&KEY, table.clone(), inputs).unwrap();
        assert_eq!(rss(Inputs::ALL).queue(&tuple(ip4::UDP)), Some(0x51cc_c178 % 100));
        assert_eq!(rss(Inputs::ALL).queue(&tuple(ip4::ICMP)), Some(0x323e_8fc2 % 100), "it has no ports");
        let udp4 = |udp4| rss(Inputs { udp4, ..Inputs::ALL });
        assert_eq!(udp4(Some(Input::Addresses)).queue(&tuple(ip4::UDP)), Some(0x323e_8fc2 % 100));
        assert_eq!(udp4(None).queue(&tuple(ip4::UDP)), None);
        assert_eq!(udp4(None).queue(&tuple(ip4::TCP)), Some(0x51cc_c178 % 100));
    }

    #[test]
    fn a_port_can_be_told_its_queue_before_it_is_taken() {
        let rss = Rss::new(&KEY, (0..128).map(|entry| entry % 3).collect(), Inputs::ALL).unwrap();
        let tuple = tuple(ip4::UDP);
        let by_source = rss.by_port(&tuple, End::Source).unwrap();
        let by_destination = rss.by_port(&tuple, End::Destination).unwrap();
        for port in [0, 1, 255, 256, 40_000, 65_535] {
            let source = Tuple { source: (tuple.source.0, port), ..tuple };
            let destination = Tuple { destination: (tuple.destination.0, port), ..tuple };
            assert_eq!(Some(by_source.queue(port)), rss.queue(&source));
            assert_eq!(Some(by_destination.queue(port)), rss.queue(&destination));
        }
        let addresses = Inputs { udp4: Some(Input::Addresses), ..Inputs::ALL };
        let deaf = Rss::new(&KEY, vec![0, 1], addresses).unwrap();
        assert!(deaf.by_port(&tuple, End::Source).is_none(), "no port makes a difference");
        assert_eq!((rss.tells_ports(), deaf.tells_ports()), (true, false));
    }

    #[test]
    fn a_number_of_queues_is_set_by_the_kind_that_the_nic_has() {
        let veth = Queues { rx: 4, combined: 0, rx_max: 4, combined_max: 0 };
        assert_eq!((veth.count(), veth.command("e0", 2)), (4, Some("ethtool -L e0 rx 2".to_owned())));
        let nic = Queues { rx: 0, combined: 4, rx_max: 0, combined_max: 8 };
        assert_eq!((nic.count(), nic.command("e0", 8)), (4, Some("ethtool -L e0 combined 8".to_owned())));
        let both = Queues { rx: 1, combined: 4, rx_max: 1, combined_max: 8 };
        assert_eq!((both.count(), both.command("e0", 2)), (5, Some("ethtool -L e0 combined 1".to_owned())));
        assert_eq!([nic.command("e0", 9), Queues::ONE.command("e0", 2)], [None, None], "there are not as many");
    }

    #[test]
    fn a_nic_without_key_or_table_tells_nothing() {
        assert!(Rss::new(&KEY[1..], vec![0], Inputs::ALL).is_none());
        assert!(Rss::new(&KEY, vec![], Inputs::ALL).is_none());
        assert_eq!(Rss::new(&[&KEY[..], &[0; 12]].concat(), vec![0, 2, 2], Inputs::ALL).unwrap().entries(), [1, 0, 2]);
    }
}
