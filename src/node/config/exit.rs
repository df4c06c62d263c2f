//! The table `[exit]`: what an exit sends to, and what servers of IPv6 see its clients as.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use toml::Spanned;

use super::{gateway::read_addresses6, gateway::read_nat64, read_prefixes};
use crate::{
    config_file::{ConfigError, ConfigFile},
    dataplane::{
        exit_policy::ExitPolicy,
        forwarding::{Prefix, Prefix6},
        gateway::{OutsideAddress, OutsideAddress6},
        nat::Prefix64,
    },
};

/// Destinations an exit sends nothing to unless told otherwise: special-purpose addresses (RFC 6890 and its
/// registry), 6to4 relays (RFC 7526), multicast, and the reserved class E with the limited broadcast address.
pub const DENY_DEFAULT: [Prefix; 15] = [
    Prefix::new(Ipv4Addr::new(0, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(100, 64, 0, 0), 10),
    Prefix::new(Ipv4Addr::new(127, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(169, 254, 0, 0), 16),
    Prefix::new(Ipv4Addr::new(172, 16, 0, 0), 12),
    Prefix::new(Ipv4Addr::new(192, 0, 0, 0), 24),
    Prefix::new(Ipv4Addr::new(192, 0, 2, 0), 24),
    Prefix::new(Ipv4Addr::new(192, 88, 99, 0), 24),
    Prefix::new(Ipv4Addr::new(192, 168, 0, 0), 16),
    Prefix::new(Ipv4Addr::new(198, 18, 0, 0), 15),
    Prefix::new(Ipv4Addr::new(198, 51, 100, 0), 24),
    Prefix::new(Ipv4Addr::new(203, 0, 113, 0), 24),
    Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4),
    Prefix::new(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The same of IPv6: all that is not global unicast (2000::/3, RFC 4291 section 2.4), so loopback, IPv4 by another name,
/// discard, segment routing, unique local, link-local and multicast; and what is in it for a special purpose (RFC 6890
/// and its registry): protocol assignments with Teredo, benchmarks and ORCHIDs, documentation, 6to4.
pub const DENY6_DEFAULT: [Prefix6; 7] = [
    Prefix6::of(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 3),
    Prefix6::of(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    Prefix6::of(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    Prefix6::of(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    Prefix6::of(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    Prefix6::of(Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 0), 2),
    Prefix6::of(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1),
];

/// What a node does as an exit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExitConfig {
    /// Where it sends to.
    pub policy: ExitPolicy,
    /// What servers of IPv6 see its clients as, where it is no gateway besides: a gateway's addresses serve both.
    pub addresses6: Vec<OutsideAddress6>,
    /// Where the IPv4 internet is for clients that speak IPv6; again, where it is no gateway.
    pub nat64: Option<Prefix64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    deny: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    deny6: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    allow6: Vec<Spanned<String>>,
    #[serde(default)]
    addresses6: Vec<Spanned<String>>,
    nat64_prefix: Option<Spanned<String>>,
}

impl ExitConfig {
    /// Checks the table of a node whose NAT ports are those of `own`.
    pub(super) fn read(
        file: &ConfigFile,
        table: &Table,
        own: OutsideAddress,
        is_exit: bool,
        is_gateway: bool,
    ) -> Result<Self, ConfigError> {
        let addresses6 = table.addresses6.first().map(|value| ("addresses6", value));
        let nat64_prefix = table.nat64_prefix.as_ref().map(|value| ("nat64_prefix", value));
        if let Some((field, value)) = addresses6.or(nat64_prefix) {
            let refuse = |why: String| Err(file.error(&format!("exit.{field}"), value.span(), why));
            if is_gateway {
                return refuse(format!(
                    "is of use only where the node is no gateway: gateway.{field} is for clients of the overlay, too"
                ));
            }
            if !is_exit {
                return refuse("is of use only to an exit: node.roles does not say so".to_owned());
            }
        }
        let policy = ExitPolicy {
            deny: match &table.deny {
                Some(prefixes) => read_prefixes(file, "exit.deny", prefixes)?,
                None => DENY_DEFAULT.to_vec(),
            },
            allow: read_prefixes(file, "exit.allow", &table.allow)?,
            deny6: match &table.deny6 {
                Some(prefixes) => read_prefixes(file, "exit.deny6", prefixes)?,
                None => DENY6_DEFAULT.to_vec(),
            },
            allow6: read_prefixes(file, "exit.allow6", &table.allow6)?,
        };
        Ok(Self {
            policy,
            addresses6: read_addresses6(file, "exit.addresses6", &table.addresses6, own)?,
            nat64: read_nat64(file, "exit.nat64_prefix", table.nat64_prefix.as_ref())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    fn with(lines: &str) -> Result<ExitConfig, String> {
        read("[controller]", &format!("[exit]\n{lines}\n[controller]")).map(|config| config.exit)
    }

    #[test]
    fn prefixes_are_checked_and_replace_the_default() {
        for (lines, complaint) in [
            (
                "allow = [\"10.0.0.1/8\"]",
                "13: exit.allow: '10.0.0.1/8' has bits set after its prefix length; did you mean 10.0.0.0/8?",
            ),
            ("deny6 = [\"10.0.0.0/8\"]", "13: exit.deny6: '10.0.0.0/8' is not an IPv6 prefix"),
        ] {
            assert_eq!(with(lines).unwrap_err(), format!("node.toml:{complaint}"));
        }
        assert_eq!(with("deny = []\ndeny6 = []").unwrap().policy, ExitPolicy::default());
        let policy = with("allow = [\"198.51.100.0/24\"]\nallow6 = [\"2001:db8::/32\"]").unwrap().policy;
        assert_eq!((policy.deny.len(), policy.deny6.len()), (DENY_DEFAULT.len(), DENY6_DEFAULT.len()));
        assert_eq!(policy.allow, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(policy.allow6, ["2001:db8::/32".parse().unwrap()]);
    }

    #[test]
    fn an_exit_sends_only_to_the_public_internet_of_ipv6_unless_told_otherwise() {
        let policy = with("").unwrap().policy;
        for private in [
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "8000::1",
        ] {
            assert!(!policy.allows6(private.parse().unwrap()), "{private}");
        }
        for public in ["2001:4860:4860::8888", "2001:200::1", "2400::1", "2620:4f:8000::1", "2a00::1", "3ffe::1"] {
            assert!(policy.allows6(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn addresses_of_ipv6_are_an_exits_and_a_gateways_serve_both() {
        let exit = with("addresses6 = [\"2001:db8::1\"]\nnat64_prefix = \"64:ff9b::/96\"").unwrap();
        let outside = OutsideAddress6 { address: "2001:db8::1".parse().unwrap(), first: 40_001, last: 49_999 };
        assert_eq!((exit.addresses6, exit.nat64), (vec![outside], Some(Prefix64::WELL_KNOWN)));
        let nat = read("[controller]", "[exit]\naddresses6 = [\"2001:db8::1\"]\n[controller]").unwrap().nat;
        assert_eq!((nat.addresses6, nat.gateway.len()), (vec![outside], 0));
        assert_eq!(
            with("addresses6 = [\"ff02::1\"]").unwrap_err(),
            "node.toml:13: exit.addresses6: ff02::1 is not allowed: one of the machine's own addresses"
        );
        let entry = read("\"exit\"]", "\"relay\"]\n[exit]\nnat64_prefix = \"64:ff9b::/96\"");
        assert_eq!(
            entry.unwrap_err(),
            "node.toml:9: exit.nat64_prefix: is of use only to an exit: node.roles does not say so"
        );
    }
}
