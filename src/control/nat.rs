//! NAT bindings of the exit: made at the setup of a flow, or when the first packet of a tunnel's flow waits for one.
//!
//! Mapping is endpoint-independent (RFC 4787 REQ-1, RFC 5382 REQ-1): a binding is found by the inside alone, and
//! which server it was made for does not matter.

use std::net::Ipv4Addr;

use super::{
    Control,
    sessions::{Part, Session, State},
    tables::NatBinding,
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        conntrack::{Binding, BindingKey},
        reason::Reason,
    },
    wire::{ip4, tcp},
};

impl Control {
    /// A packet of a tunnel waits at the exit because there is no binding for it.
    pub(super) fn on_no_binding(
        &mut self,
        worker: usize,
        waiting: u32,
        key: BindingKey,
        remote: (Ipv4Addr, u16),
        tcp_flags: u8,
        now: Nanos,
    ) {
        match self.binding_for(worker, key, remote, tcp_flags, now) {
            Ok(()) => self.command(worker, Command::Resume { waiting }),
            Err(reason) => {
                self.counters.bindings_refused += 1;
                self.refuse_packet(worker, waiting, reason);
            }
        }
    }

    /// Makes the binding, or finds that another packet of the flow had it made already.
    fn binding_for(
        &mut self,
        worker: usize,
        key: BindingKey,
        remote: (Ipv4Addr, u16),
        tcp_flags: u8,
        now: Nanos,
    ) -> Result<(), Reason> {
        let limit = self.config.bindings_a_session as usize;
        let Some(session) = self.workers[worker].session(key.slot) else { return Err(Reason::FreeSlot) };
        let Session { state: State::Open | State::Ageing, part: Part::Exit(exit), .. } = session else {
            return Err(Reason::FreeSlot);
        };
        let (is_flow, held) = (exit.flow_binding.is_some(), exit.bindings.len());
        if is_flow {
            return Err(Reason::NotFlow);
        }
        // To our own address there is only the way back in through another binding, which the worker takes.
        if remote.0 != self.config.identity.address && !self.is_exit_allowed(remote.0) {
            return Err(Reason::Denied);
        }
        if self.workers[worker].by_key.contains_key(&key) {
            return Ok(());
        }
        if key.protocol == ip4::TCP && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) != tcp::SYN {
            return Err(Reason::NotSyn);
        }
        if held >= limit {
            return Err(Reason::TableFull);
        }
        let index = self.bind(worker, key, None, now)?;
        if let Some(Session { part: Part::Exit(exit), .. }) = self.workers[worker].session(key.slot) {
            exit.bindings.insert(index);
        }
        Ok(())
    }

    /// Takes a place and a port, and writes the binding to the worker. All or nothing.
    pub(super) fn bind(
        &mut self,
        worker: usize,
        key: BindingKey,
        remote: Option<(Ipv4Addr, u16)>,
        now: Nanos,
    ) -> Result<u32, Reason> {
        let outside_address = self.config.identity.address;
        let tables = &mut self.workers[worker];
        if tables.is_busy() {
            return Err(Reason::Refused);
        }
        if tables.bindings.is_exhausted() {
            return Err(Reason::TableFull);
        }
        let ports = tables.ports(key.protocol).ok_or(Reason::UnknownProtocol)?;
        let outside_port = ports.lease(&mut self.random, now).ok_or(Reason::PortsExhausted)?;
        let index = tables.bindings.take().ok_or(Reason::TableFull)?;
        let (is_free_pending, is_closing) = (false, false);
        tables.put_binding(index, NatBinding { key, outside_port, since: now, is_free_pending, is_closing });
        let binding = Binding {
            slot: key.slot,
            protocol: key.protocol,
            inside_address: key.address,
            inside_port: key.port,
            outside_address,
            outside_port,
            remote,
        };
        self.counters.bindings_made += 1;
        self.command(worker, Command::SetBinding { index, binding });
        Ok(index)
    }

    /// The worker has freed a binding: its place and its port may serve another.
    pub(super) fn on_binding_freed(&mut self, worker: usize, index: u32, now: Nanos) {
        let tables = &mut self.workers[worker];
        if !tables.binding(index).is_some_and(|binding| binding.is_free_pending) {
            return;
        }
        let Some(binding) = tables.nat[index as usize].take() else { return };
        let NatBinding { key, outside_port, .. } = binding;
        tables.by_key.remove(&key);
        tables.bindings.give(index);
        if let Some(ports) = tables.ports(key.protocol) {
            ports.give(outside_port, now);
        }
        if let Some(Session { part: Part::Exit(exit), .. }) = tables.session(key.slot) {
            exit.bindings.remove(&index);
        }
        self.release_if_over(crate::dataplane::conntrack::CtIndex::new(worker, key.slot));
    }

    /// The binding had traffic after all.
    pub(super) fn on_binding_kept(&mut self, worker: usize, index: u32) {
        let Some(binding) = self.workers[worker].binding(index) else { return };
        binding.is_free_pending = false;
        if binding.is_closing {
            self.free_binding(worker, index);
        }
    }

    /// Frees a binding whose session is gone, once no other answer about it is awaited.
    pub(super) fn free_binding(&mut self, worker: usize, index: u32) {
        let Some(binding) = self.workers[worker].binding(index) else { return };
        binding.is_closing = true;
        if !binding.is_free_pending {
            binding.is_free_pending = true;
            self.command(worker, Command::FreeBinding { index, idle_since: None });
        }
    }
}
