//! Finds the next hop of an IPv6 packet and writes the Ethernet header.
//!
//! Path: everything of IPv6 that leaves -> here -> tx | punt (next hop unresolved) | drop.
//! Reads: l3, offset, length; the destination in the packet's own header. Writes: interface.

use super::{ip_output::stay, prelude::*};
use crate::wire::{ethernet, ip6};

node!(Ip6Output, "ip6_output", [Punt, Tx], ip6_output);

fn ip6_output(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let route = context.routes.lookup6(ip6::address(packet.ip(frames), ip6::DESTINATION));
    if packet.ip_length() > usize::from(route.room) {
        return stay(context, slot, &route, NodeId::Ip6Output);
    }
    packet.bytes(frames)[..ethernet::HEADER_BYTES].copy_from_slice(&route.header);
    packet.interface = route.interface;
    Verdict::Next(NodeId::Tx)
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
