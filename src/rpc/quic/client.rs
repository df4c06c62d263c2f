//! The side that asks.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::time::Instant;

use super::{Server, client_transport, code, endpoint_config};
use crate::rpc::{
    cert::{self, ServerIdentity, Tls},
    codec::{self, CodecError},
    messages::{ALPN, Request, Response},
};

/// A connection that carried no request for this long is closed.
const UNUSED: Duration = Duration::from_secs(30);

/// Why a call brought no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time: it may have been heard or not.
    #[error("{to} at {address} did not answer within {} ms", after.as_millis())]
    Timeout {
        /// Who.
        to: ServerIdentity,
        /// Where.
        address: SocketAddrV4,
        /// The time it had.
        after: Duration,
    },
    /// No connection: wrong certificate on either side, wrong protocol, or it broke twice.
    #[error("{to} at {address}: {cause}")]
    Connection {
        /// Who.
        to: ServerIdentity,
        /// Where.
        address: SocketAddrV4,
        /// Why.
        cause: String,
    },
    /// It read the request and gave no answer.
    #[error("{to} at {address} refused to answer")]
    Refused {
        /// Who.
        to: ServerIdentity,
        /// Where.
        address: SocketAddrV4,
    },
    /// The request is too long, or the response is not one.
    #[error("{to} at {address}: {cause}")]
    Message {
        /// Who.
        to: ServerIdentity,
        /// Where.
        address: SocketAddrV4,
        /// What is wrong.
        cause: CodecError,
    },
}

/// Connections to servers, opened when first needed, kept while used, opened again when broken.
///
/// Cheap to clone; clones share the connections. Each call is its own future, any number run at a time.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    config: ClientConfig,
    links: Mutex<HashMap<(ServerIdentity, SocketAddrV4), Arc<Link>>>,
}

/// The connection to one server. Calls that come while it is being opened wait for it.
#[derive(Debug, Default)]
struct Link {
    connection: tokio::sync::Mutex<Option<Connection>>,
    use_: Mutex<Use>,
}

#[derive(Debug, Default)]
struct Use {
    calls: usize,
    last: Option<Instant>,
}

impl Pool {
    /// A pool with a UDP socket of its own, bound to `address` (port 0: any).
    ///
    /// # Errors
    /// Where the address cannot be bound or the certificate cannot be used. To be called within a tokio runtime.
    pub fn bind(address: SocketAddrV4, tls: &Tls) -> io::Result<Self> {
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("there is no tokio runtime"))?;
        let endpoint = Endpoint::new(endpoint_config(tls), None, UdpSocket::bind(address)?, runtime)?;
        Self::with(endpoint, tls)
    }

    /// A pool that calls from the server's own socket: a node has one control port for both directions, so that
    /// no answer to it ever comes to a port of its reserved range.
    ///
    /// # Errors
    /// Where the certificate cannot be used.
    pub fn sharing(server: &Server, tls: &Tls) -> io::Result<Self> {
        Self::with(server.endpoint.clone(), tls)
    }

    fn with(endpoint: Endpoint, tls: &Tls) -> io::Result<Self> {
        let config = client_config(tls)?;
        Ok(Self(Arc::new(Inner { endpoint, config, links: Mutex::default() })))
    }

    /// Where calls come from.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// Asks `to`, which must prove that it is, and returns what it answers. Opening a connection is part of
    /// `timeout`. A connection that turns out to be broken is replaced and the request sent once more: every request
    /// is made so that hearing it twice does what hearing it once does.
    ///
    /// # Errors
    /// Any [`CallError`]. After a time-out the server may have acted on the request all the same.
    pub async fn call(
        &self,
        to: &ServerIdentity,
        address: SocketAddrV4,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        let link = self.link(to, address);
        let _used = Used::begin(&link);
        let failed = |failure: Failure| match failure {
            Failure::Connection(cause) => CallError::Connection { to: to.clone(), address, cause },
            Failure::Refused => CallError::Refused { to: to.clone(), address },
            Failure::Message(cause) => CallError::Message { to: to.clone(), address, cause },
        };
        let frame = codec::encode(request).map_err(|cause| failed(Failure::Message(cause)))?;
        let exchange = async {
            let mut is_second = false;
            loop {
                let (connection, is_new) = self.connection(&link, to, address).await?;
                match ask(&connection, &frame).await {
                    Err(Failure::Connection(cause)) if !is_new && !is_second => {
                        tracing::debug!(%to, %address, cause, "connection broke; trying a new one");
                        if connection.close_reason().is_none() {
                            connection.close(code::DONE, b"broken");
                        }
                        is_second = true;
                    }
                    outcome => return outcome,
                }
            }
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(outcome) => outcome.map_err(failed),
            Err(_) => Err(CallError::Timeout { to: to.clone(), address, after: timeout }),
        }
    }

    /// Closes every connection, telling the other side.
    pub fn close(&self) {
        for link in self.0.links.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Ok(connection) = link.connection.try_lock()
                && let Some(connection) = connection.as_ref()
            {
                connection.close(code::DONE, b"shutting down");
            }
        }
    }

    /// The connection as it is, for tests that look at its end.
    #[cfg(test)]
    pub(super) async fn open_connection(&self, to: &ServerIdentity, address: SocketAddrV4) -> Option<Connection> {
        self.link(to, address).connection.lock().await.clone()
    }

    fn link(&self, to: &ServerIdentity, address: SocketAddrV4) -> Arc<Link> {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&(to.clone(), address)) {
            return Arc::clone(link);
        }
        // A link that is open or in use is held by the task that watches it or by its call.
        links.retain(|_, link| Arc::strong_count(link) > 1);
        let link = Arc::new(Link::default());
        links.insert((to.clone(), address), Arc::clone(&link));
        link
    }

    /// The open connection, or a new one; and whether it is new.
    async fn connection(
        &self,
        link: &Arc<Link>,
        to: &ServerIdentity,
        address: SocketAddrV4,
    ) -> Result<(Connection, bool), Failure> {
        let mut held = link.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok((connection.clone(), false));
        }
        let connecting = self
            .0
            .endpoint
            .connect_with(self.0.config.clone(), address.into(), &to.dns_name())
            .map_err(|error| Failure::Connection(error.to_string()))?;
        let connection = connecting.await?;
        *held = Some(connection.clone());
        tokio::spawn(close_when_unused(Arc::clone(link), connection.clone()));
        Ok((connection, true))
    }
}

fn client_config(tls: &Tls) -> io::Result<ClientConfig> {
    let builder = rustls::ClientConfig::builder_with_provider(cert::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(Arc::clone(&tls.roots));
    let mut config = match &tls.identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(io::Error::other)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(io::Error::other)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(client_transport()));
    Ok(config)
}

/// One request, one response, over a stream of its own.
async fn ask(connection: &Connection, frame: &[u8]) -> Result<Response, Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    // A server that refuses the request stops the stream before it has read all of it, and resets the answer: the
    // reason is there.
    match send.write_all(frame).await {
        Ok(()) => {
            let _ = send.finish();
        }
        Err(quinn::WriteError::Stopped(_)) => {}
        Err(quinn::WriteError::ConnectionLost(error)) => return Err(error.into()),
        Err(error) => return Err(Failure::Connection(error.to_string())),
    }
    match receive.read_to_end(codec::frame_bytes_max::<Response>()).await {
        Ok(frame) => codec::decode(&frame).map_err(Failure::Message),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(_))) => Err(Failure::Refused),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => Err(error.into()),
        Err(error) => Err(Failure::Connection(error.to_string())),
    }
}

/// A [`CallError`] that does not know yet of whom it tells.
#[derive(Debug)]
enum Failure {
    Connection(String),
    Refused,
    Message(CodecError),
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(match error {
            ConnectionError::TimedOut => "no connection: it does not answer".to_owned(),
            ConnectionError::ConnectionClosed(frame) => format!("it closed the connection: {frame}"),
            ConnectionError::ApplicationClosed(frame) => {
                format!("it closed the connection: {}", String::from_utf8_lossy(&frame.reason))
            }
            error => error.to_string(),
        })
    }
}

/// Counts a call as in progress while it lives.
struct Used<'a>(&'a Link);

impl<'a> Used<'a> {
    fn begin(link: &'a Link) -> Self {
        link.use_.lock().unwrap_or_else(PoisonError::into_inner).calls += 1;
        Self(link)
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        let mut use_ = self.0.use_.lock().unwrap_or_else(PoisonError::into_inner);
        use_.calls -= 1;
        use_.last = Some(Instant::now());
    }
}

/// Keep-alives would hold a connection for ever, and a server has only so many.
async fn close_when_unused(link: Arc<Link>, connection: Connection) {
    loop {
        let wait = {
            let use_ = link.use_.lock().unwrap_or_else(PoisonError::into_inner);
            match use_.last {
                Some(last) if use_.calls == 0 => UNUSED.saturating_sub(last.elapsed()),
                _ => UNUSED,
            }
        };
        if wait.is_zero() {
            connection.close(code::DONE, b"not needed any more");
            return;
        }
        if tokio::time::timeout(wait, connection.closed()).await.is_ok() {
            return;
        }
    }
}
