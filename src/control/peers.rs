//! The neighbour nodes: who they are, as the control centre says, and how good the links to them are.

use std::net::Ipv4Addr;

use super::{
    Control,
    probes::{INTERVAL, Probes},
    sessions::{EntryPath, Hop, Part, RelayDown, State},
};
use crate::{
    Nanos,
    dataplane::{command::Command, conntrack::CtIndex, forwarding::Peer},
    limits::PEERS_MAX,
    rpc::messages::{Failure, FailureReason, LinkReport, Neighbour, Neighbours, NodeName, Report},
};

/// Commands that may wait for a worker before a probe is left out: a busy node must not look like a bad link.
const PROBE_BACKLOG_MAX: usize = 64;

/// A neighbour, in its place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) neighbour: Neighbour,
    /// False: the control centre does not name it any more.
    pub(super) is_active: bool,
    pub(super) probes: Probes,
}

/// All neighbours; the workers know them by their place.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) places: Vec<Place>,
    probe_next: u64,
}

impl Peers {
    /// The neighbour of this name.
    pub(super) fn hop(&self, name: &str) -> Option<Hop> {
        let place = self.places.iter().find(|place| place.is_active && place.neighbour.node.name == name)?;
        let node = &place.neighbour.node;
        Some(Hop { name: node.name.clone(), control: node.control, data: node.data, boot_epoch: node.boot_epoch })
    }

    /// True where a neighbour has this data address.
    pub(super) fn has_address(&self, address: Ipv4Addr) -> bool {
        self.places.iter().any(|place| place.is_active && *place.neighbour.node.data.ip() == address)
    }

    /// As the workers see them.
    pub(super) fn snapshot(&self) -> Vec<Peer> {
        let peer = |place: &Place| Peer {
            address: *place.neighbour.node.data.ip(),
            port: place.neighbour.node.data.port(),
            key: place.neighbour.probe_key,
            is_active: place.is_active,
        };
        self.places.iter().map(peer).collect()
    }

    /// A probe to the neighbour in place `peer` was answered.
    pub(super) fn answered(&mut self, peer: u16, sequence: u64, round_trip: Nanos) {
        if let Some(place) = self.places.get_mut(usize::from(peer)) {
            place.probes.answered(sequence, round_trip);
        }
    }

    /// Takes the new list over. Returns the nodes that were started anew since, or are new here.
    fn update(&mut self, nodes: Vec<Neighbour>, now: Nanos) -> Vec<(NodeName, u64)> {
        let mut restarted = Vec::new();
        for place in &mut self.places {
            place.is_active = nodes.iter().any(|neighbour| neighbour.node.name == place.neighbour.node.name);
        }
        for neighbour in nodes {
            let (name, epoch) = (&neighbour.node.name, neighbour.node.boot_epoch);
            if let Some(place) = self.places.iter_mut().find(|place| place.neighbour.node.name == *name) {
                if place.neighbour.node.boot_epoch != epoch {
                    restarted.push((name.clone(), epoch));
                }
                place.neighbour = neighbour;
                continue;
            }
            restarted.push((name.clone(), epoch));
            let free = self.places.iter().position(|place| !place.is_active);
            let at = free.unwrap_or(self.places.len());
            // Probes to many neighbours are spread over the interval.
            let first = now + INTERVAL * (at as u64 % 16) / 16;
            let place = Place { neighbour, is_active: true, probes: Probes::new(first) };
            match free {
                Some(at) => self.places[at] = place,
                None if at < PEERS_MAX => self.places.push(place),
                None => tracing::warn!(node = place.neighbour.node.name, "more than {PEERS_MAX} neighbours: left out"),
            }
        }
        restarted
    }
}

impl Control {
    /// The control centre said who the neighbours are and which key signs tokens.
    pub fn on_neighbours(&mut self, neighbours: Neighbours, now: Nanos) {
        self.tokens.set_key(neighbours.token_key);
        let before = self.peers.snapshot();
        let mut nodes = neighbours.nodes;
        nodes.retain(|neighbour| neighbour.node.name != self.config.name);
        let restarted = self.peers.update(nodes, now);
        self.adjacencies.is_changed |= before != self.peers.snapshot();
        for (name, boot_epoch) in restarted {
            self.on_peer_restart(&name, boot_epoch, now);
        }
    }

    /// What this node measured, for the control centre.
    pub fn report(&self) -> Report {
        let active = self.peers.places.iter().filter(|place| place.is_active);
        let link =
            |place: &Place| LinkReport { to: place.neighbour.node.name.clone(), quality: place.probes.quality() };
        Report { name: self.config.name.clone(), boot_epoch: self.config.boot_epoch, links: active.map(link).collect() }
    }

    /// Has the workers send the probes that are due.
    pub(super) fn send_probes(&mut self, now: Nanos) {
        for (at, place) in self.peers.places.iter_mut().enumerate() {
            place.probes.expire(now);
            if !place.is_active || !place.probes.is_due(now) {
                continue;
            }
            let worker = at % self.workers.len();
            let backlog = &mut self.workers[worker].backlog;
            let sequence = (backlog.len() < PROBE_BACKLOG_MAX).then(|| {
                self.peers.probe_next += 1;
                self.peers.probe_next
            });
            place.probes.sent(sequence, now);
            if let Some(sequence) = sequence {
                backlog.push_back(Command::SendProbe { peer: at as u16, sequence });
            }
        }
    }

    /// The slots of sessions on a node that was started anew are gone: their paths over it are, too.
    fn on_peer_restart(&mut self, name: &str, boot_epoch: u64, now: Nanos) {
        tracing::debug!(node = name, "a neighbour is new, or was started anew");
        let is_old = |hop: &Hop| hop.name == name && hop.boot_epoch != boot_epoch;
        for worker in 0..self.workers.len() {
            for slot in 0..self.workers[worker].sessions.len() as u32 {
                let Some(session) = self.workers[worker].session(slot) else { continue };
                if session.state == State::Closing {
                    continue;
                }
                let ct_index = CtIndex::new(worker, slot);
                match &session.part {
                    Part::Entry(entry) => {
                        let is_lost = |path: &EntryPath| matches!(path, EntryPath::Up { next, .. } if is_old(next));
                        let lost: Vec<u8> =
                            (0u8..).zip(&entry.paths).filter(|(_, p)| is_lost(p)).map(|(n, _)| n).collect();
                        lost.into_iter().for_each(|path| self.entry_drop_path(ct_index, path, now));
                    }
                    Part::Relay(relay) => {
                        let is_down_lost = matches!(&relay.down, RelayDown::Up { next, .. } if is_old(next));
                        if is_down_lost || is_old(&relay.upstream) {
                            self.close(ct_index, now);
                        }
                    }
                    Part::Exit(exit) => {
                        let is_lost = |path: &Option<_>| {
                            path.as_ref().is_some_and(|path: &super::sessions::ExitPath| is_old(&path.upstream))
                        };
                        let lost: Vec<u8> =
                            (0u8..).zip(&exit.paths).filter(|(_, p)| is_lost(p)).map(|(n, _)| n).collect();
                        lost.into_iter().for_each(|path| self.exit_drop_path(ct_index, path, now));
                    }
                }
            }
        }
    }

    /// Removes a path at its entry; the last one ends the session.
    fn entry_drop_path(&mut self, ct_index: CtIndex, path: u8, now: Nanos) {
        let Some(session) = self.session(ct_index) else { return };
        let state = session.state;
        let Part::Entry(entry) = &mut session.part else { return };
        let EntryPath::Up { next, .. } = &entry.paths[usize::from(path)] else { return };
        let failure = Failure { hop: next.name.clone(), reason: FailureReason::Unreachable };
        let fan = entry.fan;
        self.set_entry_path(ct_index, path, EntryPath::Down(failure));
        if state == State::Open {
            self.command(ct_index.worker(), Command::SetFanLink { fan, path, link: None });
        }
        if state != State::Opening {
            self.close_if_without_path(ct_index, now);
        }
    }
}
