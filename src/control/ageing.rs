//! Sessions that are no longer used are freed. Bindings are the business of [`super::nat_ageing`].
//!
//! The last-seen stamps that the workers publish are read in bounded chunks, a little at each tick. What looks idle
//! is freed on condition that its stamp has not moved: the worker, which alone knows, has the last word. No lock, and
//! nothing that is in use is ever freed.

use std::{net::Ipv4Addr, sync::atomic::Ordering::Relaxed};

use super::{
    Control,
    sessions::{Part, State},
};
use crate::{
    Nanos, SECOND,
    dataplane::{command::Command, conntrack::CtIndex, published::Stamp, tick::Tick},
};

/// Slots of each worker that one tick looks at.
const CHUNK: usize = 2048;

/// A session without packets for this long is over; a client's keep-alives come every five seconds.
const IDLE: Nanos = 60 * SECOND;

/// A session for which no packet came at all is over after this.
const HALF_OPEN: Nanos = 30 * SECOND;

/// What is to be done about a slot.
enum Verdict {
    Keep,
    /// The client of this address has sent its first packet.
    Confirmed(Ipv4Addr),
    /// It was never written to the worker, and nobody answered.
    GiveUp,
    /// It looks idle since this tick.
    Idle {
        generation: u16,
        since: u32,
    },
}

impl Control {
    /// Looks at the next chunk of every worker's slots, and at the bindings whose time has come.
    pub(super) fn age(&mut self, now: Nanos) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].is_busy() {
                continue;
            }
            self.age_slots(worker, now);
            self.age_bindings(worker, now);
        }
    }

    fn age_slots(&mut self, worker: usize, now: Nanos) {
        let count = self.workers[worker].sessions.len();
        for _ in 0..CHUNK.min(count) {
            let tables = &mut self.workers[worker];
            let slot = tables.slot_cursor % count;
            tables.slot_cursor = slot + 1;
            let ct_index = CtIndex::new(worker, slot as u32);
            match self.slot_verdict(ct_index, now) {
                Verdict::Keep => {}
                Verdict::Confirmed(source) => self.forget_half_open(source),
                Verdict::GiveUp => self.close(ct_index, now),
                Verdict::Idle { generation, since } => {
                    let command = Command::FreeSlot { slot: slot as u32, generation, idle_since: Some(since) };
                    self.command(worker, command);
                }
            }
        }
    }

    fn slot_verdict(&mut self, ct_index: CtIndex, now: Nanos) -> Verdict {
        let tables = &mut self.workers[ct_index.worker()];
        let Some(session) = tables.sessions[ct_index.slot() as usize].as_deref_mut() else { return Verdict::Keep };
        let age = now.saturating_sub(session.since);
        match session.state {
            State::Opening if age > HALF_OPEN => return Verdict::GiveUp,
            State::Open => {}
            _ => return Verdict::Keep,
        }
        let stamp = &tables.published.slots[ct_index.slot() as usize];
        let (last_seen, is_used) = (stamp.last_seen.load(Relaxed), stamp.packets.load(Relaxed) > 0);
        if is_used
            && let Part::Entry(entry) = &mut session.part
            && std::mem::take(&mut entry.is_half_open)
        {
            return Verdict::Confirmed(entry.source);
        }
        let limit = if is_used { IDLE } else { HALF_OPEN };
        if idle(stamp, tables.tick, now).min(age) < limit {
            return Verdict::Keep;
        }
        session.state = State::Ageing;
        session.is_free_pending = true;
        Verdict::Idle { generation: session.generation, since: last_seen }
    }
}

/// For how long there was surely no packet: a stamp is good to one tick, and the worker's clock may be ahead.
fn idle(stamp: &Stamp, tick: Tick, now: Nanos) -> Nanos {
    let since = tick.at(now).wrapping_sub(stamp.last_seen.load(Relaxed)) as i32;
    tick.times((since - 1).max(0) as u32)
}
