//! What can be seen of a node from outside.

pub mod columns;
pub mod histogram;
pub mod http;
pub mod metrics;
pub(crate) mod named;
pub mod operator;
pub mod pages;
pub mod show;
pub mod show_nat;
pub mod show_sessions;
pub mod table;
