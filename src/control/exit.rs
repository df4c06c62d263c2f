//! The exit's part of a session's setup: the first path makes the session, the others join it.

use std::collections::BTreeSet;

use super::{
    Control,
    admission::INNER_MTU_MAX,
    sessions::{Exit, ExitPath, Hop, Name, Part, Session, State, link, source_ports, terms},
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        conntrack::{CtIndex, Link, NodeKey, Role},
        nat::{BindingKey, Mapping, Owner},
        reason::Reason,
    },
    rpc::messages::{FailureReason, SessionKind, SetUp, Setup},
    wire::ip4,
};

/// No mail through a relay: the workers drop it in tunnels, a flow is refused at once.
const SMTP: u16 = 25;

impl Control {
    pub(super) fn exit_setup(
        &mut self,
        upstream: Hop,
        client: String,
        setup: &Setup,
        now: Nanos,
    ) -> Result<SetUp, FailureReason> {
        let key = self.own_node_key(&upstream.name, now)?;
        let name = Name { entry: setup.entry.clone(), session: setup.session, path: None };
        let ct_index = match self.names.get(&name).copied() {
            Some(ct_index) => ct_index,
            None => {
                let ct_index = self.exit_session(&name, client.clone(), setup.kind, now)?;
                // The link goes to the worker before the slot, but the checks below are the same for every path.
                return self.exit_path(ct_index, upstream, &client, setup, key, Some(setup.mtu.min(INNER_MTU_MAX)));
            }
        };
        self.exit_path(ct_index, upstream, &client, setup, key, None)
    }

    /// Takes what a new session needs, all or nothing.
    fn exit_session(
        &mut self,
        name: &Name,
        client: String,
        kind: SessionKind,
        now: Nanos,
    ) -> Result<CtIndex, FailureReason> {
        if let SessionKind::Flow { protocol, server, .. } = kind
            && (!self.is_exit_allowed(*server.ip()) || (protocol == ip4::TCP && server.port() == SMTP))
        {
            return Err(FailureReason::DestinationDenied);
        }
        let place = self.take_slot(true)?;
        let (worker, slot) = (place.ct_index.worker(), place.ct_index.slot());
        let mut bindings = BTreeSet::new();
        let mut flow_binding = None;
        if let SessionKind::Flow { protocol, source, server } = kind {
            let owner = Owner::session(slot);
            let key = BindingKey { owner, protocol, address: *source.ip(), port: source.port(), remote: None };
            let remote = (*server.ip(), server.port());
            match self.bind(worker, key, Mapping::Flow(remote), remote, now) {
                Ok(index) => {
                    bindings.insert(index);
                    flow_binding = Some(index);
                }
                Err(reason) => {
                    // The worker has not seen either of them.
                    self.workers[worker].slots.give(slot);
                    self.workers[worker].fans.give(place.fan);
                    return Err(match reason {
                        Reason::PortsExhausted => FailureReason::PortsExhausted,
                        _ => FailureReason::SlotsExhausted,
                    });
                }
            }
        }
        let session = Session {
            name: name.clone(),
            generation: place.generation,
            client,
            kind,
            state: State::Open,
            since: now,
            is_free_pending: false,
            part: Part::Exit(Box::new(Exit { fan: place.fan, flow_binding, bindings, paths: Default::default() })),
        };
        self.names.insert(name.clone(), place.ct_index);
        self.workers[worker].put_session(slot, session);
        Ok(place.ct_index)
    }

    /// Adds a path, or finds it there already. `new_mtu`: the session is new, and is written to the worker.
    fn exit_path(
        &mut self,
        ct_index: CtIndex,
        upstream: Hop,
        client: &str,
        setup: &Setup,
        key: NodeKey,
        new_mtu: Option<u16>,
    ) -> Result<SetUp, FailureReason> {
        let (own, data) = (self.data_address(), setup.upstream.data);
        let fresh_port = self.node_port(data, ct_index.worker());
        let Some(session) = self.session(ct_index) else { return Err(FailureReason::Busy) };
        let (state, generation, kind) = (session.state, session.generation, session.kind);
        if session.client != client {
            return Err(FailureReason::NotAllowed);
        }
        let Part::Exit(exit) = &mut session.part else { return Err(FailureReason::BadRequest) };
        if kind != setup.kind {
            return Err(FailureReason::BadRequest);
        }
        if state != State::Open {
            // The worker is being asked whether it is idle: a moment later this is clear.
            return Err(FailureReason::Busy);
        }
        let (fan, flow_binding) = (exit.fan, exit.flow_binding);
        let place = &mut exit.paths[usize::from(setup.path)];
        let known = place.as_ref().filter(|path| path.upstream == upstream && path.up == setup.upstream);
        let (key, up_port) = match known {
            Some(path) => (path.key, path.up_port),
            None => {
                *place = Some(ExitPath { upstream, up: setup.upstream, up_port: fresh_port, key });
                let link = link(setup.upstream, key);
                let ports = source_ports(own, setup.upstream.source_port, data, fresh_port);
                let worker = ct_index.worker();
                if let Some(mtu) = new_mtu {
                    let init = terms(kind, flow_binding, mtu);
                    self.command(worker, Command::InitFan { fan, init, client_key: Default::default() });
                }
                self.command(worker, Command::SetFanLink { fan, path: setup.path, link: Some((link, ports)) });
                if new_mtu.is_some() {
                    let (slot, up, down) = (ct_index.slot(), Link::NONE, Link::NONE);
                    self.command(worker, Command::SetSlot { slot, generation, role: Role::Exit, fan, up, down });
                }
                (key, fresh_port)
            }
        };
        Ok(self.exit_answer(ct_index, generation, key, up_port))
    }

    fn exit_answer(&self, ct_index: CtIndex, generation: u16, key: NodeKey, up_port: u16) -> SetUp {
        SetUp {
            downstream: self.link_end(ct_index, generation, up_port),
            key: self.node_key(key),
            exit_address: self.config.identity.address,
            exit_address6: self.config.nat.addresses6.first().map(|outside| outside.address),
            boot_epoch: self.config.boot_epoch,
        }
    }
}
