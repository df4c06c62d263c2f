//! A relay: the packet goes on to the other end of its slot, under that hop's key.
//!
//! Path: relay_input -> here -> ip_output.
//! Reads: l3, slot, kind, path, sequence. Writes: destination.
//!
//! The header has the same size on every hop, so nothing moves.

use super::prelude::*;
use crate::dataplane::outer;

node!(RelayForward, "relay_forward", [IpOutput], relay_forward);

fn relay_forward(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    let link = if packet.kind.is_up() { &session.down } else { &session.up };
    outer::rewrite(frames, packet, &context.identity, link, &mut context.unsigned);
    Verdict::Next(NodeId::IpOutput)
}

#[cfg(test)]
mod tests {
    use crate::dataplane::testing::*;

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
