//! Finds the next hop of an IPv6 packet and writes the Ethernet header.
//!
//! Path: everything of IPv6 that leaves -> here -> tx | punt (next hop unresolved) | drop.
//! Reads: l3, offset, length; the destination in the packet's own header. Writes: interface.

use std::net::Ipv6Addr;

use super::prelude::*;
use crate::{
    dataplane::{command::PuntCause, forwarding::Lookup, route_cache::Cached},
    wire::{ethernet, ip6},
};

node!(Ip6Output, "ip6_output", [Punt, Tx], ip6_output);

fn ip6_output(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let route = context.routes.lookup6(ip6::address(packet.ip(frames), ip6::DESTINATION));
    if packet.ip_length() > usize::from(route.room) {
        return stay(context, slot, &route);
    }
    packet.bytes(frames)[..ethernet::HEADER_BYTES].copy_from_slice(&route.header);
    packet.interface = route.interface;
    Verdict::Next(NodeId::Tx)
}

/// It cannot leave now, at least not as it is.
#[cold]
fn stay(context: &mut Context, slot: usize, route: &Cached<Ipv6Addr>) -> Verdict {
    match route.lookup {
        Lookup::NoRoute => Verdict::Drop(Reason::NoRoute),
        Lookup::Unresolved { interface, next_hop } => {
            let index = context.routes.forwarding().interfaces.get(usize::from(interface)).map_or(0, |i| i.index);
            let cause = PuntCause::NoAdjacency { interface: index, next_hop: next_hop.into() };
            context.punt(slot, cause, NodeId::Ip6Output)
        }
        Lookup::Found { .. } if !route.is_up => Verdict::Drop(Reason::InterfaceDown),
        Lookup::Found { .. } => Verdict::Drop(Reason::TooBig),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{
            command::{Command, Event, PuntCause},
            forwarding::Adjacency,
            testing::*,
            testing6::*,
        },
        wire::ip6,
    };

    #[test]
    fn a_packet_to_an_unresolved_neighbour_waits_for_it() {
        let mut bench = Bench::gateway6();
        let unknown = "2001:db8:0:2::77".parse().unwrap();
        let sent = udp6_packet((INSIDE6, 1000), (unknown, 53), b"x");
        assert!(bench.run_at6(1, std::slice::from_ref(&sent)).is_empty());
        let Ok(Event::Punt { waiting, cause }) = bench.events.pop() else { panic!("nothing punted") };
        assert_eq!(cause, PuntCause::NoAdjacency { interface: 7, next_hop: unknown.into() });
        bench.change_forwarding(|f| {
            f.adjacencies6.push(Adjacency { next_hop: unknown, mac: [6; 6], interface: 2 });
            f.adjacencies6.sort_unstable_by_key(|a| (a.interface, a.next_hop));
        });
        bench.commands.push(Command::Resume { waiting }).unwrap();
        let out = bench.sweep();
        assert_eq!((&out[0][..6], out[0][14 + ip6::HOP_LIMIT]), (&[6; 6][..], 63));
    }

    #[test]
    fn an_interface_that_is_down_drops_by_reason() {
        let mut bench = Bench::gateway6();
        bench.change_forwarding(|f| f.interfaces[2].is_up = false);
        let sent = udp6_packet((INSIDE6, 1000), (NEIGHBOUR6, 53), b"x");
        assert!(bench.run_at6(1, &[sent]).is_empty());
        assert_eq!(bench.moved(), [("ip6_output.drop.interface_down".to_owned(), 1)]);
    }
}
