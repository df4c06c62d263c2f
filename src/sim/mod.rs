//! The overlay in one thread: several nodes over the memory driver, on virtual time, from a seed.

mod noise;
mod packets;
