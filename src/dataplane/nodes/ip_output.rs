//! Finds the next hop and writes the Ethernet header.
//!
//! Path: everything that leaves -> here -> tx | punt (next hop unresolved) | drop.
//! Reads: destination, offset, length. Writes: interface.

use std::net::IpAddr;

use super::prelude::*;
use crate::{
    dataplane::{address::Address, command::PuntCause, forwarding::Lookup, route_cache::Cached},
    wire::ethernet,
};

node!(IpOutput, "ip_output", [Punt, Tx], ip_output);

fn ip_output(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let route = context.routes.lookup(packet.destination);
    if packet.ip_length() > usize::from(route.room) {
        let route = *route;
        return stay(context, slot, &route, NodeId::IpOutput);
    }
    packet.bytes(frames)[..ethernet::HEADER_BYTES].copy_from_slice(&route.header);
    packet.interface = route.interface;
    Verdict::Next(NodeId::Tx)
}

/// It cannot leave `node` now, at least not as it is.
#[cold]
pub(super) fn stay<A: Address + Into<IpAddr>>(
    context: &mut Context,
    slot: usize,
    route: &Cached<A>,
    node: NodeId,
) -> Verdict {
    match route.lookup {
        Lookup::NoRoute => Verdict::Drop(Reason::NoRoute),
        Lookup::Unresolved { interface, next_hop } => {
            let index = context.routes.forwarding().interfaces.get(usize::from(interface)).map_or(0, |i| i.index);
            context.punt(slot, PuntCause::NoAdjacency { interface: index, next_hop: next_hop.into() }, node)
        }
        Lookup::Found { .. } if !route.is_up => Verdict::Drop(Reason::InterfaceDown),
        Lookup::Found { .. } => Verdict::Drop(Reason::TooBig),
    }
}

#[cfg(test)]
mod tests {
    use crate::dataplane::{
        command::{Command, Event, PuntCause},
        conntrack::{CtIndex, Link, Role},
        forwarding::Adjacency,
        testing::*,
    };

    fn to(bench: &mut Bench, address: std::net::Ipv4Addr) {
        let link = |address, key| Link { address, port: DATA_PORT, generation: 0, ct_index: CtIndex(0), key };
        bench.tell(Command::SetSlot {
            slot: 1,
            generation: GENERATION,
            role: Role::Relay,
            fan: 0,
            up: link(UPSTREAM, UP),
            down: link(address, DOWN),
        });
    }

    #[test]
    fn a_packet_to_an_unresolved_neighbour_waits_for_it() {
        let mut bench = Bench::new();
        to(&mut bench, UNRESOLVED);
        assert!(bench.run(&[Relayed::up(1, 1, vec![]).frame()]).is_empty());
        let Ok(Event::Punt { waiting, cause }) = bench.events.pop() else { panic!("nothing punted") };
        assert_eq!(cause, PuntCause::NoAdjacency { interface: 5, next_hop: UNRESOLVED.into() });
        bench.change_forwarding(|f| {
            f.adjacencies.push(Adjacency { next_hop: UNRESOLVED, mac: [6; 6], interface: 0 });
            f.adjacencies.sort_unstable_by_key(|a| (a.interface, a.next_hop));
        });
        bench.commands.push(Command::Resume { waiting }).unwrap();
        let out = bench.sweep();
        assert_eq!(out[0][..12], [6, 6, 6, 6, 6, 6, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn no_route_an_interface_down_and_a_small_mtu_drop_by_reason() {
        let mut bench = Bench::new();
        to(&mut bench, std::net::Ipv4Addr::new(203, 0, 113, 1));
        bench.expect_drop(Relayed::up(1, 1, vec![]).frame(), "ip_output.drop.no_route");
        to(&mut bench, DOWNSTREAM);
        bench.change_forwarding(|f| f.interfaces[0].mtu = 100);
        bench.expect_drop(Relayed::up(1, 2, vec![0; 100]).frame(), "ip_output.drop.too_big");
        bench.change_forwarding(|f| f.interfaces[0].is_up = false);
        bench.expect_drop(Relayed::up(1, 3, vec![]).frame(), "ip_output.drop.interface_down");
    }
}
