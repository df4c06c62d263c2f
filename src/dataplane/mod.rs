//! The workers of a node and what a packet goes through in them.
//!
//! A worker owns its tables; nothing else reads or writes them. The control core speaks to it by
//! [`command::Command`] over an SPSC ring and hears from it by [`command::Event`] over another; what must be
//! seen at any time ([`published`]) is single-writer relaxed atomics.

pub mod command;
pub mod conntrack;
pub mod driver;
pub mod forwarding;
pub mod published;
pub mod reason;
pub mod window;
