//! NAT bindings that are no longer used are freed, exact to one tick.
//!
//! A [`Wheel`](super::wheel::Wheel) says which bindings may have become idle now; the stamps that the worker publishes
//! say which have. Those are freed on condition that the stamp has not moved: the worker, which alone knows, has the
//! last word. No lock, no scan of what is not due, and nothing that is in use is ever freed. A binding is looked at
//! once in its time, and at least once a minute, since a worker that finds the ring to here full does not tell that a
//! connection has closed.

use std::sync::atomic::Ordering::Relaxed;

use super::Control;
use crate::{
    Nanos,
    dataplane::{command::Command, nat::Class, tick::Tick},
};

/// Bindings of each worker that one call looks at: an ageing storm must not hold up everything else. Those left over
/// come next, in order.
const CHUNK: usize = 4096;

impl Control {
    pub(super) fn tick(&self) -> Tick {
        self.config.nat.tick
    }

    /// Looks at the bindings whose time has come.
    pub(super) fn age_bindings(&mut self, worker: usize, now: Nanos) {
        let tick_now = self.tick().at(now);
        for _ in 0..CHUNK {
            let Some((index, tick)) = self.workers[worker].wheel.next(tick_now) else { break };
            let is_due = self.workers[worker].binding(index).is_some_and(|b| b.due == tick && !b.is_free_pending);
            if is_due {
                self.look_at_binding(worker, index, now);
            }
        }
    }

    /// Enters a new binding for when it could be idle. What its worker publishes of it is still that of the last use.
    pub(super) fn watch_new_binding(&mut self, worker: usize, index: u32, class: Class) {
        let (limit, tick) = (self.config.nat.timers.of(class), self.tick());
        let Some(binding) = self.workers[worker].binding(index).filter(|binding| !binding.is_flow) else { return };
        let due = tick.at(binding.since).wrapping_add(tick.ceil(limit) + 1);
        self.watch_until(worker, index, due);
    }

    /// Enters a binding for when it could be idle: it is not yet, or its timer may have become shorter.
    pub(super) fn watch_binding(&mut self, worker: usize, index: u32) {
        if let Some(due) = self.binding_due(worker, index) {
            self.watch_until(worker, index, due);
        }
    }

    fn watch_until(&mut self, worker: usize, index: u32, due: u32) {
        let tables = &mut self.workers[worker];
        let due = tables.wheel.enter(index, due);
        if let Some(binding) = tables.binding(index) {
            binding.due = due;
        }
    }

    fn look_at_binding(&mut self, worker: usize, index: u32, now: Nanos) {
        let Some(due) = self.binding_due(worker, index) else { return };
        if due.wrapping_sub(self.tick().at(now)) as i32 > 0 {
            return self.watch_binding(worker, index);
        }
        let tables = &mut self.workers[worker];
        let since = tables.published.bindings[index as usize].last_seen.load(Relaxed);
        if let Some(binding) = tables.binding(index) {
            binding.is_free_pending = true;
        }
        self.command(worker, Command::FreeBinding { index, idle_since: Some(since) });
    }

    /// The tick at whose start the binding has surely been idle for its time. `None`: it does not age, for a flow's
    /// binding is part of its session and lives as long.
    fn binding_due(&self, worker: usize, index: u32) -> Option<u32> {
        let tables = &self.workers[worker];
        let binding = tables.nat.get(index as usize)?.as_ref().filter(|binding| !binding.is_flow)?;
        let class = Class::from_number(tables.published.classes[index as usize].load(Relaxed));
        let limit = self.tick().ceil(self.config.nat.timers.of(class));
        // Until the worker has written the binding the stamp is that of the last use.
        let made = self.tick().at(binding.since);
        let last_seen = tables.published.bindings[index as usize].last_seen.load(Relaxed);
        let used = if last_seen.wrapping_sub(made) as i32 > 0 { last_seen } else { made };
        // The packet may have come at the end of its tick.
        Some(used.wrapping_add(limit).wrapping_add(1))
    }
}
