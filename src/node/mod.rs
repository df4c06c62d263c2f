//! A node as a process: config, threads, kernel, QUIC, the operator's socket.
//!
//! [`process`] starts and ends it. Its threads (`threads`): one for each worker ([`worker_thread`]), the control core
//! (`control_thread`), the sockets (`network_thread`), and netlink ([`kernel`]).

pub mod clock;
pub mod config;
mod control_thread;
pub mod cores;
pub mod kernel;
mod metrics;
mod network_thread;
mod nics;
mod operation;
pub mod port_claim;
pub mod process;
mod threads;
mod views;
pub mod worker_thread;

/// Where sockets and claims of running nodes are.
pub const RUN_DIRECTORY: &str = "/run/starnet";

pub use network_thread::NetworkError;
pub use process::{NodeError, run};
