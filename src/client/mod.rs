//! The client: plans paths, opens sessions, carries packets.

pub mod config;
pub mod drops;
pub mod planner;
pub mod session;
