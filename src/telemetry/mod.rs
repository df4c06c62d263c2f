//! What can be seen of a node from outside.

pub mod histogram;
