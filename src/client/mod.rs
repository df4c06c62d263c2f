//! The client: plans paths, opens sessions, carries packets.
