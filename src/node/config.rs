//! The configuration of a node. All of it is checked before anything is started.

mod exit;
mod gateway;
mod mapping;
mod nat;
mod overlay;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

pub use self::{
    exit::{DENY_DEFAULT, DENY6_DEFAULT, ExitConfig},
    gateway::GatewayConfig,
    overlay::{OverlayConfig, TlsFiles},
};
use crate::{
    config_file::{ConfigError, ConfigFile},
    dataplane::{gateway::OutsideAddress, nat::NatConfig, tick::Tick},
    limits,
    rpc::messages::{NodeName, is_node_name},
    telemetry::http,
};

/// Ports a node reserves at least: one for relay packets, the rest for NAT.
pub const PORTS_MIN: u16 = 1024;

/// Interfaces of a node: a number of eight bits tells them apart, and one stands for none.
const INTERFACES_MAX: usize = 255;

/// UMEM frames of a worker where the file says nothing: 64 MiB, so that a burst that comes while the worker is off
/// its core finds some thousands of frames on each interface.
pub const FRAMES_DEFAULT: u32 = 32 * FRAMES_STEP;

/// UMEM frames of a worker are allocated in steps of one hugepage.
pub const FRAMES_STEP: u32 = (2 << 20) / limits::FRAME_SIZE as u32;

/// What a node is told by its file.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// Its name, a DNS label.
    pub name: NodeName,
    /// The address that peers and clients send to and servers see.
    pub address: Ipv4Addr,
    /// Interfaces it serves, by name.
    pub interfaces: Vec<String>,
    /// The ports and ICMP identifiers it reserves.
    pub ports: PortRange,
    /// Its part in the overlay, if any.
    pub overlay: Option<OverlayConfig>,
    /// What it does as a gateway, if anything.
    pub gateway: Option<GatewayConfig>,
    /// Worker threads.
    pub workers: usize,
    /// What a worker does without packets.
    pub idle: IdlePolicy,
    /// Workers and control core each keep to one processor.
    pub pin: bool,
    /// The operator's UNIX socket.
    pub socket: PathBuf,
    /// Where it answers with metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Sizes of the tables of one worker.
    pub limits: NodeLimits,
    /// How its NAT behaves.
    pub nat: NatConfig,
    /// What it does as an exit.
    pub exit: ExitConfig,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The UDP port of relay packets.
    pub first: u16,
    /// The last NAT port.
    pub last: u16,
}

impl PortRange {
    /// True where `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// True where some port is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for PortRange {
    type Err = ();

    /// Reads `40000-49999`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (first, last) = text.split_once('-').ok_or(())?;
        let range = Self { first: first.trim().parse().map_err(drop)?, last: last.trim().parse().map_err(drop)? };
        if range.first <= range.last { Ok(range) } else { Err(()) }
    }
}

/// What a worker does while no packet comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdlePolicy {
    /// Spins for a while, then sleeps in the kernel until a packet comes.
    #[default]
    Adaptive,
    /// Never sleeps: for cores that do nothing else.
    Busy,
}

/// Sizes of the tables of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeLimits {
    /// Conntrack slots.
    pub slots: u32,
    /// Sessions that begin or end here (fans).
    pub sessions: u32,
    /// NAT bindings.
    pub bindings: u32,
    /// NAT bindings of one session.
    pub bindings_a_session: u32,
    /// UMEM frames of 2 KiB.
    pub frames: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeTable,
    tls: Option<overlay::TlsTable>,
    controller: Option<overlay::ControllerTable>,
    gateway: Option<gateway::Table>,
    metrics: Option<http::Table>,
    #[serde(default)]
    nat: nat::Table,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    exit: exit::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    name: Spanned<String>,
    address: Spanned<String>,
    interfaces: Option<Spanned<Vec<Spanned<String>>>>,
    control: Option<Spanned<String>>,
    ports: Spanned<String>,
    roles: Option<Spanned<Vec<Spanned<String>>>>,
    workers: Option<Spanned<usize>>,
    #[serde(default)]
    idle: IdlePolicy,
    pin: Option<bool>,
    socket: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    slots: Option<Spanned<u32>>,
    sessions: Option<Spanned<u32>>,
    bindings: Option<Spanned<u32>>,
    bindings_a_session: Option<Spanned<u32>>,
    frames: Option<Spanned<u32>>,
    tick_ms: Option<Spanned<u32>>,
}

impl NodeConfig {
    /// Reads and checks the file at `path`, and that the interfaces and files it names are there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_file(&ConfigFile::read(path)?)
    }

    /// Checks the text of `file`.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let File { node, tls, controller, gateway, metrics, nat, limits, exit } = file.parse()?;
        let name = read_name(file, &node.name)?;
        let address: Ipv4Addr = file.parse_field("node.address", &node.address, "an IPv4 address, like 192.0.2.1")?;
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            let message = format!("{address} is not allowed: one of the machine's own addresses");
            return Err(file.error("node.address", node.address.span(), message));
        }
        let ports = read_ports(file, &node.ports)?;
        // Before the files that the overlay needs: what is wrong in this file is said first.
        let named = match &node.interfaces {
            Some(names) => Some(read_interface_names(file, "node.interfaces", names)?),
            None => None,
        };
        let overlay = overlay::read(file, &node, tls.as_ref(), controller.as_ref(), ports, gateway.is_some())?;
        let own = OutsideAddress { address, first: ports.first + 1, last: ports.last };
        let control = overlay.as_ref().map(|overlay| overlay.control);
        let gateway = match &gateway {
            Some(table) => Some(GatewayConfig::read(file, table, own, control)?),
            None => None,
        };
        let is_exit = overlay.as_ref().is_some_and(|overlay| overlay.roles.exit);
        let exit = ExitConfig::read(file, &exit, own, is_exit, gateway.is_some())?;
        let tick = match &limits.tick_ms {
            Some(value) => Tick::from_millis(file.number_in("limits.tick_ms", value, limits::TICK_MS)?),
            None => Tick::DEFAULT,
        };
        let nat = NatConfig { tick, ..nat::read(file, &nat, own, gateway.as_ref(), &exit)? };
        let workers = match &node.workers {
            Some(workers) => file.number_in("node.workers", workers, 1..=limits::WORKERS_MAX)?,
            None => 1,
        };
        let socket = match &node.socket {
            Some(socket) => file.resolve(socket.get_ref()),
            None => Path::new(super::RUN_DIRECTORY).join(format!("{name}.sock")),
        };
        let outside = gateway.iter().flat_map(|gateway| &gateway.addresses).copied();
        let taken: Vec<OutsideAddress> =
            [OutsideAddress { first: ports.first, ..own }].into_iter().chain(outside).collect();
        let metrics = match &metrics {
            Some(table) => Some(table.read(file, |at| taken_by(at, &taken))?),
            None => None,
        };
        Ok(Self {
            file: file.path().to_owned(),
            name,
            address,
            interfaces: all_interfaces(file, &node, named, gateway.as_ref())?,
            ports,
            overlay,
            gateway,
            workers,
            idle: node.idle,
            pin: node.pin.unwrap_or(true),
            socket,
            metrics,
            limits: read_limits(file, &limits)?,
            nat,
            exit,
        })
    }
}

impl NodeConfig {
    /// What is another value in `new` and cannot change while the node runs.
    pub fn fixed_differences(&self, new: &Self) -> Vec<&'static str> {
        // Field by field, so that a new one is not forgotten here.
        let Self {
            file: _,
            name,
            address,
            interfaces,
            ports,
            overlay,
            gateway,
            workers,
            idle,
            pin,
            socket,
            metrics,
            limits,
            nat,
            exit,
        } = self;
        let mut differences = Vec::new();
        let mut compare = |field, is_same: bool| differences.extend((!is_same).then_some(field));
        compare("node.name", *name == new.name);
        compare("node.address", *address == new.address);
        compare("node.interfaces", *interfaces == new.interfaces);
        compare("node.ports", *ports == new.ports);
        compare("what belongs to the overlay", *overlay == new.overlay);
        compare("node.workers", *workers == new.workers);
        compare("node.idle", *idle == new.idle);
        compare("node.pin", *pin == new.pin);
        compare("node.socket", *socket == new.socket);
        compare("metrics", *metrics == new.metrics);
        compare("limits", *limits == new.limits);
        let with_new_addresses = NatConfig {
            addresses: new.nat.addresses.clone(),
            gateway: new.nat.gateway.clone(),
            addresses6: new.nat.addresses6.clone(),
            withdrawn: new.nat.withdrawn.clone(),
            nat64: new.nat.nat64,
            ..nat.clone()
        };
        compare("nat", with_new_addresses == new.nat);
        compare("exit", *exit == new.exit);
        if let (Some(gateway), Some(new)) = (gateway, &new.gateway) {
            let GatewayConfig { inside, outside, addresses: _, addresses6, nat64, exempt: _, exempt6: _, mappings: _ } =
                gateway;
            compare("gateway.inside", *inside == new.inside);
            compare("gateway.outside", *outside == new.outside);
            // It is the overlay's, and without one no IPv6 is taken at all.
            compare("the first of gateway.addresses6", addresses6.first() == new.addresses6.first());
            compare("gateway.nat64_prefix", *nat64 == new.nat64);
        }
        compare("[gateway]", gateway.is_some() == new.gateway.is_some());
        differences
    }
}

fn read_name(file: &ConfigFile, name: &Spanned<String>) -> Result<NodeName, ConfigError> {
    if is_node_name(name.get_ref()) {
        return Ok(name.get_ref().clone());
    }
    let message =
        format!("'{}' is not a DNS label: 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'", name.get_ref());
    Err(file.error("node.name", name.span(), message))
}

fn read_ports(file: &ConfigFile, value: &Spanned<String>) -> Result<PortRange, ConfigError> {
    let ports: PortRange = file.parse_field("node.ports", value, "a port range, like 40000-49999")?;
    let refuse = |message: String| Err(file.error("node.ports", value.span(), message));
    if ports.first < 1024 {
        return refuse(format!("'{ports}' is not allowed: ports from 1024 on"));
    }
    if ports.last - ports.first < PORTS_MIN - 1 {
        return refuse(format!("'{ports}' is not allowed: a range of at least {PORTS_MIN} ports"));
    }
    Ok(ports)
}

/// What to say of an address and port whose packets never come to the kernel, since they are NAT's or relay's.
fn taken_by(at: SocketAddr, taken: &[OutsideAddress]) -> Option<String> {
    let is_of = |outside: &&OutsideAddress| {
        let is_same = at.ip() == IpAddr::V4(outside.address) || at.ip().is_unspecified();
        is_same && (outside.first..=outside.last).contains(&at.port())
    };
    let OutsideAddress { address, first, last } = taken.iter().find(is_of)?;
    Some(format!("port {} is not allowed: of {address} ports {first}-{last} are the node's", at.port()))
}

/// The interfaces of `node.interfaces` and of the gateway.
fn all_interfaces(
    file: &ConfigFile,
    node: &NodeTable,
    named: Option<Vec<String>>,
    gateway: Option<&GatewayConfig>,
) -> Result<Vec<String>, ConfigError> {
    let mut interfaces = match (named, gateway) {
        (Some(names), _) => names,
        (None, Some(_)) => Vec::new(),
        (None, None) => return Err(file.error("node.interfaces", node.name.span(), "is missing")),
    };
    for name in gateway.iter().flat_map(|gateway| gateway.inside.iter().chain(&gateway.outside)) {
        if !interfaces.contains(name) {
            interfaces.push(name.clone());
        }
    }
    if interfaces.len() > INTERFACES_MAX {
        let message = format!("{} interfaces are not allowed: {INTERFACES_MAX} at most", interfaces.len());
        return Err(file.error("node", node.name.span(), message));
    }
    Ok(interfaces)
}

fn read_interface_names(
    file: &ConfigFile,
    field: &str,
    names: &Spanned<Vec<Spanned<String>>>,
) -> Result<Vec<String>, ConfigError> {
    let mut interfaces: Vec<String> = Vec::new();
    for name in names.get_ref() {
        let refuse = |message: &str| Err(file.error(field, name.span(), format!("'{}' {message}", name.get_ref())));
        if nix::net::if_::if_nametoindex(name.get_ref().as_str()).is_err() {
            return refuse("is not an interface of this machine: see `ip link`");
        }
        if interfaces.contains(name.get_ref()) {
            return refuse("is given twice");
        }
        interfaces.push(name.get_ref().clone());
    }
    match interfaces.len() {
        1..=INTERFACES_MAX => Ok(interfaces),
        count => Err(file.error(field, names.span(), format!("{count} are not allowed: 1 to {INTERFACES_MAX} names"))),
    }
}

fn read_limits(file: &ConfigFile, table: &LimitsTable) -> Result<NodeLimits, ConfigError> {
    let number = |field: &str, value: &Option<Spanned<u32>>, default: u32, most: usize| match value {
        Some(value) => file.number_in(&format!("limits.{field}"), value, 1..=most as u32),
        None => Ok(default),
    };
    let slots = number("slots", &table.slots, 65_536, limits::CT_SLOTS_MAX)?;
    let bindings = number("bindings", &table.bindings, 65_536, limits::CT_SLOTS_MAX)?;
    let frames = match &table.frames {
        None => FRAMES_DEFAULT,
        Some(value) => {
            let frames = file.number_in("limits.frames", value, 4 * FRAMES_STEP..=1 << 20)?;
            if !frames.is_multiple_of(FRAMES_STEP) {
                let message = format!("{frames} is not allowed: a multiple of {FRAMES_STEP} (2 MiB)");
                return Err(file.error("limits.frames", value.span(), message));
            }
            frames
        }
    };
    Ok(NodeLimits {
        slots,
        sessions: number("sessions", &table.sessions, slots.min(8192), slots as usize)?,
        bindings,
        bindings_a_session: number(
            "bindings_a_session",
            &table.bindings_a_session,
            bindings.min(1024),
            bindings as usize,
        )?,
        frames,
    })
}

fn read_prefixes<P: std::str::FromStr<Err = String>>(
    file: &ConfigFile,
    field: &str,
    values: &[Spanned<String>],
) -> Result<Vec<P>, ConfigError> {
    values.iter().map(|v| v.get_ref().parse().map_err(|message: String| file.error(field, v.span(), message))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::messages::Roles;

    const GOOD: &str = r#"[node]
name = "fra1"
address = "192.0.2.1"
interfaces = ["lo"]
control = "192.0.2.1:4401"
ports = "40000-49999"
roles = ["entry", "exit"]
[tls]
ca = "ca.pem"
certificate = "ca.pem"
key = "ca.pem"
[controller]
address = "192.0.2.9:4400"
"#;

    /// Reads `GOOD` with one text replaced; errors without the folder.
    pub(super) fn read(old: &str, new: &str) -> Result<NodeConfig, String> {
        assert!(GOOD.contains(old), "the test replaces nothing");
        read_text(&GOOD.replace(old, new))
    }

    /// Reads a file of this text; errors without the folder.
    pub(super) fn read_text(text: &str) -> Result<NodeConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "").unwrap();
        let file = ConfigFile::new(folder.path().join("node.toml"), text);
        let prefix = format!("{}/", folder.path().display());
        NodeConfig::from_file(&file).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    pub(super) fn refusal(old: &str, new: &str) -> String {
        read(old, new).expect_err("the file must be refused")
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = read("fra1", "fra1").unwrap();
        assert_eq!(config.ports, PortRange { first: 40_000, last: 49_999 });
        let overlay = config.overlay.unwrap();
        assert_eq!(overlay.roles, Roles { entry: true, relay: false, exit: true });
        assert!(overlay.tls.ca.ends_with("ca.pem") && config.gateway.is_none());
        assert_eq!((config.workers, config.idle), (1, IdlePolicy::Adaptive));
        assert_eq!(config.socket, Path::new("/run/starnet/fra1.sock"));
        assert_eq!(config.exit.policy.deny, DENY_DEFAULT);
        assert_eq!(config.limits.slots, 65_536);
    }

    #[test]
    fn a_name_that_is_no_dns_label_is_refused() {
        for name in ["Fra1", "fra_1", "-fra", "fra-", "", "a.b"] {
            assert_eq!(
                refusal("fra1", name),
                format!(
                    "node.toml:2: node.name: '{name}' is not a DNS label: 1 to 63 of a-z, 0-9 and '-', \
                     neither first nor last a '-'"
                )
            );
        }
    }

    #[test]
    fn an_address_nobody_can_send_to_is_refused() {
        assert_eq!(
            refusal("\"192.0.2.1\"", "\"192.0.2\""),
            "node.toml:3: node.address: '192.0.2' is not an IPv4 address, like 192.0.2.1"
        );
        assert_eq!(
            refusal("\"192.0.2.1\"", "\"0.0.0.0\""),
            "node.toml:3: node.address: 0.0.0.0 is not allowed: one of the machine's own addresses"
        );
    }

    #[test]
    fn interfaces_must_exist_and_be_named_once() {
        assert_eq!(
            refusal("\"lo\"", "\"lo\", \"nosuch0\""),
            "node.toml:4: node.interfaces: 'nosuch0' is not an interface of this machine: see `ip link`"
        );
        assert_eq!(refusal("\"lo\"", "\"lo\", \"lo\""), "node.toml:4: node.interfaces: 'lo' is given twice");
        assert_eq!(refusal("\"lo\"", ""), "node.toml:4: node.interfaces: 0 are not allowed: 1 to 255 names");
    }

    #[test]
    fn a_port_range_must_be_one_and_wide_enough() {
        for (range, text) in [
            ("49999-40000", "'49999-40000' is not a port range, like 40000-49999"),
            ("40000", "'40000' is not a port range, like 40000-49999"),
            ("40000-70000", "'40000-70000' is not a port range, like 40000-49999"),
            ("80-9000", "'80-9000' is not allowed: ports from 1024 on"),
            ("40000-41022", "'40000-41022' is not allowed: a range of at least 1024 ports"),
        ] {
            assert_eq!(refusal("40000-49999", range), format!("node.toml:6: node.ports: {text}"));
        }
        assert!(read("40000-49999", "40000-41023").is_ok());
    }

    #[test]
    fn workers_and_idle_keep_to_what_is_allowed() {
        assert_eq!(refusal("[tls]", "workers = 65\n[tls]"), "node.toml:8: node.workers: 65 is not allowed: 1 to 64");
        assert_eq!(
            refusal("[tls]", "idle = \"lazy\"\n[tls]"),
            "node.toml:8: node.idle: unknown variant `lazy`, expected `adaptive` or `busy`"
        );
        assert_eq!(read("[tls]", "idle = \"busy\"\n[tls]").unwrap().idle, IdlePolicy::Busy);
    }

    #[test]
    fn limits_keep_to_what_a_worker_can_hold() {
        let with = |line: &str| refusal("[controller]", &format!("[limits]\n{line}\n[controller]"));
        assert_eq!(with("slots = 0"), "node.toml:13: limits.slots: 0 is not allowed: 1 to 16777216");
        assert_eq!(with("slots = 100\nsessions = 101"), "node.toml:14: limits.sessions: 101 is not allowed: 1 to 100");
        assert_eq!(
            with("frames = 5000"),
            "node.toml:13: limits.frames: 5000 is not allowed: a multiple of 1024 (2 MiB)"
        );
        for tick in [9, 1001] {
            let told = format!("node.toml:13: limits.tick_ms: {tick} is not allowed: 10 to 1000");
            assert_eq!(with(&format!("tick_ms = {tick}")), told);
        }
        let with_tick = |tick: &str| read("[controller]", &format!("[limits]\n{tick}\n[controller]")).unwrap().nat.tick;
        assert_eq!((with_tick("tick_ms = 20"), with_tick("")), (Tick::from_millis(20), Tick::DEFAULT));
        assert_eq!(with("frames = 1024"), "node.toml:13: limits.frames: 1024 is not allowed: 4096 to 1048576");
        assert_eq!(
            with("slot = 1"),
            "node.toml:13: limits.slot: unknown field `slot`, expected one of `slots`, `sessions`, `bindings`, \
             `bindings_a_session`, `frames`, `tick_ms`"
        );
    }

    #[test]
    fn metrics_are_answered_where_packets_come_to_the_kernel() {
        let with = |listen: &str| read("[controller]", &format!("[metrics]\nlisten = \"{listen}\"\n[controller]"));
        assert_eq!(with("127.0.0.1:9100").unwrap().metrics, Some("127.0.0.1:9100".parse().unwrap()));
        assert_eq!(with("127.0.0.1:40001").unwrap().metrics, Some("127.0.0.1:40001".parse().unwrap()));
        assert_eq!(read("fra1", "fra1").unwrap().metrics, None);
        for listen in ["192.0.2.1:40001", "0.0.0.0:40001", "[::]:40001"] {
            assert_eq!(
                with(listen).unwrap_err(),
                "node.toml:13: metrics.listen: port 40001 is not allowed: of 192.0.2.1 ports 40000-49999 are the node's"
            );
        }
    }
}
