//! The table `[nat]`: how the NAT behaves, for sessions of the overlay and for hosts of the gateway alike. Everything has a
//! default, and the defaults are what the RFCs ask for.

use serde::Deserialize;
use toml::Spanned;

use super::{ExitConfig, GatewayConfig};
use crate::{
    SECOND,
    config_file::{ConfigError, ConfigFile},
    dataplane::{
        gateway::OutsideAddress,
        nat::{Filtering, NatConfig, Timers},
    },
};

/// Longest timer, seconds: a day.
const TIMER_MAX: u64 = 24 * 60 * 60;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    #[serde(default)]
    mapping: Mapping,
    #[serde(default)]
    filtering: Filtering,
    parity: Option<bool>,
    port_block: Option<Spanned<u16>>,
    bindings_a_host: Option<Spanned<u32>>,
    ports_a_host: Option<Spanned<u32>>,
    #[serde(default)]
    timers: TimersTable,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mapping {
    #[default]
    EndpointIndependent,
    EndpointDependent,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TimersTable {
    udp_s: Option<Spanned<u64>>,
    icmp_s: Option<Spanned<u64>>,
    tcp_opening_s: Option<Spanned<u64>>,
    tcp_established_s: Option<Spanned<u64>>,
    tcp_closing_s: Option<Spanned<u64>>,
    #[serde(default)]
    refresh_from_outside: bool,
}

/// Checks the table of a node whose own address and NAT ports are `own`.
pub(super) fn read(
    file: &ConfigFile,
    table: &Table,
    own: OutsideAddress,
    gateway: Option<&GatewayConfig>,
    exit: &ExitConfig,
) -> Result<NatConfig, ConfigError> {
    let default = match gateway {
        Some(gateway) => NatConfig {
            addresses6: gateway.addresses6.clone(),
            nat64: gateway.nat64,
            ..NatConfig::new(own).with_gateway(&gateway.addresses)
        },
        None => NatConfig { addresses6: exit.addresses6.clone(), nat64: exit.nat64, ..NatConfig::new(own) },
    };
    let is_endpoint_dependent = table.mapping == Mapping::EndpointDependent;
    let port_block = match &table.port_block {
        Some(value) if is_endpoint_dependent => {
            let message = "is of no use with endpoint-dependent mapping: hosts share ports then";
            return Err(file.error("nat.port_block", value.span(), message));
        }
        Some(value) => file.number_in("nat.port_block", value, 16..=8192)?,
        None => default.port_block,
    };
    let limit = |field, value: &Option<Spanned<u32>>, default| match value {
        Some(value) => file.number_in(field, value, 1..=u32::MAX),
        None => Ok(default),
    };
    Ok(NatConfig {
        filtering: table.filtering,
        timers: read_timers(file, &table.timers)?,
        is_endpoint_dependent,
        keeps_parity: table.parity.unwrap_or(default.keeps_parity),
        port_block,
        bindings_a_host: limit("nat.bindings_a_host", &table.bindings_a_host, default.bindings_a_host)?,
        ports_a_host: limit("nat.ports_a_host", &table.ports_a_host, default.ports_a_host)?,
        ..default
    })
}

fn read_timers(file: &ConfigFile, table: &TimersTable) -> Result<Timers, ConfigError> {
    let default = Timers::default();
    let timer = |field: &str, value: &Option<Spanned<u64>>, default| match value {
        Some(value) => Ok(file.number_in(&format!("nat.timers.{field}"), value, 1..=TIMER_MAX)? * SECOND),
        None => Ok(default),
    };
    Ok(Timers {
        udp: timer("udp_s", &table.udp_s, default.udp)?,
        icmp: timer("icmp_s", &table.icmp_s, default.icmp)?,
        tcp_opening: timer("tcp_opening_s", &table.tcp_opening_s, default.tcp_opening)?,
        tcp_established: timer("tcp_established_s", &table.tcp_established_s, default.tcp_established)?,
        tcp_closing: timer("tcp_closing_s", &table.tcp_closing_s, default.tcp_closing)?,
        is_refreshed_from_outside: table.refresh_from_outside,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    fn with(lines: &str) -> Result<NatConfig, String> {
        read("[controller]", &format!("[nat]\n{lines}\n[controller]")).map(|config| config.nat)
    }

    #[test]
    fn without_the_table_all_is_as_the_rfcs_ask_for() {
        let own = OutsideAddress { address: [192, 0, 2, 1].into(), first: 40_001, last: 49_999 };
        assert_eq!(with("").unwrap(), NatConfig::new(own));
    }

    #[test]
    fn every_field_is_taken() {
        let nat = with(
            "filtering = \"address-dependent\"\nparity = false\nport_block = 64\nbindings_a_host = 100\nports_a_host = 50\n\
             timers = { udp_s = 120, tcp_established_s = 7500, refresh_from_outside = true }",
        )
        .unwrap();
        assert_eq!((nat.filtering, nat.keeps_parity, nat.port_block), (Filtering::AddressDependent, false, 64));
        assert_eq!((nat.bindings_a_host, nat.ports_a_host), (100, 50));
        assert_eq!((nat.timers.udp, nat.timers.icmp), (120 * SECOND, Timers::default().icmp));
        assert!(nat.timers.is_refreshed_from_outside && !nat.is_endpoint_dependent);
        assert!(with("mapping = \"endpoint-dependent\"").unwrap().is_endpoint_dependent);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, complaint) in [
            ("port_block = 8", "nat.port_block: 8 is not allowed: 16 to 8192"),
            ("ports_a_host = 0", "nat.ports_a_host: 0 is not allowed: 1 to 4294967295"),
            ("timers = { udp_s = 0 }", "nat.timers.udp_s: 0 is not allowed: 1 to 86400"),
            (
                "mapping = \"endpoint-dependent\"\nport_block = 64",
                "nat.port_block: is of no use with endpoint-dependent mapping: hosts share ports then",
            ),
        ] {
            let error = with(line).unwrap_err();
            assert!(error.starts_with("node.toml:1") && error.ends_with(complaint), "{error}");
        }
    }
}
