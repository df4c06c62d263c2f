//! The table `[gateway]`: whose packets are routed and translated, and to what.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use serde::Deserialize;
use toml::Spanned;

use super::{PortRange, mapping, read_interface_names, read_prefixes};
use crate::{
    config_file::{ConfigError, ConfigFile},
    dataplane::{
        forwarding::{Prefix, Prefix6},
        gateway::{Gateway, OutsideAddress, OutsideAddress6, Realm, StaticMapping},
        nat::Prefix64,
    },
    limits::OUTSIDE_ADDRESSES_MAX,
};

/// What a node does as a gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// Interfaces whose hosts use this node as their router.
    pub inside: Vec<String>,
    /// Interfaces that lead to everyone else.
    pub outside: Vec<String>,
    /// What servers see.
    pub addresses: Vec<OutsideAddress>,
    /// The same of IPv6.
    pub addresses6: Vec<OutsideAddress6>,
    /// Where the IPv4 internet is for hosts that speak IPv6.
    pub nat64: Option<Prefix64>,
    /// Destinations that are routed to without translation.
    pub exempt: Vec<Prefix>,
    /// The same of IPv6.
    pub exempt6: Vec<Prefix6>,
    /// Forwarded ports.
    pub mappings: Vec<StaticMapping>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    inside: Spanned<Vec<Spanned<String>>>,
    outside: Spanned<Vec<Spanned<String>>>,
    addresses: Option<Spanned<Vec<Spanned<String>>>>,
    ports: Option<Spanned<String>>,
    #[serde(default)]
    addresses6: Vec<Spanned<String>>,
    nat64_prefix: Option<Spanned<String>>,
    #[serde(default)]
    exempt: Vec<Spanned<String>>,
    #[serde(default)]
    exempt6: Vec<Spanned<String>>,
    #[serde(default)]
    mapping: Vec<mapping::Table>,
}

impl GatewayConfig {
    /// Checks the table of a node whose own address and NAT ports are `own`, and which answers control messages at
    /// `control`.
    pub(super) fn read(
        file: &ConfigFile,
        table: &Table,
        own: OutsideAddress,
        control: Option<SocketAddrV4>,
    ) -> Result<Self, ConfigError> {
        let inside = read_interface_names(file, "gateway.inside", &table.inside)?;
        let outside = read_interface_names(file, "gateway.outside", &table.outside)?;
        if let Some(both) = table.outside.get_ref().iter().find(|name| inside.contains(name.get_ref())) {
            let message = format!("'{}' is in gateway.inside, too: an interface is on one side", both.get_ref());
            return Err(file.error("gateway.outside", both.span(), message));
        }
        let addresses = read_addresses(file, table, own)?;
        let addresses6 = read_addresses6(file, "gateway.addresses6", &table.addresses6, own)?;
        let nat64 = read_nat64(file, "gateway.nat64_prefix", table.nat64_prefix.as_ref())?;
        let reserved =
            [control.map(|at| (*at.ip(), at.port())), own.first.checked_sub(1).map(|data| (own.address, data))];
        let known = mapping::Outside { addresses: &addresses, addresses6: &addresses6, nat64, reserved };
        let mappings = mapping::read(file, &table.mapping, &known)?;
        Ok(Self {
            inside,
            outside,
            addresses,
            addresses6,
            nat64,
            exempt: read_prefixes(file, "gateway.exempt", &table.exempt)?,
            exempt6: read_prefixes(file, "gateway.exempt6", &table.exempt6)?,
            mappings,
        })
    }

    /// The same for the workers, who know interfaces by their place in `interfaces`.
    pub fn resolve(&self, interfaces: &[String]) -> Gateway {
        let realm_of = |name| match () {
            () if self.inside.contains(name) => Realm::Inside,
            () if self.outside.contains(name) => Realm::Outside,
            () => Realm::Neither,
        };
        let mut mappings = self.mappings.clone();
        mappings.sort_unstable_by_key(StaticMapping::place);
        Gateway {
            realms: interfaces.iter().map(realm_of).collect(),
            addresses: self.addresses.clone(),
            addresses6: self.addresses6.clone(),
            exempt: self.exempt.clone(),
            exempt6: self.exempt6.clone(),
            mappings,
            ..Gateway::default()
        }
    }
}

fn read_addresses(file: &ConfigFile, table: &Table, own: OutsideAddress) -> Result<Vec<OutsideAddress>, ConfigError> {
    let ports = match &table.ports {
        None => PortRange { first: own.first, last: own.last },
        Some(value) => {
            let ports: PortRange = file.parse_field("gateway.ports", value, "a port range, like 1024-65535")?;
            if ports.first == 0 {
                return Err(file.error(
                    "gateway.ports",
                    value.span(),
                    format!("'{ports}' is not allowed: ports from 1 on"),
                ));
            }
            ports
        }
    };
    let Some(names) = &table.addresses else {
        if let Some(value) = &table.ports {
            let message = "is of use only with gateway.addresses: the node's own address keeps to node.ports";
            return Err(file.error("gateway.ports", value.span(), message));
        }
        return Ok(vec![own]);
    };
    let mut addresses: Vec<OutsideAddress> = Vec::new();
    for name in names.get_ref() {
        let address: Ipv4Addr = file.parse_field("gateway.addresses", name, "an IPv4 address, like 192.0.2.1")?;
        let refuse = |why: &str| Err(file.error("gateway.addresses", name.span(), format!("{address} {why}")));
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback() {
            return refuse("is not allowed: one of the machine's own addresses");
        }
        if addresses.iter().any(|known| known.address == address) {
            return refuse("is given twice");
        }
        // The node's own address has ports that are relay's and the kernel's.
        let is_own = address == own.address;
        addresses.push(if is_own { own } else { OutsideAddress { address, first: ports.first, last: ports.last } });
    }
    match addresses.len() {
        1..=OUTSIDE_ADDRESSES_MAX => Ok(addresses),
        count => {
            let message = format!("{count} are not allowed: 1 to {OUTSIDE_ADDRESSES_MAX} addresses");
            Err(file.error("gateway.addresses", names.span(), message))
        }
    }
}

/// The machine's own addresses, so their ports are those that the kernel keeps away from: `own`'s.
pub(super) fn read_addresses6(
    file: &ConfigFile,
    field: &str,
    names: &[Spanned<String>],
    own: OutsideAddress,
) -> Result<Vec<OutsideAddress6>, ConfigError> {
    let mut addresses: Vec<OutsideAddress6> = Vec::new();
    for name in names {
        let address: Ipv6Addr = file.parse_field(field, name, "an IPv6 address, like 2001:db8::1")?;
        let refuse = |why: &str| Err(file.error(field, name.span(), format!("{address} {why}")));
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || address.is_unicast_link_local()
            || address.to_ipv4_mapped().is_some()
        {
            return refuse("is not allowed: one of the machine's own addresses");
        }
        if addresses.iter().any(|known| known.address == address) {
            return refuse("is given twice");
        }
        if addresses.len() == OUTSIDE_ADDRESSES_MAX {
            return refuse(&format!("is one too many: {OUTSIDE_ADDRESSES_MAX} addresses at most"));
        }
        addresses.push(OutsideAddress6 { address, first: own.first, last: own.last });
    }
    Ok(addresses)
}

pub(super) fn read_nat64(
    file: &ConfigFile,
    field: &str,
    prefix: Option<&Spanned<String>>,
) -> Result<Option<Prefix64>, ConfigError> {
    let what = "a prefix of 32, 40, 48, 56, 64 or 96 bits, like 64:ff9b::/96";
    prefix.map(|prefix| file.parse_field(field, prefix, what)).transpose()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{NodeConfig, tests::read_text};
    use super::*;

    const GOOD: &str = r#"[node]
name = "gw1"
address = "192.0.2.1"
ports = "40000-49999"
[gateway]
inside = ["lo"]
outside = ["OUT"]
"#;

    /// Reads `GOOD` with more lines behind it. `OUT` stands for an interface that is there beside lo.
    pub(in super::super) fn read(more: &str) -> Result<NodeConfig, String> {
        let other = nix::net::if_::if_nameindex().unwrap();
        let other = other.iter().map(|i| i.name().to_str().unwrap().to_owned()).find(|name| name != "lo");
        read_text(&(GOOD.to_owned() + more).replace("OUT", &other.expect("an interface beside lo")))
    }

    #[test]
    fn a_gateway_needs_no_overlay_and_names_the_interfaces_itself() {
        let config = read("").unwrap();
        assert!(config.overlay.is_none());
        assert_eq!((config.interfaces.len(), config.interfaces[0].as_str()), (2, "lo"));
        let gateway = config.gateway.unwrap();
        let own = OutsideAddress { address: Ipv4Addr::new(192, 0, 2, 1), first: 40_001, last: 49_999 };
        assert_eq!(gateway.addresses, [own]);
        let resolved = gateway.resolve(&config.interfaces);
        assert_eq!(
            (resolved.realm(0), resolved.realm(1), resolved.realm(7)),
            (Realm::Inside, Realm::Outside, Realm::Neither)
        );
    }

    #[test]
    fn addresses_beside_the_nodes_own_have_ports_of_their_own() {
        let gateway =
            read("addresses = [\"192.0.2.1\", \"192.0.2.7\"]\nports = \"1-65535\"\n").unwrap().gateway.unwrap();
        let ranges: Vec<_> = gateway.addresses.iter().map(|outside| (outside.first, outside.last)).collect();
        assert_eq!(ranges, [(40_001, 49_999), (1, 65_535)]);
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        for (more, complaint) in [
            (
                "exempt = [\"10.0.0.1/8\"]",
                "8: gateway.exempt: '10.0.0.1/8' has bits set after its prefix length; did you mean 10.0.0.0/8?",
            ),
            (
                "ports = \"1-2\"",
                "8: gateway.ports: is of use only with gateway.addresses: the node's own address keeps to node.ports",
            ),
            ("addresses = []", "8: gateway.addresses: 0 are not allowed: 1 to 64 addresses"),
            ("addresses = [\"192.0.2.7\", \"192.0.2.7\"]", "8: gateway.addresses: 192.0.2.7 is given twice"),
            (
                "addresses = [\"127.0.0.1\"]",
                "8: gateway.addresses: 127.0.0.1 is not allowed: one of the machine's own addresses",
            ),
            (
                "inner = 1",
                "8: gateway.inner: unknown field `inner`, expected one of `inside`, `outside`, `addresses`, `ports`, `addresses6`, `nat64_prefix`, `exempt`, `exempt6`, `mapping`",
            ),
            ("addresses6 = [\"::1\"]", "8: gateway.addresses6: ::1 is not allowed: one of the machine's own addresses"),
            (
                "addresses6 = [\"192.0.2.1\"]",
                "8: gateway.addresses6: '192.0.2.1' is not an IPv6 address, like 2001:db8::1",
            ),
            ("addresses6 = [\"2001:db8::1\", \"2001:db8:0::1\"]", "8: gateway.addresses6: 2001:db8::1 is given twice"),
            (
                "nat64_prefix = \"64:ff9b::/95\"",
                "8: gateway.nat64_prefix: '64:ff9b::/95' is not a prefix of 32, 40, 48, 56, 64 or 96 bits, like 64:ff9b::/96",
            ),
            (
                "exempt6 = [\"2001:db8::1/32\"]",
                "8: gateway.exempt6: '2001:db8::1/32' has bits set after its prefix length; did you mean 2001:db8::/32?",
            ),
        ] {
            assert_eq!(read(more).unwrap_err(), format!("node.toml:{complaint}"));
        }
        let six = "addresses6 = [\"2001:db8::1\"]\nnat64_prefix = \"64:ff9b::/96\"\nexempt6 = [\"2001:db8:9::/48\"]\n";
        let config = read(six).unwrap();
        let gateway = config.gateway.unwrap();
        let outside = OutsideAddress6 { address: "2001:db8::1".parse().unwrap(), first: 40_001, last: 49_999 };
        assert_eq!((&config.nat.addresses6, config.nat.nat64), (&vec![outside], Some(Prefix64::WELL_KNOWN)));
        assert_eq!(gateway.resolve(&[]).exempt6, ["2001:db8:9::/48".parse().unwrap()]);
    }

    #[test]
    fn what_can_change_while_the_node_runs_is_told_from_what_cannot() {
        let old = read("").unwrap();
        let exempt = read("exempt = [\"10.0.0.0/8\"]\n").unwrap();
        assert_eq!(old.fixed_differences(&exempt), [""; 0]);
        let more = read("addresses = [\"192.0.2.1\", \"192.0.2.7\"]\n[limits]\nbindings = 9\n").unwrap();
        assert_eq!(old.fixed_differences(&more), ["limits"]);
        let six = read("addresses6 = [\"2001:db8::1\", \"2001:db8::2\"]\n").unwrap();
        assert_eq!(old.fixed_differences(&six), ["the first of gateway.addresses6"]);
        let one = read("addresses6 = [\"2001:db8::1\"]\n").unwrap();
        assert_eq!(one.fixed_differences(&six), [""; 0]);
    }

    #[test]
    fn the_sample_is_right() {
        let other = nix::net::if_::if_nameindex().unwrap();
        let other = other.iter().map(|i| i.name().to_str().unwrap().to_owned()).find(|name| name != "lo");
        let text = include_str!("../../../docs/gateway.toml").replace("lan0", "lo");
        let gateway =
            read_text(&text.replace("wan0", &other.expect("an interface beside lo"))).unwrap().gateway.unwrap();
        assert_eq!((gateway.addresses.len(), gateway.exempt.len(), gateway.mappings.len()), (2, 1, 2));
    }

    #[test]
    fn an_interface_is_on_one_side() {
        let error = read_text(&GOOD.replace("OUT", "lo")).unwrap_err();
        assert_eq!(error, "node.toml:7: gateway.outside: 'lo' is in gateway.inside, too: an interface is on one side");
    }
}
