//! What was done with the last packet of each flow: found by its five-tuple, and by where its packets come from.
//!
//! A cache: what is not in it takes the long way through the nodes, which alone decide, and note here what they did. An
//! entry holds only while nothing has changed that it hangs on: its binding, and the snapshot of routes and
//! policy ([`FlowCache::is_valid`]). So nobody has to find and clear entries. Times are ticks: a flow is cached from
//! the tick after the last such change on.
//!
//! Two entries share a cache line and a set. A flow may be in either of two sets, of which its hash tells the first and the other, so
//! that few flows find both full: with one set each, one in eight would, at two flows a binding. A new one takes a place
//! that holds nothing valid, or else that of the one noted longest ago.

use super::Endpoint;
use crate::{
    dataplane::{
        huge::{HugeArray, Memory, huge_pages_for},
        prefetch::prefetch,
    },
    limits::CT_SLOTS_MAX,
};

/// Entries for each binding, rounded up to a power of two: two ways, and room, so that most flows are in their first set.
const FLOWS_A_BINDING: u32 = 3;

/// Entries at most: 256 MiB.
const FLOWS_MAX: u32 = 1 << 23;

const WAYS: usize = 2;

/// Where a flow's packets come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Whence {
    /// Off the wire, by this interface.
    Interface(u8),
    /// Out of the overlay: of the client whose session is in this slot.
    Session(u32),
}

/// What the packets of a flow have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::dataplane) struct FlowKey([u64; 2]);

const OFF_THE_WIRE: u32 = 1 << 31;
const IS_TCP: u32 = 1 << 30;

impl FlowKey {
    /// Addresses and ports as in the packet; a flow that is not TCP's is UDP's.
    #[inline]
    pub(in crate::dataplane) fn new(source: u32, destination: u32, ports: u32, is_tcp: bool, whence: Whence) -> Self {
        let whence = match whence {
            Whence::Interface(interface) => OFF_THE_WIRE | u32::from(interface),
            Whence::Session(slot) => slot,
        };
        let whence = whence | if is_tcp { IS_TCP } else { 0 };
        Self([u64::from(source) << 32 | u64::from(destination), u64::from(ports) << 32 | u64::from(whence)])
    }

    /// Source and destination.
    #[inline]
    pub(in crate::dataplane) fn addresses(self) -> (u32, u32) {
        ((self.0[0] >> 32) as u32, self.0[0] as u32)
    }

    /// The slot of the session that the packets come out of; `None`: they come off the wire.
    #[inline]
    pub(in crate::dataplane) fn session(self) -> Option<u32> {
        let whence = self.0[1] as u32;
        (whence & OFF_THE_WIRE == 0).then_some(whence & !IS_TCP)
    }
}

/// Which end of a packet is translated, and who gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) enum Way {
    /// The source; a server.
    Out,
    /// The destination; a host of the gateway.
    ToHost,
    /// The destination; the client of the session that owns the binding.
    ToSession,
}

/// What is done with a flow's packets.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataplane) struct Decision {
    /// The binding that they are translated by.
    pub(in crate::dataplane) binding: u32,
    /// Where they go.
    pub(in crate::dataplane) way: Way,
    /// What the end that is translated becomes.
    pub(in crate::dataplane) end: Endpoint,
    /// Larger ones take the long way.
    pub(in crate::dataplane) mtu: u16,
}

const WAY_SHIFT: u32 = 24;
const _: () = assert!(CT_SLOTS_MAX <= 1 << WAY_SHIFT, "the way is above a binding's index");

/// One flow, one way.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(in crate::dataplane) struct Flow {
    key: FlowKey,
    /// When it was noted.
    noted: u32,
    /// The binding that its packets are translated by, and above it the way.
    binding_and_way: u32,
    /// The end that is translated becomes this.
    pub(in crate::dataplane) address: u32,
    /// And this.
    pub(in crate::dataplane) port: u16,
    /// Larger packets take the long way.
    pub(in crate::dataplane) mtu: u16,
}

impl Flow {
    #[inline]
    pub(in crate::dataplane) fn binding(&self) -> u32 {
        self.binding_and_way & ((1 << WAY_SHIFT) - 1)
    }

    #[inline]
    pub(in crate::dataplane) fn way(&self) -> Way {
        match self.binding_and_way >> WAY_SHIFT {
            0 => Way::Out,
            1 => Way::ToHost,
            _ => Way::ToSession,
        }
    }
}

#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
struct Set([Flow; WAYS]);

const _: () = assert!(size_of::<Set>() == 64, "a lookup touches one cache line");

/// The flows of a worker.
#[derive(Debug)]
pub(in crate::dataplane) struct FlowCache {
    /// A power of two of them.
    sets: HugeArray<Set>,
    /// By binding: the tick in which it was last made or freed.
    changed: HugeArray<u32>,
    /// The tick of the last snapshot of routes and policy.
    epoch: u32,
    /// Secret, so that nobody outside can choose flows that share a set. Who can costs others the cache, not the way.
    seed: [u64; 2],
}

impl FlowCache {
    /// Memory that each binding costs here, at most.
    pub(in crate::dataplane) const BYTES_A_BINDING: usize =
        2 * FLOWS_A_BINDING as usize * size_of::<Flow>() + size_of::<u32>();

    /// For the flows of `bindings` bindings.
    pub(in crate::dataplane) fn new(bindings: u32, seed: [u8; 16]) -> Self {
        let (first, second) = seed.split_at(8);
        let word = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("eight bytes"));
        Self {
            sets: HugeArray::new(set_count(bindings), &Set::default()),
            changed: HugeArray::new(bindings as usize, &0),
            epoch: 0,
            seed: [word(first), word(second)],
        }
    }

    /// Huge pages that the tables take where they can.
    pub(in crate::dataplane) fn huge_pages(bindings: u32) -> usize {
        huge_pages_for(set_count(bindings) * size_of::<Set>()) + huge_pages_for(bindings as usize * size_of::<u32>())
    }

    /// The memory of each table.
    pub(in crate::dataplane) fn memory(&self) -> impl Iterator<Item = Memory> + use<> {
        [self.sets.memory(), self.changed.memory()].into_iter()
    }

    /// True where there are no bindings, and so no flows.
    #[inline]
    pub(in crate::dataplane) fn is_unused(&self) -> bool {
        self.sets.is_empty()
    }

    /// A binding was made or freed at `tick`.
    pub(in crate::dataplane) fn binding_changed(&mut self, binding: u32, tick: u32) {
        if let Some(changed) = self.changed.get_mut(binding as usize) {
            *changed = tick;
        }
    }

    /// Routes or policy changed at `tick`.
    pub(in crate::dataplane) fn snapshot_changed(&mut self, tick: u32) {
        self.epoch = tick;
    }

    /// The first set that a flow may be in, and asks for its line.
    #[inline]
    pub(in crate::dataplane) fn ask_for(&self, key: FlowKey) -> u32 {
        self.ask_for_set(self.hash(key))
    }

    /// The same of the other one.
    #[inline]
    pub(in crate::dataplane) fn ask_for_other(&self, key: FlowKey) -> u32 {
        self.ask_for_set(self.hash(key) >> u32::BITS)
    }

    #[inline]
    fn hash(&self, key: FlowKey) -> u64 {
        let FlowKey([ends, rest]) = key;
        let product = u128::from(ends ^ self.seed[0]) * u128::from(rest ^ self.seed[1]);
        product as u64 ^ (product >> 64) as u64
    }

    #[inline]
    fn ask_for_set(&self, hash: u64) -> u32 {
        let set = hash as usize & (self.sets.len() - 1);
        prefetch(&self.sets[set]);
        set as u32
    }

    /// The flow, where it is known in this set; asks for the line that [`FlowCache::is_valid`] reads.
    #[inline]
    pub(in crate::dataplane) fn find(&self, set: u32, key: FlowKey) -> Option<Flow> {
        let Set([first, second]) = &self.sets[set as usize];
        let flow = match () {
            () if first.key == key => first,
            () if second.key == key => second,
            () => return None,
        };
        if let Some(changed) = self.changed.get(flow.binding() as usize) {
            prefetch(changed);
        }
        Some(*flow)
    }

    /// True where nothing has changed since the flow was noted.
    #[inline]
    pub(in crate::dataplane) fn is_valid(&self, flow: &Flow) -> bool {
        self.changed.get(flow.binding() as usize).is_some_and(|changed| flow.noted > *changed)
            & (flow.noted > self.epoch)
    }

    /// What was done with a packet at `tick`. Not kept where it would not be valid.
    pub(in crate::dataplane) fn note(&mut self, key: FlowKey, decision: &Decision, tick: u32) {
        let Decision { binding, way, end: (address, port), mtu } = *decision;
        let binding_and_way = (way as u32) << WAY_SHIFT | binding;
        let flow = Flow { key, noted: tick, binding_and_way, address: address.to_bits(), port, mtu };
        if self.is_unused() || !self.is_valid(&flow) {
            return;
        }
        let sets = [self.ask_for(key), self.ask_for_other(key)].map(|set| set as usize);
        let places = || sets.into_iter().flat_map(|set| (0..WAYS).map(move |way| (set, way)));
        let (set, way) = places()
            .find(|(set, way)| self.sets[*set].0[*way].key == key)
            .or_else(|| places().find(|(set, way)| !self.is_valid(&self.sets[*set].0[*way])))
            .or_else(|| places().min_by_key(|(set, way)| self.sets[*set].0[*way].noted))
            .expect("there are sets");
        self.sets[set].0[way] = flow;
    }
}

fn set_count(bindings: u32) -> usize {
    if bindings == 0 {
        return 0;
    }
    let flows = bindings.saturating_mul(FLOWS_A_BINDING).clamp(2 * WAYS as u32, FLOWS_MAX);
    flows.next_power_of_two() as usize / WAYS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn to(binding: u32, port: u16) -> Decision {
        Decision { binding, way: Way::ToHost, end: (Ipv4Addr::new(192, 0, 2, 1), port), mtu: 1500 }
    }

    fn key(port: u16) -> FlowKey {
        FlowKey::new(1, 2, u32::from(port), false, Whence::Interface(1))
    }

    fn found(cache: &FlowCache, key: FlowKey) -> Option<Flow> {
        let flow = cache.find(cache.ask_for(key), key).or_else(|| cache.find(cache.ask_for_other(key), key));
        flow.filter(|flow| cache.is_valid(flow))
    }

    #[test]
    fn a_flow_is_known_until_its_binding_or_the_snapshot_changes() {
        let mut cache = FlowCache::new(8, [7; 16]);
        cache.note(key(1), &to(3, 4000), 0);
        assert!(found(&cache, key(1)).is_none(), "not in the tick of the change itself");
        cache.note(key(1), &to(3, 4000), 1);
        let flow = found(&cache, key(1)).unwrap();
        assert_eq!((flow.binding(), flow.way()), (3, Way::ToHost));
        assert_eq!((flow.address, flow.port, flow.mtu), (0xc000_0201, 4000, 1500));
        cache.binding_changed(2, 5);
        assert!(found(&cache, key(1)).is_some(), "another binding");
        cache.binding_changed(3, 5);
        assert!(found(&cache, key(1)).is_none());
        cache.note(key(1), &to(3, 4000), 6);
        assert!(found(&cache, key(1)).is_some());
        cache.snapshot_changed(7);
        assert!(found(&cache, key(1)).is_none());
        cache.note(key(1), &to(99, 4000), 9);
        assert!(found(&cache, key(1)).is_none(), "no such binding");
    }

    #[test]
    fn every_part_of_the_key_counts_and_every_way_is_kept() {
        let mut cache = FlowCache::new(8, [7; 16]);
        let whence = [Whence::Interface(1), Whence::Interface(2), Whence::Session(1), Whence::Session(2)];
        let mut keys = vec![(FlowKey::new(1, 2, 3, true, Whence::Session(7)), Some(7))];
        for whence in whence {
            let session = if let Whence::Session(slot) = whence { Some(slot) } else { None };
            let ends = [[1, 2, 3], [9, 2, 3], [1, 9, 3], [1, 2, 9]];
            keys.extend(ends.map(|[a, b, c]| (FlowKey::new(a, b, c, false, whence), session)));
        }
        for (n, (key, session)) in keys.iter().enumerate() {
            assert!(keys[..n].iter().all(|(other, _)| other != key));
            assert_eq!(key.session(), *session);
            let way = [Way::Out, Way::ToHost, Way::ToSession][n % 3];
            cache.note(*key, &Decision { way, ..to(n as u32 % 8, n as u16) }, 1);
            let flow = found(&cache, *key).unwrap();
            assert_eq!((flow.binding(), flow.way(), flow.port), (n as u32 % 8, way, n as u16));
        }
    }

    /// Keys of flows that may be in these sets only.
    fn keys_of(cache: &FlowCache, sets: [u32; 2]) -> impl Iterator<Item = FlowKey> {
        (1..u16::MAX).map(key).filter(move |key| [cache.ask_for(*key), cache.ask_for_other(*key)] == sets)
    }

    #[test]
    fn a_flow_whose_set_is_full_is_in_its_other_one_and_of_too_many_the_latest_stay() {
        let mut cache = FlowCache::new(2, [7; 16]);
        assert_eq!(cache.sets.len(), 4);
        let keys: Vec<FlowKey> = keys_of(&cache, [0, 3]).take(6).collect();
        for (tick, key) in (1..).zip(&keys[..4]) {
            cache.note(*key, &to(0, 1), tick);
        }
        assert!(keys[..4].iter().all(|key| found(&cache, *key).is_some()));
        // Noted again, it is a later one, in the same place.
        cache.note(keys[0], &to(0, 2), 5);
        assert_eq!(found(&cache, keys[0]).map(|flow| flow.port), Some(2));
        cache.note(keys[4], &to(1, 3), 6);
        assert!(found(&cache, keys[1]).is_none(), "noted longest ago");
        assert!([0, 2, 3, 4].iter().all(|n| found(&cache, keys[*n]).is_some()));
        // What is no longer valid makes room first, however late it was noted.
        cache.binding_changed(1, 7);
        cache.note(keys[5], &to(0, 4), 8);
        assert!([0, 2, 3, 5].iter().all(|n| found(&cache, keys[*n]).is_some()));
    }

    #[test]
    fn nearly_all_flows_both_ways_of_as_many_bindings_as_there_may_be_are_known() {
        const BINDINGS: u32 = 40_000;
        let mut cache = FlowCache::new(BINDINGS, [7; 16]);
        let flow = |n: u32| FlowKey::new(n % BINDINGS, n / BINDINGS, n.rotate_left(16), false, Whence::Interface(1));
        (0..2 * BINDINGS).for_each(|n| cache.note(flow(n), &to(n % BINDINGS, 1), 1));
        let unknown = (0..2 * BINDINGS).filter(|n| found(&cache, flow(*n)).is_none()).count();
        assert!(unknown < BINDINGS as usize / 25, "{unknown} unknown");
    }

    #[test]
    fn there_is_none_where_there_are_no_bindings() {
        let mut cache = FlowCache::new(0, [7; 16]);
        assert!(cache.is_unused());
        cache.note(key(1), &to(0, 1), 1);
        assert_eq!(FlowCache::huge_pages(0), 0);
    }
}
