//! What the control core keeps of each worker: who has which place, and the commands on their way to it.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use hdrhistogram::Histogram;

use super::{
    hosts::{Hosts, Lease},
    interface::ControlConfig,
    key_index::KeyIndex,
    pools::{Generations, Pool},
    random::Random,
    sessions::{Part, Session},
    wheel::Wheel,
};
use crate::{
    Nanos, SECOND,
    dataplane::{
        command::{Command, Event, PuntCause},
        nat::{BindingKey, Endpoint},
        published::Published,
        tick::Tick,
    },
    limits::COMMAND_RING,
    telemetry::histogram::Histograms,
};

/// Commands that may wait for room in a worker's ring before new work for it is refused.
const BACKLOG_MAX: usize = COMMAND_RING / 2;

/// Each binding is looked at once in this time at least.
const LOOK_AT_LEAST: Nanos = 60 * SECOND;

/// One worker, as the control core sees it.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) slots: Pool,
    pub(super) generations: Generations,
    /// By slot.
    pub(super) sessions: Vec<Option<Box<Session>>>,
    pub(super) parts: Parts,
    pub(super) fans: Pool,
    pub(super) bindings: Pool,
    /// By binding.
    pub(super) nat: Vec<Option<NatBinding>>,
    pub(super) by_key: KeyIndex<BindingKey>,
    /// Endpoint-dependent bindings: which remote endpoints share an outside port.
    pub(super) shared: HashSet<(u8, Lease, Endpoint)>,
    pub(super) hosts: Hosts,
    pub(super) published: Arc<Published>,
    pub(super) backlog: VecDeque<Command>,
    /// Where the ageing scan goes on.
    pub(super) slot_cursor: usize,
    /// When the next look at each binding is due.
    pub(super) wheel: Wheel,
    /// Of the stamps.
    pub(super) tick: Tick,
    /// Empty ones to exchange; `None` while an exchange is under way.
    pub(super) spare_histograms: Option<Box<Histograms>>,
    /// Times of first packets, since the start.
    pub(super) first_packet: Histogram<u64>,
}

/// How many sessions have which part here: a million of them need not be looked at to say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) entries: usize,
    pub(super) relays: usize,
    pub(super) exits: usize,
}

impl Parts {
    fn of(&mut self, part: &Part) -> &mut usize {
        match part {
            Part::Entry(_) => &mut self.entries,
            Part::Relay(_) => &mut self.relays,
            Part::Exit(_) => &mut self.exits,
        }
    }
}

/// A NAT binding.
#[derive(Debug)]
pub(super) struct NatBinding {
    pub(super) key: BindingKey,
    /// Its port; `None`: it is static.
    pub(super) lease: Option<Lease>,
    /// Where its host is in [`Hosts`], if it has a lease.
    pub(super) host: u32,
    pub(super) since: Nanos,
    /// The tick at which it is looked at.
    pub(super) due: u32,
    /// Part of a flow session, or a static mapping: it does not age by itself.
    pub(super) is_flow: bool,
    /// Its port is none of those that are leased.
    pub(super) is_static: bool,
    /// A FreeBinding is on its way to the worker or its answer back. Never two.
    pub(super) is_free_pending: bool,
    /// Its session is gone.
    pub(super) is_closing: bool,
}

const _: () = assert!(size_of::<Option<NatBinding>>() == 48, "as docs/NAT.md says");

impl Tables {
    /// An empty worker number `worker`.
    pub(super) fn new(
        config: &ControlConfig,
        worker: usize,
        published: Arc<Published>,
        random: &mut Random,
        now: Nanos,
    ) -> Self {
        let outside = config.nat.outside(config.identity.workers);
        Self {
            slots: Pool::new(config.slots),
            generations: Generations::new(random.number() as u16),
            sessions: Vec::new(),
            parts: Parts::default(),
            fans: Pool::new(config.fans),
            bindings: Pool::new(config.bindings),
            nat: with_room(config.bindings),
            by_key: KeyIndex::new(config.bindings, random.key()),
            shared: HashSet::with_capacity(if config.nat.is_endpoint_dependent { config.bindings as usize } else { 0 }),
            hosts: Hosts::new(&config.nat, &outside, worker, config.bindings, random.key()),
            published,
            backlog: VecDeque::new(),
            slot_cursor: 0,
            wheel: Wheel::new(config.nat.tick.at(now), config.nat.tick.ceil(LOOK_AT_LEAST)),
            tick: config.nat.tick,
            spare_histograms: Some(Box::default()),
            first_packet: Histograms::new().first_packet,
        }
    }

    /// Of what the worker recorded, what is shown of each worker by itself.
    pub(super) fn add_first_packets(&mut self, recorded: &Histograms) {
        self.first_packet.add(&recorded.first_packet).expect("the bounds are the same");
    }

    /// True where the worker does not keep up with its commands.
    pub(super) fn is_busy(&self) -> bool {
        self.backlog.len() > BACKLOG_MAX
    }

    /// The session in a slot.
    pub(super) fn session(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The binding in a place.
    pub(super) fn binding(&mut self, index: u32) -> Option<&mut NatBinding> {
        self.nat.get_mut(index as usize)?.as_mut()
    }

    /// Asks for the memory that events will need, in stages: those of a burst wait together.
    pub(super) fn ask_for<'a>(&self, events: impl Iterator<Item = &'a Event> + Clone) {
        let keys = events.filter_map(|event| match event {
            Event::Punt { cause: PuntCause::NoBinding { key, .. }, .. } => Some(key),
            _ => None,
        });
        for key in keys.clone() {
            self.by_key.ask_for(key);
            self.hosts.ask_for_place(key);
        }
        keys.for_each(|key| self.hosts.ask_for(key));
    }

    /// The binding that is found by `key`.
    pub(super) fn find(&self, key: &BindingKey) -> Option<u32> {
        self.by_key.find(key, |index| matches!(self.nat.get(index as usize), Some(Some(held)) if held.key == *key))
    }

    /// Puts a session into a slot.
    pub(super) fn put_session(&mut self, slot: u32, session: Session) {
        *self.parts.of(&session.part) += 1;
        put(&mut self.sessions, slot, Box::new(session));
    }

    /// Takes a session out of its slot.
    pub(super) fn take_session(&mut self, slot: u32) {
        if let Some(session) = self.sessions[slot as usize].take() {
            *self.parts.of(&session.part) -= 1;
        }
    }

    /// Puts a binding into its place. Nothing is found by its key yet.
    pub(super) fn put_binding(&mut self, index: u32, binding: NatBinding) {
        debug_assert!(self.find(&binding.key).is_none(), "{:?} has a binding", binding.key);
        self.by_key.insert(&binding.key, index);
        put(&mut self.nat, index, binding);
    }
}

/// Room for all from the start, each page of it written once: to grow would stop the control core for as long as it takes to
/// move what is there, and a page's first use for as long as the kernel takes to find one.
fn with_room<T>(count: u32) -> Vec<Option<T>> {
    let mut array = Vec::new();
    array.resize_with(count as usize, || None);
    array.clear();
    array
}

pub(super) fn put<T>(array: &mut Vec<Option<T>>, place: u32, value: T) {
    let place = place as usize;
    if place >= array.len() {
        array.resize_with(place + 1, || None);
    }
    debug_assert!(array[place].is_none(), "place {place} is in use");
    array[place] = Some(value);
}
