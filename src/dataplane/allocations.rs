//! A worker allocates and frees nothing after its start: counted, along every way through the graph.
//!
//! The allocator of the unit tests counts what each thread asks of it; a sweep must leave the count as it was, the very
//! first one, too.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use super::{
    command::{Command, Event},
    conntrack::NO_BINDING,
    graph::{NODES, Node},
    handoff,
    nat::{Owner, Translation},
    published::NODES_MAX,
    testing::*,
    testing6::*,
};
use crate::{
    MILLISECOND, SECOND,
    telemetry::histogram::Histograms,
    wire::{icmp, ip4, relay::Kind, tcp},
};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no count any more, and nobody who reads it.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: all is left to the system's allocator; counting touches no memory but the thread's own counter.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }
}

/// Calls of the allocator, by this thread, that `act` makes.
fn allocations(act: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    act();
    CALLS.get() - before
}

#[test]
fn the_count_sees_allocations() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 2);
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::<u64>::default()))), 2);
    assert_eq!(allocations(|| ()), 0);
}

/// A worker whose sweeps are counted.
struct Counted {
    bench: Bench,
    /// By number of the node of the graph: whether a packet was there.
    seen: [bool; NODES_MAX],
}

impl Counted {
    fn new(bench: Bench) -> Self {
        Self { bench, seen: [false; NODES_MAX] }
    }

    #[track_caller]
    fn sweep(&mut self) -> usize {
        self.bench.worker.driver().reserve(512);
        let Bench { worker, now, .. } = &mut self.bench;
        let calls = allocations(|| {
            worker.sweep(*now);
        });
        assert_eq!(calls, 0, "calls of the allocator in a sweep");
        for (node, seen) in self.bench.visits().zip(&mut self.seen) {
            *seen |= node > 0;
        }
        self.bench.worker.driver().take().len()
    }

    /// These come in; so many packets go out.
    #[track_caller]
    fn expect(&mut self, packets: &[Vec<u8>], sent: usize) {
        for packet in packets {
            self.bench.worker.driver().put(0, packet);
        }
        assert_eq!(self.sweep(), sent);
    }

    #[track_caller]
    fn tell(&mut self, command: Command) {
        self.bench.commands.push(command).unwrap();
        self.sweep();
    }

    fn event(&mut self) -> Event {
        self.bench.events.pop().expect("the worker has something to say")
    }
}

#[test]
fn no_way_through_the_graph_allocates_or_frees() {
    let mut worker = Counted::new(Bench::new());
    worker.bench.relay();
    worker.bench.entry(3);
    worker.bench.exit(2, NO_BINDING);
    let question = |port| udp_packet((INSIDE, port), (SERVER, 53), b"question");

    // Relay, entry.
    worker.expect(&[Relayed::up(1, 1, vec![0; 40]).frame(), Relayed::down(1, 1, vec![0; 1400]).frame()], 2);
    let burst: Vec<_> = (1..=80).map(|n| Relayed::from_client(n, question(1000)).frame()).collect();
    worker.expect(&burst, 240);
    let copies = [0, 1, 2].map(|path| Relayed { path, ..Relayed::down(2, 1, question(1000)) }.frame());
    worker.expect(&copies, 1);

    // A new flow at the exit: it waits, is bound, goes on; its answer; what it is refused with.
    worker.expect(&[Relayed::up(3, 1, question(1000)).frame()], 0);
    let Event::Punt { waiting, .. } = worker.event() else { panic!("not asked about") };
    worker.bench.bind_and_resume(Owner::session(3), (1000, 41_000), waiting);
    worker.expect(&[], 1);
    worker.expect(&[0, 1].map(|path| Relayed { path, ..Relayed::up(3, 2, question(1000)) }.frame()), 1);
    let answer = udp_packet((SERVER, 53), (US, 41_000), b"answer");
    worker.expect(&[frame(&answer)], 2);
    let quote = udp_packet((US, 41_000), (SERVER, 53), b"question");
    let error = icmp_packet(ROUTER, US, icmp::UNREACHABLE, 3, &[&[0; 4], &quote[..28]].concat());
    worker.expect(&[frame(&error)], 2);
    worker.expect(&[Relayed { kind: Kind::KeepAliveUp, ..Relayed::up(3, 3, vec![]) }.frame()], 2);
    worker.expect(&[Relayed::up(3, 4, udp_packet((INSIDE, 1000), (UNRESOLVED, 53), b"?")).frame()], 0);
    assert!(matches!(worker.event(), Event::Punt { .. }), "the next hop is asked for");
    worker.expect(&[Relayed::up(3, 5, tcp_packet((INSIDE, 7), (SERVER, 80), tcp::ACK, &[])).frame()], 0);

    // Errors of our own, and packets that are cut.
    let mut dying = question(1000);
    ip4::emit(&mut dying, INSIDE, SERVER, ip4::UDP, 36, 1);
    worker.expect(&[Relayed::up(3, 6, dying).frame()], 2);
    let mut large = udp_packet((SERVER, 53), (US, 41_000), &[0; 1460]);
    crate::wire::write(&mut large, ip4::FRAGMENT, &[0, 0]);
    crate::wire::write(&mut large, ip4::CHECKSUM, &[0, 0]);
    let checksum = crate::wire::checksum::of(&large[..20]);
    crate::wire::write(&mut large, ip4::CHECKSUM, &checksum.to_be_bytes());
    worker.expect(&[frame(&large)], 4);

    // Probes; what is dropped; a full ring; another tick, and nothing to do.
    worker.tell(Command::SendProbe { peer: 0, sequence: 5 });
    let probe =
        Relayed { key: PROBE_KEY, from: (DOWNSTREAM, DATA_PORT), generation: 0, ..Relayed::up(0, 42, vec![0; 24]) };
    worker.expect(&[Relayed { kind: Kind::Probe, ..probe }.frame()], 1);
    worker.expect(&[vec![0; 60], Relayed::up(9, 1, vec![]).frame(), Relayed::up(1, 2, vec![0xff; 9]).frame()], 1);
    worker.bench.worker.driver().limit_transmit(1);
    worker.expect(&burst_of_relayed(10), 1);
    worker.bench.worker.driver().limit_transmit(usize::MAX);
    worker.bench.now += 250 * MILLISECOND;
    worker.expect(&[], 0);

    // A gateway's hosts.
    worker.bench.gateway();
    worker.bench.bind_for(super::nat::Owner::INSIDE, ip4::UDP, 2000, 42_000, None);
    let mut from_inside = frame(&udp_packet((INSIDE, 2000), (SERVER, 53), b"question"));
    from_inside[..6].copy_from_slice(&[2, 0, 0, 0, 1, 1]);
    worker.bench.worker.driver().put(1, &from_inside);
    worker.expect(&[], 1);
    worker.expect(&[frame(&udp_packet((SERVER, 53), (US, 42_000), b"answer"))], 1);

    // Fragments: a stranger's second half waits for its first, which never comes.
    let mut half = question(1000);
    crate::wire::write(&mut half, ip4::FRAGMENT, &[0, 3]);
    crate::wire::write(&mut half, ip4::CHECKSUM, &[0, 0]);
    let checksum = crate::wire::checksum::of(&half[..20]);
    crate::wire::write(&mut half, ip4::CHECKSUM, &checksum.to_be_bytes());
    worker.expect(&[Relayed::up(3, 7, half).frame()], 0);

    let seen6 = ip6(Counted::new(Bench::gateway6()));
    let is_missed = |node: &&Node| !worker.seen[node.id as usize] && !seen6[node.id as usize];
    let missed: Vec<_> = NODES.iter().filter(is_missed).map(|node| node.name).collect();
    assert_eq!(missed, ["handoff"], "which is below");
}

/// A gateway's hosts of IPv6, to servers of IPv6 and of IPv4. Returns which nodes were seen.
fn ip6(mut worker: Counted) -> [bool; NODES_MAX] {
    let from_inside = |packet: &[u8], worker: &mut Counted| {
        let mut bytes = frame6(packet);
        bytes[..6].copy_from_slice(&worker.bench.worker.context().routes.forwarding().interfaces[1].mac);
        worker.bench.worker.driver().put(1, &bytes);
    };
    worker.bench.bind6(Translation::Nat66, ip4::UDP, 1000, PORT6);
    from_inside(&udp6_packet((INSIDE6, 1000), (SERVER6, 53), b"question"), &mut worker);
    worker.expect(&[], 1);
    worker.expect(&[frame6(&udp6_packet((SERVER6, 53), (US6, PORT6), b"answer"))], 1);
    let mut late = udp6_packet((INSIDE6, 1), (NEIGHBOUR6, 2), b"x");
    late[crate::wire::ip6::HOP_LIMIT] = 1;
    from_inside(&late, &mut worker);
    worker.expect(&[], 1);
    from_inside(&udp6_packet((INSIDE6, 1001), (SERVER6, 53), b"question"), &mut worker);
    worker.expect(&[], 0);
    assert!(matches!(worker.event(), Event::Punt { .. }));
    worker.bench.bind6(Translation::Nat64, ip4::UDP, 1000, 41_000);
    let server = super::nat::Prefix64::WELL_KNOWN.embed(SERVER);
    from_inside(&udp6_packet((INSIDE6, 1000), (server, 53), b"question"), &mut worker);
    worker.expect(&[], 1);
    worker.expect(&[frame(&udp_packet((SERVER, 53), (US, 41_000), b"answer"))], 1);
    worker.seen
}

fn burst_of_relayed(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|n| Relayed::up(1, 100 + n, vec![0; 40]).frame()).collect()
}

#[test]
fn handing_over_neither_allocates_nor_frees() {
    let mut mesh = handoff::mesh(2).into_iter();
    let (first, second) = (mesh.next().unwrap(), mesh.next().unwrap());
    let mut stranger = Counted::new(Bench::at(0, 2, first));
    let mut owner = Counted::new(Bench::at(1, 2, second));
    owner.bench.relay();
    let packets: Vec<_> = (1..=50).map(|n| Relayed::up(1 << 24 | 1, n, vec![0; 1000]).frame()).collect();
    stranger.expect(&packets, 0);
    owner.expect(&[], 50);
}

#[test]
fn commands_neither_allocate_nor_free() {
    let mut worker = Counted::new(Bench::new());
    worker.bench.relay();
    worker.bench.entry(2);
    worker.bench.exit(2, NO_BINDING);
    worker.bench.bind(ip4::UDP, 1000, 41_000, None);
    let routes = Box::new(worker.bench.worker.context().routes.forwarding().clone());
    worker.tell(Command::SetForwarding(routes));
    assert!(matches!(worker.event(), Event::ForwardingRetired(_)), "the old routes are freed by the control core");
    worker.tell(Command::SwapHistograms(Box::<Histograms>::default()));
    assert!(matches!(worker.event(), Event::Histograms(_)));
    worker.tell(Command::ReadFan { slot: 3, fan: 1, request: 1, report: Box::default() });
    assert!(matches!(worker.event(), Event::Fan { .. }));
    worker.bench.now += SECOND;
    worker.tell(Command::SetFanLink { fan: 1, path: 1, link: None });
    worker.tell(Command::FreeBinding { index: 4, idle_since: None });
    assert!(matches!(worker.event(), Event::BindingFreed { index: 4 }));
    for slot in 1..=3 {
        worker.tell(Command::FreeSlot { slot, generation: GENERATION, idle_since: None });
        assert!(matches!(worker.event(), Event::SlotFreed { .. }));
    }
}
