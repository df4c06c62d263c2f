//! The tables `[[gateway.mapping]]`: forwarded ports, each of an outside address and leading to an inside host. Of IPv6 to
//! IPv6, of IPv4 to IPv4, or of IPv4 to a host of IPv6 (NAT64).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;
use toml::Spanned;

use super::PortRange;
use crate::{
    config_file::{ConfigError, ConfigFile},
    dataplane::{
        gateway::{OutsideAddress, OutsideAddress6, StaticMapping},
        nat::Prefix64,
    },
    limits::PORT_MAPPINGS_MAX,
    wire::ip4,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    protocol: Spanned<String>,
    outside: Spanned<String>,
    inside: Spanned<String>,
}

/// What a forwarded port is checked against.
pub(super) struct Outside<'a> {
    /// The gateway's addresses.
    pub(super) addresses: &'a [OutsideAddress],
    /// The same of IPv6.
    pub(super) addresses6: &'a [OutsideAddress6],
    /// How hosts of IPv6 know clients of IPv4.
    pub(super) nat64: Option<Prefix64>,
    /// Where other nodes send.
    pub(super) reserved: [Option<(Ipv4Addr, u16)>; 2],
}

impl Outside<'_> {
    /// The ports of an address that NAT gives out; `None`: it is none of the gateway's.
    fn ports(&self, address: IpAddr) -> Option<PortRange> {
        match address {
            IpAddr::V4(address) => {
                let known = self.addresses.iter().find(|known| known.address == address)?;
                Some(PortRange { first: known.first, last: known.last })
            }
            IpAddr::V6(address) => {
                let known = self.addresses6.iter().find(|known| known.address == address)?;
                Some(PortRange { first: known.first, last: known.last })
            }
        }
    }

    /// Why nothing is forwarded to this address.
    fn objection(&self, outside: IpAddr, inside: IpAddr) -> Option<&'static str> {
        match (outside, inside) {
            (IpAddr::V6(_), IpAddr::V4(_)) => Some("nothing translates what comes from IPv6 to a host of IPv4"),
            (IpAddr::V4(_), IpAddr::V6(_)) if self.nat64.is_none() => {
                Some("a host of IPv6 knows clients of IPv4 by gateway.nat64_prefix, which is not given")
            }
            (_, IpAddr::V6(host)) if self.nat64.is_some_and(|prefix| prefix.contains(host)) => {
                Some("it is a name of an address of IPv4")
            }
            _ if !is_host(inside) => Some("no host that could be forwarded to has this address"),
            _ if self.ports(inside).is_some() => Some("it is one of the gateway's own addresses"),
            _ => None,
        }
    }
}

/// False for what is nobody's address, or one of a single machine or link.
fn is_host(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(address) => !address.is_broadcast(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none(),
    }
}

/// Checks all of them.
pub(super) fn read(
    file: &ConfigFile,
    tables: &[Table],
    known: &Outside<'_>,
) -> Result<Vec<StaticMapping>, ConfigError> {
    let mut mappings: Vec<StaticMapping> = Vec::new();
    for table in tables {
        let mapping = read_mapping(file, table, known)?;
        let refuse_outside = |why: &str| {
            let outside = SocketAddr::from(mapping.outside);
            Err(file.error("gateway.mapping.outside", table.outside.span(), format!("{outside} {why}")))
        };
        if mappings.iter().any(|other| other.place() == mapping.place()) {
            return refuse_outside("is given twice");
        }
        // A host of IPv6 may be reached by both families: what it sends leaves in the family of whom it sends to.
        let inside = |of: &StaticMapping| (of.protocol, of.inside, of.translation());
        if mappings.iter().any(|other| inside(other) == inside(&mapping)) {
            let end = SocketAddr::from(mapping.inside);
            let message = format!("{end} has a mapping already: what it sends could leave as either");
            return Err(file.error("gateway.mapping.inside", table.inside.span(), message));
        }
        if mappings.len() == PORT_MAPPINGS_MAX {
            return refuse_outside(&format!("is one too many: {PORT_MAPPINGS_MAX} mappings at most"));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn read_mapping(file: &ConfigFile, table: &Table, known: &Outside<'_>) -> Result<StaticMapping, ConfigError> {
    let protocol = match table.protocol.get_ref().as_str() {
        "tcp" => ip4::TCP,
        "udp" => ip4::UDP,
        other => {
            let message = format!("'{other}' is not allowed: tcp or udp");
            return Err(file.error("gateway.mapping.protocol", table.protocol.span(), message));
        }
    };
    let outside = read_end(file, "gateway.mapping.outside", &table.outside)?;
    let refuse = |why: &str| {
        let message = format!("{outside} is not allowed: {why}");
        Err(file.error("gateway.mapping.outside", table.outside.span(), message))
    };
    let Some(range) = known.ports(outside.ip()) else {
        return refuse("its address is none of the gateway's");
    };
    if (range.first..=range.last).contains(&outside.port()) {
        return refuse(&format!("the ports {range} of this address are given out as they are needed"));
    }
    let is_reserved = |at: &(Ipv4Addr, u16)| SocketAddr::from(*at) == outside;
    if protocol == ip4::UDP && known.reserved.iter().flatten().any(is_reserved) {
        return refuse("other nodes send there (node.control, the first of node.ports)");
    }
    let inside = read_end(file, "gateway.mapping.inside", &table.inside)?;
    if let Some(why) = known.objection(outside.ip(), inside.ip()) {
        let message = format!("{inside} is not allowed: {why}");
        return Err(file.error("gateway.mapping.inside", table.inside.span(), message));
    }
    let [outside, inside] = [outside, inside].map(|end| (end.ip(), end.port()));
    Ok(StaticMapping { protocol, outside, inside })
}

fn read_end(file: &ConfigFile, field: &str, value: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
    let what = "an address and port, like 192.0.2.1:80 or [2001:db8::1]:80";
    let end: SocketAddr = file.parse_field(field, value, what)?;
    if end.port() == 0 || end.ip().is_unspecified() {
        return Err(file.error(field, value.span(), format!("'{end}' is not allowed: one address and port")));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::super::gateway::tests::read;
    use super::*;
    use crate::dataplane::nat::Translation;

    const SIX: &str = "addresses6 = [\"2001:db8::1\"]\n";
    const NAT64: &str = "nat64_prefix = \"64:ff9b::/96\"\n";

    fn mapping(outside: &str, inside: &str) -> String {
        format!("[[gateway.mapping]]\nprotocol = \"tcp\"\noutside = \"{outside}\"\ninside = \"{inside}\"\n")
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        let good = mapping("192.0.2.1:80", "10.0.0.2:8080");
        assert_eq!(read(&good).unwrap().gateway.unwrap().mappings.len(), 1);
        for (old, new, complaint) in [
            ("tcp", "icmp", "9: gateway.mapping.protocol: 'icmp' is not allowed: tcp or udp"),
            (
                "192.0.2.1:80",
                "192.0.2.9:80",
                "10: gateway.mapping.outside: 192.0.2.9:80 is not allowed: its address is none of the gateway's",
            ),
            (
                "192.0.2.1:80",
                "192.0.2.1:40001",
                "10: gateway.mapping.outside: 192.0.2.1:40001 is not allowed: the ports 40001-49999 of this address are \
                 given out as they are needed",
            ),
            (
                "10.0.0.2:8080",
                "10.0.0.2",
                "11: gateway.mapping.inside: '10.0.0.2' is not an address and port, like 192.0.2.1:80 or [2001:db8::1]:80",
            ),
            (
                "10.0.0.2:8080",
                "10.0.0.2:0",
                "11: gateway.mapping.inside: '10.0.0.2:0' is not allowed: one address and port",
            ),
            (
                "10.0.0.2:8080",
                "224.0.0.1:8080",
                "11: gateway.mapping.inside: 224.0.0.1:8080 is not allowed: no host that could be forwarded to has this \
                 address",
            ),
            (
                "10.0.0.2:8080",
                "192.0.2.1:8080",
                "11: gateway.mapping.inside: 192.0.2.1:8080 is not allowed: it is one of the gateway's own addresses",
            ),
        ] {
            assert_eq!(read(&good.replace(old, new)).unwrap_err(), format!("node.toml:{complaint}"));
        }
        let twice = read(&format!("{good}{good}")).unwrap_err();
        assert_eq!(twice, "node.toml:14: gateway.mapping.outside: 192.0.2.1:80 is given twice");
        let twice = read(&format!("{good}{}", good.replace(":80\"", ":81\""))).unwrap_err();
        let complaint =
            "15: gateway.mapping.inside: 10.0.0.2:8080 has a mapping already: what it sends could leave as either";
        assert_eq!(twice, format!("node.toml:{complaint}"));
    }

    #[test]
    fn ports_are_forwarded_within_a_family_and_from_ipv4_to_ipv6() {
        // One port of one host by both families is two mappings: what it sends leaves by the one of its receiver's family.
        let both =
            mapping("[2001:db8::1]:80", "[2001:db8:1::2]:8080") + &mapping("192.0.2.1:80", "[2001:db8:1::2]:8080");
        let gateway = read(&format!("{SIX}{NAT64}{both}")).unwrap().gateway.unwrap();
        let of = |mapping: &StaticMapping| (SocketAddr::from(mapping.outside).to_string(), mapping.translation());
        let read: Vec<_> = gateway.resolve(&[]).mappings.iter().map(of).collect();
        let expected = [("192.0.2.1:80", Translation::Nat64), ("[2001:db8::1]:80", Translation::Nat66)];
        assert_eq!(read, expected.map(|(outside, translation)| (outside.to_owned(), Some(translation))));
    }

    #[test]
    fn what_makes_no_sense_between_families_is_named_by_line_and_field() {
        let (us, host) = ("[2001:db8::1]:80", "[2001:db8:1::2]:8080");
        for (before, outside, inside, complaint) in [
            (
                SIX,
                us,
                "10.0.0.2:8080",
                "12: gateway.mapping.inside: 10.0.0.2:8080 is not allowed: nothing translates what comes from IPv6 to a host of \
                 IPv4",
            ),
            (
                SIX,
                "192.0.2.1:80",
                host,
                "12: gateway.mapping.inside: [2001:db8:1::2]:8080 is not allowed: a host of IPv6 knows clients of IPv4 by \
                 gateway.nat64_prefix, which is not given",
            ),
            (
                NAT64,
                us,
                host,
                "11: gateway.mapping.outside: [2001:db8::1]:80 is not allowed: its address is none of the gateway's",
            ),
            (
                SIX,
                "[2001:db8::1]:40001",
                host,
                "11: gateway.mapping.outside: [2001:db8::1]:40001 is not allowed: the ports 40001-49999 of this address are \
                 given out as they are needed",
            ),
            (
                NAT64,
                "192.0.2.1:80",
                "[64:ff9b::a00:2]:80",
                "12: gateway.mapping.inside: [64:ff9b::a00:2]:80 is not allowed: it is a name of an address of IPv4",
            ),
            (
                SIX,
                us,
                "[fe80::2]:80",
                "12: gateway.mapping.inside: [fe80::2]:80 is not allowed: no host that could be forwarded to has this address",
            ),
            (
                SIX,
                us,
                us,
                "12: gateway.mapping.inside: [2001:db8::1]:80 is not allowed: it is one of the gateway's own addresses",
            ),
        ] {
            let error = read(&format!("{before}{}", mapping(outside, inside))).unwrap_err();
            assert_eq!(error, format!("node.toml:{complaint}"));
        }
        let first = mapping(us, host);
        let twice = read(&format!("{SIX}{first}{}", mapping("[2001:db8:0::1]:80", "[2001:db8:1::3]:80"))).unwrap_err();
        assert_eq!(twice, "node.toml:15: gateway.mapping.outside: [2001:db8::1]:80 is given twice");
        let twice = read(&format!("{SIX}{first}{}", mapping("[2001:db8::1]:81", host))).unwrap_err();
        assert!(twice.starts_with("node.toml:16: gateway.mapping.inside: [2001:db8:1::2]:8080 has a mapping already"));
    }
}
