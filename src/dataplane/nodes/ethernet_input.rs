//! Looks at the EtherType; has the packets that most are take a short way.
//!
//! Path: rx -> here -> ip4_input | ip6_input | relay_input (a plain relay packet: [`express`](crate::dataplane::express)) | ip_output or exit_down (one
//! of a flow that the NAT knows: [`established`]) | drop.
//! Reads: offset, length. Writes: l3; on the short ways what the nodes write that are left out.

use super::{prelude::*, relay_input::ask_for_session};
use crate::{
    dataplane::{nat::established, packet::Bitmap},
    wire::ethernet,
};

/// The node's entry in the graph.
pub(in crate::dataplane) const NODE: Node = Node {
    id: NodeId::EthernetInput,
    name: "ethernet_input",
    next: &[NodeId::RelayInput, NodeId::Ip4Input, NodeId::Ip6Input, NodeId::IpOutput, NodeId::ExitDown],
    process: |context, frames, batch| {
        let others = short_ways(context, frames, batch);
        context.each(frames, others, NodeId::EthernetInput, ethernet_input);
    },
};

/// Has packets go on that need not be asked much; returns the others.
fn short_ways(context: &mut Context, frames: &mut Frames, batch: Bitmap) -> Bitmap {
    let (mut relayed, mut others) = (Bitmap::default(), Bitmap::default());
    let has_flows = !context.established.flows.is_unused();
    batch.for_each(|slot| {
        if let Some(header) = context.express.relay_header(&mut context.packets[slot], frames) {
            ask_for_session(context, header);
            relayed.insert(slot);
        } else if !(has_flows && established::ask_off_the_wire(context, frames, slot)) {
            others.insert(slot);
        }
    });
    context.move_all_on(relayed, NodeId::EthernetInput, NodeId::RelayInput);
    others.insert_all(established::pass(context, frames, NodeId::EthernetInput));
    others
}

fn ethernet_input(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
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
