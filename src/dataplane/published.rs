//! What a worker shows while it runs: stamps and counters.
//!
//! Each value has one writer, the worker, and any number of readers: relaxed loads and stores, no lock and no
//! read-modify-write instruction.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use super::{
    huge::{HugeArray, Memory},
    reason::Reason,
    slots::Stamps,
};

/// When a slot or binding was last used, and how much it carried.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub struct Stamp {
    /// Tick of the last packet.
    pub last_seen: AtomicU32,
    /// Packets, wrapping.
    pub packets: AtomicU32,
    /// Bytes of IP packets.
    pub bytes: AtomicU64,
}

impl Stamp {
    /// A packet of `bytes` at `tick`. Only the owning worker calls this.
    #[inline]
    pub fn touch(&self, tick: u32, bytes: usize) {
        self.last_seen.store(tick, Relaxed);
        self.count(bytes);
    }

    /// A packet of `bytes` that does not keep the slot or binding alive: one from the server's side.
    #[inline]
    pub fn count(&self, bytes: usize) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(1), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// The first use at `tick`.
    pub fn reset(&self, tick: u32) {
        self.last_seen.store(tick, Relaxed);
        self.packets.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
    }
}

/// Adds to a single-writer counter.
#[inline]
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

/// Nodes of the packet graph, at most; `graph::NODES` has their names.
pub const NODES_MAX: usize = 32;

/// Counters of one node of the graph.
#[derive(Debug)]
pub struct NodeCounters {
    /// Packets that entered the node.
    pub packets: AtomicU64,
    /// Batches in which the node had any.
    pub batches: AtomicU64,
    /// Clocks (TSC) spent in it.
    pub clocks: AtomicU64,
    /// Packets that left it for each node.
    pub next: [AtomicU64; NODES_MAX],
    /// Packets it dropped, by reason.
    pub drops: [AtomicU64; Reason::COUNT],
}

impl Default for NodeCounters {
    fn default() -> Self {
        Self {
            packets: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            clocks: AtomicU64::new(0),
            next: [const { AtomicU64::new(0) }; NODES_MAX],
            drops: [const { AtomicU64::new(0) }; Reason::COUNT],
        }
    }
}

/// Counters of a worker; rx + injected = tx + dropped + consumed + punted + held + handed off after every sweep.
/// Packets that waited come back as injected.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Sweeps of the graph, idle ones included.
    pub sweeps: AtomicU64,
    /// Sweeps that had at least one packet.
    pub busy_sweeps: AtomicU64,
    /// Packets the driver received.
    pub received: AtomicU64,
    /// Bytes of them, Ethernet header included.
    pub received_bytes: AtomicU64,
    /// Packets that began here: copies, probes, ICMP errors, resumed packets and those handed over to us.
    pub injected: AtomicU64,
    /// Packets the driver took for sending.
    pub sent: AtomicU64,
    /// Bytes of them.
    pub sent_bytes: AtomicU64,
    /// Packets dropped, all reasons.
    pub dropped: AtomicU64,
    /// Packets put aside for the control core.
    pub punted: AtomicU64,
    /// Fragments put aside until the first one of their packet comes.
    pub held: AtomicU64,
    /// Packets that ended here because they were for us: probe answers.
    pub consumed: AtomicU64,
    /// Packets given to another worker.
    pub handed_off: AtomicU64,
    /// Commands applied.
    pub commands: AtomicU64,
    /// Packets waiting for the control core now.
    pub waiting: AtomicU64,
    /// Slots in use now.
    pub slots_used: AtomicU64,
    /// Bindings in use now.
    pub bindings_used: AtomicU64,
    /// 1 while the worker sleeps in the kernel for want of packets.
    pub is_asleep: AtomicU32,
    /// What the kernel dropped for us because the RX ring was full (XDP_STATISTICS).
    pub kernel_rx_dropped: AtomicU64,
    /// What the kernel dropped because the fill ring was empty.
    pub kernel_fill_empty: AtomicU64,
}

/// Everything a worker shows.
#[derive(Debug)]
pub struct Published {
    /// By slot.
    pub slots: Arc<Stamps>,
    /// By binding. Four share a cache line.
    pub bindings: HugeArray<Stamp>,
    /// By binding: the number of its [`Class`](super::nat::Class).
    pub classes: HugeArray<AtomicU8>,
    /// By node of the graph.
    pub nodes: Box<[NodeCounters; NODES_MAX]>,
    /// Of the worker.
    pub worker: WorkerCounters,
}

impl Published {
    /// Zeroes for this many slots and bindings.
    pub fn new(slots: usize, bindings: usize) -> Self {
        Self {
            slots: Arc::new(Stamps::new(slots)),
            bindings: HugeArray::from_fn(bindings, |_| Stamp::default()),
            classes: HugeArray::from_fn(bindings, |_| AtomicU8::default()),
            nodes: Box::new(std::array::from_fn(|_| NodeCounters::default())),
            worker: WorkerCounters::default(),
        }
    }

    /// The memory of each of its arrays.
    pub fn memory(&self) -> impl Iterator<Item = Memory> {
        [self.slots.memory(), self.bindings.memory(), self.classes.memory()].into_iter()
    }
}
