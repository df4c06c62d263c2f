//! What a node's file says of its part in the overlay: `node.control`, `node.roles`, `[tls]` and `[controller]`.

use std::{net::SocketAddrV4, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{NodeTable, PortRange};
use crate::{
    config_file::{ConfigError, ConfigFile},
    rpc::messages::Roles,
};

/// What a node needs to be an entry, relay or exit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OverlayConfig {
    /// Where it answers control messages.
    pub control: SocketAddrV4,
    /// What it is willing to be.
    pub roles: Roles,
    /// Files of its identity.
    pub tls: TlsFiles,
    /// The control centre.
    pub controller: SocketAddrV4,
}

/// Files of a TLS identity, PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate of the authority that signed all others.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    ca: Spanned<String>,
    certificate: Spanned<String>,
    key: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControllerTable {
    address: Spanned<String>,
}

/// What only the overlay needs. A gateway may leave all of it out.
pub(super) fn read(
    file: &ConfigFile,
    node: &NodeTable,
    tls: Option<&TlsTable>,
    controller: Option<&ControllerTable>,
    ports: PortRange,
    is_gateway: bool,
) -> Result<Option<OverlayConfig>, ConfigError> {
    let is_given = [node.control.is_some(), node.roles.is_some(), tls.is_some(), controller.is_some()];
    if is_gateway && is_given == [false; 4] {
        return Ok(None);
    }
    let missing = |field: &str| file.error(field, node.name.span(), "is missing");
    let control = read_control(file, node.control.as_ref().ok_or_else(|| missing("node.control"))?, ports)?;
    let roles = read_roles(file, node.roles.as_ref().ok_or_else(|| missing("node.roles"))?)?;
    let tls = tls.ok_or_else(|| missing("tls"))?;
    let tls = TlsFiles {
        ca: file.existing_file("tls.ca", &tls.ca)?,
        certificate: file.existing_file("tls.certificate", &tls.certificate)?,
        key: file.existing_file("tls.key", &tls.key)?,
    };
    let controller = controller.ok_or_else(|| missing("controller"))?;
    let expected = "an IPv4 address and port, like 192.0.2.1:4400";
    let controller = file.parse_field("controller.address", &controller.address, expected)?;
    Ok(Some(OverlayConfig { control, roles, tls, controller }))
}

fn read_roles(file: &ConfigFile, names: &Spanned<Vec<Spanned<String>>>) -> Result<Roles, ConfigError> {
    let mut roles = Roles { entry: false, relay: false, exit: false };
    for name in names.get_ref() {
        match name.get_ref().as_str() {
            "entry" => roles.entry = true,
            "relay" => roles.relay = true,
            "exit" => roles.exit = true,
            other => {
                let message = format!("'{other}' is not a role: entry, relay, exit");
                return Err(file.error("node.roles", name.span(), message));
            }
        }
    }
    if names.get_ref().is_empty() {
        return Err(file.error("node.roles", names.span(), "none is not allowed: some of entry, relay, exit"));
    }
    Ok(roles)
}

fn read_control(file: &ConfigFile, value: &Spanned<String>, ports: PortRange) -> Result<SocketAddrV4, ConfigError> {
    let control: SocketAddrV4 =
        file.parse_field("node.control", value, "an IPv4 address and port, like 192.0.2.1:4401")?;
    let refuse = |message: String| Err(file.error("node.control", value.span(), message));
    if control.ip().is_unspecified() || control.port() == 0 {
        return refuse(format!("'{control}' is not allowed: others must be able to reach this address and port"));
    }
    if ports.contains(control.port()) {
        return refuse(format!("port {} is not allowed: it is inside node.ports {ports}", control.port()));
    }
    Ok(control)
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn a_part_of_the_overlay_that_is_missing_is_named() {
        for (old, field) in [
            ("control = \"192.0.2.1:4401\"\n", "node.control"),
            ("roles = [\"entry\", \"exit\"]\n", "node.roles"),
            ("[controller]\naddress = \"192.0.2.9:4400\"\n", "controller"),
            ("interfaces = [\"lo\"]\n", "node.interfaces"),
        ] {
            assert_eq!(refusal(old, ""), format!("node.toml:2: {field}: is missing"));
        }
    }

    #[test]
    fn a_control_port_must_be_reachable_and_outside_the_range() {
        assert_eq!(
            refusal("192.0.2.1:4401", "192.0.2.1:40001"),
            "node.toml:5: node.control: port 40001 is not allowed: it is inside node.ports 40000-49999"
        );
        assert_eq!(
            refusal("192.0.2.1:4401", "0.0.0.0:4401"),
            "node.toml:5: node.control: '0.0.0.0:4401' is not allowed: others must be able to reach this address and port"
        );
        assert_eq!(
            refusal("192.0.2.1:4401", "4401"),
            "node.toml:5: node.control: '4401' is not an IPv4 address and port, like 192.0.2.1:4401"
        );
    }

    #[test]
    fn a_role_must_be_one_of_three() {
        assert_eq!(
            refusal("\"exit\"", "\"exit\", \"router\""),
            "node.toml:7: node.roles: 'router' is not a role: entry, relay, exit"
        );
        assert_eq!(
            refusal("\"entry\", \"exit\"", ""),
            "node.toml:7: node.roles: none is not allowed: some of entry, relay, exit"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        assert_eq!(
            refusal("key = \"ca.pem\"", "key = \"key.pem\""),
            "node.toml:11: tls.key: key.pem: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_control_centre_must_have_an_address_and_port() {
        assert_eq!(
            refusal("192.0.2.9:4400", "controller.example"),
            "node.toml:13: controller.address: 'controller.example' is not an IPv4 address and port, like 192.0.2.1:4400"
        );
    }
}
