//! What can be seen of a node from outside.

pub mod histogram;
pub mod operator;
pub mod show;
pub mod table;
