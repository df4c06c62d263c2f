//! Forwarded ports: local programs reach a server through the overlay without root and without a TUN device.

pub mod datagram;
pub mod tcp;
