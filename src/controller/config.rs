//! The configuration of the control centre. All of it is checked before anything is started.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::registry::Links;
use crate::{
    config_file::{ConfigError, ConfigFile},
    rpc::messages::{NodeName, is_node_name},
    telemetry::http,
};

/// Where the operator's socket is unless the file says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/starnet/controller.sock";

/// What the control centre is told by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Where it answers control messages.
    pub listen: SocketAddrV4,
    /// The operator's UNIX socket.
    pub socket: PathBuf,
    /// Where it answers with metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Which nodes are neighbours.
    pub links: Links,
    /// Certificate of the authority that signed all others.
    pub ca: PathBuf,
    /// The control centre's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The key that signs tokens.
    pub token_key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    controller: ControllerTable,
    tls: Option<TlsTable>,
    token: Option<TokenTable>,
    metrics: Option<http::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ControllerTable {
    listen: Spanned<String>,
    socket: Option<Spanned<String>>,
    links: Option<Vec<Spanned<Vec<Spanned<String>>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    ca: Spanned<String>,
    certificate: Spanned<String>,
    key: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenTable {
    key: Spanned<String>,
}

impl ControllerConfig {
    /// Reads and checks the file at `path`, and that the files it names are there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_file(&ConfigFile::read(path)?)
    }

    /// Checks the text of `file`.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let File { controller, tls, token, metrics } = file.parse()?;
        let listen: SocketAddrV4 =
            file.parse_field("controller.listen", &controller.listen, "an IPv4 address and port, like 192.0.2.1:4400")?;
        if listen.port() == 0 {
            return Err(file.error("controller.listen", controller.listen.span(), "the port must not be 0"));
        }
        let links = match &controller.links {
            Some(pairs) => Links::Pairs(read_pairs(file, pairs)?),
            None => Links::FullMesh,
        };
        let tls = tls.ok_or_else(|| file.error("tls", 0..0, "is missing; it takes ca, certificate and key"))?;
        let token = token.ok_or_else(|| file.error("token", 0..0, "is missing; it takes key"))?;
        Ok(Self {
            listen,
            socket: file.resolve(controller.socket.as_ref().map_or(SOCKET_DEFAULT, |socket| socket.get_ref())),
            metrics: match &metrics {
                Some(table) => Some(table.read(file, |_| None)?),
                None => None,
            },
            links,
            ca: file.existing_file("tls.ca", &tls.ca)?,
            certificate: file.existing_file("tls.certificate", &tls.certificate)?,
            key: file.existing_file("tls.key", &tls.key)?,
            token_key: file.existing_file("token.key", &token.key)?,
        })
    }
}

type Pair = Spanned<Vec<Spanned<String>>>;

fn read_pairs(file: &ConfigFile, pairs: &[Pair]) -> Result<BTreeSet<(NodeName, NodeName)>, ConfigError> {
    let refuse = |span, message: String| Err(file.error("controller.links", span, message));
    let mut links = BTreeSet::new();
    for pair in pairs {
        let [a, b] = pair.get_ref().as_slice() else {
            return refuse(pair.span(), "a link has two ends, like [\"a\", \"b\"]".to_owned());
        };
        if let Some(name) = [a, b].into_iter().find(|name| !is_node_name(name.get_ref())) {
            return refuse(name.span(), format!("'{}' cannot be the name of a node", name.get_ref()));
        }
        let (a, b) = (a.get_ref().clone(), b.get_ref().clone());
        if a == b {
            return refuse(pair.span(), format!("'{a}' cannot be a neighbour of itself"));
        }
        if !links.insert(if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }) {
            return refuse(pair.span(), format!("the link between '{a}' and '{b}' is there twice"));
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[controller]
listen = "192.0.2.1:4400"
links = [["a", "b"], ["c", "b"]]
[tls]
ca = "ca.pem"
certificate = "controller.pem"
key = "controller.key"
[token]
key = "token.key"
"#;

    fn read(text: &str) -> Result<ControllerConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "controller.pem", "controller.key", "token.key"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        ControllerConfig::from_file(&ConfigFile::new(dir.path().join("c.toml"), text))
    }

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let error = read(&GOOD.replace(from, to)).unwrap_err().to_string();
        error[error.find("c.toml").unwrap()..].to_owned()
    }

    #[test]
    fn a_good_file_is_read_whole() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.listen, "192.0.2.1:4400".parse().unwrap());
        assert_eq!(config.socket, Path::new(SOCKET_DEFAULT));
        assert!(config.links.joins("b", "a") && config.links.joins("b", "c") && !config.links.joins("a", "c"));
        assert!(config.token_key.ends_with("token.key") && config.metrics.is_none());
        let metrics = read(&format!("{GOOD}[metrics]\nlisten = \"[::1]:9101\"\n")).unwrap().metrics;
        assert_eq!(metrics, Some("[::1]:9101".parse().unwrap()));
        let mesh = read(&GOOD.replace("links = [[\"a\", \"b\"], [\"c\", \"b\"]]\n", "")).unwrap();
        assert_eq!(mesh.links, Links::FullMesh);
    }

    #[test]
    fn what_is_wrong_is_told_by_line_and_field() {
        for (from, to, told) in [
            ("192.0.2.1:4400", "here", "c.toml:2: controller.listen: 'here' is not an IPv4 address and port"),
            ("192.0.2.1:4400", "192.0.2.1:0", "c.toml:2: controller.listen: the port must not be 0"),
            ("[\"a\", \"b\"]", "[\"a\"]", "c.toml:3: controller.links: a link has two ends"),
            ("[\"a\", \"b\"]", "[\"a\", \"a\"]", "c.toml:3: controller.links: 'a' cannot be a neighbour of itself"),
            ("[\"a\", \"b\"]", "[\"a\", \"B\"]", "c.toml:3: controller.links: 'B' cannot be the name of a node"),
            (
                "[\"a\", \"b\"]",
                "[\"b\", \"c\"]",
                "c.toml:3: controller.links: the link between 'c' and 'b' is there twice",
            ),
            ("listen", "lisp", "c.toml:2: controller.lisp: unknown field"),
            ("\"ca.pem\"", "\"none.pem\"", "c.toml:5: tls.ca: "),
            ("[token]\nkey = \"token.key\"\n", "", "c.toml:1: token: is missing"),
        ] {
            let said = refusal(from, to);
            assert!(said.starts_with(told), "{said}");
        }
    }
}
