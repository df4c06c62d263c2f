//! The end of a session at this node: asked for, given up, or aged out.
//!
//! First nobody can name it any more and the nodes downstream are told; then the worker frees the slot; then, at an
//! exit, the bindings; and only when the worker has confirmed all of that are slot, fan, bindings and ports free for
//! others. So nothing of one session can ever reach another.

use super::{
    Control,
    interface::RequestId,
    sessions::{EntryPath, Hop, Name, Part, RelayDown, State},
};
use crate::{
    Nanos,
    dataplane::{command::Command, conntrack::CtIndex},
    rpc::messages::{FailureReason, LinkEnd, Response, Teardown},
};

impl Control {
    /// The upstream node ends a path. Answered with `Closed` whether or not there was one: it may be a retry.
    pub(super) fn on_teardown(&mut self, caller: &str, id: RequestId, teardown: &Teardown, now: Nanos) {
        let name = |path| Name { entry: teardown.entry.clone(), session: teardown.session, path };
        if let Some(&ct_index) = self.names.get(&name(Some(teardown.path))) {
            let is_meant = match self.session(ct_index).map(|session| &session.part) {
                Some(Part::Relay(relay)) => relay.upstream.name == caller && relay.up.is_same_slot(&teardown.upstream),
                _ => false,
            };
            if is_meant {
                self.close(ct_index, now);
            }
        }
        if let Some(&ct_index) = self.names.get(&name(None)) {
            self.exit_teardown(ct_index, caller, teardown, now);
        }
        self.respond(id, Response::Closed);
    }

    fn exit_teardown(&mut self, ct_index: CtIndex, caller: &str, teardown: &Teardown, now: Nanos) {
        let Some(Part::Exit(exit)) = self.session(ct_index).map(|session| &session.part) else { return };
        let path = exit.paths.get(usize::from(teardown.path)).and_then(Option::as_ref);
        if path.is_some_and(|path| path.upstream.name == caller && path.up.is_same_slot(&teardown.upstream)) {
            self.exit_drop_path(ct_index, teardown.path, now);
        }
    }

    /// Removes a path at its exit; the last one ends the session.
    pub(super) fn exit_drop_path(&mut self, ct_index: CtIndex, path: u8, now: Nanos) {
        let Some(Part::Exit(exit)) = self.session(ct_index).map(|session| &mut session.part) else { return };
        exit.paths[usize::from(path)] = None;
        let (fan, is_last) = (exit.fan, exit.paths.iter().all(Option::is_none));
        if is_last {
            return self.close(ct_index, now);
        }
        self.command(ct_index.worker(), Command::SetFanLink { fan, path, link: None });
    }

    /// Ends a session, whatever its state.
    pub(super) fn close(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let before = std::mem::replace(&mut session.state, State::Closing);
        if before == State::Closing {
            return;
        }
        for id in session.take_waiters() {
            self.refuse(id, FailureReason::UnknownSession);
        }
        self.unwatch(ct_index);
        self.leave(ct_index, now);
        match before {
            State::Open => self.free_slot(ct_index),
            // The worker knows nothing of it, or is about to answer.
            State::Opening => self.release_if_over(ct_index),
            State::Ageing | State::Closing => {}
        }
    }

    /// The worker has freed the slot.
    pub(super) fn on_slot_freed(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(session) = self.session(ct_index).filter(|session| session.is_free_pending) else { return };
        session.is_free_pending = false;
        if session.state == State::Ageing {
            session.state = State::Closing;
            self.counters.aged += 1;
            tracing::debug!(slot = ct_index.0, "session aged out");
            self.unwatch(ct_index);
            self.leave(ct_index, now);
        }
        let bindings = match self.session(ct_index).map(|session| &session.part) {
            Some(Part::Exit(exit)) => exit.bindings.clone(),
            _ => Default::default(),
        };
        for index in bindings {
            self.free_binding(ct_index.worker(), index);
        }
        self.release_if_over(ct_index);
    }

    /// The slot had traffic after all.
    pub(super) fn on_slot_kept(&mut self, ct_index: CtIndex) {
        let Some(session) = self.session(ct_index).filter(|session| session.is_free_pending) else { return };
        session.is_free_pending = false;
        match session.state {
            State::Ageing => {
                session.state = State::Open;
                self.write_links(ct_index);
            }
            _ => self.free_slot(ct_index),
        }
    }

    /// Gives slot and fan back once the worker holds nothing of the session any more.
    pub(super) fn release_if_over(&mut self, ct_index: CtIndex) {
        let Some(session) = self.session(ct_index) else { return };
        let has_bindings = matches!(&session.part, Part::Exit(exit) if !exit.bindings.is_empty());
        if session.state != State::Closing || session.is_free_pending || has_bindings {
            return;
        }
        let fan = session.fan();
        let tables = &mut self.workers[ct_index.worker()];
        tables.take_session(ct_index.slot());
        tables.slots.give(ct_index.slot());
        if let Some(fan) = fan {
            tables.fans.give(fan);
        }
    }

    fn free_slot(&mut self, ct_index: CtIndex) {
        let Some(session) = self.session(ct_index) else { return };
        session.is_free_pending = true;
        let (slot, generation) = (ct_index.slot(), session.generation);
        self.command(ct_index.worker(), Command::FreeSlot { slot, generation, idle_since: None });
    }

    /// Takes the session's name and its place in the counts away, and tells the nodes downstream.
    fn leave(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let (name, client, generation) = (session.name.clone(), session.client.clone(), session.generation);
        let mut exchanges = Vec::new();
        let mut downstream: Vec<(u8, Hop)> = Vec::new();
        let mut half_open = None;
        let is_entry = match &session.part {
            Part::Entry(entry) => {
                for (number, path) in (0u8..).zip(&entry.paths) {
                    match path {
                        EntryPath::Calling { exchange, .. } => exchanges.push(*exchange),
                        EntryPath::Up { next, .. } => downstream.push((number, next.clone())),
                        EntryPath::Down(_) => {}
                    }
                }
                half_open = entry.is_half_open.then_some(entry.source);
                true
            }
            Part::Relay(relay) => {
                match &relay.down {
                    RelayDown::Calling { exchange } => exchanges.push(*exchange),
                    RelayDown::Up { next, .. } => downstream.push((name.path.unwrap_or(0), next.clone())),
                }
                false
            }
            Part::Exit(_) => false,
        };
        if is_entry {
            self.forget_client(&client);
        }
        if let Some(source) = half_open {
            self.forget_half_open(source);
        }
        self.names.remove(&name);
        for exchange in exchanges {
            self.abandon(exchange, now);
        }
        let upstream: LinkEnd = self.link_end(ct_index, generation, 0);
        for (path, next) in downstream {
            let teardown = Teardown { entry: name.entry.clone(), session: name.session, path, upstream };
            self.call_teardown(next, teardown, now);
        }
    }

    fn forget_client(&mut self, client: &str) {
        if let Some(sessions) = self.clients.get_mut(client) {
            *sessions -= 1;
            if *sessions == 0 {
                self.clients.remove(client);
            }
        }
    }
}
