//! End to end: real programs and sockets, real `starnet` processes, in network namespaces.
//!
//! Each test brings a testbed of its own up and takes it down, one at a time. Root is needed, and Debian's archive when the
//! tests in a virtual machine run for the first time.

mod errors;
mod faults;
mod gateway;
mod gateway6;
mod metrics;
mod next_hops;
mod nics;
mod operation;
mod overlay6;
mod pool;
mod programs;
mod servers6;
mod stun;
mod support;
mod traffic;
mod vm;
/// An example is either run or tested: `cargo test` builds the wire for the testbed, and tests it from here.
#[allow(dead_code, reason = "its main is the example's")]
#[path = "../../vm-testbed/wire.rs"]
mod wire;
