//! An inner packet on its way to the client: numbered, wrapped, a copy down every path.
//!
//! Path: exit_up (keep-alive) | nat_out2in | icmp_error -> here -> ip_output (once a path) | drop.
//! Reads: l3, slot, kind. Writes: sequence, path, offset, length, l3, l4, destination.

use super::prelude::*;
use crate::dataplane::{conntrack::Role, outer};

node!(ExitDown, "exit_down", [IpOutput], exit_down);

fn exit_down(context: &mut Context, frames: &mut Frames, slot: usize) -> Verdict {
    let packet = &mut context.packets[slot];
    let session = &context.slots[packet.slot as usize];
    if session.role != Role::Exit {
        // Its bindings are freed after it: an answer may still come, and a free slot names no fan.
        return Verdict::Drop(Reason::FreeSlot);
    }
    let fan_index = session.fan as usize;
    let fan = &mut context.fans[fan_index];
    packet.sequence = fan.next_sequence;
    fan.next_sequence += 1;
    context.fan_out(frames, slot, fan_index, NodeId::ExitDown, outer::push)
}

#[cfg(test)]
mod tests {
    use crate::{
        dataplane::{command::Command, conntrack::NO_BINDING, testing::*},
        limits::TICK,
        wire::ip4,
    };

    #[test]
    fn an_answer_for_a_session_that_is_over_reaches_no_other() {
        let answer = frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer"));
        for is_known in [false, true] {
            let mut bench = Bench::new();
            bench.entry(1);
            bench.exit(1, NO_BINDING);
            bench.bind(ip4::UDP, 1000, 41_000, None);
            bench.now += if is_known { TICK } else { 0 };
            assert_eq!(bench.run(std::slice::from_ref(&answer)).len(), 1);
            // Its binding is still there.
            bench.tell(Command::FreeSlot { slot: 3, generation: GENERATION, idle_since: None });
            bench.expect_drop(answer.clone(), "exit_down.drop.free_slot");
        }
    }
}
