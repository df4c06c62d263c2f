//! The client: plans paths, opens sessions, carries packets.

pub mod config;
pub mod drops;
pub mod forward;
pub mod planner;
pub mod routes;
pub mod session;
pub mod socket;
pub mod tun;
