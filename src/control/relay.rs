//! A node's part of a path somebody upstream sets up: checks common to relay and exit, and the relay's own.

use super::{
    Control,
    admission::check_kind,
    interface::RequestId,
    sessions::{Downstream, Hop, Name, Part, Relay, RelayDown, Session, State, WAITERS_MAX, link, source_ports},
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        conntrack::{CtIndex, RelayPorts, Role},
    },
    rpc::messages::{Failure, FailureReason, Response, SetUp, Setup},
};

impl Control {
    pub(super) fn on_setup(&mut self, caller: &str, id: RequestId, setup: Setup, now: Nanos, unix_seconds: u64) {
        self.counters.setups += 1;
        if let Err(reason) = self.setup(caller, id, setup, now, unix_seconds) {
            self.counters.setups_failed += 1;
            tracing::debug!(from = caller, %reason, "path refused");
            self.refuse(id, reason);
        }
    }

    fn setup(
        &mut self,
        caller: &str,
        id: RequestId,
        setup: Setup,
        now: Nanos,
        unix_seconds: u64,
    ) -> Result<(), FailureReason> {
        let upstream = self.peers.hop(caller).ok_or(FailureReason::UnknownNode)?;
        // What we send back goes to the caller and to nobody else.
        if upstream.data != setup.upstream.data {
            return Err(FailureReason::NotAllowed);
        }
        if !self.is_source_port(setup.upstream.source_port) {
            return Err(FailureReason::BadRequest);
        }
        let upstream = Hop { boot_epoch: setup.boot_epoch, ..upstream };
        let claims = self.claims(&setup.token, unix_seconds)?;
        let exit = self.check_route(&setup)?;
        check_kind(setup.kind, setup.mtu)?;
        let is_exit = setup.route.len() == 1;
        let has_role = if is_exit { self.config.roles.exit } else { self.config.roles.relay };
        if !has_role || !claims.allows_exit(exit) || setup.path >= claims.paths_max {
            return Err(FailureReason::NotAllowed);
        }
        if is_exit {
            let answer = self.exit_setup(upstream, claims.client, &setup, now)?;
            self.respond(id, Response::SetUp(answer));
            return Ok(());
        }
        self.relay_setup(upstream, claims.client, id, setup, now)
    }

    fn relay_setup(
        &mut self,
        upstream: Hop,
        client: String,
        id: RequestId,
        setup: Setup,
        now: Nanos,
    ) -> Result<(), FailureReason> {
        let name = Name { entry: setup.entry.clone(), session: setup.session, path: Some(setup.path) };
        if let Some(&ct_index) = self.names.get(&name) {
            if self.is_same_attempt(ct_index, &upstream, &setup) {
                return self.relay_setup_again(ct_index, id);
            }
            // The upstream gave that attempt up and its Teardown is late or lost.
            self.close(ct_index, now);
        }
        let next = self.peers.hop(&setup.route[1]).ok_or(FailureReason::UnknownNode)?;
        let key = self.own_node_key(&upstream.name, now)?;
        let place = self.take_slot(false)?;
        let (up, kind, worker) = (setup.upstream, setup.kind, place.ct_index.worker());
        let up_port = self.node_port(up.data, worker);
        let onwards = Setup {
            route: setup.route[1..].to_vec(),
            upstream: self.link_end(place.ct_index, place.generation, self.node_port(next.data, worker)),
            boot_epoch: self.config.boot_epoch,
            ..setup
        };
        let exchange = self.call_setup(next, onwards, place.ct_index, now);
        self.names.insert(name.clone(), place.ct_index);
        let session = Session {
            name,
            generation: place.generation,
            client,
            kind,
            state: State::Opening,
            since: now,
            is_free_pending: false,
            part: Part::Relay(Relay {
                upstream,
                up,
                up_port,
                key,
                down: RelayDown::Calling { exchange },
                waiters: vec![id],
            }),
        };
        self.workers[worker].put_session(place.ct_index.slot(), session);
        Ok(())
    }

    fn is_same_attempt(&mut self, ct_index: CtIndex, upstream: &Hop, setup: &Setup) -> bool {
        let Some(session) = self.session(ct_index) else { return false };
        match &session.part {
            Part::Relay(relay) => {
                relay.upstream == *upstream && relay.up == setup.upstream && session.kind == setup.kind
            }
            _ => false,
        }
    }

    /// The same Setup once more: the same answer, now or when it is there.
    fn relay_setup_again(&mut self, ct_index: CtIndex, id: RequestId) -> Result<(), FailureReason> {
        let Some(session) = self.session(ct_index) else { return Err(FailureReason::Busy) };
        let Part::Relay(relay) = &mut session.part else { return Err(FailureReason::BadRequest) };
        match session.state {
            State::Opening => {
                relay.waiters.push(id);
                if relay.waiters.len() > WAITERS_MAX {
                    let oldest = relay.waiters.remove(0);
                    self.refuse(oldest, FailureReason::Busy);
                }
            }
            State::Open => self.respond_set_up(ct_index, vec![id]),
            State::Ageing | State::Closing => return Err(FailureReason::Busy),
        }
        Ok(())
    }

    pub(super) fn relay_answered(&mut self, ct_index: CtIndex, result: Result<Downstream, Failure>, now: Nanos) {
        let own = self.data_address();
        let Some(session) = self.session(ct_index) else { return };
        let (generation, waiters) = (session.generation, session.take_waiters());
        let Part::Relay(relay) = &mut session.part else { return };
        match result {
            Ok(Downstream { next, link: down, ports, exit_address, exit_address6 }) => {
                let up = link(relay.up, relay.key);
                let up_ports = source_ports(own, relay.up.source_port, relay.up.data, relay.up_port);
                relay.down = RelayDown::Up { next, link: down, exit_address, exit_address6 };
                session.state = State::Open;
                session.since = now;
                let slot = ct_index.slot();
                let fan = RelayPorts { up: up_ports, down: ports }.to_bits();
                let command = Command::SetSlot { slot, generation, role: Role::Relay, fan, up, down };
                self.command(ct_index.worker(), command);
                self.respond_set_up(ct_index, waiters);
            }
            Err(failure) => {
                self.counters.setups_failed += 1;
                self.close(ct_index, now);
                for id in waiters {
                    self.respond(id, Response::Failed(failure.clone()));
                }
            }
        }
    }

    fn respond_set_up(&mut self, ct_index: CtIndex, waiters: Vec<RequestId>) {
        let boot_epoch = self.config.boot_epoch;
        let Some(session) = self.session(ct_index) else { return };
        let generation = session.generation;
        let Part::Relay(Relay { up_port, key, down, .. }) = &session.part else { return };
        let &RelayDown::Up { exit_address, exit_address6, .. } = down else { return };
        let (up_port, key) = (*up_port, *key);
        let key = self.node_key(key);
        let downstream = self.link_end(ct_index, generation, up_port);
        let answer = SetUp { downstream, key, exit_address, exit_address6, boot_epoch };
        for id in waiters {
            self.respond(id, Response::SetUp(answer.clone()));
        }
    }
}
