//! What a request must be like before anything is allocated for it.

use std::net::Ipv6Addr;

use super::Control;
use crate::{
    limits::{HOPS_MAX, PATHS_MAX},
    rpc::{
        messages::{FailureReason, NodeName, SessionKind, Setup},
        token::Claims,
    },
    wire::{OVERLAY_BYTES, ip4, ip6},
};

/// Largest inner packet: the outer one must pass the 1500 bytes that nearly every path can carry.
pub(super) const INNER_MTU_MAX: u16 = 1500 - OVERLAY_BYTES as u16;

/// Smallest inner MTU worth a session: what every IPv4 host must be able to reassemble (RFC 791).
const INNER_MTU_MIN: u16 = 576;

impl Control {
    /// What the token allows.
    pub(super) fn claims(&mut self, token: &str, unix_seconds: u64) -> Result<Claims, FailureReason> {
        Ok(self.tokens.verify(token, unix_seconds)?)
    }

    /// Paths of an Open: this node first, all to the same exit, no node twice. Returns the exit.
    pub(super) fn check_paths<'a>(&self, paths: &'a [Vec<NodeName>]) -> Result<&'a NodeName, FailureReason> {
        let exit = paths.first().and_then(|path| path.last()).ok_or(FailureReason::BadRequest)?;
        let is_good = |path: &Vec<NodeName>| {
            (2..=HOPS_MAX).contains(&path.len())
                && path.first() == Some(&self.config.name)
                && path.last() == Some(exit)
                && is_without_repeats(path)
        };
        if paths.len() > PATHS_MAX || !paths.iter().all(is_good) {
            return Err(FailureReason::BadRequest);
        }
        Ok(exit)
    }

    /// Route of a Setup: this node first, the entry not in it, no node twice. Returns the exit.
    pub(super) fn check_route<'a>(&self, setup: &'a Setup) -> Result<&'a NodeName, FailureReason> {
        let exit = setup.route.last().ok_or(FailureReason::BadRequest)?;
        let is_good = setup.route.len() < HOPS_MAX
            && setup.route.first() == Some(&self.config.name)
            && !setup.route.contains(&setup.entry)
            && is_without_repeats(&setup.route)
            && usize::from(setup.path) < PATHS_MAX;
        if is_good { Ok(exit) } else { Err(FailureReason::BadRequest) }
    }
}

/// What a session carries, and the size of its packets.
pub(super) fn check_kind(kind: SessionKind, mtu: u16) -> Result<(), FailureReason> {
    let is_good = match kind {
        SessionKind::Tunnel { inside6: None, .. } => true,
        SessionKind::Tunnel { inside6: Some(inside6), .. } => is_host6(inside6) && mtu >= ip6::MTU_MIN,
        SessionKind::Flow { protocol, source, server } => {
            matches!(protocol, ip4::TCP | ip4::UDP) && source.port() != 0 && server.port() != 0
        }
    };
    if is_good && mtu >= INNER_MTU_MIN { Ok(()) } else { Err(FailureReason::BadRequest) }
}

/// True for what a client may have as its address inside the overlay.
fn is_host6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some())
}

fn is_without_repeats(names: &[NodeName]) -> bool {
    names.iter().enumerate().all(|(at, name)| !names[..at].contains(name))
}
