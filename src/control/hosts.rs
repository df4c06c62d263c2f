//! The hosts that have bindings, and what each has of the NAT: its outside address, ports, blocks of ports.
//!
//! A host has one outside address for all its bindings (RFC 4787 REQ-2), as many bindings and ports as it may
//! (RFC 6888 REQ-4, REQ-5), and, where blocks are configured, ports in blocks that are its alone: then one line of the log
//! says for hours who had which ports, and no line says whom it spoke to (RFC 6888 REQ-12).

use std::net::{IpAddr, Ipv4Addr};

use super::{
    hosts6::Hosts6,
    key_index::KeyIndex,
    pools::Pool,
    ports::{Ports, Wish},
    random::Random,
    steering::Answers,
    tables::put,
};
use crate::{
    Nanos,
    dataplane::{
        nat::{
            BindingKey, NatConfig, OutsideAddresses, Owner, PROTOCOLS, Translation, outside::ADDRESSES_MAX, row, token,
        },
        prefetch::prefetch,
        reason::Reason,
    },
    wire::ip4,
};

/// Whose bindings they are, and the inside address.
type Name = (Owner, Ipv4Addr);

/// A host behind the NAT: one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Host {
    pub(super) name: Name,
    /// Number of its outside address.
    pub(super) address: u8,
    pub(super) bindings: u32,
    /// By protocol.
    pub(super) ports: [u32; PROTOCOLS],
    blocks: Vec<Block>,
}

const _: () = assert!(size_of::<Option<Host>>() == 64, "a new flow touches one cache line of its host");

impl Host {
    /// A port of one of its blocks is leased no longer. The block's number, where that was the last one.
    fn give_of_block(&mut self, row: usize, address: u8, number: u16) -> Option<u16> {
        let is_it = |block: &Block| (usize::from(block.row), block.address, block.number) == (row, address, number);
        let at = self.blocks.iter().position(is_it)?;
        self.blocks[at].leased -= 1;
        (self.blocks[at].leased == 0).then(|| self.blocks.swap_remove(at).number)
    }
}

/// A block of ports that is a host's alone.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// The place of its protocol.
    row: u8,
    /// Number of the outside address.
    address: u8,
    number: u16,
    /// How many of its ports are leased.
    leased: u32,
}

/// The hosts of one worker, and the ports they are given.
#[derive(Debug)]
pub(super) struct Hosts {
    /// By number of the outside address, and protocol.
    ports: Vec<Option<[Ports; PROTOCOLS]>>,
    hosts: Vec<Option<Host>>,
    places: Pool,
    by_name: KeyIndex<Name>,
    /// Those of IPv6, which the others are tokens of.
    pub(super) ip6: Hosts6,
    /// The outside addresses, by number: the last that had it; the unspecified one where none has.
    addresses: Box<[IpAddr; ADDRESSES_MAX]>,
    /// Whose ports there are: the one of this number.
    worker: usize,
}

/// What a binding was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lease {
    /// Number of the outside address.
    pub(super) address: u8,
    pub(super) port: u16,
}

impl Hosts {
    /// No hosts, but room for `capacity`, and as many of IPv6, and all ports that are `worker`'s. `hash_key` is secret.
    pub(super) fn new(
        config: &NatConfig,
        outside: &OutsideAddresses,
        worker: usize,
        capacity: u32,
        hash_key: [u8; 16],
    ) -> Self {
        let mut hosts = Self {
            ports: (0..ADDRESSES_MAX).map(|_| None).collect(),
            hosts: Vec::with_capacity(capacity as usize),
            places: Pool::new(capacity),
            by_name: KeyIndex::new(capacity, hash_key),
            ip6: Hosts6::new(if config.has_ip6() { capacity } else { 0 }),
            addresses: Box::new([Ipv4Addr::UNSPECIFIED.into(); ADDRESSES_MAX]),
            worker,
        };
        hosts.set_outside(config, outside);
        hosts
    }

    /// Huge pages that the hosts of a worker take where they can.
    pub(super) fn huge_pages(capacity: u32) -> usize {
        KeyIndex::<Name>::huge_pages(capacity)
    }

    /// Asks for the memory that [`Hosts::ask_for`] of the same key begins with.
    pub(super) fn ask_for_place(&self, key: &BindingKey) {
        self.by_name.ask_for(&(key.owner, key.address));
    }

    /// Asks for the host of a new binding, where it is known.
    pub(super) fn ask_for(&self, key: &BindingKey) {
        let place = self.by_name.candidate(&(key.owner, key.address));
        if let Some(host) = place.and_then(|place| self.hosts.get(place as usize)) {
            prefetch(host);
        }
    }

    fn find(&self, name: Name) -> Option<u32> {
        self.by_name.find(&name, |place| matches!(&self.hosts[place as usize], Some(host) if host.name == name))
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
    /// There must be room for a host: each has a binding.
    pub(super) fn lease(
        &mut self,
        config: &NatConfig,
        key: &BindingKey,
        is_good: Option<&dyn Fn(Lease) -> bool>,
        answers: Option<&Answers<'_>>,
        random: &mut Random,
        now: Nanos,
    ) -> Result<(u32, Lease), Reason> {
        let row = row(key.protocol).ok_or(Reason::UnknownProtocol)?;
        let name = (key.owner, key.address);
        let place = self.find(name);
        let is_given = |number| key.owner != Owner::INSIDE || config.is_given(number);
        let address = match place.and_then(|place| self.hosts[place as usize].as_ref()) {
            Some(host) if host.bindings >= config.bindings_a_host => return Err(Reason::HostLimit),
            Some(host) if host.ports[row] >= config.ports_a_host => return Err(Reason::HostLimit),
            Some(host) if is_given(host.address) => host.address,
            // What it has of an address that was withdrawn stays its own; what is new is of another (RFC 4787 REQ-2 as far
            // as it can be kept). The last address it had may be gone, and its older flows be of yet another.
            _ => self.address_for(config, key, row, random, now)?,
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
        let mut new = Host { name, address, bindings: 0, ports: [0; PROTOCOLS], blocks: Vec::new() };
        let host = place.and_then(|place| self.hosts[place as usize].as_mut()).unwrap_or(&mut new);
        let port = match is_good {
            Some(is_good) => {
                let is_good = |port| is_good(Lease { address, port });
                let landing = lands.and_then(|lands| ports.share(|port| lands(port) && is_good(port), random, now));
                landing.or_else(|| ports.share(is_good, random, now))
            }
            None if config.port_block == 0 => ports.lease(wish, random, now),
            None => lease_in_blocks(ports, (row as u8, address), &mut host.blocks, wish, random, now, |range| {
                let outside = self.addresses[usize::from(address)];
                let protocol = key.protocol;
                tracing::info!(%inside, %outside, protocol, first = range.0, last = range.1, "block given");
            }),
        };
        let port = port.ok_or(Reason::PortsExhausted)?;
        host.address = address;
        host.bindings += 1;
        host.ports[row] += 1;
        Ok((place.unwrap_or_else(|| self.enter(new)), Lease { address, port }))
    }

    /// A host got its first binding.
    fn enter(&mut self, host: Host) -> u32 {
        let place = self.places.take().expect("there are no more hosts than bindings");
        self.by_name.insert(&host.name, place);
        put(&mut self.hosts, place, host);
        place
    }

    /// A binding of the host at `place` is gone: takes its port back, and forgets a host that has none left.
    pub(super) fn give(&mut self, place: u32, protocol: u8, lease: Lease, now: Nanos) {
        let Some(row) = row(protocol) else { return };
        let Some(ports) = &mut self.ports[usize::from(lease.address)] else { return };
        let ports = &mut ports[row];
        ports.give(lease.port, now);
        let Some(host) = self.hosts[place as usize].as_mut() else { return };
        host.bindings -= 1;
        host.ports[row] -= 1;
        let over = if host.blocks.is_empty() {
            None
        } else {
            host.give_of_block(row, lease.address, ports.block_of(lease.port))
        };
        let name = host.name;
        if host.bindings == 0 {
            self.hosts[place as usize] = None;
            self.by_name.remove(&name, place);
            self.places.give(place);
        }
        if let Some(block) = over {
            let range = ports.block_range(block);
            ports.give_block(block, now);
            let (inside, outside) = (self.name(name.1), self.outside_name(lease.address));
            tracing::info!(%inside, %outside, protocol, first = range.start(), last = range.end(), "block returned");
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.places.used() as usize
    }

    /// By place.
    pub(super) fn all(&self) -> &[Option<Host>] {
        &self.hosts
    }

    /// The ports of each outside address by protocol, and its number.
    pub(super) fn ports(&self) -> impl Iterator<Item = (u8, &[Ports; PROTOCOLS])> {
        (0..=u8::MAX).zip(&self.ports).filter_map(|(number, ports)| Some((number, ports.as_ref()?)))
    }

    /// Protocol's place, first and last port of each block of a host.
    pub(super) fn blocks(&self, host: &Host) -> impl Iterator<Item = (usize, u16, u16)> {
        let of_row = |row: usize| host.blocks.iter().filter(move |block| usize::from(block.row) == row);
        (0..PROTOCOLS).flat_map(move |row| of_row(row).map(move |block| (row, block))).filter_map(|(row, block)| {
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
    (row, address): (u8, u8),
    blocks: &mut Vec<Block>,
    wish: Wish<'_>,
    random: &mut Random,
    now: Nanos,
    log: impl Fn((u16, u16)),
) -> Option<u16> {
    for block in blocks.iter_mut().filter(|block| (block.row, block.address) == (row, address)) {
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
    blocks.push(Block { row, address, number: block, leased: 1 });
    Some(port)
}
