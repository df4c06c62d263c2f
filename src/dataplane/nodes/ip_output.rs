//! Finds the next hop and writes the Ethernet header.
//!
//! Path: everything that leaves -> here -> tx | punt (next hop unresolved) | drop.
//! Reads: destination, offset, length. Writes: interface.

use super::prelude::*;
use crate::{
    dataplane::{command::PuntCause, forwarding::Lookup},
    wire::ethernet,
};

node!(IpOutput, "ip_output", [Punt, Tx], ip_output);

fn ip_output(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let route = context.routes.lookup(packet.destination);
    let (interface, mac) = match route.lookup {
        Lookup::Found { interface, mac } => (interface, mac),
        Lookup::NoRoute => return Verdict::Drop(Reason::NoRoute),
        Lookup::Unresolved { interface, next_hop } => {
            let index = context.routes.forwarding().interfaces.get(usize::from(interface)).map_or(0, |i| i.index);
            return context.punt(slot, PuntCause::NoAdjacency { interface: index, next_hop }, NodeId::IpOutput);
        }
    };
    if !route.is_up {
        return Verdict::Drop(Reason::InterfaceDown);
    }
    if packet.ip_length() > usize::from(route.mtu) {
        return Verdict::Drop(Reason::TooBig);
    }
    let source = context.routes.forwarding().interfaces[usize::from(interface)].mac;
    ethernet::emit(packet.bytes(frames), mac, source);
    context.packets[slot].interface = interface;
    Verdict::Next(NodeId::Tx)
}
