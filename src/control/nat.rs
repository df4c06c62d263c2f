//! NAT bindings: made at the setup of a flow session, or when a flow's first packet waits for one.
//!
//! Mapping is endpoint-independent (RFC 4787 REQ-1, RFC 5382 REQ-1): a binding is found by the inside alone, and
//! which server it was made for does not matter, but for the choice of the port ([`super::steering`]): answers of others may
//! have to be handed over.

use super::{
    Control,
    hosts::Lease,
    sessions::{Part, Session, State},
    tables::NatBinding,
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        conntrack::CtIndex,
        nat::{BindingInit, BindingKey, Class, Endpoint, Mapping, Owner, Translation, token},
        reason::Reason,
    },
    wire::{ip4, tcp},
};

impl Control {
    /// A packet waits because there is no binding for it: one of a tunnel at the exit, or of a host of the gateway.
    pub(super) fn on_no_binding(
        &mut self,
        worker: usize,
        waiting: u32,
        key: BindingKey,
        remote: Endpoint,
        tcp_flags: u8,
        now: Nanos,
    ) {
        match self.binding_for(worker, key, remote, tcp_flags, now) {
            Ok(Some((index, binding))) => {
                self.command(worker, Command::SetBindingAndResume { index, binding, waiting });
            }
            Ok(None) => self.command(worker, Command::Resume { waiting }),
            Err(reason) => {
                self.counters.bindings_refused += 1;
                self.refuse_packet(worker, waiting, reason);
            }
        }
    }

    /// Makes the binding, or finds that another packet of the flow had it made already: then `None`.
    fn binding_for(
        &mut self,
        worker: usize,
        key: BindingKey,
        remote: Endpoint,
        tcp_flags: u8,
        now: Nanos,
    ) -> Result<Option<(u32, BindingInit)>, Reason> {
        let held = self.may_bind(worker, &key, remote)?;
        let is_draining = key.owner == Owner::INSIDE && self.is_draining();
        let is_there = |key| self.workers[worker].find(key).is_some();
        // A static mapping serves all remote ends, also where other bindings do not.
        if is_there(&key) || key.remote.is_some() && is_there(&key.for_all()) {
            return Ok(None);
        }
        if key.protocol == ip4::TCP && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) != tcp::SYN {
            return Err(Reason::NotSyn);
        }
        if is_draining {
            return Err(Reason::Draining);
        }
        if key.owner != Owner::INSIDE && held >= self.config.bindings_a_session as usize {
            return Err(Reason::TableFull);
        }
        let mapping = key.remote.map_or(Mapping::EndpointIndependent, Mapping::EndpointDependent);
        let (index, binding) = self.make_binding(worker, key, mapping, remote, now)?;
        if let Some(exit) = self.exit_of(worker, key.owner) {
            exit.bindings.insert(index);
        }
        Ok(Some((index, binding)))
    }

    /// How many bindings the owner has, where it may have bindings at all and send to `remote`.
    fn may_bind(&mut self, worker: usize, key: &BindingKey, remote: Endpoint) -> Result<usize, Reason> {
        // The gateway's hosts go where the routes lead; what they may reach is the gateway's policy.
        let Some(slot) = key.owner.slot() else { return Ok(0) };
        let Some(session) = self.workers[worker].session(slot) else { return Err(Reason::FreeSlot) };
        let Session { state: State::Open | State::Ageing, part: Part::Exit(exit), .. } = session else {
            return Err(Reason::FreeSlot);
        };
        let (is_flow, held) = (exit.flow_binding.is_some(), exit.bindings.len());
        if is_flow {
            return Err(Reason::NotFlow);
        }
        // An address of IPv6 is a token here: the worker, who knows it, has looked at the policy.
        let is_token = matches!(token::host_of(key.address), Some((Translation::Nat66, _)));
        // To our own address there is only the way back in through another binding, which the worker takes.
        if !is_token
            && !self.config.nat.addresses.iter().any(|outside| outside.address == remote.0)
            && !self.is_exit_allowed(remote.0)
        {
            return Err(Reason::Denied);
        }
        Ok(held)
    }

    fn exit_of(&mut self, worker: usize, owner: Owner) -> Option<&mut super::sessions::Exit> {
        match &mut self.workers[worker].session(owner.slot()?)?.part {
            Part::Exit(exit) => Some(exit),
            Part::Entry(_) | Part::Relay(_) => None,
        }
    }

    /// Makes a binding and writes it to its worker.
    pub(super) fn bind(
        &mut self,
        worker: usize,
        key: BindingKey,
        mapping: Mapping,
        remote: Endpoint,
        now: Nanos,
    ) -> Result<u32, Reason> {
        let (index, binding) = self.make_binding(worker, key, mapping, remote, now)?;
        self.command(worker, Command::SetBinding { index, binding });
        Ok(index)
    }

    /// Takes a place and a port, by which answers of `remote` come to the worker if it can be. All or nothing. The binding
    /// is still to be written to the worker.
    fn make_binding(
        &mut self,
        worker: usize,
        key: BindingKey,
        mapping: Mapping,
        remote: Endpoint,
        now: Nanos,
    ) -> Result<(u32, BindingInit), Reason> {
        let tables = &mut self.workers[worker];
        if tables.is_busy() {
            return Err(Reason::Refused);
        }
        if tables.bindings.is_exhausted() {
            return Err(Reason::TableFull);
        }
        let (nat, protocol) = (&self.config.nat, key.protocol);
        let is_good = key.remote.map(|remote| {
            let shared = &tables.shared;
            move |lease: Lease| !shared.contains(&(protocol, lease, remote))
        });
        let is_good = is_good.as_ref().map(|is_good| is_good as &dyn Fn(Lease) -> bool);
        let answers = self.steering.answers(protocol, remote, worker);
        let (host, lease) = tables.hosts.lease(nat, &key, is_good, answers.as_ref(), &mut self.random, now)?;
        let Some(index) = tables.bindings.take() else {
            tables.hosts.give(host, key.protocol, lease, now);
            return Err(Reason::TableFull);
        };
        if let Some(remote) = key.remote {
            tables.shared.insert((protocol, lease, remote));
        }
        let is_flow = matches!(mapping, Mapping::Flow(_));
        let (held_lease, due) = (Some(lease), 0);
        let (is_static, is_free_pending, is_closing) = (false, false, false);
        let held = NatBinding {
            key,
            lease: held_lease,
            host,
            since: now,
            due,
            is_flow,
            is_static,
            is_free_pending,
            is_closing,
        };
        tables.put_binding(index, held);
        let binding = BindingInit {
            owner: key.owner,
            protocol,
            inside_address: key.address,
            inside_port: key.port,
            outside_address: nat.outside_token(lease.address).expect("it was leased out of the pool"),
            outside_port: lease.port,
            mapping,
            filtering: nat.filtering,
        };
        self.counters.bindings_made += 1;
        self.hold_host_of(worker, &key);
        self.watch_new_binding(worker, index, Class::first(key.protocol));
        Ok((index, binding))
    }

    /// The worker has freed a binding: its place and its port may serve another.
    pub(super) fn on_binding_freed(&mut self, worker: usize, index: u32, now: Nanos) {
        let tables = &mut self.workers[worker];
        if !tables.binding(index).is_some_and(|binding| binding.is_free_pending) {
            return;
        }
        let Some(binding) = tables.nat[index as usize].take() else { return };
        let NatBinding { key, lease, host, .. } = binding;
        // A static mapping may have taken over what this one had been found by.
        tables.by_key.remove(&key, index);
        tables.bindings.give(index);
        if let Some(lease) = lease {
            tables.hosts.give(host, key.protocol, lease, now);
            if let Some(remote) = key.remote {
                tables.shared.remove(&(key.protocol, lease, remote));
            }
        }
        self.release_host_of(worker, &key);
        if let Some(exit) = self.exit_of(worker, key.owner) {
            exit.bindings.remove(&index);
        }
        if let Some(slot) = key.owner.slot() {
            self.release_if_over(CtIndex::new(worker, slot));
        }
    }

    /// The binding had traffic after all.
    pub(super) fn on_binding_kept(&mut self, worker: usize, index: u32) {
        let Some(binding) = self.workers[worker].binding(index) else { return };
        binding.is_free_pending = false;
        if binding.is_closing {
            return self.free_binding(worker, index);
        }
        self.watch_binding(worker, index);
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
