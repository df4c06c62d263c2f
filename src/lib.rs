//! starnet: a packet relay appliance.
//!
//! It carries a client's IP packets to a server over several paths at once, through nodes spread over
//! the internet, so that one bad path is never felt:
//!
//! ```text
//!            UDP            +--> relay --+            plain IP, source-NATed
//!  client ---------> entry -|            |-> exit -------------------------> server
//!    TUN, forwards          +--> relay --+
//! ```
//!
//! Read on where a packet goes:
//!
//! 1. [`client`]: takes IP packets from a TUN device or a forwarded port, wraps them.
//! 2. [`wire`]: what those bytes are. Headers and checksums, no policy.
//! 3. [`dataplane`]: the workers of a node: driver, packet graph, conntrack, NAT.
//! 4. [`control`]: the control core of a node: it alone allocates slots and ports, and writes them to the
//!    workers over rings. Sans-IO: bytes, state and `now` in, decisions out.
//! 5. [`rpc`]: the control messages and QUIC. [`controller`]: the control centre.
//! 6. [`node`]: the process that ties worker threads, control core, kernel and QUIC together.
//! 7. [`telemetry`]: what can be seen from outside. [`sim`]: the whole overlay in one thread on a virtual clock.
//!
//! [`config_file`] is what their TOML files have in common. [`limits`] holds every capacity and how they relate.

pub mod cli;
pub mod client;
pub mod config_file;
pub mod control;
pub mod controller;
pub mod dataplane;
pub mod limits;
pub mod node;
pub mod rpc;
#[cfg(test)]
mod sim;
pub mod telemetry;
pub mod wire;

/// Nanoseconds on a monotonic clock whose zero is arbitrary. Never wall-clock time.
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// Nanoseconds in a millisecond.
pub const MILLISECOND: Nanos = 1_000_000;
