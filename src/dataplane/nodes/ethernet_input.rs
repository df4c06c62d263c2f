//! Looks at the EtherType.
//!
//! Path: rx -> here -> ip4_input | ip6_input | relay_input (a plain relay packet: [`express`]) | drop.
//! Reads: offset, length. Writes: l3; on the express way what ip4_input writes, too.

use super::prelude::*;
use crate::{dataplane::express, wire::ethernet};

node!(EthernetInput, "ethernet_input", [RelayInput, Ip4Input, Ip6Input], ethernet_input);

fn ethernet_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    if express::is_relay_packet(packet, frames, &context.identity) {
        return Verdict::Next(NodeId::RelayInput);
    }
    packet.l3 = packet.offset + ethernet::HEADER_BYTES as u16;
    match ethernet::ether_type(packet.bytes(frames)) {
        Some(ethernet::TYPE_IP4) => Verdict::Next(NodeId::Ip4Input),
        Some(ethernet::TYPE_IP6) => Verdict::Next(NodeId::Ip6Input),
        Some(_) => Verdict::Drop(Reason::UnknownEtherType),
        None => Verdict::Drop(Reason::TooShort),
    }
}

#[cfg(test)]
mod tests {
    use crate::dataplane::testing::*;

    #[test]
    fn short_frames_and_other_ether_types_are_dropped() {
        let mut bench = Bench::new();
        bench.expect_drop(vec![0; 13], "ethernet_input.drop.too_short");
        bench.expect_drop(vec![], "ethernet_input.drop.too_short");
        bench.expect_drop(vec![0; 60], "ethernet_input.drop.unknown_ethertype");
    }
}
