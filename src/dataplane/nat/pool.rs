//! The pool of outside addresses, and how addresses come and go while the node runs.
//!
//! An address keeps its number for as long as anything knows it by that: bindings, ports, hosts. One that the file names no
//! longer is *withdrawn*: nothing new is given of it, and what there is goes on. When nothing of it is left it goes, and
//! its number waits for another address.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    NatConfig,
    outside::{FIRST6, OutsideAddresses},
    token,
};
use crate::dataplane::{
    address::Address,
    gateway::{OutsideAddress, OutsideAddress6},
};

/// Addresses of one family at most, withdrawn ones included.
const FAMILY_MAX: usize = FIRST6 as usize;

/// Why a pool cannot be changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// An address is there with other ports.
    #[error(
        "gateway.ports: {address} has the ports {}-{} until it is out of the pool or the node is started anew",
        .ports.0, .ports.1
    )]
    Ports {
        /// The address.
        address: String,
        /// What it has.
        ports: (u16, u16),
    },
    /// There are too many with those that are withdrawn.
    #[error(
        "gateway.addresses: {address} is one too many: withdrawn addresses with flows count until these are over; \
         'starnet clear nat --outside ADDRESS' ends them"
    )]
    Full {
        /// The first that found no place.
        address: String,
    },
}

impl NatConfig {
    /// Hosts of the gateway get these addresses, of which the node's own may be one.
    pub fn with_gateway(self, addresses: &[OutsideAddress]) -> Self {
        let addresses6 = self.addresses6.clone();
        self.with_pool(addresses, &addresses6).expect("a pool that is empty takes what a file may name")
    }

    /// The same where the gateway's file names these addresses: those that are there keep their numbers.
    pub fn with_pool(&self, named: &[OutsideAddress], named6: &[OutsideAddress6]) -> Result<Self, PoolError> {
        let mut new = self.clone();
        new.gateway = put(&mut new.addresses, named)?;
        let given6 = put(&mut new.addresses6, named6)?;
        let is_withdrawn = |number: &u8| {
            let is_named = match number.checked_sub(FIRST6) {
                None => new.gateway.contains(number),
                Some(place) => given6.contains(&place),
            };
            // The node's own is the overlay's, whether or not hosts have ever got it.
            let is_overlays = *number == 0 && !self.gateway.contains(&0) && !self.withdrawn.contains(&0);
            !is_named && !is_overlays
        };
        new.withdrawn = new.numbers().chain(new.all_numbers6()).filter(is_withdrawn).collect();
        Ok(new)
    }

    /// The same without a withdrawn address of which nothing is left.
    pub fn without(&self, number: u8) -> Self {
        let mut new = self.clone();
        new.withdrawn.retain(|withdrawn| *withdrawn != number);
        match number.checked_sub(FIRST6) {
            None => new.addresses[usize::from(number)] = OutsideAddress::VACANT,
            Some(place) => new.addresses6[usize::from(place)] = OutsideAddress6::VACANT,
        }
        new
    }

    /// The pool, for a node of `workers` workers.
    pub fn outside(&self, workers: u8) -> OutsideAddresses {
        OutsideAddresses::new(&self.addresses, &self.addresses6, workers)
    }

    /// Numbers of the outside addresses of IPv4.
    pub fn numbers(&self) -> impl Iterator<Item = u8> {
        numbers(&self.addresses)
    }

    /// True where a host that has this address is given more of it: it is neither withdrawn nor gone.
    pub fn is_given(&self, number: u8) -> bool {
        self.outside_token(number).is_some() && !self.withdrawn.contains(&number)
    }

    /// Numbers of the outside addresses of IPv6 that hosts are given.
    pub fn numbers6(&self) -> impl Iterator<Item = u8> {
        self.all_numbers6().filter(|number| !self.withdrawn.contains(number))
    }

    /// Those of withdrawn ones, too.
    pub fn all_numbers6(&self) -> impl Iterator<Item = u8> {
        numbers(&self.addresses6).map(|place| FIRST6 + place)
    }

    /// What the tables know the outside address of this number by.
    pub fn outside_token(&self, number: u8) -> Option<Ipv4Addr> {
        match number.checked_sub(FIRST6) {
            None => there(&self.addresses, number).map(|outside| outside.address),
            Some(place) => there(&self.addresses6, place).map(|_| token::outside(place)),
        }
    }

    /// What the tables know an outside address of IPv6 by.
    pub fn outside_token6(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let place = self.addresses6.iter().position(|outside| outside.address == address)?;
        Some(token::outside(place as u8))
    }

    /// The outside address of this number.
    pub fn outside_address(&self, number: u8) -> Option<IpAddr> {
        match number.checked_sub(FIRST6) {
            None => there(&self.addresses, number).map(|outside| outside.address.into()),
            Some(place) => there(&self.addresses6, place).map(|outside| outside.address.into()),
        }
    }
}

fn there<A: Address>(places: &[OutsideAddress<A>], place: u8) -> Option<&OutsideAddress<A>> {
    places.get(usize::from(place)).filter(|outside| !outside.is_vacant())
}

fn numbers<A: Address>(places: &[OutsideAddress<A>]) -> impl Iterator<Item = u8> {
    (0..=u8::MAX).zip(places).filter(|(_, outside)| !outside.is_vacant()).map(|(place, _)| place)
}

/// Where each of `named` is in `places`; one that is not there is put at a vacant place, or a new one.
fn put<A: Address + Display>(
    places: &mut Vec<OutsideAddress<A>>,
    named: &[OutsideAddress<A>],
) -> Result<Vec<u8>, PoolError> {
    let mut found = Vec::with_capacity(named.len());
    for outside in named {
        let address = outside.address;
        let place = match places.iter().position(|known| known.address == address) {
            Some(place) if places[place] != *outside => {
                let OutsideAddress { first, last, .. } = places[place];
                return Err(PoolError::Ports { address: address.to_string(), ports: (first, last) });
            }
            Some(place) => place,
            None => match places.iter().position(OutsideAddress::is_vacant) {
                Some(vacant) => {
                    places[vacant] = *outside;
                    vacant
                }
                None if places.len() == FAMILY_MAX => return Err(PoolError::Full { address: address.to_string() }),
                None => {
                    places.push(*outside);
                    places.len() - 1
                }
            },
        };
        found.push(place as u8);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(n: u8) -> OutsideAddress {
        OutsideAddress { address: Ipv4Addr::new(192, 0, 2, n), first: 1024, last: 65_535 }
    }

    fn outside6(n: u16) -> OutsideAddress6 {
        OutsideAddress6 { address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n), first: 1024, last: 65_535 }
    }

    #[test]
    fn an_address_keeps_its_number_until_it_is_gone_and_then_another_has_it() {
        let start = NatConfig::new(outside(1)).with_gateway(&[outside(2), outside(3)]);
        assert_eq!((&start.gateway, &start.withdrawn), (&vec![1, 2], &vec![]));
        let next = start.with_pool(&[outside(3), outside(4)], &[]).unwrap();
        assert_eq!((&next.gateway, &next.withdrawn), (&vec![2, 3], &vec![1]), "the node's own is the overlay's");
        assert_eq!(next.outside(1).number_of(outside(2).address), Some(1), "its flows go on");
        let later = next.without(1);
        assert_eq!((later.outside_address(1), later.outside(1).number_of(outside(2).address)), (None, None));
        assert_eq!(later.outside(1).number_of(Ipv4Addr::UNSPECIFIED), None);
        assert_eq!(later.with_pool(&[outside(3), outside(5)], &[]).unwrap().gateway, [2, 1]);
        assert_eq!(next.with_pool(&[outside(2)], &[]).unwrap().withdrawn, [2, 3], "one that comes back is as it was");
    }

    #[test]
    fn the_nodes_own_address_is_withdrawn_from_hosts_alone() {
        let start = NatConfig::new(outside(1)).with_gateway(&[outside(1)]);
        let without = start.with_pool(&[outside(2)], &[]).unwrap();
        assert_eq!(without.withdrawn, [0]);
        assert_eq!(without.with_pool(&[outside(2), outside(3)], &[]).unwrap().withdrawn, [0], "and stays so");
    }

    #[test]
    fn addresses_of_ipv6_come_and_go_in_the_same_way() {
        let mut start = NatConfig::new(outside(1));
        start.addresses6 = vec![outside6(1), outside6(2)];
        let next = start.with_pool(&[], &[outside6(1), outside6(3)]).unwrap();
        assert_eq!(next.numbers6().collect::<Vec<u8>>(), [FIRST6, FIRST6 + 2]);
        assert_eq!(next.withdrawn, [FIRST6 + 1]);
        let token = next.outside(1).token_of(outside6(3).address);
        assert_eq!((token, next.outside_token(FIRST6 + 2)), (Some(token::outside(2)), token));
        let later = next.without(FIRST6 + 1);
        assert_eq!(later.outside(1).token_of(outside6(2).address), None);
        assert_eq!(later.outside(1).token_of(Ipv6Addr::UNSPECIFIED), None);
        assert_eq!(later.all_numbers6().count(), 2);
    }

    #[test]
    fn other_ports_and_too_many_addresses_are_refused() {
        let start = NatConfig::new(outside(1)).with_gateway(&[outside(2)]);
        let other = OutsideAddress { first: 2000, ..outside(2) };
        assert_eq!(
            start.with_pool(&[other], &[]).unwrap_err().to_string(),
            "gateway.ports: 192.0.2.2 has the ports 1024-65535 until it is out of the pool or the node is started anew"
        );
        let all: Vec<OutsideAddress> = (2..=127).map(outside).collect();
        let full = start.with_pool(&all, &[]).unwrap();
        assert!(full.with_pool(&[outside(128)], &[]).is_ok(), "128 with the node's own");
        let over = full.with_pool(&[outside(128), outside(129)], &[]).unwrap_err();
        assert_eq!(over, PoolError::Full { address: "192.0.2.129".to_owned() });
    }
}
