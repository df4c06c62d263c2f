//! starnet
