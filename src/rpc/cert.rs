//! Certificates: making them for a small deployment, and reading them with errors that say what to do.
//!
//! One authority signs all. A node's certificate is for `NAME.node.starnet` and serves on both ends of a connection;
//! the control centre's is for `controller.starnet` and serves as a server only, so its key cannot pass for a node's.
//! Files are PEM; `ca.key` is needed on the machine that makes certificates and nowhere else.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    files::{self, FileError, Secrecy},
    messages::{NodeName, is_node_name},
    token,
};

/// Name that the control centre's certificate is for.
pub const CONTROLLER_DNS_NAME: &str = "controller.starnet";

/// What follows a node's name in the name its certificate is for.
const NODE_SUFFIX: &str = ".node.starnet";

/// Name of the authority. Certificates find their issuer by it, so it never changes.
const CA_COMMON_NAME: &str = "starnet CA";

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 730;

/// The name that the certificate of this node is for.
pub fn node_dns_name(name: &str) -> String {
    format!("{name}{NODE_SUFFIX}")
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file cannot be read, written or used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The name cannot be a node's.
    #[error(
        "'{0}' cannot be a node's name: 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'; not 'ca' or 'controller'"
    )]
    Name(String),
    /// The certificate library refused.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// Files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Made {
    fn at(dir: &Path, stem: &str) -> Self {
        Self { certificate: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) }
    }

    fn write(self, certificate: &Certificate, key: &KeyPair, force: bool) -> Result<Self, FileError> {
        if !force && let Some(path) = [&self.key, &self.certificate].into_iter().find(|path| path.exists()) {
            return Err(FileError::Exists { path: path.clone() });
        }
        files::write(&self.key, key.serialize_pem().as_bytes(), Secrecy::Private, force)?;
        files::write(&self.certificate, certificate.pem().as_bytes(), Secrecy::Public, force)?;
        Ok(self)
    }
}

/// Makes the authority: `ca.pem` and `ca.key` in `dir`, valid for ten years. `dir` is made where it is missing.
pub fn make_ca(dir: &Path, force: bool) -> Result<Made, CertError> {
    fs::create_dir_all(dir).map_err(|cause| FileError::Write { path: dir.to_owned(), cause })?;
    let key = KeyPair::generate()?;
    let certificate = ca_params().self_signed(&key)?;
    Ok(Made::at(dir, "ca").write(&certificate, &key, force)?)
}

/// Makes the control centre's certificate: `controller.pem` and `controller.key` in `dir`, where `ca.pem` and
/// `ca.key` are. Valid for two years.
pub fn make_controller(dir: &Path, force: bool) -> Result<Made, CertError> {
    make_leaf(dir, "controller", CONTROLLER_DNS_NAME, vec![ExtendedKeyUsagePurpose::ServerAuth], force)
}

/// Makes a node's certificate: `NAME.pem` and `NAME.key` in `dir`, where `ca.pem` and `ca.key` are. Valid for two
/// years.
pub fn make_node(dir: &Path, name: &str, force: bool) -> Result<Made, CertError> {
    if !is_node_name(name) || name == "ca" || name == "controller" {
        return Err(CertError::Name(name.to_owned()));
    }
    let usage = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    make_leaf(dir, name, &node_dns_name(name), usage, force)
}

fn make_leaf(
    dir: &Path,
    stem: &str,
    dns_name: &str,
    usage: Vec<ExtendedKeyUsagePurpose>,
    force: bool,
) -> Result<Made, CertError> {
    let ca = Made::at(dir, "ca");
    let ca_key = files::read(&ca.key, "make the authority first: 'starnet cert ca'")?;
    let ca_key = std::str::from_utf8(&ca_key).ok().and_then(|pem| KeyPair::from_pem(pem).ok()).ok_or_else(|| {
        content(&ca.key, "not a private key in PEM; make the authority anew: 'starnet cert ca --force'")
    })?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![dns_name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, dns_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usage;
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, LEAF_DAYS);
    let certificate = params.signed_by(&key, &Issuer::new(ca_params(), ca_key))?;

    // Signed by a key that is not that of ca.pem it would be worth nothing, and nobody would know before it is used.
    let root = read_certificates(&ca.certificate)?;
    check_chain(&certificate.der().clone(), &[], &root_store(&ca.certificate, root)?, KeyUsage::server_auth())
        .map_err(|_| content(&ca.key, "is not the key of ca.pem beside it; bring the two back together"))?;
    Ok(Made::at(dir, stem).write(&certificate, &key, force)?)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, CA_COMMON_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    params
}

/// From yesterday, as clocks differ, to `days` from now.
fn set_validity(params: &mut CertificateParams, days: u32) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(token::unix_seconds());
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + DAY * days;
}

/// What a process needs for TLS: whom it trusts, and (not for end clients) what it presents.
#[derive(Clone)]
pub struct Tls {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) identity: Option<Arc<Identity>>,
}

/// A certificate and its key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("has_identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of a node or the control centre. `dns_name` is the name that the certificate must be for:
    /// [`node_dns_name`] or [`CONTROLLER_DNS_NAME`].
    ///
    /// # Errors
    /// Also where the certificate is not from this authority, is for another name or has expired, or where the key is
    /// not its key: better at start than as a failed handshake later.
    pub fn load(ca: &Path, certificate: &Path, key: &Path, dns_name: &str) -> Result<Self, FileError> {
        let tls = Self::load_client(ca)?;
        let chain = read_certificates(certificate)?;
        let private = files::read(key, "make it with 'starnet cert'")?;
        let private = PrivateKeyDer::from_pem_slice(&private).map_err(|error| {
            content(key, format!("not a private key in PEM ({error}); make it with 'starnet cert'"))
        })?;
        check_chain(&chain[0], &chain[1..], &tls.roots, KeyUsage::server_auth()).map_err(|error| {
            let why = match error {
                webpki::Error::CertExpired { .. } => "has expired; make a new one with 'starnet cert … --force'".into(),
                webpki::Error::CertNotValidYet { .. } => "is not valid yet; check the clock".into(),
                webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                    format!("was not issued by {}; take the CA it was made with", ca.display())
                }
                error => format!("cannot be used with {}: {error}", ca.display()),
            };
            content(certificate, why)
        })?;
        let names: Vec<&str> =
            end_entity(&chain[0]).map(|entity| entity.valid_dns_names().collect()).unwrap_or_default();
        if !names.contains(&dns_name) {
            let why = format!("is for {}, not for {dns_name}; make one for it with 'starnet cert'", names.join(", "));
            return Err(content(certificate, why));
        }
        let identity = Identity { chain, key: private };
        rustls::sign::CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider())
            .map_err(|_| content(key, format!("is not the key of {}", certificate.display())))?;
        warn_where_others_can_read(key);
        Ok(Self { identity: Some(Arc::new(identity)), ..tls })
    }

    /// Reads what an end client needs: the authority it trusts.
    pub fn load_client(ca: &Path) -> Result<Self, FileError> {
        let certificates = read_certificates(ca)?;
        Ok(Self { roots: Arc::new(root_store(ca, certificates)?), identity: None })
    }
}

/// The node that this certificate, verified already, is for; `None` where it is for no node, or for several.
pub(super) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeName> {
    let entity = end_entity(certificate)?;
    let mut names = entity.valid_dns_names();
    let name = names.next()?.strip_suffix(NODE_SUFFIX)?;
    (is_node_name(name) && names.next().is_none()).then(|| name.to_owned())
}

/// The cryptography behind TLS: one for all, chosen here and not by a process-wide default.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn end_entity<'a>(certificate: &'a CertificateDer<'a>) -> Option<EndEntityCert<'a>> {
    EndEntityCert::try_from(certificate).ok()
}

fn check_chain(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    EndEntityCert::try_from(certificate)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &roots.roots,
            intermediates,
            UnixTime::now(),
            usage,
            None,
            None,
        )
        .map(|_| ())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = files::read(path, "make it with 'starnet cert', or copy it here")?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if chain.iter().any(|der| end_entity(der).is_none()) => {
            Err(content(path, "holds something that is no certificate"))
        }
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(content(path, "holds no certificate in PEM; make it with 'starnet cert'")),
        Err(error) => Err(content(path, format!("is not PEM ({error}); make it with 'starnet cert'"))),
    }
}

fn root_store(path: &Path, certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| content(path, format!("cannot be an authority: {error}")))?;
    }
    Ok(roots)
}

fn content(path: &Path, problem: impl Into<String>) -> FileError {
    FileError::Content { path: path.to_owned(), problem: problem.into() }
}

fn warn_where_others_can_read(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        tracing::warn!("{}: others than its owner can read this private key; chmod 600", key.display());
    }
}

/// Who is called: the name that the other side's certificate must be for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerIdentity {
    /// The control centre.
    Controller,
    /// A node.
    Node(NodeName),
}

impl ServerIdentity {
    /// The name as in certificates.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Controller => CONTROLLER_DNS_NAME.to_owned(),
            Self::Node(name) => node_dns_name(name),
        }
    }
}

impl fmt::Display for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("the control centre"),
            Self::Node(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with an authority, the control centre's certificate and those of `nodes`.
    pub(crate) fn deployment(nodes: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), false).unwrap();
        make_controller(dir.path(), false).unwrap();
        for name in nodes {
            make_node(dir.path(), name, false).unwrap();
        }
        dir
    }

    pub(crate) fn load_node(dir: &Path, name: &str) -> Result<Tls, FileError> {
        let made = Made::at(dir, name);
        Tls::load(&dir.join("ca.pem"), &made.certificate, &made.key, &node_dns_name(name))
    }

    pub(crate) fn load_controller(dir: &Path) -> Result<Tls, FileError> {
        let made = Made::at(dir, "controller");
        Tls::load(&dir.join("ca.pem"), &made.certificate, &made.key, CONTROLLER_DNS_NAME)
    }

    #[test]
    fn what_is_made_can_be_loaded_and_names_the_node() {
        let dir = deployment(&["relay-1"]);
        let tls = load_node(dir.path(), "relay-1").unwrap();
        assert_eq!(node_of(&tls.identity.unwrap().chain[0]).as_deref(), Some("relay-1"));
        let tls = load_controller(dir.path()).unwrap();
        assert_eq!(node_of(&tls.identity.unwrap().chain[0]), None);
        for key in ["ca.key", "relay-1.key", "controller.key"] {
            assert_eq!(fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn the_control_centres_certificate_does_not_serve_as_a_client() {
        let dir = deployment(&["relay-1"]);
        let tls = load_controller(dir.path()).unwrap();
        let check = |tls: &Tls, usage| check_chain(&tls.identity.as_ref().unwrap().chain[0], &[], &tls.roots, usage);
        assert!(check(&tls, KeyUsage::client_auth()).is_err());
        check(&load_node(dir.path(), "relay-1").unwrap(), KeyUsage::client_auth()).unwrap();
    }

    #[test]
    fn nothing_is_overwritten_unless_forced() {
        let dir = deployment(&["relay-1"]);
        let before = fs::read(dir.path().join("relay-1.key")).unwrap();
        let error = make_node(dir.path(), "relay-1", false).unwrap_err().to_string();
        assert!(error.contains("relay-1.key") && error.contains("--force"), "{error}");
        assert!(make_ca(dir.path(), false).is_err());
        assert_eq!(fs::read(dir.path().join("relay-1.key")).unwrap(), before);
        make_node(dir.path(), "relay-1", true).unwrap();
        assert_ne!(fs::read(dir.path().join("relay-1.key")).unwrap(), before);
        load_node(dir.path(), "relay-1").unwrap();
    }

    #[test]
    fn names_that_are_no_dns_labels_or_taken_are_refused() {
        let dir = deployment(&[]);
        for name in ["", "Relay", "a.b", "-a", "a-", "../x", "ca", "controller", &"a".repeat(64)] {
            assert!(matches!(make_node(dir.path(), name, false), Err(CertError::Name(_))), "{name}");
        }
    }

    #[test]
    fn files_that_do_not_belong_together_are_told_apart_by_name() {
        let (dir, other) = (deployment(&["a", "b"]), deployment(&["a"]));
        let path = |dir: &tempfile::TempDir, file: &str| dir.path().join(file);
        let load = |ca: &Path, certificate: &Path, key: &Path, name| {
            Tls::load(ca, certificate, key, &node_dns_name(name)).unwrap_err().to_string()
        };
        let ca = path(&dir, "ca.pem");
        let error = load(&ca, &path(&other, "a.pem"), &path(&other, "a.key"), "a");
        assert!(error.contains("a.pem: was not issued by"), "{error}");
        let error = load(&ca, &path(&dir, "a.pem"), &path(&dir, "a.key"), "b");
        assert!(error.contains("is for a.node.starnet, not for b.node.starnet"), "{error}");
        let error = load(&ca, &path(&dir, "a.pem"), &path(&dir, "b.key"), "a");
        assert!(error.contains("b.key: is not the key of"), "{error}");
        let error = load(&ca, &path(&dir, "a.key"), &path(&dir, "a.key"), "a");
        assert!(error.contains("a.key: holds no certificate"), "{error}");
        let error = load(&ca, &path(&dir, "c.pem"), &path(&dir, "a.key"), "a");
        assert!(error.contains("c.pem: cannot be read"), "{error}");

        fs::copy(path(&other, "ca.key"), path(&dir, "ca.key")).unwrap();
        let error = make_node(dir.path(), "d", false).unwrap_err().to_string();
        assert!(error.contains("is not the key of ca.pem"), "{error}");
    }
}
