//! Every capacity of the appliance, and what must hold between them.
//!
//! A worker allocates all of this before its first packet and nothing after it.

use std::mem::size_of;

/// Packet slots of a worker: what one sweep of the graph can hold.
pub const PACKET_SLOTS: usize = 256;

/// Bytes of one UMEM chunk.
pub const FRAME_SIZE: usize = 2048;

/// Bytes the kernel keeps free before a received packet (XDP_PACKET_HEADROOM); we push headers into it.
pub const FRAME_HEADROOM: usize = 256;

/// The largest packet, Ethernet header included, that a frame holds.
pub const PACKET_BYTES_MAX: usize = FRAME_SIZE - FRAME_HEADROOM;

/// The largest MTU of an interface we can serve.
pub const MTU_MAX: usize = PACKET_BYTES_MAX - 14;

/// Paths of one session.
pub const PATHS_MAX: usize = 8;

/// Nodes on one path, entry and exit included.
pub const HOPS_MAX: usize = 8;

/// Workers of one node: `ct_index` has eight bits for them.
pub const WORKERS_MAX: usize = 64;

/// Conntrack slots a worker can have: `ct_index` has 24 bits for them.
pub const CT_SLOTS_MAX: usize = 1 << 24;

/// Sequence numbers the duplicate window looks back over: at 50,000 packets a second, paths that differ by 160 ms.
pub const WINDOW_BITS: usize = 8192;

/// Packets of a worker that wait for the control core (a new flow's first, or an unresolved neighbour's).
pub const WAITING_MAX: usize = 1024;

/// Packets of a node that wait for unresolved neighbours: whoever scans a network for hosts that are not there must not take
/// the places of new flows.
pub const UNRESOLVED_MAX: usize = WAITING_MAX / 2;

/// Fragmented packets of which a worker knows some fragments.
pub const FRAGMENTED_PACKETS_MAX: usize = 1024;

/// Fragments that a worker holds because they came before the first one of their packet.
pub const FRAGMENTS_HELD_MAX: usize = 256;

/// Packets a worker can have on the way to another worker.
pub const HANDOFF_RING: usize = 2048;

/// Commands from the control core to a worker.
pub const COMMAND_RING: usize = 4096;

/// Events from a worker to the control core.
pub const EVENT_RING: usize = 4096;

/// Commands a worker applies between two sweeps, so that a burst of them never delays packets by much.
pub const COMMANDS_A_SWEEP: usize = 64;

/// Neighbour nodes a node probes.
pub const PEERS_MAX: usize = 256;

/// Keys of hops to other nodes that are in use at a time ([`NodeKeys`](crate::dataplane::node_keys::NodeKeys)).
pub const NODE_KEYS_MAX: usize = PEERS_MAX * NODE_KEYS_OF_ONE_MAX;

/// Of these, keys of hops to one node: two, and others for a while after a node was started anew.
pub const NODE_KEYS_OF_ONE_MAX: usize = 4;

/// Addresses of a gateway that servers see.
pub const OUTSIDE_ADDRESSES_MAX: usize = 64;

/// Forwarded ports of a gateway.
pub const PORT_MAPPINGS_MAX: usize = 1024;

/// Adjacencies (resolved next hops) of a node.
pub const ADJACENCIES_MAX: usize = 4096;

/// Largest request, bytes: what a stranger can make us read.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Largest response, bytes: read only from whom we called. A full mesh of [`PEERS_MAX`] nodes is 64 Ki links.
pub const RESPONSE_BYTES_MAX: usize = 12 * 1024 * 1024;

/// Length of one tick of the last-seen stamps, unless a node's file says otherwise.
pub const TICK: crate::Nanos = 100 * crate::MILLISECOND;

/// What it may say, milliseconds: finer costs a worker more than it is good for, coarser lets idle sessions linger.
pub const TICK_MS: std::ops::RangeInclusive<u32> = 10..=1000;

const _: () = assert!(PACKET_SLOTS >= PATHS_MAX * 2, "one packet and its copies must fit in a sweep");
const _: () = assert!(FRAME_SIZE.is_power_of_two(), "a frame's index is its address shifted right");
const _: () = assert!(WINDOW_BITS.is_multiple_of(64), "the duplicate window is made of 64-bit words");
const _: () =
    assert!(FRAME_HEADROOM >= crate::wire::OVERLAY_BYTES, "the overlay's headers are pushed into a frame's headroom");
const _: () = assert!(size_of::<usize>() == 8, "a 64-bit machine");
