//! The control core: the one place of a node that allocates slots, fans, bindings and ports.
//!
//! Sans-IO. What happens is told to [`Control`] (a request came, a worker spoke, the kernel changed a route,
//! time passed); what is to be done comes out of [`Control::poll`] as [`Effect`]s. No socket, no clock, no
//! thread: the node's process and the simulator drive the same code.

pub mod interface;

pub use interface::{CallId, Caller, ControlConfig, Effect, KernelEvent, RequestId};
