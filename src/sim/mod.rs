//! The overlay in one thread: several nodes over the memory driver, on virtual time, from a seed.
//!
//! ```text
//!   client::session --+                                   +-- server: UDP echo, TCP, ICMP
//!                     |     switch: delay, loss,          |
//!   Control + Workers +-- duplication, reordering (wires) +-- Control + Workers
//!                     |                                   |
//!                     +--------- control messages --------+
//! ```
//!
//! [`world`] has the clock and everything that is on its way; [`node`], [`client`] and [`server`] are the hosts.
//! The nodes run the code of the real thing; what is simulated is the kernel, the network, and QUIC's job.
//! [`nat`] is the NAT alone, as a gateway. [`scenarios`] and [`scenarios6`] are whole stories, [`steering`] is about which
//! worker receives what; [`noise`] tries what no story would think of.

mod client;
mod nat;
mod node;
mod noise;
mod noise6;
mod packets;
mod scenarios;
mod scenarios6;
mod server;
mod steering;
mod wires;
mod world;
