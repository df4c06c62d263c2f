//! Longest-prefix match over any number of routes.
//!
//! The address space is cut wherever a prefix begins or ends; between two cuts one route is best for every address. A
//! lookup is a binary search for the cut below the address: twenty steps for a million routes, and each worker
//! caches the result by destination. The control core builds the table, a worker only reads it.

use std::net::Ipv4Addr;

use super::{
    address::Address,
    forwarding::{Prefix, Route},
};

/// The next hop of a route that leads nowhere we may send: out of an interface that is not ours, or a route that
/// forbids its destinations. It is in the table so that no shorter prefix takes its place.
pub const NOWHERE: u8 = u8::MAX;

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop<A = Ipv4Addr> {
    /// The router; `None`: the destination is on the link.
    pub gateway: Option<A>,
    /// Index in `Forwarding::interfaces`, or [`NOWHERE`].
    pub interface: u8,
}

/// Routes, ready to be looked up.
#[derive(Clone, Debug)]
pub struct RouteTable<A: Address = Ipv4Addr> {
    /// First addresses of the ranges, ascending.
    starts: Box<[A::Bits]>,
    /// By range: which next hops, as a place in `sets`.
    ranges: Box<[u32]>,
    /// From where to where the next hops of a prefix are in `hops`. The first set is empty: no route.
    sets: Box<[(u32, u32)]>,
    hops: Box<[NextHop<A>]>,
}

impl<A: Address> Default for RouteTable<A> {
    fn default() -> Self {
        Self { starts: Box::default(), ranges: Box::default(), sets: Box::default(), hops: Box::default() }
    }
}

impl<A: Address> RouteTable<A> {
    /// Next hops that share their destinations with others of the same route.
    pub fn alternatives(&self) -> impl Iterator<Item = NextHop<A>> {
        let sets = self.sets.iter().filter(|(first, end)| end - first > 1);
        sets.flat_map(|(first, end)| &self.hops[*first as usize..*end as usize]).copied()
    }

    /// A table of `routes`, in any order. Of those with the same prefix the ones with the smallest metric count; where
    /// these are several, destinations are spread over them.
    pub fn new(routes: &[Route<A>]) -> Self {
        let mut routes = routes.to_vec();
        // Stable: next hops of one route stay in the kernel's order.
        routes.sort_by_key(|route| (route.prefix.address, route.prefix.length, route.metric));
        let mut hops: Vec<NextHop<A>> = Vec::with_capacity(routes.len());
        let mut sets = vec![(0, 0)];
        let mut cuts = Cuts::<A> { done: Vec::new(), open: Vec::new() };
        for same in routes.chunk_by(|a, b| a.prefix == b.prefix) {
            let first = hops.len();
            let best = same.iter().take_while(|route| route.metric == same[0].metric);
            hops.extend(best.map(|route| NextHop { gateway: route.gateway, interface: route.interface }));
            cuts.open(same[0].prefix, sets.len() as u32);
            sets.push((first as u32, hops.len() as u32));
        }
        cuts.close_before(None);
        let (starts, ranges) = cuts.done.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
        Self { starts: starts.into(), ranges: ranges.into(), sets: sets.into(), hops: hops.into() }
    }

    /// The next hops of the longest prefix that `destination` is in; none: no route.
    #[inline]
    pub fn lookup(&self, destination: A) -> &[NextHop<A>] {
        let above = self.starts.partition_point(|start| *start <= destination.number());
        let Some(range) = above.checked_sub(1) else { return &[] };
        let (from, to) = self.sets[self.ranges[range] as usize];
        &self.hops[from as usize..to as usize]
    }
}

/// The cuts while they are made: prefixes come sorted by first address, the shorter before the longer.
struct Cuts<A: Address> {
    /// Start of a range and its set.
    done: Vec<(A::Bits, u32)>,
    /// Prefixes that the current address is in, outermost first: last address, set.
    open: Vec<(u128, u32)>,
}

impl<A: Address> Cuts<A> {
    fn open(&mut self, prefix: Prefix<A>, set: u32) {
        let start = prefix.address.wide();
        let host_bits = u32::from(A::LENGTH - prefix.length);
        self.close_before(Some(start));
        self.cut(start, set);
        self.open.push((start | 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1), set));
    }

    /// Ends the prefixes that end before `at` (`None`: all); what they were nested in goes on.
    fn close_before(&mut self, at: Option<u128>) {
        while let Some((last, _)) = self.open.pop_if(|(last, _)| at.is_none_or(|at| *last < at)) {
            let outer = self.open.last().map_or(0, |(_, set)| *set);
            let end_of_all = u128::MAX >> (128 - u32::from(A::LENGTH));
            if last < end_of_all {
                self.cut(last + 1, outer);
            }
        }
    }

    fn cut(&mut self, at: u128, set: u32) {
        let at = A::from_wide(at).number();
        // Several prefixes begin or end here: the last word is the innermost's.
        self.done.pop_if(|(start, _)| *start == at);
        if self.done.last().is_none_or(|(_, last)| *last != set) {
            self.done.push((at, set));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: Prefix, gateway: u8, metric: u32) -> Route {
        Route { prefix, gateway: Some([10, 0, 0, gateway].into()), interface: 0, metric }
    }

    fn gateways(table: &RouteTable, destination: u32) -> Vec<u8> {
        table.lookup(destination.into()).iter().map(|hop| hop.gateway.unwrap().octets()[3]).collect()
    }

    #[test]
    fn the_longest_prefix_counts_and_behind_it_the_shorter_one_again() {
        let all = [("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.0.0.0/24", 3), ("10.0.0.7/32", 4), ("255.0.0.0/8", 5)];
        let table = RouteTable::new(&all.map(|(prefix, gateway)| route(prefix.parse().unwrap(), gateway, 0)));
        for (address, gateway) in [
            ("9.255.255.255", 1),
            ("10.0.0.6", 3),
            ("10.0.0.7", 4),
            ("10.0.0.8", 3),
            ("10.0.1.0", 2),
            ("11.0.0.0", 1),
            ("255.255.255.255", 5),
        ] {
            let address: Ipv4Addr = address.parse().unwrap();
            assert_eq!(gateways(&table, address.to_bits()), [gateway], "{address}");
        }
    }

    #[test]
    fn no_route_is_none_before_between_and_behind() {
        let table = RouteTable::new(&[route("10.0.0.0/8".parse().unwrap(), 1, 0)]);
        for address in [0, 0x09ff_ffff, 0x0b00_0000, u32::MAX] {
            assert_eq!(table.lookup(address.into()), []);
        }
        assert_eq!(RouteTable::default().lookup(Ipv4Addr::LOCALHOST), []);
    }

    #[test]
    fn equal_metrics_are_spread_over_and_larger_ones_stand_by() {
        let net = "192.0.2.0/24".parse().unwrap();
        let table = RouteTable::new(&[route(net, 1, 7), route(net, 2, 5), route(net, 3, 5)]);
        assert_eq!(gateways(&table, 0xc000_0201), [2, 3]);
    }

    #[test]
    fn addresses_of_ipv6_are_looked_up_alike_up_to_the_last_one() {
        use std::net::Ipv6Addr;
        let route = |prefix: &str, interface| Route {
            prefix: prefix.parse::<Prefix<Ipv6Addr>>().unwrap(),
            gateway: None,
            interface,
            metric: 0,
        };
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let all = [route("::/0", 1), route("2001:db8::/32", 2), route("2001:db8:0:7::/64", 3), route(last, 4)];
        let table = RouteTable::new(&all);
        for (address, interface) in [
            ("::", 1),
            ("2001:db8::", 2),
            ("2001:db8:0:7:ffff::", 3),
            ("2001:db8:0:8::", 2),
            ("2001:db9::", 1),
            (last, 4),
        ] {
            let hops = table.lookup(address.parse().unwrap());
            assert_eq!(hops.iter().map(|hop| hop.interface).collect::<Vec<_>>(), [interface], "{address}");
        }
        let table = RouteTable::new(&all[1..3]);
        assert!(table.lookup("2001:db7::".parse().unwrap()).is_empty());
        assert!(table.lookup(last.parse().unwrap()).is_empty());
    }

    proptest::proptest! {
        /// Against looking at every route.
        #[test]
        fn agrees_with_a_list(
            routes in proptest::collection::vec((0u32..64, 0u8..=6, 0u32..3), 0..40),
            destinations in proptest::collection::vec(0u32..80, 1..40),
        ) {
            // A small address space at the top of the real one, so that prefixes nest, touch and reach the end.
            let place = |n: u32| (n << 26) | (n & 3);
            let routes: Vec<Route> = routes
                .iter()
                .enumerate()
                .map(|(n, (at, length, metric))| route(Prefix::new(place(*at).into(), *length), n as u8, *metric))
                .collect();
            let table = RouteTable::new(&routes);
            for destination in destinations.into_iter().map(|n| place(n % 64).wrapping_sub(n / 64)) {
                let matching = routes.iter().filter(|route| route.prefix.contains(destination.into()));
                let longest = matching.clone().map(|route| route.prefix.length).max();
                let of_longest = matching.filter(|route| Some(route.prefix.length) == longest);
                let least = of_longest.clone().map(|route| route.metric).min();
                let expected: Vec<u8> = of_longest
                    .filter(|route| Some(route.metric) == least)
                    .map(|route| route.gateway.unwrap().octets()[3])
                    .collect();
                proptest::prop_assert_eq!(gateways(&table, destination), expected);
            }
        }
    }
}
