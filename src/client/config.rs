//! The client's configuration: a TOML file, and the few things the command line may override.
//!
//! Everything is checked before anything starts. An error names file, line and field, and says what is allowed.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use toml::Spanned;

use super::inside::Inside;
use crate::{
    dataplane::forwarding::{Prefix, Prefix6},
    limits::{MTU_MAX, PATHS_MAX},
    rpc::messages::NodeName,
    wire::{OVERLAY_BYTES, ip6},
};

/// Inner MTU where the file says nothing: fits, with the overlay's headers, into 1500 and into PPPoE's 1492.
pub const MTU_DEFAULT: u16 = 1400;

/// The smallest MTU every IPv4 host takes (RFC 791).
const MTU_MIN: u16 = 576;

/// The largest inner MTU that a node's frame holds with the overlay's headers.
const INNER_MTU_MAX: u16 = (MTU_MAX - OVERLAY_BYTES) as u16;

/// Paths where neither file nor command line says how many.
const PATHS_DEFAULT: usize = 2;

/// All a client is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The control centre.
    pub controller: SocketAddrV4,
    /// File of the certificate authority that signs nodes and control centre.
    pub ca: PathBuf,
    /// The token the control centre issued.
    pub token: String,
    /// The first node, or any.
    pub entry: Option<NodeName>,
    /// The last node, or any.
    pub exit: Option<NodeName>,
    /// Paths to plan, 1 to [`PATHS_MAX`].
    pub paths: usize,
    /// Source addresses of the inner packets.
    pub inside: Inside,
    /// UNIX socket for the operator, if any.
    pub socket: Option<PathBuf>,
    /// The TUN device, if any.
    pub tun: Option<TunConfig>,
    /// Forwarded ports.
    pub forwards: Vec<Forward>,
}

impl ClientConfig {
    /// Largest inner packet, bytes.
    pub fn mtu(&self) -> u16 {
        self.tun.as_ref().map_or(MTU_DEFAULT, |tun| tun.mtu)
    }
}

/// The TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Its name.
    pub name: String,
    /// Its MTU, bytes of inner packet.
    pub mtu: u16,
    /// What goes through it.
    pub routes: Vec<Prefix>,
    /// The same of IPv6.
    pub routes6: Vec<Prefix6>,
}

/// A local port whose traffic goes to a server. As text: `udp:127.0.0.1:5000=198.51.100.1:5000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Where local programs send or connect to.
    pub listen: SocketAddrV4,
    /// Where it goes.
    pub server: SocketAddrV4,
}

impl Display for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
        };
        write!(f, "{protocol}:{}={}", self.listen, self.server)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(protocol, rest)| Some((protocol, rest.split_once('=')?)));
        let Some((protocol, (listen, server))) = parts else {
            return Err(format!(
                "'{text}' is not udp:LISTEN=SERVER or tcp:LISTEN=SERVER with LISTEN and SERVER IP:PORT"
            ));
        };
        let forward = Self { protocol: protocol.parse()?, listen: address(listen)?, server: address(server)? };
        forward.check()?;
        Ok(forward)
    }
}

impl Forward {
    fn check(&self) -> Result<(), String> {
        if self.server.port() == 0 || self.server.ip().is_unspecified() {
            return Err(format!("server '{}': address and port must not be zero", self.server));
        }
        if self.listen.port() == 0 {
            return Err(format!("listen '{}': the port must not be zero", self.listen));
        }
        Ok(())
    }
}

/// What a forward carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Connections.
    Tcp,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "udp" => Ok(Self::Udp),
            "tcp" => Ok(Self::Tcp),
            _ => Err(format!("protocol '{text}' is not \"udp\" or \"tcp\"")),
        }
    }
}

/// What the command line says; where it says something, it replaces what the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--entry`
    pub entry: Option<NodeName>,
    /// `--exit`
    pub exit: Option<NodeName>,
    /// `--paths`
    pub paths: Option<usize>,
    /// `--forward`, each; empty: those of the file.
    pub forwards: Vec<Forward>,
}

/// What is wrong with the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// File, and line where it is known; or the command line's option.
    pub place: String,
    /// Field, what is wrong, and what is allowed.
    pub message: String,
}

/// Reads the file, applies the overrides and checks everything, the token file included.
pub fn load(path: &Path, overrides: &Overrides) -> Result<ClientConfig, ConfigError> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError { place: place.clone(), message: format!("cannot be read: {error}") })?;
    let file = File { place, text: &text, folder: path.parent().unwrap_or(Path::new("")) };
    file.read(overrides)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    client: Client,
    tun: Option<Tun>,
    #[serde(default)]
    forward: Vec<ForwardTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    controller: Spanned<String>,
    ca: Spanned<PathBuf>,
    token: Spanned<PathBuf>,
    entry: Option<Spanned<String>>,
    exit: Option<Spanned<String>>,
    paths: Option<Spanned<i64>>,
    inside: Spanned<String>,
    inside6: Option<Spanned<String>>,
    socket: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tun {
    name: Spanned<String>,
    mtu: Option<Spanned<i64>>,
    #[serde(default)]
    routes: Vec<Spanned<String>>,
    #[serde(default)]
    routes6: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardTable {
    protocol: Spanned<String>,
    listen: Spanned<String>,
    server: Spanned<String>,
}

struct File<'a> {
    place: String,
    text: &'a str,
    folder: &'a Path,
}

impl File<'_> {
    fn read(&self, overrides: &Overrides) -> Result<ClientConfig, ConfigError> {
        let root: Root = toml::from_str(self.text).map_err(|error| {
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            match error.span() {
                Some(span) => self.error(span.clone(), format!("{}{message}", self.key_before(span))),
                None => ConfigError { place: self.place.clone(), message },
            }
        })?;
        let controller = self.parse("client.controller", &root.client.controller, address)?;
        let inside =
            Inside { ip4: self.parse("client.inside", &root.client.inside, inside)?, ip6: self.inside6(&root)? };
        let entry = self.name("client.entry", root.client.entry.as_ref())?;
        let exit = self.name("client.exit", root.client.exit.as_ref())?;
        let paths = self.number("client.paths", root.client.paths.as_ref(), 1..=PATHS_MAX as i64)?;
        let tun = root.tun.as_ref().map(|tun| self.tun(tun)).transpose()?;
        let forwards = root.forward.iter().map(|forward| self.forward(forward)).collect::<Result<Vec<_>, _>>()?;

        let config = ClientConfig {
            controller,
            ca: self.existing("client.ca", &root.client.ca)?,
            token: self.token(&root.client.token)?,
            entry: option("--entry", overrides.entry.clone(), |name| node_name(name))?.or(entry),
            exit: option("--exit", overrides.exit.clone(), |name| node_name(name))?.or(exit),
            paths: option("--paths", overrides.paths, |paths| range(*paths as i64, 1..=PATHS_MAX as i64))?
                .or(paths.map(|paths| paths as usize))
                .unwrap_or(PATHS_DEFAULT),
            inside,
            socket: root.client.socket.map(|socket| self.folder.join(socket)),
            tun,
            forwards: if overrides.forwards.is_empty() { forwards } else { overrides.forwards.clone() },
        };
        self.check_whole(&config)?;
        Ok(config)
    }

    /// What concerns several fields.
    fn check_whole(&self, config: &ClientConfig) -> Result<(), ConfigError> {
        let refuse = |message: String| Err(ConfigError { place: self.place.clone(), message });
        if config.tun.is_none() && config.forwards.is_empty() {
            return refuse("nothing to carry: give a [tun] section, a [[forward]] section or --forward".into());
        }
        if config.entry.is_some() && config.entry == config.exit {
            return refuse("client.entry and client.exit are the same node: they must differ".into());
        }
        for (at, forward) in config.forwards.iter().enumerate() {
            let is_same = |other: &&Forward| other.protocol == forward.protocol && other.listen == forward.listen;
            if let Some(other) = config.forwards[..at].iter().find(is_same) {
                return refuse(format!("two forwards listen on the same port: {other} and {forward}"));
            }
        }
        Ok(())
    }

    /// Where the file does not give one, the routes of IPv6 need one.
    fn inside6(&self, root: &Root) -> Result<Option<Ipv6Addr>, ConfigError> {
        let given = root.client.inside6.as_ref();
        let Some(tun) = &root.tun else {
            let refuse = |given: &Spanned<String>| {
                Err(self.error(given.span(), "client.inside6: is of use only with a [tun] section".into()))
            };
            return given.map_or(Ok(None), refuse);
        };
        let address = match given {
            Some(given) => Some(self.parse("client.inside6", given, inside6)?),
            None if tun.routes6.is_empty() => None,
            None => Some(inside6_of(self.parse("client.inside", &root.client.inside, inside)?)),
        };
        match &tun.mtu {
            Some(mtu) if address.is_some() && *mtu.get_ref() < i64::from(ip6::MTU_MIN) => {
                let message = format!("tun.mtu: {} is too small for IPv6, which needs {}", mtu.get_ref(), ip6::MTU_MIN);
                Err(self.error(mtu.span(), message))
            }
            _ => Ok(address),
        }
    }

    fn tun(&self, tun: &Tun) -> Result<TunConfig, ConfigError> {
        let name = self.parse("tun.name", &tun.name, interface_name)?;
        let mtu = self.number("tun.mtu", tun.mtu.as_ref(), i64::from(MTU_MIN)..=i64::from(INNER_MTU_MAX))?;
        let route = |route: &Spanned<String>| self.parse("tun.routes", route, Prefix::from_str);
        let routes = tun.routes.iter().map(route).collect::<Result<_, _>>()?;
        let route6 = |route: &Spanned<String>| self.parse("tun.routes6", route, Prefix6::from_str);
        let routes6 = tun.routes6.iter().map(route6).collect::<Result<_, _>>()?;
        Ok(TunConfig { name, mtu: mtu.map_or(MTU_DEFAULT, |mtu| mtu as u16), routes, routes6 })
    }

    fn forward(&self, table: &ForwardTable) -> Result<Forward, ConfigError> {
        let forward = Forward {
            protocol: self.parse("forward.protocol", &table.protocol, Protocol::from_str)?,
            listen: self.parse("forward.listen", &table.listen, address)?,
            server: self.parse("forward.server", &table.server, address)?,
        };
        forward.check().map_err(|message| self.error(table.listen.span(), format!("forward: {message}")))?;
        Ok(forward)
    }

    fn token(&self, path: &Spanned<PathBuf>) -> Result<String, ConfigError> {
        let file = self.existing("client.token", path)?;
        let refuse = |why: &str| self.error(path.span(), format!("client.token: {}: {why}", file.display()));
        let token = std::fs::read_to_string(&file).map_err(|error| refuse(&error.to_string()))?;
        match token.trim() {
            "" => Err(refuse("the file is empty; issue a token with `starnet token issue`")),
            token => Ok(token.to_owned()),
        }
    }

    fn existing(&self, field: &str, path: &Spanned<PathBuf>) -> Result<PathBuf, ConfigError> {
        let file = self.folder.join(path.get_ref());
        match file.metadata() {
            Ok(found) if found.is_file() => Ok(file),
            Ok(_) => Err(self.error(path.span(), format!("{field}: {} is not a file", file.display()))),
            Err(error) => Err(self.error(path.span(), format!("{field}: {}: {error}", file.display()))),
        }
    }

    fn name(&self, field: &str, name: Option<&Spanned<String>>) -> Result<Option<NodeName>, ConfigError> {
        name.map(|name| self.parse(field, name, |text| node_name(text).map(|()| text.to_owned()))).transpose()
    }

    fn number(
        &self,
        field: &str,
        number: Option<&Spanned<i64>>,
        allowed: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ConfigError> {
        let check = |number: &Spanned<i64>| match range(*number.get_ref(), allowed) {
            Ok(()) => Ok(*number.get_ref()),
            Err(why) => Err(self.error(number.span(), format!("{field}: {why}"))),
        };
        number.map(check).transpose()
    }

    fn parse<T>(
        &self,
        field: &str,
        value: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        parse(value.get_ref()).map_err(|why| self.error(value.span(), format!("{field}: {why}")))
    }

    fn error(&self, span: Range<usize>, message: String) -> ConfigError {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        ConfigError { place: format!("{}:{line}", self.place), message }
    }

    /// The key on the line of `span`, for errors of the TOML reader that do not name it.
    fn key_before(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        line.split_once('=').map(|(key, _)| format!("{}: ", key.trim())).unwrap_or_default()
    }
}

fn option<T>(name: &str, value: Option<T>, check: impl Fn(&T) -> Result<(), String>) -> Result<Option<T>, ConfigError> {
    let error = |message| ConfigError { place: name.to_owned(), message };
    value.map(|value| check(&value).map(|()| value).map_err(error)).transpose()
}

fn range(number: i64, allowed: std::ops::RangeInclusive<i64>) -> Result<(), String> {
    match allowed.contains(&number) {
        true => Ok(()),
        false => Err(format!("{number} is not within {} to {}", allowed.start(), allowed.end())),
    }
}

fn address(text: &str) -> Result<SocketAddrV4, String> {
    text.parse().map_err(|_| format!("'{text}' is not IP:PORT, such as 192.0.2.1:4433"))
}

fn inside(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| format!("'{text}' is not an IPv4 address, such as 100.64.0.2"))?;
    match address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast() {
        true => Err(format!("'{text}' is not an address a host can have, such as 100.64.0.2")),
        false => Ok(address),
    }
}

fn inside6(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr = text.parse().map_err(|_| format!("'{text}' is not an IPv6 address, such as fd00::2"))?;
    let is_no_host = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some();
    if is_no_host {
        return Err(format!("'{text}' is not an address a host can have beyond its link, such as fd00::2"));
    }
    Ok(address)
}

/// The inside address of IPv6 of a client that names none: its IPv4 one behind a prefix of unique local addresses
/// (RFC 4193). Nobody but the exit sees it.
fn inside6_of(inside: Ipv4Addr) -> Ipv6Addr {
    const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd8c, 0x41ba, 0x6e07, 0, 0, 0, 0, 0);
    Ipv6Addr::from_bits(PREFIX.to_bits() | u128::from(inside.to_bits()))
}

/// One DNS label: it becomes part of the name in the node's certificate.
fn node_name(text: &str) -> Result<(), String> {
    let is_label = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label {
        Ok(())
    } else {
        Err(format!("'{text}' is not a node's name: 1 to 63 of a-z, 0-9 and -, not - first or last"))
    }
}

/// What the kernel takes as an interface's name (IFNAMSIZ, without path characters).
fn interface_name(text: &str) -> Result<String, String> {
    let is_name = (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
        && text != "."
        && text != "..";
    if is_name {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is not an interface name: 1 to 15 characters without space, '/', ':' and '%'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[client]
controller = "192.0.2.1:4433"
ca = "ca.pem"
token = "token"
entry = "e1"
inside = "100.64.0.2"
socket = "client.sock"
[tun]
name = "star0"
routes = ["198.51.100.0/24"]
[[forward]]
protocol = "udp"
listen = "127.0.0.1:5000"
server = "198.51.100.1:5000"
"#;

    fn read(text: &str, overrides: &Overrides) -> Result<ClientConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "pem").unwrap();
        std::fs::write(folder.path().join("token"), " abc\n").unwrap();
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        File { place: "client.toml".into(), text, folder: folder.path() }.read(overrides)
    }

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        read(&GOOD.replacen(from, to, 1), &Overrides::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read_with_defaults_and_paths_relative_to_it() {
        let config = read(GOOD, &Overrides::default()).unwrap();
        assert_eq!((config.paths, config.mtu(), config.token.as_str()), (2, 1400, "abc"));
        assert!(config.ca.is_absolute() && config.ca.ends_with("ca.pem"));
        assert_eq!(config.tun.unwrap().routes, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(config.forwards[0].to_string(), "udp:127.0.0.1:5000=198.51.100.1:5000");
    }

    #[test]
    fn the_command_line_wins() {
        let forward: Forward = "tcp:127.0.0.1:80=198.51.100.2:80".parse().unwrap();
        let overrides =
            Overrides { entry: Some("e9".into()), exit: Some("x9".into()), paths: Some(3), forwards: vec![forward] };
        let config = read(GOOD, &overrides).unwrap();
        assert_eq!((config.entry.as_deref(), config.exit.as_deref(), config.paths), (Some("e9"), Some("x9"), 3));
        assert_eq!(config.forwards, [forward]);
        let refused = read(GOOD, &Overrides { paths: Some(9), ..Overrides::default() }).unwrap_err();
        assert_eq!(refused.to_string(), "--paths: 9 is not within 1 to 8");
    }

    #[test]
    fn errors_name_file_line_and_field_and_what_is_allowed() {
        for (from, to, parts) in [
            ("192.0.2.1:4433", "192.0.2.1", ["client.toml:3: client.controller:", "is not IP:PORT"]),
            ("inside = \"100.64.0.2\"", "inside = \"127.0.0.1\"", ["client.toml:7: client.inside:", "100.64.0.2"]),
            ("entry = \"e1\"", "entry = \"e_1\"", ["client.toml:6: client.entry: 'e_1'", "a-z, 0-9 and -"]),
            ("entry = \"e1\"", "entry = 1", ["client.toml:6: entry: ", "expected a string"]),
            ("entry = \"e1\"", "paths = 0", ["client.toml:6: client.paths: 0", "1 to 8"]),
            ("entry = \"e1\"", "entri = \"e1\"", ["client.toml:6: ", "unknown field `entri`, expected one of"]),
            ("token = \"token\"", "", ["client.toml:", "missing field `token`"]),
            ("token = \"token\"", "token = \"no\"", ["client.toml:5: client.token:", "No such file"]),
            ("token = \"token\"", "token = \"empty\"", ["client.toml:5: client.token:", "starnet token issue"]),
            ("name = \"star0\"", "name = \"a/b\"", ["client.toml:10: tun.name: 'a/b'", "1 to 15"]),
            ("name = \"star0\"", "name = \"a\"\nmtu = 9000", ["client.toml:11: tun.mtu: 9000", "576 to 1726"]),
            ("198.51.100.0/24", "198.51.100.1/24", ["client.toml:11: tun.routes:", "did you mean 198.51.100.0/24"]),
            ("\"udp\"", "\"sctp\"", ["client.toml:13: forward.protocol: ", "\"udp\" or \"tcp\""]),
            ("198.51.100.1:5000", "198.51.100.1:0", ["client.toml:14: forward: ", "must not be zero"]),
            ("[tun]", "[tun", ["client.toml:9: ", ""]),
        ] {
            let refused = refusal(from, to);
            assert!(parts.iter().all(|part| refused.contains(part)), "{refused}");
        }
    }

    #[test]
    fn routes_of_ipv6_bring_an_inside_address_with_them() {
        let with = |more: &str| read(&GOOD.replace("[tun]\n", &format!("{more}\n[tun]\n")), &Overrides::default());
        let inside6 = |config: ClientConfig| config.inside.ip6.map(|address| address.to_string());
        assert_eq!(inside6(with("").unwrap()), None);
        assert_eq!(inside6(with("inside6 = \"fd00::2\"").unwrap()).as_deref(), Some("fd00::2"));
        let routed = GOOD.replace("routes = ", "routes6 = [\"2000::/3\"]\nroutes = ");
        let config = read(&routed, &Overrides::default()).unwrap();
        assert_eq!(config.tun.as_ref().unwrap().routes6, ["2000::/3".parse().unwrap()]);
        assert_eq!(inside6(config).as_deref(), Some("fd8c:41ba:6e07::6440:2"));
        for (from, to, complaint) in [
            (
                "socket = ",
                "inside6 = \"fe80::2\"\nsocket = ",
                "client.toml:8: client.inside6: 'fe80::2' is not an address",
            ),
            (
                "socket = ",
                "inside6 = \"10.0.0.1\"\nsocket = ",
                "client.toml:8: client.inside6: '10.0.0.1' is not an IPv6",
            ),
            ("routes = ", "routes6 = [\"2000::1/3\"]\nroutes = ", "client.toml:11: tun.routes6: '2000::1/3' has bits"),
            (
                "routes = ",
                "mtu = 1200\nroutes6 = [\"2000::/3\"]\nroutes = ",
                "client.toml:11: tun.mtu: 1200 is too small for IPv6, which needs 1280",
            ),
        ] {
            let refused = refusal(from, to);
            assert!(refused.starts_with(complaint), "{refused}");
        }
        let without_tun = GOOD.replace("[tun]\nname = \"star0\"\nroutes = [\"198.51.100.0/24\"]\n", "");
        let refused = read(&without_tun.replace("socket", "inside6 = \"fd00::2\"\nsocket"), &Overrides::default());
        assert!(refused.unwrap_err().to_string().ends_with("client.inside6: is of use only with a [tun] section"));
    }

    #[test]
    fn a_client_with_nothing_to_carry_is_refused() {
        let alone = GOOD.split("[tun]").next().unwrap();
        let refused = read(alone, &Overrides::default()).unwrap_err().to_string();
        assert!(refused.contains("[tun]") && refused.contains("--forward"), "{refused}");
    }

    #[test]
    fn two_forwards_on_one_port_and_the_same_entry_and_exit_are_refused() {
        let table = &GOOD[GOOD.find("[[forward]]").unwrap()..];
        let refused = read(&format!("{GOOD}{table}"), &Overrides::default()).unwrap_err().to_string();
        assert!(refused.contains("same port"), "{refused}");
        assert!(refusal("entry = \"e1\"", "entry = \"a\"\nexit = \"a\"").contains("must differ"));
    }

    #[test]
    fn a_forward_as_text_is_checked() {
        for text in
            ["", "udp", "udp:1.2.3.4:5", "icmp:1.2.3.4:5=1.2.3.4:5", "udp:x=1.2.3.4:5", "udp:1.2.3.4:0=1.2.3.4:5"]
        {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
