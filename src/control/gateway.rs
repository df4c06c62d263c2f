//! The gateway as the control core knows it: what it was told by its file, and the machine's addresses.

use std::net::Ipv4Addr;

use super::{
    Control,
    interface::{Effect, LocalAddress},
};
use crate::dataplane::gateway::{Gateway, Transit};

/// What the gateway does, and where this machine is.
#[derive(Debug)]
pub(super) struct GatewayState {
    config: Gateway,
    addresses: Vec<LocalAddress>,
}

impl GatewayState {
    /// As its file says; nothing is known of addresses yet.
    pub(super) fn new(config: Gateway) -> Self {
        Self { config, addresses: Vec::new() }
    }

    /// What the XDP programs are to take.
    fn transit(&self) -> Transit {
        let mut local: Vec<Ipv4Addr> = Vec::new();
        for LocalAddress { address, network, .. } in &self.addresses {
            local.push(*address);
            // A network of one or two addresses has no broadcast address (RFC 3021).
            if network.length < 31 {
                local.extend([network.address, network.last()]);
            }
        }
        local.sort_unstable();
        local.dedup();
        let forwarded = self.config.mappings.iter();
        Transit {
            forwarded: forwarded.map(|mapping| (mapping.protocol, mapping.outside.0, mapping.outside.1)).collect(),
            local,
            exempt: self.config.exempt.clone(),
        }
    }
}

impl Control {
    /// The kernel's addresses changed: what goes there is the kernel's, and what is said about packets that came in
    /// there is said from there.
    pub(super) fn on_addresses(&mut self, addresses: Vec<LocalAddress>) {
        let Some(gateway) = &mut self.gateway else { return };
        gateway.addresses = addresses;
        self.adjacencies.is_changed = true;
        let transit = gateway.transit();
        self.effects.push_back(Effect::Take(transit));
    }

    /// The gateway's part of the workers' snapshot.
    pub(super) fn gateway_snapshot(&self) -> Option<Gateway> {
        let gateway = self.gateway.as_ref()?;
        let router = |interface: usize| {
            let mut there =
                gateway.addresses.iter().filter(|local| local.interface.map(usize::from) == Some(interface));
            // The first is the primary one.
            there.next().map(|local| local.address)
        };
        let routers = (0..gateway.config.realms.len()).map(router).collect();
        Some(Gateway { routers, ..gateway.config.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::forwarding::Prefix;

    #[test]
    fn what_is_for_this_machine_or_for_all_is_not_routed_on() {
        let local = |address: [u8; 4], length| LocalAddress {
            interface: Some(0),
            address: address.into(),
            network: Prefix::new(address.into(), length),
        };
        let mut state = GatewayState::new(Gateway::default());
        state.addresses = vec![local([10, 0, 0, 1], 24), local([192, 0, 2, 1], 32), local([10, 1, 0, 1], 31)];
        let expected = [[10, 0, 0, 0], [10, 0, 0, 1], [10, 0, 0, 255], [10, 1, 0, 1], [192, 0, 2, 1]];
        assert_eq!(state.transit().local, expected.map(Ipv4Addr::from));
    }
}
