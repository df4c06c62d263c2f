//! A node as a process: config, threads, kernel, QUIC, the operator's socket.

pub mod clock;
pub mod config;
pub mod cores;
pub mod kernel;
pub mod port_claim;
pub mod worker_thread;

/// Where sockets and claims of running nodes are.
pub const RUN_DIRECTORY: &str = "/run/starnet";
