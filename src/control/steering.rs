//! Same flow, same core: ports by which packets arrive at the worker that owns their slot or binding.
//!
//! A NIC that tells how it spreads packets, or takes rules from us ([`Spread`]), lets us choose: the source port that the
//! other end of a hop is told to send from, and the outside port of a binding. Where it does neither, or no port will do,
//! nothing is lost but time: the worker that receives the packet hands it over.
//!
//! A packet is taken to come in by the interface that the route back leaves by. Of N workers, number w has the queues w, w + N,
//! w + 2N ... of every interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::{Control, random::Random};
use crate::{
    dataplane::{
        conntrack::SOURCE_PORTS,
        forwarding::Forwarding,
        nat::Endpoint,
        route_table::RouteTable,
        rss::{End, Tuple},
        spread::Spread,
    },
    wire::ip4,
};

/// The ports that a client may be told to send from: those that nobody is given by a registry (RFC 6335).
const CLIENT_PORT_FIRST: u16 = 49_152;
const CLIENT_PORTS: u16 = u16::MAX - CLIENT_PORT_FIRST + 1;

/// What is known of the NICs.
#[derive(Debug)]
pub(super) struct Steering {
    /// By interface.
    spreads: Vec<Spread>,
    /// They differ: then it counts which one a packet comes in by.
    is_mixed: bool,
    /// By which that is told; out of date where it does not count.
    routes: RouteTable,
    routes6: RouteTable<Ipv6Addr>,
    workers: usize,
}

impl Steering {
    pub(super) fn new(interfaces: usize, workers: usize) -> Self {
        let (routes, routes6) = (RouteTable::default(), RouteTable::default());
        Self { spreads: vec![Spread::default(); interfaces], is_mixed: false, routes, routes6, workers }
    }

    /// Routes changed.
    pub(super) fn follow(&mut self, forwarding: &Forwarding) {
        if self.is_mixed {
            self.routes = forwarding.routes.clone();
            self.routes6 = forwarding.routes6.clone();
        }
    }

    /// How the NIC spreads what comes from `address`.
    fn spread(&self, address: IpAddr) -> Option<&Spread> {
        if !self.is_mixed {
            return self.spreads.first();
        }
        let interface = match address {
            IpAddr::V4(address) => self.routes.lookup(address).first()?.interface,
            IpAddr::V6(address) => self.routes6.lookup(address).first()?.interface,
        };
        self.spreads.get(usize::from(interface))
    }

    /// The answers of `remote` to what a binding of `worker` sends it. `None`: nothing is known of them.
    pub(super) fn answers(&self, protocol: u8, remote: Endpoint, worker: usize) -> Option<Answers<'_>> {
        Some(Answers { spread: self.spread(remote.0.into())?, protocol, remote, worker, workers: self.workers })
    }

    /// A source port, of those that `choices` has, by which UDP from `address` to `ours` comes to `worker`.
    fn source_port(
        &self,
        address: Ipv4Addr,
        ours: SocketAddrV4,
        worker: usize,
        mut choices: impl Iterator<Item = u16>,
    ) -> Option<u16> {
        let tuple = Tuple::v4(ip4::UDP, (address, 0), (*ours.ip(), ours.port()));
        let by_port = self.spread(address.into())?.by_port(&tuple, End::Source)?;
        choices.find(|port| by_port.queue(*port) % self.workers == worker)
    }

    /// The port that a client is told to send from. Zero: any.
    fn client_port(&self, client: Ipv4Addr, ours: SocketAddrV4, worker: usize, random: &mut Random) -> u16 {
        let start = random.below(u32::from(CLIENT_PORTS)) as u16;
        let choices = (0..SOURCE_PORTS).map(|step| CLIENT_PORT_FIRST + (start + step) % CLIENT_PORTS);
        self.source_port(client, ours, worker, choices).unwrap_or(0)
    }
}

/// Answers of a server that are to come to a worker.
#[derive(Debug)]
pub(super) struct Answers<'a> {
    spread: &'a Spread,
    protocol: u8,
    remote: Endpoint,
    worker: usize,
    workers: usize,
}

impl Answers<'_> {
    /// True for the ports of `outside` to which they do come. `None`: the port makes no difference, or the server is
    /// known by a token only (NAPT66).
    pub(super) fn landing(&self, outside: IpAddr) -> Option<impl Fn(u16) -> bool> {
        let IpAddr::V4(outside) = outside else { return None };
        let tuple = Tuple::v4(self.protocol, self.remote, (outside, 0));
        let by_port = self.spread.by_port(&tuple, End::Destination)?;
        Some(move |port| by_port.queue(port) % self.workers == self.worker)
    }
}

impl Control {
    /// How an interface spreads what it receives has changed. What is set up from now on chooses its ports by that; what
    /// there is keeps those it has, and is handed over where they lead elsewhere.
    pub(super) fn on_spread(&mut self, interface: u8, now: Spread) {
        let steering = &mut self.steering;
        let Some(place) = steering.spreads.get_mut(usize::from(interface)) else { return };
        *place = now;
        steering.is_mixed = steering.spreads.iter().any(|spread| *spread != steering.spreads[0]);
        if steering.is_mixed {
            let forwarding = self.forwarding();
            self.steering.follow(&forwarding);
        }
    }

    /// The port that the node at `data` is told to send from to a slot of `worker`.
    pub(super) fn node_port(&self, data: SocketAddrV4, worker: usize) -> u16 {
        let choices = (0..SOURCE_PORTS).map_while(|above| data.port().checked_add(above));
        self.steering.source_port(*data.ip(), self.data_address(), worker, choices).unwrap_or(data.port())
    }

    /// The port that a client is told to send from to a slot of `worker`.
    pub(super) fn client_port(&mut self, client: Ipv4Addr, worker: usize) -> u16 {
        let ours = self.data_address();
        self.steering.client_port(client, ours, worker, &mut self.random)
    }

    /// True for a port that we may be told to send from.
    pub(super) fn is_source_port(&self, port: u16) -> bool {
        port.wrapping_sub(self.config.identity.data_port) < SOURCE_PORTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::rss::{Inputs, KEY_BYTES, Rss};

    #[test]
    fn of_two_workers_each_has_every_second_queue() {
        let ours = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000);
        let other = Ipv4Addr::new(192, 0, 2, 2);
        let key: Vec<u8> = (1..=KEY_BYTES as u8).map(|byte| byte.wrapping_mul(37)).collect();
        let rss = Rss::new(&key, vec![2, 3], Inputs::ALL).unwrap();
        let mut steering = Steering::new(1, 2);
        steering.spreads[0] = Spread::by_hash(rss.clone());
        for worker in 0..2 {
            let port = steering.source_port(other, ours, worker, 49_152..49_408).unwrap();
            let tuple = Tuple::v4(ip4::UDP, (other, port), (*ours.ip(), ours.port()));
            assert_eq!(rss.queue(&tuple), Some(worker + 2));
        }
    }
}
