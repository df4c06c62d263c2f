//! Fragmented packets on their way through the NAT: shallow virtual reassembly.
//!
//! Only the first fragment of a packet has the ports that a NAT goes by (RFC 4787 section 11). So a worker remembers
//! the ports of first fragments, and gives them to the others as if they had them, too; nothing is put together. Those
//! that overtake their first one are held until it comes (REQ-14), each in its frame.
//!
//! Everything is bounded: how many packets, how long, how many fragments are held. A packet's place is in a row that a
//! keyed hash of its source names, so a source that floods us with fragments fills that row alone, and whoever shares it
//! takes places of the one that has the most; what is not fragmented never comes here. What overlaps with bytes that were there
//! before is dropped (RFC 1858): no receiver puts together anything else than what we saw.

use std::{collections::VecDeque, hash::Hasher, net::IpAddr};

use siphasher::sip::SipHasher13;

use super::{graph::NodeId, packet::Packet, reason::Reason};
use crate::{
    Nanos,
    limits::{FRAGMENTED_PACKETS_MAX, FRAGMENTS_HELD_MAX},
    wire::{ip4, ip6},
};

/// How long a packet has for all its fragments to come, counted from the first to arrive.
const PATIENCE: Nanos = 2 * crate::SECOND;

/// Packets of one source, and of those with the same hash, at a time.
const ROW: usize = 16;

/// Fragments of one packet that may overtake its first one.
const HELD_A_PACKET: usize = 16;

/// Ranges of one packet with gaps between them.
const RANGES: usize = 16;

/// Source and destination port; for an ICMP query, its identifier twice.
pub type Ports = (u16, u16);

/// What the fragments of a packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5), and who is asked to translate it, on whose behalf:
/// inside addresses are not unique.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Its sender.
    pub source: IpAddr,
    /// Its receiver.
    pub destination: IpAddr,
    /// Its identification.
    pub identification: u32,
    /// Its protocol.
    pub protocol: u8,
    /// The node of the graph that translates it.
    pub node: NodeId,
    /// The session it came from, for packets of the overlay.
    pub slot: u32,
    /// Which use of that slot: another session's fragments are not this one's.
    pub generation: u16,
}

/// Which bytes of the packet's payload a fragment is: from the first to one past the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its first byte.
    pub start: u16,
    /// One past its last byte.
    pub end: u16,
    /// No other comes behind it.
    pub is_last: bool,
}

impl Part {
    /// The part that a fragment of this header is. `None` where it cannot be one: empty, beyond the largest packet, or of
    /// a length that leaves no whole units of eight bytes to the next.
    pub fn of(header: &ip4::Header) -> Option<Self> {
        let start = usize::from(header.fragment & ip4::OFFSET_MASK) * 8;
        let is_last = header.fragment & ip4::MORE_FRAGMENTS == 0;
        Self::new(start, header.total_length - header.header_length, is_last)
    }

    /// The same of IPv6. `None` also for what is no fragment.
    pub fn of6(header: &ip6::Header) -> Option<Self> {
        let field = header.fragment.filter(|_| header.is_fragment())?;
        let length = header.total_length - header.fragment_at - ip6::FRAGMENT_HEADER_BYTES;
        Self::new(usize::from(field & !7), length, field & 1 == 0)
    }

    fn new(start: usize, length: usize, is_last: bool) -> Option<Self> {
        let end = u16::try_from(start + length).ok()?;
        (length > 0 && (is_last || length.is_multiple_of(8))).then_some(Self { start: start as u16, end, is_last })
    }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes on: its packet has these ports.
    Go(Ports),
    /// It is held, and its frame with it, until the first one comes: then [`Reassembly::next_ready`] gives it back.
    Held,
    /// It is dropped.
    Refused(Reason),
}

/// The packets of which some fragments have come.
#[derive(Debug)]
pub struct Reassembly {
    /// Rows of [`ROW`].
    places: Box<[Place]>,
    held: Box<[Packet]>,
    /// Places of `held` that are free.
    free: Vec<u16>,
    /// Held ones that may go on.
    ready: VecDeque<Packet>,
    /// Held ones whose first fragment did not come in time.
    lost: VecDeque<Packet>,
    hash_key: [u8; 16],
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// `None`: free.
    key: Option<Key>,
    due: Nanos,
    ports: Option<Ports>,
    seen: Ranges,
    held: [u16; HELD_A_PACKET],
    held_count: u8,
}

const FREE: Place =
    Place { key: None, due: 0, ports: None, seen: Ranges::NONE, held: [0; HELD_A_PACKET], held_count: 0 };

const _: () = assert!(FRAGMENTED_PACKETS_MAX.is_multiple_of(ROW), "rows are whole");
const _: () = assert!(FRAGMENTS_HELD_MAX <= 1 << 16, "a place of a held fragment has 16 bits");

impl Reassembly {
    /// Nothing yet. `hash_key` is secret, so that nobody can choose whose row to fill.
    pub fn new(hash_key: [u8; 16]) -> Self {
        Self {
            places: vec![FREE; FRAGMENTED_PACKETS_MAX].into_boxed_slice(),
            held: vec![Packet::EMPTY; FRAGMENTS_HELD_MAX].into_boxed_slice(),
            free: (0..FRAGMENTS_HELD_MAX as u16).rev().collect(),
            ready: VecDeque::with_capacity(FRAGMENTS_HELD_MAX),
            lost: VecDeque::with_capacity(FRAGMENTS_HELD_MAX),
            hash_key,
            used: 0,
        }
    }

    /// A fragment came: `part` of the packet `key`, with the packet's ports where it is the first.
    pub fn take(&mut self, now: Nanos, key: &Key, part: Part, ports: Option<Ports>, packet: &Packet) -> Fate {
        let at = self.place_of(key, now);
        let place = &mut self.places[at];
        if let Err(reason) = place.seen.add(part) {
            return Fate::Refused(reason);
        }
        if let Some(ports) = ports {
            place.ports = Some(ports);
            let (held, count) = (place.held, usize::from(place.held_count));
            place.held_count = 0;
            for index in &held[..count] {
                self.free.push(*index);
                self.ready.push_back(Packet { ports, ..self.held[usize::from(*index)] });
            }
        }
        let place = &mut self.places[at];
        match place.ports {
            Some(ports) => {
                if place.seen.is_whole() {
                    *place = FREE;
                    self.used -= 1;
                }
                Fate::Go(ports)
            }
            None if usize::from(place.held_count) == HELD_A_PACKET => Fate::Refused(Reason::FragmentsFull),
            None => {
                let Some(index) = self.free.pop() else { return Fate::Refused(Reason::FragmentsFull) };
                self.held[usize::from(index)] = *packet;
                place.held[usize::from(place.held_count)] = index;
                place.held_count += 1;
                Fate::Held
            }
        }
    }

    /// True where [`Self::next_ready`] has one.
    #[inline]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next held fragment whose first one has come.
    #[inline]
    pub fn next_ready(&mut self) -> Option<Packet> {
        self.ready.pop_front()
    }

    /// The next held fragment that has waited in vain.
    #[inline]
    pub fn next_lost(&mut self) -> Option<Packet> {
        self.lost.pop_front()
    }

    /// Forgets the packets whose time is over. Called once a tick.
    pub fn expire(&mut self, now: Nanos) {
        if self.used == 0 {
            return;
        }
        for at in 0..self.places.len() {
            if self.places[at].key.is_some() && self.places[at].due <= now {
                self.forget(at);
            }
        }
    }

    /// How many packets are not complete yet.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The packet's place, a new one where it has none. A full row is shared fairly: the oldest packet of whoever has the
    /// most in it makes room.
    fn place_of(&mut self, key: &Key, now: Nanos) -> usize {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        hasher.write_u32(key.slot);
        match key.source {
            IpAddr::V4(source) => hasher.write_u32(source.to_bits()),
            IpAddr::V6(source) => hasher.write_u128(source.to_bits()),
        }
        let rows = self.places.len() / ROW;
        let first = hasher.finish() as usize % rows * ROW;
        let row = &self.places[first..first + ROW];
        let known = row.iter().position(|place| place.key.as_ref() == Some(key));
        if let Some(at) = known.map(|at| first + at) {
            if self.places[at].due > now {
                return at;
            }
            self.forget(at);
        }
        let row = &self.places[first..first + ROW];
        let at = first + row.iter().position(|place| place.key.is_none()).unwrap_or_else(|| victim(row, key));
        if self.places[at].key.is_some() {
            self.forget(at);
        }
        self.places[at] = Place { key: Some(*key), due: now + PATIENCE, ..FREE };
        self.used += 1;
        at
    }

    fn forget(&mut self, at: usize) {
        let place = std::mem::replace(&mut self.places[at], FREE);
        for index in &place.held[..usize::from(place.held_count)] {
            self.free.push(*index);
            self.lost.push_back(self.held[usize::from(*index)]);
        }
        self.used -= 1;
    }
}

/// Which place of a full row goes to `newcomer`.
fn victim(row: &[Place], newcomer: &Key) -> usize {
    let sender = |place: &Place| place.key.map(|key| (key.source, key.slot));
    let newcomers = Some((newcomer.source, newcomer.slot));
    let packets_of = |who| row.iter().filter(|place| sender(place) == who).count() + usize::from(who == newcomers);
    let order = |at: &usize| (packets_of(sender(&row[*at])), std::cmp::Reverse(row[*at].due));
    (0..row.len()).max_by_key(order).unwrap_or(0)
}

/// The bytes of a packet that have come: ranges with gaps between them, ascending.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    ranges: [(u16, u16); RANGES],
    count: u8,
    /// How long the packet is, once its last fragment has come.
    total: Option<u16>,
}

impl Ranges {
    const NONE: Self = Self { ranges: [(0, 0); RANGES], count: 0, total: None };

    fn add(&mut self, part: Part) -> Result<(), Reason> {
        let count = usize::from(self.count);
        let ranges = &self.ranges[..count];
        let at = ranges.partition_point(|range| range.1 <= part.start);
        let is_free = ranges.get(at).is_none_or(|range| part.end <= range.0);
        let is_behind_the_end = self.total.is_some_and(|total| part.end > total || part.is_last);
        let is_end_too_early = part.is_last && ranges.last().is_some_and(|range| range.1 > part.start);
        if !is_free || is_behind_the_end || is_end_too_early {
            return Err(Reason::FragmentOverlap);
        }
        let joins_before = at > 0 && ranges[at - 1].1 == part.start;
        let joins_after = at < count && ranges[at].0 == part.end;
        match (joins_before, joins_after) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.copy_within(at + 1..count, at);
                self.count -= 1;
            }
            (true, false) => self.ranges[at - 1].1 = part.end,
            (false, true) => self.ranges[at].0 = part.start,
            (false, false) if count == RANGES => return Err(Reason::FragmentsFull),
            (false, false) => {
                self.ranges.copy_within(at..count, at + 1);
                self.ranges[at] = (part.start, part.end);
                self.count += 1;
            }
        }
        if part.is_last {
            self.total = Some(part.end);
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.count == 1 && self.ranges[0].0 == 0 && self.total == Some(self.ranges[0].1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::SECOND;

    const PORTS: Ports = (5000, 53);

    fn key(source: u32, identification: u32) -> Key {
        Key {
            source: Ipv4Addr::from_bits(source).into(),
            destination: [203, 0, 113, 1].into(),
            identification,
            protocol: ip4::UDP,
            node: NodeId::NatIn2out,
            slot: 0,
            generation: 0,
        }
    }

    fn part(start: u16, end: u16, is_last: bool) -> Part {
        Part { start, end, is_last }
    }

    fn packet(frame: u32) -> Packet {
        Packet { frame, ..Packet::EMPTY }
    }

    fn ready(table: &mut Reassembly) -> Vec<u32> {
        std::iter::from_fn(|| table.next_ready()).map(|packet| packet.frame).collect()
    }

    fn lost(table: &mut Reassembly) -> usize {
        std::iter::from_fn(|| table.next_lost()).count()
    }

    #[test]
    fn fragments_in_order_go_on_at_once_and_leave_nothing_behind() {
        let mut table = Reassembly::new([1; 16]);
        let fates = [(0, 8), (8, 16), (16, 19)].map(|(start, end)| {
            table.take(0, &key(1, 7), part(start, end, end == 19), (start == 0).then_some(PORTS), &packet(0))
        });
        assert_eq!(fates, [Fate::Go(PORTS); 3]);
        assert_eq!(table.used(), 0);
    }

    #[test]
    fn those_that_come_before_the_first_one_are_held_and_follow_it_in_their_order() {
        let mut table = Reassembly::new([1; 16]);
        assert_eq!(table.take(0, &key(1, 7), part(16, 19, true), None, &packet(3)), Fate::Held);
        assert_eq!(table.take(0, &key(1, 7), part(8, 16, false), None, &packet(2)), Fate::Held);
        assert_eq!(table.take(0, &key(1, 8), part(8, 16, false), None, &packet(9)), Fate::Held, "another packet's");
        assert!(ready(&mut table).is_empty());
        assert_eq!(table.take(0, &key(1, 7), part(0, 8, false), Some(PORTS), &packet(1)), Fate::Go(PORTS));
        assert_eq!(ready(&mut table), [3, 2]);
        assert_eq!(table.used(), 1);
    }

    #[test]
    fn what_overlaps_is_refused_and_does_no_harm_to_the_rest() {
        let mut table = Reassembly::new([1; 16]);
        let mut take = |start, end, is_last| {
            table.take(0, &key(1, 7), part(start, end, is_last), (start == 0).then_some(PORTS), &packet(0))
        };
        let overlap = Fate::Refused(Reason::FragmentOverlap);
        assert_eq!(take(0, 16, false), Fate::Go(PORTS));
        assert_eq!(take(0, 16, false), overlap, "the same again");
        assert_eq!(take(8, 24, false), overlap);
        assert_eq!(take(32, 40, true), Fate::Go(PORTS));
        assert_eq!(take(40, 48, false), overlap, "behind the end");
        assert_eq!(take(24, 36, true), overlap, "a second end");
        assert_eq!(take(24, 48, false), overlap, "around it");
        assert_eq!(take(16, 32, false), Fate::Go(PORTS));
        assert_eq!(table.used(), 0);
    }

    #[test]
    fn what_is_not_complete_in_two_seconds_is_lost() {
        let mut table = Reassembly::new([1; 16]);
        table.take(0, &key(1, 7), part(8, 16, true), None, &packet(0));
        table.take(SECOND, &key(1, 8), part(8, 16, true), None, &packet(0));
        table.expire(PATIENCE - 1);
        assert_eq!(lost(&mut table), 0);
        table.expire(PATIENCE);
        assert_eq!((lost(&mut table), table.used()), (1, 1));
        let late = table.take(PATIENCE + SECOND, &key(1, 8), part(0, 8, false), Some(PORTS), &packet(0));
        assert_eq!(late, Fate::Go(PORTS));
        assert!(ready(&mut table).is_empty(), "that of the old packet is not sent with the new one");
        assert_eq!(lost(&mut table), 1);
    }

    #[test]
    fn a_flood_of_one_source_drives_out_its_own_packets_and_hardly_anyone_elses() {
        let mut table = Reassembly::new([1; 16]);
        for source in 2..34 {
            table.take(0, &key(source, 7), part(0, 8, false), Some(PORTS), &packet(0));
        }
        for n in 0..10_000 {
            let fate = table.take(1, &key(1, n), part(8, 16, false), None, &packet(0));
            assert!(matches!(fate, Fate::Held | Fate::Refused(Reason::FragmentsFull)));
            lost(&mut table);
        }
        assert!(table.used() <= 32 + ROW);
        for source in 2..34 {
            let fate = table.take(2, &key(source, 7), part(8, 16, true), None, &packet(0));
            assert_eq!(fate, Fate::Go(PORTS), "source {source}");
        }
    }

    #[test]
    fn who_shares_a_row_with_a_flood_has_a_fair_part_of_it() {
        let mut table = Reassembly::new([1; 16]);
        for n in 0..100 {
            table.take(n, &key(1, n as u32), part(0, 8, false), Some(PORTS), &packet(0));
        }
        assert_eq!(table.used(), ROW);
        // Of so many sources some share the row of source 1.
        for source in 2..500 {
            for n in 0..3 {
                table.take(100, &key(1, n), part(0, 8, false), Some(PORTS), &packet(0));
            }
            let fate = table.take(100, &key(source, 7), part(0, 8, false), Some(PORTS), &packet(0));
            assert_eq!(fate, Fate::Go(PORTS));
            for n in 0..3 {
                table.take(100, &key(1, 10 + n), part(0, 8, false), Some(PORTS), &packet(0));
            }
            let fate = table.take(100, &key(source, 7), part(8, 16, true), None, &packet(0));
            assert_eq!((fate, table.used() <= ROW), (Fate::Go(PORTS), true), "source {source}");
        }
    }

    #[test]
    fn no_more_are_held_than_there_is_room_for_and_all_come_back() {
        let mut table = Reassembly::new([1; 16]);
        let mut held = 0;
        for source in 0..2000 {
            held += usize::from(table.take(0, &key(source, 1), part(8, 16, true), None, &packet(0)) == Fate::Held);
        }
        assert_eq!(held, FRAGMENTS_HELD_MAX);
        table.expire(PATIENCE);
        assert_eq!((lost(&mut table), table.used(), table.free.len()), (held, 0, FRAGMENTS_HELD_MAX));
    }

    #[test]
    fn a_part_is_whole_units_within_the_largest_packet() {
        let header = |fragment, total_length| ip4::Header {
            header_length: 20,
            total_length,
            fragment,
            ttl: 64,
            protocol: ip4::UDP,
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::UNSPECIFIED,
        };
        assert_eq!(Part::of(&header(ip4::MORE_FRAGMENTS | 2, 28)), Some(part(16, 24, false)));
        assert_eq!(Part::of(&header(2, 27)), Some(part(16, 23, true)));
        assert_eq!(Part::of(&header(ip4::MORE_FRAGMENTS | 2, 27)), None, "no whole units");
        assert_eq!(Part::of(&header(2, 20)), None, "empty");
        assert_eq!(Part::of(&header(0x1fff, 28)), None, "the ping of death");
    }

    proptest::proptest! {
        /// Fragments of a packet in any order, some of them twice: each byte goes on once.
        #[test]
        fn every_byte_goes_on_once(order in proptest::collection::vec(0usize..12, 1..60)) {
            let mut table = Reassembly::new([1; 16]);
            let (mut gone, mut taken) = (vec![0; 12], [false; 12]);
            for at in order {
                if taken.iter().all(|taken| *taken) {
                    break;
                }
                let this = part(at as u16 * 8, at as u16 * 8 + 8, at == 11);
                match table.take(0, &key(1, 7), this, (at == 0).then_some(PORTS), &packet(at as u32)) {
                    Fate::Go(_) => gone[at] += 1,
                    Fate::Held => proptest::prop_assert!(!taken[at]),
                    Fate::Refused(_) => proptest::prop_assert!(taken[at]),
                }
                taken[at] = true;
                ready(&mut table).iter().for_each(|frame| gone[*frame as usize] += 1);
            }
            let expected: Vec<i32> = taken.iter().map(|taken| i32::from(*taken)).collect();
            if taken[0] {
                proptest::prop_assert_eq!(gone, expected);
            } else {
                proptest::prop_assert!(gone.iter().all(|count| *count == 0));
            }
        }
    }
}
