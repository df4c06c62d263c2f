//! The keys of hops to other nodes: which number each has, here and at the workers.
//!
//! Whoever is asked for paths makes the key: one for each node that asks, for all its sessions. So a node has a key of
//! its own making and one that it has learnt for each neighbour, whatever the number of sessions; tags tell sessions apart by
//! the slot and generation that they cover. A key stays as long as a session uses it; the others are forgotten when
//! there is no room for a new one.

use super::{
    Control,
    sessions::{EntryPath, Part, RelayDown, Session},
    tables::put,
};
use crate::{
    Nanos, SECOND,
    dataplane::{command::Command, conntrack::NodeKey},
    limits::{NODE_KEYS_MAX, NODE_KEYS_OF_ONE_MAX},
    rpc::messages::{FailureReason, NodeName},
    wire::relay::HopKey,
};

/// Time between two looks at all sessions for keys that none of them uses.
const LOOK_INTERVAL: Nanos = SECOND;

/// All keys; a number is a place.
#[derive(Debug, Default)]
pub(super) struct NodeKeys {
    places: Vec<Option<Known>>,
    look_due: Nanos,
}

/// A key.
#[derive(Debug)]
struct Known {
    /// The other end of the hops.
    node: NodeName,
    /// Made here, for hops that the node asked for.
    is_ours: bool,
    key: HopKey,
}

impl NodeKeys {
    fn find(&self, is_it: impl Fn(&Known) -> bool) -> Option<NodeKey> {
        let place = self.places.iter().position(|known| known.as_ref().is_some_and(&is_it))?;
        Some(NodeKey(place as u16))
    }

    fn key(&self, number: NodeKey) -> HopKey {
        self.places[usize::from(number.0)].as_ref().expect("a session uses it").key
    }

    /// A place for a further key of a node; none where it has enough or all places are taken.
    fn room_for(&self, node: &str) -> Option<u32> {
        if self.places.iter().flatten().filter(|known| known.node == node).count() >= NODE_KEYS_OF_ONE_MAX {
            return None;
        }
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        (free < NODE_KEYS_MAX).then_some(free as u32)
    }
}

impl Control {
    /// The key of hops that `node` asks for, made here.
    pub(super) fn own_node_key(&mut self, node: &str, now: Nanos) -> Result<NodeKey, FailureReason> {
        match self.node_keys.find(|known| known.is_ours && known.node == node) {
            Some(number) => Ok(number),
            None => {
                let key = self.random.key();
                self.add_node_key(Known { node: node.into(), is_ours: true, key }, now)
            }
        }
    }

    /// The key of hops that `node` was asked for, as it told.
    pub(super) fn learnt_node_key(&mut self, node: &str, key: HopKey, now: Nanos) -> Result<NodeKey, FailureReason> {
        match self.node_keys.find(|known| !known.is_ours && known.key == key && known.node == node) {
            Some(number) => Ok(number),
            None => self.add_node_key(Known { node: node.into(), is_ours: false, key }, now),
        }
    }

    /// The key itself, to be told to the other end.
    pub(super) fn node_key(&self, number: NodeKey) -> HopKey {
        self.node_keys.key(number)
    }

    /// Workers hear of it before the first link that names it: commands keep their order.
    fn add_node_key(&mut self, known: Known, now: Nanos) -> Result<NodeKey, FailureReason> {
        let mut place = self.node_keys.room_for(&known.node);
        if place.is_none() && now >= self.node_keys.look_due {
            self.node_keys.look_due = now + LOOK_INTERVAL;
            self.forget_unused_node_keys();
            place = self.node_keys.room_for(&known.node);
        }
        let place = place.ok_or(FailureReason::Busy)?;
        let (number, key) = (NodeKey(place as u16), known.key);
        put(&mut self.node_keys.places, place, known);
        for worker in 0..self.workers.len() {
            self.command(worker, Command::SetNodeKey { number, key });
        }
        Ok(number)
    }

    fn forget_unused_node_keys(&mut self) {
        let mut is_used = vec![false; self.node_keys.places.len()];
        let sessions = self.workers.iter().flat_map(|tables| tables.sessions.iter().flatten());
        sessions.for_each(|session| {
            for_each_node_key(session, |number| is_used[usize::from(number.0)] = true);
        });
        for (place, is_used) in self.node_keys.places.iter_mut().zip(is_used) {
            if !is_used {
                *place = None;
            }
        }
    }
}

/// The keys that a session's links name, or will.
fn for_each_node_key(session: &Session, mut visit: impl FnMut(NodeKey)) {
    match &session.part {
        Part::Entry(entry) => entry.paths.iter().for_each(|path| {
            if let EntryPath::Up { link, .. } = path {
                visit(link.key);
            }
        }),
        Part::Relay(relay) => {
            visit(relay.key);
            if let RelayDown::Up { link, .. } = &relay.down {
                visit(link.key);
            }
        }
        Part::Exit(exit) => exit.paths.iter().flatten().for_each(|path| visit(path.key)),
    }
}
