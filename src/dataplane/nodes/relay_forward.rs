//! A relay: the packet goes on to the other end of its slot, under that hop's key.
//!
//! Path: relay_input -> here -> ip_output.
//! Reads: l3, slot, kind, path, sequence. Writes: destination.
//!
//! The header has the same size on every hop, so nothing moves.

use super::prelude::*;
use crate::dataplane::{conntrack::RelayPorts, outer};

node!(RelayForward, "relay_forward", [IpOutput], relay_forward);

fn relay_forward(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    let ports = RelayPorts::from_bits(session.fan);
    let hop = if packet.kind.is_up() { (&session.down, ports.down) } else { (&session.up, ports.up) };
    outer::rewrite(frames, packet, &context.identity, hop, &context.node_keys);
    Verdict::Next(NodeId::IpOutput)
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{
            command::Command,
            conntrack::{RelayPorts, SourcePorts},
            testing::*,
        },
        wire::{ethernet, ip4, read_u16},
    };

    #[test]
    fn each_end_of_a_hop_sends_from_the_port_that_the_other_named() {
        let mut bench = Bench::new();
        bench.relay();
        let slot = bench.worker.context().slots[1];
        let ports = RelayPorts { up: SourcePorts { ours: 1, theirs: 20 }, down: SourcePorts { ours: 255, theirs: 40 } };
        let (generation, role, fan) = (slot.generation, slot.role, ports.to_bits());
        bench.tell(Command::SetSlot { slot: 1, generation, role, fan, up: slot.up, down: slot.down });
        let up = |port| Relayed { from: (UPSTREAM, port), ..Relayed::up(1, 1, vec![]) }.frame();
        let down = |port| Relayed { from: (DOWNSTREAM, port), ..Relayed::down(1, 1, vec![]) }.frame();
        let out = bench.run(&[up(DATA_PORT + 20), down(DATA_PORT + 40)]);
        let ends = |frame: &[u8]| [0, 2].map(|at| read_u16(frame, ethernet::HEADER_BYTES + ip4::HEADER_BYTES + at));
        assert_eq!(ends(&out[0]), [DATA_PORT + 255, DATA_PORT], "down the path");
        assert_eq!(ends(&out[1]), [DATA_PORT + 1, DATA_PORT], "up the path");
        for frame in [up(DATA_PORT), up(DATA_PORT + 1), up(DATA_PORT + 40), down(DATA_PORT), down(DATA_PORT + 255)] {
            bench.expect_drop(frame, "relay_input.drop.wrong_source");
        }
    }

    #[test]
    fn both_directions_go_to_the_other_end_under_its_key_with_the_rest_unchanged() {
        let mut bench = Bench::new();
        bench.relay();
        let up = Relayed { path: 3, ..Relayed::up(1, 99, b"inner bytes".to_vec()) };
        let down = Relayed { path: 3, ..Relayed::down(1, 98, b"answer".to_vec()) };
        let out = bench.run(&[up.frame(), down.frame()]);
        assert_eq!(bench.moved(), []);
        for (frame, sent_in, to, slot, key) in
            [(&out[0], &up, DOWNSTREAM, 12, DOWN_KEY), (&out[1], &down, UPSTREAM, 11, UP_KEY)]
        {
            let got = sent(frame, &key);
            assert!(got.is_authentic);
            assert_eq!(got.to, (to, DATA_PORT));
            assert_eq!((got.header.ct_index, got.header.generation), (slot, 70));
            assert_eq!((got.header.sequence, got.header.path), (sent_in.sequence, 3));
            assert_eq!((got.header.kind, &got.inner), (sent_in.kind, &sent_in.inner));
        }
    }
}
