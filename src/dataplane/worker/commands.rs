//! What the control core has a worker do, between two sweeps.

use std::sync::atomic::Ordering::Relaxed;

use super::Worker;
use crate::{
    dataplane::{
        command::{Command, Event},
        conntrack::{FanReport, NO_BINDING, Role, Slot},
        driver::Driver,
        fan::Fan,
        graph::NodeId,
        nat::{BindingInit, ahead},
        nodes::{icmp_error, icmp6_error, probe, punt::RESERVED_FOR_ANSWERS},
        outer,
        packet::Packet,
        published::add,
        reason::Reason,
    },
    limits::{COMMANDS_A_SWEEP, EVENT_RING, FRAME_HEADROOM, PACKET_SLOTS},
    wire::{OVERLAY_BYTES, ethernet, icmp, icmp6, relay, write},
};

const _: () = assert!(RESERVED_FOR_ANSWERS < EVENT_RING, "punts have some of the ring, too");

impl<D: Driver> Worker<D> {
    /// Bounded, so that a burst of commands does not hold packets up; stops early where an answer might not fit.
    pub(super) fn apply_commands(&mut self) -> usize {
        if self.commands.is_empty() {
            return 0;
        }
        if let Ok(next) = self.commands.read_chunk(self.commands.slots().min(COMMANDS_A_SWEEP)) {
            let (first, rest) = next.as_slices();
            ahead::new_flows(&self.context, self.driver.frames(), first.iter().chain(rest));
        }
        let mut applied = 0;
        while applied < COMMANDS_A_SWEEP
            && !self.commands.is_empty()
            && self.context.events.slots() > 1
            && self.room() > 0
            && let Ok(command) = self.commands.pop()
        {
            self.apply(command);
            applied += 1;
        }
        add(&self.context.published.worker.commands, applied as u64);
        applied
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::InitFan { fan, init, client_key } => {
                if let Some(fan) = self.context.fans.get_mut(fan as usize) {
                    *fan = Fan::new(init, client_key);
                }
            }
            Command::SetFanLink { fan, path, link } => {
                if let Some(fan) = self.context.fans.get_mut(fan as usize)
                    && fan.set_link(path, link)
                {
                    self.begin_max = self.begin_max.min(PACKET_SLOTS / fan.width().max(1));
                }
            }
            Command::SetSlot { slot, generation, role, fan, up, down } => {
                self.set_slot(slot, Slot { generation, role, fan, up, down });
            }
            Command::SetNodeKey { number, key } => self.context.node_keys.set(number, &key),
            Command::FreeSlot { slot, generation, idle_since } => self.free_slot(slot, generation, idle_since),
            Command::SetBinding { index, binding } => self.set_binding(index, &binding),
            Command::SetBindingAndResume { index, binding, waiting } => {
                self.set_binding(index, &binding);
                self.resume(waiting, index);
            }
            Command::SetHost6 { place, address } => self.context.hosts6.set(place, address),
            Command::FreeBinding { index, idle_since } => {
                let stamp = self.context.published.bindings.get(index as usize);
                let is_kept = idle_since.is_some_and(|then| stamp.is_some_and(|s| s.last_seen.load(Relaxed) != then));
                if !is_kept {
                    self.context.established.flows.binding_changed(index, self.context.tick);
                    self.context.bindings.remove(index);
                }
                self.show_used();
                self.tell(if is_kept { Event::BindingKept { index } } else { Event::BindingFreed { index } });
            }
            Command::Resume { waiting } => self.resume(waiting, NO_BINDING),
            Command::Refuse { waiting, reason } => {
                if let Some((packet, _)) = self.context.waiting.take(waiting) {
                    match reason {
                        Reason::PortsExhausted | Reason::TableFull | Reason::HostLimit => self.prohibit(packet, reason),
                        Reason::Unresolved => self.host_unreachable(packet),
                        _ => self.end_waiting(packet, NodeId::Punt, reason),
                    }
                }
            }
            Command::SetForwarding(forwarding) => {
                self.context.established.flows.snapshot_changed(self.context.tick);
                let retired = self.context.routes.replace(forwarding);
                self.tell(Event::ForwardingRetired(retired));
            }
            Command::SetOutside(mut pool) => {
                // What went out to an address that is ours now, or came in to one that was, goes another way.
                self.context.established.flows.snapshot_changed(self.context.tick);
                self.context.bindings.set_outside(&mut pool);
                self.tell(Event::OutsideRetired(pool));
            }
            Command::SendProbe { peer, sequence } => self.send_probe(peer, sequence),
            Command::SwapHistograms(empty) => {
                let filled = std::mem::replace(&mut self.histograms, empty);
                self.tell(Event::Histograms(filled));
            }
            Command::ReadFan { slot, fan, request, mut report } => {
                let client = self
                    .context
                    .slots
                    .get(slot as usize)
                    .filter(|slot| slot.role == Role::Entry && slot.fan == fan)
                    .map(|slot| (slot.up.address, slot.up.port));
                if let Some(fan) = self.context.fans.get(fan as usize) {
                    *report = FanReport { client, ..fan.report() };
                }
                self.tell(Event::Fan { request, report });
            }
        }
    }

    fn set_slot(&mut self, slot: u32, mut new: Slot) {
        let Some(place) = self.context.slots.get_mut(slot as usize) else { return };
        let is_same = place.role != Role::Free && place.generation == new.generation;
        if is_same && place.up.port != 0 && new.up.port == 0 {
            // Rewritten in place: the client's address, which only this worker learns, stays.
            (new.up.address, new.up.port) = (place.up.address, place.up.port);
        }
        if place.role == Role::Free {
            add(&self.context.published.worker.slots_used, 1);
        }
        *place = new;
        if !is_same {
            self.context.published.slots[slot as usize].reset(self.context.tick);
        }
    }

    fn free_slot(&mut self, slot: u32, generation: u16, idle_since: Option<u32>) {
        if let Some(place) = self.context.slots.get_mut(slot as usize)
            && place.role != Role::Free
            && place.generation == generation
        {
            let last_seen = self.context.published.slots[slot as usize].last_seen.load(Relaxed);
            if idle_since.is_some_and(|then| then != last_seen) {
                return self.tell(Event::SlotKept { slot });
            }
            let used = &self.context.published.worker.slots_used;
            used.store(used.load(Relaxed) - 1, Relaxed);
            *place = Slot { generation, ..Slot::FREE };
        }
        self.tell(Event::SlotFreed { slot });
    }

    fn set_binding(&mut self, index: u32, binding: &BindingInit) {
        self.context.established.flows.binding_changed(index, self.context.tick);
        if self.context.bindings.insert(index, binding) {
            let class = self.context.bindings.get(index).map_or(0, |binding| binding.class() as u8);
            self.context.published.classes[index as usize].store(class, Relaxed);
            self.context.published.bindings[index as usize].reset(self.context.tick);
        }
        self.show_used();
    }

    /// The packet goes on; `binding` was made for it.
    fn resume(&mut self, waiting: u32, binding: u32) {
        if let Some((packet, node)) = self.context.waiting.take(waiting) {
            if node == NodeId::NatIn2out {
                let waited = self.context.now.saturating_sub(packet.received);
                self.histograms.first_packet.saturating_record(waited);
            }
            self.context.inject(Packet { binding, ..packet }, node).expect("apply_commands leaves room for one packet");
        }
    }

    fn send_probe(&mut self, peer: u16, sequence: u64) {
        let Some(&peer) = self.context.routes.forwarding().peers.get(usize::from(peer)) else { return };
        if !peer.is_active {
            return;
        }
        let Some(frame) = self.context.spare.pop() else { return };
        let l3 = FRAME_HEADROOM + ethernet::HEADER_BYTES;
        let mut packet = Packet {
            frame,
            offset: FRAME_HEADROOM as u16,
            length: (ethernet::HEADER_BYTES + OVERLAY_BYTES + relay::PROBE_BYTES) as u16,
            l3: l3 as u16,
            kind: relay::Kind::Probe,
            sequence,
            received: self.context.now,
            ..Packet::EMPTY
        };
        let frames = self.driver.frames();
        let payload = &mut packet.ip(frames)[outer::RELAY_AT..];
        payload.fill(0);
        write(payload, probe::SENT, &self.context.now.to_be_bytes());
        let context = &mut self.context;
        let link = probe::link_to(&peer);
        outer::rewrite_batched(frames, &mut packet, &context.identity, &link, &peer.key, &mut context.unsigned);
        context.unsigned.sign(frames);
        self.context.inject(packet, NodeId::IpOutput).expect("apply_commands leaves room for one packet");
    }

    /// A packet that waited ends without having gone through the graph again.
    pub(super) fn end_waiting(&mut self, packet: Packet, node: NodeId, reason: Reason) {
        add(&self.context.published.worker.injected, 1);
        add(&self.context.published.nodes[node as usize].drops[reason as usize], 1);
        add(&self.context.published.worker.dropped, 1);
        self.context.finished.push(packet.frame);
    }

    /// There is no room for a packet's flow: its sender is told by ICMP (RFC 5508 REQ-8). The packet becomes the error.
    fn prohibit(&mut self, packet: Packet, reason: Reason) {
        add(&self.context.published.nodes[NodeId::Punt as usize].drops[reason as usize], 1);
        let is_ip6 = packet.ip(self.driver.frames())[0] >> 4 == 6;
        let (icmp_type, icmp_code, node) = match is_ip6 {
            true => (icmp6::UNREACHABLE, icmp6::CODE_PROHIBITED, NodeId::Icmp6Error),
            false => (icmp::UNREACHABLE, icmp::CODE_PROHIBITED, NodeId::IcmpError),
        };
        self.context
            .inject(Packet { icmp_type, icmp_code, mtu: 0, ..packet }, node)
            .expect("apply_commands leaves room for one packet");
    }

    /// A packet's next hop does not answer: its sender is told by ICMP, where that is anyone. The packet becomes the error.
    fn host_unreachable(&mut self, mut packet: Packet) {
        let frames = self.driver.frames();
        let is_ip6 = packet.ip(frames)[0] >> 4 == 6;
        let unreachable = if is_ip6 { icmp6_error::host_unreachable } else { icmp_error::host_unreachable };
        let node = unreachable(&mut self.context, frames, &mut packet);
        let Some(node) = node else { return self.end_waiting(packet, NodeId::Punt, Reason::Unresolved) };
        add(&self.context.published.nodes[NodeId::Punt as usize].drops[Reason::Unresolved as usize], 1);
        self.context.inject(packet, node).expect("apply_commands leaves room for one packet");
    }

    fn tell(&mut self, event: Event) {
        self.context.events.push(event).expect("apply_commands leaves room for the answer to one command");
    }

    fn show_used(&self) {
        self.context.published.worker.bindings_used.store(self.context.bindings.used() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{conntrack::Link, testing::*};

    #[test]
    fn a_slot_in_use_is_freed_only_if_it_stayed_idle() {
        let mut bench = Bench::new();
        bench.relay();
        let stamp = (bench.now / crate::limits::TICK) as u32;
        bench.now += crate::SECOND;
        bench.run(&[Relayed::up(1, 1, vec![]).frame()]);
        bench.tell(Command::FreeSlot { slot: 1, generation: GENERATION, idle_since: Some(stamp) });
        assert!(matches!(bench.events.pop(), Ok(Event::SlotKept { slot: 1 })));
        let stamp = stamp + 10;
        bench.now += crate::SECOND;
        bench.run(&[Relayed::down(1, 1, vec![]).frame()]);
        bench.tell(Command::FreeSlot { slot: 1, generation: GENERATION, idle_since: Some(stamp) });
        assert!(
            matches!(bench.events.pop(), Ok(Event::SlotFreed { slot: 1 })),
            "the server's side keeps nothing alive"
        );
    }

    #[test]
    fn rewriting_an_entrys_slot_keeps_the_clients_address() {
        let mut bench = Bench::new();
        bench.entry(1);
        let moved = Relayed { kind: relay::Kind::KeepAliveUp, from: (ROUTER, 999), ..Relayed::from_client(1, vec![]) };
        bench.run(&[moved.frame()]);
        let slot = bench.worker.context().slots[2];
        let unknown = Link { port: 0, ..slot.up };
        bench.tell(Command::SetSlot {
            slot: 2,
            generation: GENERATION,
            role: slot.role,
            fan: slot.fan,
            up: unknown,
            down: slot.down,
        });
        let out = bench.run(&[Relayed::down(2, 1, vec![]).frame()]);
        assert_eq!(sent(&out[0], &UP_KEY).to, (ROUTER, 999));
    }

    #[test]
    fn histograms_are_exchanged_for_empty_ones() {
        let mut bench = Bench::new();
        bench.relay();
        bench.run(&[Relayed::up(1, 1, vec![]).frame()]);
        bench.tell(Command::SwapHistograms(Box::default()));
        let Ok(Event::Histograms(filled)) = bench.events.pop() else { panic!("not exchanged") };
        assert_eq!((filled.residence.len(), filled.waited.len()), (1, 0));
    }
}
