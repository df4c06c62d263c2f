//! Rules by which a NIC steers packets to queues by their ports (ntuple filters: `ethtool -N`), for NICs whose hash does not
//! let us choose a queue ([`super::rss`]).
//!
//! What servers answer goes to the worker that owns the port (as DPVS has it from a "flow director"): its part of an address's ports is
//! cut into aligned blocks, a rule each. What comes over a hop always goes to the same port; there, some bits of the port that it
//! comes from are its class, each class has a queue, and we tell the other end which port to send from.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
};

use super::{gateway::OutsideAddress, nat::outside::part, rss::Tuple};
use crate::wire::ip4;

/// Which ports that hops are sent from are whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Classes {
    /// A power of two.
    count: u16,
    workers: u16,
}

impl Classes {
    /// Classes that share the ports out between so many workers.
    pub fn among(workers: u8) -> Self {
        let workers = u16::from(workers.max(1));
        // Of a power of two all get the same; of others the most that one gets is a third more than another.
        let count = if workers.is_power_of_two() { workers } else { (4 * workers).next_power_of_two().min(256) };
        Self { count, workers }
    }

    /// The queue of what is sent from `port`; worker `n` has queue `n`.
    pub fn queue(self, port: u16) -> usize {
        usize::from((port & (self.count - 1)) % self.workers)
    }

    /// One of each class, by its bits, and its queue.
    fn all(self) -> impl Iterator<Item = (Bits, u16)> {
        (0..self.count).map(move |class| (Bits { value: class, mask: self.count - 1 }, class % self.workers))
    }
}

/// Ports that have `value` in the bits of `mask`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the type says it")]
pub struct Bits {
    pub value: u16,
    pub mask: u16,
}

impl Bits {
    const ANY: Self = Self { value: 0, mask: 0 };

    fn only(port: u16) -> Self {
        Self { value: port, mask: u16::MAX }
    }

    fn has(self, port: u16) -> bool {
        port & self.mask == self.value
    }

    /// Aligned blocks that are these ports, the fewest.
    fn blocks(ports: &RangeInclusive<u16>) -> Vec<Self> {
        let (mut first, end) = (u32::from(*ports.start()), u32::from(*ports.end()) + 1);
        let mut blocks = Vec::new();
        while first < end {
            let size = (1 << first.trailing_zeros().min(16)).min(1 << (end - first).ilog2());
            blocks.push(Self { value: first as u16, mask: !(size - 1) as u16 });
            first += size;
        }
        blocks
    }
}

/// A rule: unfragmented packets like this go to this queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// TCP or UDP.
    pub protocol: u8,
    /// Where they go to, from anywhere.
    pub destination: Ipv4Addr,
    /// The port that they come from.
    pub source_port: Bits,
    /// The port that they go to.
    pub destination_port: Bits,
    /// Where the NIC puts them.
    pub queue: u16,
}

impl Rule {
    /// True where it is about a packet.
    pub fn has(&self, tuple: &Tuple) -> bool {
        self.protocol == tuple.protocol
            && tuple.destination.0 == IpAddr::V4(self.destination)
            && self.source_port.has(tuple.source.1)
            && self.destination_port.has(tuple.destination.1)
    }

    /// True where it is about what comes over hops to `ours`, and tells it by a part of the port it comes from, as no operator would.
    pub fn is_of_hops(&self, ours: SocketAddrV4) -> bool {
        self.protocol == ip4::UDP
            && (self.destination, self.destination_port) == (*ours.ip(), Bits::only(ours.port()))
            && !matches!(self.source_port.mask, 0 | u16::MAX)
    }

    /// True where it is about nothing but answers to `outside`: to ports that are NAT's alone.
    pub fn is_of_answers(&self, outside: &OutsideAddress) -> bool {
        let Bits { value, mask } = self.destination_port;
        self.destination == outside.address
            && self.source_port == Bits::ANY
            && value >= outside.first
            && value | !mask <= outside.last
    }
}

/// Rules for what other nodes and clients send to `ours`.
pub fn hops(ours: SocketAddrV4, workers: u8) -> Vec<Rule> {
    let (destination, destination_port) = (*ours.ip(), Bits::only(ours.port()));
    let rule = |(source_port, queue)| Rule { protocol: ip4::UDP, destination, source_port, destination_port, queue };
    Classes::among(workers).all().map(rule).collect()
}

/// Rules for what servers answer to `outside`. They have no packet in common with others.
pub fn answers(outside: &OutsideAddress, workers: u8) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (worker, protocol) in (0..workers).flat_map(|worker| [(worker, ip4::UDP), (worker, ip4::TCP)]) {
        let (destination, queue) = (outside.address, worker.into());
        let rule = |destination_port| Rule { protocol, destination, source_port: Bits::ANY, destination_port, queue };
        rules.extend(Bits::blocks(&part(outside, workers, worker.into())).into_iter().map(rule));
    }
    rules
}

/// The rules that are in force at a NIC.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortRules {
    /// Where hops come to, and what they are told by.
    pub hops: Option<(SocketAddrV4, Classes)>,
    /// Addresses whose answers arrive at the owner of the port.
    pub outside: Vec<Ipv4Addr>,
    /// How many rules that takes.
    pub count: usize,
}

/// Where a rule has a packet go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steered {
    /// By the class of the port it comes from.
    BySource(Classes),
    /// To the owner of the port it goes to.
    ToOwner,
}

impl PortRules {
    /// What they do with the packets of `tuple`, but for those to ports that are not NAT's. `None`: nothing.
    pub fn steers(&self, tuple: &Tuple) -> Option<Steered> {
        let (IpAddr::V4(address), port) = tuple.destination else { return None };
        match self.hops {
            Some((ours, classes)) if tuple.protocol == ip4::UDP && ours == SocketAddrV4::new(address, port) => {
                Some(Steered::BySource(classes))
            }
            _ => {
                let is_answer = matches!(tuple.protocol, ip4::UDP | ip4::TCP) && self.outside.contains(&address);
                is_answer.then_some(Steered::ToOwner)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000);

    fn tuple(protocol: u8, source_port: u16, destination: (Ipv4Addr, u16)) -> Tuple {
        Tuple::v4(protocol, (Ipv4Addr::new(198, 51, 100, 7), source_port), destination)
    }

    #[test]
    fn blocks_are_the_ports_and_the_fewest() {
        for (ports, count) in [(0..=65_535, 1), (1024..=65_535, 6), (40_001..=49_999, 14), (7..=7, 1), (1..=65_534, 30)]
        {
            let blocks = Bits::blocks(&ports);
            assert_eq!(blocks.len(), count, "{ports:?}");
            for port in 0..=u16::MAX {
                let has = blocks.iter().filter(|block| block.has(port)).count();
                assert_eq!(has, usize::from(ports.contains(&port)), "{port} of {ports:?}");
            }
        }
        #[allow(clippy::reversed_empty_ranges, reason = "no port")]
        let none = 1..=0;
        assert_eq!(Bits::blocks(&none), []);
    }

    #[test]
    fn every_worker_has_a_like_part_of_the_ports_that_hops_come_from() {
        for workers in 1..=64 {
            let classes = Classes::among(workers);
            let mut ports = vec![0u32; workers.into()];
            (0..=u16::MAX).for_each(|port| ports[classes.queue(port)] += 1);
            let (least, most) = (ports.iter().min().unwrap(), ports.iter().max().unwrap());
            assert!(*least > 0 && most * 3 <= least * 4, "{workers} workers: {least} to {most}");
        }
        // A hop has 256 ports to choose from.
        assert!((1..=255).all(|workers| Classes::among(workers).count <= 256));
    }

    #[test]
    fn one_rule_is_about_a_hops_packet_and_names_the_queue_of_the_port_it_comes_from() {
        let outside = OutsideAddress { address: *OURS.ip(), first: 40_001, last: 49_999 };
        for workers in [2, 3, 8] {
            let rules = [hops(OURS, workers), answers(&outside, workers)].concat();
            let in_force = PortRules {
                hops: Some((OURS, Classes::among(workers))),
                outside: vec![outside.address],
                count: rules.len(),
            };
            for port in (0..=u16::MAX).step_by(7) {
                let hop = tuple(ip4::UDP, port, (*OURS.ip(), OURS.port()));
                let queues: Vec<usize> =
                    rules.iter().filter(|rule| rule.has(&hop)).map(|rule| rule.queue.into()).collect();
                let Some(Steered::BySource(classes)) = in_force.steers(&hop) else { panic!("no hop's") };
                assert_eq!(queues, [classes.queue(port)]);
            }
            let to = |protocol, address, port| in_force.steers(&tuple(protocol, 1, (address, port)));
            assert_eq!(to(ip4::UDP, *OURS.ip(), 40_001), Some(Steered::ToOwner));
            assert_eq!(to(ip4::TCP, *OURS.ip(), 40_001), Some(Steered::ToOwner));
            assert_eq!([to(ip4::ICMP, *OURS.ip(), 0), to(ip4::UDP, Ipv4Addr::new(192, 0, 2, 2), 40_001)], [None; 2]);
        }
    }

    #[test]
    fn one_rule_is_about_an_answer_and_names_the_owner_of_its_port() {
        let outside = OutsideAddress { address: *OURS.ip(), first: 40_001, last: 49_999 };
        for workers in [1, 2, 3, 16] {
            let pool = crate::dataplane::nat::OutsideAddresses::new(&[outside], &[], workers);
            let rules = [hops(OURS, workers), answers(&outside, workers)].concat();
            for port in (40_001..=49_999).chain([0, 40_000 - 1, 50_000, 65_535]) {
                for protocol in [ip4::UDP, ip4::TCP] {
                    let answer = tuple(protocol, 53, (outside.address, port));
                    let queues: Vec<usize> =
                        rules.iter().filter(|rule| rule.has(&answer)).map(|rule| rule.queue.into()).collect();
                    assert_eq!(queues.first().copied(), pool.owner_of((outside.address, port)), "{port}");
                    assert!(queues.len() <= 1);
                }
            }
            let icmp = tuple(ip4::ICMP, 0, (outside.address, 41_000));
            let elsewhere = tuple(ip4::UDP, 53, (Ipv4Addr::new(192, 0, 2, 2), 41_000));
            assert!(!rules.iter().any(|rule| rule.has(&icmp) || rule.has(&elsewhere)));
        }
    }

    #[test]
    fn ours_are_told_from_an_operators() {
        let outside = OutsideAddress { address: *OURS.ip(), first: 40_001, last: 49_999 };
        for workers in [2, 3, 64] {
            assert!(hops(OURS, workers).iter().all(|rule| rule.is_of_hops(OURS) && !rule.is_of_answers(&outside)));
            let answers = answers(&outside, workers);
            assert!(answers.iter().all(|rule| rule.is_of_answers(&outside) && !rule.is_of_hops(OURS)));
        }
        let answer = answers(&outside, 2)[0];
        let with = |source_port, destination_port| Rule { source_port, destination_port, ..answer };
        let bits = |value, mask| Bits { value, mask };
        for operators in [
            with(Bits::ANY, Bits::only(22)),
            with(Bits::ANY, Bits::only(40_000)),
            with(Bits::only(53), Bits::only(40_001)),
            with(Bits::ANY, Bits::ANY),
            with(Bits::ANY, bits(0x8000, 0x8000)),
            with(Bits::only(1), Bits::only(40_000)),
            Rule { destination: Ipv4Addr::new(192, 0, 2, 2), ..answer },
        ] {
            assert!(!operators.is_of_hops(OURS) && !operators.is_of_answers(&outside), "{operators:?}");
        }
    }
}
