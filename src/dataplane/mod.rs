//! The workers of a node and what a packet goes through in them.
//!
//! A worker owns its tables; nothing else reads or writes them. The control core speaks to it by
//! [`command::Command`] over an SPSC ring and hears from it by [`command::Event`] over another; what must be
//! seen at any time ([`published`]) is single-writer relaxed atomics.

//!
//! The way of a packet: [`driver`] -> [`worker`] (the loop) -> [`graph`] (the order) -> `nodes/` (one file a
//! node) -> [`driver`].

pub mod address;
#[cfg(test)]
mod allocations;
pub mod command;
pub mod conntrack;
pub mod context;
pub mod driver;
pub mod exit_policy;
mod express;
pub mod fan;
pub mod forwarding;
pub mod gateway;
pub mod graph;
pub mod handoff;
pub mod huge;
pub mod nat;
pub mod node_keys;
mod nodes;
mod onwards;
mod outer;
#[cfg(test)]
mod overlay6;
pub mod packet;
mod pending;
pub mod port_rules;
pub mod prefetch;
pub mod published;
pub mod reason;
pub mod reassembly;
pub mod route_cache;
pub mod route_table;
pub mod rss;
pub mod slots;
pub mod spread;
pub mod tags;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod testing6;
pub mod tick;
pub mod waiting;
#[cfg(test)]
mod ways;
pub mod window;
pub mod worker;
