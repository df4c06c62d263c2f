//! The entry's part of a session's setup: the client asks with whole paths, each next node is asked for its rest of
//! one, and when the last answer is there the session starts with the paths that are.

use std::net::Ipv4Addr;

use super::{
    Control,
    admission::{INNER_MTU_MAX, check_kind},
    interface::RequestId,
    sessions::{Downstream, Entry, EntryPath, Name, Part, Session, State, WAITERS_MAX, terms},
};
use crate::{
    Nanos,
    dataplane::{
        command::Command,
        conntrack::{CtIndex, Link, Role},
    },
    rpc::messages::{Failure, FailureReason, Open, Response, SessionId, Setup},
};

/// Sessions without a packet yet that one address may have: more look like a flood.
const HALF_OPEN_MAX: u32 = 64;

impl Control {
    pub(super) fn on_open(&mut self, source: Ipv4Addr, id: RequestId, open: Open, now: Nanos, unix_seconds: u64) {
        if let Err(reason) = self.open(source, id, open, now, unix_seconds) {
            self.counters.opens_failed += 1;
            tracing::debug!(%source, %reason, "session refused");
            self.refuse(id, reason);
        }
    }

    pub(super) fn on_close(&mut self, id: RequestId, token: &str, session: SessionId, now: Nanos, unix_seconds: u64) {
        let claims = match self.claims(token, unix_seconds) {
            Ok(claims) => claims,
            Err(reason) => return self.refuse(id, reason),
        };
        let name = Name { entry: self.config.name.clone(), session, path: None };
        match self.names.get(&name).copied() {
            Some(ct_index) if self.session(ct_index).is_some_and(|session| session.client == claims.client) => {
                self.close(ct_index, now);
                self.respond(id, Response::Closed);
            }
            // Another client's session is none, to this one.
            _ => self.refuse(id, FailureReason::UnknownSession),
        }
    }

    fn open(
        &mut self,
        source: Ipv4Addr,
        id: RequestId,
        open: Open,
        now: Nanos,
        unix_seconds: u64,
    ) -> Result<(), FailureReason> {
        let claims = self.claims(&open.token, unix_seconds)?;
        let exit = self.check_paths(&open.paths)?;
        check_kind(open.kind, open.mtu)?;
        if !self.config.roles.entry || !claims.allows_exit(exit) || open.paths.len() > usize::from(claims.paths_max) {
            return Err(FailureReason::NotAllowed);
        }
        let name = Name { entry: self.config.name.clone(), session: open.session, path: None };
        if let Some(&ct_index) = self.names.get(&name) {
            return self.open_again(ct_index, id, &claims.client, &open);
        }
        if self.clients.get(&claims.client).is_some_and(|sessions| *sessions >= claims.sessions_max)
            || claims.sessions_max == 0
        {
            return Err(FailureReason::NotAllowed);
        }
        if self.half_open.get(&source).is_some_and(|sessions| *sessions >= HALF_OPEN_MAX) {
            return Err(FailureReason::Busy);
        }

        self.counters.opens += 1;
        let place = self.take_slot(true)?;
        let key = self.random.key();
        let client_port = self.client_port(source, place.ct_index.worker());
        let paths = self.ask_next_nodes(&open, place.generation, place.ct_index, now);
        let is_without_hope = paths.iter().all(|path| matches!(path, EntryPath::Down(_)));
        *self.clients.entry(claims.client.clone()).or_default() += 1;
        *self.half_open.entry(source).or_default() += 1;
        self.names.insert(name.clone(), place.ct_index);
        let session = Session {
            name,
            generation: place.generation,
            client: claims.client,
            kind: open.kind,
            state: State::Opening,
            since: now,
            is_free_pending: false,
            part: Part::Entry(Entry {
                source,
                open,
                fan: place.fan,
                key,
                client_port,
                exit_address: Ipv4Addr::UNSPECIFIED,
                exit_address6: None,
                paths,
                care: Default::default(),
                highest: 0,
                visit_due: 0,
                waiters: vec![id],
                is_half_open: true,
            }),
        };
        self.workers[place.ct_index.worker()].put_session(place.ct_index.slot(), session);
        if is_without_hope {
            self.entry_conclude(place.ct_index, now);
        }
        Ok(())
    }

    /// The same Open once more: the same answer, now or when it is there.
    fn open_again(&mut self, ct_index: CtIndex, id: RequestId, client: &str, open: &Open) -> Result<(), FailureReason> {
        let Some(session) = self.session(ct_index) else { return Err(FailureReason::Busy) };
        let state = session.state;
        if session.client != client {
            return Err(FailureReason::NotAllowed);
        }
        let generation = session.generation;
        let Part::Entry(entry) = &mut session.part else { return Err(FailureReason::BadRequest) };
        if entry.open.paths != open.paths || entry.open.kind != open.kind || entry.open.mtu != open.mtu {
            return Err(FailureReason::BadRequest);
        }
        match state {
            State::Opening => {
                entry.waiters.push(id);
                if entry.waiters.len() > WAITERS_MAX {
                    let oldest = entry.waiters.remove(0);
                    self.refuse(oldest, FailureReason::Busy);
                }
            }
            State::Open => self.respond_opened(ct_index, generation, &[id]),
            State::Ageing | State::Closing => return Err(FailureReason::Busy),
        }
        Ok(())
    }

    /// Sends a Setup for each path whose next node is known.
    fn ask_next_nodes(&mut self, open: &Open, generation: u16, ct_index: CtIndex, now: Nanos) -> Vec<EntryPath> {
        (0..open.paths.len() as u8).map(|path| self.ask_next_node(open, path, generation, ct_index, now)).collect()
    }

    /// Sends a Setup for a path if its next node is known.
    pub(super) fn ask_next_node(
        &mut self,
        open: &Open,
        path: u8,
        generation: u16,
        ct_index: CtIndex,
        now: Nanos,
    ) -> EntryPath {
        let route = open.paths[usize::from(path)][1..].to_vec();
        let Some(next) = self.peers.hop(&route[0]) else {
            return EntryPath::Down(self.failure(FailureReason::UnknownNode));
        };
        let to = next.name.clone();
        let port = self.node_port(next.data, ct_index.worker());
        let setup = Setup {
            token: open.token.clone(),
            entry: self.config.name.clone(),
            session: open.session,
            kind: open.kind,
            mtu: open.mtu,
            path,
            route,
            upstream: self.link_end(ct_index, generation, port),
            boot_epoch: self.config.boot_epoch,
        };
        EntryPath::Calling { to, exchange: self.call_setup(next, setup, ct_index, now), failure: None }
    }

    pub(super) fn entry_path_answered(
        &mut self,
        ct_index: CtIndex,
        path: u8,
        result: Result<Downstream, Failure>,
        now: Nanos,
    ) {
        let Some(session) = self.session(ct_index) else { return };
        let state = session.state;
        let Part::Entry(entry) = &mut session.part else { return };
        let (answered, link) = match result {
            Ok(Downstream { next, link, ports, exit_address, exit_address6 }) => {
                (entry.exit_address, entry.exit_address6) = (exit_address, exit_address6);
                (EntryPath::Up { next, link, ports }, Some((link, ports)))
            }
            Err(failure) => (EntryPath::Down(failure), None),
        };
        let is_up = |path: &EntryPath| matches!(path, EntryPath::Up { .. });
        let is_first = link.is_some() && !entry.paths.iter().any(is_up);
        if state == State::Opening {
            entry.paths[usize::from(path)] = answered;
            match entry.paths.iter().any(|path| matches!(path, EntryPath::Calling { .. })) {
                false => self.entry_conclude(ct_index, now),
                true if is_first => self.hurry(ct_index, now),
                true => {}
            }
            return;
        }
        // The session has started without this path.
        let fan = entry.fan;
        self.set_entry_path(ct_index, path, answered);
        match link {
            // A slot that may just be freed gets its links if it is kept.
            Some(_) if state == State::Ageing => {}
            Some(_) => self.command(ct_index.worker(), Command::SetFanLink { fan, path, link }),
            None => self.close_if_without_path(ct_index, now),
        }
    }

    /// Ends a session of whose paths none is up or to come.
    pub(super) fn close_if_without_path(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(Session { part: Part::Entry(entry), .. }) = self.session(ct_index) else { return };
        if entry.paths.iter().all(|path| matches!(path, EntryPath::Down(_))) {
            self.close(ct_index, now);
        }
    }

    /// The session starts with the paths that are up, or is undone where there are none.
    pub(super) fn entry_conclude(&mut self, ct_index: CtIndex, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let generation = session.generation;
        let Part::Entry(entry) = &mut session.part else { return };
        let links: Vec<_> = (0u8..)
            .zip(&entry.paths)
            .filter_map(|(path, state)| match state {
                EntryPath::Up { link, ports, .. } => Some((path, (*link, *ports))),
                _ => None,
            })
            .collect();
        let waiters = std::mem::take(&mut entry.waiters);
        if links.is_empty() {
            let failure = entry.paths.iter().find_map(|path| match path {
                EntryPath::Down(failure) => Some(failure.clone()),
                _ => None,
            });
            let failure = failure.unwrap_or_else(|| self.failure(FailureReason::BadRequest));
            self.counters.opens_failed += 1;
            tracing::debug!(%failure, "no path of a session could be set up");
            self.close(ct_index, now);
            for id in waiters {
                self.respond(id, Response::Failed(failure.clone()));
            }
            return;
        }

        session.state = State::Open;
        session.since = now;
        let Part::Entry(entry) = &session.part else { return };
        let (fan, mtu) = (entry.fan, entry.open.mtu.min(INNER_MTU_MAX));
        let init = terms(session.kind, None, mtu);
        // The client's port becomes known by its first authentic keep-alive.
        let (up, client_key) = (Link { address: entry.source, ..Link::NONE }, entry.key);
        let worker = ct_index.worker();
        self.command(worker, Command::InitFan { fan, init, client_key });
        for (path, link) in links {
            self.command(worker, Command::SetFanLink { fan, path, link: Some(link) });
        }
        let (slot, role, down) = (ct_index.slot(), Role::Entry, Link::NONE);
        self.command(worker, Command::SetSlot { slot, generation, role, fan, up, down });
        self.counters.opened += 1;
        tracing::debug!(slot = ct_index.0, "session opened");
        self.respond_opened(ct_index, generation, &waiters);
        self.watch(ct_index, now);
    }

    fn respond_opened(&mut self, ct_index: CtIndex, generation: u16, waiters: &[RequestId]) {
        let Some(Session { part: Part::Entry(entry), .. }) = self.session(ct_index) else { return };
        let port = entry.client_port;
        let end = self.link_end(ct_index, generation, port);
        let Some(Session { part: Part::Entry(entry), .. }) = self.session(ct_index) else { return };
        let opened = Session::opened(entry, end);
        for &id in waiters {
            self.respond(id, Response::Opened(opened.clone()));
        }
    }

    /// One session less that no packet came for yet.
    pub(super) fn forget_half_open(&mut self, source: Ipv4Addr) {
        if let Some(sessions) = self.half_open.get_mut(&source) {
            *sessions -= 1;
            if *sessions == 0 {
                self.half_open.remove(&source);
            }
        }
    }
}
