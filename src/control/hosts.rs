//! The hosts that have bindings, and what each has of the NAT: its outside address, ports, blocks of ports.
//!
//! A host has one outside address for all its bindings (RFC 4787 REQ-2), as many bindings and ports as it may
//! (RFC 6888 REQ-4, REQ-5), and, where blocks are configured, ports in blocks that are its alone: then one line of the log
//! says for hours who had which ports, and no line says whom it spoke to (RFC 6888 REQ-12).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    ops::RangeBounds,
};

use super::{
    hosts6::Hosts6,
    ports::{Ports, Wish},
    random::Random,
    steering::Answers,
};
use crate::{
    Nanos,
    dataplane::{
        nat::{
            BindingKey, NatConfig, OutsideAddresses, Owner, PROTOCOLS, Translation, outside::ADDRESSES_MAX, row, token,
        },
        reason::Reason,
    },
    wire::ip4,
};

/// A host behind the NAT.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Number of its outside address.
    pub(super) address: u8,
    pub(super) bindings: u32,
    /// By protocol.
    pub(super) ports: [u32; PROTOCOLS],
    /// By protocol.
    pub(super) blocks: [Vec<Block>; PROTOCOLS],
}

/// A block of ports that is a host's alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Number of the outside address.
    pub(super) address: u8,
    pub(super) number: u16,
    /// How many of its ports are leased.
    leased: u32,
}

/// The hosts of one worker, and the ports they are given.
#[derive(Debug)]
pub(super) struct Hosts {
    /// By number of the outside address, and protocol.
    ports: Vec<Option<[Ports; PROTOCOLS]>>,
    /// By [`place`].
    hosts: HashMap<u64, Host>,
    /// Their places, in an order in which they can be shown a page at a time.
    places: BTreeSet<u64>,
    /// Those of IPv6, which the others are tokens of.
    pub(super) ip6: Hosts6,
    /// The outside addresses, by number: the last that had it; the unspecified one where none has.
    addresses: Box<[IpAddr; ADDRESSES_MAX]>,
    /// Whose ports there are: the one of this number.
    worker: usize,
}

/// A number for a host, by which it can be found again.
fn place((owner, address): (Owner, Ipv4Addr)) -> u64 {
    u64::from(owner.slot().unwrap_or(u32::MAX)) << 32 | u64::from(address.to_bits())
}

/// Whose number that is.
pub(super) fn name_of(place: u64) -> (Owner, Ipv4Addr) {
    let owner = (place >> 32) as u32;
    let owner = if owner == u32::MAX { Owner::INSIDE } else { Owner::session(owner) };
    (owner, Ipv4Addr::from_bits(place as u32))
}

/// What a binding was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lease {
    /// Number of the outside address.
    pub(super) address: u8,
    pub(super) port: u16,
}

impl Hosts {
    /// No hosts, but room for `capacity` of IPv6, and all ports that are `worker`'s.
    pub(super) fn new(config: &NatConfig, outside: &OutsideAddresses, worker: usize, capacity: u32) -> Self {
        let mut hosts = Self {
            ports: (0..ADDRESSES_MAX).map(|_| None).collect(),
            hosts: HashMap::new(),
            places: BTreeSet::new(),
            ip6: Hosts6::new(if config.has_ip6() { capacity } else { 0 }),
            addresses: Box::new([Ipv4Addr::UNSPECIFIED.into(); ADDRESSES_MAX]),
            worker,
        };
        hosts.set_outside(config, outside);
        hosts
    }

    /// Another pool: all ports of addresses that are new are free, those of addresses that are gone are no more.
    pub(super) fn set_outside(&mut self, config: &NatConfig, outside: &OutsideAddresses) {
        for number in 0..=u8::MAX {
            let address = config.outside_address(number);
            let (ports, known) = (&mut self.ports[usize::from(number)], &mut self.addresses[usize::from(number)]);
            match address {
                Some(address) if ports.is_some() => debug_assert_eq!(address, *known, "an address keeps its number"),
                Some(address) => {
                    let range = outside.ports_of(number, self.worker);
                    *ports = Some(std::array::from_fn(|_| Ports::new(range.clone(), config.port_block)));
                    *known = address;
                }
                None => *ports = None,
            }
        }
    }

    /// True where no port of an address is leased or rests.
    pub(super) fn is_unused(&self, number: u8, now: Nanos) -> bool {
        self.ports[usize::from(number)].iter().flatten().all(|ports| ports.is_unused(now))
    }

    /// Gives a new binding of `key`'s host a port that is its alone, or, where the binding is endpoint-dependent, one
    /// that `is_good` accepts; one by which the `answers` come to the worker, if it can be. Nothing is taken on failure.
    pub(super) fn lease(
        &mut self,
        config: &NatConfig,
        key: &BindingKey,
        is_good: Option<&dyn Fn(Lease) -> bool>,
        answers: Option<&Answers<'_>>,
        random: &mut Random,
        now: Nanos,
    ) -> Result<Lease, Reason> {
        let row = row(key.protocol).ok_or(Reason::UnknownProtocol)?;
        let name = place((key.owner, key.address));
        let is_given = |number| key.owner != Owner::INSIDE || config.is_given(number);
        let (address, is_new) = match self.hosts.get(&name) {
            Some(host) if host.bindings >= config.bindings_a_host => return Err(Reason::HostLimit),
            Some(host) if host.ports[row] >= config.ports_a_host => return Err(Reason::HostLimit),
            Some(host) if is_given(host.address) => (host.address, false),
            // What it has of an address that was withdrawn stays its own; what is new is of another (RFC 4787 REQ-2 as far
            // as it can be kept). The last address it had may be gone, and its older flows be of yet another.
            Some(_) => (self.address_for(config, key, row, random, now)?, false),
            None => (self.address_for(config, key, row, random, now)?, true),
        };
        let lands = answers.and_then(|answers| answers.landing(self.addresses[usize::from(address)]));
        let lands: Option<&dyn Fn(u16) -> bool> = match &lands {
            Some(lands) => Some(lands),
            None => None,
        };
        let parity_of = config.keeps_parity.then_some(key.port).filter(|_| key.protocol != ip4::ICMP);
        let wish = Wish { parity_of, lands };
        let inside = self.name(key.address);
        let ports = self.ports[usize::from(address)].as_mut().ok_or(Reason::PortsExhausted)?;
        let ports = &mut ports[row];
        let host = self.hosts.entry(name).or_insert_with(|| Host { address, ..Host::default() });
        let port = match is_good {
            Some(is_good) => {
                let is_good = |port| is_good(Lease { address, port });
                let landing = lands.and_then(|lands| ports.share(|port| lands(port) && is_good(port), random, now));
                landing.or_else(|| ports.share(is_good, random, now))
            }
            None if config.port_block == 0 => ports.lease(wish, random, now),
            None => lease_in_blocks(ports, address, &mut host.blocks[row], wish, random, now, |range| {
                let outside = self.addresses[usize::from(address)];
                let protocol = key.protocol;
                tracing::info!(%inside, %outside, protocol, first = range.0, last = range.1, "block given");
            }),
        };
        let Some(port) = port else {
            if is_new {
                self.hosts.remove(&name);
            }
            return Err(Reason::PortsExhausted);
        };
        host.address = address;
        host.bindings += 1;
        host.ports[row] += 1;
        if is_new {
            self.places.insert(name);
        }
        Ok(Lease { address, port })
    }

    /// A binding is gone: takes its port back, and forgets a host that has none left.
    pub(super) fn give(&mut self, key: &BindingKey, lease: Lease, now: Nanos) {
        let (Some(row), name) = (row(key.protocol), place((key.owner, key.address))) else { return };
        let inside = self.name(key.address);
        let Some(ports) = &mut self.ports[usize::from(lease.address)] else { return };
        let ports = &mut ports[row];
        ports.give(lease.port, now);
        let Some(host) = self.hosts.get_mut(&name) else { return };
        host.bindings -= 1;
        host.ports[row] -= 1;
        if !host.blocks[row].is_empty() {
            let block = ports.block_of(lease.port);
            let is_it = |held: &Block| (held.address, held.number) == (lease.address, block);
            if let Some(at) = host.blocks[row].iter().position(is_it) {
                host.blocks[row][at].leased -= 1;
                if host.blocks[row][at].leased == 0 {
                    host.blocks[row].swap_remove(at);
                    let range = ports.block_range(block);
                    ports.give_block(block, now);
                    let outside = self.addresses[usize::from(lease.address)];
                    let protocol = key.protocol;
                    tracing::info!(%inside, %outside, protocol, first = range.start(), last = range.end(), "block returned");
                }
            }
        }
        if host.bindings == 0 {
            self.hosts.remove(&name);
            self.places.remove(&name);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Their places, ascending.
    pub(super) fn places(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = u64> {
        self.places.range(range).copied()
    }

    /// The host at a place.
    pub(super) fn at(&self, place: u64) -> Option<&Host> {
        self.hosts.get(&place)
    }

    /// The ports of each outside address by protocol, and its number.
    pub(super) fn ports(&self) -> impl Iterator<Item = (u8, &[Ports; PROTOCOLS])> {
        (0..=u8::MAX).zip(&self.ports).filter_map(|(number, ports)| Some((number, ports.as_ref()?)))
    }

    /// Protocol's place, first and last port of each block of a host.
    pub(super) fn blocks(&self, host: &Host) -> impl Iterator<Item = (usize, u16, u16)> {
        let of_row = |row: usize| host.blocks[row].iter().map(move |block| (row, block));
        (0..PROTOCOLS).flat_map(of_row).filter_map(|(row, block)| {
            let range = self.ports[usize::from(block.address)].as_ref()?[row].block_range(block.number);
            Some((row, *range.start(), *range.end()))
        })
    }

    /// The outside address of this number.
    pub(super) fn outside_name(&self, number: u8) -> IpAddr {
        self.addresses[usize::from(number)]
    }

    /// What people call an inside host.
    pub(super) fn name(&self, address: Ipv4Addr) -> IpAddr {
        let six = token::host_of(address).and_then(|(_, place)| self.ip6.address(place));
        six.map_or(address.into(), IpAddr::from)
    }

    /// Ports leased and there of a protocol, all addresses together.
    pub(super) fn used(&self, row: usize) -> (u32, u32) {
        self.ports
            .iter()
            .flatten()
            .fold((0, 0), |(used, capacity), ports| (used + ports[row].leased(), capacity + ports[row].capacity()))
    }

    /// The outside address of a host that has none yet: a random one of its family that has ports left. Sessions have the
    /// node's own, which is the first.
    fn address_for(
        &self,
        config: &NatConfig,
        key: &BindingKey,
        row: usize,
        random: &mut Random,
        now: Nanos,
    ) -> Result<u8, Reason> {
        let numbers6: Vec<u8>;
        let numbers = match token::host_of(key.address) {
            Some((Translation::Nat66, _)) => {
                numbers6 = config.numbers6().collect();
                &numbers6
            }
            Some((Translation::Nat64, _)) | None if key.owner != Owner::INSIDE => return Ok(0),
            Some((Translation::Nat64, _)) | None => &config.gateway,
        };
        let Some(count) = u32::try_from(numbers.len()).ok().filter(|count| *count > 0) else {
            return Err(Reason::PortsExhausted);
        };
        let start = if key.owner == Owner::INSIDE { random.below(count) as usize } else { 0 };
        let (before, after) = numbers.split_at(start);
        let ports = |number: u8| self.ports[usize::from(number)].as_ref();
        let has_ports = |number: &&u8| ports(**number).is_some_and(|ports| !ports[row].is_exhausted(now));
        // Shared ports are never exhausted for all destinations, so the first may do all the same.
        Ok(*after.iter().chain(before).find(has_ports).unwrap_or(&numbers[start]))
    }
}

/// A port of one of the host's blocks, or of a new one.
#[allow(clippy::too_many_arguments, reason = "what a lease needs, and where the block is noted")]
fn lease_in_blocks(
    ports: &mut Ports,
    address: u8,
    blocks: &mut Vec<Block>,
    wish: Wish<'_>,
    random: &mut Random,
    now: Nanos,
    log: impl Fn((u16, u16)),
) -> Option<u16> {
    for block in blocks.iter_mut().filter(|block| block.address == address) {
        if let Some(port) = ports.lease_in_block(block.number, wish, random, now) {
            block.leased += 1;
            return Some(port);
        }
    }
    let block = ports.take_block(random, now)?;
    // None of it can be had where all of it is forwarded.
    let Some(port) = ports.lease_in_block(block, wish, random, now) else {
        ports.give_block(block, now);
        return None;
    };
    let range = ports.block_range(block);
    log((*range.start(), *range.end()));
    blocks.push(Block { address, number: block, leased: 1 });
    Some(port)
}
