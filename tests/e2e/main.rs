//! End to end: real programs and sockets, real `starnet` processes, in network namespaces.
//!
//! Each test brings a testbed of its own up and takes it down, one at a time. Root is needed.

mod errors;
mod faults;
mod operation;
mod support;
mod traffic;
