//! The server's packet at the client's entry: the first copy goes to the client, the others end here.
//!
//! Path: relay_input -> here -> ip_output | drop.
//! Reads: l3, slot, path, sequence. Writes: destination; the fan's window.
//!
//! The path number stays, so that the client sees which path won.

use super::prelude::*;
use crate::dataplane::outer;

node!(EntryDown, "entry_down", [IpOutput], entry_down);

fn entry_down(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    if let Err(reject) = context.fans[session.fan as usize].merge(packet.path, packet.sequence) {
        return Verdict::Drop(reject.into());
    }
    if session.up.port == 0 {
        return Verdict::Drop(Reason::NoPath);
    }
    let (link, key) = (&session.up, &context.fans[session.fan as usize].client_key);
    outer::rewrite_batched(frames, packet, &context.identity, link, key, &mut context.unsigned);
    Verdict::Next(NodeId::IpOutput)
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{
            command::{Command, Event},
            testing::*,
        },
        limits::WINDOW_BITS,
    };

    #[test]
    fn the_first_copy_goes_to_the_client_and_the_rest_end_here() {
        let mut bench = Bench::new();
        bench.entry(2);
        let copies = [0, 1].map(|path| Relayed { path, ..Relayed::down(2, 1, b"answer".to_vec()) }.frame());
        let out = bench.run(&copies);
        assert_eq!(bench.moved(), [("entry_down.drop.duplicate".to_owned(), 1)]);
        assert_eq!(out.len(), 1);
        let got = sent(&out[0], &UP_KEY);
        assert!(got.is_authentic);
        assert_eq!((got.to, got.inner), ((CLIENT, 5555), b"answer".to_vec()));
    }

    #[test]
    fn late_packets_pass_until_the_window_has_moved_on() {
        let mut bench = Bench::new();
        bench.entry(1);
        let far = WINDOW_BITS as u64;
        assert_eq!(bench.run(&[Relayed::down(2, far, vec![]).frame()]).len(), 1);
        assert_eq!(bench.run(&[Relayed::down(2, far - 1000, vec![]).frame()]).len(), 1, "reordering is not loss");
        bench.expect_drop(Relayed::down(2, 1, vec![]).frame(), "entry_down.drop.too_old");
    }

    #[test]
    fn what_each_path_delivered_can_be_read() {
        let mut bench = Bench::new();
        bench.entry(2);
        for (path, sequence) in [(0, 1), (1, 1), (1, 2), (0, 3)] {
            bench.run(&[Relayed { path, ..Relayed::down(2, sequence, vec![]) }.frame()]);
        }
        bench.tell(Command::ReadFan { slot: 2, fan: 0, request: 77, report: Box::default() });
        let Ok(Event::Fan { request: 77, report }) = bench.events.pop() else { panic!("no report") };
        assert_eq!((report.lowest, report.highest), (1, 3));
        assert_eq!(report.paths[..2].iter().map(|p| (p.received, p.first)).collect::<Vec<_>>(), [(2, 2), (2, 1)]);
        assert_eq!(report.client, Some((CLIENT, 5555)));
    }
}
