//! The client's packet at its entry: a copy down every path.
//!
//! Path: relay_input -> here -> ip_output (once a path) | drop.
//! Reads: l3, slot, kind, sequence. Writes: path, destination, and the same of the copies.
//!
//! What comes a second time, with the client's address or not, ends here: a replayed packet must not be multiplied.
//!
//! A newer authentic keep-alive says where the client is now: downward packets go there from then on.

use super::prelude::*;
use crate::{
    dataplane::outer,
    wire::{ip4, read_u16, read_u32, relay, udp},
};

node!(EntryUp, "entry_up", [IpOutput], entry_up);

fn entry_up(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = context.packets[slot];
    let session = &mut context.slots[packet.slot as usize];
    let fan_index = session.fan as usize;
    let fan = &mut context.fans[fan_index];
    let is_newest = match fan.admit_from_client(packet.sequence) {
        Ok(is_newest) => is_newest,
        Err(reject) => return Verdict::Drop(reject.into()),
    };
    if is_newest && packet.kind == relay::Kind::KeepAliveUp {
        let ip = packet.ip(frames);
        session.up.address = read_u32(ip, ip4::SOURCE).into();
        session.up.port = read_u16(ip, ip4::HEADER_BYTES + udp::SOURCE);
    }
    context.fan_out(frames, slot, fan_index, NodeId::EntryUp, outer::rewrite)
}

#[cfg(test)]
mod tests {
    use crate::{dataplane::testing::*, wire::relay::Kind};

    #[test]
    fn a_packet_goes_down_every_path_once() {
        let mut bench = Bench::new();
        bench.entry(3);
        let out = bench.run(&[Relayed::from_client(1, b"inner".to_vec()).frame()]);
        assert_eq!(bench.moved(), []);
        let mut paths: Vec<_> = out
            .iter()
            .map(|frame| {
                let got = sent(frame, &DOWN_KEY);
                assert!(got.is_authentic && got.inner == b"inner" && got.header.sequence == 1);
                (got.header.path, got.header.ct_index)
            })
            .collect();
        paths.sort_unstable();
        assert_eq!(paths, [(0, 20), (1, 21), (2, 22)]);
    }

    #[test]
    fn a_session_without_paths_drops() {
        let mut bench = Bench::new();
        bench.entry(0);
        bench.expect_drop(Relayed::from_client(1, vec![]).frame(), "entry_up.drop.no_path");
    }

    #[test]
    fn a_replayed_packet_is_not_copied_again() {
        let mut bench = Bench::new();
        bench.entry(3);
        let packet = |sequence| Relayed::from_client(sequence, b"inner".to_vec()).frame();
        assert_eq!(bench.run(&[packet(5000), packet(5000)]).len(), 3, "both in one batch");
        assert_eq!(bench.moved(), [("entry_up.drop.duplicate".to_owned(), 1)]);
        bench.expect_drop(packet(5000), "relay_input.drop.duplicate");
        bench.expect_drop(packet(1), "relay_input.drop.too_old");
        assert_eq!(bench.run(&[packet(4900)]).len(), 3, "reordering is not replay");
        let moved = Relayed { from: (ROUTER, 1), kind: Kind::KeepAliveUp, ..Relayed::from_client(4900, vec![]) };
        bench.expect_drop(moved.frame(), "relay_input.drop.duplicate");
        let forged = Relayed { key: DOWN_KEY, ..Relayed::from_client(1 << 40, vec![]) };
        bench.expect_drop(forged.frame(), "relay_input.drop.wrong_tag");
        assert_eq!(bench.run(&[packet(5001)]).len(), 3, "a forged packet does not move the window");
    }

    #[test]
    fn a_client_moves_by_a_newer_authentic_keep_alive_only() {
        let mut bench = Bench::new();
        bench.entry(1);
        let elsewhere = (ROUTER, 1234);
        let data = |sequence| Relayed { from: elsewhere, ..Relayed::from_client(sequence, vec![]) };
        let keep_alive = |sequence| Relayed { kind: Kind::KeepAliveUp, ..data(sequence) };
        assert_eq!(bench.run(&[Relayed::from_client(10, vec![]).frame()]).len(), 1);
        bench.expect_drop(data(11).frame(), "relay_input.drop.wrong_source");
        bench.expect_drop(Relayed { key: DOWN_KEY, ..keep_alive(11) }.frame(), "relay_input.drop.wrong_tag");
        assert_eq!(bench.run(&[keep_alive(9).frame()]).len(), 1, "an old one travels on but binds nothing");
        bench.expect_drop(data(11).frame(), "relay_input.drop.wrong_source");
        assert_eq!(bench.run(&[keep_alive(12).frame()]).len(), 1);
        assert_eq!(bench.run(&[data(13).frame()]).len(), 1);
        bench.expect_drop(Relayed::from_client(14, vec![]).frame(), "relay_input.drop.wrong_source");
        let down = bench.run(&[Relayed::down(2, 1, vec![]).frame()]);
        assert_eq!(sent(&down[0], &UP_KEY).to, elsewhere);
    }
}
