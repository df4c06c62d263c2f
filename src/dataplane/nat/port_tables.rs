//! Who has which outside port: by the number of the address, protocol and port.
//!
//! The addresses of the start have one array. An address that comes later brings its own, made by the control core, and its
//! number keeps it: a later address of the same number uses it again. So nothing that is there is ever moved.

use super::outside::ADDRESSES_MAX;
use crate::{
    dataplane::{
        huge::{HugeArray, Memory, huge_pages_for},
        prefetch,
    },
    wire::ip4,
};

/// ICMP, TCP, UDP.
pub const PROTOCOLS: usize = 3;

/// The place of a protocol that NAT knows.
#[inline]
pub fn row(protocol: u8) -> Option<usize> {
    match protocol {
        ip4::ICMP => Some(0),
        ip4::TCP => Some(1),
        ip4::UDP => Some(2),
        _ => None,
    }
}

/// Places of one address.
const PLACES: usize = PROTOCOLS << 16;

/// What stands at a port; zero: nothing does.
pub(super) type PortPlace = u32;

/// The ports of some addresses, free.
#[derive(Debug)]
pub struct PortTable {
    numbers: Vec<u8>,
    places: HugeArray<PortPlace>,
}

impl PortTable {
    /// For addresses of these numbers.
    pub fn new(numbers: Vec<u8>) -> Self {
        let places = HugeArray::new(numbers.len() * PLACES, &0);
        Self { numbers, places }
    }
}

/// The ports of all addresses.
#[derive(Debug)]
pub(super) struct PortTables {
    arrays: Vec<HugeArray<PortPlace>>,
    /// By number: the array, and how many addresses come before it there.
    starts: Box<[Option<(u8, u8)>; ADDRESSES_MAX]>,
}

impl PortTables {
    /// Those of the start.
    pub(super) fn new(first: PortTable) -> Self {
        // Room for all that can come: a worker allocates nothing later.
        let mut tables = Self { arrays: Vec::with_capacity(ADDRESSES_MAX), starts: Box::new([None; ADDRESSES_MAX]) };
        tables.add(&mut { first });
        tables
    }

    /// Huge pages that the ports of this many addresses take where they can.
    pub(super) fn huge_pages(addresses: usize) -> usize {
        huge_pages_for(addresses * PLACES * size_of::<PortPlace>())
    }

    /// The memory of all.
    pub(super) fn memory(&self) -> Memory {
        self.arrays.iter().map(HugeArray::memory).sum()
    }

    /// Takes over the ports of more addresses, and leaves an empty table to whoever frees it. Those of a number that has
    /// some already are not used.
    pub(super) fn add(&mut self, table: &mut PortTable) {
        if table.numbers.is_empty() || self.arrays.len() == self.arrays.capacity() {
            return;
        }
        for (at, number) in table.numbers.iter().enumerate() {
            self.starts[usize::from(*number)].get_or_insert((self.arrays.len() as u8, at as u8));
        }
        self.arrays.push(std::mem::replace(&mut table.places, HugeArray::new(0, &0)));
    }

    /// What stands at a port; zero where the address has none or the protocol is unknown.
    #[inline]
    pub(super) fn get(&self, number: u8, protocol: u8, port: u16) -> PortPlace {
        self.place(number, protocol, port).map_or(0, |(array, at)| self.arrays[array][at])
    }

    /// True where the address has ports of this protocol.
    pub(super) fn has(&self, number: u8, protocol: u8) -> bool {
        self.place(number, protocol, 0).is_some()
    }

    /// Writes it, where there is such a port.
    pub(super) fn set(&mut self, number: u8, protocol: u8, port: u16, value: PortPlace) {
        if let Some((array, at)) = self.place(number, protocol, port) {
            self.arrays[array][at] = value;
        }
    }

    /// Asks for the line that [`PortTables::get`] reads.
    #[inline]
    pub(super) fn prefetch(&self, number: u8, protocol: u8, port: u16) {
        if let Some((array, at)) = self.place(number, protocol, port) {
            prefetch::prefetch(&self.arrays[array][at]);
        }
    }

    #[inline]
    fn place(&self, number: u8, protocol: u8, port: u16) -> Option<(usize, usize)> {
        let row = row(protocol)?;
        let (array, before) = self.starts[usize::from(number)]?;
        Some((usize::from(array), usize::from(before) * PLACES + (row << 16 | usize::from(port))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_every_address_has_a_place_of_its_own_and_keeps_it_when_more_come() {
        let mut tables = PortTables::new(PortTable::new(vec![0, 1, 200]));
        let all = |numbers: &[u8]| -> Vec<(u8, u8, u16)> {
            let protocols = [ip4::ICMP, ip4::TCP, ip4::UDP];
            let of = |number| {
                protocols.iter().flat_map(move |protocol| [(number, *protocol, 0), (number, *protocol, 65_535)])
            };
            numbers.iter().copied().flat_map(of).collect()
        };
        for (value, (number, protocol, port)) in (1..).zip(all(&[0, 1, 200])) {
            tables.set(number, protocol, port, value);
        }
        assert!(tables.has(200, ip4::TCP) && !tables.has(2, ip4::TCP) && !tables.has(0, 47));
        let mut more = PortTable::new(vec![2, 1]);
        tables.add(&mut more);
        assert_eq!(more.places.memory(), Memory::default(), "nothing is left to be freed by the worker");
        for (value, (number, protocol, port)) in (1..).zip(all(&[0, 1, 200])) {
            assert_eq!(tables.get(number, protocol, port), value, "number 1, too, has what it had");
        }
        assert!(all(&[2]).into_iter().all(|(number, protocol, port)| tables.get(number, protocol, port) == 0));
        tables.set(2, ip4::UDP, 7, 5);
        assert_eq!((tables.get(2, ip4::UDP, 7), tables.get(3, ip4::UDP, 7)), (5, 0));
    }
}
