//! A node as a process: config, threads, kernel, QUIC, the operator's socket.

pub mod config;
pub mod kernel;
pub mod port_claim;

/// Where sockets and claims of running nodes are.
pub const RUN_DIRECTORY: &str = "/run/starnet";
