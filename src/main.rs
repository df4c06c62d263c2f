//! starnet
fn main() {}
