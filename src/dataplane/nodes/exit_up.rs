//! The client's packet at its exit: the first copy is unwrapped, the others end here.
//!
//! Path: relay_input -> here -> nat_in2out | nat6_in2out | sv_reassembly (a fragment) | exit_down (a keep-alive's
//! answer) | drop.
//! Reads: slot, path, kind, sequence. Writes: offset, length, l3, l4, kind, from_inside; the fan's window.

use super::prelude::*;
use crate::{
    dataplane::outer,
    wire::{ip4, ip6, read_u16, relay},
};

node!(ExitUp, "exit_up", [NatIn2out, Nat6In2out, ExitDown, SvReassembly], exit_up);

fn exit_up(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let fan = context.slots[packet.slot as usize].fan as usize;
    if let Err(reject) = context.fans[fan].merge(packet.path, packet.sequence) {
        return Verdict::Drop(reject.into());
    }
    if packet.kind == relay::Kind::KeepAliveUp {
        // What the client may have put behind the header is not sent back.
        packet.length = packet.l3 - packet.offset + outer::INNER_AT as u16;
        outer::pop(packet);
        packet.kind = relay::Kind::KeepAliveDown;
        return Verdict::Next(NodeId::ExitDown);
    }
    outer::pop(packet);
    packet.from_inside = true;
    // Nothing of the inner packet is checked yet: whoever comes next does.
    let inner = packet.ip(frames);
    Verdict::Next(match inner.first() {
        Some(first) if first >> 4 == 6 => match ip6::parse_quoted(inner) {
            Ok(header) if header.is_fragment() => NodeId::SvReassembly,
            _ => NodeId::Nat6In2out,
        },
        _ if is_fragment(inner) => NodeId::SvReassembly,
        _ => NodeId::NatIn2out,
    })
}

fn is_fragment(inner: &[u8]) -> bool {
    inner.len() >= ip4::HEADER_BYTES && read_u16(inner, ip4::FRAGMENT) & ip4::FRAGMENT_MASK != 0
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{conntrack::NO_BINDING, testing::*},
        wire::{ip4, relay::Kind},
    };

    #[test]
    fn of_three_copies_one_packet_reaches_the_server() {
        let mut bench = Bench::new();
        bench.exit(3, NO_BINDING);
        bench.bind(ip4::UDP, 1000, 41_000, None);
        let inner = udp_packet((INSIDE, 1000), (SERVER, 53), b"question");
        let out = bench.run(&[2, 0, 1].map(|path| Relayed { path, ..Relayed::up(3, 9, inner.clone()) }.frame()));
        assert_eq!(bench.moved(), [("exit_up.drop.duplicate".to_owned(), 2)]);
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn a_keep_alive_is_answered_once_over_every_path_and_not_longer_than_asked() {
        let mut bench = Bench::new();
        bench.exit(2, NO_BINDING);
        let keep_alive = |path| Relayed { path, kind: Kind::KeepAliveUp, ..Relayed::up(3, 5, vec![7; 30]) }.frame();
        let out = bench.run(&[keep_alive(0), keep_alive(1)]);
        assert_eq!(bench.moved(), [("exit_up.drop.duplicate".to_owned(), 1)]);
        assert_eq!(out.len(), 2);
        for frame in &out {
            let got = sent(frame, &UP_KEY);
            assert!(got.is_authentic && got.inner.is_empty());
            assert_eq!((got.header.kind, got.header.sequence, got.to.0), (Kind::KeepAliveDown, 1, UPSTREAM));
        }
    }
}
