//! The client: plans paths, opens sessions, carries packets.

pub mod planner;
